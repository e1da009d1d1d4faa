"""`carl_ray.evaluation.nearest_frames`: the nearest frame of each video, whatever the number of videos."""

from __future__ import annotations

import numpy as np
import pytest

from carl_ray.evaluation.nearest_frames import found_frame, nearest_frames, printable
from tests.embedded import embedded


def test_equals_a_search_through_all_frames() -> None:
    rng = np.random.default_rng(0)
    videos = [
        embedded(f"video-{i:02d}", rng.normal(size=(rng.integers(1, 9), 5)) * 10.0**i) for i in range(30)
    ]
    query = rng.normal(size=5)

    def cosine(frame: np.ndarray) -> float:
        wide = frame.astype(np.float64)
        return float(wide @ query / np.linalg.norm(wide) / np.linalg.norm(query))

    best = []
    for video in videos:
        similarities = [cosine(frame) for frame in video.embeddings]
        best.append((max(similarities), video.video_id, int(np.argmax(similarities))))
    best.sort(reverse=True)
    for count in (1, 7, 30, 99):
        found = nearest_frames(query, iter(videos), count)
        assert [(item.video_id, item.frame) for item in found] == [item[1:] for item in best[:count]]
        assert [item.similarity for item in found] == pytest.approx([item[0] for item in best[:count]])


def test_equally_near_frames_have_an_order() -> None:
    same = np.tile([1.0, 2.0], (4, 1))
    videos = [embedded(name, same) for name in "cabd"]
    found = nearest_frames(same[0], videos, 3)
    assert [(item.video_id, item.frame) for item in found] == [("a", 0), ("b", 0), ("c", 0)]


def test_what_is_known_of_a_frame() -> None:
    video = embedded("v", np.eye(3), frame_labels=np.array([-1, 0, 4], np.int32), fps=10.0)
    assert [found_frame(video, i).phase for i in range(3)] == [None, 0, 4]
    assert [found_frame(video, i).seconds for i in range(3)] == [0.0, 0.1, 0.2]
    bare = found_frame(embedded("v", np.eye(3)), 2)
    assert (bare.phase, bare.seconds, bare.similarity) == (None, None, 1.0)


def test_videos_without_frames_are_passed_over() -> None:
    videos = [embedded("none", np.zeros((0, 3))), embedded("one", np.eye(3))]
    assert [item.video_id for item in nearest_frames(np.ones(3), videos, 5)] == ["one"]


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [(np.full((2, 3), np.nan), "bad: .*expected finite"), (np.eye(4), "bad: .* query's, 3, got 4; .*like=")],
)
def test_embeddings_that_do_not_compare(embeddings: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_frames(np.ones(3), [embedded("bad", embeddings)], 5)


def test_printable() -> None:
    assert printable("a b/é動\x1b[31m\n") == "a b/é動?[31m?"
