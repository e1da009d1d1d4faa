"""Repetitions in a video from its embeddings alone, their number and starts, and how far these are off.

A repetition leads from a frame to the next one that resembles it, past frames that do not. With cosines of frames about
the centre of the video's movement, an interval from frame a to frame b is worth

    sqrt(b - a) * (similarity of a and b - mean similarity of both to the frames between them - a small cost)

and the repetitions are the disjoint intervals of greatest total worth. No length is assumed: repetitions may differ in
speed, and frames between and around them may be in none. By the root, two are worth more than one that holds both. A
video without repetition is one interval.

Legend: N frames, L the longest interval that is considered, lag: b - a.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from carl_ray.evaluation.bootstrap import Result, ratio_of_sums
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.frames import unit_frames
from carl_ray.evaluation.task import Metric, Task, Videos

_SHORTEST = 8  # frames of a repetition
_LONGEST_SHARE = 0.8  # of the video
_MOST_CELLS = 1 << 24  # frames times L: some hundred megabytes; long videos have a smaller L
_SMOOTHING = 2.0  # standard deviation in frames
_ENDS = 0.15  # share of an interval at each end that is not "between"
_WINDOW = 0.15  # share of an interval on each side over which similarities are averaged
_COST = 0.05  # keeps idle frames out, which resemble one another as much as those between them
_LEAST_CONTRAST = 0.25  # mean similarity of the ends less that to those between; so much is found in noise
_SAME = 1e-6  # distance of equal frames
_LEAST_PEAK = 0.02


class Repetition(NamedTuple):
    """One repetition in a video."""

    start: int
    """First frame. In which pose a cycle is cut is arbitrary, but the same throughout the video."""
    end: int
    """The frame after the last."""
    confidence: float
    """From 0 to 1: how much nearer the end comes to the start than the frames between them."""


def find_repetitions(embeddings: Float[np.ndarray, "N width"]) -> list[Repetition]:
    """Repetitions of a video in order; one interval of low confidence, the whole, where it does not repeat.

    The longest are .8 of the video, and 16.7 million frames divided by N. Errors as `unit_frames`.
    """
    units = centred_units(embeddings)
    num_frames = len(units)
    longest = min(int(_LONGEST_SHARE * num_frames), _MOST_CELLS // max(num_frames, 1))
    if longest < _SHORTEST:
        return [Repetition(0, num_frames, 0.0)] if num_frames else []
    similar, between = _similarities(units, longest)
    contrast = similar - between
    pairs = _best_chain(np.sqrt(np.arange(longest + 1, dtype=np.float32))[:, None] * (contrast - _COST))
    starts, lengths = np.array([(start, end - start) for start, end in pairs], np.int64).reshape(-1, 2).T
    contrasts = contrast[lengths, starts]
    confidence = np.clip(contrasts / np.maximum(1 - between[lengths, starts], _SAME), 0, 1)
    if not pairs or np.average(contrasts, weights=lengths) < _LEAST_CONTRAST:
        return [Repetition(0, num_frames, float(lengths @ confidence / num_frames))]
    return [Repetition(*pair, value) for pair, value in zip(pairs, confidence.tolist(), strict=True)]


def autocorrelation_count(embeddings: Float[np.ndarray, "N width"]) -> int:
    """Number of repetitions by the first peak of the autocorrelation of all frames, at least 1: a plain control."""
    from scipy.ndimage import gaussian_filter1d
    from scipy.signal import correlate, find_peaks

    frames = centred_units(embeddings)
    count = len(frames)
    if count < 2 * _SHORTEST:
        return 1
    sums = sum(correlate(column, column)[count - 1 :] for column in frames.T)
    lags = np.arange(int(0.75 * count))
    peaks, _ = find_peaks(gaussian_filter1d(sums[lags] / (count - lags), _SMOOTHING), prominence=_LEAST_PEAK)
    peaks = peaks[peaks >= _SHORTEST]
    return max(1, round(count / peaks[0])) if len(peaks) else 1


def centred_units(embeddings: Float[np.ndarray, "N width"]) -> Float64[np.ndarray, "N width"]:
    """Unit vectors from the centre of a video's movement to its smoothed frames; zeros for frames that are there.

    Frames weigh by their squared speed: a mean of all would lie where the video is idle. Errors as `unit_frames`.
    """
    from scipy.ndimage import gaussian_filter1d

    unit_frames([embeddings])  # Checks.
    frames = embeddings.astype(np.float64)
    if len(frames) < 2:
        return np.zeros_like(frames)
    frames = gaussian_filter1d(frames / (np.abs(frames).max() or 1), _SMOOTHING, axis=0)
    speeds = np.square(np.gradient(gaussian_filter1d(frames, _SMOOTHING, axis=0), axis=0)).sum(1)
    frames -= np.average(frames, axis=0, weights=speeds + _SAME**2)
    lengths = np.linalg.norm(frames, axis=1, keepdims=True)
    return np.where(lengths > _SAME, frames / np.maximum(lengths, _SAME), 0)


def _similarities(
    units: Float64[np.ndarray, "N width"], longest: int
) -> tuple[Float32[np.ndarray, "L+1 N"], Float32[np.ndarray, "L+1 N"]]:
    """By lag and first frame of an interval: similarity of its ends, and their mean similarity to those between."""
    from scipy.ndimage import uniform_filter1d

    count = len(units)
    at, between, before = np.zeros((3, longest + 1, count), np.float32)
    for lag in range(longest + 1):
        at[lag, : count - lag] = before[lag, lag:] = np.einsum("ij,ij->i", units[: count - lag], units[lag:])
    after, before = at.cumsum(0), before.cumsum(0, out=before)
    for lag in range(_SHORTEST, longest + 1):
        starts, ends = slice(0, count - lag), slice(lag, count)
        first = max(1, int(_ENDS * lag))
        last = lag - first - 1
        sums = after[last, starts] - after[first, starts] + before[last, ends] - before[first, ends]
        width = 2 * round(_WINDOW * lag) + 1
        between[lag, starts] = uniform_filter1d(sums / (2 * (last - first)), width, mode="nearest")
        at[lag, starts] = uniform_filter1d(at[lag, starts], width, mode="nearest")
    return at, between


def _best_chain(worth: Float32[np.ndarray, "L+1 N"]) -> list[tuple[int, int]]:
    """Disjoint intervals (start, end) of the greatest total worth (by lag and start), in order."""
    best = np.zeros(worth.shape[1])
    starts = np.arange(len(best)) - 1  # The frame before: no interval ends there.
    for end in range(_SHORTEST, len(best)):
        lags = np.arange(_SHORTEST, min(len(worth) - 1, end) + 1)
        totals = best[end - lags] + worth[lags, end - lags]
        best[end] = max(best[end - 1], totals.max())
        if best[end] > best[end - 1]:
            starts[end] = end - lags[totals.argmax()]
    found: list[tuple[int, int]] = []
    end = len(best) - 1
    while end > 0:
        if (start := int(starts[end])) < end - 1:
            found.append((start, end))
        end = start
    return found[::-1]


def labelled_starts(phases: Int[np.ndarray, " N"]) -> tuple[Int[np.ndarray, " starts"], int]:
    """Where the phase of the first labelled frame begins, again and again, and the frame after the last labelled."""
    labelled = np.flatnonzero(phases >= 0)
    is_first = phases == phases[labelled[0]]
    return np.flatnonzero(np.diff(is_first.astype(np.int8), prepend=0) == 1), int(labelled[-1]) + 1


def _start_error(cuts: Sequence[int], starts: Int[np.ndarray, " starts"], end: int) -> float:
    """Mean distance of labelled starts from where they are expected, as a share of the mean repetition.

    A cycle may be cut in any pose: a start is expected as far from the nearest cut as the others of the video are in
    the mean, and so is the end of the last repetition. Half a repetition where there is no cut within half of one.
    """
    length = (end - starts[0]) / len(starts)
    distances = np.array([*starts, end])[:, None] - np.array(cuts)
    nearest = np.take_along_axis(distances, np.abs(distances).argmin(1)[:, None], 1)[:, 0] / length
    turns = np.exp(2j * np.pi * nearest)
    errors = np.abs(np.angle(turns * np.conj(turns.sum() - turns))) / (2 * np.pi)
    return float(np.where(np.abs(nearest) > 0.5, 0.5, errors).mean())


def _errors(video: EmbeddedVideo) -> tuple[float, float, float]:
    """Relative error of the count, that of the plain control, and error of the starts; zeros without labels."""
    if not (video.phases >= 0).any():
        return 0.0, 0.0, 0.0
    starts, end = labelled_starts(video.phases)
    truth = len(starts)
    found = find_repetitions(video.embeddings)
    # What is not labelled may be anything: the part of each repetition counts that is in the labelled part.
    inside = [max(0, min(one.end, end) - max(one.start, starts[0])) / (one.end - one.start) for one in found]
    count = max(1, round(sum(inside)))
    plain = autocorrelation_count(video.embeddings[starts[0] : end])
    cuts = [frame for one in found for frame in (one.start, one.end)]
    return abs(count - truth) / truth, abs(plain - truth) / truth, _start_error(cuts, starts, end)


def _run(videos: Videos) -> dict[str, Result]:
    labelled = np.array([(video.phases >= 0).any() for video in videos.test], np.float64)
    errors = np.array([_errors(video) for video in videos.test])
    left_out = {"videos_without_labels": int((labelled == 0).sum())}
    return {
        metric.name: ratio_of_sums(values, labelled, left_out)
        for metric, values in zip(TASK.metrics, errors.T, strict=True)
    }


_COUNTED = "difference from the number of labelled repetitions, as a share; each starts with the first labelled phase"
_START = "distance of labelled starts from where cuts and other starts put them, in repetitions; chance .25 or more"
TASK = Task(
    name="repetitions",
    needs=("frame labels",),
    metrics=tuple(
        Metric(
            name=f"repetition_{name}",
            title=f"repetitions: {title} (lower is better)",
            meaning=meaning,
            higher_is_better=False,
            by_action=name != "count_error_plain",
        )
        for name, title, meaning in (
            ("count_error", "count error", _COUNTED),
            ("count_error_plain", "count error of the autocorrelation's first peak", _COUNTED),
            ("start_error", "start error", _START),
        )
    ),
    run=_run,
)
