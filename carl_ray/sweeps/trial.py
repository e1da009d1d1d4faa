"""One trial of a sweep: a point's runs, one a seed, trained in parts and measured on the validation videos.

    SWEEP/trials/<id>/seed-0/   a run folder (config.json, checkpoints/, …), and
                                measured/epoch-00000020.json: what the checkpoint of that epoch is worth

Whatever was trained or measured once is found again: a trial that is begun anew does only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.manifest import read_manifest
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.controls import chance_embeddings, position_embeddings
from carl_ray.evaluation.corpus import EmbeddingSettings, embed_corpus
from carl_ray.evaluation.embeddings import EmbeddedVideo, Origin, read_embeddings, read_origin
from carl_ray.evaluation.extraction import room_for_workers
from carl_ray.evaluation.label_free import consistent_warping
from carl_ray.evaluation.metrics import LOWER_IS_BETTER, VARIANTS, protocol_of, stride_of
from carl_ray.evaluation.protocol import evaluate
from carl_ray.sweeps.space import Point, Space, changed_values, point_config
from carl_ray.training.checkpoint import checkpoint_at
from carl_ray.training.trainer import train

LABEL_FREE = "label_free"
"""Name of the score that needs no labels, among the metrics."""

_TRIALS = "trials"
_MEASURED = "measured"


@dataclass(frozen=True)
class Sweep:
    """What is swept, and how a trial is measured."""

    space: Space
    base: Config
    """The runs' config but for the point and the seed; it names the manifest."""
    seeds: int
    """Runs of each point."""
    rungs: tuple[int, ...]
    """Epochs after which a run is measured, ascending; the last one is the length of the run."""
    metric: str
    """What trials are chosen by: a metric of `carl_ray.evaluation.protocol`, or `LABEL_FREE`."""
    labelled: bool
    """Whether the validation videos have frame labels; without them, only `LABEL_FREE` is measured."""

    @property
    def training_seeds(self) -> range:
        """`training.seed` of the runs of a point: the base's and those after it."""
        return range(self.base.training.seed, self.base.training.seed + self.seeds)

    @property
    def higher_is_better(self) -> bool:
        """The direction of `metric`."""
        return self.metric not in LOWER_IS_BETTER

    def run_config(self, point: Point, seed: int) -> Config:
        """The config of a run; `UserError` where the point does not fit."""
        return point_config(self.space, self.base, point, seed)


def default_metric(preset: str) -> str:
    """What trials of a preset are chosen by where frames have labels."""
    return "linear_probe" if protocol_of(preset) == "finegym" else "phase_classification"


def trial_id(sweep: Sweep, point: Point) -> str:
    """The name of a point's trial, of the values in which its runs differ from the base.

    Two ways to say the same are one trial. Everything else that a run depends on is the same in the whole folder
    (`carl_ray.sweeps.preparation.remember`), so that new fields of the config leave the names as they are.
    """
    try:
        values, prefix = changed_values(sweep.space, sweep.base, point), ""
    except UserError:
        values, prefix = dict(point), "unfit-"
    text = json.dumps(values, sort_keys=True)
    return prefix + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def trial_folder(folder: str, trial: str) -> str:
    """Where a trial of the sweep in a folder lies."""
    return storage.join(folder, _TRIALS, trial)


def run_dir(folder: str, trial: str, seed: int) -> str:
    """The run folder of a trial's training seed."""
    return storage.join(trial_folder(folder, trial), f"seed-{seed}")


def trial_ids(folder: str) -> list[str]:
    """The trials that were begun in a sweep's folder, in the order of their names."""
    return sorted(storage.list_folder(storage.join(folder, _TRIALS)))


def run_trial(sweep: Sweep, folder: str, point: Point, report: Callable[[int, float], None]) -> None:
    """Trains and measures the runs of a point, rung by rung. Ray must have been started.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        point: The point.
        report: Called with (epoch, mean score over the seeds) at each rung; it may raise to end the trial.

    Raises:
        UserError, RunError: as training, embedding and evaluation.
    """
    trial = trial_id(sweep, point)
    for epoch in sweep.rungs:
        found = []
        for seed in sweep.training_seeds:
            run = run_dir(folder, trial, seed)
            found.append(measured(run, epoch) or _measure(sweep, point, seed, run, epoch))
        scores = [document["trained"][sweep.metric]["value"] for document in found if document is not None]
        if None in scores:
            raise RunError(
                f"{storage.public_uri(trial_folder(folder, trial))}: {sweep.metric} is undefined on the validation "
                "videos"
            )
        if len(scores) == sweep.seeds:
            report(epoch, float(np.mean(scores)))


def measured(run: str, epoch: int) -> dict[str, Any] | None:
    """What a run was worth after an epoch, or none where it was not measured or the file is damaged.

    The document is that of metrics.json (`carl_ray.evaluation.protocol.evaluate`), measured on the validation videos,
    with `LABEL_FREE` among the metrics, `training_seconds` since the beginning of the run and `measuring_seconds`.
    """
    document = read_document(_measured_uri(run, epoch))
    return document if document is not None and {"origin", "trained"} <= document.keys() else None


def read_document(uri: str) -> dict[str, Any] | None:
    """A JSON object of a sweep's folder, or none where it is missing or damaged: it is then made anew."""
    if not storage.exists(uri):
        return None
    try:
        document = json.loads(storage.read_bytes(uri))
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _measured_uri(run: str, epoch: int) -> str:
    return storage.join(run, _MEASURED, f"epoch-{epoch:08d}.json")


def _measure(sweep: Sweep, point: Point, seed: int, run: str, epoch: int) -> dict[str, Any] | None:
    """Trains up to an epoch and measures; none where the run is past it already: only its end can be measured."""
    config = sweep.run_config(point, seed)
    manifest, cluster = config.data.manifest, config.cluster
    assert manifest is not None
    outcome = train(config, run, resume=True, until_epoch=epoch)
    if not outcome.finished and epoch == sweep.rungs[-1]:
        raise RunError(f"{storage.public_uri(run)}: stopped at step {outcome.step} of {outcome.num_steps}")
    # Epochs need not end with a step; the next one belongs to both.
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
    _check_whole(validation, manifest, validation_split)
    origin = read_origin(embeddings)
    document: dict[str, Any] = {"origin": vars(origin), **{variant: {} for variant in VARIANTS}}
    if sweep.labelled:
        document = evaluate(
            read_embeddings(embeddings, split=config.data.train_split),
            validation,
            origin,
            protocol=protocol_of(config.preset),
            stride=stride_of(config.preset),
        )
    for variant, score in _label_free(validation, origin, stride_of(config.preset)).items():
        if document[variant] is not None:
            document[variant][LABEL_FREE] = {"value": score, "low": None, "high": None, "left_out": {}}
    document["training_seconds"] = checkpoint_at(run).progress.seconds
    document["measuring_seconds"] = time.monotonic() - started
    content = (json.dumps(document, indent=2) + "\n").encode()
    storage.write_bytes(_measured_uri(run, epoch), content)
    if epoch != sweep.rungs[-1]:
        # Those of every rung of every run would soon be larger than the videos.
        storage.delete(embeddings)
    return document


def _check_whole(videos: Sequence[EmbeddedVideo], manifest: str, split: str) -> None:
    """Raises `RunError` where a video of the split was not embedded: trials are compared on the same videos alone."""
    wanted = read_manifest(manifest, ["video_id"], split=split).column("video_id").to_pylist()
    missing = sorted(set(wanted) - {video.video_id for video in videos})
    if missing:
        raise RunError(
            f"{len(missing)} of {len(wanted)} videos of the split {split!r} could not be embedded, the first "
            f"{missing[0]!r}: trials must be measured on the same videos; leave those that cannot be read out of the "
            "manifest and begin another sweep, or call again if they can be read now"
        )


def _label_free(videos: Sequence[EmbeddedVideo], origin: Origin, stride: int) -> dict[str, float]:
    """The score of the trained encoder and of its controls."""
    lengths = [len(video) for video in videos]
    width = videos[0].embeddings.shape[1]
    variants = {
        "trained": [video.embeddings for video in videos],
        "untrained": [video.untrained for video in videos if video.untrained is not None],
        "positions": position_embeddings(lengths, num_frames=origin.num_frames, width=origin.position_width),
        "chance": chance_embeddings(lengths, [video.video_id for video in videos], width=width, seed=0),
    }
    return {name: consistent_warping(embeddings, stride=stride) for name, embeddings in variants.items()}
