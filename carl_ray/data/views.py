"""Frame indices of two overlapping views of a video (paper, section 3.2).

Pure NumPy. Letters as in the paper: S frames of the video, T frames of a view, L frames of a crop; alpha is the longest
crop as a multiple of T, beta the part of the shorter crop that both crops share at the least.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64

# Absorbs the rounding of alpha * T and beta * L where the exact product is an integer (1.1 * 10, 0.2 * 35).
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class ViewIndices:
    """The frames of one view, in time order."""

    frame_indices: Int64[np.ndarray, " time"]
    """Index of each frame in the video; of the video's last frame where `frame_mask` is false."""
    frame_mask: Bool[np.ndarray, " time"]
    """True where a position holds a frame of the video, false where it is padding."""
    crop: tuple[int, int]
    """First frame of the crop, and the one after its last; of a clip at a stride, T strides after the first."""


def sample_views(
    num_video_frames: int,
    num_frames: int,
    *,
    max_crop_ratio: float = 1.5,
    min_overlap: float = 0.2,
    sampling: Literal["random", "even"] = "random",
    crop: Literal["paper", "released"] = "paper",
    rng: np.random.Generator,
) -> tuple[ViewIndices, ViewIndices]:
    """Two views of a video, each with T = `num_frames` positions.

    `crop="paper"`: each crop has L frames, L uniform over the integers of [T, min(alpha * T, S)], and at
    least beta * min(L1, L2) frames are common to both crops. Given the two lengths, every pair of places
    that satisfies this is equally likely. A single crop is therefore not quite uniform: near the ends of
    the video it has fewer partners, so places there are somewhat rarer (uniform again for beta = 0, where
    the crops are independent). beta = 1 makes the second crop the first. Each view then takes T distinct
    frames of its crop.

    `crop="released"`, as the authors' code does: each view draws r uniform in [1, alpha) and takes T
    distinct indices of [0, r * S); those past the end become the last frame with mask false. Nothing is
    cropped (`crop` is the whole video) and `min_overlap` has no effect. Should all T fall past the end, the
    first becomes a uniformly drawn frame of the video: a view is never empty.

    Either way a video with S < T keeps all its frames, in both views, and is padded to T with its last
    index, mask false. The cost does not depend on S.

    Args:
        num_video_frames: S, at least 1.
        num_frames: T, at least 1.
        max_crop_ratio: alpha, at least 1; 1 gives crops of exactly T frames.
        min_overlap: beta, in [0, 1].
        sampling: `random` takes any T frames with equal chance; `even` takes, for i = 0 ... T - 1, frame
            floor(i * (L - 1) / (T - 1) + 1/2) of the crop: both its ends, and all of it where L = T. T = 1
            takes the first frame.
        crop: The paper's way, or the one of the released code.
        rng: Source of all draws; see `carl_ray.data.randomness`.

    Raises:
        ValueError: an argument out of its range.
    """
    if num_video_frames < 1:
        raise ValueError(f"num_video_frames must be at least 1, got {num_video_frames}")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if not (max_crop_ratio >= 1 and math.isfinite(max_crop_ratio)):
        raise ValueError(f"max_crop_ratio must be finite and at least 1, got {max_crop_ratio}")
    if not 0 <= min_overlap <= 1:
        raise ValueError(f"min_overlap must be in [0, 1], got {min_overlap}")
    if sampling not in ("random", "even"):
        raise ValueError(f"sampling must be 'random' or 'even', got {sampling!r}")
    if crop not in ("paper", "released"):
        raise ValueError(f"crop must be 'paper' or 'released', got {crop!r}")

    if num_video_frames < num_frames:
        return _padded_view(num_video_frames, num_frames), _padded_view(num_video_frames, num_frames)
    if crop == "released":
        arguments = num_video_frames, num_frames, max_crop_ratio, sampling, rng
        return _released_view(*arguments), _released_view(*arguments)
    first, second = _sample_crops(num_video_frames, num_frames, max_crop_ratio, min_overlap, rng)
    return _view_of_crop(first, num_frames, sampling, rng), _view_of_crop(second, num_frames, sampling, rng)


def sample_clips(
    num_video_frames: int,
    num_frames: int,
    strides: tuple[int, int],
    count: int,
    rng: np.random.Generator,
    *,
    reserve: int = 0,
) -> tuple[ViewIndices, ...]:
    """One or two clips of T frames at one stride, which stand for T times the stride frames of the video.

    The stride is uniform over the integers of `strides`; in a video that is shorter it falls to S // T, at least 1. A
    start is uniform over the places where the clip fits. In half of the draws the second clip begins so that both share
    at least a quarter of their frames, else anywhere. A video with S < T keeps all its frames and is padded with its
    last index, mask false.

    Args:
        num_video_frames: S, at least 1.
        num_frames: T, at least 1.
        strides: Smallest and largest.
        count: 1 or 2 clips.
        rng: Source of all draws; see `carl_ray.data.randomness`.
        reserve: Frames that follow a clip, as many as there are in a short video.
    """
    stride = int(rng.integers(strides[0], strides[1] + 1))
    if num_video_frames < num_frames * stride:
        stride = max(1, num_video_frames // num_frames)
    length = num_frames * stride
    last = max(0, num_video_frames - length - reserve)
    starts = [int(rng.integers(last + 1))]
    if count == 2:
        shift = length - math.ceil(length / 4)
        low, high = (
            (max(0, starts[0] - shift), min(last, starts[0] + shift)) if rng.random() < 0.5 else (0, last)
        )
        starts.append(int(rng.integers(low, high + 1)))
    return tuple(clip_at(start, stride, num_video_frames, num_frames) for start in starts)


def clip_at(start: int, stride: int, num_video_frames: int, num_frames: int) -> ViewIndices:
    """A clip of T frames from a start; what lies beyond the video is its last frame, mask false."""
    places = start + stride * np.arange(num_frames, dtype=np.int64)
    crop = (start, start + num_frames * stride)
    return ViewIndices(np.minimum(places, num_video_frames - 1), places < num_video_frames, crop)


def sample_whole(num_video_frames: int, num_frames: int, rng: np.random.Generator) -> ViewIndices:
    """A clip over the whole video: one frame at a uniform place of each of T equal parts.

    A video with S < T keeps all its frames and is padded; the clip stands for T frames.
    """
    return _whole(num_video_frames, num_frames, rng.integers)


def even_whole(num_video_frames: int, num_frames: int, place: float) -> ViewIndices:
    """As `sample_whole`, with the frame at the same place of every part.

    Args:
        num_video_frames: S.
        num_frames: T.
        place: In a part, from 0, its beginning, to below 1, its end.
    """
    return _whole(
        num_video_frames,
        num_frames,
        lambda starts, stops: starts + np.floor(place * (stops - starts)).astype(np.int64),
    )


def _whole(
    num_video_frames: int,
    num_frames: int,
    choose: Callable[[Int64[np.ndarray, " time"], Int64[np.ndarray, " time"]], Int64[np.ndarray, " time"]],
) -> ViewIndices:
    """A clip of the frame that is chosen from each part, given where the parts begin and end."""
    if num_video_frames < num_frames:
        return clip_at(0, 1, num_video_frames, num_frames)
    edges = np.arange(num_frames + 1, dtype=np.int64) * num_video_frames // num_frames
    return ViewIndices(choose(edges[:-1], edges[1:]), np.ones(num_frames, dtype=bool), (0, num_video_frames))


def _sample_crops(
    num_video_frames: int,
    num_frames: int,
    max_crop_ratio: float,
    min_overlap: float,
    rng: np.random.Generator,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two crops (start, stop), S >= T, uniform over places that overlap enough."""
    longest = min(math.floor(max_crop_ratio * num_frames + _ROUNDING), num_video_frames)
    length1, length2 = (int(length) for length in rng.integers(num_frames, longest + 1, size=2))
    if min_overlap == 1:
        start = int(rng.integers(num_video_frames - length1 + 1))
        return (start, start + length1), (start, start + length1)
    last1, last2 = num_video_frames - length1, num_video_frames - length2
    shared = math.ceil(min_overlap * min(length1, length2) - _ROUNDING)
    if shared == 0:
        start1, start2 = int(rng.integers(last1 + 1)), int(rng.integers(last2 + 1))
        return (start1, start1 + length1), (start2, start2 + length2)
    # The overlap depends on shift = start2 - start1 alone and is large enough exactly for these shifts; each
    # of them leaves one run of possible start1. Numbering the pairs shift by shift and drawing one number is
    # uniform over pairs in O(L), whatever S.
    shifts = np.arange(shared - length2, length1 - shared + 1)
    lowest = np.maximum(0, -shifts)
    counts = np.maximum(np.minimum(last1, last2 - shifts) - lowest + 1, 0)
    ends = np.cumsum(counts)
    pair = int(rng.integers(ends[-1]))
    row = int(np.searchsorted(ends, pair, side="right"))
    start1 = int(lowest[row] + pair - (ends[row] - counts[row]))
    start2 = start1 + int(shifts[row])
    return (start1, start1 + length1), (start2, start2 + length2)


def _view_of_crop(
    crop: tuple[int, int], num_frames: int, sampling: Literal["random", "even"], rng: np.random.Generator
) -> ViewIndices:
    indices = crop[0] + _sample_indices(crop[1] - crop[0], num_frames, sampling, rng)
    return ViewIndices(indices, np.ones(num_frames, dtype=bool), crop)


def _released_view(
    num_video_frames: int,
    num_frames: int,
    max_crop_ratio: float,
    sampling: Literal["random", "even"],
    rng: np.random.Generator,
) -> ViewIndices:
    span = math.ceil(rng.uniform(1.0, max_crop_ratio) * num_video_frames)
    indices = _sample_indices(span, num_frames, sampling, rng)
    if indices[0] >= num_video_frames:
        indices[0] = rng.integers(num_video_frames)
    mask = indices < num_video_frames
    return ViewIndices(np.minimum(indices, num_video_frames - 1), mask, (0, num_video_frames))


def _padded_view(num_video_frames: int, num_frames: int) -> ViewIndices:
    positions = np.arange(num_frames)
    return ViewIndices(
        np.minimum(positions, num_video_frames - 1), positions < num_video_frames, (0, num_video_frames)
    )


def _sample_indices(
    length: int, num_frames: int, sampling: Literal["random", "even"], rng: np.random.Generator
) -> Int64[np.ndarray, " time"]:
    """`num_frames` distinct ascending indices of [0, length); length >= num_frames."""
    if sampling == "random":
        return np.sort(rng.choice(length, size=num_frames, replace=False, shuffle=False)).astype(np.int64)
    gaps = max(num_frames - 1, 1)
    # Integers throughout: floor(x + 1/2) of a step of at least 1 is strictly increasing.
    return (2 * np.arange(num_frames, dtype=np.int64) * (length - 1) + gaps) // (2 * gaps)
