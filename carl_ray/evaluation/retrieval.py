"""Fine-grained retrieval, AP@K (paper, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from carl_ray.evaluation.bootstrap import Result, ratio_of_sums
from carl_ray.evaluation.frames import MOST_SIMILARITIES, ZERO_SIMILARITY, labelled_frames, rounding_gap
from carl_ray.evaluation.task import Metric, Task, Videos

_NEIGHBOURS = (5, 10, 15)
# Further neighbours that are searched for ties at the K-th distance before all frames are sorted.
_TIED = 48


def average_precision_at_k(
    embeddings: Sequence[Float[np.ndarray, "_ width"]],
    labels: Sequence[Int[np.ndarray, " _"]],
    k: int,
    *,
    stride: int = 1,
) -> Result:
    """`average_precisions` for a single K."""
    return average_precisions(embeddings, labels, [k], stride=stride)[k]


def average_precisions(
    embeddings: Sequence[Float[np.ndarray, "_ width"]],
    labels: Sequence[Int[np.ndarray, " _"]],
    ks: Sequence[int],
    *,
    stride: int = 1,
) -> dict[int, Result]:
    """AP@K for each K: share of a frame's K nearest frames with its label.

    The value is the mean over the labelled frames of a video, then over videos. Frames at the same distance share the
    last places equally, so that the order of the videos does not matter.

    Args:
        embeddings: One array a video, of one action; normalised here.
        labels: Phase of each frame; negative where it has none, and is neither query nor candidate.
        ks: Numbers of neighbours (paper: 5, 10, 15).
        stride: Only every `stride`-th labelled frame is used, as query and as candidate.

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
    video = np.repeat(np.arange(len(lengths)), lengths)
    precisions = _precisions(np.concatenate(units), np.concatenate(classes), video, ks)
    candidates = lengths.sum() - lengths
    results = {}
    for k, precision in zip(ks, precisions, strict=True):
        sums = np.bincount(video, precision, minlength=len(lengths))
        defined = (lengths > 0) & (candidates >= k)
        results[k] = ratio_of_sums(
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
    video: Int[np.ndarray, " frames"],
    ks: Sequence[int],
) -> Float64[np.ndarray, "ks frames"]:
    """By K and query frame, the share of its K nearest candidates with its label.

    Meaningless, but finite, where there are fewer than K candidates.
    """
    import torch

    precisions = np.zeros((len(ks), len(frames)))
    gap = rounding_gap(frames.shape[1])
    zeros = ~frames.any(axis=1)
    most = min(max(ks), len(frames))
    size = max(1, MOST_SIMILARITIES // max(1, len(frames)))
    for start in range(0, len(frames), size):
        queries = np.arange(start, min(start + size, len(frames)))
        similarities = frames[queries] @ frames.T
        similarities[:, zeros] = ZERO_SIMILARITY
        similarities[video[queries, None] == video] = -np.inf
        # NumPy's argpartition takes four times as long.
        top = torch.from_numpy(similarities).topk(min(most + _TIED, len(frames)), dim=1)
        nearest, order = top.values.numpy(), top.indices.numpy()
        precisions[:, queries] = _shared_places(nearest, classes[order] == classes[queries, None], ks, gap)
        # Where even the last one found competes for the last place, more may do so.
        cut = np.flatnonzero(nearest[:, -1] >= nearest[:, most - 1] - gap)
        if nearest.shape[1] < len(frames) and len(cut):
            order = np.argsort(-similarities[cut], axis=1)
            nearest = np.take_along_axis(similarities[cut], order, axis=1)
            same = classes[order] == classes[queries[cut], None]
            precisions[:, queries[cut]] = _shared_places(nearest, same, ks, gap)
    return precisions


def _shared_places(
    similarities: Float64[np.ndarray, "queries candidates"],
    same: Bool[np.ndarray, "queries candidates"],
    ks: Sequence[int],
    gap: float,
) -> Float64[np.ndarray, "ks queries"]:
    """Shares of candidates with the query's label among the K nearest."""
    precisions = np.zeros((len(ks), len(similarities)))
    for precision, k in zip(precisions, ks, strict=True):
        level = similarities[:, min(k, similarities.shape[1]) - 1, None]
        nearer = similarities > level + gap
        candidates = ~nearer & (similarities >= level - gap)
        places = k - nearer.sum(1)
        precision[:] = ((nearer & same).sum(1) + places * (candidates & same).sum(1) / candidates.sum(1)) / k
    return precisions


def _run(videos: Videos) -> dict[str, Result]:
    precisions = average_precisions(*videos.test_arrays, _NEIGHBOURS, stride=videos.stride)
    return {f"average_precision_at_{k}": precisions[k] for k in _NEIGHBOURS}


TASK = Task(
    name="retrieval",
    needs=("frame labels",),
    metrics=tuple(
        Metric(
            name=f"average_precision_at_{k}",
            title=f"AP@{k} (%)",
            meaning=f"share of the {k} nearest frames of other videos that are in the phase of the query frame",
            decides=k == 5,
            by_action=k == 5,
        )
        for k in _NEIGHBOURS
    ),
    run=_run,
)
