"""sweep.html: one file with the trials of a sweep, their scores and what may be concluded from them.

The plots are SVG in the page itself, so that they follow the page's colours and each line names its trial:
this module places everything, the template draws it. Text from the document is escaped by the template.

Lengths are CSS pixels at the plot's own width; y grows downwards.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.ticker import MaxNLocator
from scipy import stats

from carl_ray import storage
from carl_ray.evaluation.protocol import LOWER_IS_BETTER
from carl_ray.report import tables
from carl_ray.report.neighbours import printable

_STATUSES = ("done", "stopped", "unfinished", "failed")  # in the order of the table
_UNDEFINED = "undefined"


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
    if all(_is_number(value) for value in values):
        numbers = [float(value) for value in values]
        return Axis(min(numbers), max(numbers), log=log and min(numbers) > 0)
    numbers_first = sorted({value_text(value): value for value in values}.items(), key=_word_order)
    return Axis(words=tuple(text for text, _ in numbers_first))


def _word_order(word: tuple[str, Any]) -> tuple[bool, float, str]:
    text, value = word
    return (False, float(value), text) if _is_number(value) else (True, 0.0, text)


def _is_number(value: Any) -> bool:
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


@dataclass(frozen=True)
class Trial:
    """A trial, ready to be shown."""

    number: int
    """From 1, in the order of the table: best first."""
    id: str
    status: str
    reason: str | None
    is_default: bool
    is_best: bool
    values: Mapping[str, Any]
    score: tables.Cell | None
    mean: float | None
    """The score in the unit that it is shown in; none where there is none or it is undefined."""
    interval: tuple[float, float] | None
    """Around `mean`, in the same unit."""
    controls: Mapping[str, tables.Cell | None]
    light: str
    """Its colour on a light ground, hexadecimal: the further from the ground, the better the score. Empty
    where the score does not compare: the trial is not done, or its score is undefined."""
    dark: str
    """The same on a dark ground."""
    rungs: tuple[tuple[float, float | None], ...]
    """Epochs and scores, in the unit of `mean`."""
    epochs: float | None
    duration: str
    checkpoint: str | None

    @property
    def compares(self) -> bool:
        """Whether its score may stand beside others: it is done and the score is defined."""
        return self.status == "done" and self.mean is not None

    @property
    def title(self) -> str:
        """One line that says which trial this is."""
        roles = [role for role, has in (("best", self.is_best), ("base", self.is_default)) if has]
        values = ", ".join(f"{short_name(name)} {value_text(value)}" for name, value in self.values.items())
        score = self.score.value if self.score is not None else "no score"
        return (
            f"Trial {self.number}{''.join(f' ({role})' for role in roles)}: {values}; {self.status}, {score}"
        )


def write_sweep_page(out_uri: str, document: Mapping[str, Any]) -> None:
    """Writes the page of a sweep; the same document gives the same bytes.

    Args:
        out_uri: The HTML file.
        document: The sweep's document (`carl_ray.sweeps.results.sweep_document`). A value that a trial does
            not name is the parameter's default.

    Raises:
        RunError: the store refuses, fails or is full.
    """
    trials = read_trials(document)
    metric = document["metric"]
    page = _template().render(
        document=document,
        trials=trials,
        statuses={
            status: count
            for status in _STATUSES
            if (count := sum(trial.status == status for trial in trials))
        },
        total=duration_text(sum(trial["seconds"] or 0.0 for trial in document["trials"])),
        metric=tables.title_of(metric),
        metric_short=tables.title_of(metric, whole=True),
        names=list(document["parameters"]),
        control_names=[
            control
            for control in tables.CONTROLS
            if any(trial.controls[control] is not None for trial in trials)
        ],
        verdict=verdict_lines(document),
        comparison=comparison_rows(document),
        best=next((trial for trial in trials if trial.is_best), None),
        base=next((trial for trial in trials if trial.is_default), None),
        parallel=parallel_coordinates(document, trials),
        plots=[
            plot
            for name in document["parameters"]
            if (plot := parameter_plot(document, trials, name)) is not None
        ],
        progress=rung_plot(document, trials),
        scale=[score_colors(share) for share in np.linspace(0, 1, 6)],
        papers=[paper_table(table, document["trials"]) for table in document["tables"]],
        label_free=label_free_line(document),
    )
    storage.write_bytes(out_uri, page.encode())


def read_trials(document: Mapping[str, Any]) -> list[Trial]:
    """The trials in the order of the table: done ones by score, then stopped, unfinished and failed ones."""
    sign = 1 if document["higher_is_better"] else -1
    metric = document["metric"]

    def order(trial: Mapping[str, Any]) -> tuple[Any, ...]:
        mean = (trial["score"] or {}).get("mean")
        # Of those that are not done, the ones that came further first.
        epochs = 0 if trial["status"] == "done" else -(trial["epochs"] or 0)
        place = _STATUSES.index(trial["status"])
        return (place, epochs, mean is None, -sign * (mean or 0.0), trial["id"])

    comparable = [sign * trial["score"]["mean"] for trial in _comparable(document)]
    found = []
    for number, trial in enumerate(sorted(document["trials"], key=order), start=1):
        score, metrics = trial["score"] or {}, trial["metrics"] or {}
        cells = _cells(metric, trial["score"], {name: (metrics.get(name) or {}) for name in tables.CONTROLS})
        mean, low, high = (_shown(metric, score.get(key)) for key in ("mean", "low", "high"))
        colors = ("", "")
        if trial["status"] == "done" and mean is not None:
            worst, width = min(comparable), max(comparable) - min(comparable)
            colors = score_colors((sign * score["mean"] - worst) / width if width else 1.0)
        found.append(
            Trial(
                number=number,
                id=trial["id"],
                status=trial["status"],
                reason=trial["reason"],
                is_default=trial["is_default"],
                is_best=trial["id"] == document["best"],
                values={
                    name: trial["values"].get(name, parameter["default"])
                    for name, parameter in document["parameters"].items()
                },
                score=cells["trained"],
                mean=mean,
                interval=None if low is None or high is None else (low, high),
                controls={name: cells[name] for name in tables.CONTROLS},
                light=colors[0],
                dark=colors[1],
                rungs=tuple((rung["epoch"], _shown(metric, rung["score"])) for rung in trial["rungs"]),
                epochs=trial["epochs"],
                duration="–" if trial["seconds"] is None else duration_text(trial["seconds"]),
                checkpoint=trial["checkpoint"],
            )
        )
    return found


def _comparable(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials that are done and have a defined score."""
    return [
        trial
        for trial in document["trials"]
        if trial["status"] == "done" and trial["score"] is not None and trial["score"]["mean"] is not None
    ]


def _entry(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A mean with its interval as metrics.json has a value."""
    if summary is None:
        return None
    return {"value": summary["mean"], "low": summary["low"], "high": summary["high"]}


def _cells(
    metric: str, trained: Mapping[str, Any] | None, others: Mapping[str, Mapping[str, Any]]
) -> dict[str, tables.Cell | None]:
    """The cells of one metric by variant; those of `others` with the verdict of `trained` against them."""
    none: dict[str, tables.Cell | None] = dict.fromkeys(("trained", *tables.CONTROLS))
    if trained is None:
        return none
    document = {"trained": {metric: _entry(trained)}}
    document |= {name: {metric: _entry(metrics.get(metric))} for name, metrics in others.items()}
    (row,) = tables.metric_rows(document, [metric])
    return none | dict(row.cells)


def _shown(metric: str, value: float | None) -> float | None:
    """A value in the unit that the metric's title names: a share in per cent."""
    return None if value is None else value * (100.0 if "(%)" in tables.title_of(metric) else 1.0)


def score_colors(share: float) -> tuple[str, str]:
    """Colours of a score for a light and for a dark ground, hexadecimal: at 1 the furthest from the ground.

    Parts of viridis, whose lightness grows evenly for any colour vision; at 0 still with a contrast of about 3
    to the ground.
    """
    viridis = matplotlib.colormaps["viridis"]
    light, dark = viridis(0.6 * (1 - share)), viridis(0.35 + 0.65 * share)
    return matplotlib.colors.to_hex(light), matplotlib.colors.to_hex(dark)


def short_name(name: str) -> str:
    """The field without its section."""
    return printable(name.rpartition(".")[2])


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: max(length - 1, 1)]}…"


def duration_text(seconds: float) -> str:
    """Seconds as people say them: two units, the largest that fit."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def verdict_lines(document: Mapping[str, Any]) -> list[str]:
    """What the sweep says of its best trial and the base, in sentences."""
    trials = document["trials"]
    if not trials:
        return ["The sweep has no trial yet."]
    done = sum(trial["status"] == "done" for trial in trials)
    comparable = _comparable(document)
    best = next((trial for trial in comparable if trial["id"] == document["best"]), None)
    if not done:
        return ["No trial is done, so there is no best one.", *_failure_lines(trials)]
    if best is None:
        return [f"Trials that are done: {done:,}; none of them has a defined score.", *_failure_lines(trials)]
    lines = []
    default = next((trial for trial in trials if trial["is_default"]), None)
    if default is None or default not in comparable:
        why = "is not in the sweep" if default is None else f"has no score to compare ({default['status']})"
        lines.append(f"The base {why}, so nothing here says whether the best trial is better than the base.")
    elif default is best:
        lines.append("The base itself has the best score: nothing that was tried and is done scored higher.")
    else:
        lines += _against_base(document, best, default)
    others = [_compare(document, best, trial) for trial in comparable if trial is not best]
    if others:
        near, unknown = others.count("overlap"), others.count("unknown")
        lines.append(
            f"Of the {_count(len(others), 'other trial')} done, {near or 'none'} cannot be told from the best "
            "one, by intervals that overlap."
        )
        if unknown:
            lines.append(f"{_count(unknown, 'trial')} cannot be compared with it for want of an interval.")
    else:
        lines.append("It is the only trial to compare: there was nothing to choose from.")
    return [*lines, *_failure_lines(trials)]


def _against_base(document: Mapping[str, Any], best: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    match _compare(document, best, base):
        case "overlap":
            lines = [
                "The best trial and the base are not distinguishable: their intervals overlap.",
                "As far as this sweep can tell, the base is as good a choice.",
            ]
        case "better":
            lines = ["The best trial is better than the base: their intervals do not overlap."]
        case _:
            lines = ["Whether the best trial is better than the base cannot be said: an interval is missing."]
    ours, theirs = best["score"]["values"], base["score"]["values"]
    paired = document["intervals"] == "seeds" and len(ours) == len(theirs) > 1
    if paired and None not in (*ours, *theirs):
        sign = 1 if document["higher_is_better"] else -1
        won = sum(sign * (a - b) > 0 for a, b in zip(ours, theirs, strict=True))
        lines.append(f"Seed by seed, the best trial is ahead of the base in {won} of {len(ours)}.")
    return lines


def _failure_lines(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = Counter(trial["status"] for trial in trials)
    lines = []
    if counts["failed"]:
        lines.append(f"{_count(counts['failed'], 'trial')} failed: the reasons are at the end of the table.")
    if counts["unfinished"]:
        lines.append(
            f"Trials that are not finished: {counts['unfinished']:,}; the same command goes on with them."
        )
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _compare(
    document: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]
) -> tables.Verdict:
    return tables.compare(first["score"], second["score"], lower_is_better=not document["higher_is_better"])


@dataclass(frozen=True)
class ComparisonRow:
    """One parameter or metric of the best trial beside the base."""

    title: str
    best: str
    best_interval: str
    base: str
    base_interval: str
    verdict: tables.Verdict | None
    """Of the best trial against the base; none for a parameter and where the base has no value."""
    differs: bool
    """Whether it is a parameter with two values."""


def comparison_rows(document: Mapping[str, Any]) -> list[ComparisonRow]:
    """The best trial's values and metrics beside the base's; empty where there is no best trial."""
    best = next((trial for trial in document["trials"] if trial["id"] == document["best"]), None)
    if best is None:
        return []
    base = next((trial for trial in document["trials"] if trial["is_default"]), None)
    rows = []
    for name, parameter in document["parameters"].items():
        ours, theirs = (
            value_text(value)
            for value in (best["values"].get(name, parameter["default"]), parameter["default"])
        )
        rows.append(ComparisonRow(name, ours, "", theirs, "", None, ours != theirs))
    measured = {document["metric"]: best["score"]} | ((best["metrics"] or {}).get("trained") or {})
    has_base = base is not None and base["status"] == "done"
    of_base: dict[str, Any] = {}
    if base is not None and has_base:
        of_base = {document["metric"]: base["score"]} | ((base["metrics"] or {}).get("trained") or {})
    for name in tables.metric_names({"trained": measured}):
        cell = _cells(name, measured[name], {})["trained"]
        beside = _cells(name, of_base.get(name), {})["trained"]
        if cell is None:
            continue
        verdict = None
        if beside is not None and base is not best:
            verdict = tables.compare(measured[name], of_base[name], lower_is_better=name in LOWER_IS_BETTER)
        rows.append(
            ComparisonRow(
                tables.title_of(name),
                cell.value,
                cell.interval,
                "–" if beside is None else beside.value,
                "" if beside is None else beside.interval,
                verdict,
                False,
            )
        )
    return rows


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
        return tuple(Tick(_px(bottom - tick.at * height), _shortened(tick.label, 11)) for tick in ticks)

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
                _shortened(tick.label, 45 // len(x_axis.words)) if x_axis.words else tick.label,
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


@dataclass(frozen=True)
class PaperCell:
    """One metric of one row of a table of the paper."""

    ours: tables.Cell | None
    """None where the trial is not done."""
    paper: str
    """As printed there; empty where the paper has none."""


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper."""

    name: str
    state: str
    """Why it has no numbers of ours; empty where the trial is done."""
    cells: tuple[PaperCell, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper with our numbers beside."""

    number: str
    title: str
    note: str
    metrics: tuple[str, ...]
    """Their titles."""
    rows: tuple[PaperRow, ...]
    findings: tuple[str, ...]
    """A sentence a metric that the paper reports."""


def paper_table(table: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> PaperTable:
    """Our numbers beside the paper's, and whether they agree on the order.

    Args:
        table: An entry of the document's `tables`.
        trials: The document's `trials`; only those that are done give numbers.
    """
    by_id = {trial["id"]: trial for trial in trials}
    rows, numbers = [], []
    for row in table["rows"]:
        trial = by_id.get(row["trial"])
        is_done = trial is not None and trial["status"] == "done"
        trained = ((trial["metrics"] or {}).get("trained") or {}) if trial is not None and is_done else {}
        numbers.append(trained)
        rows.append(
            PaperRow(
                name=row["name"],
                state="" if is_done else "not in the sweep" if trial is None else trial["status"],
                cells=tuple(
                    PaperCell(
                        _cells(metric, trained.get(metric), {})["trained"], row["paper"].get(metric, "")
                    )
                    for metric in table["metrics"]
                ),
            )
        )
    return PaperTable(
        number=table["table"],
        title=table["title"],
        note=table["note"],
        metrics=tuple(tables.title_of(metric) for metric in table["metrics"]),
        rows=tuple(rows),
        findings=tuple(
            f"{tables.title_of(metric, whole=True)}: {_finding(metric, table['rows'], numbers)}"
            for metric in table["metrics"]
            if any(metric in row["paper"] for row in table["rows"])
        ),
    )


def _finding(metric: str, rows: Sequence[Mapping[str, Any]], numbers: Sequence[Mapping[str, Any]]) -> str:
    """Whether the paper's best row is ours, and the rank correlation, over the rows that the paper measured."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    paper = {row["name"]: float(row["paper"][metric]) for row in rows if metric in row["paper"]}
    ours = {
        row["name"]: found[metric]
        for row, found in zip(rows, numbers, strict=True)
        if row["name"] in paper and metric in found and found[metric]["mean"] is not None
    }
    papers_best = [name for name in paper if sign * paper[name] == max(sign * x for x in paper.values())]
    named = " and ".join(papers_best)
    if len(ours) < 2:
        return f"the paper’s best row is {named}; too few rows of ours ({len(ours)}) to compare."
    missing = [name for name in papers_best if name not in ours]
    best = max(ours, key=lambda name: sign * ours[name]["mean"])
    tied = [name for name in ours if ours[name]["mean"] == ours[best]["mean"]]
    if missing:
        said = f"the paper’s best row, {named}, has no number of ours"
    elif set(tied) & set(papers_best):
        said = f"the paper’s best row, {named}, is the best of ours too"
    else:
        rival = max(papers_best, key=lambda name: sign * ours[name]["mean"])
        verdict = tables.compare(ours[best], ours[rival], lower_is_better=sign < 0)
        weight = {
            "overlap": ", but the two intervals overlap: not distinguishable",
            "unknown": "; an interval is missing, so nothing says how firmly",
        }.get(verdict, ", and the two intervals do not overlap")
        said = f"the paper’s best row is {named}; the best of ours is {best}{weight}"
    return f"{said}. {_rank_sentence([paper[name] for name in ours], [ours[name]['mean'] for name in ours])}"


def _rank_sentence(paper: Sequence[float], ours: Sequence[float]) -> str:
    rows = f"{len(ours)} rows"
    if len(ours) < 3:
        return f"A rank correlation of {rows} says nothing."
    if len(set(paper)) == 1 or len(set(ours)) == 1:
        return f"The rank correlation is undefined: all {rows} are equal."
    correlation = float(stats.spearmanr(paper, ours).statistic)
    return f"Rank correlation (Spearman) with the paper {_signed(correlation)} over {rows}."


def label_free_line(document: Mapping[str, Any]) -> str:
    """What the score without labels is worth, in a sentence."""
    found = document["label_free"]
    if found is None:
        return "The score that needs no labels could not be held against the labelled one here."
    name, trials = found["name"].replace("_", " "), _count(found["num_trials"], "trial")
    if found["rank_correlation"] is None:
        return (
            f"The score that needs no labels ({name}): its rank correlation with phase classification is "
            f"undefined over {trials} done."
        )
    return (
        f"The score that needs no labels ({name}) ranks the {trials} done like phase classification with a "
        f"rank correlation (Spearman) of {_signed(found['rank_correlation'])}; 1 is the same order, 0 none."
    )


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    environment.filters["value_text"] = value_text
    environment.filters["short_name"] = short_name
    return environment.get_template("sweep.html.jinja")
