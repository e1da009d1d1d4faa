"""Kendall's tau (paper, section 4): temporal order of nearest neighbours.

It says little alone: positions without any content come near 1 on trimmed videos of a single cycle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64

from carl_ray.evaluation.bootstrap import Result, pair_mean
from carl_ray.evaluation.frames import MOST_SIMILARITIES, ZERO_SIMILARITY, rounding_gap, unit_frames
from carl_ray.evaluation.task import Metric, Task, Videos

# Signs of (pair of frames, video) that are held at a time. Sums of fewer than 2**24 signs are exact in float32.
_MOST_SIGNS = 1 << 22


def kendalls_tau(embeddings: Sequence[Float[np.ndarray, "_ width"]], *, stride: int = 1) -> Result:
    """Mean over pairs of videos of tau-b between time and nearest neighbours.

    For an ordered pair (a, b), the nearest neighbour in b by squared Euclidean distance of the normalised
    embeddings is found for each frame of a, the first of equally near ones. A pair is undefined where all frames have
    the same neighbour, a has fewer than two frames, or b has none.

    Args:
        embeddings: One array a video; normalised here.
        stride: Only every `stride`-th frame is used.

    Returns:
        Taus by ordered pair (`pair_mean`). `left_out`: `undefined_pairs`.

    Raises:
        ValueError: as `unit_frames`.
    """
    units = unit_frames(embeddings, stride=stride)
    taus = np.full((len(units), len(units)), np.nan)
    present = [number for number, frames in enumerate(units) if len(frames)]
    if present:
        neighbors = _neighbors([units[number] for number in present])
        ends = np.cumsum([len(units[number]) for number in present])
        for number, of_video in zip(present, np.split(neighbors, ends[:-1], axis=1), strict=True):
            taus[number, present] = _tau_b(np.ascontiguousarray(of_video.T))
    np.fill_diagonal(taus, np.nan)
    ordered_pairs = len(units) * (len(units) - 1)
    return pair_mean(taus, {"undefined_pairs": ordered_pairs - int((~np.isnan(taus)).sum())})


def _neighbors(units: list[Float64[np.ndarray, "_ width"]]) -> Float32[np.ndarray, "videos frames"]:
    """By video, index in it of the nearest neighbour of each frame of all videos."""
    frames = np.concatenate(units)
    gap = rounding_gap(frames.shape[1])
    ends = np.cumsum([len(video) for video in units])
    zeros = np.flatnonzero(~frames.any(axis=1))
    neighbors = np.empty((len(units), len(frames)), dtype=np.float32)
    size = max(1, MOST_SIMILARITIES // len(frames))
    for start in range(0, len(frames), size):
        queries = slice(start, start + size)
        # Candidates are rows: reducing over rows runs along contiguous memory, much faster than over columns.
        similarities = frames @ frames[queries].T
        similarities[zeros] = ZERO_SIMILARITY
        for video, rows in enumerate(np.split(similarities, ends[:-1])):
            neighbors[video, queries] = (rows >= rows.max(0) - gap).argmax(0)
    return neighbors


def _tau_b(neighbors: Float32[np.ndarray, "frames videos"]) -> Float64[np.ndarray, " videos"]:
    """tau-b of each column against time (no ties); NaN where all values are equal."""
    length, count = neighbors.shape
    signed, untied = np.zeros(count), np.zeros(count)
    # Frame t is the later one of t pairs, which begin at pair t (t - 1) / 2.
    frame = np.arange(length + 1)
    pairs_before = frame * (frame - 1) // 2
    begin = 0
    while begin < length:
        room = pairs_before[begin] + max(1, _MOST_SIGNS // count)
        end = max(begin + 1, int(np.searchsorted(pairs_before, room, side="right")) - 1)
        later = np.repeat(frame[begin:end], frame[begin:end])
        earlier = np.arange(pairs_before[begin], pairs_before[end]) - pairs_before[later]
        signs = np.sign(neighbors[later] - neighbors[earlier])
        ones = np.ones(len(later), dtype=np.float32)
        signed += ones @ signs
        untied += ones @ np.square(signs)
        begin = end
    untied[untied == 0] = np.nan
    return signed / np.sqrt(pairs_before[length] * untied)


def _run(videos: Videos) -> dict[str, Result]:
    # Only labelled frames, but all frames of a video without any label.
    kept = [x[y >= 0] if (y >= 0).any() else x for x, y in zip(*videos.test_arrays, strict=True)]
    return {"kendalls_tau": kendalls_tau(kept, stride=videos.stride)}


TASK = Task(
    name="kendalls_tau",
    metrics=(
        Metric(
            name="kendalls_tau",
            title="Kendall's tau",
            meaning="whether the nearest frames in another video come in the same order; it says little by itself, "
            "because positions alone come near 1: time runs forward in every video",
            needs_one_order=True,
            by_action=True,
        ),
    ),
    run=_run,
)
