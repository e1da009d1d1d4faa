"""The results of a sweep's folder: results.json, results.csv and results.parquet."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from carl_ray import storage
from carl_ray.errors import UserError
from carl_ray.evaluation.controls import VARIANTS
from carl_ray.sweeps.definition import LABEL_FREE, Sweep, trial_id, write_document
from carl_ray.sweeps.space import LogRange, Point, default_point
from carl_ray.sweeps.trials import begun_points, measured, read_outcome, run_dir

_LEVEL = 0.95
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
    trial of the best mean.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        about: Further entries: command, date, machine, search.
    """
    base_values = default_point(sweep.space, sweep.base)
    trials = [_trial(sweep, folder, trial, point) for trial, point in begun_points(folder).items()]
    done = [trial for trial in trials if trial["status"] == "done"]
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
    }


def _trial(sweep: Sweep, folder: str, trial: str, point: Point) -> dict[str, Any]:
    """The entry of a trial."""
    rungs: dict[int, list[dict[str, Any]]] = {}
    for epoch in sweep.rungs:
        found = [measured(run_dir(folder, trial, seed), epoch) for seed in sweep.training_seeds]
        rungs[epoch] = [document for document in found if document is not None]
    scores = {
        epoch: _summary(
            sweep.metric, [document["trained"].get(sweep.metric, {"value": None}) for document in documents]
        )
        for epoch, documents in rungs.items()
        if len(documents) == sweep.seeds
    }
    epochs = max(scores, default=0)
    last = rungs.get(epochs, [])
    try:
        batch_size = sweep.run_config(point, sweep.base.training.seed).training.global_batch_size
    except UserError:
        batch_size = None
    metrics = {
        # Not all metrics of a run measured by an earlier version.
        variant: {
            name: _summary(name, [found[variant][name] for found in last])
            for name in last[0][variant]
            if all(name in (found.get(variant) or {}) for found in last)
        }
        for variant in VARIANTS
        if last and last[0].get(variant) is not None
    }
    status, reason = read_outcome(sweep, folder, trial)
    base_values = default_point(sweep.space, sweep.base)
    return {
        "id": trial,
        "status": status,
        "reason": reason,
        "values": {**base_values, **point},
        "is_default": trial == trial_id(sweep, base_values),
        "batch_size": batch_size,
        "epochs": epochs,
        "steps": last[0]["origin"]["step"] if last else None,
        "seconds": sum(document["training_seconds"] for document in last)
        + sum(document["measuring_seconds"] for documents in rungs.values() for document in documents),
        "checkpoint": last[0]["origin"]["checkpoint"] if last else None,
        "score": scores.get(epochs),
        "rungs": [{"epoch": epoch, "score": score["mean"]} for epoch, score in scores.items()],
        "metrics": metrics or None,
    }


def _summary(metric: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, interval and values of a metric over the seeds."""
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


def write_results(folder: str, document: Mapping[str, Any]) -> None:
    """Write a sweep's document as results.json, and its trials as results.csv and results.parquet."""
    write_document(storage.join(folder, "results.json"), document)
    table = trial_table(document)
    storage.write_bytes(storage.join(folder, "results.csv"), table.to_csv(index=False).encode())
    storage.write_bytes(storage.join(folder, "results.parquet"), table.to_parquet(index=False))


def trial_table(document: Mapping[str, Any]) -> pd.DataFrame:
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
    table = pd.DataFrame(rows).convert_dtypes(convert_floating=False)
    # Parquet has no columns of mixed types: text where any value is text.
    mixed = [name for name in table.select_dtypes("object") if table[name].notna().any()]
    return table.astype(dict.fromkeys(mixed, "string"))
