"""What is found out before a sweep starts: whether its videos can choose, its folder, its share of the cluster."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from carl_ray import config as configuration
from carl_ray import options, storage
from carl_ray.config import ClusterConfig, Config
from carl_ray.data.manifest import read_manifest
from carl_ray.errors import UserError
from carl_ray.evaluation.metrics import FINEGYM_METRICS, PHASE_METRICS, protocol_of
from carl_ray.machine import available_cores
from carl_ray.sweeps.space import Space
from carl_ray.sweeps.trial import LABEL_FREE, Sweep, default_metric, read_document

REDUCTION = 3
"""A rung has so many times the epochs of the one before, and early stopping keeps about one trial in so many."""

_SWEEP = "sweep.json"
_TEST = "test"
_FEWEST_STEPS = 10
"""Between two checkpoints of a trial, however few steps an epoch has."""
_LOCAL_TRIALS = 2


def checked_sweep(space: Space, base: Config, *, seeds: int, num_rungs: int, metric: str | None) -> Sweep:
    """A sweep that can be measured.

    Args:
        space: What it varies.
        base: Its base config, whose manifest is there. Its runs write a checkpoint about every epoch, or as often as
            it says if that is more often.
        seeds: Runs of each point.
        num_rungs: How often a run is measured.
        metric: What is best; none: phase classification (FineGym: the linear probe), or without labels `LABEL_FREE`.

    Raises:
        UserError: fewer than two validation videos, or such as are trained on or for the final test; an unknown
            metric, or one that needs labels that are not there.
    """
    manifest, split, train_split = base.data.manifest, base.data.validation_split, base.data.train_split
    assert manifest is not None
    if split in (_TEST, train_split):
        raise UserError(
            f"--data.validation_split {split}: a sweep chooses on videos that are neither trained on nor tested on in "
            "the end; name another split"
        )
    validation, training, test = (
        read_manifest(manifest, ["video_id", "content_hash", "frame_labels"], split=name)
        for name in (split, train_split, _TEST)
    )
    shown = storage.public_uri(manifest)
    if validation.num_rows < 2:
        raise UserError(
            f"{shown}: a sweep chooses by at least two videos of the split {split!r}, and there are "
            f"{validation.num_rows}; put some into a folder {split}/ before indexing, or name another split with "
            "--data.validation_split (not the test videos: they are for the end)"
        )
    for name, others in ((train_split, training), (_TEST, test)):
        known = set(others.column("content_hash").to_pylist())
        again = [
            video_id
            for video_id, content in zip(
                *(validation.column(n).to_pylist() for n in ("video_id", "content_hash")), strict=True
            )
            if content in known
        ]
        if again:
            raise UserError(
                f"{shown}: {len(again)} videos of the split {split!r} are the same files as videos of the split "
                f"{name!r}, the first {again[0]!r}: a sweep would choose by what is trained on or tested in the end"
            )
    labelled = _has_labels(validation) and _has_labels(training)
    metrics = FINEGYM_METRICS if protocol_of(base.preset) == "finegym" else PHASE_METRICS
    if metric is None:
        metric = LABEL_FREE if not labelled else default_metric(base.preset)
    if metric not in (*metrics, LABEL_FREE):
        known_metrics = [*metrics, LABEL_FREE]
        raise UserError(
            f"--metric: unknown metric {metric!r}{options.nearest(metric, known_metrics)} "
            f"({', '.join(known_metrics)})"
        )
    if metric != LABEL_FREE and not labelled:
        raise UserError(
            f"--metric {metric} needs frame labels of the training and the validation videos, and {shown} has none; "
            f"without them: --metric {LABEL_FREE}"
        )
    epochs = base.training.epochs
    rungs = tuple(sorted({max(1, round(epochs / REDUCTION**power)) for power in range(num_rungs)}))
    epoch_steps = math.ceil(training.num_rows * base.data.train_fraction / base.training.global_batch_size)
    every = min(base.training.checkpoint_every_steps, max(_FEWEST_STEPS, epoch_steps))
    base = replace(base, training=replace(base.training, checkpoint_every_steps=every))
    return Sweep(space, base, seeds, rungs, metric, labelled)


def _has_labels(videos: pa.Table) -> bool:
    labels = pc.list_flatten(videos.column("frame_labels"))
    return bool(len(labels)) and pc.max(labels).as_py() >= 0


def remember(sweep: Sweep, folder: str, search: str, search_seed: int) -> None:
    """Writes sweep.json, what a sweep's folder holds; its number of trials may grow.

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
        "config": _but_cluster(sweep.base),
    }
    document = json.loads(json.dumps(document))
    uri = storage.join(folder, _SWEEP)
    saved = read_document(uri)
    if saved is None:
        storage.write_bytes(uri, (json.dumps(document, indent=2) + "\n").encode())
        return
    # A field that came into the config since then has its default there.
    config = configuration.from_document(saved.get("config", {}), storage.public_uri(uri))
    saved["config"] = json.loads(json.dumps(_but_cluster(config)))
    before, after = _flat(saved), _flat(document)
    for name in [*after, *before]:
        if before.get(name) != after.get(name):
            raise UserError(
                f"{storage.public_uri(folder)} was begun with {name} = {before.get(name)!r}, now {after.get(name)!r}: "
                "only --num-trials may change; another --run-dir starts another sweep"
            )


def _but_cluster(config: Config) -> dict[str, Any]:
    return {name: value for name, value in configuration.to_document(config).items() if name != "cluster"}


def _digest(manifest: str, split: str) -> str:
    """Of which videos a split has, whatever their order, and how they are labelled: what scores depend on."""
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


def local_trials(cluster: ClusterConfig) -> int:
    """How many trials a machine of its own trains at a time: two, or as many as it has GPUs for."""
    return max(1, torch.cuda.device_count() // cluster.max_workers) if cluster.use_gpu else _LOCAL_TRIALS


def local_cpus(cluster: ClusterConfig, max_concurrent: int) -> int:
    """Logical CPUs of a cluster on this machine in which so many trials can train and decode at the same time.

    More than the machine has where they must: trials then share its cores, and none waits for another to end.
    """
    decoding = cluster.decode_cpus * (cluster.max_decode_tasks or 1)
    needed = math.ceil(max_concurrent * (cluster.max_workers * cluster.worker_cpus + decoding))
    return max(needed, available_cores())


def room_for_trials(cluster: ClusterConfig, nodes: Sequence[Mapping[str, Any]]) -> int:
    """How many trials can train and decode at the same time on the nodes of a Ray cluster, at least 1.

    Args:
        cluster: What each takes.
        nodes: As `ray.nodes()` lists them.
    """
    trials = 1
    while (tasks := _decode_tasks(cluster, nodes, (trials + 1) * cluster.max_workers)) is not None:
        if tasks < (trials + 1) * (cluster.max_decode_tasks or 1):
            break
        trials += 1
    return trials


def wait_for_room(cluster: ClusterConfig, trials: int, seconds: float) -> None:
    """Asks the cluster that Ray is connected to for the nodes that so many trials need, and waits for them.

    A placement group that is not placed yet is what an autoscaler sees; it ends with this process, whatever ends that.

    Args:
        cluster: What each trial takes.
        trials: At a time.
        seconds: To wait at most.
    """
    workers, tasks = trials * cluster.max_workers, trials * (cluster.max_decode_tasks or 1)
    worker = {"CPU": cluster.worker_cpus} | ({"GPU": 1.0} if cluster.use_gpu else {})
    bundles = [(worker, cluster.train_node_labels)] * workers
    bundles += [({"CPU": cluster.decode_cpus}, cluster.data_node_labels)] * tasks
    # A bundle of nothing is refused.
    wanted = [(resources, dict(labels)) for resources, labels in bundles if any(resources.values())]
    group = placement_group(
        [resources for resources, _ in wanted], bundle_label_selector=[labels for _, labels in wanted]
    )
    try:
        group.wait(seconds)
    finally:
        remove_placement_group(group)


def share_cluster(base: Config, trials: int, nodes: Sequence[Mapping[str, Any]]) -> Config:
    """The config with a trial's share of the CPUs for decoding, where so many trials run at a time.

    Each trial's Ray Data takes the whole cluster for its own: without a bound, the decoders of one would leave no CPU
    for the training workers or the decoders of the next.

    Args:
        base: The trials' config; where it bounds its decoders itself it stays as it is.
        trials: At least 1.
        nodes: As `ray.nodes()` lists them.
    """
    cluster = base.cluster
    if cluster.max_decode_tasks is not None:
        return base
    tasks = _decode_tasks(cluster, nodes, trials * cluster.max_workers) or 0
    return replace(base, cluster=replace(cluster, max_decode_tasks=max(1, tasks // trials)))


def _decode_tasks(cluster: ClusterConfig, nodes: Sequence[Mapping[str, Any]], num_workers: int) -> int | None:
    """How many decoders fit beside so many training workers, which go where nothing is decoded while they can.

    None where the workers do not fit.
    """
    alive = [node for node in nodes if node["Alive"]]
    decodes = [_has(node, cluster.data_node_labels) for node in alive]
    tasks, left = 0, num_workers
    for node, can_decode in sorted(zip(alive, decodes, strict=True), key=lambda pair: pair[1]):
        cpus, here = node["Resources"].get("CPU", 0.0), 0
        if _has(node, cluster.train_node_labels):
            here = left
            if cluster.worker_cpus:
                here = min(here, _times(cluster.worker_cpus, cpus))
            if cluster.use_gpu:
                here = min(here, int(node["Resources"].get("GPU", 0)))
        left -= here
        if can_decode:
            tasks += _times(cluster.decode_cpus, cpus - here * cluster.worker_cpus)
    return None if left else tasks


def _times(part: float, whole: float) -> int:
    """How often a part fits; 0.3 goes three times into 0.9, whatever rounding says."""
    return int(whole / part + 1e-9)


def _has(node: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a node has these labels; `!value` is any other, as for Ray."""
    there = node.get("Labels") or {}
    return all(
        (there.get(name) != value[1:]) if value.startswith("!") else there.get(name) == value
        for name, value in labels.items()
    )
