"""How many trials fit on a Ray cluster at a time, and each trial's share of its CPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from carl_ray.config import ClusterConfig, Config
from carl_ray.errors import note
from carl_ray.machine import available_cores

_LOCAL_TRIALS = 2
_SECONDS_TO_GROW = 600.0
_DRIVER_BYTES = 2**30
"""Memory that a trial's driver process reserves; training workers and decoders reserve their own."""
_EMBEDDING_BYTES = 3 * 2**30
"""Upper bound of what an embedding actor reserves, which the drivers must leave on its node."""


def local_trials(cluster: ClusterConfig) -> int:
    """Default number of concurrent trials on this machine alone: two, or as many as it has GPUs for."""
    return max(1, torch.cuda.device_count() // cluster.max_workers) if cluster.use_gpu else _LOCAL_TRIALS


def local_cpus(cluster: ClusterConfig, max_concurrent: int) -> int:
    """Logical CPUs of a local cluster in which `max_concurrent` trials can train and decode at the same time.

    This may exceed the machine's cores, so that trials share them and none waits for another to end.
    """
    decoding = cluster.decode_cpus * (cluster.max_decode_tasks or 1)
    needed = math.ceil(max_concurrent * (cluster.max_workers * cluster.worker_cpus + decoding))
    return max(needed, available_cores())


def concurrent_trials(cluster: ClusterConfig, trials: int, *, grow: bool, warn: bool) -> int:
    """How many of the wanted trials fit at a time on the cluster that Ray is connected to, at least 1.

    Args:
        cluster: What each trial takes.
        trials: How many are wanted.
        grow: Whether to wait for an autoscaler where they do not fit.
        warn: Whether to say that they do not fit.
    """
    need = f"{trials} trials at a time need more than the cluster has"
    room = room_for_trials(cluster, ray.nodes())
    if room < trials and grow:
        note(f"waiting up to {_SECONDS_TO_GROW / 60:g} minutes for the cluster to grow: {need}")
        wait_for_room(cluster, trials, _SECONDS_TO_GROW)
        room = room_for_trials(cluster, ray.nodes())
    if room < trials and warn:
        note(f"warning: {need}: {room} at a time")
    return min(trials, room)


def room_for_trials(cluster: ClusterConfig, nodes: Sequence[Mapping[str, Any]]) -> int:
    """How many trials can train and decode at the same time, at least 1; `nodes` as `ray.nodes()` lists them."""
    trials, least = 1, cluster.max_decode_tasks or 1
    while (_decode_tasks(cluster, nodes, (trials + 1) * cluster.max_workers) or 0) >= (trials + 1) * least:
        trials += 1
    return trials


def wait_for_room(cluster: ClusterConfig, trials: int, seconds: float) -> None:
    """Request the nodes of `trials` concurrent trials from the cluster's autoscaler, and wait at most `seconds`.

    A pending placement group is what the autoscaler sees; it ends with this process.
    """
    workers, tasks = trials * cluster.max_workers, trials * (cluster.max_decode_tasks or 1)
    worker = {"CPU": cluster.worker_cpus} | ({"GPU": 1.0} if cluster.use_gpu else {})
    bundles = [(worker, cluster.train_node_labels)] * workers
    bundles += [({"CPU": cluster.decode_cpus}, cluster.data_node_labels)] * tasks
    # Ray refuses empty bundles.
    resources, labels = zip(*(bundle for bundle in bundles if any(bundle[0].values())), strict=True)
    group = placement_group(list(resources), bundle_label_selector=list(map(dict, labels)))
    try:
        group.wait(seconds)
    finally:
        remove_placement_group(group)


def share_cluster(base: Config, trials: int, nodes: Sequence[Mapping[str, Any]]) -> Config:
    """Bound each trial's decode tasks to its share of the cluster, unless the config bounds them.

    Each trial's Ray Data would otherwise use the whole cluster, and leave no CPU for another trial's training workers
    and decoders.

    Args:
        base: The trials' config.
        trials: Concurrent trials, at least 1.
        nodes: As `ray.nodes()` lists them.
    """
    cluster = base.cluster
    if cluster.max_decode_tasks is not None:
        return base
    tasks = _decode_tasks(cluster, nodes, trials * cluster.max_workers) or 0
    return replace(base, cluster=replace(cluster, max_decode_tasks=max(1, tasks // trials)))


def _decode_tasks(cluster: ClusterConfig, nodes: Sequence[Mapping[str, Any]], num_workers: int) -> int | None:
    """How many decode tasks fit beside `num_workers` training workers; none where the workers do not fit.

    Workers are placed on nodes without decoding first.
    """
    alive = [node for node in nodes if node["Alive"]]
    decodes = [_has(node, cluster.data_node_labels) for node in alive]
    tasks, left = 0, num_workers
    for node, can_decode in sorted(zip(alive, decodes, strict=True), key=lambda pair: pair[1]):
        cpus, here = node["Resources"].get("CPU", 0.0), 0
        if _has(node, cluster.train_node_labels):
            by_cpu = _times(cluster.worker_cpus, cpus) if cluster.worker_cpus else left
            by_gpu = int(node["Resources"].get("GPU", 0)) if cluster.use_gpu else left
            here = min(left, by_cpu, by_gpu)
        left -= here
        if can_decode:
            tasks += _times(cluster.decode_cpus, cpus - here * cluster.worker_cpus)
    return None if left else tasks


def _times(part: float, whole: float) -> int:
    """How often a part fits into the whole; 0.3 fits three times into 0.9 despite rounding."""
    return int(whole / part + 1e-9)


def _has(node: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a node has these labels; as in Ray, `!value` means any other value."""
    there = node.get("Labels") or {}
    return all(
        (there.get(name) != value[1:]) if value.startswith("!") else there.get(name) == value
        for name, value in labels.items()
    )


def driver_resources(nodes: Sequence[Mapping[str, Any]], trials: int) -> dict[str, float]:
    """Resources that each trial's driver reserves: memory, no CPU.

    On a small machine embedding may need all of Ray's memory: then a fraction of a resource that every cluster's head
    has, since Tune cannot reserve nothing.

    Args:
        nodes: As `ray.nodes()` lists them.
        trials: Concurrent trials.
    """
    most = max((node["Resources"].get("memory", 0.0) for node in nodes if node["Alive"]), default=0.0)
    spare = (most - _EMBEDDING_BYTES) // trials
    return {"memory": min(_DRIVER_BYTES, spare)} if spare > 0 else {"node:__internal_head__": 0.001}
