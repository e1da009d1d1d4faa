"""`carl_ray.training.worker`: what the loop checks and writes down, without Ray."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from carl_ray import storage
from carl_ray.config import (
    AugmentConfig,
    Config,
    DataConfig,
    OptimizerConfig,
    TrainingConfig,
    to_json,
)
from carl_ray.data.plan import Plan, training_plan, validation_plan
from carl_ray.errors import OutageError, RunError, UserError, warnings_to
from carl_ray.lease import LostError
from carl_ray.objectives.views import CROPS
from carl_ray.presets import preset
from carl_ray.training import process_group, trainer, worker
from carl_ray.training import reporter as reporting
from carl_ray.training import step as training_step
from carl_ray.training.checkpoint import Checkpoint, Progress
from carl_ray.training.monitor import RunMonitor, Status
from carl_ray.training.reader import Prefetch
from carl_ray.training.reporter import Reporter, UnsavedError, WorkerSettings
from carl_ray.training.run_checks import check_same_run, saved_config
from carl_ray.training.run_log import SKIPPED_STEPS, WARNINGS, RunLog, read_log
from carl_ray.training.step import StepReport, TrainingStep
from carl_ray.training.step_batches import AgreedError, StepBatch, check_rows, row_fingerprint
from carl_ray.training.worker import MAX_SKIPPED_IN_A_ROW
from tests.samples import batch_of, small_model

CPU = torch.device("cpu")
CONFIG = Config(
    preset="test",
    data=DataConfig(max_bad_fraction=1.0),
    augment=AugmentConfig(image_size=16),
    model=small_model(8, num_frames=4),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    training=TrainingConfig(seed=3, global_batch_size=3, precision="fp32", log_every_steps=1),
)  # fmt: skip
PAIRED = training_plan(0, 5, 4, 3, np.array([0, 0, 1, 1, 1]))


def test_row_numbers_alone_cannot_tell_rows_apart() -> None:
    first, second = (0, 4, 5), (1, 2, 6)
    assert sum(first) == sum(second) and sum(n * n for n in first) == sum(n * n for n in second)
    assert row_fingerprint((n, 0) for n in first) != row_fingerprint((n, 0) for n in second)


@pytest.mark.parametrize("plan", [training_plan(0, 5, 4, 3), validation_plan(0, 10, 4), PAIRED])
def test_the_plans_rows_pass_on_any_number_of_workers(plan: Plan) -> None:
    for step in range(plan.num_steps):
        first = step * plan.batch_size
        rows = [plan.at(row) for row in range(first, first + plan.rows_of_step(step))]
        for num_workers in (1, 2, 3):
            parts = [[(row.row, row.epoch) for row in rows[rank::num_workers]] for rank in range(num_workers)]
            check_rows(plan, step, len(rows), sum(map(row_fingerprint, parts)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(4, 0), (5, 1), (6, 1)], "step 1: expected 4 videos over all workers, got 3: the stream lost"),
        ([(4, 0), (5, 1), (6, 1), (7, 1), (7, 1)], "step 1: expected 4 videos .* got 5: .* doubled some"),
        ([(4, 0), (5, 1), (6, 1), (6, 1)], "step 1: expected rows 4 to 7 of the plan .* got 4 others"),
        ([(4, 0), (5, 1), (6, 1), (8, 1)], "step 1: expected rows 4 to 7"),
        ([(4, 0), (5, 0), (6, 1), (7, 1)], "step 1: expected rows 4 to 7"),  # views of another epoch
    ],
)
def test_rows_that_are_not_the_plans_end_the_run(rows: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(AgreedError, match=message):
        check_rows(training_plan(0, 5, 4, 3), 1, len(rows), row_fingerprint(rows))


class Updates:
    """Stands for the handle of the run's monitor."""

    def __init__(self) -> None:
        self.received: list[Status] = []
        self.warnings: list[str] = []
        self.update = SimpleNamespace(remote=self._update)
        self.warn = SimpleNamespace(remote=self.warnings.append)

    def _update(self, status: Status) -> tuple[bool, list[str]]:
        self.received.append(status)
        return False, []


class Held:
    """Stands for the run's lease."""

    lost = False

    def check(self) -> None:
        if self.lost:
            raise LostError("taken over by process 7")


@pytest.fixture
def reporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    context = SimpleNamespace(get_world_size=lambda: 1, get_world_rank=lambda: 0)
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(worker.ray, "get", lambda answer: answer)
    monkeypatch.setattr(worker.ray.train, "report", lambda metrics: None)
    monkeypatch.setattr(worker.ray, "wait", lambda refs, timeout: ([], refs))
    return Reporter(settings(tmp_path), RunLog(str(tmp_path), 0), None)


def settings(run_dir: Path) -> WorkerSettings:
    plan = training_plan(0, 6, 3, 10)
    failure_uri = str(run_dir / "ray" / "start-1" / "failure.json")
    return WorkerSettings(
        CONFIG, str(run_dir), "digest", plan, None, Updates(), None, plan.num_steps, Held(), failure_uri
    )


@pytest.mark.parametrize(
    ("asked", "native", "kept", "expected"),
    [
        ("auto", True, None, "bf16"),
        ("auto", False, None, "fp32"),
        ("auto", True, "fp32", "fp32"),
        ("auto", False, "bf16", "bf16"),
        ("bf16", False, None, "bf16"),
        ("fp32", True, None, "fp32"),
    ],
)
def test_the_precision_is_decided_once_and_written_down(
    *, asked: Any, native: bool, kept: Any, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for module in (worker, training_step):
        monkeypatch.setattr(module, "has_native_bf16", lambda device_type: native)
    config = replace(CONFIG, training=replace(CONFIG.training, precision=asked))
    (tmp_path / "config.json").write_text(to_json(config))
    checkpoint = None
    if kept is not None:
        begun = replace(CONFIG, training=replace(CONFIG.training, precision=kept))
        checkpoint = Checkpoint(str(tmp_path), progress(3), begun, {})
    decided = worker._decide_precision(
        replace(settings(tmp_path), config=config), checkpoint, CPU, is_first=True
    )
    assert decided.training.precision == expected
    assert saved_config(str(tmp_path)) == decided
    # What resumes it need not name it.
    again = replace(config, training=replace(config.training, precision="auto"))
    check_same_run(decided, again, str(tmp_path))
    assert ("times as slowly" in caplog.text) == (expected == "bf16" and not native)


@pytest.mark.parametrize(("asked", "expected"), [("auto", "fp32"), ("bf16", "bf16")])
def test_encoders_of_clips_have_full_precision_on_cpus(
    asked: Any,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for module in (worker, training_step):
        monkeypatch.setattr(module, "has_native_bf16", lambda device_type: True)
    clips = preset("clips_demo")
    config = replace(clips, training=replace(clips.training, precision=asked))
    decided = worker._decide_precision(replace(settings(tmp_path), config=config), None, CPU, is_first=True)
    assert decided.training.precision == expected
    assert ("wrong in bf16" in caplog.text) == (asked == "bf16")
    assert training_step.computes_bf16(CONFIG, "cpu") and training_step.computes_bf16(clips, "cuda")


def report() -> StepReport:
    return SimpleNamespace(
        loss=1.0,
        learning_rate=1e-4,
        gradient_norm=1.0,
        num_videos=3,
        num_frames=24,
        applied=True,
        figures={},
        warnings=(),
    )  # type: ignore[return-value]


def progress(step: int) -> Progress:
    return Progress(
        step=step, row=3 * step, num_bad_rows=0, num_skipped_steps=0, seconds=0.0, videos="digest"
    )


def step_batch(step: int, broken: str | None) -> StepBatch:
    rows = range(3 * step, 3 * step + 3)
    batch = batch_of([], [], [], CONFIG)
    videos = {row: f"walk/{row}\x1b[2J.mp4" for row in rows}
    times = torch.arange(4.0, dtype=torch.float64).expand(3, 2, 4).clone()
    if broken == "one":
        times[1, 0, 2] = torch.nan
    batch = replace(
        batch.map(lambda part: part.repeat(3, *[1] * (part.ndim - 1))), rows=torch.tensor(list(rows))
    )
    view = batch.views[CROPS]
    view = replace(
        view,
        pixels=torch.randint(0, 255, view.pixels.shape, dtype=torch.uint8),
        timestamps=times,
        mask=torch.ones(3, 2, 4, dtype=torch.bool),
    )
    batch = replace(batch, views={CROPS: view})
    return StepBatch(step, batch, videos, 3, row_fingerprint((row, row // 6) for row in rows), [])


def test_a_skipped_step_is_written_down_with_its_videos(reporter: Any, tmp_path: Path) -> None:
    step = TrainingStep(CONFIG, CPU, 20)
    data = step_batch(2, "one")
    report = step.train(data.batch, 2)
    assert not report.applied
    suspects = reporter.skipped_step(step, progress(3), report, data)
    assert suspects == ["walk/7\x1b[2J.mp4"]
    # A gradient alone: no video's own loss says anything, so all are named.
    data = step_batch(3, None)
    report = step.train(data.batch, 3)
    assert reporter.skipped_step(step, progress(4), report, data) == list(data.videos.values())
    reporter.close()
    first, second = read_log(str(tmp_path), SKIPPED_STEPS)
    assert first.keys() == {"step", "epoch", "loss", "gradient_norm", "video_ids", "not_finite"}
    assert (first["step"], first["epoch"], first["loss"], first["gradient_norm"]) == (3, 1, None, None)
    assert first["video_ids"] == [f"walk/{row}\x1b[2J.mp4" for row in (6, 7, 8)]
    assert (first["not_finite"], second["not_finite"]) == (suspects, [])
    assert second["loss"] == pytest.approx(report.loss)
    text = (tmp_path / SKIPPED_STEPS).read_text()
    assert "NaN" not in text and all(json.loads(line) for line in text.splitlines())


def test_workers_that_begin_at_the_end_do_no_step(reporter: Any, tmp_path: Path) -> None:
    step = TrainingStep(CONFIG, CPU, 20)
    given = replace(settings(tmp_path), last_step=4)
    assert given.training_plan.num_steps > 4
    reporter._settings = given
    worker._train(given, step, reporter, progress(4), [])
    (last,) = given.monitor.received
    assert (last.step, last.ended, last.finished) == (4, True, False)


def test_an_agreed_failure_is_told_twice_and_costs_no_lines(
    reporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    reporter._step, reporter._saved_step = 4, 3
    monkeypatch.setattr(reporter, "close", lambda: closed.append(True))

    def fail(*arguments: Any) -> None:
        raise error

    error = AgreedError("no use")
    batches = Prefetch(iter([]), 1)
    monkeypatch.setattr(worker, "_training_batches", lambda settings, first_step: batches)
    monkeypatch.setattr(
        worker, "_begin", lambda settings, checkpoint, is_first: (None, reporter, progress(4))
    )
    monkeypatch.setattr(worker, "_train", fail)
    given = settings(tmp_path)
    assert trainer._written_failure(given.failure_uri) is None
    worker.train_worker(given)
    assert closed == [True]
    assert [(told.failure, told.step, told.saved_step) for told in given.monitor.received] == [
        ("no use", 4, 3)
    ]
    assert trainer._written_failure(given.failure_uri) == "no use"
    assert not process_group.is_training()
    assert batches._stopped.is_set()
    # A store that has just refused a checkpoint for long is asked for nothing more.
    error = UnsavedError("no room")
    given = settings(tmp_path / "other")
    worker.train_worker(given)
    assert closed == [True]
    assert [status.failure for status in given.monitor.received] == ["no room"]
    assert trainer._written_failure(given.failure_uri) is None


def test_a_step_is_saved_once(reporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(
        reporting, "save_checkpoint", lambda run_dir, step, progress, keep: saved.append(progress.step)
    )
    step = TrainingStep(CONFIG, CPU, 20)
    for number in (0, 0, 3, 3, 4):
        reporter.checkpoint(step, progress(number))
    assert saved == [0, 3, 4]
    resumed = Reporter(settings(tmp_path), RunLog(str(tmp_path), 4), 4)
    resumed.checkpoint(step, progress(4))
    assert saved == [0, 3, 4]


def test_a_checkpoint_that_cannot_be_written(
    reporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure: RunError = OutageError("s3://bucket/run: could not write it")

    def save(*arguments: Any) -> None:
        raise failure

    monkeypatch.setattr(reporting, "save_checkpoint", save)
    step = TrainingStep(CONFIG, CPU, 20)
    # The store may come back: any worker's error but an agreed one has Ray Train start the workers anew.
    with pytest.raises(OutageError, match="could not write it"):
        reporter.checkpoint(step, progress(3))
    failure = RunError("no room")
    with pytest.raises(
        UnsavedError, match=rf"^no room; there is no checkpoint yet: .*--run-dir {tmp_path} --resume$"
    ):
        reporter.checkpoint(step, progress(3))


def test_a_run_whose_folder_was_taken_over_writes_nothing(reporter: Any, tmp_path: Path) -> None:
    reporter.step(progress(1), report(), waited=0, computed=0, cpu=0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    reporter._settings.lease.lost = True
    with pytest.raises(UnsavedError, match=r"^taken over by process 7$"):
        reporter.checkpoint(TrainingStep(CONFIG, CPU, 20), progress(1))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_starved_trainer_says_so_once(
    reporter: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reporter.step(progress(1), report(), waited=9, computed=2, cpu=1.9)
    assert not caplog.messages
    monkeypatch.setattr(reporting.os, "getpriority", lambda which, who: 15)
    for number in (2, 3):
        reporter.step(progress(number), report(), waited=0, computed=20, cpu=2)
    (warning,) = caplog.messages
    assert "took 20.0 s, but had 2.0 s of CPU" in warning
    assert "niceness is 15" in warning and "RAY_worker_niceness=0" in warning


def test_warnings_of_a_worker_reach_driver_and_log(
    reporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the actor does it.
    monitor = RunMonitor.__ray_metadata__.modified_class()
    monitor.warn("worker 1: s3://bucket: could not write it; trying again in 1.0 s")
    assert monitor.latest()[:2] == (
        None,
        ["worker 1: s3://bucket: could not write it; trying again in 1.0 s"],
    )
    monkeypatch.setattr(reporter._settings.monitor, "update", SimpleNamespace(remote=monitor.update))
    monkeypatch.setattr(worker.ray, "wait", lambda refs, timeout: (refs, []))
    for number in (1, 2, 3):
        reporter.step(progress(number), report(), waited=0, computed=0, cpu=0)
    reporter.close()
    (line,) = read_log(str(tmp_path), WARNINGS)
    assert line["warning"].startswith("worker 1: ") and line["step"] == 2
    # It stays, whatever steps are done again.
    RunLog(str(tmp_path), 0).close()
    assert read_log(str(tmp_path), WARNINGS) == [line]
    said: list[str] = []
    with warnings_to(said.append):
        storage._LOGGER.warning("%s; trying again", "down")
    storage._LOGGER.warning("not sent")
    assert said == ["down; trying again"]


def test_a_log_of_skipped_steps_is_cut_where_a_run_goes_on(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path), 0)
    for step in (2, 5):
        log.write_skipped_step(step, {"loss": math.inf})
    log.close()
    RunLog(str(tmp_path), 4).close()
    assert read_log(str(tmp_path), SKIPPED_STEPS) == [{"step": 2, "loss": None}]


def test_skipping_ends_with_the_videos_and_the_file(tmp_path: Path) -> None:
    suspects = [f"walk/{n}\x1b[2J\n.mp4" for n in range(8)]
    worker._check_health(settings(tmp_path), progress(12), MAX_SKIPPED_IN_A_ROW - 1, suspects)
    with pytest.raises(AgreedError) as failure:
        worker._check_health(settings(tmp_path), progress(12), MAX_SKIPPED_IN_A_ROW, suspects)
    message = str(failure.value)
    assert "not finite in the last 10 steps (step 12), at last with 'walk/0\\x1b[2J\\n.mp4', " in message
    assert "walk/4" in message and "walk/5" not in message and "and 3 more" in message
    assert f"{tmp_path}/{SKIPPED_STEPS}" in message
    assert "\x1b" not in message and "\n" not in message


def test_a_validation_loss_that_is_not_finite_ends_nothing(reporter: Any, tmp_path: Path) -> None:
    reporter.validation(20, math.nan)
    reporter.validation(40, 1.5)
    reporter.close()
    assert [line["validation_loss"] for line in read_log(str(tmp_path))] == [None, 1.5]


def test_validation_misses_no_video(tmp_path: Path, reporter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = validation_plan(0, 5, 3)
    given = replace(settings(tmp_path), validation_plan=plan)
    batches = []
    for number in range(plan.num_steps):
        planned = plan.rows(3 * number, min(3 * number + 3, plan.num_rows))
        data = step_batch(number, None)
        batches.append(replace(data, fingerprint=row_fingerprint((row.row, row.epoch) for row in planned)))
    monkeypatch.setattr(worker.ray.train, "get_dataset_shard", lambda name: None)
    step = TrainingStep(CONFIG, CPU, 20)
    monkeypatch.setattr(worker, "step_batches", lambda *arguments: iter(batches))
    loss = worker._validate(given, step, reporter, 7)
    assert loss is not None and math.isfinite(loss)
    monkeypatch.setattr(worker, "step_batches", lambda *arguments: iter(batches[1:]))
    with pytest.raises(AgreedError, match=r"validation after step 7: the stream lost, .* of the 5 videos"):
        worker._validate(given, step, reporter, 7)


def test_weights_that_are_not_finite_are_seen_at_the_start() -> None:
    step = TrainingStep(CONFIG, CPU, 20)
    assert worker._is_finite(step)
    step.model.encoder.hidden[0][1].running_var[3] = torch.inf
    assert not worker._is_finite(step)


def test_a_run_of_colours_that_are_gone_does_not_go_on(tmp_path: Path) -> None:
    document = json.loads(to_json(CONFIG))
    document["augment"]["color"] = "exact"
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert saved_config(str(tmp_path)) == CONFIG
    document["augment"]["color"] = "matrix"
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"begun with augment.color = 'matrix', which is gone"):
        saved_config(str(tmp_path))
