"""sweep.html: one file with the trials of a sweep, their scores and how far they differ."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping
from typing import Any

from scipy import stats

from carl_ray import storage
from carl_ray.evaluation.controls import CONTROLS, VARIANTS
from carl_ray.evaluation.nearest_frames import printable
from carl_ray.evaluation.tasks import metric_of
from carl_ray.progress import duration
from carl_ray.report import tables
from carl_ray.report.page import template
from carl_ray.report.sweep_figures import epoch_plot, parameter_plots

Summary = Mapping[str, Any]
"""`mean`, `low`, `high` and `values` by seed of one metric (`carl_ray.sweeps.results.sweep_document`)."""
Rows = list[list[str]]
"""A table as texts, its header first."""

_STATUSES = ("done", "stopped", "unfinished", "failed")
"""In the order of the table."""


def write_sweep_page(out_uri: str, document: Mapping[str, Any]) -> None:
    """Write the page of a sweep; the same document gives the same bytes.

    Args:
        out_uri: The HTML file.
        document: The sweep's document (`carl_ray.sweeps.results.sweep_document`). A value missing in a trial is the
            parameter's default.

    Raises:
        RunError: the storage refuses, fails or is full.
    """
    numbers = {trial["id"]: number for number, trial in enumerate(ordered_trials(document), start=1)}
    counts = Counter(trial["status"] for trial in document["trials"])
    page = template("sweep.html.jinja").render(
        document=document,
        statuses=[f"{counts[status]} {status}" for status in _STATUSES if counts[status]],
        total=duration(sum(trial["seconds"] or 0.0 for trial in document["trials"])),
        metric=metric_of(document["metric"]).title,
        verdict=verdict_lines(document),
        trials=trial_rows(document),
        plots=parameter_plots(document, numbers),
        curves=epoch_plot(document, numbers),
    )
    storage.write_bytes(out_uri, page.encode())


def ordered_trials(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials: finished ones by score, then stopped, unfinished and failed ones by epochs."""
    sign = 1 if document["higher_is_better"] else -1

    def order(trial: Mapping[str, Any]) -> tuple[Any, ...]:
        mean = (trial["score"] or {}).get("mean")
        epochs = 0 if trial["status"] == "done" else trial["epochs"] or 0
        return (_STATUSES.index(trial["status"]), -epochs, mean is None, -sign * (mean or 0.0), trial["id"])

    return sorted(document["trials"], key=order)


def trial_rows(document: Mapping[str, Any]) -> Rows:
    """A row for each trial, in the order of `ordered_trials`: parameters, score with controls, all other metrics."""
    parameters, metric = document["parameters"], document["metric"]
    best, _ = _best_and_base(document)
    evaluated = {control for trial in document["trials"] for control in trial["metrics"] or {}}
    controls = [control for control in CONTROLS if control != "frozen" or control in evaluated]
    measured = [trial["metrics"]["trained"] for trial in document["trials"] if trial["metrics"]]
    names = tables.metric_names({"trained": dict.fromkeys(name for metrics in measured for name in metrics)})
    others = [name for name in names if name != metric]
    header = ["Trial", *parameters, metric_of(metric).title, "against the best", *controls]
    header += [*(metric_of(name).title for name in others), "Status", "Epochs", "Batch size", "Steps", "Time"]
    rows = [[*header, "Checkpoint", "Id"]]
    for number, trial in enumerate(ordered_trials(document), start=1):
        metrics = trial["metrics"] or {}
        score = _cell(metric, trial["score"])
        if trial["score"] is not None and trial["status"] != "done":
            score += f", at epoch {trial['epochs']}"
        rows.append(
            [
                f"{number}{' (best)' if trial is best else ''}{' (base)' if trial['is_default'] else ''}",
                *(value_text(trial["values"].get(name, parameters[name]["default"])) for name in parameters),
                score,
                "" if trial is best else _versus(document, trial, best),
                *(_cell(metric, metrics.get(control, {}).get(metric)) for control in controls),
                *(_cell(name, metrics.get("trained", {}).get(name)) for name in others),
                f"{trial['status']}{': ' + trial['reason'] if trial['reason'] else ''}",
                *(value_text(trial[name]) for name in ("epochs", "batch_size", "steps")),
                "–" if trial["seconds"] is None else duration(trial["seconds"]),
                trial["checkpoint"] or "–",
                trial["id"],
            ]
        )
    return rows


def difference(metric: str, first: Summary, second: Summary) -> tuple[tables.Verdict, Summary | None]:
    """Compare two summaries of a metric by paired seeds, or by intervals if they share fewer than two seeds.

    Returns:
        Verdict on the first against the second (`overlap`: indistinguishable); first minus second over the seeds with
        its 95 % interval (Student's t), None where intervals are compared.
    """
    is_lower_better = not metric_of(metric).higher_is_better
    ours, theirs = first["values"], second["values"]
    if len(ours) != len(theirs) or len(ours) < 2 or None in (*ours, *theirs):
        return tables.compare(first, second, lower_is_better=is_lower_better), None
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(differences)
    spread = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    summary = {"mean": mean, "low": mean - spread, "high": mean + spread, "values": differences}
    if abs(mean) <= spread:
        return "overlap", summary
    return ("better" if (mean > 0) != is_lower_better else "worse"), summary


def verdict_lines(document: Mapping[str, Any]) -> list[str]:
    """Sentences on the best trial against the base config, and on trials that failed or are unfinished."""
    trials, metric = document["trials"], document["metric"]
    best, base = _best_and_base(document)
    if not trials:
        lines = ["The sweep has no trial yet."]
    elif best is None:
        lines = ["No trial is done with a defined score, so there is no best one."]
    elif base is best:
        lines = ["The base has the best score."]
    elif metric not in (of_base := _trained(document, base)) or of_base[metric]["mean"] is None:
        why = "is not in the sweep" if base is None else f"has no score to compare ({base['status']})"
        lines = [f"Unknown whether the best trial is better than the base: the base {why}."]
    else:
        verdict, summary = difference(metric, best["score"], of_base[metric])
        relation = {
            "better": "The best trial is better than the base",
            "unknown": "Unknown whether the best trial is better than the base (an interval is missing)",
        }.get(verdict, "The best trial and the base cannot be distinguished")
        how = ", by intervals over the validation videos"
        if summary is not None:
            sign = 1 if document["higher_is_better"] else -1
            won = sum(sign * value > 0 for value in summary["values"])
            how = (
                f": paired difference {_cell(metric, summary)}, ahead with {won} of {document['seeds']} seeds"
            )
        lines = [f"{relation}{how}."]
    if _batches_differ(document):
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


def value_text(value: Any) -> str:
    """A value as text: numbers with up to six digits, no control characters; a dash for none."""
    if value is None or isinstance(value, str):
        return "–" if value is None else printable(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.6g}".replace("-", "−")
    return json.dumps(value, ensure_ascii=False)


def _batches_differ(document: Mapping[str, Any]) -> bool:
    """Whether trials have different batch sizes (T changes the batch at constant memory)."""
    return len({trial["batch_size"] for trial in document["trials"]} - {None}) > 1


def _best_and_base(document: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The best finished trial, and that of the base config; None where there is none."""
    trials = document["trials"]
    best = next((trial for trial in trials if trial["id"] == document["best"]), None)
    return best, next((trial for trial in trials if trial["is_default"]), None)


def _trained(document: Mapping[str, Any], trial: Mapping[str, Any] | None) -> dict[str, Summary]:
    """The metrics of a finished trial's trained encoder; empty for any other trial."""
    if trial is None or trial["status"] != "done" or trial["score"] is None:
        return {}
    return {document["metric"]: trial["score"], **((trial["metrics"] or {}).get("trained") or {})}


def _versus(document: Mapping[str, Any], trial: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    """How a finished trial's score compares with the best one's."""
    score = _trained(document, trial).get(document["metric"])
    if best is None or score is None or score["mean"] is None:
        return ""
    verdict, _ = difference(document["metric"], score, best["score"])
    return {"better": "▲ better", "worse": "▼ worse", "overlap": "≈ not distinguishable"}.get(
        verdict, "unknown"
    )


def _cell(metric: str, summary: Summary | None) -> str:
    """A summary as text, "92.0 [91.0, 93.0]"."""
    if summary is None:
        return "–"
    entry = {"value": summary["mean"], "low": summary["low"], "high": summary["high"]}
    (row,) = tables.metric_rows({VARIANTS[0]: {metric: entry}}, [metric])
    return str(row.cells[VARIANTS[0]])
