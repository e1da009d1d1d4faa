"""A run from the driver's side: checks what can be checked, starts Ray Train, shows progress, passes on a stop.

RUN/config.json  metrics.jsonl  bad_videos.jsonl  events/  checkpoints/step-…/       the run
RUN/ray/…                                                                            Ray Train's own records
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.train
from pyarrow import fs
from ray.data import Dataset
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.manifest import read_manifest
from carl_ray.data.plan import Plan, training_plan, validation_plan
from carl_ray.data.stream import MANIFEST_COLUMNS, execution_options, stream_views
from carl_ray.errors import RunError, UserError
from carl_ray.model.backbone import build_backbone, load_backbone_weights
from carl_ray.training.checkpoint import Checkpoint, latest_checkpoint, load_model
from carl_ray.training.monitor import RunMonitor, Status
from carl_ray.training.step import ContrastiveModel
from carl_ray.training.worker import TerminationTorchConfig, WorkerSettings, train_worker

_CONFIG = "config.json"
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    finished: bool
    """All steps are done; false where the run was asked to stop before, with a checkpoint written."""
    step: int
    num_steps: int
    validation_loss: float | None


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


def find_checkpoint(config: Config, run_dir: str, *, resume: bool) -> Checkpoint | None:
    """Where a run in this folder goes on, or none for the beginning; checks that the folder can take this run.

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
        # On the driver, so that a misfit is one clear line before any worker starts.
        load_model(checkpoint, ContrastiveModel(config))
    return checkpoint


def saved_config(run_dir: str) -> Config | None:
    """The config of the run in a folder, or none where it holds no run."""
    uri = storage.join(run_dir, _CONFIG)
    if not storage.exists(uri):
        return None
    return configuration.from_json(storage.read_bytes(uri), storage.public_uri(uri))


def train(
    config: Config, run_dir: str, *, resume: bool = False, stop: threading.Event | None = None
) -> Outcome:
    """Trains on the connected Ray cluster, to the end or until asked to stop.

    Args:
        config: The run.
        run_dir: URI of the run folder.
        resume: Go on from the folder's latest checkpoint, or from the beginning where there is none.
        stop: Once set, the run writes a checkpoint and ends.

    Raises:
        UserError: something that the user can mend.
        RunError: training failed.
    """
    run_dir = run_dir if storage.is_remote(run_dir) else storage.resolve(run_dir)[1]
    videos = read_videos(config)
    plan = training_plan(
        config.training.seed,
        videos.training.num_rows,
        config.training.global_batch_size,
        config.training.epochs,
    )
    checked = (
        None
        if videos.validation is None
        else validation_plan(
            config.training.seed, videos.validation.num_rows, config.training.global_batch_size
        )
    )
    _warn_short_videos(videos.training, config.model.num_frames)
    checkpoint = find_checkpoint(config, run_dir, resume=resume)
    first_step = 0 if checkpoint is None else checkpoint.progress.step
    if resume:
        place = (
            "from the beginning: there is no checkpoint" if checkpoint is None else f"from step {first_step}"
        )
        print(f"resuming {storage.public_uri(run_dir)} {place}", flush=True)
    if first_step >= plan.num_steps:
        print(f"nothing to do: all {plan.num_steps} steps are done", flush=True)
        return Outcome(True, first_step, plan.num_steps, None)
    weights = None if checkpoint is not None else _pretrained_backbone(config)
    # From here on the folder holds a run: whatever can be wrong with the command has been found.
    storage.write_bytes(storage.join(run_dir, _CONFIG), configuration.to_json(config).encode())
    _explain_resources(config)
    monitor = RunMonitor.remote()  # type: ignore[attr-defined]
    datasets = _datasets(config, run_dir, plan, checked, videos)
    # The object store has them now; the driver need not hold millions of rows for the length of the run.
    del videos
    pa.default_memory_pool().release_unused()
    settings = WorkerSettings(config, run_dir, plan, checked, monitor, weights)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        datasets=datasets,
        dataset_config=DataConfig(execution_options=execution_options(config)),
        torch_config=TerminationTorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=config.cluster.num_workers,
            use_gpu=config.cluster.use_gpu,
            resources_per_worker={"CPU": config.cluster.worker_cpus}
            | ({"GPU": 1} if config.cluster.use_gpu else {}),
            label_selector=dict(config.cluster.train_node_labels) or None,
        ),
        run_config=_run_config(config, run_dir),
    )
    with _watched(monitor, stop or threading.Event()):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise RunError(
                f"training failed: {_root_cause(error)}; --resume continues from the last checkpoint"
            ) from None
    status: Status = ray.get(monitor.latest.remote())
    if status.failure is not None:
        raise (UserError if status.failure_is_users else RunError)(status.failure)
    return Outcome(status.finished, status.step, status.num_steps, status.validation_loss)


def _datasets(
    config: Config, run_dir: str, plan: Plan, checked: Plan | None, videos: Videos
) -> dict[str, Any]:
    """The datasets as functions: Ray Train calls them whenever workers (re)start, each time from the checkpoint."""
    training = ray.put(videos.training)

    def training_stream() -> Dataset:
        checkpoint = latest_checkpoint(run_dir)
        return stream_views(
            plan, training, config, start_row=0 if checkpoint is None else checkpoint.progress.row
        )

    datasets: dict[str, Any] = {"train": training_stream}
    if checked is not None and videos.validation is not None:
        validation = ray.put(videos.validation)
        datasets["validation"] = lambda: stream_views(checked, validation, config)
    return datasets


def _run_config(config: Config, run_dir: str) -> RunConfig:
    filesystem, path = storage.resolve(storage.join(run_dir, "ray"))
    # A name of its own for each start: where a run goes on is decided by its own checkpoints alone.
    return RunConfig(
        name=f"start-{time.time_ns()}",
        storage_path=path,
        storage_filesystem=None if isinstance(filesystem, fs.LocalFileSystem) else filesystem,
        failure_config=FailureConfig(max_failures=config.cluster.max_failures),
    )


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


def _pretrained_backbone(config: Config) -> ray.ObjectRef | None:
    if config.model.weights == "random":
        return None
    backbone = build_backbone(config.model)
    print(load_backbone_weights(backbone, config.model), flush=True)
    return ray.put(backbone.state_dict())


def _warn_short_videos(videos: pa.Table, num_frames: int) -> None:
    lengths = videos.column("num_frames").to_numpy()
    short = int((lengths < num_frames).sum())
    if short:
        print(
            f"warning: {short} of {len(lengths)} training videos are shorter than T = {num_frames} frames (longest "
            f"{int(lengths.max())}); their views are padded",
            file=sys.stderr,
            flush=True,
        )


def _explain_resources(config: Config) -> None:
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
    if lacking:
        print(
            f"waiting for the cluster to grow: training and decoding need {' and '.join(lacking)}; where no node "
            "will join, stop and lower --cluster.num_workers or --cluster.worker_cpus",
            file=sys.stderr,
            flush=True,
        )


def _root_cause(error: TrainingFailedError) -> str:
    failures = list(getattr(error, "worker_failures", {}).values())
    cause: BaseException = failures[0] if failures else getattr(error, "controller_failure", error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__


@contextmanager
def _watched(monitor: Any, stop: threading.Event) -> Iterator[None]:
    """Prints progress while the body runs, and passes on a wish to stop."""
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(monitor, stop, done), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


def _watch(monitor: Any, stop: threading.Event, done: threading.Event) -> None:
    asked = False
    shown: Status | None = None
    printed_at = -math.inf
    on_terminal = sys.stdout.isatty()
    while not done.wait(0.5):
        if stop.is_set() and not asked:
            ray.get(monitor.request_stop.remote())
            asked = True
            print("\nstopping at the next step, after a checkpoint", flush=True)
        status: Status | None = ray.get(monitor.latest.remote())
        if status is None or status == shown:
            continue
        if on_terminal:
            print(f"\r\x1b[K{progress_line(status)}", end="", flush=True)
        elif time.monotonic() - printed_at >= _SECONDS_BETWEEN_LINES or shown is None:
            print(progress_line(status), flush=True)
            printed_at = time.monotonic()
        shown = status
    if shown is not None and on_terminal:
        print(flush=True)


def progress_line(status: Status) -> str:
    """One line: steps, losses, rate, time left."""
    parts = [f"step {status.step}/{status.num_steps}"]
    if status.loss is not None:
        parts.append(f"loss {status.loss:.4f}")
    if status.validation_loss is not None:
        parts.append(f"validation {status.validation_loss:.4f}")
    if status.steps_per_second > 0:
        left = int((status.num_steps - status.step) / status.steps_per_second)
        parts.append(f"{status.steps_per_second:.2f} steps/s")
        parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
    return "  ".join(parts)
