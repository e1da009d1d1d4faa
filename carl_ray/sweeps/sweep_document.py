"""The results of a sweep's folder: results.json, results.csv and results.parquet."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from scipy import stats

from carl_ray import storage
from carl_ray.errors import UserError
from carl_ray.evaluation.controls import VARIANTS
from carl_ray.paper import protocol_of
from carl_ray.sweeps.definition import LABEL_FREE, Sweep, default_metric, trial_id, write_document
from carl_ray.sweeps.paper_tables import Table
from carl_ray.sweeps.space import LogRange, Point, default_point
from carl_ray.sweeps.trial_records import begun_points, measured, read_outcome, run_dir

_LEVEL = 0.95
_LEAST_RANKED = 5
"""Fewer trials give no rank correlation."""
_RANGES = {
    "kendalls_tau": (-1.0, 1.0),
    "phase_progression": (-math.inf, 1.0),
    LABEL_FREE: (-math.inf, math.inf),
}
"""Lowest and highest value of the metrics that are not shares."""


def sweep_document(sweep: Sweep, folder: str, about: Mapping[str, str]) -> dict[str, Any]:
    """All results of a sweep so far, as plain JSON.

    `trials[i]` holds `id`, `status`, `reason`, `values` of the parameters, `batch_size`, `is_default`, `epochs` and
    `steps` reached, `seconds` of training and measuring, `checkpoint` of the first seed, `score`, `rungs` and
    `metrics[variant][metric]`; scores and metrics are `{"mean", "low", "high", "values"}` over the seeds at the last
    rung that all of them reached. Intervals are 95 %: Student's t over the seeds, clipped to the metric's range, or
    with one seed, and for controls that no seed changes, the bootstrap over validation videos. `best` is the finished
    trial of the best mean; `label_free` the rank correlation of the score without labels with the labelled metric over
    finished trials; `tables` the rows of the paper's tables in the space.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        about: Further entries: command, date, machine, search.
    """
    base_values = default_point(sweep.space, sweep.base)
    default = trial_id(sweep, base_values)
    trials = [
        {**_trial(sweep, folder, trial, point), "is_default": trial == default}
        for trial, point in begun_points(folder).items()
    ]
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
            name: {"log": isinstance(parameter, LogRange), "default": base_values[name]}
            for name, parameter in sweep.space.parameters.items()
        },
        "trials": trials,
        "best": None if best is None else best["id"],
        "label_free": _label_free(sweep, done),
        "tables": [_paper_table(sweep, name, table) for name, table in sweep.space.tables.items()],
    }


def _trial(sweep: Sweep, folder: str, trial: str, point: Point) -> dict[str, Any]:
    metric = sweep.metric
    rungs: list[tuple[int, list[dict[str, Any]]]] = []
    for epoch in sweep.rungs:
        found = [measured(run_dir(folder, trial, seed), epoch) for seed in sweep.training_seeds]
        rungs.append((epoch, [document for document in found if document is not None]))
    complete = [(epoch, documents) for epoch, documents in rungs if len(documents) == sweep.seeds]
    epochs, last = complete[-1] if complete else (0, [])
    try:
        batch_size = sweep.run_config(point, sweep.base.training.seed).training.global_batch_size
    except UserError:
        batch_size = None
    outcome = read_outcome(folder, trial)
    return {
        "id": trial,
        "status": outcome["status"],
        "reason": outcome["reason"],
        "values": {**default_point(sweep.space, sweep.base), **point},
        "batch_size": batch_size,
        "epochs": epochs,
        "steps": last[0]["origin"]["step"] if last else None,
        "seconds": sum(document["training_seconds"] for document in last)
        + sum(document["measuring_seconds"] for _, documents in rungs for document in documents),
        "checkpoint": last[0]["origin"]["checkpoint"] if last else None,
        "score": _summary(metric, [document["trained"][metric] for document in last]) if last else None,
        "rungs": [
            {
                "epoch": epoch,
                "score": _summary(metric, [found["trained"][metric] for found in documents])["mean"],
            }
            for epoch, documents in complete
        ],
        "metrics": {
            variant: {
                name: _summary(name, [document[variant][name] for document in last])
                for name in last[0][variant]
            }
            for variant in VARIANTS
            if last[0][variant] is not None
        }
        if last
        else None,
    }


def _summary(metric: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [entry["value"] for entry in entries]
    if None in values:
        return {"mean": None, "low": None, "high": None, "values": values}
    mean = statistics.fmean(values)
    low, high = entries[0]["low"], entries[0]["high"]
    # Controls that no seed changes keep the interval over videos.
    if len(set(values)) > 1:
        spread = stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * stats.sem(values)
        least, most = _RANGES.get(metric, (0.0, 1.0))
        low, high = max(least, float(mean - spread)), min(most, float(mean + spread))
    return {"mean": mean, "low": low, "high": high, "values": values}


def _label_free(sweep: Sweep, done: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Spearman's rank correlation of the trials' mean score without labels with their labelled one."""
    against = default_metric(sweep.base.preset)
    pairs = [
        (trained[LABEL_FREE]["mean"], trained[against]["mean"])
        for trained in (trial["metrics"]["trained"] for trial in done)
        if against in trained and trained[against]["mean"] is not None
    ]
    if not pairs:
        return None
    columns = list(zip(*pairs, strict=True))
    correlation = None
    if len(pairs) >= _LEAST_RANKED and all(len(set(column)) > 1 for column in columns):
        correlation = float(stats.spearmanr(*columns).statistic)
    return {
        "name": LABEL_FREE,
        "against": against,
        "rank_correlation": correlation,
        "num_trials": len(pairs),
        "least_trials": _LEAST_RANKED,
    }


def _paper_table(sweep: Sweep, name: str, table: Table) -> dict[str, Any]:
    # What the paper calls classification on FineGym is a linear probe.
    finegym = protocol_of(sweep.base.preset) == "finegym"
    named = {m: m.replace("phase_classification", "linear_probe") if finegym else m for m in table.metrics}
    return {
        "table": name,
        "title": table.title,
        "metrics": list(named.values()),
        "note": table.note,
        "rows": [
            {
                "name": row.name,
                "trial": trial_id(sweep, row.options),
                "paper": {named[metric]: number for metric, number in row.paper.items()},
            }
            for row in table.rows
        ],
    }


def best_trial(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best trial of a sweep's document; none where none is done."""
    return next((trial for trial in document["trials"] if trial["id"] == document["best"]), None)


def write_results(folder: str, document: Mapping[str, Any]) -> None:
    """Write a sweep's document as results.json, and its trials as results.csv and results.parquet."""
    write_document(storage.join(folder, "results.json"), document)
    rows = trial_table(document)
    for name, write in (("results.csv", pyarrow.csv.write_csv), ("results.parquet", pq.write_table)):
        buffer = io.BytesIO()
        write(rows, buffer)
        storage.write_bytes(storage.join(folder, name), buffer.getvalue())


def trial_table(document: Mapping[str, Any]) -> pa.Table:
    """The trials of a sweep's document, a row each: config, score, metrics with controls, time, checkpoint."""
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
    """An Arrow column; text where any value is text, floats where any is a float."""
    kind = next((kind for kind in (str, float) if any(isinstance(value, kind) for value in values)), None)
    return pa.array([value if value is None or kind is None else kind(value) for value in values])
