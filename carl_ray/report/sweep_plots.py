"""The plots of a sweep: this module places everything, the template draws it as SVG.

Lengths are CSS pixels at the plot's own width; y grows downwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carl_ray.report.axes import Axis, Tick, axis_of
from carl_ray.report.sweep_trials import Trial, short_name, shortened

_UNDEFINED = "undefined"


@dataclass(frozen=True)
class Line:
    """One trial in a plot of lines."""

    trial: Trial
    parts: tuple[tuple[tuple[float, float], ...], ...]
    """Connected points in pixels."""


@dataclass(frozen=True)
class ParallelAxis:
    """An upright axis of the parallel coordinates."""

    x: float
    name: str
    log: bool
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class ParallelCoordinates:
    """A line for each trial through its values of all parameters to its score."""

    width: float
    height: float
    top: float
    bottom: float
    axes: tuple[ParallelAxis, ...]
    score: ParallelAxis
    slots: tuple[Tick, ...]
    """Below the score's axis: where the lines of trials without a score to compare end."""
    lines: tuple[Line, ...]
    """In the order of drawing: the best one last."""


def parallel_coordinates(document: Mapping[str, Any], trials: Sequence[Trial]) -> ParallelCoordinates | None:
    """Where everything lies; none where there is no trial or no parameter."""
    names = list(document["parameters"])
    if not trials or not names:
        return None
    axes = {name: _parameter_axis(document, trials, name) for name in names}
    step = max(130.0, 7.2 * max(len(short_name(name)) for name in names) + 12)
    left, top, height = 74.0, 52.0, 230.0
    means = [trial.mean for trial in trials if trial.compares and trial.mean is not None]
    score_axis = axis_of(means) if means else Axis()
    endings = list(dict.fromkeys(_ending(trial) for trial in trials if not trial.compares))
    bottom = top + height
    slots = tuple(Tick(bottom + 26 + 17 * place, ending) for place, ending in enumerate(endings))
    where = {slot.label: slot.at for slot in slots}

    def upright(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
        return tuple(Tick(_px(bottom - tick.at * height), shortened(tick.label, 11)) for tick in ticks)

    score_x = left + step * len(names)

    def line(trial: Trial) -> Line:
        points = [
            (_px(left + step * place), _px(bottom - axes[name].place(trial.values[name]) * height))
            for place, name in enumerate(names)
        ]
        end = bottom - score_axis.place(trial.mean) * height if trial.compares else where[_ending(trial)]
        return Line(trial, ((*points, (_px(score_x), _px(end))),))

    return ParallelCoordinates(
        width=_px(score_x + 76),
        height=_px(bottom + 18 + (17 * len(slots) + 8 if slots else 0)),
        top=top,
        bottom=bottom,
        axes=tuple(
            ParallelAxis(
                _px(left + step * place),
                name,
                axes[name].log,
                upright(axes[name].ticks([trial.values[name] for trial in trials], gap=0.065)),
            )
            for place, name in enumerate(names)
        ),
        score=ParallelAxis(
            _px(score_x),
            document["metric"],
            False,
            upright(score_axis.ticks(gap=0.065)) if means else (),
        ),
        slots=slots,
        lines=tuple(line(trial) for trial in _drawing_order(trials)),
    )


def _ending(trial: Trial) -> str:
    return _UNDEFINED if trial.status == "done" else trial.status


def _drawing_order(trials: Sequence[Trial]) -> list[Trial]:
    """Those that matter more cover the others."""
    return sorted(trials, key=lambda trial: (trial.is_best, trial.is_default, trial.compares, -trial.number))


def _parameter_axis(document: Mapping[str, Any], trials: Sequence[Trial], name: str) -> Axis:
    parameter = document["parameters"][name]
    return axis_of([*(trial.values[name] for trial in trials), parameter["default"]], log=parameter["log"])


@dataclass(frozen=True)
class Frame:
    """The rectangle of a plot with an axis on its left and one below, inside the picture."""

    width: float
    """Of the picture, as is the height."""
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def x(self, share: float) -> float:
        """Of a share of the axis below; points stay off the frame."""
        return _px(self.left + _INSET + share * (self.right - self.left - 2 * _INSET))

    def y(self, share: float) -> float:
        """Of a share of the axis on the left."""
        return _px(self.bottom - _INSET / 2 - share * (self.bottom - self.top - _INSET))


_INSET = 16.0


@dataclass(frozen=True)
class Dot:
    """A trial's score in the plot of a parameter."""

    trial: Trial
    x: float
    y: float
    whisker: tuple[float, float] | None
    """From top to bottom; none where there is no interval."""
    caps: tuple[float, ...]
    """The ends of the interval that lie inside the plot."""


@dataclass(frozen=True)
class ParameterPlot:
    """Scores of the trials that are done against one parameter."""

    name: str
    log: bool
    frame: Frame
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    default_x: float
    """Where the parameter's default lies."""
    band: tuple[float, float] | None
    """Top and height of the base's interval; none where it has none."""
    dots: tuple[Dot, ...]
    """In the order of drawing: the best one last."""


def parameter_plot(document: Mapping[str, Any], trials: Sequence[Trial], name: str) -> ParameterPlot | None:
    """Where everything lies; none where no trial is done with a defined score."""
    shown = [trial for trial in _drawing_order(trials) if trial.compares]
    if not shown:
        return None
    x_axis = axis_of(
        [*(trial.values[name] for trial in shown), document["parameters"][name]["default"]],
        log=document["parameters"][name]["log"],
    )
    low, high = _score_limits(shown)
    y_axis = Axis(low, high)
    frame = Frame(width=360, height=236, left=46, right=348, top=12, bottom=186)

    def y_of(score: float) -> float:
        return frame.y(y_axis.place(min(max(score, low), high)))

    # Trials with the same value stand side by side.
    beside: dict[float, list[Trial]] = defaultdict(list)
    for trial in sorted(shown, key=lambda trial: trial.number):
        beside[frame.x(x_axis.place(trial.values[name]))].append(trial)
    dots = {}
    for x, group in beside.items():
        step = min(7.0, 2 * _INSET / len(group))
        for place, trial in enumerate(group):
            ends = trial.interval
            dots[trial.id] = Dot(
                trial,
                _px(x + (place - (len(group) - 1) / 2) * step),
                y_of(trial.mean or 0.0),
                None if ends is None else (y_of(ends[1]), y_of(ends[0])),
                () if ends is None else tuple(y_of(end) for end in ends if low <= end <= high),
            )
    base = next((trial.interval for trial in shown if trial.is_default), None)
    band = None
    if base is not None:
        band = (y_of(base[1]), _px(y_of(base[0]) - y_of(base[1])))
    return ParameterPlot(
        name=name,
        log=x_axis.log,
        frame=frame,
        x_ticks=tuple(
            Tick(
                frame.x(tick.at),
                shortened(tick.label, 45 // len(x_axis.words)) if x_axis.words else tick.label,
            )
            for tick in x_axis.ticks([trial.values[name] for trial in shown], gap=0.15)
        ),
        y_ticks=tuple(Tick(frame.y(tick.at), tick.label) for tick in y_axis.ticks(gap=0.09)),
        default_x=frame.x(x_axis.place(document["parameters"][name]["default"])),
        band=band,
        dots=tuple(dots[trial.id] for trial in shown),
    )


def _score_limits(shown: Sequence[Trial]) -> tuple[float, float]:
    """Lowest and highest score of a plot: all means, and of the intervals what does not squash them.

    Intervals over two or three seeds may be far wider than all differences between trials.
    """
    means = [trial.mean for trial in shown if trial.mean is not None]
    ends = [end for trial in shown for end in trial.interval or ()]
    spread = max(means) - min(means)
    if not spread:
        return min([*means, *ends]), max([*means, *ends])
    return (
        max(min([*means, *ends]), min(means) - spread),
        min(max([*means, *ends]), max(means) + spread),
    )


@dataclass(frozen=True)
class RungPlot:
    """Scores against epochs, a line a trial."""

    frame: Frame
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def rung_plot(document: Mapping[str, Any], trials: Sequence[Trial]) -> RungPlot | None:
    """Where everything lies; none where no trial has a score at any rung."""
    scores = [score for trial in trials for _, score in trial.rungs if score is not None]
    if not scores:
        return None
    epochs = sorted({*document["rungs"], *(epoch for trial in trials for epoch, _ in trial.rungs)})
    x_axis, y_axis = axis_of(epochs), axis_of(scores)
    frame = Frame(width=380, height=250, left=46, right=368, top=12, bottom=206)
    lines = []
    for trial in _drawing_order(trials):
        parts: list[list[tuple[float, float]]] = [[]]
        for epoch, score in trial.rungs:
            if score is None:
                parts.append([])
            else:
                parts[-1].append((frame.x(x_axis.place(epoch)), frame.y(y_axis.place(score))))
        lines.append(Line(trial, tuple(tuple(part) for part in parts if part)))
    return RungPlot(
        frame=frame,
        x_ticks=tuple(Tick(frame.x(tick.at), tick.label) for tick in x_axis.ticks(epochs, gap=0.07)),
        y_ticks=tuple(Tick(frame.y(tick.at), tick.label) for tick in y_axis.ticks(gap=0.07)),
        lines=tuple(line for line in lines if line.parts),
    )


def _px(length: float) -> float:
    """To a tenth: more is seen by nobody, and fewer digits make a smaller page, the same everywhere."""
    return round(float(length), 1)
