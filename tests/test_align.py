"""`python -m carl_ray.align`: two files and a checkpoint become a side-by-side video."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carl_ray import align
from carl_ray.data.decode import DecodeError, probe_video
from carl_ray.datasets import choreography
from carl_ray.datasets.choreography import ChoreographyConfig
from carl_ray.evaluation import repetitions
from carl_ray.evaluation.repetitions import Repetition
from carl_ray.report import video
from carl_ray.training.checkpoint import checkpoint_at
from tests.embedded import failure


@pytest.fixture
def home(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and a working folder with a run that a test may change."""
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, tmp_path / "a run")
    return tmp_path / "home"


@pytest.fixture
def pair(home: Path, make_video: Callable[..., Path], tmp_path: Path) -> list[str]:
    return [str(make_video(tmp_path / f"{name}.mp4", count)) for name, count in (("a", 20), ("b", 33))]


def test_two_files(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = checkpoint_at(str(tmp_path / "a run")).uri
    align.main([*pair, "--checkpoint", checkpoint, "--out", "deep/out.mp4"])
    lines = capsys.readouterr().out.splitlines()
    assert "each of 20 frames with its partner among 33" in lines[0]
    assert lines[1].split() == ["aligned", "same", "relative", "position"]
    for line, encoder in zip(lines[2:4], ("trained", "untrained"), strict=True):
        name, aligned, unaligned = line.split()
        assert name == encoder and -1 <= float(unaligned) <= float(aligned) + 0.05 <= 1.05
    assert lines[4] == "written:    deep/out.mp4"
    assert lines[5].startswith("next: python -m carl_ray.align ")
    assert probe_video("deep/out.mp4", verify=True).num_frames == 20
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.mp4"]


def test_pairs_of_frames_with_seconds(
    pair: list[str], make_video: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of variable rate: frames are not at frame / fps.
    make_video(Path(pair[1]), 33, pts=[frame + frame // 7 for frame in range(33)])
    align.main([*pair, "--checkpoint", "a run", "--out", "a b.csv", "--out", "out.mp4"])
    head, *rows = (tmp_path / "a b.csv").read_text().splitlines()
    assert head == "frame_a,seconds_a,frame_b,seconds_b"
    pairs = [[float(cell) for cell in row.split(",")] for row in rows]
    assert (pairs[0], pairs[-1]) == ([0, 0, 0, 0], [19, 0.633, 32, 1.2])
    assert all(a[0] <= b[0] and a[2] <= b[2] for a, b in pairwise(pairs))
    assert all(abs((b + b // 7) / 30 - seconds) < 0.001 for _, _, b, seconds in pairs)
    assert probe_video("out.mp4").num_frames == 20
    # The command that it ends with runs as it is.
    advised = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert advised[:4] == ["next:", "python", "-m", "carl_ray.align"]
    align.main(advised[4:])
    assert (tmp_path / "pairs.csv").read_bytes() == (tmp_path / "a b.csv").read_bytes()


def test_repetition_by_repetition(
    pair: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [*pair, "--checkpoint", "a run", "--out", "pairs.csv"]
    error = failure(capsys, align, *arguments, "--repetitions")
    assert "expected two videos that repeat, 1 and 1 repetitions found" in error
    thirds = {n: [Repetition(k * n // 3, (k + 1) * n // 3, 1.0) for k in range(3)] for n in (20, 33)}
    monkeypatch.setattr(repetitions, "find_repetitions", lambda frames: thirds[len(frames)])
    align.main(arguments)
    whole = (tmp_path / "pairs.csv").read_text()
    assert "3 and 3 repetitions found: whole videos are aligned as if" in capsys.readouterr().out
    align.main([*arguments, "--repetitions"])
    assert "3 and 3 repetitions found: aligned one by one" in capsys.readouterr().out
    assert (tmp_path / "pairs.csv").read_text() != whole
    align.main([*arguments, "--out", "out.mp4", "--repetitions"])
    assert probe_video("out.mp4").num_frames == 20


def test_a_video_with_itself_stays_in_step(
    pair: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths: list[np.ndarray] = []
    monkeypatch.setattr(video, "aligned_video", lambda first, second, path: paths.append(path) or b"video")
    align.main([pair[0], pair[0], "--checkpoint", "a run"])
    assert paths[0].tolist() == [[i, i] for i in range(20)]
    assert re.search(r"^trained +1\.000 +1\.000$", capsys.readouterr().out, re.MULTILINE)
    assert (tmp_path / "aligned.mp4").read_bytes() == b"video"


def test_without_arguments(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ChoreographyConfig(num_train=0, num_validation=0, num_test=8, size=32)
    folder = choreography.ensure_rendered(tmp_path / "rendered", small)
    monkeypatch.setattr(choreography, "ensure_rendered", lambda **options: folder)
    (home / "runs").mkdir(parents=True)
    (tmp_path / "a run").rename(home / "runs" / "demo-20260101-000000")
    align.main([])
    assert "aligned" in capsys.readouterr().out
    frames = probe_video(str(folder / "test" / "lift-000.mp4")).num_frames
    assert probe_video("aligned.mp4", verify=True).num_frames == frames


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.mp4"], "expected two videos, got one"),
        (["a.mp4", "b.mp4", "--out", "x.avi"], "--out: expected the name of an MP4 or a CSV file"),
        (["a.mp4", "b.mp4", "--out", "./b.mp4"], "b.mp4 is one of the videos"),
        (["a.mp4", "b.mp4"], "no trained demo there"),
        (["a.mp4", "b.mp4", "--checkpoint", "nowhere"], "nowhere: expected a run folder with a checkpoint"),
        (["a.mp4", "gone.mp4", "--checkpoint", "a run"], "gone.mp4: no such file"),
        (["a.mp4", "text.mp4", "--checkpoint", "a run"], "text.mp4: not a video"),
        (["a.mp4", "b.mp4", "--chekpoint", "a run"], "--chekpoint"),
    ],
)
def test_mistakes(
    pair: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "text.mp4").write_text("no video " * 100)
    before = (tmp_path / "b.mp4").read_bytes()
    assert message in failure(capsys, align, *arguments)
    assert not (tmp_path / "aligned.mp4").exists()
    assert (tmp_path / "b.mp4").read_bytes() == before


def test_a_folder_that_cannot_be_written(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    arguments = (*pair, "--checkpoint", "a run", "--out", "taken/out.mp4")
    assert "could not write" in failure(capsys, align, *arguments, status=1)


def test_a_file_that_changes_meanwhile(
    pair: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> bytes:
        raise DecodeError("20 frames were expected, but only 3 decode")

    monkeypatch.setattr(video, "aligned_video", fail)
    error = failure(capsys, align, *pair, "--checkpoint", "a run")
    assert "a.mp4" in error and "only 3 decode" in error
