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

_SHORTEST = 8
"""Frames of a repetition."""
_LONGEST_SHARE = 0.8
"""Of the video."""
_MOST_CELLS = 1 << 24
"""Memory is some hundred megabytes for so many pairs of a frame and a lag; long videos have a smaller L."""
_SMOOTHING = 2.0
"""Standard deviation in frames."""
_ENDS = 0.15
"""Share of an interval at each end that is not "between"."""
_WINDOW = 0.15
"""Share of an interval on each side over which similarities are averaged."""
_COST = 0.05
"""Keeps idle frames out: they resemble one another as much as the frames between them."""
_LEAST_CONTRAST = 0.25
"""A video whose intervals are worth less a frame does not repeat: so much is found in noise."""
_SAME = 1e-6
"""Distance from the mean of frames that equal it."""
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

    The longest are .8 of the video, and 16.7 million frames divided by N.

    Args:
        embeddings: Of all frames; normalised here.

    Raises:
        ValueError: as `unit_frames`.
    """
    units = centred_units(embeddings)
    num_frames = len(units)
    longest = min(int(_LONGEST_SHARE * num_frames), _MOST_CELLS // max(num_frames, 1))
    if longest < _SHORTEST:
        return [Repetition(0, num_frames, 0.0)] if num_frames else []
    similarities = _Similarities(units, longest)
    found = []
    for start, end in _best_chain(similarities.worth(), num_frames):
        contrast, between = (values[start] for values in similarities.returns(end - start))
        found.append((start, end, contrast, np.clip(contrast / max(1 - between, _SAME), 0, 1)))
    lengths = np.array([end - start for start, end, *_ in found])
    contrast = sum(lengths * [one[2] for one in found]) / max(lengths.sum(), 1)
    if contrast < _LEAST_CONTRAST:
        confidence = sum(lengths * [one[3] for one in found]) / num_frames
        return [Repetition(0, num_frames, float(confidence))]
    return [Repetition(start, end, float(confidence)) for start, end, _, confidence in found]


def autocorrelation_count(embeddings: Float[np.ndarray, "N width"]) -> int:
    """Number of repetitions by the first peak of the autocorrelation of all frames, at least 1: a plain control.

    Raises:
        ValueError: as `unit_frames`.
    """
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

    Frames weigh by their squared speed: a mean of all would lie where the video is idle.

    Raises:
        ValueError: as `unit_frames`.
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


class _Similarities:
    """Similarities of all frames that are at most L frames apart."""

    def __init__(self, units: Float64[np.ndarray, "N width"], longest: int) -> None:
        self._count = len(units)
        shape = (longest + 1, self._count)
        self._at: Float32[np.ndarray, "L+1 N"] = np.zeros(shape, np.float32)
        self._before = np.zeros(shape, np.float32)
        for lag in range(longest + 1):
            products = np.einsum("ij,ij->i", units[: self._count - lag], units[lag:])
            self._at[lag, : self._count - lag] = self._before[lag, lag:] = products
        # Sums over the frames up to a lag after each frame, and before it.
        self._after = self._at.cumsum(0)
        self._before.cumsum(0, out=self._before)

    def returns(self, lag: int) -> tuple[Float32[np.ndarray, " starts"], Float32[np.ndarray, " starts"]]:
        """Of the intervals of a length: how much the ends resemble one another more than the between, and that."""
        from scipy.ndimage import uniform_filter1d

        starts, ends = slice(0, self._count - lag), slice(lag, self._count)
        margin = max(1, int(_ENDS * lag))
        first, last = margin, lag - margin - 1
        sums = self._after[last, starts] - self._after[first, starts]
        sums = sums + self._before[last, ends] - self._before[first, ends]
        width = 2 * round(_WINDOW * lag) + 1
        between = uniform_filter1d(sums / (2 * (last - first)), width, mode="nearest")
        return uniform_filter1d(self._at[lag, starts], width, mode="nearest") - between, between

    def worth(self) -> Float32[np.ndarray, "L+1 N"]:
        """Worth of the interval of each lag that ends at each frame; -inf: there is none."""
        worth = np.full(self._at.shape, -np.inf, np.float32)
        for lag in range(_SHORTEST, len(worth)):
            worth[lag, lag:] = lag**0.5 * (self.returns(lag)[0] - _COST)
        return worth


def _best_chain(worth: Float32[np.ndarray, "L+1 N"], num_frames: int) -> list[tuple[int, int]]:
    """Disjoint intervals (start, end) of the greatest total worth, in order."""
    best = np.zeros(num_frames)
    starts = np.full(num_frames, -1)
    for end in range(1, num_frames):
        best[end] = best[end - 1]
        lags = np.arange(_SHORTEST, min(len(worth) - 1, end) + 1)
        if len(lags):
            totals = best[end - lags] + worth[lags, end]
            place = int(totals.argmax())
            if totals[place] > best[end]:
                best[end], starts[end] = totals[place], end - lags[place]
    found: list[tuple[int, int]] = []
    end = num_frames - 1
    while end > 0:
        if starts[end] >= 0:
            found.append((int(starts[end]), end))
            end = int(starts[end])
        else:
            end -= 1
    return found[::-1]


def labelled_starts(phases: Int[np.ndarray, " N"]) -> tuple[Int[np.ndarray, " starts"], int]:
    """Frames in which a labelled repetition starts, and the frame after the last labelled one.

    A repetition starts where the phase of the first labelled frame begins again.
    """
    labelled = np.flatnonzero(phases >= 0)
    if not len(labelled):
        return labelled, 0
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
    """Relative error of the count, that of the plain control, and error of the starts."""
    starts, end = labelled_starts(video.phases)
    found = find_repetitions(video.embeddings)
    # What is not labelled may be anything: the part of each repetition counts that is in the labelled part.
    inside = [max(0, min(one.end, end) - max(one.start, starts[0])) / (one.end - one.start) for one in found]
    count = max(1, round(sum(inside)))
    plain = autocorrelation_count(video.embeddings[starts[0] : end])
    cuts = [frame for one in found for frame in (one.start, one.end)]
    return (
        abs(count - len(starts)) / len(starts),
        abs(plain - len(starts)) / len(starts),
        _start_error(cuts, starts, end),
    )


def _run(videos: Videos) -> dict[str, Result]:
    labelled = np.array([(video.phases >= 0).any() for video in videos.test])
    errors = np.zeros((len(labelled), len(TASK.metrics)))
    errors[labelled] = np.array([_errors(v) for v in videos.test if (v.phases >= 0).any()]).reshape(-1, 3)
    left_out = {"videos_without_labels": int((~labelled).sum())}
    return {
        metric.name: ratio_of_sums(values, labelled.astype(np.float64), left_out)
        for metric, values in zip(TASK.metrics, errors.T, strict=True)
    }


_COUNTED = "the error of the number of repetitions in the labelled part of a video, as a share of that number"
TASK = Task(
    name="repetitions",
    needs=("frame labels",),
    metrics=(
        Metric(
            name="repetition_count_error",
            title="repetitions: count error (lower is better)",
            meaning=f"{_COUNTED}, where `carl-ray segments` finds them; a repetition starts where the first labelled "
            "phase begins again",
            higher_is_better=False,
            by_action=True,
        ),
        Metric(
            name="repetition_count_error_plain",
            title="repetitions: count error of the first peak (lower is better)",
            meaning=f"{_COUNTED}, where they are counted by the first peak of the frames' autocorrelation there, the "
            "plain way",
            higher_is_better=False,
        ),
        Metric(
            name="repetition_start_error",
            title="repetitions: start error (lower is better)",
            meaning="mean distance of a labelled start from where the nearest cut and the other starts of the video "
            "lead one to expect it, as a share of a repetition; .25 by chance",
            higher_is_better=False,
            by_action=True,
        ),
    ),
    run=_run,
)
