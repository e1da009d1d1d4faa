"""Results of metrics, and their bootstrap confidence intervals over test videos.

Every metric is a mean over videos, over pairs of videos or over boundaries of phases. Its result keeps what each video
contributes, so that the metric on a bootstrap sample is a matrix product and not a second evaluation.

Legend: N test videos, B boundaries between phases, draws: samples of N test videos with replacement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# A sum of squares about the mean below this share of the sum of squares is rounding, not spread.
_NO_SPREAD = 1e-12


@dataclass(frozen=True, eq=False)
class Result:
    """A metric over N test videos that can be computed on resamples of them."""

    statistics: Float[np.ndarray, "... N"]
    """What each video contributes."""
    combine: Callable[[np.ndarray, Int[np.ndarray, "draws N"]], Float[np.ndarray, " draws"]]
    """The metric of the statistics if each video occurred as often as its weight says; NaN where undefined."""
    can_vary: bool
    """Whether enough videos contribute for a bootstrap sample to differ."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Numbers of what was undefined or missing, by name; zeros included."""

    @property
    def num_videos(self) -> int:
        """N."""
        return self.statistics.shape[-1]

    @property
    def value(self) -> float:
        """The metric; NaN where undefined."""
        return float(self.resampled(np.ones((1, self.num_videos), dtype=np.int64))[0])

    def resampled(self, weights: Int[np.ndarray, "draws N"]) -> Float[np.ndarray, " draws"]:
        """The metric with each video weighted by its count; NaN where undefined."""
        return self.combine(self.statistics, weights)


def ratio_of_sums(
    numerators: Float[np.ndarray, " N"],
    denominators: Float[np.ndarray, " N"],
    left_out: dict[str, int] | None = None,
) -> Result:
    """Sum of numerators / sum of denominators: accuracies, means over videos.

    Args:
        numerators: By video: correct frames, or the value of the video.
        denominators: By video: all frames, or 1; 0 for a video that contributes nothing.
        left_out: As in `Result`.

    Returns:
        Statistics (2, N): numerators and denominators.
    """

    def combine(statistics: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return _quotient(weights @ statistics[0], weights @ statistics[1])

    can_vary = int((denominators > 0).sum()) >= 2
    return Result(np.stack([numerators, denominators]), combine, can_vary, left_out or {})


def of_some(result: Result, chosen: Bool[np.ndarray, " N"]) -> Result:
    """A ratio of sums over some videos as one over all, to which the others contribute nothing."""
    statistics = np.zeros((2, len(chosen)))
    statistics[:, chosen] = result.statistics
    return ratio_of_sums(statistics[0], statistics[1], result.left_out)


def pair_mean(values: Float[np.ndarray, "N N"], left_out: dict[str, int] | None = None) -> Result:
    """Mean over ordered pairs of different videos: tau, the alignment error.

    A video that is drawn twice forms no pair with itself: such pairs are perfect by construction. With two videos
    there is one pair, however they are drawn, so three are needed for the mean to vary.

    Args:
        values: By ordered pair (first, second); NaN on the diagonal and where undefined.
        left_out: As in `Result`.

    Returns:
        Statistics (N, N): the values.
    """

    def combine(statistics: np.ndarray, weights: np.ndarray) -> np.ndarray:
        drawn = weights.astype(np.float64)
        defined = ~np.isnan(statistics)
        sums = np.einsum("ij,ij->i", drawn @ np.where(defined, statistics, 0), drawn)
        return _quotient(sums, np.einsum("ij,ij->i", drawn @ defined.astype(np.float64), drawn))

    defined = ~np.isnan(values)
    return Result(values, combine, int((defined | defined.T).any(1).sum()) >= 3, left_out or {})


def mean_r_squared(statistics: Float[np.ndarray, "4 B N"], left_out: dict[str, int] | None = None) -> Result:
    """Mean over boundaries of R^2 = 1 - SSres / SStot.

    A boundary without spread of its targets, or without any frame, has no part in the mean.

    Args:
        statistics: By boundary and video: number of frames, sum of their targets, sum of the squared targets, sum of
            the squared differences between target and prediction; zeros for a video without part in the boundary.
        left_out: As in `Result`.
    """

    def combine(statistics: np.ndarray, weights: np.ndarray) -> np.ndarray:
        r_squared = r_squared_by_boundary(statistics, weights)
        defined = ~np.isnan(r_squared)
        return _quotient(np.where(defined, r_squared, 0).sum(1), defined.sum(1))

    can_vary = int((statistics[0] > 0).any(0).sum()) >= 2
    return Result(statistics, combine, can_vary, left_out or {})


def fixed_value(value: float, num_videos: int) -> Result:
    """A number of all videos together, which has no interval."""
    return Result(np.empty(num_videos), lambda _, weights: np.full(len(weights), value), can_vary=False)


def r_squared_by_boundary(
    statistics: Float[np.ndarray, "4 B N"], weights: Int[np.ndarray, "draws N"]
) -> Float[np.ndarray, "draws B"]:
    """R^2 of each boundary on each draw; NaN where undefined."""
    counts, sums, squares, residual_squares = (weights @ statistic.T for statistic in statistics)
    total = squares - _quotient(sums**2, counts)
    return 1 - _quotient(residual_squares, np.where(total > _NO_SPREAD * squares, total, 0))


class Interval(NamedTuple):
    """A metric with its confidence interval; NaN where undefined."""

    value: float
    low: float
    high: float


def bootstrap(
    results: Sequence[Result], *, num_draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Plain mean of results with its percentile bootstrap interval over videos.

    The videos of each result are resampled independently. A result whose value is NaN has no part in the mean; a
    draw in which one of the others is undefined is ignored. There is no interval where one of the others has too few
    videos to vary (`can_vary`): an interval of zero width would claim certainty.

    Args:
        results: One, or one for each action.
        num_draws: Bootstrap samples.
        level: Share of the draws inside the interval.
        seed: The same seed and numbers of videos give the same draws, whatever the metric.
    """
    generators = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(len(results))]
    defined = [
        (result, generator)
        for result, generator in zip(results, generators, strict=True)
        if not np.isnan(result.value)
    ]
    if not defined:
        return Interval(np.nan, np.nan, np.nan)
    value = float(np.mean([result.value for result, _ in defined]))
    if not all(result.can_vary for result, _ in defined):
        return Interval(value, np.nan, np.nan)
    draws = np.mean([result.resampled(_weights(result, num_draws, rng)) for result, rng in defined], axis=0)
    if np.isnan(draws).all():
        return Interval(value, np.nan, np.nan)
    low, high = np.nanpercentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return Interval(value, float(low), float(high))


def _weights(result: Result, num_draws: int, rng: np.random.Generator) -> Int[np.ndarray, "draws N"]:
    """How often each video occurs in each sample with replacement.

    A sample has N - 1 videos: percentile intervals of samples of N are too narrow by the factor sqrt((N - 1) / N),
    which matters for the few test videos of an action.
    """
    count = result.num_videos
    return rng.multinomial(max(count - 1, min(count, 2)), np.full(count, 1 / count), size=num_draws)


def _quotient(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """The quotients, float64; NaN where a denominator is 0."""
    undefined = np.full(numerators.shape, np.nan)
    return np.divide(numerators, denominators, out=undefined, where=denominators > 0)
