"""`carl_ray.training.checkpoint`: all state survives; what does not survive whole is not used."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from carl_ray import storage
from carl_ray.config import AugmentConfig, Config, OptimizerConfig, TrainingConfig
from carl_ray.errors import RunError, UserError
from carl_ray.objectives.base import Batch
from carl_ray.training import run_checks
from carl_ray.training.checkpoint import (
    InitialWeights,
    Progress,
    latest_checkpoint,
    load_model,
    open_checkpoint,
    restore,
    save_checkpoint,
)
from carl_ray.training.learner import initial_learner
from carl_ray.training.run_checks import CheckedRun, refresh_checkpoint
from carl_ray.training.run_videos import Videos
from carl_ray.training.step import StepReport, TrainingStep
from tests.samples import batch_of, crops, small_model

CPU = torch.device("cpu")
CONFIG = Config(
    preset="test",
    augment=AugmentConfig(image_size=16, crop_area=(0.5, 1.0)),
    model=small_model(),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    training=TrainingConfig(precision="fp32"),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def new_step(config: Config = CONFIG) -> TrainingStep:
    return TrainingStep(config, CPU, 10)


def batch(number: int) -> Batch:
    rng = np.random.default_rng(number)
    pairs = [
        crops(
            rng.integers(0, 256, (2, 6, 16, 16, 3)).astype(np.uint8),
            np.sort(rng.choice(20, (2, 6)), axis=1).astype(np.float64),
            np.ones((2, 6), dtype=bool),
        )
        for _ in range(2)
    ]
    return batch_of(pairs, [0, 1], "ab", CONFIG, epoch=number)


def progress(step: int) -> Progress:
    return Progress(
        step=step, row=2 * step, num_bad_rows=1, num_skipped_steps=0, seconds=0.25, videos="digest"
    )


def train(step: TrainingStep, start: int, stop: int) -> list[StepReport]:
    return [step.train(batch(number), number) for number in range(start, stop)]


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    """A run with checkpoints of steps 1, 2 and 3."""
    step = new_step()
    for number in range(3):
        train(step, number, number + 1)
        save_checkpoint(str(tmp_path), step, progress(number + 1), keep=5)
    return str(tmp_path)


def file_of(run_dir: str, step: int, name: str) -> Path:
    return Path(run_dir) / "checkpoints" / f"step-{step:08d}" / name


def test_a_checkpoint_written_after_the_check_of_a_run_is_read(
    run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_checks, "check_same_videos", lambda *_: None)
    monkeypatch.chdir(run_dir)
    before = latest_checkpoint(".")
    run = CheckedRun(CONFIG, run_dir, True, CONFIG, before, cast(Videos, object()), None)
    refresh_checkpoint(run)
    assert run.checkpoint is before
    save_checkpoint(run_dir, new_step(), progress(4), keep=5)
    refresh_checkpoint(run)
    assert run.checkpoint is not None and run.checkpoint.progress.step == 4
    run.checkpoint, run.weights = None, InitialWeights({}, "")
    refresh_checkpoint(run)
    assert (run.checkpoint.progress.step, run.weights) == (4, None)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def latest_step(run_dir: str) -> int | None:
    found = latest_checkpoint(run_dir)
    return None if found is None else found.progress.step


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole = new_step()
    expected = train(whole, 0, 10)

    first = new_step()
    reports = train(first, 0, 5)
    torch.manual_seed(123)
    uri = save_checkpoint(str(tmp_path), first, progress(5), keep=1)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    second = new_step()
    found = latest_checkpoint(str(tmp_path))
    assert found is not None
    assert found == open_checkpoint(uri)
    assert (found.progress, found.config) == (progress(5), CONFIG)
    restore(found, second)
    assert torch.equal(torch.rand(3), drawn)
    reports += train(second, 5, 10)

    assert reports == expected
    assert len({report.loss for report in reports}) == 10
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    for before, after in zip(
        whole.phases[0].optimizer.state_dict()["state"].values(),
        second.phases[0].optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_there_may_be_none(tmp_path: Path) -> None:
    assert latest_checkpoint(str(tmp_path / "elsewhere")) is None


@pytest.mark.parametrize("name", ["state.json", "model.pt", "optimizer.pt"])
def test_a_torn_checkpoint_gives_way_to_the_one_before(
    run_dir: str, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    file_of(run_dir, 3, name).unlink()
    with caplog.at_level(logging.WARNING):
        assert latest_step(run_dir) == 2
    assert "passing over the checkpoint" in caplog.text
    assert "step-00000003" in caplog.text


@pytest.mark.parametrize("name", ["model.pt", "optimizer.pt"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    run_dir: str, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    damaged = latest_checkpoint(run_dir)
    assert damaged is not None
    flip_a_byte(file_of(run_dir, 3, name))
    with caplog.at_level(logging.WARNING):
        assert latest_step(run_dir) == 2
    assert f"{name}: damaged: its SHA-256" in caplog.text
    with pytest.raises(RunError, match="damaged"):
        restore(damaged, new_step())
    for step in (1, 2):
        flip_a_byte(file_of(run_dir, step, name))
    assert latest_step(run_dir) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"progress": {"step": 3}, "config": {}, "hashes": {}}', "\x00\xff"]
)
def test_a_state_that_is_none(run_dir: str, text: str) -> None:
    path = file_of(run_dir, 3, "state.json")
    path.write_text(text, encoding="latin-1")
    assert latest_step(run_dir) == 2
    with pytest.raises(UserError, match=r"state\.json: not the state of a checkpoint"):
        open_checkpoint(str(path.parent))


def test_a_store_that_fails_is_no_reason_to_go_back(run_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = storage.read_bytes

    def refuse(uri: str) -> bytes:
        if uri.endswith("step-00000003/model.pt"):
            raise RunError("the store is away")
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", refuse)
    with pytest.raises(RunError, match="the store is away"):
        latest_checkpoint(run_dir)


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_older_checkpoints_are_deleted(run_dir: str, keep: int, kept: list[int]) -> None:
    save_checkpoint(run_dir, new_step(), progress(4), keep=keep)
    names = storage.list_folder(storage.join(run_dir, "checkpoints"))
    assert names == [f"step-{step:08d}" for step in kept]
    assert latest_step(run_dir) == 4


def test_a_torn_checkpoint_does_not_count_among_those_kept(run_dir: str) -> None:
    file_of(run_dir, 3, "state.json").unlink()
    save_checkpoint(run_dir, new_step(), progress(4), keep=2)
    names = storage.list_folder(storage.join(run_dir, "checkpoints"))
    assert names == ["step-00000002", "step-00000004"]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """A limit on the size of files, in bytes: the kernel writes up to it and then fails, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_in_the_middle(run_dir: str, caplog: pytest.LogCaptureFixture) -> None:
    step = new_step()
    train(step, 0, 1)
    sizes = [file_of(run_dir, 3, name).stat().st_size for name in ("model.pt", "optimizer.pt")]
    assert sizes[0] < sizes[1]
    # Before anything, within the first file, within the second.
    for room in (0, sizes[0] // 2, (sizes[0] + sizes[1]) // 2):
        with (
            room_for(room),
            pytest.raises(RunError, match=r"\.pt: could not write it \(.*File too large") as caught,
        ):
            save_checkpoint(run_dir, step, progress(4), keep=1)
        assert "\n" not in str(caught.value)
        assert [path.name for path in sorted((Path(run_dir) / "checkpoints").iterdir())] == [
            f"step-{number:08d}" for number in (1, 2, 3)
        ]
        assert not [path for path in Path(run_dir).rglob("*") if path.name.startswith(".")]
        assert latest_step(run_dir) == 3
    assert "passing over" not in caplog.text
    save_checkpoint(run_dir, step, progress(4), keep=1)
    assert latest_step(run_dir) == 4


def test_a_full_disk_does_not_cost_the_checkpoint_of_the_same_step(run_dir: str) -> None:
    # As at SIGTERM, right after one that was due.
    with room_for(1000), pytest.raises(RunError, match="could not write it"):
        save_checkpoint(run_dir, new_step(), progress(3), keep=5)
    assert latest_step(run_dir) == 3


def test_old_checkpoints_that_cannot_be_deleted_stay(
    run_dir: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(uri: str) -> None:
        raise RunError("no permission")

    monkeypatch.setattr(storage, "delete", refuse)
    with caplog.at_level(logging.WARNING):
        save_checkpoint(run_dir, new_step(), progress(4), keep=1)
    assert "step-00000004 is written, but older ones are left: no permission" in caplog.text
    assert latest_step(run_dir) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"embedding_width": 4},
            r"does not fit the model: \d+ tensors differ, first encoder\.to_embedding\.bias: "
            r"expected shape \(4,\), got \(8,\)",
        ),
        ({"num_layers": 2}, r"first encoder\.transformer\.\S+: expected shape \(.*\), got none"),
        ({"num_layers": 0}, r"first encoder\.transformer\.\S+: expected shape none, got \("),
    ],
)
def test_a_model_that_does_not_fit(run_dir: str, values: dict[str, Any], message: str) -> None:
    found = latest_checkpoint(run_dir)
    assert found is not None
    other = replace(CONFIG, model=replace(CONFIG.model, **values))
    model = initial_learner(other)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_model(found, model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_optimiser_that_does_not_fit(run_dir: str) -> None:
    found = latest_checkpoint(run_dir)
    assert found is not None
    other = replace(CONFIG, model=replace(CONFIG.model, learnable="none"))
    with pytest.raises(UserError, match=r"its optimiser trains other tensors .*--model\.learnable"):
        restore(found, new_step(other))


def put(run_dir: str, content: bytes) -> None:
    """Replaces model.pt of step 3, with the hash that belongs to it."""
    file_of(run_dir, 3, "model.pt").write_bytes(content)
    path = file_of(run_dir, 3, "state.json")
    state = json.loads(path.read_text())
    state["hashes"]["model.pt"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(state))


@pytest.mark.parametrize("kind", ["nothing", "noise", "text", "list"])
def test_a_file_that_torch_did_not_write(run_dir: str, kind: str) -> None:
    listed = io.BytesIO()
    torch.save([torch.zeros(1)], listed)
    put(
        run_dir, {"nothing": b"", "noise": bytes(range(256)), "text": b"abc", "list": listed.getvalue()}[kind]
    )
    found = latest_checkpoint(run_dir)
    assert found is not None
    with pytest.raises(RunError, match=r"model\.pt: expected tensors alone") as caught:
        load_model(found, initial_learner(CONFIG))
    assert "\n" not in str(caught.value)
