"""The definition of a sweep: what it varies, its metric and its rungs, as saved in sweep.json.

A folder keeps one definition; only the number of trials may change between calls.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from carl_ray import config as configuration
from carl_ray import options, storage
from carl_ray.config import Config
from carl_ray.data.manifest import read_manifest
from carl_ray.errors import UserError
from carl_ray.evaluation.tasks import metric_names, metric_of
from carl_ray.paper import PROTOCOLS, protocol_of
from carl_ray.sweeps.space import Point, Space, changed_values, point_config

LABEL_FREE = "label_free"
"""Name of the score that needs no labels, among the metrics."""
_DEFAULT_METRICS = {
    "phases": "phase_classification",
    "finegym": "linear_probe",
    "clips": "video_linear_probe",
}
"""By protocol."""
REDUCTION = 3
"""Reduction factor of successive halving: ratio of the epochs of two rungs, and of the trials that pass one."""

_FILE = "sweep.json"
_TEST = "test"
_LEAST_CHECKPOINT_STEPS = 10


@dataclass(frozen=True)
class Sweep:
    """What is swept, and how a trial is measured."""

    space: Space
    base: Config
    """The runs' config except for the point and the seed; it names the manifest."""
    seeds: int
    """Runs of each point."""
    rungs: tuple[int, ...]
    """Epochs after which a run is measured, ascending; the last one is the length of the run."""
    metric: str
    """The score of a trial: a metric of `carl_ray.evaluation.protocol`, or `LABEL_FREE`."""
    labelled: bool
    """Whether the validation videos have frame labels; without them only `LABEL_FREE` is measured."""

    @property
    def tasks(self) -> list[str]:
        """Names of the evaluation tasks of its runs: those of the protocol, where there are labels, and the score's."""
        labelled = PROTOCOLS[protocol_of(self.base.preset)] if self.labelled else ()
        return [*labelled, *([LABEL_FREE] if self.metric == LABEL_FREE else [])]

    @property
    def training_seeds(self) -> range:
        """`training.seed` of the runs of a point: the base's and those after it."""
        return range(self.base.training.seed, self.base.training.seed + self.seeds)

    @property
    def higher_is_better(self) -> bool:
        """The direction of `metric`."""
        return metric_of(self.metric).higher_is_better

    @property
    def mode(self) -> str:
        """The direction of `metric` for Ray Tune."""
        return "max" if self.higher_is_better else "min"

    def run_config(self, point: Point, seed: int) -> Config:
        """The config of a run; `UserError` where the point is invalid."""
        return point_config(self.space, self.base, point, seed)


def trial_id(sweep: Sweep, point: Point) -> str:
    """A trial's id: a hash of the config values that differ from the base, so that equal runs are one trial."""
    try:
        values, prefix = changed_values(sweep.space, sweep.base, point), ""
    except UserError:
        values, prefix = dict(point), "unfit-"
    text = json.dumps(values, sort_keys=True)
    return prefix + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def define_sweep(space: Space, base: Config, *, seeds: int, num_rungs: int, metric: str | None) -> Sweep:
    """Check that a sweep can be measured on its validation videos, and define its metric and rungs.

    Args:
        space: What it varies.
        base: Its base config with an existing manifest. Runs write a checkpoint about every epoch, or as often as
            it says if that is more often.
        seeds: Runs of each point.
        num_rungs: How often a run is measured.
        metric: The score; none: phase classification (FineGym: the linear probe), or without labels `LABEL_FREE`.

    Raises:
        UserError: fewer than two validation videos, or some that are also training or test videos; an unknown
            metric, or one that needs missing labels.
    """
    manifest, split, train_split = base.data.manifest, base.data.validation_split, base.data.train_split
    assert manifest is not None
    if split in (_TEST, train_split):
        raise UserError(
            f"--data.validation_split {split}: a sweep chooses on videos that are neither trained on nor tested on; "
            "name another split"
        )
    protocol = protocol_of(base.preset)
    label = "label" if protocol == "clips" else "frame_labels"
    columns = ["video_id", "content_hash", label]
    videos = {name: read_manifest(manifest, columns, split=name) for name in (split, train_split, _TEST)}
    shown = storage.public_uri(manifest)
    if videos[split].num_rows < 2:
        raise UserError(
            f"{shown}: a sweep needs at least two videos of the split {split!r}, and there are "
            f"{videos[split].num_rows}; take some from the training videos by `carl-ray index --update MANIFEST "
            "--split-by COLUMN --validation-fraction 0.2`, or name another split with --data.validation_split (not the "
            "test videos: they are for the final test)"
        )
    for name in (train_split, _TEST):
        again = videos[split].filter(
            pc.is_in(videos[split]["content_hash"], videos[name]["content_hash"].combine_chunks())
        )
        if again.num_rows:
            raise UserError(
                f"{shown}: {again.num_rows} videos of the split {split!r} are the same files as videos of the split "
                f"{name!r}, the first {again['video_id'][0].as_py()!r}: a sweep would choose by training or "
                "test videos"
            )
    labelled = all(_has_labels(videos[name].column(label)) for name in (split, train_split))
    if metric is None:
        metric = _DEFAULT_METRICS[protocol] if labelled else LABEL_FREE
    known = [*metric_names(PROTOCOLS[protocol]), LABEL_FREE]
    if metric not in known:
        raise UserError(
            f"--metric: unknown metric {metric!r}{options.nearest(metric, known)} ({', '.join(known)})"
        )
    if metric != LABEL_FREE and not labelled:
        kind = "labels" if protocol == "clips" else "frame labels"
        raise UserError(
            f"--metric {metric} needs {kind} of the training and the validation videos, and {shown} has none; "
            f"without them: --metric {LABEL_FREE}"
        )
    epochs = base.training.epochs
    rungs = tuple(sorted({max(1, round(epochs / REDUCTION**power)) for power in range(num_rungs)}))
    training_videos = videos[train_split].num_rows * base.data.train_fraction
    epoch_steps = math.ceil(training_videos / base.training.global_batch_size)
    every = min(base.training.checkpoint_every_steps, max(_LEAST_CHECKPOINT_STEPS, epoch_steps))
    base = replace(base, training=replace(base.training, checkpoint_every_steps=every))
    return Sweep(space, base, seeds, rungs, metric, labelled)


def _has_labels(column: pa.ChunkedArray) -> bool:
    """Whether a column of labels, of videos or of their frames, has any."""
    if pa.types.is_string(column.type):
        return column.null_count < len(column)
    labels = pc.list_flatten(column)
    return bool(len(labels)) and pc.max(labels).as_py() >= 0


def save_definition(sweep: Sweep, folder: str, search: str, search_seed: int) -> None:
    """Write sweep.json, or check that the folder's is the same.

    Raises:
        UserError: the folder holds another sweep, or one of other videos or labels.
    """
    data = sweep.base.data
    assert data.manifest is not None
    document: dict[str, Any] = {
        "space": sweep.space.name,
        "parameters": {name: asdict(parameter) for name, parameter in sweep.space.parameters.items()},
        "search": search,
        "search_seed": search_seed,
        "seeds": sweep.seeds,
        "rungs": list(sweep.rungs),
        "metric": sweep.metric,
        "digest of videos and labels": {
            split: _digest(data.manifest, split) for split in (data.train_split, data.validation_split)
        },
        "config": _config_document(sweep.base),
    }
    document = json.loads(json.dumps(document))
    uri = storage.join(folder, _FILE)
    saved = read_document(uri)
    if saved is None:
        write_document(uri, document)
        return
    # Fields added to the config since then get their defaults.
    config = configuration.from_document(saved.get("config", {}), storage.public_uri(uri))
    saved["config"] = json.loads(json.dumps(_config_document(config)))
    before, after = _flat(saved), _flat(document)
    for name in [*after, *before]:
        if before.get(name) != after.get(name):
            raise UserError(
                f"{storage.public_uri(folder)} was begun with {name} = {before.get(name)!r}, now {after.get(name)!r}: "
                "only --num-trials may change; another --run-dir starts another sweep"
            )


def _config_document(config: Config) -> dict[str, Any]:
    return {name: value for name, value in configuration.to_document(config).items() if name != "cluster"}


def _digest(manifest: str, split: str) -> str:
    """Hash of the videos of a split and their labels, in any order."""
    columns = ["video_id", "content_hash", "label", "frame_labels"]
    digest = hashlib.blake2b(digest_size=16)
    for batch in read_manifest(manifest, columns, split=split).sort_by("video_id").to_batches():
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def read_document(uri: str) -> dict[str, Any] | None:
    """A JSON object of a sweep's folder; none where it is missing or damaged, to be written again."""
    if not storage.exists(uri):
        return None
    try:
        document = json.loads(storage.read_bytes(uri))
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def write_document(uri: str, document: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    storage.write_bytes(uri, (json.dumps(document, indent=2) + "\n").encode())
