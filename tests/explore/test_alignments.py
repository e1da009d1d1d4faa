"""`carl_ray.explore.alignments`: videos that follow another one."""

from __future__ import annotations

import numpy as np
import pytest

from carl_ray.explore.alignments import follow

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
