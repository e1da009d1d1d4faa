"""Alignment of several videos with one of them, and propagation of labels, for the page.

Both run in a process of their own: torch would take half of the server's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

Ends = Literal["tied", "open"]


class Follower(NamedTuple):
    """A video that follows another one."""

    frames: Int64[np.ndarray, " N"]
    """The frame to show with each frame of the other video."""
    shared: tuple[int, int]
    """First frame of the other video that has a partner, and the one after the last; equal where none has."""
    similarity: float | None
    """Mean cosine of partners; None without any."""


def follow(
    leader: Float[np.ndarray, "N width"], others: Sequence[Float[np.ndarray, "_ width"]], ends: Ends
) -> list[Follower]:
    """Align videos with a leading one.

    Args:
        leader: Embeddings of the video that keeps its pace.
        others: Those of the videos that follow.
        ends: `open`: frames at the ends of either video may be without partner; the follower stands still there.

    Raises:
        ValueError: a video has no frames, or an embedding is not finite.
    """
    from carl_ray.evaluation.frames import unit_frames
    from carl_ray.evaluation.warping import align_pair
    from carl_ray.report.video import partners, same_relative_position

    found = []
    for other in others:
        path = align_pair(leader, other, open_ends=ends == "open")
        if len(path) == 0:
            found.append(Follower(same_relative_position(len(leader), len(other)), (0, 0), None))
            continue
        first, second = unit_frames([leader, other])
        cosines = (first[path[:, 0]] * second[path[:, 1]]).sum(1)
        shared = (int(path[0, 0]), int(path[-1, 0]) + 1)
        found.append(Follower(partners(path, len(leader)), shared, float(cosines.mean())))
    return found
