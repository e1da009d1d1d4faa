"""Samples as FiftyOne's own classes; its database, which needs MongoDB, is a list here."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carl_ray import export
from carl_ray.evaluation.embeddings import write_part
from carl_ray.evaluation.fiftyone_samples import sample_of
from tests.embedded import failure
from tests.evaluation.test_embeddings import ORIGIN, video


def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_part(str(tmp_path), [video("a")], ORIGIN, "float32")
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    words = ["--embeddings", tmp_path, "--out", "squats", "--format", "fiftyone"]
    assert "pip install 'carl_ray[fiftyone]'" in failure(capsys, export, *words)


def test_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fo = pytest.importorskip("fiftyone")
    datasets: dict[str, list[Any]] = {}

    class Dataset:
        def __init__(self, name: str) -> None:
            self.name, self.samples = name, datasets.setdefault(name, [])
            self.persistent = False

        def delete(self) -> None:
            del datasets[self.name]

        def add_samples(self, samples: Iterable[Any], progress: bool) -> None:
            self.samples += samples

    monkeypatch.setattr(fo, "Dataset", Dataset)
    monkeypatch.setattr(fo, "dataset_exists", datasets.__contains__)
    labels = np.array([0, 0, -1, 1, 1], np.int32)
    first = video("a", frame_labels=labels, phase_names=["up", "down"], uri=f"{tmp_path}/a.mp4")
    write_part(
        str(tmp_path),
        [first, video("b", frame_labels=None, label=None, split=None, uri=f"{tmp_path}/b.mp4")],
        ORIGIN,
        "float32",
    )
    words = ["--embeddings", tmp_path, "--out", "squats", "--format", "fiftyone"]
    export.main([str(word) for word in words])
    assert "videos:   2" in capsys.readouterr().out
    a, b = datasets["squats"]
    assert (a.filepath, a.tags, a.video_id, a.label.label) == (f"{tmp_path}/a.mp4", ["train"], "a", "kick")
    assert [(one.label, one.support) for one in a.phases.detections] == [("up", [1, 2]), ("down", [4, 5])]
    assert [a.frames[n].phase and a.frames[n].phase.label for n in range(1, 6)] == ["up"] * 2 + [None] + [
        "down"
    ] * 2
    units = first.embeddings / np.linalg.norm(first.embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose([a.frames[n].embedding for n in range(1, 6)], units, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(a.embedding), 1, rtol=1e-5)
    assert (b.label, b.phases.detections, b.tags, len(b.frames)) == (None, [], ["train"], 5)
    assert "'squats' already" in failure(capsys, export, *words)

    for uri in ("s3://bucket/c.mp4", f"{tmp_path}/c.tar#bytes=512+9"):
        write_part(str(tmp_path), [video("c", uri=uri)], ORIGIN, "float32")
        assert "files of this machine" in failure(capsys, export, *words[:3], "cubes", *words[4:])
        assert "cubes" not in datasets
    part = sample_of(video("d", frame_labels=labels, uri=f"{tmp_path}/a.mp4#frames=100-105/900"))
    assert part.filepath == f"{tmp_path}/a.mp4" and [*part.frames] == [101, 102, 103, 104, 105]
    assert [one.support for one in part.phases.detections] == [[101, 102], [104, 105]]
