"""Figures of a sweep: score against each parameter, score against epochs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import offset_copy

from carl_ray.evaluation.nearest_frames import printable
from carl_ray.report import tables
from carl_ray.report.figures import PHASE_COLORS, STYLE, Picture, encoded_png
from carl_ray.report.sweep_comparisons import comparable_trials, value_text

_MOST_NUMBERED = 16
"""With more trials their numbers would hide the points."""
_LONGEST_LABEL = 14


def parameter_plots(document: Mapping[str, Any], numbers: Mapping[str, int]) -> Picture | None:
    """Scores of the finished trials with their intervals against each parameter, as PNG.

    None without a parameter or a finished trial with a defined score.

    Args:
        document: The sweep's document (`carl_ray.sweeps.sweep_document.sweep_document`).
        numbers: The number of each trial on the page, by id.
    """
    trials, parameters = comparable_trials(document), document["parameters"]
    if not trials or not parameters:
        return None
    columns = min(3, len(parameters))
    rows = math.ceil(len(parameters) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.3 * columns + 0.4, 2.6 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        grid[0, 0].set_ylim(*_score_limits(document, trials))
        for axes, name in zip(grid.flat, parameters, strict=False):
            _plot_parameter(figure, axes, document, name, trials, numbers)
        for axes in grid[:, 0]:
            axes.set_ylabel(tables.title_of(document["metric"]))
        for axes in grid.flat[len(parameters) :]:
            axes.remove()
        return encoded_png(figure)


def _plot_parameter(
    figure: Figure,
    axes: Axes,
    document: Mapping[str, Any],
    name: str,
    trials: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, int],
) -> None:
    default = document["parameters"][name]["default"]
    values = [trial["values"].get(name, default) for trial in trials]
    xs, categories = _positions([*values, default])
    if categories is not None:
        axes.set_xticks(range(len(categories)), [_label(word) for word in categories])
        axes.set_xlim(-0.5, len(categories) - 0.5)
    elif document["parameters"][name]["log"] and min(xs) > 0:
        axes.set_xscale("log")
        margin = max((max(xs) / min(xs)) ** 0.12, 1.05)
        axes.set_xlim(min(xs) / margin, max(xs) * margin)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        spread = max(xs) - min(xs) or 1.0
        axes.set_xlim(min(xs) - 0.12 * spread, max(xs) + 0.12 * spread)
    axes.set_xlabel(_label(name, 40))
    axes.axvline(xs[-1], color=PHASE_COLORS[5], linestyle="--", linewidth=0.8)
    by_value: dict[float, list[Mapping[str, Any]]] = defaultdict(list)
    for trial, x in zip(trials, xs, strict=False):
        by_value[x].append(trial)
    for x, beside in by_value.items():
        for index, trial in enumerate(beside):
            # Trials with the same value are drawn side by side, a few points apart.
            points = (index - (len(beside) - 1) / 2) * min(5.0, 40 / len(beside))
            transform = offset_copy(axes.transData, figure, x=points, units="points")
            mean, low, high = (_shown(document, trial["score"][key]) for key in ("mean", "low", "high"))
            style: dict[str, Any] = {"transform": transform, **_marker(document, trial)}
            if low is not None and high is not None:
                axes.plot(
                    [x, x], [low, high], color=style["color"], linewidth=1.0, alpha=0.6, transform=transform
                )
            axes.plot([x], [mean or 0.0], linestyle="", **style)
            if len(trials) <= _MOST_NUMBERED:
                axes.annotate(
                    str(numbers[trial["id"]]),
                    (x, mean or 0.0),
                    (points + 4, 3),
                    textcoords="offset points",
                    fontsize=6,
                )


def epoch_plot(document: Mapping[str, Any], numbers: Mapping[str, int]) -> Picture | None:
    """Scores at the rungs against epochs, a line a trial, as PNG; dashed where a trial is not done.

    None where no trial has a score. A rung without a defined score is a gap.

    Args:
        document: The sweep's document (`carl_ray.sweeps.sweep_document.sweep_document`).
        numbers: The number of each trial on the page, by id.
    """
    measured = [trial for trial in document["trials"] if any(r["score"] is not None for r in trial["rungs"])]
    if not measured:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        axes = figure.subplots()
        for trial in sorted(measured, key=lambda trial: trial["id"] == document["best"]):
            epochs = [rung["epoch"] for rung in trial["rungs"]]
            scores = [_shown(document, rung["score"]) for rung in trial["rungs"]]
            heights = np.array([np.nan if score is None else score for score in scores])
            line = "-" if trial["status"] == "done" else "--"
            axes.plot(epochs, heights, linestyle=line, linewidth=1.2, **_marker(document, trial))
            if len(measured) <= _MOST_NUMBERED and not np.isnan(heights[-1]):
                axes.annotate(
                    str(numbers[trial["id"]]),
                    (epochs[-1], heights[-1]),
                    (5, -2),
                    textcoords="offset points",
                    fontsize=7,
                )
        axes.set(xlabel="epoch", ylabel=tables.title_of(document["metric"]), xticks=document["rungs"])
        return encoded_png(figure)


def _marker(document: Mapping[str, Any], trial: Mapping[str, Any]) -> dict[str, Any]:
    """Best: a star; base: a diamond; unfinished: grey."""
    if trial["id"] == document["best"]:
        return {"marker": "*", "markersize": 11, "color": "#000000", "zorder": 4}
    if trial["is_default"]:
        return {"marker": "D", "markersize": 5, "color": PHASE_COLORS[5], "zorder": 3}
    return {
        "marker": "o",
        "markersize": 4,
        "color": PHASE_COLORS[0] if trial["status"] == "done" else "#999999",
    }


def _shown(document: Mapping[str, Any], value: float | None) -> float | None:
    """The value in the unit of the metric's title: shares in per cent."""
    return None if value is None else value * (100 if "(%)" in tables.title_of(document["metric"]) else 1)


def _score_limits(document: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Limits of the score axis: all means, and intervals as far as they do not flatten the differences."""
    scores = [[_shown(document, trial["score"][key]) for key in ("mean", "low", "high")] for trial in trials]
    means = [mean for mean, _, _ in scores if mean is not None]
    ends = [*means, *(end for _, *interval in scores for end in interval if end is not None)]
    spread = max(means) - min(means) or max(ends) - min(ends) or 1.0
    low, high = max(min(ends), min(means) - spread), min(max(ends), max(means) + spread)
    return low - 0.05 * spread, high + 0.05 * spread


def _positions(values: Sequence[Any]) -> tuple[list[float], list[str] | None]:
    """Positions on an axis, and the categories at 0, 1, … where not all values are finite numbers."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        return [float(value) for value in values], None
    words = [value_text(value) for value in values]
    categories = sorted(set(words))
    return [float(categories.index(word)) for word in words], categories


def _label(text: str, longest: int = _LONGEST_LABEL) -> str:
    # Glyphs that Matplotlib's font lacks would be boxes, with a warning each.
    text = printable(text).encode("latin-1", "replace").decode("latin-1")
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
