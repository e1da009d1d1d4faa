"""A sweep's folder becomes its results: one document, one table, and the best config."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from scipy import stats

from carl_ray import storage
from carl_ray.errors import UserError
from carl_ray.evaluation.metrics import VARIANTS, protocol_of
from carl_ray.sweeps.paper_tables import Table
from carl_ray.sweeps.space import LogRange, Point, default_point
from carl_ray.sweeps.trial import (
    LABEL_FREE,
    Sweep,
    default_metric,
    measured,
    read_document,
    run_dir,
    trial_folder,
    trial_id,
    trial_ids,
)

Status = Literal["done", "stopped", "failed", "unfinished"]

_OUTCOME = "outcome.json"
_POINT = "point.json"
_LEVEL = 0.95
_LEAST_RANKED = 5
"""A rank correlation over fewer trials says nothing."""


def write_point(folder: str, sweep: Sweep, point: Point) -> None:
    """Writes down that the trial of a point is begun."""
    uri = storage.join(trial_folder(folder, trial_id(sweep, point)), _POINT)
    storage.write_bytes(uri, (json.dumps(dict(point), indent=2) + "\n").encode())


def write_outcome(folder: str, trial: str, status: Status, reason: str | None, start: str) -> None:
    """Writes down how a trial ended, and in which call of the sweep."""
    document = {"status": status, "reason": reason, "start": start}
    uri = storage.join(trial_folder(folder, trial), _OUTCOME)
    storage.write_bytes(uri, (json.dumps(document, indent=2) + "\n").encode())


def read_outcome(folder: str, trial: str) -> dict[str, Any]:
    """How a trial ended: `status`, `reason` and `start`; a trial without an end is unfinished."""
    document = read_document(storage.join(trial_folder(folder, trial), _OUTCOME))
    return {"status": "unfinished", "reason": None, "start": None} if document is None else document


def read_point(folder: str, trial: str) -> dict[str, Any] | None:
    """The point of a trial that was begun, or none."""
    return read_document(storage.join(trial_folder(folder, trial), _POINT))


def begun_points(folder: str) -> dict[str, Point]:
    """The points of all trials that were begun in a folder, by trial."""
    points = {trial: read_point(folder, trial) for trial in trial_ids(folder)}
    return {trial: point for trial, point in points.items() if point is not None}


def has_ended(sweep: Sweep, folder: str, trial: str) -> bool:
    """Whether a trial is done or was stopped early, and what it was measured at is there."""
    status = read_outcome(folder, trial)["status"]
    if status == "done":
        return score_at(sweep, folder, trial, sweep.rungs[-1]) is not None
    return status == "stopped" and last_score(sweep, folder, trial) is not None


def score_at(sweep: Sweep, folder: str, trial: str, epoch: int) -> float | None:
    """The mean score of a trial's runs after an epoch, or none where not all of them were measured there."""
    found = [measured(run_dir(folder, trial, seed), epoch) for seed in sweep.training_seeds]
    values = [document["trained"][sweep.metric]["value"] for document in found if document is not None]
    return statistics.fmean(values) if len(values) == sweep.seeds and None not in values else None


def last_score(sweep: Sweep, folder: str, trial: str) -> tuple[int, float] | None:
    """The last rung that all runs of a trial were measured at, with their mean score there; none without any."""
    for epoch in reversed(sweep.rungs):
        score = score_at(sweep, folder, trial, epoch)
        if score is not None:
            return epoch, score
    return None


def sweep_document(sweep: Sweep, folder: str, about: Mapping[str, str]) -> dict[str, Any]:
    """Everything a sweep has found so far, as plain JSON.

    `trials[i]` holds `id`, `status`, `reason`, `values` of the parameters, `batch_size`, `is_default`, `epochs` and
    `steps` reached, `seconds` of training and measuring, `checkpoint` of the first seed, `score`, `rungs` and
    `metrics[variant][metric]`; scores and metrics are `{"mean", "low", "high", "values"}` over the seeds at the last
    rung that all of them reached. Intervals are 95 %: Student's t over the seeds, within what the metric can be, or
    with one seed, and of controls that no seed changes, the bootstrap over validation videos. `best` is the trial of
    the best mean among those that are done; `label_free` how the score without labels ranks the trials that are done
    against the labelled one, where they are enough to say; `tables` the rows of the paper that the sweep has.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        about: What else to say of it: command, date, machine, search.
    """
    default = trial_id(sweep, default_point(sweep.space, sweep.base))
    trials = []
    for trial, point in begun_points(folder).items():
        trials.append({**_trial(sweep, folder, trial, point), "is_default": trial == default})
    done = [trial for trial in trials if trial["status"] == "done" and trial["score"] is not None]
    sign = 1 if sweep.higher_is_better else -1
    best = max(done, key=lambda trial: sign * trial["score"]["mean"], default=None)
    return {
        "space": sweep.space.name,
        "preset": sweep.base.preset,
        **about,
        "metric": sweep.metric,
        "higher_is_better": sweep.higher_is_better,
        "seeds": sweep.seeds,
        "epochs": sweep.rungs[-1],
        "rungs": list(sweep.rungs),
        "intervals": "seeds" if sweep.seeds > 1 else "videos",
        "parameters": {
            name: {"log": isinstance(parameter, LogRange), "default": value}
            for (name, parameter), value in zip(
                sweep.space.parameters.items(), default_point(sweep.space, sweep.base).values(), strict=True
            )
        },
        "trials": trials,
        "best": None if best is None else best["id"],
        "label_free": _label_free(sweep, done),
        "tables": [_paper_table(sweep, name, table) for name, table in sweep.space.tables.items()],
    }


def _trial(sweep: Sweep, folder: str, trial: str, point: Point) -> dict[str, Any]:
    rungs: list[tuple[int, list[dict[str, Any]]]] = []
    for epoch in sweep.rungs:
        found = [measured(run_dir(folder, trial, seed), epoch) for seed in sweep.training_seeds]
        rungs += [(epoch, [document for document in found if document is not None])]
    whole = [(epoch, documents) for epoch, documents in rungs if len(documents) == sweep.seeds]
    epoch, last = whole[-1] if whole else (0, [])
    outcome = read_outcome(folder, trial)
    return {
        "id": trial,
        "status": outcome["status"],
        "reason": outcome["reason"],
        "values": trial_values(sweep, point),
        "batch_size": _batch_size(sweep, point),
        "epochs": epoch,
        "steps": last[0]["origin"]["step"] if last else None,
        "seconds": sum(document["training_seconds"] for document in last)
        + sum(document["measuring_seconds"] for _, documents in rungs for document in documents),
        "checkpoint": last[0]["origin"]["checkpoint"] if last else None,
        "score": _summary(sweep.metric, [document["trained"][sweep.metric] for document in last])
        if last
        else None,
        "rungs": [
            {
                "epoch": epoch,
                "score": _summary(
                    sweep.metric, [document["trained"][sweep.metric] for document in documents]
                )["mean"],
            }
            for epoch, documents in whole
        ],
        "metrics": {
            variant: {
                metric: _summary(metric, [document[variant][metric] for document in last])
                for metric in last[0][variant]
            }
            for variant in VARIANTS
            if last[0][variant] is not None
        }
        if last
        else None,
    }


def trial_values(sweep: Sweep, point: Point) -> dict[str, Any]:
    """The values of all parameters of the space at a point: the base config's where it has none."""
    # Not through the config of the run: a point that does not fit has values, too.
    return {**default_point(sweep.space, sweep.base), **point}


def _batch_size(sweep: Sweep, point: Point) -> int | None:
    """Videos of a step, which may follow from T; none where the point does not fit."""
    try:
        return sweep.run_config(point, sweep.base.training.seed).training.global_batch_size
    except UserError:
        return None


def _summary(metric: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [entry["value"] for entry in entries]
    if None in values:
        return {"mean": None, "low": None, "high": None, "values": values}
    mean = statistics.fmean(values)
    low, high = entries[0]["low"], entries[0]["high"]
    # A control that no seed changes has no spread over them, but is not certain: other videos would change it.
    if len(set(values)) > 1:
        spread = stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * stats.sem(values)
        least, most = _range(metric)
        low, high = max(least, float(mean - spread)), min(most, float(mean + spread))
    return {"mean": mean, "low": low, "high": high, "values": values}


def _range(metric: str) -> tuple[float, float]:
    """The lowest and the highest value that a metric can have."""
    match metric:
        case "kendalls_tau":
            return -1.0, 1.0
        case "phase_progression":
            return -math.inf, 1.0
        case _ if metric == LABEL_FREE:
            return -math.inf, math.inf
        case _:
            return 0.0, 1.0


def _label_free(sweep: Sweep, done: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Spearman's rank correlation of the score without labels with the one that has them, over the trials' means."""
    against = default_metric(sweep.base.preset)
    pairs = [
        (trained[LABEL_FREE]["mean"], trained[against]["mean"])
        for trained in (trial["metrics"]["trained"] for trial in done)
        if against in trained and trained[against]["mean"] is not None
    ]
    if not pairs:
        return None
    correlation = None
    if len(pairs) >= _LEAST_RANKED and len({a for a, _ in pairs}) > 1 and len({b for _, b in pairs}) > 1:
        correlation = float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    return {
        "name": LABEL_FREE,
        "against": against,
        "rank_correlation": correlation,
        "num_trials": len(pairs),
        "least_trials": _LEAST_RANKED,
    }


def _paper_table(sweep: Sweep, name: str, table: Table) -> dict[str, Any]:
    def measured_as(metric: str) -> str:
        """The paper calls FineGym's linear probe classification, too."""
        finegym = protocol_of(sweep.base.preset) == "finegym"
        return metric.replace("phase_classification", "linear_probe") if finegym else metric

    return {
        "table": name,
        "title": table.title,
        "metrics": [measured_as(metric) for metric in table.metrics],
        "note": table.note,
        "rows": [
            {
                "name": row.name,
                "trial": trial_id(sweep, row.options),
                "paper": {measured_as(metric): number for metric, number in row.paper.items()},
            }
            for row in table.rows
        ],
    }


def table(document: Mapping[str, Any]) -> pa.Table:
    """The trials of a sweep's document, a row each: configuration, score, metrics with controls, time, checkpoint."""
    rows = []
    for trial in document["trials"]:
        row = {name: trial[name] for name in ("id", "status", "reason", "is_default")}
        row |= {f"config.{name}": value for name, value in trial["values"].items()}
        row |= {name: trial[name] for name in ("batch_size", "epochs", "steps")}
        row |= {"seeds": document["seeds"], "metric": document["metric"]}
        row |= {f"score.{name}": (trial["score"] or {}).get(name) for name in ("mean", "low", "high")}
        row |= {"seconds": trial["seconds"], "checkpoint": trial["checkpoint"]}
        for variant, metrics in (trial["metrics"] or {}).items():
            row |= {f"{variant}.{name}": entry["mean"] for name, entry in metrics.items()}
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    if any(isinstance(value, str) for value in values):
        values = [None if value is None else str(value) for value in values]
    elif any(isinstance(value, float) for value in values):
        values = [None if value is None else float(value) for value in values]
    return pa.array(values)


def csv_bytes(rows: pa.Table) -> bytes:
    """A table as CSV, with its header."""
    buffer = io.BytesIO()
    pa.csv.write_csv(rows, buffer)
    return buffer.getvalue()


def parquet_bytes(rows: pa.Table) -> bytes:
    """A table as Parquet."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    return buffer.getvalue()
