"""One trial of a sweep: the runs of a point, one a seed, trained rung by rung and measured on validation videos.

Existing checkpoints and measurements are reused: a repeated trial does only what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from carl_ray import storage
from carl_ray.data.manifest import read_manifest
from carl_ray.errors import RunError
from carl_ray.evaluation.corpus import EmbeddingSettings, embed_corpus
from carl_ray.evaluation.embeddings import EmbeddedVideo, read_embeddings, read_origin
from carl_ray.evaluation.extraction import room_for_workers
from carl_ray.evaluation.protocol import evaluate
from carl_ray.paper import PROTOCOLS, protocol_of, stride_of
from carl_ray.sweeps.definition import LABEL_FREE, Sweep, trial_id, write_document
from carl_ray.sweeps.space import Point
from carl_ray.sweeps.trial_records import measured, measured_uri, run_dir, trial_folder, was_promoted
from carl_ray.training.checkpoint import checkpoint_at
from carl_ray.training.trainer import train


def run_trial(sweep: Sweep, folder: str, point: Point, report: Callable[[int, float], None]) -> None:
    """Train and measure the runs of a point, rung by rung. Requires an initialised Ray.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        point: The point.
        report: Called with (epoch, mean score over the seeds) at each rung, except at those that an earlier call has
            trained beyond; it may raise to end the trial.

    Raises:
        UserError, RunError: as training, embedding and evaluation.
    """
    trial = trial_id(sweep, point)
    for epoch in sweep.rungs:
        found = []
        for seed in sweep.training_seeds:
            run = run_dir(folder, trial, seed)
            found.append(measured(run, epoch) or _measure(sweep, point, seed, run, epoch))
        scores = [
            document["trained"].get(sweep.metric, {}).get("value")
            for document in found
            if document is not None
        ]
        if None in scores:
            raise RunError(
                f"{storage.public_uri(trial_folder(folder, trial))}: {sweep.metric} is undefined on the validation "
                "videos"
            )
        if len(scores) == sweep.seeds and not was_promoted(sweep, folder, trial, epoch):
            report(epoch, float(np.mean(scores)))


def _measure(sweep: Sweep, point: Point, seed: int, run: str, epoch: int) -> dict[str, Any] | None:
    """Train up to an epoch and measure; none where the run is beyond it, so that its state then is lost."""
    config = sweep.run_config(point, seed)
    manifest, cluster = config.data.manifest, config.cluster
    assert manifest is not None
    outcome = train(config, run, resume=True, until_epoch=epoch)
    if not outcome.finished and epoch == sweep.rungs[-1]:
        raise RunError(f"{storage.public_uri(run)}: stopped at step {outcome.step} of {outcome.num_steps}")
    # An epoch may end within a step.
    if outcome.step > outcome.num_steps * epoch / sweep.rungs[-1] + 1:
        return None
    started = time.monotonic()
    embeddings = storage.join(run, "embeddings", f"step-{outcome.step:08d}")
    validation_split = config.data.validation_split
    room = room_for_workers(1, use_gpu=cluster.use_gpu)
    embed_corpus(
        run,
        manifest,
        embeddings,
        EmbeddingSettings(num_workers=min(cluster.max_workers, room), use_gpu=cluster.use_gpu),
        splits=[config.data.train_split, validation_split] if sweep.labelled else [validation_split],
    )
    validation = read_embeddings(embeddings, split=validation_split)
    _check_complete(validation, manifest, validation_split)
    # Probes need labels; the score without labels is measured in any case, to be compared with the others.
    document = evaluate(
        read_embeddings(embeddings, split=config.data.train_split) if sweep.labelled else [],
        validation,
        read_origin(embeddings),
        tasks=[*(PROTOCOLS[protocol_of(config.preset)] if sweep.labelled else ()), LABEL_FREE],
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
