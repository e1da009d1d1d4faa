"""The runs of a table over several seeds become one table: mean, deviation, controls, the paper's numbers, orderings.

An ordering is a row against the table's reference row, on one metric, seed by seed: both rows of a seed share their
videos, plan and initial encoder as far as the row leaves them alone, so differences are paired. The paper's holds, or
does not, where the 95 % interval of the mean difference over seeds has one sign.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.paper_tables import Table
from carl_ray.evaluation.tasks import metric_of

_CONTROLS = ("untrained", "positions", "chance")


_FEWEST_SEEDS = 3
"""With fewer, no order is called the paper's or not."""


def table_document(
    table: Table, documents: Mapping[str, Sequence[Mapping[str, Any] | None]]
) -> dict[str, Any]:
    """The results of a table as plain JSON, of as many of its runs as there are.

    `rows[i]` holds name, options, the paper's numbers, and for each metric the values by seed with mean and sample
    deviation; `controls` the means of the reference row's controls; `orderings` what `_ordering` says of each row,
    metric and the paper.

    Args:
        table: The table.
        documents: For each row, by name, the documents of metrics.json, one a seed; None for a run not done.
    """
    rows = [
        {
            "name": row.name,
            "options": dict(row.options),
            "paper": dict(row.paper),
            "metrics": {
                metric: _summary(
                    [_value(document, "trained", row.reads.get(metric)) for document in documents[row.name]]
                    if row.reads
                    else [_value(document, "trained", metric) for document in documents[row.name]]
                )
                for metric in table.metrics
            },
        }
        for row in table.rows
    ]
    reference = documents[table.reference]
    return {
        "title": table.title,
        "note": table.note,
        "reference": table.reference,
        "rows": rows,
        "controls": {
            control: {
                metric: _summary([_value(document, control, metric) for document in reference])
                for metric in table.metrics
            }
            for control in _CONTROLS
        },
        "orderings": [
            _ordering(row, next(r for r in rows if r["name"] == table.reference), metric)
            for row in rows
            if row["name"] != table.reference
            for metric in table.metrics
        ],
    }


def markdown(document: Mapping[str, Any]) -> str:
    """The results of a table as Markdown: the table, then the orderings, the failing ones too."""
    metrics = list(document["rows"][0]["metrics"])
    lines = [f"## {document['title']}", ""]
    lines += [f"`{document['command']}`, {document['date']}, {document['machine']}; code {document['code']}."]
    lines += [f"Seeds: {document['seeds']}, each of {document['epochs']} epochs.", ""]
    lines += [f"| | {' | '.join(metrics)} |", f"|{'---|' * (len(metrics) + 1)}"]
    for row in document["rows"]:
        cells = [_cell(row["metrics"][metric], row["paper"].get(metric)) for metric in metrics]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    for control, values in document["controls"].items():
        cells = [_cell(values[metric], None) for metric in metrics]
        lines.append(f"| *{control}* (of {document['reference']}) | {' | '.join(cells)} |")
    lines += ["", "Mean ± deviation over seeds; in brackets the paper's number, of other data and size."]
    if document["note"]:
        lines.append(document["note"])
    lines += ["", f"Against {document['reference']}:", ""]
    measured = [ordering for ordering in document["orderings"] if ordering["differences"]]
    lines += [f"- {_sentence(ordering)}" for ordering in measured]
    others = dict.fromkeys(ordering["row"] for ordering in document["orderings"])
    lines += [f"- {row}: not run" for row in others if row not in {ordering["row"] for ordering in measured}]
    return "\n".join(lines) + "\n"


def _value(document: Mapping[str, Any] | None, variant: str, metric: str | None) -> float | None:
    return None if document is None or metric is None else document[variant][metric]["value"]


def _summary(values: Sequence[float | None]) -> dict[str, Any]:
    defined = [value for value in values if value is not None]
    return {
        "values": list(values),
        "mean": statistics.mean(defined) if defined else None,
        "deviation": statistics.stdev(defined) if len(defined) > 1 else None,
    }


def _ordering(row: Mapping[str, Any], reference: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Whether the reference row is better than a row, seed by seed, and whether the paper says so.

    `better` and `worse` count the seeds in which the reference is so; `paper` is True or False where the paper has
    both numbers and they differ, else None. `interval` is that of the mean difference by Student's t, 95 %, over seeds;
    None with one. `verdict` on the paper's order is None without the paper's word or with fewer than three seeds;
    `undecided` where the interval has both signs.
    """
    sign = 1 if metric_of(metric).higher_is_better else -1
    pairs = zip(reference["metrics"][metric]["values"], row["metrics"][metric]["values"], strict=True)
    differences = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
    better, worse = (sum(way * difference > 0 for difference in differences) for way in (1, -1))
    ours, theirs = (entry["paper"].get(metric) for entry in (reference, row))
    paper = (
        None if ours is None or theirs is None or ours == theirs else sign * (float(ours) - float(theirs)) > 0
    )
    interval = mean_interval(differences)
    verdict = None
    if paper is not None and interval is not None and len(differences) >= _FEWEST_SEEDS:
        verdict = verdict_of([end if paper else -end for end in interval])
    return {
        "row": row["name"],
        "reference": reference["name"],
        "metric": metric,
        "differences": differences,
        "better": better,
        "worse": worse,
        "paper": paper,
        "interval": interval,
        "verdict": verdict,
    }


def verdict_of(interval: Sequence[float]) -> str:
    """What an interval of a difference, which is positive where a claim holds, says of the claim."""
    return "holds" if min(interval) > 0 else "does not hold" if max(interval) < 0 else "undecided"


def mean_interval(differences: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean by Student's t."""
    from scipy.stats import t

    if len(differences) < 2:
        return None
    mean = statistics.mean(differences)
    reach = t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return [mean - float(reach), mean + float(reach)]


def _cell(summary: Mapping[str, Any], paper: str | None) -> str:
    if summary["mean"] is None:
        return "–"
    deviation = "" if summary["deviation"] is None else f" ± {summary['deviation']:.3f}"
    return f"{summary['mean']:.3f}{deviation}" + (f" ({paper})" if paper else "")


def _sentence(ordering: Mapping[str, Any]) -> str:
    differences = ordering["differences"]
    mean = statistics.mean(differences)
    said = f"{ordering['row']}, {ordering['metric']}: {ordering['reference']} is better in {ordering['better']} of "
    said += f"{len(differences)} seeds, by {mean:+.3f} on average"
    if ordering["interval"]:
        said += " [{:+.3f}, {:+.3f}]".format(*ordering["interval"])
    match ordering["verdict"]:
        case None:
            return said
        case "undecided":
            return f"{said}; the paper's order: **undecided**"
        case verdict:
            return f"{said}; **the paper's order {verdict}**"
