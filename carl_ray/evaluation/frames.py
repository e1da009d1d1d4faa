"""Preparation of frames for metrics: checks, selection, stride, normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

# Similarities of frames in memory at a time: 128 MB of float64.
MOST_SIMILARITIES = 1 << 24
# For unit vectors the order of squared distances is that of cosines, as d^2 = 2 - 2 cos. A frame of zeros is at
# d^2 = 1 from every unit vector: as a candidate, its similarity to any frame counts as this.
ZERO_SIMILARITY = 0.5


def rounding_gap(width: int) -> float:
    """Largest difference of two cosines of frames that counts as equal.

    Twice the bound on the error of one: `width` sums and the rounding of both unit vectors, each by half a unit in the
    last place.
    """
    return (width + 4) * float(np.finfo(np.float64).eps)


def unit_frames(
    embeddings: Sequence[Float[np.ndarray, "_ width"]], *, stride: int = 1
) -> list[Float64[np.ndarray, "_ width"]]:
    """Every `stride`-th frame of each video, L2-normalised, float64.

    A frame of zeros stays zero.

    Args:
        embeddings: One array a video.
        stride: 1 keeps every frame.

    Raises:
        ValueError: no video, an array that is not (frames, width), widths that differ, values that are not
            finite, or a stride below 1.
    """
    if len(embeddings) == 0:
        raise ValueError("embeddings: expected at least one video, got none")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    units = []
    for number, video in enumerate(embeddings):
        if video.ndim != 2:
            raise ValueError(
                f"embeddings of video {number}: expected (frames, width), got shape {video.shape}"
            )
        if video.shape[1] != embeddings[0].shape[1]:
            raise ValueError(
                f"embeddings of video {number}: expected width {embeddings[0].shape[1]} as in video 0, "
                f"got {video.shape[1]}"
            )
        if not np.isfinite(video).all():
            raise ValueError(f"embeddings of video {number}: expected finite values, got NaN or infinity")
        frames = video[::stride].astype(np.float64)
        # Divide by the largest value first: squares of tiny or huge values would leave the range of float64.
        frames /= _or_one(np.abs(frames).max(axis=1, initial=0, keepdims=True))
        units.append(frames / _or_one(np.linalg.norm(frames, axis=1, keepdims=True)))
    return units


def labelled_frames(
    embeddings: Sequence[Float[np.ndarray, "_ width"]],
    labels: Sequence[Int[np.ndarray, " _"]],
    *,
    stride: int = 1,
) -> tuple[list[Float64[np.ndarray, "_ width"]], list[Int[np.ndarray, " _"]]]:
    """`unit_frames` of every `stride`-th labelled frame, and their labels.

    Args:
        embeddings: One array a video.
        labels: Class of each frame, one array a video; negative where a frame has none.
        stride: Only every `stride`-th labelled frame is kept.

    Raises:
        ValueError: as `unit_frames`; also other numbers of videos or frames than `embeddings` has, or
            labels that are not integers.
    """
    check_frames("labels", labels, embeddings)
    for number, classes in enumerate(labels):
        if not np.issubdtype(classes.dtype, np.integer):
            raise ValueError(f"labels of video {number}: expected integers, got {classes.dtype}")
    kept: list[Bool[np.ndarray, " _"]] = [classes >= 0 for classes in labels]
    units = unit_frames([video[keep] for video, keep in zip(embeddings, kept, strict=True)], stride=stride)
    return units, [classes[keep][::stride] for classes, keep in zip(labels, kept, strict=True)]


def check_frames(name: str, values: Sequence[np.ndarray], embeddings: Sequence[np.ndarray]) -> None:
    """Raise ValueError unless there is one value for each frame of each video."""
    if len(values) != len(embeddings):
        raise ValueError(f"{name}: expected those of {len(embeddings)} videos, got {len(values)}")
    for number, (found, video) in enumerate(zip(values, embeddings, strict=True)):
        if found.shape != video.shape[:1]:
            raise ValueError(
                f"{name} of video {number}: expected one for each of {len(video)} frames, got shape {found.shape}"
            )


def _or_one(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, 1)
