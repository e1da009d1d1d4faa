"""Checks of a run against the Ray cluster: shared storage, CPUs and GPUs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from carl_ray import storage
from carl_ray.config import Config
from carl_ray.errors import UserError, note

_SHARED = "object storage (s3://…, gs://…) or on a file system that all nodes share"


def check_shared(run_dir: str) -> None:
    """Raise `UserError` where nodes of the cluster do not share a local run folder."""
    nodes = _nodes()
    if storage.is_remote(run_dir) or len(nodes) == 1:
        return
    marker = storage.join(run_dir, f".shared-{time.time_ns()}")
    storage.write_bytes(marker, b"")
    try:
        is_shared = _all_see(nodes, marker)
    finally:
        Path(storage.resolve(marker)[1]).unlink(missing_ok=True)
    if not is_shared:
        raise UserError(
            f"{run_dir} is a folder of this machine, but the cluster has {len(nodes)} nodes: --run-dir must be in "
            f"{_SHARED}"
        )


def check_videos_shared(videos: pa.Table) -> None:
    """Raise `UserError` where other nodes do not see the first video's file."""
    uri, nodes = videos.column("uri")[0].as_py(), _nodes()
    if storage.is_remote(uri) or len(nodes) == 1 or not storage.exists(uri) or _all_see(nodes, uri):
        return
    raise UserError(
        f"{uri} is a video of this machine, but the cluster has {len(nodes)} nodes: its videos must be in {_SHARED}"
    )


def _nodes() -> list[str]:
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def _all_see(nodes: list[str], uri: str) -> bool:
    exists = ray.remote(num_cpus=0)(storage.exists)
    strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    return all(ray.get([exists.options(scheduling_strategy=strategy).remote(uri) for strategy in strategies]))


def explain_resources(config: Config) -> None:
    """Print to standard error what the cluster lacks for this run.

    Raises:
        UserError: the cluster consists of this machine alone, which cannot grow.
    """
    cluster = config.cluster
    there = ray.cluster_resources()
    cpus = cluster.min_workers * cluster.worker_cpus + cluster.decode_cpus
    lacking = []
    if there.get("CPU", 0) < cpus:
        lacking.append(f"{cpus:g} CPUs (it has {there.get('CPU', 0):g})")
    if cluster.use_gpu and there.get("GPU", 0) < cluster.min_workers:
        lacking.append(f"{cluster.min_workers} GPUs (it has {there.get('GPU', 0):g})")
    if not cluster.use_gpu and there.get("GPU", 0) >= 1:
        text = f"the cluster has {there['GPU']:g} GPUs and this run uses none: --cluster.use_gpu true"
        note(f"warning: {text}")
    if not lacking:
        return
    if not os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"training and decoding need {' and '.join(lacking)}, and a Ray cluster of this machine alone cannot grow: "
            "lower --cluster.num_workers, set --cluster.use_gpu false, or name a cluster in RAY_ADDRESS"
        )
    note(
        f"waiting for the cluster to grow: training and decoding need {' and '.join(lacking)}; where no node "
        "will join, stop and lower --cluster.num_workers or --cluster.worker_cpus"
    )
