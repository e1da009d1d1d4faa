"""The trials of a sweep: their files, which are its state, and how one is trained and measured.

SWEEP/trials/<id>/point.json      written when the trial begins
SWEEP/trials/<id>/outcome.json    why it ended before its last rung: stopped or failed
SWEEP/trials/<id>/seed-0/         a run folder (config.json, checkpoints/, …), and in it
measured/epoch-00000020.json      the metrics of the checkpoint of that epoch
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from carl_ray import storage
from carl_ray.data.manifest import read_manifest
from carl_ray.errors import RunError
from carl_ray.evaluation.corpus import EmbeddingSettings, embed_corpus
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import read_embeddings, read_origin
from carl_ray.evaluation.extraction import room_for_workers
from carl_ray.evaluation.protocol import evaluate
from carl_ray.paper import stride_of
from carl_ray.sweeps.definition import REDUCTION, Sweep, read_document, trial_id, write_document
from carl_ray.sweeps.space import Point
from carl_ray.training.checkpoint import CHECKPOINTS, checkpoint_at
from carl_ray.training.trainer import train

Status = Literal["done", "stopped", "unfinished", "failed"]


def trial_folder(folder: str, trial: str) -> str:
    """URI of a trial's folder."""
    return storage.join(folder, "trials", trial)


def run_dir(folder: str, trial: str, seed: int) -> str:
    """URI of the run folder of a trial's training seed."""
    return storage.join(trial_folder(folder, trial), f"seed-{seed}")


def begin_trial(folder: str, sweep: Sweep, point: Point) -> str:
    """Record that the trial of a point has begun, and forget why it ended before; return its id."""
    trial = trial_id(sweep, point)
    write_document(storage.join(trial_folder(folder, trial), "point.json"), dict(point))
    storage.delete(storage.join(trial_folder(folder, trial), "outcome.json"))
    return trial


def begun_points(folder: str) -> dict[str, Point]:
    """The points of all trials begun in a folder, by trial."""
    trials = storage.list_folder(storage.join(folder, "trials"))
    points = {
        trial: read_document(storage.join(trial_folder(folder, trial), "point.json")) for trial in trials
    }
    return {trial: point for trial, point in points.items() if point is not None}


def write_outcome(folder: str, trial: str, status: Literal["stopped", "failed"], reason: str) -> None:
    """Record why a trial ended before its last rung."""
    document = {"status": status, "reason": reason}
    write_document(storage.join(trial_folder(folder, trial), "outcome.json"), document)


def read_outcome(sweep: Sweep, folder: str, trial: str) -> tuple[Status, str | None]:
    """Status of a trial, and why it was stopped or failed; `done` once all runs are measured at the last rung."""
    if score_at(sweep, folder, trial, sweep.rungs[-1]) is not None:
        return "done", None
    outcome = read_document(storage.join(trial_folder(folder, trial), "outcome.json")) or {}
    is_lost = outcome.get("status") == "stopped" and last_score(sweep, folder, trial) is None
    if is_lost or outcome.get("status") not in ("stopped", "failed"):
        return "unfinished", None
    return outcome["status"], outcome["reason"]


def measured_uri(run: str, epoch: int) -> str:
    """URI of the metrics of a run after an epoch."""
    return storage.join(run, "measured", f"epoch-{epoch:08d}.json")


def measured(run: str, epoch: int) -> dict[str, Any] | None:
    """Metrics of a run after an epoch on the validation videos; none where missing or damaged.

    The document is that of metrics.json (`carl_ray.evaluation.protocol.evaluate`) with `training_seconds` since the
    start of the run, and `measuring_seconds`.
    """
    document = read_document(measured_uri(run, epoch))
    return document if document is not None and {"origin", "trained"} <= document.keys() else None


def score_of(sweep: Sweep, document: Mapping[str, Any]) -> float | None:
    """The score in a run's metrics; none where it is undefined."""
    return document["trained"].get(sweep.metric, {}).get("value")


def score_at(sweep: Sweep, folder: str, trial: str, epoch: int) -> float | None:
    """The mean score of a trial's runs after an epoch; none where a run was not measured there."""
    found = [measured(run_dir(folder, trial, seed), epoch) for seed in sweep.training_seeds]
    scores = [score_of(sweep, document) for document in found if document is not None]
    values = [score for score in scores if score is not None]
    return statistics.fmean(values) if len(values) == sweep.seeds else None


def last_score(sweep: Sweep, folder: str, trial: str) -> tuple[int, float] | None:
    """The last rung at which all runs of a trial were measured, and the mean score there; none without any."""
    scores = ((epoch, score_at(sweep, folder, trial, epoch)) for epoch in reversed(sweep.rungs))
    return next(((epoch, score) for epoch, score in scores if score is not None), None)


def was_promoted(sweep: Sweep, folder: str, trial: str, epoch: int) -> bool:
    """Whether a run of a trial has a checkpoint later than the one measured at a rung."""
    for seed in sweep.training_seeds:
        run = run_dir(folder, trial, seed)
        if (found := measured(run, epoch)) is not None:
            last = f"step-{found['origin']['step']:08d}"
            names = storage.list_folder(storage.join(run, CHECKPOINTS))
            if any(name.startswith("step-") and name > last for name in names):
                return True
    return False


def is_behind(sweep: Sweep, folder: str, trial: str, epoch: int) -> bool:
    """Whether a trial is not among the best third of the trials measured at a rung so far (successive halving).

    As in Ray Tune's `ASHAScheduler`, with the scores in the folder, which are of earlier calls of the sweep, too.
    """
    score = score_at(sweep, folder, trial, epoch)
    others = [score_at(sweep, folder, other, epoch) for other in begun_points(folder) if other != trial]
    known = [other for other in others if other is not None]
    if score is None or not known:
        return False
    sign = 1 if sweep.higher_is_better else -1
    return sign * score < np.percentile(sign * np.array(known), 100 * (1 - 1 / REDUCTION))


def run_trial(sweep: Sweep, folder: str, point: Point, report: Callable[[int, float], object]) -> None:
    """Train and measure the runs of a point, rung by rung, as far as not done before. Requires an initialised Ray.

    Stops at a rung where it is behind, unless an earlier call has trained beyond it.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        point: The point.
        report: Called with (epoch, mean score over the seeds) at each rung where all runs are measured.

    Raises:
        UserError, RunError: as training, embedding and evaluation.
    """
    trial = begin_trial(folder, sweep, point)
    for epoch in sweep.rungs:
        found = []
        for seed in sweep.training_seeds:
            run = run_dir(folder, trial, seed)
            found.append(measured(run, epoch) or _measure(sweep, point, seed, run, epoch))
        if any(document is not None and score_of(sweep, document) is None for document in found):
            shown = storage.public_uri(trial_folder(folder, trial))
            raise RunError(f"{shown}: {sweep.metric} is undefined on the validation videos")
        if (score := score_at(sweep, folder, trial, epoch)) is None:
            continue
        report(epoch, score)
        is_promoted = epoch == sweep.rungs[-1] or was_promoted(sweep, folder, trial, epoch)
        if not is_promoted and is_behind(sweep, folder, trial, epoch):
            write_outcome(folder, trial, "stopped", f"behind the others at epoch {epoch}")
            return


def _measure(sweep: Sweep, point: Point, seed: int, run: str, epoch: int) -> dict[str, Any] | None:
    """Train up to an epoch and measure; none where the run is beyond it, so that its state then is lost."""
    config = sweep.run_config(point, seed)
    manifest, cluster, split = config.data.manifest, config.cluster, config.data.validation_split
    assert manifest is not None
    outcome = train(config, run, resume=True, until_epoch=epoch)
    if not outcome.finished and epoch == sweep.rungs[-1]:
        raise RunError(f"{storage.public_uri(run)}: stopped at step {outcome.step} of {outcome.num_steps}")
    # An epoch may end within a step.
    if outcome.step > outcome.num_steps * epoch / sweep.rungs[-1] + 1:
        return None
    started = time.monotonic()
    embeddings = storage.join(run, "embeddings", f"step-{outcome.step:08d}")
    num_workers = min(cluster.max_workers, room_for_workers(1, use_gpu=cluster.use_gpu))
    splits = [config.data.train_split, split] if sweep.labelled else [split]
    settings = EmbeddingSettings(num_workers=num_workers, use_gpu=cluster.use_gpu)
    embed_corpus(run, manifest, embeddings, settings, splits=splits)
    validation = read_embeddings(embeddings, split=split)
    _check_complete(validation, manifest, split)
    document = evaluate(
        read_embeddings(embeddings, split=config.data.train_split) if sweep.labelled else [],
        validation,
        read_origin(embeddings),
        tasks=sweep.tasks,
        stride=stride_of(config.preset),
    )
    document["training_seconds"] = checkpoint_at(run).progress.seconds
    document["measuring_seconds"] = time.monotonic() - started
    write_document(measured_uri(run, epoch), document)
    if epoch != sweep.rungs[-1]:
        # Embeddings of all rungs of all runs would outgrow the videos.
        storage.delete(embeddings)
    return document


def _check_complete(videos: Sequence[EmbeddedVideo], manifest: str, split: str) -> None:
    """Raise `RunError` where a video of the split has no embeddings: all trials need the same videos."""
    wanted = read_manifest(manifest, ["video_id"], split=split).column("video_id").to_pylist()
    missing = sorted(set(wanted) - {video.video_id for video in videos})
    if missing:
        raise RunError(
            f"{len(missing)} of {len(wanted)} videos of the split {split!r} could not be embedded, the first "
            f"{missing[0]!r}: trials must be measured on the same videos; leave those that cannot be read out of the "
            "manifest and begin another sweep, or call again if they can be read now"
        )
