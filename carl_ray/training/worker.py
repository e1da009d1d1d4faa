"""Training loop of a Ray Train worker, from a checkpoint or the start to the end.

`_begin` restores or initialises the state, `_train` loops over the steps. Workers agree by integers that are summed
over them each step: the rows received and their fingerprint, videos that could not be read, requests to stop.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import Config
from carl_ray.errors import RunError, warnings_to
from carl_ray.machine import bf16_slowdown, has_native_bf16
from carl_ray.training.checkpoint import CONFIG, Checkpoint, Progress, latest_checkpoint, restore
from carl_ray.training.monitor import Status
from carl_ray.training.process_group import TERMINATED, TRAINING
from carl_ray.training.reader import Prefetch
from carl_ray.training.reporter import Reporter, UnsavedError, WorkerSettings, sum_over_workers
from carl_ray.training.run_log import SKIPPED_STEPS, RunLog
from carl_ray.training.step import TrainingStep, computes_bf16, with_precision
from carl_ray.training.step_batches import (
    FINGERPRINTS,
    AgreedError,
    StepBatch,
    check_rows,
    planned_fingerprint,
    step_batches,
)

MAX_SKIPPED_IN_A_ROW = 10
"""The run fails after this many consecutive steps whose loss or gradient was not finite."""

_LOGGER = logging.getLogger(__name__)
_MAX_VIDEOS_NAMED = 5
"""Videos that an error message names; the log has all of them."""


class TerminatedError(Exception):
    """Ends a worker at SIGTERM or a resize, after its checkpoint is written."""


def train_worker(settings: WorkerSettings) -> None:
    """Train from the latest checkpoint of the run folder, or the start, to the end.

    An `AgreedError` is raised on all workers and would recur: it is sent to the driver, by the monitor and a file, and
    the workers return. Any other error, of one worker alone, is raised: Ray Train restarts the workers.
    """
    rank = ray.train.get_context().get_world_rank()
    is_first = rank == 0
    storage.set_patience(settings.config.cluster.storage_seconds)

    def warn(message: str) -> None:
        settings.monitor.warn.remote(f"worker {rank}: {message}")

    reporter: Reporter | None = None
    with warnings_to(warn):
        TRAINING.set()
        try:
            checkpoint = latest_checkpoint(settings.run_dir)
            # Started first: the processes of the stream start while the model is built and validated.
            batches = _training_batches(settings, 0 if checkpoint is None else checkpoint.progress.step)
            try:
                step, reporter, progress = _begin(settings, checkpoint, is_first)
                try:
                    _train(settings, step, reporter, progress, batches)
                except AgreedError as error:
                    if not isinstance(error, UnsavedError):
                        # An error of the logs must not replace the failure that ends the run.
                        with suppress(RunError):
                            reporter.close()
                    raise
            finally:
                batches.stop()
        except AgreedError as error:
            if is_first:
                _send_failure(settings, error, None if reporter is None else reporter.status())
        finally:
            TRAINING.clear()


def _send_failure(settings: WorkerSettings, error: AgreedError, last: Status | None) -> None:
    """Send the failure that ends the run by the monitor and, in case it died, by a file."""
    failure = str(error)
    if not isinstance(error, UnsavedError):
        with suppress(RunError):
            storage.write_bytes(settings.failure_uri, (json.dumps({"failure": failure}) + "\n").encode())
    last = last or Status(0, settings.training_plan.num_steps, None, None, 0.0)
    ray.get(settings.monitor.update.remote(replace(last, failure=failure)))


def _training_batches(settings: WorkerSettings, first_step: int) -> Prefetch[StepBatch]:
    config, plan = settings.config, settings.training_plan
    shard = ray.train.get_dataset_shard("train")
    device = ray.train.torch.get_device()
    return Prefetch(step_batches(shard, plan, config, first_step, device), config.cluster.prefetch_steps)


def _begin(
    settings: WorkerSettings, checkpoint: Checkpoint | None, is_first: bool
) -> tuple[TrainingStep, Reporter, Progress]:
    """Restore the latest checkpoint, or initialise the run, alike on all workers."""
    config, plan, device = settings.config, settings.training_plan, ray.train.torch.get_device()
    if config.cluster.worker_cpus >= 1:
        torch.set_num_threads(int(config.cluster.worker_cpus))
    # Nodes that joined after the driver's check may lack the shared folder.
    (num_blind,) = sum_over_workers(device, [not storage.exists(storage.join(settings.run_dir, CONFIG))])
    if num_blind:
        raise AgreedError(
            f"{storage.public_uri(settings.run_dir)} is not the same folder for {num_blind} of the training workers: "
            "--run-dir must be in object storage (s3://…, gs://…) or on a file system that all nodes share"
        )
    if is_first:
        settings.lease.check()  # Before the config is written again and the log truncated.
    config = _decide_precision(settings, checkpoint, device, is_first)
    settings = replace(settings, config=config)
    step = TrainingStep(config, device, plan.num_steps)
    progress = Progress(
        step=0, row=0, num_bad_rows=0, num_skipped_steps=0, seconds=0.0, videos=settings.videos
    )
    if checkpoint is not None:
        restore(checkpoint, step)
        progress = checkpoint.progress
    elif settings.initial_weights is not None:
        step.model.load_state_dict(ray.get(settings.initial_weights), strict=False)
    steps_before, num_broken = sum_over_workers(step.device, [progress.step, not _is_finite(step)])
    if steps_before != progress.step * ray.train.get_context().get_world_size():
        raise RuntimeError(
            "the workers do not find the same checkpoint: is the run folder on shared storage?"
        )
    if num_broken:
        source = checkpoint.uri if checkpoint is not None else config.model.init_from or config.model.weights
        raise AgreedError(
            f"{storage.public_uri(source)}: expected weights that are finite, got some that are not, from which "
            "nothing can be learnt: begin with others"
        )
    log = RunLog(settings.run_dir, progress.step, config) if is_first else None
    return step, Reporter(settings, log, None if checkpoint is None else progress.step), progress


def _decide_precision(
    settings: WorkerSettings, checkpoint: Checkpoint | None, device: torch.device, is_first: bool
) -> Config:
    """Resolve a precision of `auto`, alike on all workers, and save the config."""
    config, native = settings.config, computes_bf16(settings.config, device.type)
    (num_emulating,) = sum_over_workers(device, [not native])
    if config.training.precision == "auto":
        # A run that has a checkpoint keeps its precision on any workers.
        kept = None if checkpoint is None else checkpoint.config.training.precision
        config = with_precision(config, native_bf16=not num_emulating if kept is None else kept == "bf16")
        if is_first:
            uri = storage.join(settings.run_dir, CONFIG)
            storage.write_bytes(uri, configuration.to_json(config).encode())
    if config.training.precision == "bf16" and not native and has_native_bf16(device.type):
        _LOGGER.warning(
            "gradients of convolutions over two frames are wrong in bf16 on CPUs: begin the run with "
            "--training.precision fp32"
        )
    elif config.training.precision == "bf16" and not native:
        factor = f"{bf16_slowdown():.0f} times" if device.type == "cpu" else "several times"
        _LOGGER.warning(
            "this machine computes bf16 %s as slowly as float32: begin the run with --training.precision fp32",
            factor,
        )
    return config


def _train(
    settings: WorkerSettings,
    step: TrainingStep,
    reporter: Reporter,
    progress: Progress,
    batches: Iterable[StepBatch],
) -> None:
    config, plan = settings.config, settings.training_plan
    if progress.step >= settings.last_step:
        # The previous workers failed after their last checkpoint.
        reporter.finish(progress)
        return
    if progress.step == 0:
        reporter.validation(0, _validate(settings, step, reporter, 0))
    skipped_in_a_row = 0
    waiting_since = time.perf_counter()
    for data in batches:
        arrived, cpu_before = time.perf_counter(), time.process_time()
        asked = reporter.stop_requested(), TERMINATED.is_set()
        own = [data.num_rows, data.fingerprint, len(data.bad_videos), *asked]
        num_rows, fingerprint, num_bad, stop, terminated = sum_over_workers(step.device, own)
        check_rows(plan, data.step, num_rows, fingerprint)
        if stop or terminated:
            # This step is not trained: a resumed run begins with it.
            reporter.checkpoint(step, progress)
            if terminated:
                raise TerminatedError(
                    "the training workers were told to end (SIGTERM, or another number of them); their checkpoint is "
                    "written"
                )
            reporter.finish(progress)
            return
        if num_bad:
            progress = replace(progress, num_bad_rows=progress.num_bad_rows + num_bad)
            reporter.bad_videos(data.step + 1, data.bad_videos)
        report = step.train(data.batch, data.step)
        done = time.perf_counter()
        progress = replace(
            progress,
            step=data.step + 1,
            row=(data.step + 1) * plan.batch_size,
            num_skipped_steps=progress.num_skipped_steps + (not report.applied),
            seconds=progress.seconds + done - waiting_since,
        )
        skipped_in_a_row = 0 if report.applied else skipped_in_a_row + 1
        cpu = time.process_time() - cpu_before
        reporter.step(progress, report, waited=arrived - waiting_since, computed=done - arrived, cpu=cpu)
        suspects = [] if report.applied else reporter.skipped_step(step, progress, report, data)
        _check_health(settings, progress, skipped_in_a_row, suspects)
        at_end = progress.step >= settings.last_step
        if at_end or progress.step % config.training.validate_every_steps == 0:
            reporter.validation(progress.step, _validate(settings, step, reporter, progress.step))
        if at_end or progress.step % config.training.checkpoint_every_steps == 0:
            reporter.checkpoint(step, progress)
        if at_end:
            break
        waiting_since = time.perf_counter()
    reporter.finish(progress)


def _validate(
    settings: WorkerSettings, step: TrainingStep, reporter: Reporter, steps_done: int
) -> float | None:
    """Loss over the validation videos in evaluation mode; None without readable ones.

    Videos that cannot be read are logged.
    """
    plan = settings.validation_plan
    if plan is None:
        return None
    totals = torch.zeros(1, dtype=torch.float64, device=step.device)
    bad_videos = []
    fingerprint = 0
    shard = ray.train.get_dataset_shard("validation")
    for data in step_batches(shard, plan, settings.config, 0, step.device):
        sums, counts = step.evaluate(data.batch)
        totals = totals + torch.stack([sums, counts])
        bad_videos += data.bad_videos
        fingerprint += data.fingerprint
    (received,) = sum_over_workers(step.device, [fingerprint % FINGERPRINTS])
    if received % FINGERPRINTS != planned_fingerprint(plan, range(plan.num_rows)):
        raise AgreedError(
            f"validation after step {steps_done}: the stream lost, doubled or mixed up some of the "
            f"{plan.num_rows} videos"
        )
    if dist.is_initialized():
        dist.all_reduce(totals)
    reporter.bad_videos(steps_done, bad_videos)
    sums, counts = totals
    return float((sums / counts.clamp(min=1)).sum()) if bool(counts.any()) else None


def _check_health(
    settings: WorkerSettings, progress: Progress, skipped_in_a_row: int, suspects: Sequence[str]
) -> None:
    """Raise `AgreedError` for too many bad videos or skipped steps.

    Args:
        settings: The run.
        progress: Its progress.
        skipped_in_a_row: Consecutive skipped steps up to the last one.
        suspects: Ids of the videos that may have caused the last skipped step.
    """
    data = settings.config.data
    drawn = max(progress.row, settings.training_plan.epoch_rows)
    if progress.num_bad_rows > data.max_bad_fraction * drawn:
        raise AgreedError(
            f"{progress.num_bad_rows} of {progress.row} videos drawn could not be read, more than "
            f"data.max_bad_fraction = {data.max_bad_fraction:g} allows; "
            f"see {storage.public_uri(storage.join(settings.run_dir, 'bad_videos.jsonl'))}; where frames are missing, "
            "`carl_ray.index … --verify` counts those that decode"
        )
    if skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        # repr: an id comes from data and may hold terminal control characters.
        named = ", ".join(map(repr, suspects[:_MAX_VIDEOS_NAMED]))
        more = len(suspects) - _MAX_VIDEOS_NAMED
        raise AgreedError(
            f"the loss or a gradient was not finite in the last {skipped_in_a_row} steps (step {progress.step}), "
            f"at last with {named or 'no video at all'}{f' and {more} more' if more > 0 else ''}; "
            f"{storage.public_uri(storage.join(settings.run_dir, SKIPPED_STEPS))} has the videos of each; lower "
            "optimizer.learning_rate, set training.precision to fp32, or leave videos out of the manifest"
        )


def _is_finite(step: TrainingStep) -> bool:
    tensors = [value for value in step.model.state_dict().values() if value.is_floating_point()]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
