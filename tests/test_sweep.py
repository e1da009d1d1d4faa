"""The command `python tuning/sweep.py`: mistakes, failing trials, and a sweep that is killed and called again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carl_ray import config as configuration
from carl_ray import train
from carl_ray.config import AugmentConfig, ClusterConfig, Config, DataConfig, ModelConfig, TrainingConfig
from carl_ray.data.manifest import write_table
from carl_ray.data.scan import index_folder
from carl_ray.sweeps.preparation import checked_sweep, remember
from carl_ray.sweeps.results import sweep_document
from carl_ray.sweeps.search import chosen_points, run_sweep
from carl_ray.sweeps.space import Choices, Space
from carl_ray.training.run_log import read_log

SWEEP = Path(__file__).parents[1] / "tuning" / "sweep.py"
EPOCHS, STEPS = 6, 24


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
        model=ModelConfig(
            num_frames=6,
            backbone="small",
            weights="random",
            learnable="all",
            hidden_width=8,
            width=8,
            num_layers=1,
            num_heads=2,
            feedforward_width=8,
            embedding_width=8,
        ),
        training=TrainingConfig(epochs=EPOCHS, global_batch_size=2, log_every_steps=1, precision="fp32"),
        cluster=ClusterConfig(max_decode_tasks=1),
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
        (["los"], "unknown space 'los'; did you mean loss?"),
        (["loss", "--preset", "demonstration"], "unknown preset 'demonstration'"),
        (["loss", "--num-trial", "4"], "unknown option --num-trial; did you mean num-trials?"),
        (["loss", "--num-trials", "0"], "--num-trials: expected at least 1, got 0"),
        (["loss", "--search", "best"], "argument --search: invalid choice: 'best'"),
        (["loss", "--preset", "penn_action"], "preset penn_action needs videos"),
        (
            ["loss", "--run-dir", "s3://USER:PASSWORD@bucket/a"],
            "--run-dir: expected a URI without credentials",
        ),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(SWEEP), *arguments],
        env=os.environ | {"CARL_RAY_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert expected in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_killed_sweep_goes_on(manifest: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = [sys.executable, str(SWEEP), "loss", "--num-trials", "2", "--max-concurrent", "2", "--run-dir"]
    command += [str(folder), *options_of(tiny(manifest))]
    environment = os.environ | {"CARL_RAY_HOME": str(tmp_path)}
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            # One trial is past its first rung, so that there is a checkpoint to go on from.
            wait_until(
                lambda: list(folder.glob("trials/*/seed-0/measured/*.json")), first, tmp_path / "first.log"
            )
        finally:
            first.send_signal(signal.SIGKILL)
            first.wait()
    runs = {path.parent for path in folder.glob("trials/*/seed-0/config.json")}
    steps_before = {run: [line["step"] for line in read_log(str(run))] for run in runs}
    checkpoints = {run: sorted((run / "checkpoints").glob("*/state.json")) for run in runs}
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert again.returncode == 0, again.stderr + again.stdout
    assert "2 of 2 trials ended" in again.stdout
    for run in folder.glob("trials/*/seed-0"):
        log_steps = [line["step"] for line in read_log(str(run)) if "loss" in line]
        outcome = json.loads((run.parent / "outcome.json").read_text())
        # Every step once, whether it was done before the kill or after it.
        assert log_steps == list(range(1, (STEPS if outcome["status"] == "done" else STEPS // 3) + 1))
        # TensorBoard's files say from which step on each start of the workers went.
        starts = sorted(int(path.suffix.removeprefix(".from-")) for path in (run / "events").glob("*.from-*"))
        if checkpoints.get(run):
            assert starts.count(0) == 1 and len(starts) > 1
            assert steps_before[run][: starts[1]] == log_steps[: starts[1]]
    document = json.loads((folder / "results.json").read_text())
    assert {trial["status"] for trial in document["trials"]} <= {"done", "stopped"}
    assert document["metric"] == "phase_classification" and document["best"] is not None
    assert pq.read_table(folder / "results.parquet").num_rows == 2
    assert len((folder / "results.csv").read_text().splitlines()) == 3
    assert "<html" in (folder / "sweep.html").read_text()
    best = configuration.from_json((folder / "best.json").read_text(), "best.json")
    assert best.training.epochs == EPOCHS and best.data.manifest == manifest


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if condition():
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.5)
    raise AssertionError(log.read_text())


def test_a_failing_trial_does_not_stop_the_others(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny(manifest)
    base = replace(base, training=replace(base.training, epochs=1))
    space = Space("heads", {"model.num_heads": Choices((3, 2))})
    sweep = checked_sweep(space, base, seeds=1, num_rungs=1, metric=None)
    remember(sweep, str(tmp_path), "grid")
    run_sweep(sweep, str(tmp_path), search="grid", num_trials=None, search_seed=0, max_concurrent=2)
    document = sweep_document(sweep, str(tmp_path), {})
    by_heads = {trial["values"]["model.num_heads"]: trial for trial in document["trials"]}
    assert by_heads[3]["status"] == "failed" and "width must be a multiple" in by_heads[3]["reason"]
    assert by_heads[2]["status"] == "done" and 0 <= by_heads[2]["score"]["mean"] <= 1
    assert document["best"] == by_heads[2]["id"]
    assert "failed: " in capsys.readouterr().out


def test_points_begin_with_the_base_config(tmp_path: Path) -> None:
    base = tiny("/nowhere.parquet")
    space = Space("heads", {"model.num_heads": Choices((1, 2))})
    from carl_ray.sweeps.trial import Sweep

    sweep = Sweep(space, base, 1, (1,), "phase_classification", labelled=True)
    assert chosen_points(sweep, "random", 2, 0) == [{"model.num_heads": 2}, {"model.num_heads": 1}]
    assert chosen_points(sweep, "grid", 1, 0) == [{"model.num_heads": 1}]


def test_training_takes_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "best.json"
    file.write_text(configuration.to_json(tiny("/nowhere/manifest.parquet")))
    for arguments, expected in (
        (["--config", str(file)], "/nowhere/manifest.parquet: no manifest there"),
        (["demo", "--config", str(file)], "--config and a preset both say what the run is"),
        (["--config", str(tmp_path / "none.json")], "none.json"),
    ):
        with pytest.raises(SystemExit) as left:
            train.main(arguments)
        captured = capsys.readouterr().err
        assert left.value.code == 2 and expected in captured and len(captured.splitlines()) == 1
