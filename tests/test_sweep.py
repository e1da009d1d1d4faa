"""The command `python tuning/sweep.py`: mistakes, failing trials, and a sweep that is killed and called again."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carl_ray import config as configuration
from carl_ray import train
from carl_ray.config import AugmentConfig, ClusterConfig, Config, DataConfig, TrainingConfig
from carl_ray.data.manifest import write_table
from carl_ray.data.scan import index_folder
from carl_ray.datasets.embedded import embedded_manifest
from carl_ray.errors import UserError, one_line_errors
from carl_ray.lease import hold
from carl_ray.presets import preset
from carl_ray.sweeps.definition import define_sweep
from carl_ray.sweeps.results import sweep_document
from carl_ray.sweeps.runner import default_num_trials, trial_config
from carl_ray.sweeps.space import SPACES, Choices, Space
from carl_ray.sweeps.trials import begin_trial, run_dir
from carl_ray.sweeps.tune_driver import chosen_points, run_trials
from carl_ray.training.run_log import read_log
from carl_ray.training.trainer import train as train_run
from tests.samples import failure, small_model

SWEEP = Path(__file__).parents[1] / "tuning" / "sweep.py"
EPOCHS, STEPS_OF_EPOCH = 10, 4


@pytest.fixture(scope="module")
def manifest(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]
) -> str:
    """Eight training and two validation videos, whose second half is another phase."""
    folder = tmp_path_factory.mktemp("swept")
    for number in range(10):
        split = "train" if number < 8 else "validation"
        make_video(folder / "videos" / split / f"{number}.mp4", 20 + number, 32, 24)
    uri = str(folder / "manifest.parquet")
    videos, _ = index_folder(str(folder / "videos"), uri)
    labels = [[2 * frame // count for frame in range(count)] for count in videos["num_frames"].to_pylist()]
    place = videos.schema.get_field_index("frame_labels")
    write_table(
        videos.set_column(place, videos.schema.field(place), pa.array(labels, pa.list_(pa.int32()))), uri
    )
    return uri


def tiny(manifest: str) -> Config:
    return Config(
        preset="demo",
        data=DataConfig(manifest=manifest, short_side=16),
        augment=AugmentConfig(image_size=16, blur_probability=0.0),
        model=small_model(8),
        training=TrainingConfig(
            epochs=EPOCHS,
            global_batch_size=2,
            log_every_steps=1,
            checkpoint_every_steps=STEPS_OF_EPOCH,
            precision="fp32",
        ),
        cluster=ClusterConfig(max_decode_tasks=1, max_failures=1),
    )


def options_of(config: Config) -> list[str]:
    """The command line that makes a config from the demo's."""
    before, after = (configuration.to_document(c) for c in (configuration_of_demo(), config))
    return [
        part
        for section, values in after.items()
        if isinstance(values, dict)
        for name, value in values.items()
        if before[section][name] != value
        for part in (f"--{section}.{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def configuration_of_demo() -> Config:
    from carl_ray.presets import demo

    return demo()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["loss", "--search", "best"], "argument --search: invalid choice: 'best'"),
        (
            ["loss", "--run-dir", "s3://USER:PASSWORD@bucket/a"],
            "--run-dir: expected a URI without credentials",
        ),
        (
            ["loss", "--config", "s3://USER:PASSWORD@bucket/config.json"],
            "--config: s3://bucket/config.json: expected a URI without credentials",
        ),
        (
            ["loss", "--model.init_from", "s3://USER:PASSWORD@bucket/a"],
            "model.init_from: expected a URI without credentials",
        ),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path))
    status, line = failure(capsys, command().main, *arguments)
    assert status == 2 and expected in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_sweep_goes_on(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    words = ["loss", "--num-trials", "1", "--rungs", "1", "--run-dir", str(folder)]
    words += options_of(tiny(manifest))
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path))
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen([sys.executable, str(SWEEP), *words], stdout=log, stderr=log)
        try:
            # The trial has something to go on from.
            wait_until(
                lambda: list(folder.glob("trials/*/seed-0/checkpoints/*/state.json")),
                first,
                tmp_path / "first.log",
            )
        finally:
            first.send_signal(signal.SIGKILL)
            first.wait()
    (run,) = folder.glob("trials/*/seed-0")
    assert not list(folder.glob("trials/*/outcome.json"))
    # The killed call's newest checkpoint, and then what it had written down: its worker may outlive it for a moment.
    last_step = int(max((run / "checkpoints").glob("*/state.json")).parts[-2][5:])
    log_before = {line["step"]: line["loss"] for line in read_log(str(run)) if "loss" in line}
    command().main(words)
    assert "1 of 1 trials ended" in capsys.readouterr().out
    log_after = {line["step"]: line["loss"] for line in read_log(str(run)) if "loss" in line}
    # Every step is there, those of before as they were; a step that is done again is no other, but a new line.
    assert list(log_after) == list(range(1, EPOCHS * STEPS_OF_EPOCH + 1))
    kept = range(1, last_step + 1)
    assert [log_after[step] for step in kept] == [log_before[step] for step in kept]
    # TensorBoard's files say from which step on each start of the workers went.
    starts = sorted(int(path.suffix.removeprefix(".from-")) for path in (run / "events").glob("*.from-*"))
    assert starts[0] == 0 and starts[1:] == [max(starts)] and max(starts) >= last_step > 0
    document = json.loads((folder / "results.json").read_text())
    assert [trial["status"] for trial in document["trials"]] == ["done"]
    assert document["metric"] == "phase_classification" and document["best"] is not None
    # TensorBoard's HParams: the point and the score.
    *_, events = sorted(folder.glob("ray/*/*/events.out.tfevents.*"))
    assert b"_hparams_/session_start_info" in events.read_bytes()
    assert b"point/objective.temperature" in events.read_bytes()
    assert pq.read_table(folder / "results.parquet").num_rows == 1
    assert len((folder / "results.csv").read_text().splitlines()) == 2
    assert "<html" in (folder / "sweep.html").read_text()
    best = configuration.from_json((folder / "best.json").read_text(), "best.json")
    # Trials are short; the best is to be trained as long as the preset says.
    assert best.training.epochs == configuration_of_demo().training.epochs != EPOCHS
    assert best.data.manifest == manifest and best.data.max_validation_videos > 0


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(18_000):
        if condition():
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_a_failing_trial_does_not_stop_the_others(
    manifest: str, tmp_path: Path, local_training: None, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny(manifest)
    base = replace(base, training=replace(base.training, epochs=1))
    space = Space("heads", {"model.num_heads": Choices((3, 2))})
    sweep = define_sweep(space, base, seeds=1, num_rungs=1, metric=None)
    chosen = chosen_points(sweep, "grid", None, 0)
    # An earlier call has trained it already: this one measures it, in the trial's process.
    done = next(trial for trial, point in chosen.items() if point["model.num_heads"] == 2)
    begin_trial(str(tmp_path), sweep, chosen[done])
    trained = train_run(sweep.run_config(chosen[done], 0), run_dir(str(tmp_path), done, 0), until_epoch=1)
    assert trained.finished
    run_trials(sweep, str(tmp_path), chosen, 2, max_concurrent=2)
    document = sweep_document(sweep, str(tmp_path), {})
    by_heads = {trial["values"]["model.num_heads"]: trial for trial in document["trials"]}
    assert by_heads[3]["status"] == "failed" and "width must be a multiple" in by_heads[3]["reason"]
    assert by_heads[2]["status"] == "done" and 0 <= by_heads[2]["score"]["mean"] <= 1
    assert document["best"] == by_heads[2]["id"]
    assert "failed: " in (said := capsys.readouterr().out)
    assert "TensorBoard" not in said and "Configuration for experiment" not in said, "Tune's own tables"
    with pytest.raises(SystemExit) as left, one_line_errors():
        command().print_results(document, str(tmp_path))
    told = capsys.readouterr()
    assert left.value.code == 1 and "1 of 2 trials failed" in told.err and "width must be" in told.err
    assert "best.json:" in told.out and "next: python -m carl_ray.train --config " in told.out


def test_a_folder_that_another_process_writes_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold(str(tmp_path)):
        status, line = failure(capsys, command().main, "loss", "--run-dir", str(tmp_path))
    assert status == 2 and f"{tmp_path}: another process writes there: process {os.getpid()} on " in line


def command() -> Any:
    """The module of the command."""
    return importlib.import_module("carl_ray.sweep")


@pytest.mark.parametrize("space", ["loss", "temporal", "frames", "all"])
def test_the_default_number_of_trials_fits_the_space(space: str) -> None:
    found = SPACES[space](configuration_of_demo())
    assert default_num_trials(found, "random") == (5 if space == "frames" else 8)
    assert default_num_trials(found, "grid") is None


def test_lengths_of_trials_and_of_the_best() -> None:
    for arguments, epochs in ((["--training.epochs", "3"], 3), ([], 11)):
        _, keywords = command().parse(["loss", "--training.seed", "7", *arguments])
        full, trial = keywords["full"], trial_config(keywords["full"], keywords["trial_epochs"])
        assert (trial.training.epochs, full.training.epochs) == (epochs, 45)
        assert (trial.training.seed, full.training.seed) == (7, 7)


def test_a_sweep_around_a_run_has_its_config(tmp_path: Path) -> None:
    laptop = replace(preset("laptop"), data=replace(preset("laptop").data, features="/f", frame_stride=5))
    file = tmp_path / "config.json"
    file.write_text(configuration.to_json(replace(laptop, training=replace(laptop.training, epochs=88))))
    folder, keywords = command().parse(["--config", str(file), "--objective.temperature", "0.3"])
    full = keywords["full"]
    assert (full.data, full.training.epochs, full.objective.temperature) == (laptop.data, 88, 0.3)
    assert trial_config(full, keywords["trial_epochs"]).training.epochs == 22
    assert folder.endswith(f"sweeps/loss-{tmp_path.name}")
    demo = replace(preset("demo"), data=replace(preset("demo").data, manifest=embedded_manifest("demo")))
    file.write_text(configuration.to_json(demo))
    # Rendered where they are missing, also for best.json.
    assert command().parse(["--config", str(file)])[1]["full"] == preset("demo")
    with pytest.raises(UserError, match="--config and --preset both say what a run is"):
        command().parse(["--config", str(file), "--preset", "demo"])


def test_training_takes_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "best.json"
    file.write_text(configuration.to_json(tiny("/nowhere/manifest.parquet")))
    for arguments, expected in (
        (["--config", str(file)], "/nowhere/manifest.parquet: no manifest there"),
        (["demo", "--config", str(file)], "--config and a preset both say what the run is"),
        (["--config", str(tmp_path / "none.json")], "none.json"),
    ):
        status, line = failure(capsys, train.main, *arguments)
        assert status == 2 and expected in line
