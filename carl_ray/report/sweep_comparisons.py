"""Comparisons between trials of a sweep and with the paper's tables, as sentences and table cells."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy import stats

from carl_ray.evaluation.nearest_frames import printable
from carl_ray.evaluation.tasks import metric_of
from carl_ray.report import tables

Summary = Mapping[str, Any]
"""`mean`, `low`, `high` and `values` by seed of one metric (`carl_ray.sweeps.sweep_document.sweep_document`)."""


def value_text(value: Any) -> str:
    """A parameter's value as text: numbers with up to six digits, no control characters."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.6g}".replace("-", "−")
    return json.dumps(value, ensure_ascii=False)


def score_cells(
    metric: str, trained: Summary | None, controls: Mapping[str, Mapping[str, Summary]] | None = None
) -> dict[str, tables.Cell | None]:
    """The table cells of one metric, by variant, with the verdict of `trained` against each control."""
    variants = {name: metrics.get(metric) for name, metrics in (controls or {}).items()}
    entries = {
        name: {metric: {"value": summary["mean"], "low": summary["low"], "high": summary["high"]}}
        for name, summary in {"trained": trained, **variants}.items()
        if summary is not None
    }
    rows = tables.metric_rows(entries, [metric]) if trained is not None else []
    return dict(rows[0].cells) if rows else dict.fromkeys(("trained", *tables.CONTROLS))


@dataclass(frozen=True)
class Difference:
    """Difference between two summaries of one metric."""

    verdict: tables.Verdict
    """Of the first against the second; `overlap`: indistinguishable."""
    summary: Summary | None = None
    """First minus second over the seeds, with its 95 % interval (Student's t); none where intervals are compared."""


def difference(first: Summary, second: Summary, *, lower_is_better: bool) -> Difference:
    """Compare two summaries by paired seeds, or by their intervals if they share fewer than two seeds."""
    ours, theirs = first["values"], second["values"]
    if len(ours) != len(theirs) or len(ours) < 2 or None in (*ours, *theirs):
        return Difference(tables.compare(first, second, lower_is_better=lower_is_better))
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(differences)
    spread = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    verdict: tables.Verdict = "overlap"
    if abs(mean) > spread:
        verdict = "better" if (mean > 0) != lower_is_better else "worse"
    summary = {"mean": mean, "low": mean - spread, "high": mean + spread, "values": differences}
    return Difference(verdict, summary)


def comparable_trials(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials that are done and have a defined score."""
    done = (trial for trial in document["trials"] if trial["status"] == "done")
    return [trial for trial in done if trial["score"] is not None and trial["score"]["mean"] is not None]


def batches_differ(document: Mapping[str, Any]) -> bool:
    """Whether trials have different batch sizes (T changes the batch at constant memory)."""
    return len({trial["batch_size"] for trial in document["trials"]} - {None}) > 1


def verdict_lines(document: Mapping[str, Any]) -> list[str]:
    """Sentences on the best trial, the base config, and trials that failed or are unfinished."""
    trials, comparable = document["trials"], comparable_trials(document)
    best = next((trial for trial in comparable if trial["id"] == document["best"]), None)
    base = next((trial for trial in trials if trial["is_default"]), None)
    lines = []
    if not trials:
        lines.append("The sweep has no trial yet.")
    elif best is None:
        lines.append("No trial is done with a defined score, so there is no best one.")
    elif base is None or base not in comparable:
        why = "is not in the sweep" if base is None else f"has no score to compare ({base['status']})"
        lines.append(f"Unknown whether the best trial is better than the base: the base {why}.")
    elif base is best:
        lines.append("The base has the best score.")
    else:
        lines.append(_against_base(document, best, base))
    if len(comparable) > 1 and best is not None:
        lower = not document["higher_is_better"]
        verdicts = Counter(
            difference(best["score"], trial["score"], lower_is_better=lower).verdict
            for trial in comparable
            if trial is not best
        )
        method = "paired seeds" if document["intervals"] == "seeds" else "intervals over videos"
        lines.append(
            f"{verdicts['overlap']} of {len(comparable) - 1} other finished trials cannot be distinguished from the "
            f"best one ({method})"
            + (f", {verdicts['unknown']} have no interval." if verdicts["unknown"] else ".")
        )
    if batches_differ(document):
        lines.append(
            "Trials with more frames a view have smaller batches, so that memory stays constant, and more steps an "
            "epoch: the effects of T, batch size and number of updates are not separated here."
        )
    counts = Counter(trial["status"] for trial in trials)
    if counts["failed"]:
        lines.append(f"Failed trials: {counts['failed']:,}; the table gives the reasons.")
    if counts["unfinished"]:
        lines.append(f"Unfinished trials: {counts['unfinished']:,}; the same command continues them.")
    return lines


def _against_base(document: Mapping[str, Any], best: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    found = difference(best["score"], base["score"], lower_is_better=not document["higher_is_better"])
    relation = {
        "better": "The best trial is better than the base",
        "unknown": "Unknown whether the best trial is better than the base (an interval is missing)",
    }.get(found.verdict, "The best trial and the base cannot be distinguished")
    if found.summary is None:
        return f"{relation}, by intervals over the validation videos."
    cell = score_cells(document["metric"], found.summary)["trained"]
    assert cell is not None
    sign = 1 if document["higher_is_better"] else -1
    won = sum(sign * value > 0 for value in found.summary["values"])
    seeds = len(found.summary["values"])
    return f"{relation}: paired difference {cell.value} ({cell.interval}), ahead with {won} of {seeds} seeds."


@dataclass(frozen=True)
class ComparisonRow:
    """One parameter or metric of the best trial and of the base."""

    title: str
    best: str
    base: str
    verdict: str
    """`differs` for parameters, a `tables.Verdict` for metrics; empty where there is none."""


def comparison_rows(document: Mapping[str, Any]) -> list[ComparisonRow]:
    """Parameters and metrics of the best trial beside the base's; empty without a best trial."""
    best = next((trial for trial in document["trials"] if trial["id"] == document["best"]), None)
    base = next((trial for trial in document["trials"] if trial["is_default"]), None)
    if best is None:
        return []
    rows = []
    for name, parameter in document["parameters"].items():
        ours, theirs = (
            value_text(v) for v in (best["values"].get(name, parameter["default"]), parameter["default"])
        )
        rows.append(ComparisonRow(printable(name), ours, theirs, "differs" if ours != theirs else ""))
    metrics, of_base = _trained(document, best), _trained(document, base)
    for name in tables.metric_names({"trained": metrics}):
        verdict = ""
        if name in of_base and base is not best:
            lower = not metric_of(name).higher_is_better
            verdict = difference(metrics[name], of_base[name], lower_is_better=lower).verdict
        ours, theirs = (_cell_text(name, found.get(name)) for found in (metrics, of_base))
        rows.append(ComparisonRow(tables.title_of(name), ours, theirs, verdict))
    return rows


def _cell_text(metric: str, summary: Summary | None) -> str:
    return str(score_cells(metric, summary)["trained"] or "–")


def _trained(document: Mapping[str, Any], trial: Mapping[str, Any] | None) -> dict[str, Summary]:
    """The metrics of a finished trial's trained encoder."""
    if trial is None or trial["status"] != "done" or trial["score"] is None:
        return {}
    return {document["metric"]: trial["score"], **((trial["metrics"] or {}).get("trained") or {})}


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper beside the sweep's numbers."""

    name: str
    state: str
    """Why there are no numbers; empty for a finished trial."""
    cells: tuple[tuple[str, str], ...]
    """For each metric the sweep's number and the paper's."""


def paper_rows(table: Mapping[str, Any], document: Mapping[str, Any]) -> list[PaperRow]:
    """The rows of one of the document's paper tables with the sweep's numbers; only finished trials have some."""
    trials = {trial["id"]: trial for trial in document["trials"]}
    rows = []
    for row in table["rows"]:
        trial = trials.get(row["trial"])
        found = _trained(document, trial)
        state = "not in the sweep" if trial is None else "" if found else trial["status"]
        cells = tuple(
            (_cell_text(metric, found.get(metric)), row["paper"].get(metric, ""))
            for metric in table["metrics"]
        )
        rows.append(PaperRow(row["name"], state, cells))
    return rows


def paper_findings(table: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    """For each metric the paper reports: its best row, the sweep's, and Spearman's rank correlation of the rows."""
    trials = {trial["id"]: trial for trial in document["trials"]}
    findings = []
    for metric in table["metrics"]:
        sign = 1 if metric_of(metric).higher_is_better else -1
        rows = [row for row in table["rows"] if metric in row["paper"]]
        paper = {row["name"]: sign * float(row["paper"][metric]) for row in rows}
        found = {row["name"]: _trained(document, trials.get(row["trial"])).get(metric) for row in rows}
        ours = {name: summary for name, summary in found.items() if summary and summary["mean"] is not None}
        means = {name: sign * summary["mean"] for name, summary in ours.items()}
        if not paper:
            continue
        papers_best = [name for name in paper if paper[name] == max(paper.values())]
        said = f"{tables.title_of(metric, whole=True)}: best row of the paper {' and '.join(papers_best)}"
        if len(ours) < 2:
            findings.append(f"{said}; too few rows here ({len(ours)}) to compare.")
            continue
        best = max(means, key=lambda name: (means[name], name in papers_best))
        rival = max(ours.keys() & set(papers_best), key=lambda name: means[name], default=best)
        said += f", of this sweep {best}"
        if best not in papers_best and rival != best:
            verdict = difference(ours[best], ours[rival], lower_is_better=sign < 0).verdict
            said += " (distinguishable)" if verdict in ("better", "worse") else " (not distinguishable)"
        columns = [paper[name] for name in ours], list(means.values())
        correlation = "undefined"
        if len(ours) > 2 and all(len(set(column)) > 1 for column in columns):
            correlation = f"{stats.spearmanr(*columns).statistic:.2f}".replace("-", "−")
        findings.append(f"{said}. Rank correlation with the paper over {len(ours)} rows: {correlation}.")
    return findings


def label_free_line(document: Mapping[str, Any]) -> str:
    """How the score without labels ranks the finished trials compared with the labelled metric."""
    found = document["label_free"]
    if found is None:
        return "The score without labels was not compared with a labelled metric."
    said = f"Rank correlation of the score without labels with {tables.title_of(found['against'], whole=True)} over "
    if found["rank_correlation"] is None:
        return f"{said}{found['num_trials']} trials: none (at least {found['least_trials']} with different scores)."
    value = f"{found['rank_correlation']:.2f}".replace("-", "−")
    return f"{said}{found['num_trials']} trials: {value} (1: the same order, 0: none)."
