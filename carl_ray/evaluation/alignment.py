"""Alignment error: difference of true progress between aligned frames (paper, section 4).

Unlike Kendall's tau, it is not won by positions alone on videos with idle time before and after the action.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from carl_ray.evaluation.bootstrap import Result, pair_mean
from carl_ray.evaluation.frames import check_frames, unit_frames
from carl_ray.evaluation.task import Metric, Task, Videos


def alignment_error(
    embeddings: Sequence[Float[np.ndarray, "_ width"]],
    progress: Sequence[Float[np.ndarray, " _"]],
    *,
    stride: int = 1,
) -> Result:
    """Mean absolute difference of true progress between aligned frames.

    Every pair of different videos is aligned by dynamic time warping of all frames, including idle ones, with the
    cosine distance as cost. The error of an ordered pair (a, b) is the mean over the frames of a of
    |progress of the frame - mean progress of its partners in b|; the value is the mean over ordered pairs, in units
    of progress. Both orders of a pair share one path.

    Args:
        embeddings: One array a video; normalised here.
        progress: True progress of each frame, one array a video.
        stride: Only every `stride`-th frame is used.

    Returns:
        Errors by ordered pair (`pair_mean`). `left_out`: `undefined_pairs`, ordered pairs with a video without frames.

    Raises:
        ValueError: as `unit_frames`; also other numbers of videos or frames in `progress`, or values of it
            that are not finite.
    """
    from carl_ray.evaluation.warping import partner_values

    check_frames("progress", progress, embeddings)
    for number, truth in enumerate(progress):
        if not np.isfinite(truth).all():
            raise ValueError(f"progress of video {number}: expected finite values, got NaN or infinity")
    units = unit_frames(embeddings, stride=stride)
    truths = [truth[::stride].astype(np.float64) for truth in progress]
    errors = np.full((len(units), len(units)), np.nan)
    present = [number for number, frames in enumerate(units) if len(frames)]
    for a, b, partners in partner_values(units, truths, itertools.combinations(present, 2)):
        errors[a, b] = np.abs(truths[a] - partners).mean()
    count = len(units) * (len(units) - 1)
    return pair_mean(errors, {"undefined_pairs": count - int((~np.isnan(errors)).sum())})


def _run(videos: Videos) -> dict[str, Result]:
    known = [(video.embeddings, video.progress) for video in videos.test if video.progress is not None]
    if known:
        embeddings, progress = zip(*known, strict=True)
        result = alignment_error(embeddings, progress, stride=videos.stride)
    else:  # in this action, but not in others
        result = pair_mean(np.full((len(videos.test), len(videos.test)), np.nan))
    unknown = {"videos_without_progress": len(videos.test) - len(known)}
    return {"alignment_error": replace(result, left_out=result.left_out | unknown)}


TASK = Task(
    name="alignment_error",
    needs=("progress",),
    metrics=(
        Metric(
            name="alignment_error",
            title="alignment error (lower is better)",
            meaning="mean difference of true progress between a frame and its partners in another video, as a share of "
            "the action; positions alone do not win it where videos have idle time before and after the action",
            higher_is_better=False,
            needs_one_order=True,
            decides=True,
            by_action=True,
        ),
    ),
    run=_run,
)
