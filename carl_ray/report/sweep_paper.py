"""A sweep beside the paper: rows of its tables, ours and theirs, and what the comparison says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from carl_ray.evaluation.metrics import LOWER_IS_BETTER
from carl_ray.report import tables
from carl_ray.report.sweep_trials import count_text, difference, score_cells


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
                        score_cells(metric, trained.get(metric), {})["trained"], row["paper"].get(metric, "")
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
    """Whether the paper's best row is ours, and the rank correlation, over the rows with a number there."""
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
        verdict = difference(ours[best], ours[rival], lower_is_better=sign < 0).verdict
        weight = {
            "overlap": ", but the two cannot be told apart",
            "unknown": "; an interval is missing, so nothing says how firmly",
        }.get(verdict, ", and the two can be told apart")
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
    name, trials = found["name"].replace("_", " "), count_text(found["num_trials"], "trial")
    labelled = tables.title_of(found["against"], whole=True)
    if found["num_trials"] < found["least_trials"]:
        return (
            f"The score that needs no labels ({name}): {trials} done are too few for a rank correlation with "
            f"{labelled}; {found['least_trials']} are the least."
        )
    if found["rank_correlation"] is None:
        return (
            f"The score that needs no labels ({name}): its rank correlation with {labelled} is undefined over "
            f"{trials} done."
        )
    return (
        f"The score that needs no labels ({name}) ranks the {trials} done like {labelled} with a rank correlation "
        f"(Spearman) of {_signed(found['rank_correlation'])}; 1 is the same order, 0 none."
    )


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
