"""`carl_ray.explore.moments`: the answers of an exhaustive search, from one file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from carl_ray.errors import UserError
from carl_ray.evaluation.embeddings import EmbeddedVideo, Embeddings, Origin, write_part
from carl_ray.explore.moments import MomentIndex, open_index

ORIGIN = Origin("run", "0" * 64, "demo", 1, 8, 8, "resized", has_untrained=False)
LABELS = ["kick", None, "jump", "kick", None, "jump", "kick"]
LENGTHS = [5, 9, 2, 7, 1, 4, 6]


def videos() -> list[EmbeddedVideo]:
    """Not in the order of their ids."""
    rng = np.random.default_rng(0)
    return [
        EmbeddedVideo(
            video_id=f"{(3 * k) % 7}.mp4",
            uri=f"/videos/{k}.mp4",
            timestamps=np.arange(length, dtype=np.float64),
            embeddings=rng.standard_normal((length, 6)).astype(np.float32),
            label=label,
        )
        for k, (label, length) in enumerate(zip(LABELS, LENGTHS, strict=True))
    ]


@pytest.fixture
def embeddings(tmp_path: Path) -> Embeddings:
    folder = str(tmp_path / "embeddings")
    write_part(folder, videos()[:3], ORIGIN, "float32")
    write_part(folder, videos()[3:], ORIGIN, "float32")
    return Embeddings.open(folder)


def in_order() -> list[EmbeddedVideo]:
    return sorted(videos(), key=lambda video: video.video_id)


def slow(
    query: np.ndarray, count: int, label: str | None, allowed: np.ndarray
) -> list[tuple[int, int, float]]:
    found = []
    for number, video in enumerate(in_order()):
        if allowed[number] and label in (None, video.label):
            cosines = [f @ query / np.linalg.norm(f) / np.linalg.norm(query) for f in video.embeddings]
            found.append((number, int(np.argmax(cosines)), float(max(cosines))))
    return sorted(found, key=lambda moment: (-moment[2], moment[0]))[:count]


@pytest.mark.parametrize("label", [None, "kick", "jump", "no such"])
@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("excluded", [(), (0, 3, 6)])
def test_the_best_frame_of_each_video(
    embeddings: Embeddings, tmp_path: Path, label: str | None, count: int, excluded: tuple[int, ...]
) -> None:
    index, query = open_index(embeddings, tmp_path / "index"), 3 * in_order()[1].embeddings[2]
    allowed = ~np.isin(np.arange(7), excluded)
    expected = slow(query, count, label, allowed)
    found = index.search(query, count, label=label, allowed=allowed)
    assert [(m.video, m.frame) for m in found] == [(video, frame) for video, frame, _ in expected]
    np.testing.assert_allclose([m.similarity for m in found], [s for *_, s in expected], rtol=1e-5, atol=1e-6)
    if not excluded:
        assert index.search(query, count, label=label) == found


def test_vectors_are_those_of_the_frames(embeddings: Embeddings, tmp_path: Path) -> None:
    index = open_index(embeddings, tmp_path / "index")
    for number, video in enumerate(in_order()):
        for frame, embedding in enumerate(video.embeddings):
            vector = index.vectors(number)[frame]
            np.testing.assert_allclose(vector, embedding / np.linalg.norm(embedding), rtol=1e-5)
            best = index.search(vector, 1)[0]
            assert (best.video, best.frame) == (number, frame)


def test_equal_frames_are_found_in_the_order_of_the_ids() -> None:
    index = MomentIndex(
        np.ones((6, 2), np.float32) / 2**0.5, np.array([2, 0, 1]), np.array([1, 2, 3]), [None] * 3
    )
    assert [(m.video, m.frame) for m in index.search(np.ones(2), 3)] == [(0, 0), (1, 0), (2, 0)]


def test_the_file_is_made_once_and_anew_for_others(embeddings: Embeddings, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    open_index(embeddings, tmp_path, lambda *done: told.append(done))
    assert told[-1][0] == 7
    (first,) = tmp_path.glob("moments-*.npy")
    told.clear()
    open_index(embeddings, tmp_path, lambda *done: told.append(done))
    assert told == []
    write_part(
        embeddings.uri,
        [
            EmbeddedVideo(
                video_id="new", uri="/new", timestamps=np.zeros(1), embeddings=np.ones((1, 6), np.float32)
            )
        ],
        ORIGIN,
        "float32",
    )
    # Another server may be using the first one: it is deleted only after a day.
    os.utime(first, (0, 0))
    added = open_index(embeddings, tmp_path)
    assert added.search(np.ones(6), 1)[0].video == 7
    (second,) = tmp_path.glob("moments-*.npy")
    assert first != second and not [*tmp_path.glob(".moments*")]


def test_bad_input_is_one_line(embeddings: Embeddings, tmp_path: Path) -> None:
    index = open_index(embeddings, tmp_path / "index")
    with pytest.raises(ValueError, match="expected a query of 6 numbers, got 5"):
        index.search(np.ones(5), 1)
    with pytest.raises(ValueError, match="finite"):
        index.search(np.full(6, np.nan), 1)
    broken = EmbeddedVideo(
        video_id="bad", uri="/b", timestamps=np.zeros(1), embeddings=np.full((1, 6), np.nan, np.float32)
    )
    write_part(embeddings.uri, [broken], ORIGIN, "float32")
    with pytest.raises(UserError, match=r"bad: .*finite"):
        open_index(embeddings, tmp_path / "other")
    assert not [*(tmp_path / "other").iterdir()]
