"""The trials of a sweep, ready to be shown: their order, their scores in the unit of the page, their colours."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
from scipy import stats

from carl_ray.evaluation.nearest_frames import printable
from carl_ray.report import tables
from carl_ray.report.axes import value_text

STATUSES = ("done", "stopped", "unfinished", "failed")
"""In the order of the table."""


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
    batch_size: int | None
    """Videos of a step; none where the point does not fit."""
    steps: int | None
    """Updates of the weights; none where it was not measured."""
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


def read_trials(document: Mapping[str, Any]) -> list[Trial]:
    """The trials in the order of the table: done ones by score, then stopped, unfinished and failed ones."""
    sign = 1 if document["higher_is_better"] else -1
    metric = document["metric"]

    def order(trial: Mapping[str, Any]) -> tuple[Any, ...]:
        mean = (trial["score"] or {}).get("mean")
        # Of those that are not done, the ones that came further first.
        epochs = 0 if trial["status"] == "done" else -(trial["epochs"] or 0)
        place = STATUSES.index(trial["status"])
        return (place, epochs, mean is None, -sign * (mean or 0.0), trial["id"])

    comparable = [sign * trial["score"]["mean"] for trial in comparable_trials(document)]
    found = []
    for number, trial in enumerate(sorted(document["trials"], key=order), start=1):
        score, metrics = trial["score"] or {}, trial["metrics"] or {}
        cells = score_cells(
            metric, trial["score"], {name: (metrics.get(name) or {}) for name in tables.CONTROLS}
        )
        mean, low, high = (shown(metric, score.get(key)) for key in ("mean", "low", "high"))
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
                rungs=tuple((rung["epoch"], shown(metric, rung["score"])) for rung in trial["rungs"]),
                epochs=trial["epochs"],
                batch_size=trial["batch_size"],
                steps=trial["steps"],
                duration="–" if trial["seconds"] is None else duration_text(trial["seconds"]),
                checkpoint=trial["checkpoint"],
            )
        )
    return found


def comparable_trials(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials that are done and have a defined score."""
    return [
        trial
        for trial in document["trials"]
        if trial["status"] == "done" and trial["score"] is not None and trial["score"]["mean"] is not None
    ]


@dataclass(frozen=True)
class Difference:
    """What a sweep says of the difference between two trials."""

    verdict: tables.Verdict
    """Of the first against the second; `overlap`: they cannot be told apart."""
    mean: float | None = None
    """First minus second, over seeds that both have; none where they are compared by their intervals."""
    interval: tuple[float, float] | None = None
    """95 %, Student's t, of the differences seed by seed."""


def difference(first: Mapping[str, Any], second: Mapping[str, Any], *, lower_is_better: bool) -> Difference:
    """Of two summaries of the document: seed by seed where both have the same two seeds or more.

    Seeds are shared: what one of them does to both trials cancels out. With one seed the intervals over the
    validation videos are compared; that both are of the same videos makes this the more cautious.
    """
    ours, theirs = first["values"], second["values"]
    if len(ours) != len(theirs) or len(ours) < 2 or None in (*ours, *theirs):
        return Difference(tables.compare(first, second, lower_is_better=lower_is_better))
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(differences)
    spread = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    verdict: tables.Verdict = "overlap"
    if abs(mean) > spread:
        verdict = "better" if (mean > 0) != lower_is_better else "worse"
    return Difference(verdict, mean, (mean - spread, mean + spread))


def _entry(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A mean with its interval as metrics.json has a value."""
    if summary is None:
        return None
    return {"value": summary["mean"], "low": summary["low"], "high": summary["high"]}


def score_cells(
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


def shown(metric: str, value: float | None) -> float | None:
    """A value in the unit that the metric's title names: a share in per cent."""
    return None if value is None else value * (100.0 if "(%)" in tables.title_of(metric) else 1.0)


def score_colors(share: float) -> tuple[str, str]:
    """Colours of a score for a light and for a dark ground, hexadecimal: at 1 the furthest from the ground.

    Parts of viridis, whose lightness grows evenly for any colour vision; at 0 still with a contrast of
    about 3 to the ground.
    """
    viridis = matplotlib.colormaps["viridis"]
    light, dark = viridis(0.6 * (1 - share)), viridis(0.35 + 0.65 * share)
    return matplotlib.colors.to_hex(light), matplotlib.colors.to_hex(dark)


def short_name(name: str) -> str:
    """The field without its section."""
    return printable(name.rpartition(".")[2])


def shortened(text: str, length: int) -> str:
    """The text, cut to so many characters."""
    return text if len(text) <= length else f"{text[: max(length - 1, 1)]}…"


def duration_text(seconds: float) -> str:
    """Seconds as people say them: two units, the largest that fit."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def count_text(number: int, noun: str) -> str:
    """A number of things, with their plural."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
