"""Prediction of poses, context matching and generation of clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carl_ray.evaluation.inference import untrained_encoder
from carl_ray.objectives.base import Batch
from carl_ray.objectives.choice import objective_options
from carl_ray.objectives.csvr import (
    _COLLAPSED_STEPS,
    CLIP,
    CONTEXT,
    FUTURE,
    KEY_FRAME,
    Csvr,
    Made,
    critic_terms,
    mean_pose_error,
)
from carl_ray.options import overridden
from carl_ray.presets import preset
from carl_ray.training.checkpoint import (
    Progress,
    initial_weights,
    open_checkpoint,
    restore,
    save_checkpoint,
)
from carl_ray.training.learner import build_encoder, initial_learner
from carl_ray.training.run_checks import starting_weights
from carl_ray.training.step import TrainingStep
from tests.training.test_step import OBJECTIVES, same_state, snapshot, worker_batch

CPU = torch.device("cpu")
CONFIG = OBJECTIVES["csvr"]


def step_of(**options: Any) -> TrainingStep:
    sizes = {"key_frame_backbone": "small", "generated_frames": 4, "generated_size": 16}
    model = replace(CONFIG.model, clip_input="difference")
    objective = objective_options("csvr", **sizes | options)
    return TrainingStep(replace(CONFIG, model=model, objective=objective), CPU, 4)


def with_batch(**options: Any) -> tuple[TrainingStep, Batch]:
    step = step_of(**options)
    return step, worker_batch(0, config=step.config)


def with_keypoints(given: Batch, keypoints: Tensor) -> Batch:
    return replace(given, views=given.views | {FUTURE: replace(given.views[FUTURE], keypoints=keypoints)})


def keypoints_of(given: Batch) -> Tensor:
    found = given.views[FUTURE].keypoints
    assert found is not None
    return found.clone()


def of_phase(step: TrainingStep, name: str, given: Batch) -> Any:
    (phase,) = [phase for phase in step.phases if phase.name == name]
    step.model.train()
    return step._update(phase, given, 3, None)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_each_phase_leaves_the_other_ones_weights():
    step, given = with_batch()
    before = snapshot(step)
    assert of_phase(step, "critics", given).applied
    moved = changed(before, between := snapshot(step))
    # The encoder's batch norms see the batch, and its weights stay.
    trained = {name for name in moved if dict(step.model.named_parameters()).get(name) is not None}
    assert trained and all(name.startswith("objective.critics.") for name in trained)
    assert of_phase(step, "all", given).applied
    moved = changed(between, snapshot(step))
    assert not any(name.startswith("objective.critics.") for name in moved)
    parts = {".".join(name.split(".")[:2]) for name in moved}
    owned = ("fusion", "generators", "key_frame_encoder", "poses", "project_clip", "project_key_frame")
    assert parts == {"encoder.backbone", "encoder.static_backbone", *(f"objective.{part}" for part in owned)}


def test_a_video_without_a_person_has_no_pose_but_its_context():
    step, given = with_batch(generation_weight=0)
    keypoints = keypoints_of(given)
    keypoints[:, :, :, :, 2] = 1
    keypoints[1] = 0
    given = with_keypoints(given, keypoints)
    encodings = step.model.encode(given)
    for encoding in encodings.values():
        encoding.clip.retain_grad()
    sums, counts = step.model.objective(encodings, given, 0.5)
    sums[2:].sum().backward(retain_graph=True)
    gradient = encodings[CLIP].clip.grad
    assert gradient is not None and not gradient[1].any() and gradient[[0, 2, 3, 4]].flatten(1).any(1).all()
    assert counts.tolist() == [5, 5, 4 * 4 * 17, 4]
    sums[:2].sum().backward()
    assert encodings[CONTEXT].clip.grad.flatten(1).any(1).all()


def test_key_frames_that_were_replaced_are_counted():
    step, given = with_batch()
    still = given.views[KEY_FRAME]
    shown = still.spans[:, :, :1].clone()
    shown[2] += 12
    given = replace(given, views=given.views | {KEY_FRAME: replace(still, timestamps=shown)})
    assert step.train(given, 0).figures["replaced_key_frames"] == pytest.approx(1 / 5)


@pytest.mark.parametrize("valid", [0, 8])
def test_a_batch_without_any_person_trains(valid: int):
    """Eight valid joints of 17 are no pose either."""
    step, given = with_batch()
    keypoints = torch.zeros_like(keypoints_of(given))
    keypoints[..., :valid, :] = 1
    report = step.train(with_keypoints(given, keypoints), 0)
    assert report.applied and report.figures["people"] == report.figures["pose_error"] == 0


def test_joints_that_are_not_valid_have_no_error():
    step, given = with_batch(pose_critic_weight=0, context_weight=0, generation_weight=0)
    keypoints = keypoints_of(given)
    keypoints[..., 2] = 1
    keypoints[:, :, :, 3] = 0
    other = keypoints.clone()
    other[:, :, :, 3, :2] = 7
    encodings = step.model.encode(given)
    found = [step.model.objective(encodings, with_keypoints(given, k), 0.5) for k in (keypoints, other)]
    assert torch.equal(found[0].sums, found[1].sums) and found[0].counts.tolist() == [5 * 4 * 16]


def test_the_error_of_poses_is_the_formula():
    step, given = with_batch(pose_critic_weight=0, context_weight=0, generation_weight=0)
    encodings = step.model.encode(given)
    sums, _ = step.model.objective(encodings, given, 0.5)
    made = step.model.objective.made(encodings, given)["pose"]
    people = (given.views[FUTURE].keypoints[:, 0, :4, :, 2].mean((1, 2)) >= 0.5).nonzero()[:, 0]
    total = 0.0
    for row, video in enumerate(people):
        for pose in range(4):
            for x, y, valid in given.views[FUTURE].keypoints[video, 0, pose]:
                joint = int((given.views[FUTURE].keypoints[video, 0, pose, :, 0] == x).nonzero()[0])
                errors = (made.fake[row, pose, joint].detach() - torch.stack([x, y])).abs()
                smooth = torch.where(errors < 0.05, 0.5 * errors**2 / 0.05, errors - 0.025)
                total += float(valid) * smooth.mean().item()
    assert sums.item() == pytest.approx(20 * total, rel=1e-5)


def test_the_generator_sees_no_keypoints():
    step, given = with_batch()
    keypoints = keypoints_of(given).requires_grad_()
    assert given.views[CLIP].keypoints is None
    given = with_keypoints(given, keypoints)
    made = step.model.objective.made(step.model.encode(given), given)["pose"]
    assert torch.autograd.grad(made.fake.sum(), keypoints, allow_unused=True) == (None,)


def test_predictions_differ_by_the_seed_and_not_by_the_batch():
    step, given = with_batch()
    keypoints = keypoints_of(given)
    keypoints[..., 2] = 1
    given = with_keypoints(given, keypoints)
    step.model.eval()
    whole = step.model.objective.made(step.model.encode(given), given)["pose"].fake
    alone = given.map(lambda part: part[2:3])
    one = step.model.objective.made(step.model.encode(alone), alone)["pose"].fake
    torch.testing.assert_close(one[0], whole[2], rtol=1e-4, atol=1e-5)
    moved = replace(given, seeds={name: seeds + 1 for name, seeds in given.seeds.items()})
    assert not torch.allclose(step.model.objective.made(step.model.encode(moved), moved)["pose"].fake, whole)


def test_clips_of_one_content_are_not_matched_with_each_other():
    step, given = with_batch(pose_weight=0, generation_weight=0)
    context = given.views[CONTEXT]
    same = replace(context, columns={"content_hash": torch.zeros_like(context.columns["content_hash"])})
    found = [
        step.model.objective(step.model.encode(batch), batch, 0.5)
        for batch in (given, replace(given, views=given.views | {CONTEXT: same}))
    ]
    assert found[0].sums[:2].detach().min() > 1
    torch.testing.assert_close(found[1].sums[:2].detach(), torch.zeros(2))


def test_a_critic_has_the_hinge_loss():
    def critic(clips: Tensor) -> Tensor:
        return clips.flatten(1)

    fake, real = torch.tensor([[0.5, -2.0]]), torch.tensor([[0.0, 3.0]])
    terms = critic_terms(critic, Made(fake, real, (), torch.zeros(()), torch.zeros(())))
    assert terms.sums.item() == pytest.approx((1 + 0) / 2 + (1.5 + 0) / 2) and terms.counts.tolist() == [1]


def test_the_mean_pose_is_the_batchs():
    real = torch.zeros(2, 4, 17, 2)
    real[1] = 1
    made = Made(real, real, (torch.ones(2, 4, 17), torch.zeros(2, 1)), torch.zeros(()), torch.zeros(()))
    total, count = mean_pose_error(made)
    assert total / count == pytest.approx(0.5 - 0.025)
    valid = torch.ones(2, 4, 17)
    valid[1] = 0
    assert mean_pose_error(made._replace(given=(valid, torch.zeros(2, 1))))[0] == 0


def test_frames_beyond_the_end_are_no_target():
    step, given = with_batch(context_weight=0, pose_weight=0, clip_critic_weight=0)
    future = given.views[FUTURE]
    mask = torch.ones_like(future.mask)
    mask[:, :, 2:] = False
    mask[1] = False
    given = replace(given, views=given.views | {FUTURE: replace(future, mask=mask)})
    encodings = step.model.encode(given)
    first = step.model.objective(encodings, given, 0.5)
    assert first.counts.tolist() == [int(given.views[CLIP].mask[:, 0, 1::2].sum()), 4 * 2]
    pixels = future.pixels.clone()
    pixels[:, :, 2:] = 255
    pixels[1] = 255
    given = replace(given, views=given.views | {FUTURE: replace(future, mask=mask, pixels=pixels)})
    assert torch.equal(step.model.objective(encodings, given, 0.5).sums, first.sums)


def test_a_critic_that_has_won_is_said_once(monkeypatch: pytest.MonkeyPatch):
    step, given = with_batch(pose_weight=0, context_weight=0)
    monkeypatch.setattr("carl_ray.objectives.csvr._COLLAPSED_STEPS", 3)
    monkeypatch.setattr("carl_ray.objectives.csvr._COLLAPSED_LOSS", 1e9)
    told = [step.train(given, number).warnings for number in range(4)]
    # In the first step the generators do not oppose them yet.
    assert [len(lines) for lines in told] == [0, 0, 0, 2]
    assert "critic of objective csvr for now" in told[3][0]
    assert step.model.objective.collapsed.tolist() == [3, 3] and _COLLAPSED_STEPS == 500
    assert step.train(given, 2).warnings == ()
    monkeypatch.setattr("carl_ray.objectives.csvr._COLLAPSED_LOSS", 0.0)
    step.train(given, 2)
    assert step.model.objective.collapsed.tolist() == [0, 0]


@pytest.mark.parametrize("killed_in", ["critics", "all"])
def test_resume_after_a_kill_between_phases_is_exact(tmp_path: Path, killed_in: str):
    batches = [worker_batch(number, config=CONFIG) for number in range(4)]
    whole = step_of()
    for number, given in enumerate(batches):
        whole.train(given, number)
    killed = step_of()
    killed.train(batches[0], 0)
    uri = save_checkpoint(str(tmp_path), killed, Progress(1, 5, 0, 0, 1.0, "videos"), 1)
    update = killed._update

    def dies(phase: Any, *rest: Any) -> Any:
        if phase.name == killed_in:
            raise KeyboardInterrupt
        return update(phase, *rest)

    killed._update = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.train(batches[1], 1)
    resumed = step_of()
    restore(open_checkpoint(uri), resumed)
    for number in range(1, 4):
        resumed.train(batches[number], number)
    assert same_state(resumed.model.state_dict(), whole.model.state_dict())
    for one, other in zip(resumed.phases, whole.phases, strict=True):
        moments = [phase.optimizer.state_dict()["state"] for phase in (one, other)]
        torch.testing.assert_close(*moments, rtol=0, atol=0)


@pytest.mark.parametrize(
    "without",
    [{"context_weight": 0}, {"pose_weight": 0}, {"generation_weight": 0}, {"pose_critic_weight": 0}],
)
def test_every_branch_can_be_left_out(without: dict[str, float]):
    step = step_of(**without)
    report = step.train(worker_batch(0, config=step.config), 0)
    assert report.applied
    assert ("pose" in step.model.objective.critics) == (
        without.keys().isdisjoint({"pose_weight", "pose_critic_weight"})
    )


def test_mistakes_are_found_in_the_config():
    config = preset("csvr_demo")
    for changes, message in (
        ({"training.global_batch_size": "1"}, "csvr compares videos: .* at least 2, got 1"),
        ({"model.clip_streams": "one"}, "trains two streams, model.clip_streams is one: expected two"),
        ({"objective.key_frame_crop_area": "[0.3, 2]"}, "key_frame_crop_area must be"),
        (
            dict.fromkeys((f"objective.{name}_weight" for name in ("context", "pose", "generation")), "0"),
            "must be above 0",
        ),
    ):
        with pytest.raises(Exception, match=message):
            overridden(config, changes)


def test_a_shared_backbone_has_half_the_weights_and_the_same_width():
    two, shared = (
        build_encoder(overridden(preset("csvr_demo"), {"model.clip_streams": streams}))
        for streams in ("two", "shared")
    )
    assert two.width == shared.width == 2 * build_encoder(preset("clips_demo")).width
    weights = [sum(p.numel() for p in encoder.parameters()) for encoder in (two, shared)]
    assert weights[0] == 2 * weights[1]


@pytest.mark.parametrize("streams", ["one", "two"])
def test_fine_tuning_takes_the_dynamic_stream_or_both(tmp_path: Path, streams: str):
    step = step_of()
    uri = save_checkpoint(str(tmp_path), step, Progress(1, 5, 0, 0, 1.0, "videos"), 1)
    tuned = replace(
        step.config,
        model=replace(step.config.model, clip_streams=streams),
        objective=objective_options("clip_classes").with_num_classes(4),
    )
    found = initial_weights(tuned, uri).tensors
    expected = initial_learner(tuned).encoder.state_dict()
    assert {f"encoder.{name}" for name in expected} == found.keys()
    assert all(torch.equal(found[name], step.model.state_dict()[name]) for name in found)


def test_both_streams_begin_with_pretrained_weights(tmp_path: Path):
    config = replace(CONFIG, model=replace(CONFIG.model, backbone="r3d_18"))
    path = tmp_path / "r3d_18.pt"
    torch.save(build_encoder(config).backbone.state_dict(), path)
    config = replace(config, model=replace(config.model, weights=str(path)))
    start = starting_weights(config)
    assert start is not None
    encoder = untrained_encoder(config)
    for name, value in encoder.state_dict().items():
        assert torch.equal(start.tensors[f"encoder.{name}"], value)
    assert sum(name.startswith("encoder.static_backbone.") for name in start.tensors) > 50


def test_the_halves_are_the_streams():
    step, given = with_batch()
    encoder = step.model.encoder.eval()
    encoding = step.model.encode(given)[CLIP]
    view = given.views[CLIP]
    assert isinstance(step.model.objective, Csvr) and view.pixels is not None
    still = replace(view, pixels=view.pixels[:, :, :1].expand_as(view.pixels).contiguous())
    frozen = step.model.encode(replace(given, views=given.views | {CLIP: still}))[CLIP]
    width = encoder.width // 2
    dynamic, static = encoding.clip.split(width, -1)
    # Without motion the dynamic stream sees zeros.
    one = frozen.clip[:, 0, :width]
    torch.testing.assert_close(one, one[:1].expand_as(one))
    assert not torch.allclose(dynamic, frozen.clip[..., :width])
    assert not torch.allclose(static[0], static[1])
