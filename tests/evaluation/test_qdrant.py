"""Points in Qdrant's local form, as they would be on a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carl_ray import export
from carl_ray.evaluation import qdrant
from carl_ray.evaluation.embeddings import EmbeddedVideo, write_part
from tests.embedded import ORIGIN, embedded, failure


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("qdrant_client")  # Not while tests are collected, which every test process does.


@pytest.fixture
def videos(tmp_path: Path) -> list[EmbeddedVideo]:
    rng = np.random.default_rng(0)
    labels = np.repeat([-1, 0, 1], 3).astype(np.int32)
    found = [
        embedded(name, rng.normal(size=(9, 4)).astype(np.float32), label=label, fps=fps, frame_labels=labels)
        for name, label, fps in (("a'b.mp4", "jump", 4.0), ("c.mp4", None, None))
    ]
    write_part(str(tmp_path / "E"), found, ORIGIN, "float32")
    return found


def test_points_are_the_same_at_each_call(
    tmp_path: Path,
    videos: list[EmbeddedVideo],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import qdrant_client

    monkeypatch.setattr(qdrant, "_POINTS_A_REQUEST", 4)
    out = str(tmp_path / "Q" / "frames")
    arguments = ["--embeddings", str(tmp_path / "E"), "--out", out, "--format", "qdrant"]
    seen = []
    for _ in range(2):
        export.main(arguments)
        assert "points:   18\n" in capsys.readouterr().out
        client = qdrant_client.QdrantClient(path=str(tmp_path / "Q"))
        points, _ = client.scroll("frames", limit=99, with_vectors=True)
        (hit,) = client.query_points("frames", videos[0].embeddings[7].tolist(), limit=1).points
        client.close()
        assert hit.score == pytest.approx(1)
        known = {"video": "a'b.mp4", "frame": 7, "seconds": 1.75, "label": "jump", "phase": "phase 1"}
        assert hit.payload == known
        seen.append({point.id: point.payload for point in points})
    assert seen[0] == seen[1] and len(seen[0]) == 18
    assert {"video": "c.mp4", "frame": 0, "seconds": None, "label": None, "phase": None} in seen[0].values()


def test_mistakes_are_one_line(
    tmp_path: Path,
    videos: list[EmbeddedVideo],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import qdrant_client

    client = qdrant_client.QdrantClient(path=str(tmp_path / "Q"))
    form = qdrant_client.models.VectorParams(size=3, distance="Cosine")
    client.create_collection("frames", vectors_config=form)
    client.close()
    arguments = ("--embeddings", tmp_path / "E", "--format", "qdrant", "--out")
    for out in (tmp_path / "Q" / "frames", "http://127.0.0.1:9/frames"):
        assert "could not write it" in failure(capsys, export, *arguments, out, status=1)
    monkeypatch.setitem(__import__("sys").modules, "qdrant_client", None)
    assert "pip install 'carl_ray[search]'" in failure(capsys, export, *arguments, "frames")
