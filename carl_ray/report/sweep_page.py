"""sweep.html: one file with the trials of a sweep, their scores and what may be concluded from them.

The plots are SVG in the page itself, so that they follow the page's colours and each line names its trial:
this module places everything, the template draws it. Text from the document is escaped by the template.

Lengths are CSS pixels at the plot's own width; y grows downwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from carl_ray import storage
from carl_ray.evaluation.metrics import LOWER_IS_BETTER
from carl_ray.report import tables
from carl_ray.report.axes import value_text
from carl_ray.report.page import template
from carl_ray.report.sweep_paper import label_free_line, paper_table
from carl_ray.report.sweep_plots import parallel_coordinates, parameter_plot, rung_plot
from carl_ray.report.sweep_trials import (
    STATUSES,
    Difference,
    comparable_trials,
    count_text,
    difference,
    duration_text,
    read_trials,
    score_cells,
    score_colors,
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
    page = template("sweep.html.jinja").render(
        document=document,
        trials=trials,
        statuses={
            status: count for status in STATUSES if (count := sum(trial.status == status for trial in trials))
        },
        total=duration_text(sum(trial["seconds"] or 0.0 for trial in document["trials"])),
        metric=tables.title_of(metric),
        metric_short=tables.title_of(metric, whole=True),
        names=list(document["parameters"]),
        batches_differ=_batches_differ(document["trials"]),
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


def verdict_lines(document: Mapping[str, Any]) -> list[str]:
    """What the sweep says of its best trial and the base, in sentences."""
    trials = document["trials"]
    if not trials:
        return ["The sweep has no trial yet."]
    done = sum(trial["status"] == "done" for trial in trials)
    comparable = comparable_trials(document)
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
    others = [_difference(document, best, trial).verdict for trial in comparable if trial is not best]
    if others:
        near, unknown = others.count("overlap"), others.count("unknown")
        lines.append(
            f"Of the {count_text(len(others), 'other trial')} done, {near or 'none'} cannot be told from the "
            f"best one, {_by(document)}."
        )
        if unknown:
            lines.append(
                f"{count_text(unknown, 'trial')} cannot be compared with it for want of an interval."
            )
    else:
        lines.append("It is the only trial to compare: there was nothing to choose from.")
    return [*lines, *_batch_lines(trials), *_failure_lines(trials)]


def _by(document: Mapping[str, Any]) -> str:
    return "seed by seed" if document["intervals"] == "seeds" else "by intervals over the videos that overlap"


def _against_base(document: Mapping[str, Any], best: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    found = _difference(document, best, base)
    if found.interval is None:
        return [
            {
                "overlap": "The best trial and the base cannot be told apart: their intervals overlap.",
                "unknown": "Whether the best trial is better than the base cannot be said: an interval is missing.",
            }.get(found.verdict, "The best trial is better than the base: their intervals do not overlap.")
        ]
    low, high = found.interval
    cell = score_cells(document["metric"], {"mean": found.mean, "low": low, "high": high}, {})["trained"]
    assert cell is not None
    said = "is better than the base" if found.verdict == "better" else "and the base cannot be told apart"
    sign = 1 if document["higher_is_better"] else -1
    ours, theirs = best["score"]["values"], base["score"]["values"]
    won = sum(sign * (a - b) > 0 for a, b in zip(ours, theirs, strict=True))
    return [
        f"The best trial {said}: seed by seed they differ by {cell.value} ({cell.interval}).",
        f"The best trial is ahead of the base with {won} of {len(ours)} seeds.",
    ]


def _batch_lines(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    if not _batches_differ(trials):
        return []
    return [
        "Trials with more frames a view have fewer videos a step, so that memory stays the same, and more steps in as "
        "many epochs: what T does cannot be told here from what the batch and the number of updates do."
    ]


def _batches_differ(trials: Sequence[Mapping[str, Any]]) -> bool:
    return len({trial["batch_size"] for trial in trials} - {None}) > 1


def _failure_lines(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = Counter(trial["status"] for trial in trials)
    lines = []
    if counts["failed"]:
        lines.append(
            f"{count_text(counts['failed'], 'trial')} failed: the reasons are at the end of the table."
        )
    if counts["unfinished"]:
        lines.append(
            f"Trials that are not finished: {counts['unfinished']:,}; the same command goes on with them."
        )
    return lines


def _difference(
    document: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]
) -> Difference:
    return difference(first["score"], second["score"], lower_is_better=not document["higher_is_better"])


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
        cell = score_cells(name, measured[name], {})["trained"]
        beside = score_cells(name, of_base.get(name), {})["trained"]
        if cell is None:
            continue
        verdict = None
        if beside is not None and base is not best:
            verdict = difference(
                measured[name], of_base[name], lower_is_better=name in LOWER_IS_BETTER
            ).verdict
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
