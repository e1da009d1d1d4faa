"""Fine-tuning: what a run takes of another run's checkpoint, and that it really begins with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from carl_ray import train
from carl_ray.config import Config, ModelConfig, objective_options
from carl_ray.data.manifest import SCHEMA, write_table
from carl_ray.data.scan import index_folder
from carl_ray.errors import RunError, UserError
from carl_ray.fitting import fit
from carl_ray.options import overridden
from carl_ray.presets import preset
from carl_ray.training import checkpoint as checkpoints
from carl_ray.training.checkpoint import (
    Progress,
    checkpoint_at,
    initial_weights,
    load_encoder,
    save_checkpoint,
)
from carl_ray.training.learner import initial_learner
from carl_ray.training.run_checks import check_run, starting_weights
from carl_ray.training.run_log import read_log
from carl_ray.training.run_videos import read_videos, record_videos
from carl_ray.training.step import TrainingStep
from tests.evaluation.test_extraction import row
from tests.samples import batch_of, crops

CPU = torch.device("cpu")


@pytest.fixture
def pretrained(tiny_run: Path) -> Config:
    """The config of `tiny_run`, whose weights are no longer those that it began with."""
    return checkpoint_at(str(tiny_run)).config


def with_model(config: Config, **changes: object) -> Config:
    return replace(config, model=ModelConfig(**{**vars(config.model), **changes}))


def other_seed(config: Config) -> Config:
    return replace(config, training=replace(config.training, seed=99))


def test_another_t_and_schedule(tiny_run: Path, pretrained: Config) -> None:
    config = with_model(other_seed(pretrained), num_frames=9, dropout=0.3, learnable="block5")
    found = initial_weights(config, str(tiny_run))
    assert set(found.tensors) == set(initial_learner(config).state_dict())
    encoder = load_encoder(checkpoint_at(str(tiny_run))).state_dict()
    assert encoder
    for name, value in encoder.items():
        assert torch.equal(found.tensors[f"encoder.{name}"], value)
    head = len(found.tensors) - len(encoder)
    assert (
        f"step-00000003 (step 3, T = 6): {len(encoder)} tensors of the encoder, {head} of the {head}"
        in found.report
    )
    assert "the optimiser begins anew" in found.report
    one = initial_weights(config, f"{tiny_run}/checkpoints/step-00000003")
    assert one.report == found.report


def test_another_head(tiny_run: Path, pretrained: Config) -> None:
    config = replace(pretrained, objective=objective_options("supervised", num_classes=5))
    found = initial_weights(config, str(tiny_run))
    assert all(name.startswith("encoder.") for name in found.tensors)
    assert "0 of the 2 of the head" in found.report
    # Nor is half a head taken: 5 classes are not 7.
    step = TrainingStep(config, CPU, 3)
    run = tiny_run.parent / "supervised"
    save_checkpoint(str(run), step, Progress(3, 12, 0, 0, 1.0, "0"), 1)
    more = replace(config, objective=objective_options("supervised", num_classes=7))
    assert "0 of the 2 of the head" in initial_weights(more, str(run)).report
    assert "2 of the 2 of the head" in initial_weights(config, str(run)).report


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"width": 32}, "tensors differ, first encoder."),
        ({"num_layers": 2}, "got none"),
        ({"embedding_width": 4}, "encoder.to_embedding"),
    ],
)
def test_an_encoder_of_other_shapes_is_refused(
    tiny_run: Path, pretrained: Config, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(UserError, match=r"model\.init_from: .*its encoder is another: \d+ tensors") as raised:
        initial_weights(with_model(pretrained, **changes), str(tiny_run))
    assert expected in str(raised.value)
    assert "use the --model options that it was trained with" in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "resnet18"),
        ("temporal_encoder", "c3d"),
        ("num_heads", 1),
        ("pooling", "average"),
        ("positions", "none"),
    ],
)
def test_an_encoder_that_computes_otherwise_is_refused(
    tiny_run: Path, pretrained: Config, field: str, value: object
) -> None:
    with pytest.raises(
        UserError, match=rf"model\.init_from: .* model\.{field} is .* here '?{value}"
    ) as raised:
        initial_weights(with_model(pretrained, **{field: value}), str(tiny_run))
    assert "use the --model options that it was trained with" in str(raised.value)


def test_what_is_no_checkpoint(tmp_path: Path, tiny_run: Path, pretrained: Config) -> None:
    with pytest.raises(UserError, match="expected a run folder with a checkpoint"):
        initial_weights(pretrained, str(tmp_path))
    torn = tmp_path / "torn"
    torn.mkdir()
    for name in ("state.json", "optimizer.pt"):
        (torn / name).write_bytes((tiny_run / "checkpoints" / "step-00000003" / name).read_bytes())
    (torn / "model.pt").write_bytes(b"x")
    with pytest.raises(RunError, match=r"model\.pt: damaged"):
        initial_weights(pretrained, str(torn))


def test_the_first_step_sees_them(tiny_run: Path, pretrained: Config) -> None:
    rng = np.random.default_rng(0)
    pair = crops(
        rng.integers(0, 256, (2, 6, 16, 16, 3)).astype(np.uint8),
        np.sort(rng.choice(20, (2, 6)), axis=1).astype(np.float64),
        np.ones((2, 6), dtype=bool),
    )
    batch = batch_of([pair], [0], ["a"], pretrained)

    def first_loss(config: Config, *, begin: bool) -> float:
        step = TrainingStep(config, CPU, 3)
        if begin:
            step.model.load_state_dict(initial_weights(config, str(tiny_run)).tensors, strict=False)
        return step.train(batch, 0).loss

    assert first_loss(pretrained, begin=True) == first_loss(other_seed(pretrained), begin=True)
    assert first_loss(pretrained, begin=False) != first_loss(pretrained, begin=True)


def test_test_videos_of_the_pretraining_are_warned_of(
    tiny_run: Path,
    pretrained: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def manifest(name: str, splits: list[str | None]) -> str:
        rows = [row(tmp_path / f"{n}.mp4", f"v{n}", 24, split=split) for n, split in enumerate(splits)]
        write_table(pa.Table.from_pylist(rows, schema=SCHEMA), str(tmp_path / name))
        return str(tmp_path / name)

    opened: list[str] = []
    latest = checkpoints.latest_checkpoint
    monkeypatch.setattr(checkpoints, "latest_checkpoint", lambda uri: opened.append(uri) or latest(uri))

    def checked(splits: list[str | None]) -> str:
        opened.clear()
        data = replace(pretrained.data, manifest=manifest("m.parquet", splits))
        config = with_model(replace(pretrained, data=data), init_from=str(run))
        check_run(config, str(tmp_path / "new"))
        assert opened == [str(run)], "read and hashed once"
        return capsys.readouterr().err

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    assert "flatters" not in checked(["train", "test", "test"])  # Nothing is known of its videos.
    data = replace(pretrained.data, manifest=manifest("before.parquet", [None, "train", "test", "test"]))
    record_videos(read_videos(replace(pretrained, data=data))[1], str(run))
    assert "trained on 1 of the 3 videos that this one does not train on" in checked(
        ["train", "test", "test", "validation"]
    )
    assert "flatters" not in checked(["train", None, "test", "test"])


@pytest.mark.slow
@pytest.mark.usefixtures("local_training")
def test_a_run_begins_with_them(
    tiny_run: Path, tmp_path: Path, make_video: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """At a learning rate of nothing, a whole run leaves the encoder that it began with."""
    for number in range(2):
        make_video(tmp_path / "videos" / f"{number}.mp4", 12)
    manifest = str(tmp_path / "manifest.parquet")
    index_folder(str(tmp_path / "videos"), manifest)
    run = str(tmp_path / "run")
    model = vars(checkpoint_at(str(tiny_run)).config.model) | {"num_frames": 8, "init_from": str(tiny_run)}
    arguments = [
        *("penn_action", "--data.manifest", manifest, "--run-dir", run, "--training.epochs", "1"),
        *("--training.global_batch_size", "2", "--training.precision", "fp32", "--training.seed", "7"),
        *("--augment.image_size", "16", "--data.short_side", "20", "--optimizer.learning_rate", "1e-30"),
        *("--model.batch_norm", "frozen", "--training.log_every_steps", "1"),
    ]
    for name, value in model.items():
        if name != "batch_norm":
            arguments += [f"--model.{name}", str(value)]
    train.main(arguments)
    printed = capsys.readouterr().out
    assert f"begins with {tiny_run}/checkpoints/step-00000003 (step 3, T = 6)" in printed
    checkpoint = checkpoint_at(run)
    assert checkpoint.config.model.num_frames == 8
    before = load_encoder(checkpoint_at(str(tiny_run))).state_dict()
    after = load_encoder(checkpoint).state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert [line["step"] for line in read_log(run) if "loss" in line] == [1]
    # In Python; nothing is left to do.
    assert fit(checkpoint.config, run, resume=True) == run


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model.num_frames": "9"}, "small3d makes 64 x 5 x 4 x 4 of 18 frames; expected maps"),
        (
            {"model.num_frames": "4", "augment.image_size": "8"},
            "region contrast needs a backbone with a feature map; got 1 x 1 x 1 from 4 x 8 x 8",
        ),
        ({"augment.image_size": "36"}, "whose side the 5 x 5 cells of a map divide, got 36 pixels"),
        ({"model.backbone": "timm:test_vit"}, "expected maps"),
    ],
)
def test_clips_that_do_not_fit_are_found_before_the_run(given: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        starting_weights(overridden(preset("clips_demo"), given))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert starting_weights(preset("clips_demo")) is None


def test_a_crop_of_the_whole_clip_is_a_part_of_the_frame() -> None:
    with pytest.raises(UserError, match=r"objective: whole_crop_area must be .*got \(0.6, 2\)"):
        overridden(preset("clips_demo"), {"objective.whole_crop_area": "[0.6, 2.0]"})
