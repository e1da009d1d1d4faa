"""Key frames of a video: those of the file, or evenly spaced ones in their place. No Ray and no torch here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from carl_ray.objectives.views import Policy

_EVEN_STEP = 12
"""A usual interval of key frames, half a second."""
_LARGEST_SHARE = 1 / 4
"""Of the frames: where more are key frames, as in files of key frames alone, the mark says nothing of a frame."""


def choose_key_frames(
    key_frames: Sequence[int] | None, num_frames: int, policy: Policy
) -> tuple[Int64[np.ndarray, " candidates"], str | None]:
    """The frames that a view of a key frame is drawn from, and why they are even ones instead of the file's.

    Args:
        key_frames: Indices of the file's; None where they are not known.
        num_frames: S, of the video.
        policy: As `KeyFrame.policy`.
    """
    found = np.array([] if key_frames is None else key_frames, np.int64)
    found = found[(found >= 0) & (found < num_frames)]
    even = np.arange(0, num_frames, _EVEN_STEP)
    if policy == "even":
        return even, None
    if key_frames is None:
        return even, "none in a manifest of an earlier version"
    if not len(found):
        return even, "none in the file"
    if policy == "auto" and len(found) == 1:
        return even, "one key frame"
    if policy == "auto" and len(found) > num_frames * _LARGEST_SHARE:
        return even, "more than a quarter of the frames"
    return found, None
