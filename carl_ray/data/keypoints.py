"""Keypoints of the person in a video: where they come from, and their coordinates in a view. No Ray, no torch here.

Legend: S frames of a video, T frames of a clip, 17 joints in COCO's order, each x, y and a score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32

from carl_ray.data.views import ViewIndices

NUM_JOINTS = 17
_MIRRORED = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])
"""Of each joint the one on the other side."""
_LEAST_SCORE = 0.5
_BEYOND = 0.1
"""How far outside a view, as a part of it, a joint is still valid."""


def keypoints_in_view(
    keypoints: Float[np.ndarray, "frames 17 3"] | None,
    clips: Sequence[ViewIndices],
    boxes: Float[np.ndarray, "n 4"],
    flips: Bool[np.ndarray, " n"],
) -> Float32[np.ndarray, "n time 17 3"]:
    """Keypoints at the frames of clips in view coordinates: x, y, and 1 where they are valid, else three zeros.

    Valid are those with a score of at least 0.5 that lie within the view, or outside by at most a tenth of it.

    Args:
        keypoints: Of every frame of the video, x and y as parts of the frame; None: none is valid.
        clips: The frames of the n clips.
        boxes: Left, top, right and bottom of each clip, as parts of the frame.
        flips: Which are mirrored: left and right joints are exchanged.
    """
    mask = np.stack([clip.frame_mask for clip in clips])
    if keypoints is None:
        return np.zeros((*mask.shape, NUM_JOINTS, 3), np.float32)
    found = np.stack([keypoints[clip.frame_indices] for clip in clips]).astype(np.float64)
    found[flips] = found[flips][:, :, _MIRRORED]
    corner, extent = boxes[:, None, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None, None]
    places = (found[..., :2] - corner) / extent
    places[flips, ..., 0] = 1 - places[flips, ..., 0]
    # Comparisons with NaN are false.
    valid = ((places >= -_BEYOND) & (places <= 1 + _BEYOND)).all(-1) & mask[..., None]
    valid &= (found[..., 2] >= _LEAST_SCORE) & (found[..., 2] < np.inf)
    return np.concatenate([np.where(valid[..., None], places, 0), valid[..., None]], -1).astype(np.float32)
