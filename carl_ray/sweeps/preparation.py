"""What is found out before a sweep starts: whether its videos can choose, its folder, its share of the cluster."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from carl_ray import config as configuration
from carl_ray import options, storage
from carl_ray.config import ClusterConfig, Config
from carl_ray.data.manifest import read_manifest
from carl_ray.errors import UserError
from carl_ray.evaluation.protocol import FINEGYM_METRICS, PHASE_METRICS, protocol_of
from carl_ray.sweeps.space import Space
from carl_ray.sweeps.trial import LABEL_FREE, Sweep

REDUCTION = 3
"""A rung has so many times the epochs of the one before, and early stopping keeps about one trial in so many."""

_SWEEP = "sweep.json"


def checked_sweep(space: Space, base: Config, *, seeds: int, num_rungs: int, metric: str | None) -> Sweep:
    """A sweep that can be measured.

    Args:
        space: What it varies.
        base: Its base config, whose manifest is there.
        seeds: Runs of each point.
        num_rungs: How often a run is measured.
        metric: What is best; none: phase classification (FineGym: the linear probe), or without labels `LABEL_FREE`.

    Raises:
        UserError: fewer than two validation videos, an unknown metric, or one that needs labels that are not there.
    """
    manifest, split = base.data.manifest, base.data.validation_split
    assert manifest is not None
    validation = read_manifest(manifest, ["frame_labels"], split=split)
    shown = storage.public_uri(manifest)
    if validation.num_rows < 2:
        raise UserError(
            f"{shown}: a sweep chooses by at least two videos of the split {split!r}, and there are "
            f"{validation.num_rows}; put some into a folder {split}/ before indexing, or name another split with "
            "--data.validation_split (not the test videos: they are for the end)"
        )
    labelled = _has_labels(validation) and _has_labels(
        read_manifest(manifest, ["frame_labels"], split=base.data.train_split)
    )
    metrics = FINEGYM_METRICS if protocol_of(base.preset) == "finegym" else PHASE_METRICS
    if metric is None:
        metric = LABEL_FREE if not labelled else metrics[2]
    if metric not in (*metrics, LABEL_FREE):
        known = [*metrics, LABEL_FREE]
        raise UserError(
            f"--metric: unknown metric {metric!r}{options.nearest(metric, known)} ({', '.join(known)})"
        )
    if metric != LABEL_FREE and not labelled:
        raise UserError(
            f"--metric {metric} needs frame labels of the training and the validation videos, and {shown} has none; "
            f"without them: --metric {LABEL_FREE}"
        )
    epochs = base.training.epochs
    rungs = tuple(sorted({max(1, round(epochs / REDUCTION**power)) for power in range(num_rungs)}))
    return Sweep(space, base, seeds, rungs, metric, labelled)


def _has_labels(videos: pa.Table) -> bool:
    labels = pc.list_flatten(videos.column("frame_labels"))
    return bool(len(labels)) and pc.max(labels).as_py() >= 0


def remember(sweep: Sweep, folder: str, search: str) -> None:
    """Writes sweep.json, what a sweep's folder holds; its number of trials may grow.

    Raises:
        UserError: the folder holds another sweep.
    """
    document: dict[str, Any] = {
        "space": sweep.space.name,
        "parameters": {name: asdict(parameter) for name, parameter in sweep.space.parameters.items()},
        "search": search,
        "seeds": sweep.seeds,
        "rungs": list(sweep.rungs),
        "metric": sweep.metric,
        "config": {k: v for k, v in configuration.to_document(sweep.base).items() if k != "cluster"},
    }
    document = json.loads(json.dumps(document))
    uri = storage.join(folder, _SWEEP)
    if not storage.exists(uri):
        storage.write_bytes(uri, (json.dumps(document, indent=2) + "\n").encode())
        return
    before, after = _flat(json.loads(storage.read_bytes(uri))), _flat(document)
    for name in [*after, *before]:
        if before.get(name) != after.get(name):
            raise UserError(
                f"{storage.public_uri(folder)} was begun with {name} = {before.get(name)!r}, now {after.get(name)!r}: "
                "only --num-trials may change; another --run-dir starts another sweep"
            )


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _trial_cpus(cluster: ClusterConfig) -> float:
    return cluster.num_workers * cluster.worker_cpus + cluster.decode_cpus * (cluster.max_decode_tasks or 1)


def local_cpus(base: Config, max_concurrent: int) -> int:
    """Logical CPUs of a cluster on this machine in which so many trials can train and decode at the same time.

    More than the machine has where they must: trials then share its cores, and none waits for another to end.
    """
    return max(math.ceil(max_concurrent * _trial_cpus(base.cluster)), 1)


def room_for_trials(base: Config) -> int:
    """How many trials the cluster that Ray is connected to has room for now, at least 1."""
    resources = ray.cluster_resources()
    room = resources.get("CPU", 0) // _trial_cpus(base.cluster)
    if base.cluster.use_gpu:
        room = min(room, resources.get("GPU", 0) // base.cluster.num_workers)
    return max(1, int(room))


def share_cluster(base: Config, max_concurrent: int) -> Config:
    """The config with a trial's share of the CPUs for decoding.

    Each trial's Ray Data takes the whole cluster for its own: without a bound, the decoders of one would leave no CPU
    for the training workers of the next. Where decoding has nodes of its own there is nothing to leave.
    """
    cluster = base.cluster
    if cluster.max_decode_tasks is not None or cluster.data_node_labels:
        return base
    free = ray.cluster_resources().get("CPU", 0) - max_concurrent * cluster.num_workers * cluster.worker_cpus
    tasks = max(1, int(free / max_concurrent / cluster.decode_cpus))
    return replace(base, cluster=replace(cluster, max_decode_tasks=tasks))
