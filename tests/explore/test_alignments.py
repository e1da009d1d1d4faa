"""`carl_ray.explore.alignments`: videos that follow another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carl_ray.data.decode import DecodeError, probe_video
from carl_ray.errors import UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.propagation import agreement
from carl_ray.explore.alignments import aligned_clips, follow, propagate_intervals

ANGLES = np.linspace(0, 3, 40)


def frames(angles: np.ndarray) -> np.ndarray:
    return np.stack([turn(k * angles) for k in (1, 2, 4) for turn in (np.cos, np.sin)], 1)


@pytest.mark.parametrize("ends", ["tied", "open"])
def test_a_slower_and_a_faster_video_follow(ends: str) -> None:
    slow, fast = follow(frames(ANGLES), [frames(np.linspace(0, 3, 80)), frames(np.linspace(0, 3, 20))], ends)
    for follower, angles in ((slow, np.linspace(0, 3, 80)), (fast, np.linspace(0, 3, 20))):
        assert np.abs(angles[follower.frames] - ANGLES).max() < 0.17
        assert (np.diff(follower.frames) >= 0).all()
        assert follower.similarity > 0.95 and follower.shared == (0, 40)


def test_open_ends_leave_out_what_the_other_does_not_show() -> None:
    inner = frames(ANGLES[10:30])
    (tied,), (opened,) = follow(frames(ANGLES), [inner], "tied"), follow(frames(ANGLES), [inner], "open")
    assert tied.shared == (0, 40)
    assert np.abs(opened.frames[10:30] - np.arange(20)).max() <= 1
    assert abs(opened.shared[0] - 10) <= 4 and abs(opened.shared[1] - 30) <= 4
    assert opened.similarity > tied.similarity
    # Before and after it stands still.
    assert set(opened.frames[: opened.shared[0]]) == {0} and set(opened.frames[opened.shared[1] :]) == {19}


def test_videos_with_nothing_in_common_run_side_by_side() -> None:
    leader, other = np.eye(4)[[0, 0, 1]], np.eye(4)[[2, 2, 3, 3, 3]]
    (follower,) = follow(leader, [other], "open")
    assert (follower.frames.tolist(), follower.shared, follower.similarity) == ([0, 2, 4], (0, 0), None)


def test_repetitions_follow_one_by_one() -> None:
    leader = frames(np.linspace(0, 3 * 2 * np.pi, 150))
    other = np.concatenate(
        [np.tile(frames(np.zeros(1)), (60, 1)), frames(np.linspace(0, 3 * 2 * np.pi, 240))]
    )
    (follower,) = follow(leader, [other], "repetitions")
    first, stop = follower.shared
    assert stop - first > 80 and follower.similarity > 0.95
    # From the second repetition on, each one is in its place.
    assert (np.diff(follower.frames) >= 0).all() and follower.frames[first] >= 50
    with pytest.raises(UserError, match=r"expected videos that repeat, found .* and 1 repetitions"):
        follow(leader, [frames(ANGLES)], "repetitions")


def test_a_download_shows_both_videos(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    files = [(name, str(make_video(tmp_path / name, 20))) for name in ("a.mp4", "b.mp4")]
    vectors = [frames(np.linspace(0, 3, 20))] * 2
    assert probe_video(aligned_clips(files, vectors, "tied")).num_frames == 20
    with pytest.raises(DecodeError, match="30 frames were expected, but only 20 decode"):
        aligned_clips(files, [vectors[0], frames(np.linspace(0, 3, 30))], "tied")


def labelled(name: str, edges: list[int], **fields: Any) -> EmbeddedVideo:
    """A video whose frames show what their phases are."""
    phases = np.repeat([0, 1, 2], np.diff([0, *edges])).astype(np.int32)
    return EmbeddedVideo(
        video_id=name,
        uri=name,
        timestamps=np.arange(len(phases), dtype=np.float64),
        embeddings=np.eye(3, dtype=np.float32)[phases],
        frame_labels=phases,
        phase_names=["rest", "up", "down"],
        fps=10.0,
        **fields,
    )


def test_labels_are_propagated_within_an_action() -> None:
    sources = [labelled("a", [5, 10, 20], label="kick"), labelled("b", [12, 16, 20], label="kick")]
    target = replace(labelled("c", [3, 15, 20], label="kick"), frame_labels=None, phase_names=None)
    found, other = propagate_intervals(sources, [target, replace(target, label="jump")])
    assert other is None and found is not None
    assert [interval[:3] for interval in found] == [(0, 0.3, "rest"), (0.3, 1.5, "up"), (1.5, 2.0, "down")]
    assert all(0.5 < interval.confidence <= 1 for interval in found)
    assert propagate_intervals(sources, [replace(target, fps=None)]) == [None]


def test_labelled_videos_label_each_other_better_than_a_straight_line() -> None:
    sources = [labelled("a", [5, 10, 20]), labelled("b", [12, 16, 20]), labelled("c", [3, 15, 20])]
    found = agreement(sources)
    assert found.propagated == 1 and 0.3 < found.straight_line < 0.9
    assert agreement(sources[:1]) == (None, None)
