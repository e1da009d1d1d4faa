"""What a sweep checks before Ray starts; whole sweeps are in `tests/test_sweep.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from carl_ray import presets, sweep
from carl_ray.sweeps import runner
from tests.samples import blank_features, failure, manifest_row, write_rows


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A manifest of two training and two validation videos, in the working directory."""
    monkeypatch.chdir(tmp_path)
    splits = ["train", "train", "validation", "validation"]
    rows = [
        manifest_row(f"{number}.mp4", content_hash=str(number), num_frames=60, split=split)
        for number, split in enumerate(splits)
    ]
    return write_rows(rows, "m.parquet")


def test_paths_are_absolute_for_trials(manifest: str, tmp_path: Path) -> None:
    laptop = presets.preset("laptop")
    blank_features(laptop, manifest, "f")
    full = replace(laptop, data=replace(laptop.data, manifest=manifest, features="f", keypoints="k"))
    base = runner._checked_config(runner.trial_config(full, 1), str(tmp_path / "sweep"))
    named = (base.data.manifest, base.data.features, base.data.keypoints)
    assert named == tuple(str(tmp_path / name) for name in ("m.parquet", "f", "k"))
    assert base.model.weights == "pretrained"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--preset", "laptop"], "a sweep takes those of a run by --config RUN/config.json"),
        (["--preset", "laptop", "--data.features", "gone"], "gone: no features there"),
        (["--preset", "laptop", "--data.features", "s3://K:hushhush@b/f"], "data.features: expected a URI without"),
        (["--objective.name", "tests.test_train:Failing"], "tests.test_train:Failing fails on a batch of two videos"),
    ],
)  # fmt: skip
def test_what_training_refuses_a_sweep_refuses_before_ray(
    words: list[str],
    expected: str,
    manifest: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("carl_ray.session.connect", None)
    words = ["temporal", "--run-dir", "sweep", "--data.manifest", manifest, *words]
    status, line = failure(capsys, sweep.main, *words)
    assert (status, expected in line) == (2, True), line
    assert "hushhush" not in line and not Path("sweep").exists()


def test_the_folder_of_a_run_is_not_that_of_a_sweep(
    manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    Path("run/config.json").write_bytes(runner.configuration.to_json(presets.preset("demo")).encode())
    status, line = failure(capsys, sweep.main, "--run-dir", "run", "--data.manifest", manifest)
    assert (status, "run already holds a run; another --run-dir starts anew" in line) == (2, True), line
