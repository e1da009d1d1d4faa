"""Figures of a sweep: score against each parameter, score against epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from carl_ray.evaluation.nearest_frames import printable
from carl_ray.evaluation.tasks import metric_of
from carl_ray.report.figures import PHASE_COLORS, STYLE, Picture, encoded_png

_MOST_NUMBERED = 16
"""With more trials their numbers would hide the points."""


def parameter_plots(document: Mapping[str, Any], numbers: Mapping[str, int]) -> Picture | None:
    """Scores of the finished trials with their intervals against each parameter, as PNG.

    None without a parameter or a finished trial with a defined score.

    Args:
        document: The sweep's document (`carl_ray.sweeps.results.sweep_document`).
        numbers: The number of each trial on the page, by id.
    """
    trials = [trial for trial in document["trials"] if trial["status"] == "done" and _score(document, trial)]
    if not trials or not document["parameters"]:
        return None
    columns = min(3, len(document["parameters"]))
    rows = math.ceil(len(document["parameters"]) / columns)
    means = [_score(document, trial)[0] for trial in trials]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.3 * columns + 0.4, 2.6 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        # Wide intervals are cut off: they would flatten the differences.
        spread = 0.7 * np.ptp(means) or 0.1 * abs(means[0]) or 1.0
        grid[0, 0].set_ylim(min(means) - spread, max(means) + spread)
        for axes, (name, parameter) in zip(grid.flat, document["parameters"].items(), strict=False):
            values = [trial["values"].get(name, parameter["default"]) for trial in trials]
            places: list[Any] = [*values, parameter["default"]]
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in places):
                words = sorted({str(value) for value in places})
                axes.set_xticks(range(len(words)), [_label(word, 14) for word in words])
                places = [words.index(str(value)) for value in places]
            elif parameter["log"] and 0 < min(places) < max(places):
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_formatter(NullFormatter())
            for trial, place in zip(trials, places, strict=False):
                mean, low, high = _score(document, trial)
                style = _marker(document, trial)
                axes.errorbar([place], [mean], [[mean - low], [high - mean]], elinewidth=0.8, **style)
                if len(trials) <= _MOST_NUMBERED:
                    offset = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": 6}
                    axes.annotate(str(numbers[trial["id"]]), (place, mean), **offset)
            axes.axvline(places[-1], color=PHASE_COLORS[5], linestyle="--", linewidth=0.8)
            axes.set_xlabel(_label(name, 40))
        for axes in grid[:, 0]:
            axes.set_ylabel(metric_of(document["metric"]).title)
        for axes in grid.flat[len(document["parameters"]) :]:
            axes.remove()
        return encoded_png(figure)


def epoch_plot(document: Mapping[str, Any], numbers: Mapping[str, int]) -> Picture | None:
    """Scores at the rungs against epochs, a line a trial, as PNG; dashed where a trial is not done.

    None where no trial has a score. A rung without a defined score is a gap.

    Args:
        document: The sweep's document (`carl_ray.sweeps.results.sweep_document`).
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
            heights = _unit(document) * np.array([rung["score"] for rung in trial["rungs"]], float)
            line = "-" if trial["status"] == "done" else "--"
            axes.plot(epochs, heights, linewidth=1.2, **_marker(document, trial) | {"linestyle": line})
            if len(measured) <= _MOST_NUMBERED and not np.isnan(heights[-1]):
                offset: dict[str, Any] = {"xytext": (5, -2), "textcoords": "offset points", "fontsize": 7}
                axes.annotate(str(numbers[trial["id"]]), (epochs[-1], heights[-1]), **offset)
        axes.set(xlabel="epoch", ylabel=metric_of(document["metric"]).title, xticks=document["rungs"])
        return encoded_png(figure)


def _marker(document: Mapping[str, Any], trial: Mapping[str, Any]) -> dict[str, Any]:
    """Best: a star; base: a diamond; unfinished: grey."""
    if trial["id"] == document["best"]:
        return {"marker": "*", "markersize": 11, "color": "#000000", "zorder": 4, "linestyle": ""}
    if trial["is_default"]:
        return {"marker": "D", "markersize": 5, "color": PHASE_COLORS[5], "zorder": 3, "linestyle": ""}
    color = PHASE_COLORS[0] if trial["status"] == "done" else "#999999"
    return {"marker": "o", "markersize": 4, "color": color, "linestyle": ""}


def _unit(document: Mapping[str, Any]) -> float:
    """Shares are shown in per cent."""
    return 100.0 if metric_of(document["metric"]).is_share else 1.0


def _score(document: Mapping[str, Any], trial: Mapping[str, Any]) -> tuple[float, ...]:
    """Mean, low and high in the unit of the metric's title, the mean for an unknown end; empty if undefined."""
    score = trial["score"] or {"mean": None}
    if score["mean"] is None:
        return ()
    ends = (score["mean"] if score[name] is None else score[name] for name in ("mean", "low", "high"))
    return tuple(_unit(document) * value for value in ends)


def _label(text: str, longest: int) -> str:
    # Glyphs that Matplotlib's font lacks would be boxes, with a warning each.
    text = printable(text).encode("latin-1", "replace").decode("latin-1")
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
