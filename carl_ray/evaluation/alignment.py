"""Alignment by dynamic time warping, and its error (paper, section 4).

Unlike Kendall's tau, the alignment error is not won by positions alone on videos with idle time before and after the
action.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64

from carl_ray.evaluation.bootstrap import Result, pair_mean
from carl_ray.evaluation.frames import unit_frames
from carl_ray.objectives.dtw import dynamic_time_warping

# Cells of a batch of padded cost matrices, float64: bounds memory to some hundred megabytes.
_MOST_CELLS = 1 << 21


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
    if len(progress) != len(embeddings):
        raise ValueError(f"progress: expected that of {len(embeddings)} videos, got {len(progress)}")
    for number, (video, truth) in enumerate(zip(embeddings, progress, strict=True)):
        if truth.shape != video.shape[:1]:
            raise ValueError(
                f"progress of video {number}: expected one value for each of {len(video)} frames, "
                f"got shape {truth.shape}"
            )
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


def align_pair(
    first: Float[np.ndarray, "N width"], second: Float[np.ndarray, "M width"]
) -> Int64[np.ndarray, "steps 2"]:
    """The warping path of two whole videos, with cosine distance as cost.

    Time and memory grow with N * M: two videos of 6,000 frames take seconds and less than 2 GB.

    Args:
        first: Embeddings of the frames of a video; normalised here.
        second: Those of the other video.

    Returns:
        Pairs of frame indices; each step is (1, 1), (1, 0) or (0, 1).

    Raises:
        ValueError: as `unit_frames`, or a video has no frames.
    """
    unit1, unit2 = (torch.from_numpy(frames) for frames in unit_frames([first, second]))
    if len(unit1) == 0 or len(unit2) == 0:
        raise ValueError(f"expected videos with frames, got {len(unit1)} and {len(unit2)} frames")
    mask1, mask2 = (torch.ones(1, len(frames), dtype=torch.bool) for frames in (unit1, unit2))
    cost = 1 - unit1 @ unit2.mT
    return dynamic_time_warping(cost[None], mask1, mask2).cells[0].nonzero().numpy()


def partner_values(
    units: Sequence[Float64[np.ndarray, "_ width"]],
    values: Sequence[Float64[np.ndarray, " _"]],
    pairs: Iterable[tuple[int, int]],
    *,
    tie_cost: float = 0.0,
) -> Iterator[tuple[int, int, Float64[np.ndarray, " frames"]]]:
    """Align pairs of videos and average a quantity over the partners of each frame.

    Args:
        units: Normalised embeddings of each video.
        values: The quantity, at each frame of each video.
        pairs: Pairs of videos with frames, each in one order.
        tie_cost: Added to the cost of a cell for each unit that the values of its two frames differ.

    Yields:
        Both orders of each pair as a, b, and for each frame of a the mean value of its partners in b.
    """
    lengths = np.array([len(frames) for frames in units])
    for batch in _batches(lengths, np.array([*pairs], dtype=np.int64).reshape(-1, 2)):
        first, second = batch.T
        unit1, value1, mask1 = _padded(units, values, first)
        unit2, value2, mask2 = _padded(units, values, second)
        cost = 1 - unit1 @ unit2.mT + tie_cost * (value1[:, :, None] - value2[:, None, :]).abs()
        cells = dynamic_time_warping(cost, mask1, mask2).cells.double()
        partners1 = (cells @ value2[:, :, None])[:, :, 0] / cells.sum(2).clamp(min=1)
        partners2 = (cells.mT @ value1[:, :, None])[:, :, 0] / cells.sum(1).clamp(min=1)
        for place, (a, b) in enumerate(batch.tolist()):
            yield a, b, partners1[place, : lengths[a]].numpy()
            yield b, a, partners2[place, : lengths[b]].numpy()


def _batches(
    lengths: Int[np.ndarray, " videos"], pairs: Int[np.ndarray, "pairs 2"]
) -> Iterator[Int[np.ndarray, "batch 2"]]:
    """The pairs, longer video first, in batches of similar and bounded size."""
    pairs = np.where((lengths[pairs[:, :1]] < lengths[pairs[:, 1:]]), pairs[:, ::-1], pairs)
    pairs = pairs[np.lexsort(lengths[pairs].T[::-1])]
    start = widest = 0
    for stop, (longer, shorter) in enumerate(lengths[pairs].tolist()):
        widest = max(widest, shorter)
        if stop > start and (stop + 1 - start) * longer * widest > _MOST_CELLS:
            yield pairs[start:stop]
            start, widest = stop, shorter
    if start < len(pairs):
        yield pairs[start:]


def _padded(
    units: Sequence[np.ndarray], values: Sequence[np.ndarray], videos: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, values and mask of some videos, padded with zeros."""
    lengths = torch.tensor([len(units[video]) for video in videos])
    padded, value = (
        torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(array[video]) for video in videos], batch_first=True
        )
        for array in (units, values)
    )
    return padded, value, torch.arange(padded.shape[1]) < lengths[:, None]
