"""The files of a sweep's trials: points, outcomes and scores. They are the state of a sweep.

SWEEP/trials/<id>/point.json      written when the trial begins
SWEEP/trials/<id>/outcome.json    how it ended
SWEEP/trials/<id>/seed-0/         a run folder (config.json, checkpoints/, …), and
measured/epoch-00000020.json: the metrics of the checkpoint of that epoch
"""

from __future__ import annotations

import statistics
from typing import Any, Literal

from carl_ray import storage
from carl_ray.sweeps.definition import Sweep, read_document, trial_id, write_document
from carl_ray.sweeps.space import Point
from carl_ray.training.checkpoint import CHECKPOINTS

Status = Literal["done", "stopped", "failed", "unfinished"]

_TRIALS = "trials"
_POINT, _OUTCOME = "point.json", "outcome.json"


def trial_folder(folder: str, trial: str) -> str:
    """URI of a trial's folder."""
    return storage.join(folder, _TRIALS, trial)


def run_dir(folder: str, trial: str, seed: int) -> str:
    """URI of the run folder of a trial's training seed."""
    return storage.join(trial_folder(folder, trial), f"seed-{seed}")


def write_point(folder: str, sweep: Sweep, point: Point) -> None:
    """Record that the trial of a point has begun."""
    write_document(storage.join(trial_folder(folder, trial_id(sweep, point)), _POINT), dict(point))


def begun_points(folder: str) -> dict[str, Point]:
    """The points of all trials begun in a folder, by trial."""
    trials = sorted(storage.list_folder(storage.join(folder, _TRIALS)))
    points = {trial: read_document(storage.join(trial_folder(folder, trial), _POINT)) for trial in trials}
    return {trial: point for trial, point in points.items() if point is not None}


def write_outcome(folder: str, trial: str, status: Status, reason: str | None, start: str) -> None:
    """Record how a trial ended, and in which call of the sweep (`start`)."""
    document = {"status": status, "reason": reason, "start": start}
    write_document(storage.join(trial_folder(folder, trial), _OUTCOME), document)


def read_outcome(folder: str, trial: str) -> dict[str, Any]:
    """`status`, `reason` and `start` of a trial; unfinished without a record."""
    document = read_document(storage.join(trial_folder(folder, trial), _OUTCOME))
    return {"status": "unfinished", "reason": None, "start": None} if document is None else document


def has_ended(sweep: Sweep, folder: str, trial: str) -> bool:
    """Whether a trial is done or was stopped early, and its measurements exist."""
    status = read_outcome(folder, trial)["status"]
    if status == "done":
        return score_at(sweep, folder, trial, sweep.rungs[-1]) is not None
    return status == "stopped" and last_score(sweep, folder, trial) is not None


def measured_uri(run: str, epoch: int) -> str:
    """URI of the metrics of a run after an epoch."""
    return storage.join(run, "measured", f"epoch-{epoch:08d}.json")


def measured(run: str, epoch: int) -> dict[str, Any] | None:
    """Metrics of a run after an epoch on the validation videos; none where missing or damaged.

    The document is that of metrics.json (`carl_ray.evaluation.protocol.evaluate`) with `LABEL_FREE` among the
    metrics, `training_seconds` since the start of the run, and `measuring_seconds`.
    """
    document = read_document(measured_uri(run, epoch))
    return document if document is not None and {"origin", "trained"} <= document.keys() else None


def score_at(sweep: Sweep, folder: str, trial: str, epoch: int) -> float | None:
    """The mean score of a trial's runs after an epoch; none where a run was not measured there."""
    found = [measured(run_dir(folder, trial, seed), epoch) for seed in sweep.training_seeds]
    values = [document["trained"][sweep.metric]["value"] for document in found if document is not None]
    return statistics.fmean(values) if len(values) == sweep.seeds and None not in values else None


def last_score(sweep: Sweep, folder: str, trial: str) -> tuple[int, float] | None:
    """The last rung at which all runs of a trial were measured, and the mean score there; none without any."""
    for epoch in reversed(sweep.rungs):
        score = score_at(sweep, folder, trial, epoch)
        if score is not None:
            return epoch, score
    return None


def was_promoted(sweep: Sweep, folder: str, trial: str, epoch: int) -> bool:
    """Whether a run of a trial has a checkpoint later than the one measured at a rung."""
    for seed in sweep.training_seeds:
        run = run_dir(folder, trial, seed)
        found = measured(run, epoch)
        if found is not None:
            last = f"step-{found['origin']['step']:08d}"
            names = storage.list_folder(storage.join(run, CHECKPOINTS))
            if any(name.startswith("step-") and name > last for name in names):
                return True
    return False
