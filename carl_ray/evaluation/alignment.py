"""Alignment of videos by dynamic time warping, and its error where the true progress is known.

SPEC section 5: unlike Kendall's tau, positions alone cannot game it on videos with idle time before and after
the action.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64

from carl_ray.evaluation.frames import unit_frames
from carl_ray.evaluation.results import PairMean
from carl_ray.objectives.dtw import dynamic_time_warping

# Cells of a batch of padded cost matrices, float64: bounds memory to some hundred megabytes.
_MOST_CELLS = 1 << 21


def alignment_error(
    embeddings: Sequence[Float[np.ndarray, "_ width"]],
    progress: Sequence[Float[np.ndarray, " _"]],
    *,
    stride: int = 1,
) -> PairMean:
    """The mean absolute difference of true progress between a frame and its partners in another video.

    Every pair of different videos is aligned by dynamic time warping of all frames, idle ones too, with the
    cosine distance as cost. The error of an ordered pair (a, b) is the mean over the frames of a of
    |progress of the frame - mean progress of its partners in b|; the value is the mean over ordered pairs,
    in units of progress. One path serves both orders of a pair.

    Args:
        embeddings: One array a video; normalised here.
        progress: True progress of each frame, one array a video.
        stride: Every so many frames are seen.

    Returns:
        Errors by ordered pair. `left_out`: `undefined_pairs`, ordered pairs with a video without frames.

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
    units = [torch.from_numpy(frames) for frames in unit_frames(embeddings, stride=stride)]
    truths = [torch.from_numpy(truth[::stride].astype(np.float64)) for truth in progress]
    errors = np.full((len(units), len(units)), np.nan)
    for pairs in _batches([len(frames) for frames in units]):
        first, second = pairs.T
        errors[first, second], errors[second, first] = _pair_errors(units, truths, first, second)
    count = len(units) * (len(units) - 1)
    return PairMean(errors, {"undefined_pairs": count - int((~np.isnan(errors)).sum())})


def align_pair(
    first: Float[np.ndarray, "N width"], second: Float[np.ndarray, "M width"]
) -> Int64[np.ndarray, "steps 2"]:
    """The warping path of two embedded videos, from their first frames to their last, by cosine distance.

    Time and memory grow with N * M: two videos of 6,000 frames take seconds and less than 2 GB.

    Args:
        first: Embeddings of the frames of a video; normalised here.
        second: Those of the other video.

    Returns:
        Pairs of frame indices; each step goes on by (1, 1), (1, 0) or (0, 1).

    Raises:
        ValueError: as `unit_frames`, or a video has no frames.
    """
    unit1, unit2 = (torch.from_numpy(frames) for frames in unit_frames([first, second]))
    if len(unit1) == 0 or len(unit2) == 0:
        raise ValueError(f"expected videos with frames, got {len(unit1)} and {len(unit2)} frames")
    mask1, mask2 = (torch.ones(1, len(frames), dtype=torch.bool) for frames in (unit1, unit2))
    cost = 1 - unit1 @ unit2.mT
    return dynamic_time_warping(cost[None], mask1, mask2).cells[0].nonzero().numpy()


def _batches(lengths: list[int]) -> Iterator[Int[np.ndarray, "pairs 2"]]:
    """All pairs of videos with frames, the longer one first, in batches of alike lengths and bounded size."""
    counts = np.array(lengths)
    pairs = np.stack(np.triu_indices(len(counts), 1), axis=1)
    pairs = pairs[(counts[pairs] > 0).all(1)]
    pairs = np.where((counts[pairs[:, :1]] < counts[pairs[:, 1:]]), pairs[:, ::-1], pairs)
    pairs = pairs[np.lexsort(counts[pairs].T[::-1])]
    start = widest = 0
    for stop, (longer, shorter) in enumerate(counts[pairs].tolist()):
        widest = max(widest, shorter)
        if stop > start and (stop + 1 - start) * longer * widest > _MOST_CELLS:
            yield pairs[start:stop]
            start, widest = stop, shorter
    if start < len(pairs):
        yield pairs[start:]


def _pair_errors(
    units: list[torch.Tensor], truths: list[torch.Tensor], first: np.ndarray, second: np.ndarray
) -> tuple[Float64[np.ndarray, " pairs"], Float64[np.ndarray, " pairs"]]:
    """Errors of the pairs (first, second), and of the same pairs the other way round."""
    unit1, truth1, mask1 = _padded(units, truths, first)
    unit2, truth2, mask2 = _padded(units, truths, second)
    cells = dynamic_time_warping(1 - unit1 @ unit2.mT, mask1, mask2).cells.double()
    partner1 = (cells @ truth2[:, :, None])[:, :, 0] / cells.sum(2).clamp(min=1)
    partner2 = (cells.mT @ truth1[:, :, None])[:, :, 0] / cells.sum(1).clamp(min=1)
    error1 = ((truth1 - partner1).abs() * mask1).sum(1) / mask1.sum(1)
    error2 = ((truth2 - partner2).abs() * mask2).sum(1) / mask2.sum(1)
    return error1.numpy(), error2.numpy()


def _padded(
    units: list[torch.Tensor], truths: list[torch.Tensor], videos: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, progress and mask of some videos, padded with zeros to the longest of them."""
    lengths = torch.tensor([len(units[video]) for video in videos])
    padded = torch.nn.utils.rnn.pad_sequence([units[video] for video in videos], batch_first=True)
    truth = torch.nn.utils.rnn.pad_sequence([truths[video] for video in videos], batch_first=True)
    return padded, truth, torch.arange(padded.shape[1]) < lengths[:, None]
