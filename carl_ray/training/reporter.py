"""Reports of a training worker: logs, checkpoints, status to the driver."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
import ray.train
import torch
import torch.distributed as dist

from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.plan import Plan
from carl_ray.errors import OutageError, RunError
from carl_ray.lease import Lease, LostError
from carl_ray.training.checkpoint import Progress, how_to_go_on, save_checkpoint
from carl_ray.training.monitor import Status
from carl_ray.training.run_log import RunLog
from carl_ray.training.step import StepReport, TrainingStep
from carl_ray.training.step_batches import AgreedError, StepBatch, planned_epoch, planned_rows

_LOGGER = logging.getLogger(__name__)
_STARVATION_RATIO = 3.0
"""Warn where a step's wall time exceeds its CPU time by this factor."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class WorkerSettings:
    """Settings that the driver passes to every worker."""

    config: Config
    run_dir: str
    videos: str
    """`videos_digest` of the training videos."""
    training_plan: Plan
    validation_plan: Plan | None
    monitor: Any
    """Handle of the `RunMonitor` actor."""
    initial_weights: Any
    """Object reference of the pretrained tensors that a new run starts with, by name; None: random ones."""
    last_step: int
    """The workers write a checkpoint and end after this many steps."""
    lease: Lease
    """The run's exclusive right to write in its folder."""
    failure_uri: str
    """File for the failure that all workers agree on; another one for each start of the run."""


class UnsavedError(AgreedError):
    """The run folder refuses a checkpoint, also after retries."""


def sum_over_workers(device: torch.device, values: list[int | bool]) -> list[int]:
    """Sums of integers over all workers; a collective call."""
    totals = torch.tensor(values, dtype=torch.int64, device=device)
    if dist.is_initialized():
        dist.all_reduce(totals)
    return [int(total) for total in totals.tolist()]


def gather_over_workers(value: _T) -> list[_T]:
    """The values of all workers, by rank; a collective call."""
    gathered: list[Any] = [value]
    if dist.is_initialized():
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, value)
    return gathered


@dataclass
class _Window:
    """Sums over the steps since the last line of metrics.jsonl."""

    since: float
    """`time.perf_counter()` at its start."""
    waited: float = 0.0
    computed: float = 0.0
    checkpointed: float = 0.0
    cpu: float = 0.0
    frames: int = 0


class Reporter:
    """Reports of a worker; the first one writes the logs and informs the driver.

    Args:
        settings: The run.
        log: The logs of the run folder, on the first worker; None on the others.
        saved_step: Step of the checkpoint that the run continues from.
    """

    def __init__(self, settings: WorkerSettings, log: RunLog | None, saved_step: int | None) -> None:
        self._settings = settings
        self._log = log
        self._saved_step = saved_step
        self._num_workers = ray.train.get_context().get_world_size()
        # The rate is measured from the first finished step on: before it lies the start-up.
        self._rate_from: tuple[int, float] | None = None
        self._window = _Window(time.perf_counter())
        self._warned_of_starving = False
        self._answer: ray.ObjectRef | None = None
        self._step = saved_step or 0
        self._stop = False
        self._validation_loss: float | None = None
        self._last: dict[str, Any] = {}

    def stop_requested(self) -> bool:
        """Whether the driver asked the run to stop; known on the first worker alone."""
        self._receive()
        return self._stop

    def step(
        self, progress: Progress, report: StepReport, *, waited: float, computed: float, cpu: float
    ) -> None:
        """Record a step with its seconds of waiting, computing and CPU; log if due."""
        self._step = progress.step
        self._rate_from = self._rate_from or (progress.step, time.perf_counter())
        window, plan = self._window, self._settings.training_plan
        window.waited += waited
        window.computed += computed
        window.cpu += cpu
        window.frames += report.num_frames
        for warning in report.warnings if self._log is not None else ():
            _LOGGER.warning("%s", warning)
        every = self._settings.config.training.log_every_steps
        if progress.step % every == 0 or progress.step == plan.num_steps:
            elapsed = time.perf_counter() - window.since
            self._last = {
                "epoch": progress.row / plan.epoch_rows,
                "loss": report.loss,
                "learning_rate": report.learning_rate,
                "gradient_norm": report.gradient_norm,
                "num_videos": report.num_videos,
                "num_frames": report.num_frames,
                "num_bad_videos": progress.num_bad_rows,
                "num_skipped_steps": progress.num_skipped_steps,
                "num_workers": self._num_workers,
                "frames_per_second": window.frames / max(elapsed, 1e-9),
                "data_wait_seconds": window.waited,
                "step_seconds": window.computed,
                "checkpoint_seconds": window.checkpointed,
                **report.figures,
            }
            if self._log is not None:
                if not storage.is_remote(self._settings.run_dir):
                    self._settings.lease.check()  # A remote log is only copied at checkpoints.
                self._log.write(progress.step, self._last)
                self._warn_of_starving()
            self._window = _Window(time.perf_counter())
        self._send(self.status(report.loss))

    def _warn_of_starving(self) -> None:
        """Warn, once, where the steps since the last line got only a fraction of a CPU."""
        computed, cpu = self._window.computed, self._window.cpu
        starved = computed > _STARVATION_RATIO * max(cpu, 0.01) and computed > 1
        if self._settings.config.cluster.use_gpu or self._warned_of_starving or not starved:
            return
        self._warned_of_starving = True
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        remedy = f"; its niceness is {niceness}: start Ray with RAY_worker_niceness=0" if niceness > 0 else ""
        _LOGGER.warning(
            "the last steps took %.1f s, but had %.1f s of CPU: the training worker waits for other processes of its "
            "machine, or for a slower worker%s",
            *(computed, cpu, remedy),
        )

    def bad_videos(self, step: int, bad_videos: list[tuple[str, str]]) -> None:
        """Log the videos of all workers that could not be read; a collective call."""
        gathered = gather_over_workers(bad_videos)
        if self._log is not None:
            for video_id, reason in sorted(pair for part in gathered for pair in part):
                self._log.write_bad_video(step, video_id, reason)

    def skipped_step(
        self, step: TrainingStep, progress: Progress, report: StepReport, data: StepBatch
    ) -> list[str]:
        """Log a step that was not applied, with all workers' videos; collective.

        Returns:
            Ids of the videos whose own loss is not finite; of all videos where there is no such one.
        """
        plan = self._settings.training_plan
        rows = planned_rows(plan, data.step)
        broken = step.rows_not_finite(data.batch, rows)
        videos = {row: video for part in gather_over_workers(data.videos) for row, video in part.items()}
        video_ids = [videos[row] for row in rows if row in videos]
        not_finite = [videos[row] for row in broken if row in videos]
        if self._log is not None:
            line = {
                "epoch": planned_epoch(plan, rows.start),
                "loss": report.loss,
                "gradient_norm": report.gradient_norm,
                "video_ids": video_ids,
                "not_finite": not_finite,
            }
            self._log.write_skipped_step(progress.step, line)
        return not_finite or video_ids

    def validation(self, step: int, loss: float | None) -> None:
        """Log and report the validation loss, if there is one; a collective call."""
        if loss is None:
            return
        self._validation_loss = loss
        if self._log is not None:
            self._log.write(step, {"validation_loss": loss})
        self._window.since = time.perf_counter()
        self._send(self.status(), wait=True)
        ray.train.report({"step": step, "validation_loss": loss, **self._last})

    def checkpoint(self, step: TrainingStep, progress: Progress) -> None:
        """Write a checkpoint, unless this step has one, and sync the logs; collective.

        Raises:
            OutageError: the object store failed; Ray Train restarts the workers, which retry.
            UnsavedError: the run folder refuses the checkpoint, or was taken over.
        """
        started = time.perf_counter()
        failure: RunError | None = None
        if self._log is not None:
            try:
                self._settings.lease.check()
                self._log.sync()
                # Writing a complete checkpoint again could leave it torn.
                if progress.step != self._saved_step:
                    keep = self._settings.config.training.keep_checkpoints
                    save_checkpoint(self._settings.run_dir, step, progress, keep)
            except RunError as error:
                failure = error
        outage = isinstance(failure, OutageError)
        num_failed, num_outages = sum_over_workers(step.device, [failure is not None, outage])
        reason = str(failure or "the first worker could not write the checkpoint")
        if num_outages:
            raise OutageError(reason)
        if num_failed:
            if not isinstance(failure, LostError):
                reason += f"; {how_to_go_on(self._settings.run_dir, self._saved_step)}"
            raise UnsavedError(reason)
        self._saved_step = progress.step
        self._window.checkpointed += time.perf_counter() - started

    def close(self) -> None:
        """Write and close the logs."""
        if self._log is not None:
            self._log.close()

    def finish(self, progress: Progress) -> None:
        """Close the logs and send the driver the last status."""
        self._receive(wait=True)
        self.close()
        if self._log is not None:
            last = replace(self.status(), step=progress.step, ended=True)
            ray.get(self._settings.monitor.update.remote(last))

    def status(self, loss: float | None = None) -> Status:
        """The current status of the run."""
        first_step, since = self._rate_from or (self._step, 0.0)
        return Status(
            step=self._step,
            num_steps=self._settings.training_plan.num_steps,
            loss=loss if loss is not None else self._last.get("loss"),
            validation_loss=self._validation_loss,
            steps_per_second=(self._step - first_step) / (time.perf_counter() - since),
            saved_step=self._saved_step,
            precision=self._settings.config.training.precision,
        )

    def _send(self, status: Status, *, wait: bool = False) -> None:
        """Send a status to the monitor, unless it has yet to answer the last one."""
        if self._log is not None and self._receive(wait=wait):
            self._answer = self._settings.monitor.update.remote(status)

    def _receive(self, *, wait: bool = False) -> bool:
        """Process the monitor's answer to the last status; return whether it has arrived."""
        if self._answer is None:
            return True
        ready, _ = ray.wait([self._answer], timeout=None if wait else 0)
        if not ready:
            return False
        stop, warnings = ray.get(self._answer)
        self._answer = None
        self._stop = self._stop or stop
        if self._log is not None:
            for warning in warnings:
                self._log.write_warning(self._step, warning)
        return True
