"""Axes of plots that a template draws: where values and their labels lie, numbers and words alike."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from carl_ray.evaluation.nearest_frames import printable


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    """0 to 1, or pixels where the axis is part of a plot."""
    label: str


@dataclass(frozen=True)
class Axis:
    """Where values lie between the two ends of an axis.

    Numbers lie between `low` and `high`, evenly or (`log`) by their logarithms; where `words` is not empty,
    values are words, evenly spaced in that order.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    words: tuple[str, ...] = ()

    def place(self, value: Any) -> float:
        """0 at the low end to 1 at the high end; 0.5 where the ends are the same."""
        if self.words:
            return (self.words.index(value_text(value)) + 0.5) / len(self.words)
        if self.low == self.high:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, values: Sequence[Any] = (), *, gap: float) -> tuple[Tick, ...]:
        """Labelled places at least `gap` (a share of the axis) apart.

        Words all have one. Of numbers the `values` that were tried, where these are far enough apart to be
        read, otherwise round ones.
        """
        if self.words:
            return tuple(Tick(self.place(word), word) for word in self.words)
        tried = sorted(set(values))
        if not tried or not _apart([self.place(value) for value in tried], gap):
            tried = self._round_numbers(gap)
        return tuple(Tick(self.place(value), value_text(value)) for value in tried)

    def _round_numbers(self, gap: float) -> list[float]:
        if self.low == self.high:
            return [self.low]
        rows = [MaxNLocator(nbins, steps=[1, 2, 5, 10]).tick_values(self.low, self.high) for nbins in (5, 3)]
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            rows = [
                *(
                    # Through text: 3e-1 is 0.3, and the product lies beyond it.
                    [float(f"{digit}e{exponent}") for exponent in exponents for digit in digits]
                    for digits in _DIGITS
                ),
                *rows,
            ]
        inside = [[float(x) for x in row if self.low <= x <= self.high] for row in rows]
        fitting = [row for row in inside if len(row) > 1 and _apart([self.place(x) for x in row], gap)]
        return fitting[0] if fitting else [self.low, self.high]


_DIGITS = ((1, 2, 5), (1, 3), (1,))  # of a decade of a logarithmic axis, while they fit


def _apart(places: Sequence[float], gap: float) -> bool:
    return all(second - first >= gap for first, second in itertools.pairwise(places))


def axis_of(values: Sequence[Any], *, log: bool = False) -> Axis:
    """The axis that values need: of numbers where all are finite numbers, otherwise of words.

    Args:
        values: Numbers, words, truth values, none; at least one.
        log: Logarithmic, where all are positive numbers.
    """
    if all(is_number(value) for value in values):
        numbers = [float(value) for value in values]
        return Axis(min(numbers), max(numbers), log=log and min(numbers) > 0)
    numbers_first = sorted({value_text(value): value for value in values}.items(), key=_word_order)
    return Axis(words=tuple(text for text, _ in numbers_first))


def _word_order(word: tuple[str, Any]) -> tuple[bool, float, str]:
    text, value = word
    return (False, float(value), text) if is_number(value) else (True, 0.0, text)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, truth values aside."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def value_text(value: Any) -> str:
    """A parameter's value as the page shows it: numbers with up to six digits."""
    match value:
        case None:
            return "none"
        case str():
            return printable(value)
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:.6g}".replace("-", "−")
        case _:
            return json.dumps(value, ensure_ascii=False)
