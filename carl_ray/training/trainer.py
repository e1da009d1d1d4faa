"""Driver of a run: start Ray Train, wait, return the result or raise the error.

The run folder holds config.json, metrics.jsonl, bad_videos.jsonl, skipped_steps.jsonl, warnings.jsonl, events/ and
checkpoints/step-…/, and in ray/ the records of Ray Train and the reason of a failed start.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.train
from ray.data import Dataset
from ray.exceptions import RayError
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.coordinator import supports_endless_streams
from carl_ray.data.manifest import videos_digest
from carl_ray.data.stream import execution_options, stream_views
from carl_ray.errors import InterruptedRunError, RunError, UserError, last_line, note
from carl_ray.lease import Lease, hold
from carl_ray.machine import major_differences, software_versions
from carl_ray.session import quick_actor_start, records_storage
from carl_ray.training.checkpoint import CONFIG, how_to_go_on, latest_checkpoint
from carl_ray.training.cluster_checks import check_shared, check_videos_shared, explain_resources
from carl_ray.training.monitor import Ending, RunMonitor, Status, wait_for_run
from carl_ray.training.process_group import TerminationTorchConfig
from carl_ray.training.reporter import WorkerSettings
from carl_ray.training.run_checks import CheckedRun, check_run, refresh_checkpoint, saved_config
from carl_ray.training.run_videos import Videos, make_plans, record_videos, warn_short_videos
from carl_ray.training.worker import train_worker

RESIZE_SECONDS = 60.0
"""Interval at which an elastic run checks whether the cluster has room for more workers."""
START_SECONDS = 45.0
"""Wait of an elastic run that lost workers for as many as before; then it continues with those that fit."""

_RECORDS = "ray"
"""Folder of a run with one folder a start: Ray Train's records, and the failure that the workers agreed on."""


def train(
    config: Config,
    run_dir: str,
    *,
    resume: bool = False,
    stop: threading.Event | None = None,
    until_epoch: int | None = None,
) -> Status:
    """Check a run and train it on the connected Ray cluster, to its end or a stop.

    Args:
        config: The run.
        run_dir: URI of the run folder.
        resume: Continue from the folder's latest checkpoint, or from the beginning where there is none.
        stop: Once set, the run writes a checkpoint and ends; SIGINT and SIGTERM do the same, and raise.
        until_epoch: The run writes a checkpoint and ends once this many epochs are done; None: all of them. The
            learning rate follows the schedule of the whole run.

    Returns:
        How far the run got: not `finished` where it was stopped before, with a checkpoint written.

    Raises:
        UserError: a mistake of the user's; or another process writes in the folder.
        RunError: training failed, or was stopped by a signal.
    """
    storage.set_patience(config.cluster.storage_seconds)
    return train_checked(check_run(config, run_dir, resume=resume), stop=stop, until_epoch=until_epoch)


def train_checked(
    run: CheckedRun, *, stop: threading.Event | None = None, until_epoch: int | None = None
) -> Status:
    """Train a run that `check_run` has checked; arguments and errors as for `train`."""
    check_shared(run.run_dir)
    storage.set_patience(run.config.cluster.storage_seconds)
    with hold(run.run_dir) as (lease, lost):
        # Between the check and the lease another process may have written here.
        if saved_config(run.run_dir) != run.saved:
            raise UserError(f"{storage.public_uri(run.run_dir)}: another process has just begun a run there")
        refresh_checkpoint(run)
        return _train(run, lease, lost, stop or threading.Event(), until_epoch)


def _train(
    run: CheckedRun, lease: Lease, lost: threading.Event, stop: threading.Event, until_epoch: int | None
) -> Status:
    config, run_dir = run.config, run.run_dir
    videos, weights = run.take()
    check_videos_shared(videos.training)
    plan, validation_plan = make_plans(config, videos)
    warn_short_videos(videos.training, config.model.num_frames)
    saved_step = None if run.checkpoint is None else run.checkpoint.progress.step
    first_step = saved_step or 0
    if run.checkpoint is not None:
        differences = major_differences(run.checkpoint.config.versions, software_versions())
        if differences:
            why = "since it goes on with other software than its checkpoint"
            note(f"warning: the numbers of this run may change, {why}: {', '.join(differences)}")
    if run.resume:
        beginning = "from the beginning: there is no checkpoint"
        place = beginning if saved_step is None else f"from step {saved_step}"
        print(f"resuming {storage.public_uri(run_dir)} {place}", flush=True)
    last_step = plan.num_steps
    if until_epoch is not None:
        last_step = min(last_step, math.ceil(until_epoch * plan.epoch_rows / plan.batch_size))
    if first_step >= last_step:
        print(f"nothing to do: {first_step} of {plan.num_steps} steps are done", flush=True)
        return Status(first_step, plan.num_steps, None, None, 0.0, ended=True)
    if weights is not None:
        print(weights.report, flush=True)
    explain_resources(config)
    supports_endless_streams()  # Here, where its warning is seen; the processes that make the stream hide it.
    # Every check has passed: from here on the folder holds a run.
    record_videos(videos, run_dir)
    config = replace(config, versions=software_versions())
    storage.write_bytes(storage.join(run_dir, CONFIG), configuration.to_json(config).encode())
    # On the driver's own node, so that it lives exactly as long as the driver does.
    beside_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    monitor = RunMonitor.options(scheduling_strategy=beside_driver).remote()  # type: ignore[attr-defined]
    # A new name for each start: Ray Train must not restore its own state, the run's checkpoints decide.
    start = f"start-{time.time_ns()}"
    settings = WorkerSettings(
        config=config,
        run_dir=run_dir,
        videos=videos_digest(videos.training),
        training_plan=plan,
        validation_plan=validation_plan,
        monitor=monitor,
        initial_weights=None if weights is None else ray.put(weights.tensors),
        last_step=last_step,
        lease=lease,
        failure_uri=storage.join(run_dir, _RECORDS, start, "failure.json"),
    )
    trainer = _trainer(settings, videos, start)
    # They are in the object store now; a manifest may have millions of rows.
    del videos, weights
    pa.default_memory_pool().release_unused()
    grace = config.cluster.grace_seconds
    with quick_actor_start():
        ending = wait_for_run(trainer.fit, monitor, stop=stop, lost=lost, grace_seconds=grace)
    if lost.is_set():
        lease.check()
    return _result(ending, settings, saved_step)


def _trainer(settings: WorkerSettings, videos: Videos, start: str) -> TorchTrainer:
    """Ray Train's trainer of one start of a run."""
    config, cluster = settings.config, settings.config.cluster
    if cluster.min_workers < cluster.max_workers:
        # For capacity that Ray counted and that is gone; the cluster's own value is for nodes that have yet to boot.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_SECONDS)
    trainer: Any = TorchTrainer  # its annotation admits dict configs only
    scaling: Any = ScalingConfig  # typed as an earlier version of the class
    return trainer(
        train_worker,
        train_loop_config=settings,
        datasets=_datasets(settings, videos),
        dataset_config=DataConfig(execution_options=execution_options(config)),
        torch_config=TerminationTorchConfig(),
        scaling_config=scaling(
            num_workers=cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.worker_cpus} | ({"GPU": 1} if cluster.use_gpu else {}),
            label_selector=dict(cluster.train_node_labels) or None,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=start,
            **records_storage(storage.join(settings.run_dir, _RECORDS)),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )


def _result(ending: Ending, settings: WorkerSettings, saved_step: int | None) -> Status:
    """The result of a run that has ended, or the error that ended it."""
    status, num_steps = ending.status, settings.training_plan.num_steps
    first_step = saved_step or 0
    if status is not None and status.saved_step is not None:
        saved_step = status.saved_step
    remedy = how_to_go_on(settings.run_dir, saved_step)
    if ending.head_gone:
        raise RunError(f"Ray's servers are gone (of the head, or of this machine); {remedy}")
    if ending.signal is not None:
        name = "Ctrl-C" if ending.signal == signal.SIGINT else "SIGTERM"
        step = first_step if status is None else status.step
        raise InterruptedRunError(f"stopped at step {step} of {num_steps} by {name}; {remedy}", ending.signal)
    if isinstance(ending.error, (TrainingFailedError, RayError)):
        # RayError: Ray Train's controller died.
        raise RunError(f"training failed: {_root_cause(ending.error)}; {remedy}") from None
    if ending.error is not None:
        raise ending.error
    failure = None if status is None else status.failure
    if failure is None and not (status is not None and status.ended):
        # A monitor that was restarted has lost the failure that it was sent.
        failure = _written_failure(settings.failure_uri)
    if failure is not None:
        raise RunError(failure)
    if status is None:  # The monitor was restarted after the last status.
        checkpoint = latest_checkpoint(settings.run_dir)
        step = 0 if checkpoint is None else checkpoint.progress.step
        return Status(step, num_steps, None, None, 0.0, ended=True)
    return status


def _datasets(settings: WorkerSettings, videos: Videos) -> dict[str, Any]:
    """Functions that make the datasets; Ray Train calls them at each (re)start."""
    config, run_dir = settings.config, settings.run_dir
    plan, validation_plan = settings.training_plan, settings.validation_plan
    training, monitor = ray.put(videos.training), settings.monitor

    def warn(message: str) -> None:
        monitor.warn_of_task.remote(message)

    def training_stream() -> Dataset:
        storage.set_patience(config.cluster.storage_seconds)
        checkpoint = latest_checkpoint(run_dir)
        start_row = 0 if checkpoint is None else checkpoint.progress.row
        return stream_views(plan, training, config, start_row=start_row, warn=warn)

    datasets: dict[str, Any] = {"train": training_stream}
    if validation_plan is not None and videos.validation is not None:
        validation = ray.put(videos.validation)
        datasets["validation"] = lambda: stream_views(validation_plan, validation, config, warn=warn)
    return datasets


def _written_failure(uri: str) -> str | None:
    """The failure that the workers agreed on, if they wrote one."""
    return json.loads(storage.read_bytes(uri))["failure"] if storage.exists(uri) else None


def _root_cause(error: TrainingFailedError | RayError) -> str:
    failures = list(getattr(error, "worker_failures", {}).values())
    cause: BaseException = failures[0] if failures else getattr(error, "controller_failure", error)
    # The error of a decoding task is above the last line, which is Ray Data's.
    own = [line.strip() for line in str(cause).splitlines() if line.strip().startswith("carl_ray.errors.")]
    return own[-1] if own else last_line(cause)
