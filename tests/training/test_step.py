"""`carl_ray.training.step`: one update on any number of workers is the same update."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carl_ray.config import (
    AugmentConfig,
    Config,
    OptimizerConfig,
    TrainingConfig,
    objective_options,
)
from carl_ray.data.batch import batch_on_device, collate
from carl_ray.data.sample import Sample, sample_spec
from carl_ray.model.features import normalize
from carl_ray.objectives.base import Batch
from carl_ray.objectives.choice import OBJECTIVES as EVERY
from carl_ray.objectives.choice import find_objective
from carl_ray.objectives.scl import sequence_contrastive_loss
from carl_ray.objectives.views import CROPS
from carl_ray.training.step import StepReport, TrainingStep
from tests.samples import Crops, batch_of, crops, make_crops, run_workers, small_model

ROUNDING = 1e-9
"""Far above that of 20 steps in float64 (1e-12 is seen), far below a step of Adam, 1e-4."""
NUM_STEPS = 20
NUM_OBJECTIVE_STEPS = 4
NUM_VIDEOS = 5
TIME = 8
SIZE = 24
CPU = torch.device("cpu")

CONFIG = Config(
    preset="test",
    augment=AugmentConfig(image_size=SIZE),
    model=small_model(32, num_frames=TIME, embedding_width=16),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    training=TrainingConfig(seed=3, global_batch_size=NUM_VIDEOS, precision="fp32"),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def with_model(config: Config = CONFIG, **values: Any) -> Config:
    return replace(config, model=replace(config.model, **values))


def global_batch(step: int) -> list[Crops]:
    """Videos of blocks that fade from colours to others, so that frames can be told apart; some are padded."""
    rng = np.random.default_rng([11, step])
    pairs = []
    for _ in range(NUM_VIDEOS):
        real = int(rng.integers(TIME // 2, TIME + 1))
        mask = np.arange(TIME) < real
        timestamps = np.sort(rng.choice(40, size=(2, TIME)), axis=1).astype(np.float64)
        first, last = (rng.uniform(0, 255, (4, 4, 3)).repeat(6, axis=0).repeat(6, axis=1) for _ in range(2))
        part = (timestamps / 40)[:, :, None, None, None]
        frames = (first * (1 - part) + last * part).astype(np.uint8)
        frames[:, ~mask] = 0
        masks = np.stack([mask, mask])
        labels = np.where(masks, timestamps.astype(np.int64) // 10, -1)
        pairs.append(crops(frames, timestamps, masks, labels))
    return pairs


def share(step: int, rank: int, num_workers: int) -> slice:
    """The worker's videos of a step: another uneven split at each, in which a worker may have none."""
    if num_workers == 1:
        return slice(0, NUM_VIDEOS)
    if num_workers == 2:
        cuts = [0, (4 * step + 5) % (NUM_VIDEOS + 1), NUM_VIDEOS]
    else:
        cuts = [0, *sorted([(2 * step) % (NUM_VIDEOS + 1), (3 * step + 4) % (NUM_VIDEOS + 1)]), NUM_VIDEOS]
    return slice(cuts[rank], cuts[rank + 1])


def worker_batch(step: int, rank: int = 0, num_workers: int = 1, config: Config = CONFIG) -> Batch:
    mine = share(step, rank, num_workers)
    rows = range(step * NUM_VIDEOS, (step + 1) * NUM_VIDEOS)
    views, names = global_batch(step)[mine], [f"video-{i}" for i in range(NUM_VIDEOS)][mine]
    if not config.objective.columns:
        views = [replace(view, columns={}) for view in views]
    if config.objective.reads_clips:
        samples = [
            Sample(row, step, step, name, None, clips_of(view, config))
            for view, row, name in zip(views, rows[mine], names, strict=True)
        ]
        return collate(samples, sample_spec(config))
    return batch_of(views, rows[mine], names, config, epoch=step)


def clips_of(view: Crops, config: Config) -> dict[str, Crops]:
    """Clips of an objective from the frames of two crops."""
    made = {}
    for spec in config.view_specs:
        times = [np.arange(spec.num_frames) % TIME] * spec.count
        video = int(view.timestamps[0, 0])
        pixels = np.stack([view.pixels[clip][places] for clip, places in enumerate(times)])
        mask = np.arange(spec.num_frames) < max(1, view.mask[0].sum() * spec.num_frames // TIME)
        pixels[:, ~mask] = 0
        starts = 4.0 * np.arange(spec.count)
        label = np.where(mask, video % 4, -1)
        joints = np.random.default_rng(video).random((spec.count, spec.num_frames, 17, 3), np.float32)
        joints[..., 2] = (joints[..., 2] > 0.2) & (video % 3 > 0)  # Some videos show nobody.
        made[spec.name] = Crops(
            timestamps=starts[:, None] + np.arange(spec.num_frames),
            mask=np.stack([mask] * spec.count),
            parameters=np.zeros((spec.count, 16)),
            boxes=np.stack([np.array([0.1 * clip, 0.0, 0.9, 1.0]) for clip in range(spec.count)]),
            flips=np.arange(spec.count) == 1,
            spans=np.stack([starts, starts + spec.num_frames], axis=1),
            pixels=pixels,
            keypoints=joints * joints[..., 2:] if spec.keypoints else None,
            columns=dict.fromkeys(config.objective.columns, np.stack([label] * spec.count)),
        )
    return made


def with_view(batch: Batch, **values: Tensor) -> Batch:
    return replace(batch, views={CROPS: replace(batch.views[CROPS], **values)})


def snapshot(step: TrainingStep) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in step.model.state_dict().items()}


def same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- any number of workers ----------------------------------------------------------------------------------------

SCENARIOS = {
    "synchronized": with_model(batch_norm="synchronized"),
    "frozen": with_model(batch_norm="frozen"),
    "local": with_model(batch_norm="local"),
    "global negatives": replace(
        with_model(batch_norm="synchronized"), objective=objective_options("scl", negatives="global")
    ),
}


def model_of(name: str) -> dict[str, str]:
    """What the model of an objective needs."""
    of = find_objective(name).Options
    clips = {"backbone": "small3d", "temporal_encoder": "clip"} if of.reads_clips else {}
    return clips | ({"clip_streams": "two"} if of.reads_streams else {})


SMALL = {"csvr": {"key_frame_backbone": "small", "generated_frames": 4, "generated_size": 16}}


# Five videos a step: the fifth and, in the next step, the first have no partner.
OBJECTIVES = {
    name: replace(
        CONFIG,
        model=replace(CONFIG.model, batch_norm="frozen", **model_of(name)),
        training=replace(CONFIG.training, global_batch_size=6),
        objective=objective_options(name, **SMALL.get(name, {})).with_num_classes(4),
    )
    for name in EVERY
    if name != "scl"
}
SCENARIOS |= OBJECTIVES
_context = objective_options("csvr", pose_weight=0, generation_weight=0, key_frame_backbone="small")
SCENARIOS["csvr, context alone"] = replace(
    OBJECTIVES["csvr"],
    model=replace(OBJECTIVES["csvr"].model, batch_norm="synchronized", clip_input="difference"),
    objective=_context,
)
SCENARIOS["regions synchronized"] = replace(
    OBJECTIVES["regions"],
    model=replace(OBJECTIVES["regions"].model, batch_norm="synchronized"),
    objective=objective_options(
        "regions", information="adversary", low_level="color+edges", order_targets="distance"
    ),
)


def float64_step(config: Config, num_steps: int) -> TrainingStep:
    """A step in float64, where rounding is far below Adam's epsilon.

    In float32 a parameter whose gradient is zero by symmetry (a bias before batch norm) takes steps of the learning
    rate in the direction of its rounding, which differs between CPUs.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        step = TrainingStep(config, CPU, num_steps)
    finally:
        torch.set_default_dtype(before)
    step.model.encoder.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(), *inputs[1:]))
    return step


def run_scenario(config: Config, rank: int, num_workers: int) -> dict[str, Any]:
    num_steps = NUM_STEPS if config.objective.name == "scl" else NUM_OBJECTIVE_STEPS
    step = float64_step(config, num_steps)
    reports = [
        step.train(worker_batch(number, rank, num_workers, config), number) for number in range(num_steps)
    ]
    return {"reports": [vars(report) for report in reports], "state": snapshot(step)}


FAULTS = ["loss", "gradient", "activation", "weights"]
FAULT_CONFIG = with_model(batch_norm="synchronized")


def whole_state(step: TrainingStep) -> dict[str, Tensor]:
    """Weights, batch-norm statistics and Adam's moments, copied."""
    moments = {
        f"{index}.{name}": value.clone()
        for index, values in step.phases[0].optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    return snapshot(step) | moments


def run_with_fault(fault: str | None, rank: int, num_workers: int) -> dict[str, Any]:
    """A good step, one with something not finite on the last worker alone, a good step; without the fault, two."""
    step = TrainingStep(FAULT_CONFIG, CPU, NUM_STEPS)
    # All workers must have videos in the faulty step.
    batch = worker_batch(1, rank, num_workers)
    reports = [step.train(batch, 0)]
    before = whole_state(step)
    rows: list[int] = []
    if fault is not None:
        with injected(fault, step, batch, broken=rank == num_workers - 1) as given:
            reports.append(step.train(given, 1))
            rows = step.rows_not_finite(given, range(NUM_VIDEOS, 2 * NUM_VIDEOS))
    after = whole_state(step)
    reports.append(step.train(batch, 2))
    return {
        "applied": [report.applied for report in reports],
        "norms": [report.gradient_norm for report in reports],
        "loss": reports[-1].loss,
        "rows": rows,
        "own rows": batch.rows.tolist(),
        "unchanged": same_state(before, after),
        "changed": not same_state(before, whole_state(step)),
        "finite": all(
            value.isfinite().all() for state in (after, whole_state(step)) for value in state.values()
        ),
        "end": whole_state(step),
    }


@contextmanager
def injected(fault: str, step: TrainingStep, batch: Batch, *, broken: bool) -> Iterator[Batch]:
    """The batch of a step in which something is not finite, on a worker that is broken."""
    projection = step.model.objective.projection
    weight = projection.layers[0].weight
    match fault if broken else None:
        case "loss":
            # Of the worker's first video alone.
            timestamps = batch.views[CROPS].timestamps.clone()
            timestamps[0] = torch.nan
            yield with_view(batch, timestamps=timestamps)
        case "gradient":
            handle = weight.register_hook(lambda gradient: gradient * torch.inf)
            yield batch
            handle.remove()
        case "activation":
            handle = projection.register_forward_pre_hook(
                lambda module, inputs: (inputs[0] * torch.inf, *inputs[1:])
            )
            yield batch
            handle.remove()
        case "weights":
            # A bit flip in one of them: what the step leaves is put back.
            kept = weight.detach().clone()
            weight.data[0, 0] = torch.nan
            yield batch
            weight.data.copy_(kept)
        case _:
            yield batch


GATHERING = ["global negatives", "tcc", "weak_scl"]


def rows_with_a_broken_one(config: Config, rank: int) -> list[int]:
    """What two workers find where the second video, the second worker's first, is not finite; it has a partner."""
    step, batch = TrainingStep(config, CPU, NUM_STEPS), worker_batch(2, rank, 2, config)
    if rank == 1:
        step.model.encoder.register_forward_hook(
            lambda module, inputs, made: made.masked_fill(
                torch.arange(len(made))[:, None, None] < 2, torch.nan
            )
        )
    return step.rows_not_finite(batch, range(2 * NUM_VIDEOS, 3 * NUM_VIDEOS))


def _worker(rank: int, num_workers: int) -> dict[str, Any]:
    answers = {name: run_scenario(config, rank, num_workers) for name, config in SCENARIOS.items()}
    if num_workers == 2:
        answers |= {str(fault): run_with_fault(fault, rank, num_workers) for fault in (*FAULTS, None)}
        answers["rows"] = {name: rows_with_a_broken_one(SCENARIOS[name], rank) for name in GATHERING}
    return answers


@pytest.fixture(scope="module")
def on_workers() -> dict[int, list[dict[str, Any]]]:
    """The answers of every worker of 1, 2 and 3."""
    torch.set_num_threads(1)
    answers = {1: [{name: run_scenario(config, 0, 1) for name, config in SCENARIOS.items()}]}
    for num_workers in (2, 3):
        answers[num_workers] = run_workers(_worker, num_workers)
    return answers


def losses(answer: dict[str, Any]) -> Tensor:
    return torch.tensor([report["loss"] for report in answer["reports"]], dtype=torch.float64)


def test_the_splits_are_uneven_and_leave_workers_without_videos() -> None:
    for num_workers in (2, 3):
        counts = {
            tuple(
                len(range(*share(step, rank, num_workers).indices(NUM_VIDEOS))) for rank in range(num_workers)
            )
            for step in range(NUM_STEPS)
        }
        assert all(sum(count) == NUM_VIDEOS for count in counts)
        assert any(min(count) == 0 for count in counts)
        assert any(0 < min(count) < max(count) for count in counts)


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize(
    "scenario",
    [
        "synchronized",
        "frozen",
        "global negatives",
        *OBJECTIVES,
        "regions synchronized",
        "csvr, context alone",
    ],
)
def test_losses_and_weights_do_not_depend_on_the_number_of_workers(
    on_workers: dict[int, list[dict[str, Any]]], scenario: str, num_workers: int
) -> None:
    alone, together = on_workers[1][0][scenario], [answer[scenario] for answer in on_workers[num_workers]]
    for answer in together:
        assert answer["reports"] == together[0]["reports"]
        assert same_state(answer["state"], together[0]["state"])
    torch.testing.assert_close(losses(together[0]), losses(alone), rtol=0, atol=ROUNDING)
    for name in ("num_videos", "num_frames", "learning_rate", "applied"):
        assert [r[name] for r in together[0]["reports"]] == [r[name] for r in alone["reports"]]
    norms = [[report["gradient_norm"] for report in answer["reports"]] for answer in (together[0], alone)]
    torch.testing.assert_close(torch.tensor(norms[0]), torch.tensor(norms[1]), rtol=ROUNDING, atol=ROUNDING)
    for name, value in alone["state"].items():
        torch.testing.assert_close(together[0]["state"][name], value, rtol=ROUNDING, atol=ROUNDING, msg=name)


def test_the_weights_move_so_that_they_could_differ(on_workers: dict[int, list[dict[str, Any]]]) -> None:
    for name, config in SCENARIOS.items():
        start = snapshot(TrainingStep(config, CPU, NUM_STEPS))
        end = on_workers[1][0][name]["state"]
        weights = [n for n in start if n.endswith("weight") and start[n].dim() > 1]
        least = (1 if config.objective.name in OBJECTIVES else 5) * config.optimizer.learning_rate
        assert all((start[n] - end[n]).abs().max() > least for n in weights), name


def test_local_batch_norm_does_depend_on_the_number_of_workers(
    on_workers: dict[int, list[dict[str, Any]]],
) -> None:
    alone = losses(on_workers[1][0]["local"])
    # Alone, the two are the same but for the way of summing up.
    same = losses(on_workers[1][0]["synchronized"])
    torch.testing.assert_close(alone, same, rtol=0, atol=ROUNDING)
    for num_workers in (2, 3):
        assert (losses(on_workers[num_workers][0]["local"]) - alone).abs().max() > 1e-2


def assert_skipped(answer: dict[str, Any], without: dict[str, Any]) -> None:
    assert answer["applied"] == [True, False, True]
    assert answer["unchanged"]
    assert answer["changed"]
    # What can be checkpointed is finite, and what follows is as if the step had never been.
    assert answer["finite"]
    assert answer["loss"] == without["loss"] and np.isfinite(answer["loss"])
    assert same_state(answer["end"], without["end"])
    assert without["applied"] == [True, True]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_finite_on_one_worker_skips_the_step_on_all(
    on_workers: dict[int, list[dict[str, Any]]], fault: str
) -> None:
    healthy, broken = on_workers[2]
    for answer in (healthy, broken):
        assert_skipped(answer[fault], answer["None"])
    np.testing.assert_equal(healthy[fault]["norms"], broken[fault]["norms"])
    assert same_state(healthy[fault]["end"], broken[fault]["end"])
    # The videos of the global batch whose own loss is not finite, on either worker.
    own = broken[fault]["own rows"]
    assert 0 < len(own) < NUM_VIDEOS
    expected = {"loss": own[:1], "gradient": [], "activation": own, "weights": own}[fault]
    assert healthy[fault]["rows"] == broken[fault]["rows"] == expected


@pytest.mark.parametrize("scenario", GATHERING)
def test_a_broken_video_spoils_no_other_workers(
    on_workers: dict[int, list[dict[str, Any]]], scenario: str
) -> None:
    assert (share(2, 0, 2), share(2, 1, 2)) == (slice(0, 1), slice(1, NUM_VIDEOS))
    pair = [2 * NUM_VIDEOS, 2 * NUM_VIDEOS + 1]
    expected = pair if SCENARIOS[scenario].objective.pairs_videos else pair[1:]
    assert [answer["rows"][scenario] for answer in on_workers[2]] == [expected, expected]


# --- one worker ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scl", *OBJECTIVES])
def test_rows_whose_loss_is_not_finite_are_found_for_every_objective(name: str) -> None:
    config = OBJECTIVES.get(name, with_model(batch_norm="frozen"))
    step, batch = TrainingStep(config, CPU, NUM_STEPS), worker_batch(2, config=config)
    rows = range(2 * NUM_VIDEOS, 3 * NUM_VIDEOS)
    before = snapshot(step)
    assert step.rows_not_finite(batch, rows) == []

    def broken(module: Any, inputs: Any, made: Any) -> Any:
        if isinstance(made, Tensor):
            return made.index_fill(0, torch.tensor([made.shape[0] * 2 // NUM_VIDEOS]), torch.nan)
        return type(made)(*(broken(module, inputs, part) for part in made))

    handle = step.model.encoder.register_forward_hook(broken)
    # View 0 of the third video: where pairs are compared, it and its partner.
    found = [row - rows.start for row in step.rows_not_finite(batch, rows)]
    handle.remove()
    assert found == ([2, 3] if config.objective.pairs_videos else [2])
    assert same_state(before, snapshot(step))


def test_bf16_computes_what_may_overflow_in_float32() -> None:
    config = replace(FAULT_CONFIG, training=replace(CONFIG.training, precision="bf16"))
    step, batch = TrainingStep(config, CPU, NUM_STEPS), worker_batch(0)
    halves = []
    for layer in step.model.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.register_forward_hook(lambda module, inputs, made: halves.append(made.dtype))
    sums, _ = step._terms(batch_on_device(batch, config, CPU), step._forward.train(), 0.0)
    assert torch.bfloat16 in halves
    # The loss with its softmax, the gradients with their norm, the statistics and Adam's moments.
    assert sums.dtype == torch.float32
    step.train(batch, 0)
    assert {parameter.grad.dtype for parameter in step.model.parameters() if parameter.grad is not None} == {
        torch.float32
    }
    assert {value.dtype for value in whole_state(step).values() if value.is_floating_point()} == {
        torch.float32
    }


@pytest.mark.parametrize("max_norm", [1e-3, 1e6])
def test_a_step_is_the_loss_by_hand_clipped_into_adam(max_norm: float) -> None:
    optimizer = OptimizerConfig(learning_rate=1e-3, weight_decay=1e-2, max_gradient_norm=max_norm)
    config = replace(
        with_model(dropout=0.0),
        optimizer=optimizer,
        objective=objective_options("scl", temperature=0.2, variance=4.0),
    )
    step, batch = TrainingStep(config, CPU, NUM_STEPS), worker_batch(0, config=config)
    model = copy.deepcopy(step.model).train()
    report = step.train(batch, 0)

    view, seeds = batch.views[CROPS], batch.seeds[CROPS].flatten()
    embeddings = model.encoder(
        normalize(view.pixels.flatten(0, 1)), view.mask.flatten(0, 1), sample_seeds=seeds
    ).unflatten(0, (NUM_VIDEOS, 2))
    loss = sequence_contrastive_loss(
        *model.objective.projection(embeddings, view.mask).unbind(1),
        *view.timestamps.unbind(1),
        *view.mask.unbind(1),
        temperature=0.2,
        variance=4.0,
    )
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-2)
    for gradient in gradients:
        gradient.mul_(min(1.0, max_norm / float(norm)))
    adam.step()

    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    assert report.gradient_norm == pytest.approx(norm.item(), rel=1e-4)
    assert max_norm > 1 or norm > 10 * max_norm
    for name, value in model.state_dict().items():
        torch.testing.assert_close(step.model.state_dict()[name], value, rtol=1e-4, atol=2e-5, msg=name)
    assert (report.num_videos, report.num_frames) == (NUM_VIDEOS, int(batch.views[CROPS].mask.sum()))
    clipped = torch.stack([p.grad.square().sum() for p in step.model.parameters()]).sum().sqrt()
    assert clipped.item() == pytest.approx(min(max_norm, norm.item()), rel=1e-3)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_encoder_learns_at_a_part_of_the_rate(name: str) -> None:
    """The first step of Adam is the rate, whatever the gradient."""
    rate = 1e-3
    optimizer = OptimizerConfig(name=name, learning_rate=rate, encoder_scale=0.1, weight_decay=0)  # type: ignore[arg-type]
    config = replace(CONFIG, optimizer=optimizer)
    step = TrainingStep(config, CPU, NUM_STEPS)
    before = snapshot(step)
    step.train(worker_batch(0, config=config), 0)
    moved: dict[str, float] = {}
    for part, parameter in step.model.named_parameters():
        change = float((parameter.detach() - before[part]).abs().max())
        moved[part.partition(".")[0]] = max(change, moved.get(part.partition(".")[0], 0.0))
    assert moved == {
        "encoder": pytest.approx(0.1 * rate, rel=0.02),
        "objective": pytest.approx(rate, rel=0.02),
    }


def test_learning_rate_is_one_cosine_over_the_run() -> None:
    step = TrainingStep(CONFIG, CPU, 8)
    base = CONFIG.optimizer.learning_rate
    assert step.learning_rate(0) == base
    assert step.learning_rate(2) == pytest.approx(base * (1 + 2**-0.5) / 2)
    assert step.learning_rate(4) == pytest.approx(base / 2)
    assert step.learning_rate(8) == pytest.approx(0, abs=1e-12)
    assert all(step.learning_rate(k) > step.learning_rate(k + 1) for k in range(8))
    report = step.train(worker_batch(0), 4)
    assert report.learning_rate == step.learning_rate(4) == step.phases[0].optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("learnable", "frozen"),
    [
        ("none", ["conv1", "conv2", "conv3", "conv4", "conv5", "conv6"]),
        ("block5", ["conv1", "conv2", "conv3", "conv4"]),
        ("all", []),
    ],
)
def test_frozen_blocks_stay_bit_for_bit(learnable: str, frozen: list[str]) -> None:
    step = TrainingStep(with_model(learnable=learnable), CPU, NUM_STEPS)
    before = snapshot(step)
    for number in range(3):
        assert step.train(worker_batch(number), number).applied
    after = snapshot(step)
    for block in [f"conv{i}" for i in range(1, 7)]:
        names = [name for name in before if name.startswith(f"encoder.backbone.{block}.")]
        assert names
        for name in names:
            assert torch.equal(before[name], after[name]) == (block in frozen), name
    assert all(not torch.equal(before[n], after[n]) for n in before if "projection" in n)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = TrainingStep(CONFIG, CPU, NUM_STEPS)
    drawn = torch.rand(1)
    second = TrainingStep(CONFIG, CPU, NUM_STEPS)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # the caller's generator is left as it was
    assert same_state(snapshot(first), snapshot(second))
    other = replace(CONFIG, training=replace(CONFIG.training, seed=4))
    assert not same_state(snapshot(first), snapshot(TrainingStep(other, CPU, NUM_STEPS)))


def test_dropout_follows_the_videos_seeds() -> None:
    batch = worker_batch(0)
    reports = [TrainingStep(CONFIG, CPU, NUM_STEPS).train(batch, 0).loss for _ in range(2)]
    assert reports[0] == reports[1]
    reseeded = replace(batch, seeds={CROPS: batch.seeds[CROPS] + 1})
    assert TrainingStep(CONFIG, CPU, NUM_STEPS).train(reseeded, 0).loss != reports[0]


def test_bf16_stays_near_fp32_and_finite() -> None:
    config = replace(CONFIG, training=replace(CONFIG.training, precision="bf16"))
    half, full = TrainingStep(config, CPU, NUM_STEPS), TrainingStep(CONFIG, CPU, NUM_STEPS)
    for number in range(3):
        batch = worker_batch(number)
        # Timestamps of a long video: no weight of the loss may become 0/0.
        times = batch.views[CROPS].timestamps * torch.tensor([1.0, 200.0], dtype=torch.float64)[:, None]
        batch = with_view(batch, timestamps=times)
        got, expected = half.train(batch, number), full.train(batch, number)
        assert got.applied
        assert got.loss != expected.loss
        assert got.loss == pytest.approx(expected.loss, rel=0.05)
    assert all(value.dtype != torch.bfloat16 for value in half.model.state_dict().values())
    assert all(value.isfinite().all() for value in half.model.state_dict().values())


def test_colour_on_the_trainer_gives_the_loss_of_colour_on_the_workers(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    strong = AugmentConfig(
        image_size=SIZE, jitter_probability=1.0, blur_probability=1.0, blur_sigma=(1.0, 2.0)
    )
    workers = replace(CONFIG, augment=strong)
    trainer = replace(CONFIG, augment=replace(strong, color_on="trainer"))
    lengths = [30, 5, 20]  # the second is padded
    paths = [make_video(tmp_path / f"{i}.mp4", length, 48, 32) for i, length in enumerate(lengths)]
    reports: list[StepReport] = []
    batches: list[Batch] = []
    for config in (workers, trainer):
        pairs = [make_crops(str(p), p.name, n, 1.0, 0, config) for p, n in zip(paths, lengths, strict=True)]
        batch = batch_of(pairs, range(len(paths)), [path.name for path in paths], config)
        batches.append(batch)
        reports.append(TrainingStep(config, CPU, NUM_STEPS).train(batch, 0))
    assert not torch.equal(batches[0].views[CROPS].pixels, batches[1].views[CROPS].pixels)
    assert reports[1].loss == pytest.approx(reports[0].loss, rel=1e-5)
    assert reports[1].gradient_norm == pytest.approx(reports[0].gradient_norm, rel=1e-4)
    plain = TrainingStep(workers, CPU, NUM_STEPS).train(batches[1], 0)
    assert plain.loss != pytest.approx(reports[0].loss, rel=1e-3)


def test_the_step_sees_what_the_workers_left_to_do(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    augment = AugmentConfig(image_size=SIZE, color_on="trainer", pixels="yuv420")
    left = replace(CONFIG, augment=augment)
    lengths = [30, 5]  # the second is padded
    paths = [make_video(tmp_path / f"{i}.mp4", length, 48, 32) for i, length in enumerate(lengths)]
    pairs = [make_crops(str(p), p.name, n, 1.0, 0, left) for p, n in zip(paths, lengths, strict=True)]
    batch = batch_of(pairs, range(len(paths)), [path.name for path in paths], left)
    done = batch_on_device(batch, left, CPU)
    assert done.views[CROPS].pixels.shape == (2, 2, CONFIG.model.num_frames, SIZE, SIZE, 3)
    found, expected = TrainingStep(left, CPU, NUM_STEPS), TrainingStep(CONFIG, CPU, NUM_STEPS)
    assert torch.equal(found.evaluate(batch)[0], expected.evaluate(done)[0])
    assert found.train(batch, 0) == expected.train(done, 0)


def test_evaluation_is_a_sum_over_videos_and_changes_nothing() -> None:
    step = TrainingStep(CONFIG, CPU, NUM_STEPS)
    step.train(worker_batch(0), 0)
    before = snapshot(step)
    whole = step.evaluate(worker_batch(1))
    parts = [step.evaluate(worker_batch(1, rank, 2)) for rank in range(2)]
    nothing = step.evaluate(batch_of([], [], [], CONFIG))
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
    assert torch.equal(parts[0][1] + parts[1][1], whole[1])
    assert int(whole[1].sum()) == int(worker_batch(1).views[CROPS].mask.sum())
    assert all(value.tolist() == [0.0, 0.0] for value in nothing)
    assert same_state(before, snapshot(step))
    # At test time nothing is dropped, whatever the seeds.
    other = step.evaluate(
        replace(worker_batch(1), seeds={CROPS: torch.zeros(NUM_VIDEOS, 2, dtype=torch.int64)})
    )
    assert torch.equal(other[0], whole[0])


def test_a_step_without_any_video_is_harmless() -> None:
    step = TrainingStep(CONFIG, CPU, NUM_STEPS)
    step.train(worker_batch(0), 0)
    report = step.train(batch_of([], [], [], CONFIG), 1)
    assert (report.loss, report.num_videos, report.num_frames) == (0.0, 0, 0)
    assert report.applied
    assert all(value.isfinite().all() for value in step.model.state_dict().values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_can_be_learnt(name: str) -> None:
    config = replace(OBJECTIVES[name], optimizer=OptimizerConfig(learning_rate=1e-3))
    step = TrainingStep(config, CPU, 1000)
    reports = [step.train(worker_batch(0, config=config), 1) for _ in range(10)]
    assert all(report.applied for report in reports)
    # Dropout is that of the batch's seeds: the same in every step.
    assert reports[-1].loss < reports[0].loss - 0.1 * abs(reports[0].loss)


def test_the_weight_of_pairs_grows_from_nothing() -> None:
    config = replace(
        OBJECTIVES["weak_scl"], objective=objective_options("weak_scl", weak_warmup=0.5, weak_weight=2)
    )
    step = TrainingStep(config, CPU, 100)
    assert [step.model.objective.weight(n / 100) for n in (0, 25, 50, 99)] == [0, 1, 2, 2]
    plain = TrainingStep(replace(config, objective=objective_options()), CPU, 100)
    batch = worker_batch(0)
    sums, counts = step._terms(batch, step.model, 0.0)
    expected, expected_counts = plain._terms(batch, plain.model, 0.0)
    assert torch.equal(sums[:2], expected) and torch.equal(counts[:2], expected_counts)
    assert (sums[2:] == 0).all() and (counts[2:] > 0).all()


def test_supervised_needs_its_classes_counted() -> None:
    with pytest.raises(ValueError, match="needs num_classes"):
        TrainingStep(replace(CONFIG, objective=objective_options("supervised")), CPU, 1)
