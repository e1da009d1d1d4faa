"""`carl_ray.explore.moments`: the answers of an exhaustive search, from one file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from carl_ray.errors import UserError
from carl_ray.evaluation.embeddings import EmbeddedVideo, Origin, list_parts, write_part
from carl_ray.explore.library import Corpus
from carl_ray.explore.moments import MomentIndex

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
def uri(tmp_path: Path) -> str:
    folder = str(tmp_path / "embeddings")
    write_part(folder, videos()[:3], ORIGIN, "float32")
    write_part(folder, videos()[3:], ORIGIN, "float32")
    return folder


def in_order() -> list[EmbeddedVideo]:
    return sorted(videos(), key=lambda video: video.video_id)


def slow(query: np.ndarray, count: int, allowed: np.ndarray) -> list[tuple[int, int, float]]:
    found = []
    for number, video in enumerate(in_order()):
        if allowed[number]:
            cosines = [f @ query / np.linalg.norm(f) / np.linalg.norm(query) for f in video.embeddings]
            found.append((number, int(np.argmax(cosines)), float(max(cosines))))
    return sorted(found, key=lambda moment: (-moment[2], moment[0]))[:count]


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("excluded", [(), (0, 3, 6), range(7)])
def test_the_best_frame_of_each_video(uri: str, count: int, excluded: tuple[int, ...]) -> None:
    index, query = Corpus.open(uri).index, 3 * in_order()[1].embeddings[2]
    allowed = ~np.isin(np.arange(7), excluded)
    expected = slow(query, count, allowed)
    found = index.search(query, count, allowed)
    assert [(m.video, m.frame) for m in found] == [(video, frame) for video, frame, _ in expected]
    np.testing.assert_allclose([m.similarity for m in found], [s for *_, s in expected], rtol=1e-5, atol=1e-6)
    if not excluded:
        assert index.search(query, count) == found


def test_vectors_are_those_of_the_frames(uri: str) -> None:
    index = Corpus.open(uri).index
    for number, video in enumerate(in_order()):
        for frame, embedding in enumerate(video.embeddings):
            vector = index.vectors(number)[frame]
            np.testing.assert_allclose(vector, embedding / np.linalg.norm(embedding), rtol=1e-5)
            best = index.search(vector, 1)[0]
            assert (best.video, best.frame) == (number, frame)


def test_equal_frames_are_found_in_the_order_of_the_ids() -> None:
    index = MomentIndex(np.ones((6, 2), np.float32) / 2**0.5, [2, 0, 3, 1])
    assert [(m.video, m.frame) for m in index.search(np.ones(2), 3)] == [(0, 0), (2, 0), (3, 0)]


def test_the_file_is_made_once_and_anew_for_others(uri: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    Corpus.open(uri, None, lambda *done: told.append(done))
    assert told == [(done, 7) for done in range(1, 8)]
    (first,) = (tmp_path / "embeddings" / "explore").glob("moments-*.npy")
    told.clear()
    Corpus.open(uri, None, lambda *done: told.append(done))
    assert told == []
    write_part(
        uri,
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
    added = Corpus.open(uri).index
    assert added.search(np.ones(6), 1)[0].video == 7
    (second,) = (tmp_path / "embeddings" / "explore").glob("moments-*.npy")
    assert first != second and not [*(tmp_path / "embeddings" / "explore").glob(".moments*")]


def test_videos_without_frames_in_parts_of_an_earlier_version(uri: str) -> None:
    empty = EmbeddedVideo(
        video_id="a", uri="/a", timestamps=np.zeros(0), embeddings=np.zeros((0, 6), np.float32)
    )
    write_part(uri, [empty], ORIGIN, "float32")
    for part in list_parts(uri):
        pq.write_table(pq.read_table(part).drop_columns(["phase_names", "seconds"]), part)
    told: list[tuple[int, int]] = []
    corpus = Corpus.open(uri, None, lambda *done: told.append(done))
    assert told == [(done, 8) for done in range(1, 9)]
    assert [len(video) for video in corpus.videos] == [*map(len, in_order()), 0]
    assert corpus.videos[0].times.tolist() == [0.0, 0.04, 0.08, 0.12, 0.16]


def test_bad_input_is_one_line(uri: str, tmp_path: Path) -> None:
    index = Corpus.open(uri).index
    with pytest.raises(ValueError, match="expected a query of 6 numbers, got 5"):
        index.search(np.ones(5), 1)
    with pytest.raises(ValueError, match="finite"):
        index.search(np.full(6, np.nan), 1)
    broken = EmbeddedVideo(
        video_id="bad", uri="/b", timestamps=np.zeros(1), embeddings=np.full((1, 6), np.nan, np.float32)
    )
    write_part(uri, [broken], ORIGIN, "float32")
    with pytest.raises(UserError, match=r"bad: .*finite"):
        Corpus.open(uri)
    assert len([*(tmp_path / "embeddings" / "explore").iterdir()]) == 1
