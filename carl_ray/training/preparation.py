"""What is found out before a run starts: its videos, where it goes on, whether the cluster and the folder will do.

Whatever can be wrong with a command is found here, before anything is written or any worker started.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.manifest import read_manifest
from carl_ray.data.stream import MANIFEST_COLUMNS
from carl_ray.errors import UserError
from carl_ray.training.checkpoint import Checkpoint, latest_checkpoint, load_model
from carl_ray.training.step import ContrastiveModel

CONFIG = "config.json"
"""The config of a run, in its folder."""


@dataclass(frozen=True)
class Videos:
    """The videos of a run: the columns of the manifest that the stream needs."""

    training: pa.Table
    validation: pa.Table | None


def check_manifest(config: Config) -> None:
    """Raises `UserError` where the run names no manifest, or one that is not there; cheap, before Ray starts."""
    read_manifest(_manifest_uri(config), ["split"])


def read_videos(config: Config) -> Videos:
    """The training and validation rows of the run's manifest.

    Raises:
        UserError: no manifest is named or there, or no row of it belongs to the training split.
    """
    uri = _manifest_uri(config)
    training = read_manifest(uri, MANIFEST_COLUMNS, split=config.data.train_split)
    if not training.num_rows:
        found = read_manifest(uri, ["split"]).column("split").unique().to_pylist()
        splits = sorted(split or "train" for split in found)
        raise UserError(
            f"{storage.public_uri(uri)}: no video with split {config.data.train_split!r}; "
            f"it has {', '.join(splits) if splits else 'no rows at all'}"
        )
    validation = read_manifest(uri, MANIFEST_COLUMNS, split=config.data.validation_split)
    validation = validation.slice(0, config.data.max_validation_videos)
    return Videos(training, validation if validation.num_rows else None)


def _manifest_uri(config: Config) -> str:
    if config.data.manifest is None:
        raise UserError(
            f"preset {config.preset} needs videos: --data.manifest URI (`python -m carl_ray.index FOLDER --out URI` "
            "makes a manifest)"
        )
    return config.data.manifest


def find_checkpoint(config: Config, videos: str, run_dir: str, *, resume: bool) -> Checkpoint | None:
    """Where a run in this folder goes on, or none for the beginning; checks that the folder can take this run.

    Args:
        config: The run.
        videos: `videos_digest` of its training videos.
        run_dir: URI of the run folder.
        resume: Whether it may hold a run already.

    Raises:
        UserError: the folder holds a run and `resume` is false, or holds another run than this one.
        RunError: the folder cannot be read.
    """
    saved = saved_config(run_dir)
    if saved is not None:
        if not resume:
            raise UserError(
                f"{storage.public_uri(run_dir)} already holds a run: --resume continues it, another --run-dir "
                "starts anew"
            )
        _check_same_run(saved, config, run_dir)
    checkpoint = latest_checkpoint(run_dir) if resume else None
    if checkpoint is not None:
        if checkpoint.progress.videos != videos:
            raise UserError(
                f"{storage.public_uri(run_dir)} was begun with other training videos than the manifest has now: the "
                "plan would be another one; restore that manifest, or start another run"
            )
        # On the driver, so that a misfit is one clear line before any worker starts.
        load_model(checkpoint, ContrastiveModel(config))
    return checkpoint


def saved_config(run_dir: str) -> Config | None:
    """The config of the run in a folder, or none where it holds no run."""
    uri = storage.join(run_dir, CONFIG)
    if not storage.exists(uri):
        return None
    return configuration.from_json(storage.read_bytes(uri), storage.public_uri(uri))


def _check_same_run(saved: Config, config: Config, run_dir: str) -> None:
    """Raises `UserError` where a resumed run would not be the one that was begun; the cluster may change."""
    before = configuration.to_document(saved)
    after = configuration.to_document(replace(config, cluster=saved.cluster))
    for section, values in before.items():
        if values == after[section]:
            continue
        if not isinstance(values, dict):
            raise UserError(
                f"{storage.public_uri(run_dir)} holds a run of preset {values}, not {after[section]}"
            )
        field = next(name for name in values if values[name] != after[section][name])
        raise UserError(
            f"{storage.public_uri(run_dir)} was begun with {section}.{field} = {values[field]!r}, now "
            f"{after[section][field]!r}: --resume continues the same run; start another one for another setting"
        )


def warn_short_videos(videos: pa.Table, num_frames: int) -> None:
    """Says on standard error how many videos are shorter than T."""
    lengths = videos.column("num_frames").to_numpy()
    short = int((lengths < num_frames).sum())
    if short:
        print(
            f"warning: {short} of {len(lengths)} training videos are shorter than T = {num_frames} frames (longest "
            f"{int(lengths.max())}); their views are padded",
            file=sys.stderr,
            flush=True,
        )


def refuse_secrets(uris: dict[str, str | None]) -> None:
    """Raises `UserError` for the first of these options whose URI holds credentials."""
    for name, uri in uris.items():
        if uri is not None and storage.has_secret(uri):
            raise UserError(
                f"{name}: expected a URI without credentials, since it is written into the run folder; put them into "
                "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            )


def check_shared(run_dir: str) -> None:
    """Raises `UserError` where a local run folder is not the same folder on every node of the cluster."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if storage.is_remote(run_dir) or len(nodes) == 1:
        return
    name = f".shared-{time.time_ns()}"
    marker = storage.join(run_dir, name)
    storage.write_bytes(marker, b"")
    try:
        there = ray.get(
            [
                _is_there.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
                ).remote(marker)
                for node in nodes
            ]
        )
    finally:
        Path(storage.resolve(marker)[1]).unlink(missing_ok=True)
    if not all(there):
        raise UserError(
            f"{run_dir} is a folder of this machine, but the cluster has {len(nodes)} nodes: --run-dir must be in "
            "object storage (s3://…, gs://…) or on a file system that all nodes share"
        )


@ray.remote(num_cpus=0)
def _is_there(uri: str) -> bool:
    return storage.exists(uri)


def explain_resources(config: Config) -> None:
    """Says what the cluster lacks for this run, on standard error.

    Raises:
        UserError: it is a cluster of this machine alone, which cannot grow.
    """
    cluster = config.cluster
    there = ray.cluster_resources()
    cpus = cluster.num_workers * cluster.worker_cpus + cluster.decode_cpus
    lacking = []
    if there.get("CPU", 0) < cpus:
        lacking.append(f"{cpus:g} CPUs (it has {there.get('CPU', 0):g})")
    if cluster.use_gpu and there.get("GPU", 0) < cluster.num_workers:
        lacking.append(f"{cluster.num_workers} GPUs (it has {there.get('GPU', 0):g})")
    if not cluster.use_gpu and there.get("GPU", 0) >= 1:
        print(
            f"warning: the cluster has {there['GPU']:g} GPUs and this run uses none: --cluster.use_gpu true",
            file=sys.stderr,
            flush=True,
        )
    if lacking and not os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"training and decoding need {' and '.join(lacking)}, and a Ray cluster of this machine alone cannot grow: "
            "lower --cluster.num_workers, set --cluster.use_gpu false, or name a cluster in RAY_ADDRESS"
        )
    if lacking:
        print(
            f"waiting for the cluster to grow: training and decoding need {' and '.join(lacking)}; where no node "
            "will join, stop and lower --cluster.num_workers or --cluster.worker_cpus",
            file=sys.stderr,
            flush=True,
        )
