"""What a metric returns: its value, what it left out, and its value on other draws of the test videos.

Every metric is a mean over videos, over pairs of videos or over boundaries of phases, so that what one video
contributes is kept and the metric on a bootstrap sample is a matrix product, not a second evaluation.

Each of the three kinds of result has a `value` (NaN where undefined); `left_out`, numbers of what was undefined
or missing by name, zeros included; `resampled`; and `can_vary`: whether enough test videos contribute for a
resample of them to say anything.

Legend: N test videos, B boundaries between phases, draws: samples of N test videos with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

# A sum of squares about the mean that is smaller than this part of the sum of squares is rounding, not spread.
_NO_SPREAD = 1e-12


@dataclass(frozen=True, eq=False)
class RatioOfSums:
    """sum of numerators / sum of denominators over videos: accuracies, and means over videos.

    A video that contributes nothing has denominator 0.
    """

    numerators: Float[np.ndarray, " N"]
    """By video: right frames, or the video's own value."""
    denominators: Float[np.ndarray, " N"]
    """By video: all frames, or 1."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Numbers of what was undefined or missing, by name."""

    @property
    def value(self) -> float:
        """The ratio; NaN where no video contributes."""
        return _value(self)

    @property
    def num_videos(self) -> int:
        """N."""
        return len(self.numerators)

    @property
    def can_vary(self) -> bool:
        """Whether at least two videos contribute."""
        return int((self.denominators > 0).sum()) >= 2

    def resampled(self, weights: Int[np.ndarray, "draws N"]) -> Float[np.ndarray, " draws"]:
        """The metric if each video occurred as often as its weight says, NaN where undefined."""
        return _quotient(weights @ self.numerators, weights @ self.denominators)


@dataclass(frozen=True, eq=False)
class PairMean:
    """Mean over the ordered pairs of different videos: Kendall's tau and the alignment error.

    A video that is drawn twice is no pair with itself: such pairs are perfect by construction.
    """

    values: Float[np.ndarray, "N N"]
    """By ordered pair (first, second); NaN on the diagonal and where undefined."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Numbers of what was undefined or missing, by name."""

    @property
    def value(self) -> float:
        """The mean; NaN where no pair is defined."""
        return _value(self)

    @property
    def num_videos(self) -> int:
        """N."""
        return len(self.values)

    @property
    def can_vary(self) -> bool:
        """Whether at least three videos have a defined pair: with two there is one pair, however drawn."""
        defined = ~np.isnan(self.values)
        return int((defined | defined.T).any(1).sum()) >= 3

    def resampled(self, weights: Int[np.ndarray, "draws N"]) -> Float[np.ndarray, " draws"]:
        """The metric if each video occurred as often as its weight says, NaN where undefined.

        Needs twice the memory of the weights as float64.
        """
        drawn = weights.astype(np.float64)
        defined = ~np.isnan(self.values)
        sums = np.einsum("ij,ij->i", drawn @ np.where(defined, self.values, 0), drawn)
        return _quotient(sums, np.einsum("ij,ij->i", drawn @ defined.astype(np.float64), drawn))


@dataclass(frozen=True, eq=False)
class MeanRSquared:
    """Mean over boundaries of R^2 = 1 - SSres / SStot, SStot about the mean target of the frames drawn.

    A boundary without spread of its targets, or without any frame, is no part of the mean.
    """

    counts: Float[np.ndarray, "B N"]
    """Frames by boundary and video; 0 where the video has no part in it."""
    sums: Float[np.ndarray, "B N"]
    """Sums of the targets over those frames."""
    squares: Float[np.ndarray, "B N"]
    """Sums of the squared targets."""
    residual_squares: Float[np.ndarray, "B N"]
    """Sums of the squared differences between target and prediction."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Numbers of what was undefined or missing, by name."""

    @property
    def value(self) -> float:
        """The mean; NaN where no boundary is defined."""
        return _value(self)

    @property
    def num_videos(self) -> int:
        """N."""
        return self.counts.shape[1]

    @property
    def can_vary(self) -> bool:
        """Whether at least two videos contribute."""
        return int((self.counts > 0).any(0).sum()) >= 2

    def resampled(self, weights: Int[np.ndarray, "draws N"]) -> Float[np.ndarray, " draws"]:
        """The metric if each video occurred as often as its weight says, NaN where undefined."""
        r_squared = self.by_boundary(weights)
        defined = ~np.isnan(r_squared)
        return _quotient(np.where(defined, r_squared, 0).sum(1), defined.sum(1))

    def by_boundary(self, weights: Int[np.ndarray, "draws N"]) -> Float[np.ndarray, "draws B"]:
        """R^2 of each boundary on each draw; NaN where undefined."""
        squares = weights @ self.squares.T
        total = squares - _quotient((weights @ self.sums.T) ** 2, weights @ self.counts.T)
        return 1 - _quotient(
            weights @ self.residual_squares.T, np.where(total > _NO_SPREAD * squares, total, 0)
        )


Result = RatioOfSums | PairMean | MeanRSquared


@dataclass(frozen=True)
class Interval:
    """A metric with its confidence interval."""

    value: float
    """The metric; NaN where undefined."""
    low: float
    """Lower end; NaN where there is no interval."""
    high: float
    """Upper end; NaN where there is no interval."""


def bootstrap(
    results: Sequence[Result], *, num_draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """The plain mean of the results' values with its percentile bootstrap interval over test videos.

    The videos of each result are resampled on their own. A result whose value is NaN has no part in the
    mean; a draw in which one of the others is undefined is ignored. There is no interval where a result that
    has a part rests on too few videos to vary (`can_vary`): one of zero width would claim certainty.

    Args:
        results: One, or one for each action (SPEC section 5: PennAction is evaluated by action).
        num_draws: Bootstrap samples.
        level: Share of the draws inside the interval.
        seed: The same seed and numbers of videos give the same draws, whatever the metric.

    Raises:
        ValueError: no result, `num_draws` below 1, or a level outside (0, 1).
    """
    if not results:
        raise ValueError("bootstrap needs at least one result, got none")
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level:g}")
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
    """How often each video is drawn in each of the samples with replacement.

    One video less than there are is drawn: percentile intervals of samples as large as the set are too narrow
    by the factor sqrt((N - 1) / N), which matters for the few test videos of an action.
    """
    count = result.num_videos
    return rng.multinomial(max(count - 1, min(count, 2)), np.full(count, 1 / count), size=num_draws)


def _value(result: Result) -> float:
    return float(result.resampled(np.ones((1, result.num_videos), dtype=np.int64))[0])


def _quotient(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """The quotients, float64; NaN where a denominator is 0."""
    undefined = np.full(numerators.shape, np.nan)
    return np.divide(numerators, denominators, out=undefined, where=denominators > 0)
