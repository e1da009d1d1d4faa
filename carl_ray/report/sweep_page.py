"""sweep.html: one file with the trials of a sweep, their scores and how far they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from carl_ray import storage
from carl_ray.report import tables
from carl_ray.report.page import template
from carl_ray.report.sweep_comparisons import (
    batches_differ,
    comparison_rows,
    label_free_line,
    paper_findings,
    paper_rows,
    score_cells,
    value_text,
    verdict_lines,
)
from carl_ray.report.sweep_figures import epoch_plot, parameter_plots

_STATUSES = ("done", "stopped", "unfinished", "failed")
"""In the order of the table."""


@dataclass(frozen=True)
class TrialRow:
    """A trial as a row of the page's table."""

    number: int
    """From 1, in the order of the table."""
    trial: Mapping[str, Any]
    """Its entry in the document."""
    is_best: bool
    values: tuple[str, ...]
    """Of the parameters."""
    cells: Mapping[str, tables.Cell | None]
    """The score, by variant."""
    duration: str


def write_sweep_page(out_uri: str, document: Mapping[str, Any]) -> None:
    """Write the page of a sweep; the same document gives the same bytes.

    Args:
        out_uri: The HTML file.
        document: The sweep's document (`carl_ray.sweeps.sweep_document.sweep_document`). A value missing in a trial is
            the parameter's default.

    Raises:
        RunError: the storage refuses, fails or is full.
    """
    rows = trial_rows(document)
    numbers = {row.trial["id"]: row.number for row in rows}
    statuses = {status: sum(row.trial["status"] == status for row in rows) for status in _STATUSES}
    page = template("sweep.html.jinja").render(
        document=document,
        rows=rows,
        statuses={status: count for status, count in statuses.items() if count},
        total=duration_text(sum(row.trial["seconds"] or 0.0 for row in rows)),
        metric=tables.title_of(document["metric"]),
        controls=[name for name in tables.CONTROLS if any(row.cells[name] is not None for row in rows)],
        batches_differ=batches_differ(document),
        verdict=verdict_lines(document),
        comparison=comparison_rows(document),
        plots=parameter_plots(document, numbers),
        curves=epoch_plot(document, numbers),
        papers=[
            (table, paper_rows(table, document), paper_findings(table, document))
            for table in document["tables"]
        ],
        titles={
            metric: tables.title_of(metric) for table in document["tables"] for metric in table["metrics"]
        },
        label_free=label_free_line(document),
    )
    storage.write_bytes(out_uri, page.encode())


def trial_rows(document: Mapping[str, Any]) -> list[TrialRow]:
    """The trials as rows: finished ones by score, then stopped, unfinished and failed ones by epochs."""
    sign = 1 if document["higher_is_better"] else -1

    def order(trial: Mapping[str, Any]) -> tuple[Any, ...]:
        mean = (trial["score"] or {}).get("mean")
        epochs = 0 if trial["status"] == "done" else trial["epochs"] or 0
        return (_STATUSES.index(trial["status"]), -epochs, mean is None, -sign * (mean or 0.0), trial["id"])

    rows = []
    for number, trial in enumerate(sorted(document["trials"], key=order), start=1):
        metrics = trial["metrics"] or {}
        rows.append(
            TrialRow(
                number=number,
                trial=trial,
                is_best=trial["id"] == document["best"],
                values=tuple(
                    value_text(trial["values"].get(name, parameter["default"]))
                    for name, parameter in document["parameters"].items()
                ),
                cells=score_cells(
                    document["metric"],
                    trial["score"],
                    {name: metrics.get(name) or {} for name in tables.CONTROLS},
                ),
                duration="–" if trial["seconds"] is None else duration_text(trial["seconds"]),
            )
        )
    return rows


def duration_text(seconds: float) -> str:
    """Seconds in the two largest units that fit."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"
