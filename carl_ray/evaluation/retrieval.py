"""Fine-grained retrieval, AP@K (SPEC section 5): do the nearest frames of other videos show the same phase?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int

from carl_ray.evaluation.frames import MOST_SIMILARITIES, ZERO_SIMILARITY, labelled_frames, rounding_gap
from carl_ray.evaluation.results import RatioOfSums

# Frames at the K-th distance that the exact search looks at before it looks at all of them.
_TIED = 48


def average_precision_at_k(
    embeddings: Sequence[Float[np.ndarray, "_ width"]],
    labels: Sequence[Int[np.ndarray, " _"]],
    k: int,
    *,
    stride: int = 1,
) -> RatioOfSums:
    """`average_precisions` for a single K."""
    return average_precisions(embeddings, labels, [k], stride=stride)[k]


def average_precisions(
    embeddings: Sequence[Float[np.ndarray, "_ width"]],
    labels: Sequence[Int[np.ndarray, " _"]],
    ks: Sequence[int],
    *,
    stride: int = 1,
) -> dict[int, RatioOfSums]:
    """AP@K for each K: the share of a frame's K nearest frames of other videos that have its label.

    The value is the mean over the labelled frames of a video, then over videos. Where frames at the same
    distance compete for the last places, each has an equal part of them: no order of videos decides.

    Args:
        embeddings: One array a video, of one action; normalised here.
        labels: Phase of each frame; negative where it has none, and is neither query nor candidate.
        ks: Numbers of neighbours (paper: 5, 10, 15).
        stride: Every so many labelled frames are seen, as queries and as candidates.

    Returns:
        Shares by video. `left_out`: `videos_without_labels`, and `videos_without_candidates`: the other
        videos have fewer than K frames together.

    Raises:
        ValueError: as `labelled_frames`, or no K, or one below 1.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"expected numbers of neighbours of at least 1, got {list(ks)}")
    units, classes = labelled_frames(embeddings, labels, stride=stride)
    lengths = np.array([len(frames) for frames in units])
    precisions = _precisions(np.concatenate(units), np.concatenate(classes), lengths, ks)
    candidates = lengths.sum() - lengths
    video = np.repeat(np.arange(len(lengths)), lengths)
    results = {}
    for k, precision in zip(ks, precisions, strict=True):
        sums = np.bincount(video, precision, minlength=len(lengths))
        defined = (lengths > 0) & (candidates >= k)
        results[k] = RatioOfSums(
            numerators=np.where(defined, sums / np.maximum(lengths, 1), 0),
            denominators=defined.astype(np.float64),
            left_out={
                "videos_without_labels": int((lengths == 0).sum()),
                "videos_without_candidates": int(((lengths > 0) & ~defined).sum()),
            },
        )
    return results


def _precisions(
    frames: Float64[np.ndarray, "frames width"],
    classes: Int[np.ndarray, " frames"],
    lengths: Int[np.ndarray, " videos"],
    ks: Sequence[int],
) -> Float64[np.ndarray, "ks frames"]:
    """By K and query frame, the share of its K nearest candidates with its label.

    Meaningless, but finite, where there are fewer than K candidates.
    """
    precisions = np.zeros((len(ks), len(frames)))
    if len(frames) == 0:
        return precisions
    rough = frames.astype(np.float32)
    gap = rounding_gap(frames.shape[1], np.float32)
    starts = np.cumsum(lengths) - lengths
    video = np.repeat(np.arange(len(lengths)), lengths)
    zeros = np.flatnonzero(~frames.any(axis=1))
    most = min(max(ks) + 1, len(frames))
    size = max(1, MOST_SIMILARITIES // len(frames))
    for start in range(0, len(frames), size):
        queries = np.arange(start, min(start + size, len(frames)))
        # All frames at once are the product of a matrix with itself, at half the cost.
        similarities = rough[start : start + size] @ rough.T
        similarities[:, zeros] = ZERO_SIMILARITY
        for number in np.unique(video[queries]):
            own = slice(starts[number], starts[number] + lengths[number])
            similarities[max(own.start - start, 0) : own.stop - start, own] = -np.inf
        # NumPy's argpartition takes four times as long.
        top = torch.from_numpy(similarities).topk(most, dim=1)
        nearest, hits = top.values.numpy(), classes[top.indices.numpy()] == classes[queries, None]
        for precision, k in zip(precisions, ks, strict=True):
            precision[queries] = hits[:, :k].mean(1)
        inner = [k for k in ks if k < most]
        unsure = queries[(nearest[:, [k - 1 for k in inner]] <= nearest[:, inner] + gap).any(1)]
        if len(unsure):
            precisions[:, unsure] = _exact_precisions(frames, classes, video, unsure, ks)
    return precisions


def _exact_precisions(
    frames: Float64[np.ndarray, "frames width"],
    classes: Int[np.ndarray, " frames"],
    video: Int[np.ndarray, " frames"],
    queries: Int[np.ndarray, " queries"],
    ks: Sequence[int],
) -> Float64[np.ndarray, "ks queries"]:
    """`_precisions` of some frames in float64, where frames at the K-th distance share the places left."""
    gap = rounding_gap(frames.shape[1], np.float64)
    similarities = frames[queries] @ frames.T
    similarities[:, ~frames.any(axis=1)] = ZERO_SIMILARITY
    similarities[video[queries, None] == video] = -np.inf
    most = min(max(ks), len(frames))
    top = torch.from_numpy(similarities).topk(min(most + _TIED, len(frames)), dim=1)
    nearest = top.values.numpy()
    precisions = _shared_places(nearest, classes[top.indices.numpy()] == classes[queries, None], ks, gap)
    # Where even the last one found competes for the last place, more may do so.
    cut = np.flatnonzero(nearest[:, -1] >= nearest[:, most - 1] - gap)
    if nearest.shape[1] < len(frames) and len(cut):
        order = np.argsort(-similarities[cut], axis=1)
        nearest = np.take_along_axis(similarities[cut], order, axis=1)
        precisions[:, cut] = _shared_places(nearest, classes[order] == classes[queries[cut], None], ks, gap)
    return precisions


def _shared_places(
    similarities: Float64[np.ndarray, "queries candidates"],
    same: Bool[np.ndarray, "queries candidates"],
    ks: Sequence[int],
    gap: float,
) -> Float64[np.ndarray, "ks queries"]:
    """Shares of candidates with the query's label among the K nearest; candidates come the nearest first."""
    precisions = np.zeros((len(ks), len(similarities)))
    for precision, k in zip(precisions, ks, strict=True):
        level = similarities[:, min(k, similarities.shape[1]) - 1, None]
        nearer = similarities > level + gap
        candidates = ~nearer & (similarities >= level - gap)
        places = k - nearer.sum(1)
        precision[:] = ((nearer & same).sum(1) + places * (candidates & same).sum(1) / candidates.sum(1)) / k
    return precisions
