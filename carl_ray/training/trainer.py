"""A run from the driver's side: checks what can be checked, starts Ray Train, shows progress, passes on a stop.

The run folder holds config.json, metrics.jsonl, bad_videos.jsonl, skipped_steps.jsonl, warnings.jsonl, events/ and
checkpoints/step-…/, which are the run, and ray/, which are Ray Train's own records and why a start failed.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.train
from pyarrow import fs
from ray.data import Dataset
from ray.exceptions import RayError
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import ClusterConfig, Config
from carl_ray.data.coordinator import supports_endless_streams
from carl_ray.data.manifest import videos_digest
from carl_ray.data.plan import Plan
from carl_ray.data.stream import execution_options, stream_views
from carl_ray.errors import InterruptedRunError, RunError
from carl_ray.lease import Lease, hold
from carl_ray.machine import major_differences, software_versions
from carl_ray.model.backbone import build_backbone, load_backbone_weights
from carl_ray.training.checkpoint import (
    CONFIG,
    Checkpoint,
    how_to_go_on,
    initial_weights,
    latest_checkpoint,
)
from carl_ray.training.monitor import RunMonitor, wait_for_run
from carl_ray.training.preparation import (
    Videos,
    check_shared,
    check_videos_shared,
    explain_resources,
    find_checkpoint,
    make_plans,
    read_videos,
    record_videos,
    refuse_secrets,
    warn_short_videos,
)
from carl_ray.training.worker import TerminationTorchConfig, WorkerSettings, train_worker

RESIZE_SECONDS = 60.0
"""How often an elastic run looks whether there is room for more workers."""
START_SECONDS = 45.0
"""An elastic run that lost workers waits this long for as many as before, then goes on with those there is room for."""

_RECORDS = "ray"
"""Folder of a run with a folder for each start: Ray Train's records, and the failure that its workers agreed on."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    finished: bool
    """All steps are done; false where the run was asked to stop before, with a checkpoint written."""
    step: int
    num_steps: int
    validation_loss: float | None


def train(
    config: Config,
    run_dir: str,
    *,
    resume: bool = False,
    stop: threading.Event | None = None,
    until_epoch: int | None = None,
) -> TrainingResult:
    """Trains on the connected Ray cluster, to the end or until asked to stop.

    Args:
        config: The run.
        run_dir: URI of the run folder.
        resume: Go on from the folder's latest checkpoint, or from the beginning where there is none.
        stop: Once set, the run writes a checkpoint and ends; SIGINT and SIGTERM do the same, and raise.
        until_epoch: The run writes a checkpoint and ends once this many epochs are done; none: all of them. Its
            schedule is that of the whole run.

    Raises:
        UserError: something that the user can mend; another process writes in the folder.
        RunError: training failed, or was stopped by a signal.
    """
    run_dir = storage.absolute(run_dir)
    refuse_secrets(
        {"--run-dir": run_dir, "data.manifest": config.data.manifest, "model.weights": config.model.weights}
        | {"model.init_from": config.model.init_from}
    )
    check_shared(run_dir)
    storage.set_patience(config.cluster.storage_seconds)
    with hold(run_dir) as (lease, lost):
        return _train(config, run_dir, lease, lost, resume, stop or threading.Event(), until_epoch)


def _train(
    config: Config,
    run_dir: str,
    lease: Lease,
    lost: threading.Event,
    resume: bool,
    stop: threading.Event,
    until_epoch: int | None,
) -> TrainingResult:
    config, videos = read_videos(config)
    check_videos_shared(videos.training)
    plan, checked = make_plans(config, videos)
    warn_short_videos(videos.training, config.model.num_frames)
    digest = videos_digest(videos.training)
    checkpoint = find_checkpoint(config, videos, run_dir, resume=resume)
    saved_step = None if checkpoint is None else checkpoint.progress.step
    first_step = saved_step or 0
    if checkpoint is not None:
        _warn_of_versions(checkpoint)
    if resume:
        place = (
            "from the beginning: there is no checkpoint" if checkpoint is None else f"from step {first_step}"
        )
        print(f"resuming {storage.public_uri(run_dir)} {place}", flush=True)
    last_step = plan.num_steps
    if until_epoch is not None:
        last_step = min(last_step, math.ceil(until_epoch * plan.epoch_rows / plan.batch_size))
    if first_step >= last_step:
        print(f"nothing to do: {first_step} of {plan.num_steps} steps are done", flush=True)
        return TrainingResult(first_step >= plan.num_steps, first_step, plan.num_steps, None)
    weights = None if checkpoint is not None else _pretrained(config)
    explain_resources(config)
    supports_endless_streams()  # Its warning is lost in the processes that make the stream.
    # From here on the folder holds a run: whatever can be wrong with the command has been found.
    record_videos(videos, run_dir)
    config = replace(config, versions=software_versions())
    storage.write_bytes(storage.join(run_dir, CONFIG), configuration.to_json(config).encode())
    # On the driver's own node: it lives exactly as long as the driver does.
    beside_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    monitor = RunMonitor.options(scheduling_strategy=beside_driver).remote()  # type: ignore[attr-defined]
    datasets = _datasets(config, run_dir, plan, checked, videos)
    # The object store has them now; the driver need not hold millions of rows for the length of the run.
    del videos
    pa.default_memory_pool().release_unused()
    # A name of its own for each start: where a run goes on is decided by its own checkpoints alone.
    start = f"start-{time.time_ns()}"
    failure_uri = storage.join(run_dir, _RECORDS, start, "failure.json")
    settings = WorkerSettings(
        config, run_dir, digest, plan, checked, monitor, weights, last_step, lease, failure_uri
    )
    if config.cluster.min_workers < config.cluster.max_workers:
        # Where Ray counted room that is gone; the cluster's own value is for nodes that have yet to boot.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_SECONDS)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        datasets=datasets,
        dataset_config=DataConfig(execution_options=execution_options(config)),
        torch_config=TerminationTorchConfig(),
        scaling_config=_scaling_config(config.cluster),
        run_config=_run_config(config, run_dir, start),
    )
    grace = config.cluster.grace_seconds
    ending = wait_for_run(trainer.fit, monitor, stop=stop, lost=lost, grace_seconds=grace)
    if lost.is_set():
        lease.check()
    status = ending.status
    if status is not None and status.saved_step is not None:
        saved_step = status.saved_step
    on = how_to_go_on(run_dir, saved_step)
    if ending.head_gone:
        raise RunError(f"Ray's servers are gone (of the head, or of this machine); {on}")
    if ending.signal is not None:
        name = "Ctrl-C" if ending.signal == signal.SIGINT else "SIGTERM"
        step = first_step if status is None else status.step
        raise InterruptedRunError(
            f"stopped at step {step} of {plan.num_steps} by {name}; {on}", ending.signal
        )
    if isinstance(ending.error, (TrainingFailedError, RayError)):
        # The latter where Ray Train's own controller died.
        raise RunError(f"training failed: {_root_cause(ending.error)}; {on}") from None
    if ending.error is not None:
        raise ending.error
    failure = None if status is None else status.failure
    if failure is None and not (status is not None and status.ended):
        # A monitor that was killed has forgotten it.
        failure = _written_failure(failure_uri)
    if failure is not None:
        raise RunError(failure)
    if status is None:  # The monitor was killed after the last news.
        checkpoint = latest_checkpoint(run_dir)
        step = 0 if checkpoint is None else checkpoint.progress.step
        return TrainingResult(step == plan.num_steps, step, plan.num_steps, None)
    return TrainingResult(status.finished, status.step, status.num_steps, status.validation_loss)


def _warn_of_versions(checkpoint: Checkpoint) -> None:
    if differences := major_differences(checkpoint.config.versions, software_versions()):
        text = "the numbers of this run may change, since it goes on with other software than its checkpoint"
        print(f"warning: {text}: {', '.join(differences)}", file=sys.stderr, flush=True)


def _datasets(
    config: Config,
    run_dir: str,
    plan: Plan,
    checked: Plan | None,
    videos: Videos,
) -> dict[str, Any]:
    """The datasets as functions: Ray Train calls them whenever workers (re)start, each time from the checkpoint."""
    training = ray.put(videos.training)

    def training_stream() -> Dataset:
        storage.set_patience(config.cluster.storage_seconds)
        checkpoint = latest_checkpoint(run_dir)
        return stream_views(
            plan, training, config, start_row=0 if checkpoint is None else checkpoint.progress.row
        )

    datasets: dict[str, Any] = {"train": training_stream}
    if checked is not None and videos.validation is not None:
        validation = ray.put(videos.validation)
        datasets["validation"] = lambda: stream_views(checked, validation, config)
    return datasets


def _scaling_config(cluster: ClusterConfig) -> ScalingConfig:
    return ScalingConfig(
        num_workers=cluster.num_workers,
        use_gpu=cluster.use_gpu,
        resources_per_worker={"CPU": cluster.worker_cpus} | ({"GPU": 1} if cluster.use_gpu else {}),
        label_selector=dict(cluster.train_node_labels) or None,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def _run_config(config: Config, run_dir: str, start: str) -> RunConfig:
    filesystem, path = storage.resolve(storage.join(run_dir, _RECORDS))
    return RunConfig(
        name=start,
        storage_path=path,
        storage_filesystem=None if isinstance(filesystem, fs.LocalFileSystem) else filesystem,
        failure_config=FailureConfig(max_failures=config.cluster.max_failures),
    )


def _pretrained(config: Config) -> ray.ObjectRef | None:
    """The tensors of the model that a new run does not begin with at random, in the object store."""
    if config.model.init_from is not None:
        initial = initial_weights(config, config.model.init_from)
        print(initial.report, flush=True)
        return ray.put(initial.tensors)
    if config.model.weights == "random":
        return None
    backbone = build_backbone(config.model)
    print(load_backbone_weights(backbone, config.model), flush=True)
    return ray.put({f"encoder.backbone.{name}": value for name, value in backbone.state_dict().items()})


def _written_failure(uri: str) -> str | None:
    """The failure that the workers agreed on, where they left one."""
    return json.loads(storage.read_bytes(uri))["failure"] if storage.exists(uri) else None


def _root_cause(error: TrainingFailedError | RayError) -> str:
    failures = list(getattr(error, "worker_failures", {}).values())
    cause: BaseException = failures[0] if failures else getattr(error, "controller_failure", error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    # What a decoding task raised stands somewhere above the last line, which is Ray Data's.
    own = [line for line in lines if line.startswith("carl_ray.errors.")]
    return (own or lines or [type(cause).__name__])[-1]
