"""`carl-ray segments`: intervals of repetitions that come back as labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from carl_ray import propagate, segments
from carl_ray.evaluation.embeddings import write_part
from carl_ray.evaluation.intervals import with_labels
from carl_ray.evaluation.repetitions import find_repetitions
from tests.embedded import embedded, failure
from tests.evaluation.test_embeddings import ORIGIN
from tests.evaluation.test_repetitions import NOISE, VARIED, WIDTH, cycles


def write(folder: Path, fps: float | None = 20.0, **videos: np.ndarray) -> str:
    found = [embedded(f"{name}.mp4", x, fps=fps, untrained=x) for name, x in videos.items()]
    write_part(str(folder), found, ORIGIN, "float32")
    return str(folder)


def test_intervals_come_back_as_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embeddings = cycles(VARIED, idle=20)[0].astype(np.float32)
    folder = write(tmp_path / "e", a=embeddings, b=NOISE[:, :WIDTH].astype(np.float32))
    write(tmp_path / "e", fps=None, c=embeddings)
    segments.main(["--embeddings", folder, "--out", str(tmp_path / "s.csv")])
    said = capsys.readouterr().out
    assert "7 intervals in 2 videos, of which 1 repeat" in said
    assert "left out: 1 videos" in said and "carl_ray.explore --embeddings" in said
    counts = [line.split() for line in said.splitlines() if line.endswith(".mp4")]
    assert [(count, video) for count, _, video in counts] == [("6", "a.mp4"), ("1", "b.mp4")]
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [row["label"] for row in rows] == [*(f"repetition {k}" for k in range(1, 7)), "repetition 1"]
    assert all(float(row["confidence"]) > 0.5 for row in rows[:6]) and float(rows[6]["confidence"]) < 0.3
    videos, _ = with_labels(propagate.read_embeddings(folder), [str(tmp_path / "s.csv")])
    for number, one in enumerate(find_repetitions(embeddings)):
        places = np.flatnonzero(videos[0].phases == number)
        assert (places[0], places[-1] + 1) == one[:2]


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = write(tmp_path / "n", a=np.full((20, 4), np.nan, np.float32))
    assert "'a.mp4': embeddings of video 0: expected finite values" in failure(
        capsys, segments, "--embeddings", broken, "--out", "s.csv"
    )
    gone = ("--embeddings", tmp_path / "gone", "--out", "s.csv")
    assert "no embeddings there" in failure(capsys, segments, *gone)
