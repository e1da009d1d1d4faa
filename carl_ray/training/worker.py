"""What every training worker runs, inside Ray Train: the loop from the first step, or a checkpoint, to the last.

The loop reads top to bottom in `_train`, after `_begin`. Workers agree on everything through a few numbers that are
summed over them each step: rows received and which, videos that could not be read, and whether somebody was told to
stop.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.data import DataIterator
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.plan import VALIDATION_EPOCH, Plan
from carl_ray.data.sample import Batch, collate, view_seeds
from carl_ray.data.stream import StreamRow, read_rows
from carl_ray.errors import OutageError, RunError
from carl_ray.lease import Lease, LostError
from carl_ray.machine import bf16_slowdown, has_native_bf16
from carl_ray.training.checkpoint import (
    CONFIG,
    Checkpoint,
    Progress,
    how_to_go_on,
    latest_checkpoint,
    restore,
    save_checkpoint,
)
from carl_ray.training.monitor import Status
from carl_ray.training.reader import Prefetch, rows_by_step
from carl_ray.training.run_log import SKIPPED_STEPS, RunLog
from carl_ray.training.step import StepReport, TrainingStep, with_precision

MAX_SKIPPED_IN_A_ROW = 10
"""The run fails after this many steps in a row whose loss or gradient was not finite."""

_LOGGER = logging.getLogger(__name__)
_STARVED = 3.0
"""So many times its CPU time a step takes where other processes have the CPUs."""
_FINGERPRINTS = 2**48
"""How many there are: 64 bits hold the sum over all workers."""
_NUM_VIDEOS_NAMED = 5
"""In an error; the log has all of them."""
_MAX_SECONDS_TO_CHECKPOINT = 300.0
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)
_STORES: list[dist.TCPStore] = []
"""Torch's stores that this process serves, for as long as it lives."""
_TERMINATED = threading.Event()
_TRAINING = threading.Event()


@dataclass(frozen=True)
class WorkerSettings:
    """What the driver tells every worker."""

    config: Config
    run_dir: str
    videos: str
    """`videos_digest` of the training videos."""
    training_plan: Plan
    validation_plan: Plan | None
    monitor: Any
    """Handle of the `RunMonitor` actor."""
    initial_weights: Any
    """Reference to pretrained tensors of the model by name, for a run's beginning; None: random."""
    last_step: int
    """The workers end once this many steps are done, with a checkpoint."""
    lease: Lease
    """The run's right to write in its folder."""
    failure_uri: str
    """Where the first worker writes the failure, if all agree on one; each start has a place of its own."""


@dataclass(frozen=True)
class StepBatch:
    """One step's data of this worker."""

    step: int
    batch: Batch
    videos: dict[int, str]
    """Video id of each row of the batch."""
    num_rows: int
    fingerprint: int
    """`row_fingerprint` of the rows, those included whose video could not be read."""
    bad_videos: list[tuple[str, str]]
    """(video id, reason) of the videos that could not be read."""


class AgreedError(RunError):
    """A failure that all workers see in the same step."""


class UnsavedError(AgreedError):
    """The run folder does not take a checkpoint, though it was tried for long enough: nothing more is written there."""


class TerminatedError(Exception):
    """This worker was told to end, by SIGTERM or for another number of workers; its checkpoint is written."""


def install_termination_handler() -> None:
    """Makes SIGTERM, a spot node's warning, ask the loop for a checkpoint; only a main thread may call it."""
    _TERMINATED.clear()
    signal.signal(signal.SIGTERM, lambda number, frame: _TERMINATED.set())


def is_training() -> bool:
    """Whether the loop runs in this process."""
    return _TRAINING.is_set()


def end_with_checkpoint() -> None:
    """Asks this process's loop, as SIGTERM does, to write a checkpoint and end; waits until it has ended."""
    _TERMINATED.set()
    until = time.monotonic() + _MAX_SECONDS_TO_CHECKPOINT
    while _TRAINING.is_set() and time.monotonic() < until:
        time.sleep(0.05)


def open_store() -> tuple[str, int]:
    """Serve torch's rendezvous on this node's address alone, from the first worker; that address and the port.

    By itself torch listens on all interfaces, and whoever reaches its store may change it.
    """
    address = ray.util.get_node_ip_address()
    listener = socket.create_server(
        (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    )
    port = listener.getsockname()[1]
    # Torch closes the socket that it is given.
    listener_fd = listener.detach()
    _STORES.append(
        dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener_fd)
    )
    return address, port


def join_process_group(backend: str, rank: int, world_size: int, address: str, port: int) -> None:
    """Make this worker one of the process group whose store is at an address."""
    if ipaddress.ip_address(address).is_loopback:
        # The workers' own connections want no authentication either. The first interface is the loopback one.
        os.environ |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), socket.if_indextoname(1))
    dist.init_process_group(
        backend,
        store=dist.TCPStore(address, port, wait_for_workers=False),
        rank=rank,
        world_size=world_size,
        timeout=_COLLECTIVE_TIMEOUT,
    )


class TerminationTorchConfig(TorchConfig):
    """Ray Train's torch backend, whose workers leave a checkpoint: at SIGTERM, and when an elastic run changes size.

    The training loop runs in a thread, where no handler can be installed; a backend's hooks run in the main thread
    of every worker. Torch's store listens on the address of the first worker's node, on a cluster of our own on the
    loopback interface.
    """

    @property
    def backend_cls(self) -> type:
        """The torch backend with its own start of the process group, and one thing more at the end of the workers."""

        class _Backend(super().backend_cls):  # type: ignore[misc]
            def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
                backend = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
                size = len(worker_group)
                store = worker_group.execute_single(0, open_store)
                join = worker_group.execute_single_async
                ray.get([join(rank, join_process_group, backend, rank, size, *store) for rank in range(size)])
                worker_group.execute(install_termination_handler)

            def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
                # Where one has failed, the others wait for it in vain: nothing can be agreed on any more.
                if all(worker_group.execute(is_training)):
                    worker_group.execute(end_with_checkpoint)
                super().on_shutdown(worker_group, backend_config)

        return _Backend


def train_worker(settings: WorkerSettings) -> None:
    """Trains from the latest checkpoint of the run folder, or the beginning, to the last step.

    An `AgreedError` is raised on all workers alike and would only come again: it ends the run quietly, through the
    monitor and a file. Any other error, of one worker alone, is Ray Train's to handle, which starts the workers anew.
    """
    rank = ray.train.get_context().get_world_rank()
    is_first = rank == 0
    storage.set_patience(settings.config.cluster.storage_seconds)
    warnings = _WarningsToDriver(settings.monitor, rank)
    reporter: _Reporter | None = None
    logging.getLogger("carl_ray").addHandler(warnings)
    _TRAINING.set()
    try:
        checkpoint = latest_checkpoint(settings.run_dir)
        # Its processes start while the model is built, and the first rows come while the first validation goes on.
        batches = _training_batches(settings, 0 if checkpoint is None else checkpoint.progress.step)
        try:
            step, reporter, progress = _begin(settings, checkpoint, is_first)
            try:
                _train(settings, step, reporter, progress, batches)
            except AgreedError as error:
                if not isinstance(error, UnsavedError):
                    # Logs that cannot be written must not hide why the run ends, nor have it tried again.
                    with suppress(RunError):
                        reporter.close()
                raise
        finally:
            batches.stop()
    except AgreedError as error:
        if is_first:
            _tell_failure(settings, error, None if reporter is None else reporter.status())
    finally:
        _TRAINING.clear()
        logging.getLogger("carl_ray").removeHandler(warnings)


class _WarningsToDriver(logging.Handler):
    """Sends a worker's warnings to the monitor, from where the driver's terminal and the run's log have them."""

    def __init__(self, monitor: Any, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._monitor = monitor
        self._rank = rank

    def emit(self, record: logging.LogRecord) -> None:
        """Sends one; Ray delivers it later."""
        self._monitor.warn.remote(f"worker {self._rank}: {record.getMessage()}")


def _tell_failure(settings: WorkerSettings, error: AgreedError, last: Status | None) -> None:
    """Tells the driver why the run ends: by the monitor and, since that may be killed, in a file, where it can."""
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
    return Prefetch(_batches(shard, plan, config, first_step, device), config.cluster.prefetch_steps)


def _begin(
    settings: WorkerSettings, checkpoint: Checkpoint | None, is_first: bool
) -> tuple[TrainingStep, _Reporter, Progress]:
    """The state of the latest checkpoint, or of the beginning, which all workers agree on."""
    config, plan, device = settings.config, settings.training_plan, ray.train.torch.get_device()
    if config.cluster.worker_cpus >= 1:
        torch.set_num_threads(int(config.cluster.worker_cpus))
    # The driver wrote it: a worker that does not see it may be on a node that joined after the driver looked.
    (num_blind,) = _sum_over_workers(device, [not storage.exists(storage.join(settings.run_dir, CONFIG))])
    if num_blind:
        raise AgreedError(
            f"{storage.public_uri(settings.run_dir)} is not the same folder for {num_blind} of the training workers: "
            "--run-dir must be in object storage (s3://…, gs://…) or on a file system that all nodes share"
        )
    if is_first:
        settings.lease.check()  # The config is written again, and the log cut to the checkpoint.
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
    steps_before, num_broken = _sum_over_workers(step.device, [progress.step, not _is_finite(step)])
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
    log = RunLog(settings.run_dir, progress.step) if is_first else None
    return step, _Reporter(settings, log, None if checkpoint is None else progress.step), progress


def _decide_precision(
    settings: WorkerSettings, checkpoint: Checkpoint | None, device: torch.device, is_first: bool
) -> Config:
    """The run's config with its precision decided, alike on all workers, and written into the run folder."""
    config, native = settings.config, has_native_bf16(device.type)
    (num_emulating,) = _sum_over_workers(device, [not native])
    if config.training.precision == "auto":
        # A run that has a checkpoint keeps its precision, whatever its workers are now.
        kept = None if checkpoint is None else checkpoint.config.training.precision
        config = with_precision(config, native_bf16=not num_emulating if kept is None else kept == "bf16")
        if is_first:
            uri = storage.join(settings.run_dir, CONFIG)
            storage.write_bytes(uri, configuration.to_json(config).encode())
    if config.training.precision == "bf16" and not native:
        factor = f"{bf16_slowdown():.0f} times" if device.type == "cpu" else "several times"
        _LOGGER.warning(
            "this machine computes bf16 %s as slowly as float32: begin the run with --training.precision fp32",
            factor,
        )
    return config


def _train(
    settings: WorkerSettings,
    step: TrainingStep,
    reporter: _Reporter,
    progress: Progress,
    batches: Iterable[StepBatch],
) -> None:
    config, plan = settings.config, settings.training_plan
    if progress.step >= settings.last_step:
        # The workers before these failed after their last checkpoint.
        reporter.finish(progress)
        return
    if progress.step == 0:
        reporter.validation(0, _validate(settings, step, reporter, 0))
    skipped_in_a_row = 0
    waiting_since = time.perf_counter()
    for data in batches:
        arrived, cpu_before = time.perf_counter(), time.process_time()
        num_rows, fingerprint, num_bad, stop, terminated = _sum_over_workers(
            step.device,
            [
                *(data.num_rows, data.fingerprint, len(data.bad_videos)),
                *(reporter.stop_requested(), _TERMINATED.is_set()),
            ],
        )
        check_rows(plan, data.step, num_rows, fingerprint)
        if stop or terminated:
            # This step is not trained on: it is the first one after a resumption.
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


def _batches(
    shard: DataIterator, plan: Plan, config: Config, first_step: int, device: torch.device
) -> Iterator[StepBatch]:
    """One batch a step, from rows that Ray fetches ahead."""
    rows = (
        row
        for table in shard.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=config.cluster.prefetch_steps
        )
        for row in read_rows(table, config)
    )
    steps = rows_by_step(rows, _step_of, first_step, plan.num_steps, plan.rows_of_step)
    for found in steps:
        read = [row for row in found.rows if row.pair is not None]
        batch = collate(
            [row.pair for row in read if row.pair is not None],
            [row.row for row in read],
            [view_seeds(config.training.seed, row.epoch, row.video_id or "") for row in read],
            config,
            device,
        )
        bad = [(row.video_id or "", row.error) for row in found.rows if row.error is not None]
        videos = {row.row: row.video_id or "" for row in read}
        fingerprint = row_fingerprint((row.row, row.epoch) for row in found.rows if row.row < plan.num_rows)
        received = StepBatch(found.step, batch, videos, len(found.rows), fingerprint, bad)
        # Their frames lie in the object store, which has no room for them while this waits to be asked again.
        del read
        found.rows.clear()
        yield received


def row_fingerprint(rows: Iterable[tuple[int, int]]) -> int:
    """A number that tells which rows of a plan these are, given as (row, epoch), whatever their order.

    Those of parts add up to that of the whole, modulo 2**48. The row numbers alone would not do: 0, 4, 5 and
    1, 2, 6 have the same sum, and the same sum of squares.
    """
    digests = (hashlib.blake2b(f"{row}:{epoch}".encode(), digest_size=6).digest() for row, epoch in rows)
    return sum(int.from_bytes(digest) for digest in digests) % _FINGERPRINTS


def check_rows(plan: Plan, step: int, num_rows: int, fingerprint: int) -> None:
    """Raises `AgreedError` where what all workers received for a step is not what the plan says.

    Args:
        plan: Of the training videos.
        step: The step.
        num_rows: Rows received, over all workers.
        fingerprint: Sum of the `row_fingerprint` of each worker.
    """
    expected = _planned_rows(plan, step)
    if num_rows != len(expected):
        raise AgreedError(
            f"step {step}: expected {len(expected)} videos over all workers, got {num_rows}: the stream lost or "
            "doubled some"
        )
    if fingerprint % _FINGERPRINTS != _planned_fingerprint(plan, expected):
        raise AgreedError(
            f"step {step}: expected rows {expected.start} to {expected.stop - 1} of the plan over all workers, got "
            f"{num_rows} others: the stream mixed some up"
        )


def _planned_rows(plan: Plan, step: int) -> range:
    first = step * plan.batch_size
    return range(first, first + plan.rows_of_step(step))


def _planned_fingerprint(plan: Plan, rows: range) -> int:
    return row_fingerprint((row, _epoch(plan, row)) for row in rows)


def _epoch(plan: Plan, row: int) -> int:
    # As `plan.at` says, without the permutation of the epoch.
    return row // plan.epoch_rows if plan.shuffled else VALIDATION_EPOCH


def _step_of(row: StreamRow) -> int:
    return row.step


def _validate(
    settings: WorkerSettings, step: TrainingStep, reporter: _Reporter, steps_done: int
) -> float | None:
    """The loss over the validation videos, with the same views each time, batch norm and dropout as at test time.

    None where there are none, or none can be read; those that cannot are written down.
    """
    plan = settings.validation_plan
    if plan is None:
        return None
    totals = torch.zeros(1, dtype=torch.float64, device=step.device)
    bad_videos = []
    fingerprint = 0
    shard = ray.train.get_dataset_shard("validation")
    for data in _batches(shard, plan, settings.config, 0, step.device):
        sums, counts = step.evaluate(data.batch)
        totals = totals + torch.stack([sums, counts])
        bad_videos += data.bad_videos
        fingerprint += data.fingerprint
    (received,) = _sum_over_workers(step.device, [fingerprint % _FINGERPRINTS])
    if received % _FINGERPRINTS != _planned_fingerprint(plan, range(plan.num_rows)):
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
    """Raises `AgreedError`, on all workers alike, where going on would be worth nothing.

    Args:
        settings: The run.
        progress: Where it stands.
        skipped_in_a_row: Steps skipped up to the last one.
        suspects: Ids of the videos that the last step, if skipped, may have been skipped for.
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
        # An id comes from data, and may hold what a terminal would obey.
        named = ", ".join(map(repr, suspects[:_NUM_VIDEOS_NAMED]))
        more = len(suspects) - _NUM_VIDEOS_NAMED
        raise AgreedError(
            f"the loss or a gradient was not finite in the last {skipped_in_a_row} steps (step {progress.step}), "
            f"at last with {named or 'no video at all'}{f' and {more} more' if more > 0 else ''}; "
            f"{storage.public_uri(storage.join(settings.run_dir, SKIPPED_STEPS))} has the videos of each; lower "
            "optimizer.learning_rate, set training.precision to fp32, or leave videos out of the manifest"
        )


def _is_finite(step: TrainingStep) -> bool:
    tensors = [value for value in step.model.state_dict().values() if value.is_floating_point()]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _sum_over_workers(device: torch.device, values: list[int | bool]) -> list[int]:
    totals = torch.tensor(values, dtype=torch.int64, device=device)
    if dist.is_initialized():
        dist.all_reduce(totals)
    return [int(total) for total in totals.tolist()]


class _Reporter:
    """Reports of a worker: the first one writes the logs and informs the driver, all take part in Ray Train's."""

    def __init__(self, settings: WorkerSettings, log: RunLog | None, saved_step: int | None) -> None:
        self._settings = settings
        self._log = log
        self._saved_step = saved_step
        self._num_workers = ray.train.get_context().get_world_size()
        # The rate counts from the first finished step on: what comes before is start-up.
        self._rate_from: tuple[int, float] | None = None
        self._waited = self._computed = self._checkpointed = self._cpu = 0.0
        self._warned_of_starving = False
        self._frames = 0
        self._since = time.perf_counter()
        self._answer: ray.ObjectRef | None = None
        self._step = saved_step or 0
        self._stop = False
        self._validation_loss: float | None = None
        self._last: dict[str, Any] = {}

    def stop_requested(self) -> bool:
        """Whether the driver asked to stop; known on the first worker alone."""
        self._hear()
        return self._stop

    def step(
        self, progress: Progress, report: StepReport, *, waited: float, computed: float, cpu: float
    ) -> None:
        """Takes note of a step: seconds waited for its data, computed, and of CPU; writes a line where one is due."""
        self._step = progress.step
        self._rate_from = self._rate_from or (progress.step, time.perf_counter())
        self._waited += waited
        self._computed += computed
        self._cpu += cpu
        self._frames += report.num_frames
        config = self._settings.config.training
        if (
            progress.step % config.log_every_steps == 0
            or progress.step == self._settings.training_plan.num_steps
        ):
            elapsed = time.perf_counter() - self._since
            self._last = {
                "epoch": progress.row / self._settings.training_plan.epoch_rows,
                "loss": report.loss,
                "learning_rate": report.learning_rate,
                "gradient_norm": report.gradient_norm,
                "num_videos": report.num_videos,
                "num_frames": report.num_frames,
                "num_bad_videos": progress.num_bad_rows,
                "num_skipped_steps": progress.num_skipped_steps,
                "num_workers": self._num_workers,
                "frames_per_second": self._frames / max(elapsed, 1e-9),
                "data_wait_seconds": self._waited,
                "step_seconds": self._computed,
                "checkpoint_seconds": self._checkpointed,
            }
            if self._log is not None:
                if not storage.is_remote(self._settings.run_dir):
                    self._settings.lease.check()  # Elsewhere the log is copied at checkpoints.
                self._log.write(progress.step, self._last)
                self._warn_of_starving()
            self._waited = self._computed = self._checkpointed = self._cpu = 0.0
            self._frames = 0
            self._since = time.perf_counter()
        self._tell(self.status(report.loss))

    def _warn_of_starving(self) -> None:
        """Warns, once, where the steps since the last line had a fraction of a CPU, on which they are computed."""
        starved = self._computed > _STARVED * max(self._cpu, 0.01) and self._computed > 1
        if self._settings.config.cluster.use_gpu or self._warned_of_starving or not starved:
            return
        self._warned_of_starving = True
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        remedy = f"; its niceness is {niceness}: start Ray with RAY_worker_niceness=0" if niceness > 0 else ""
        _LOGGER.warning(
            "the last steps took %.1f s, but had %.1f s of CPU: the training worker waits for other processes of its "
            "machine, or for a slower worker%s",
            *(self._computed, self._cpu, remedy),
        )

    def bad_videos(self, step: int, bad_videos: list[tuple[str, str]]) -> None:
        """Writes down the bad videos of all workers; a collective call."""
        gathered: list[Any] = [bad_videos]
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, bad_videos)
        if self._log is not None:
            for video_id, reason in sorted(pair for part in gathered for pair in part):
                self._log.write_bad_video(step, video_id, reason)

    def skipped_step(
        self, step: TrainingStep, progress: Progress, report: StepReport, data: StepBatch
    ) -> list[str]:
        """Writes down a step that changed nothing, with the videos of all workers; a collective call.

        Returns:
            Ids of the videos whose own loss is not finite; where it is so of none, of all.
        """
        plan = self._settings.training_plan
        rows = _planned_rows(plan, data.step)
        broken = step.rows_not_finite(data.batch, rows)
        gathered: list[Any] = [data.videos]
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, data.videos)
        videos: dict[int, str] = {row: video for part in gathered for row, video in part.items()}
        video_ids = [videos[row] for row in rows if row in videos]
        not_finite = [videos[row] for row in broken if row in videos]
        if self._log is not None:
            line = {
                "epoch": _epoch(plan, rows.start),
                "loss": report.loss,
                "gradient_norm": report.gradient_norm,
                "video_ids": video_ids,
                "not_finite": not_finite,
            }
            self._log.write_skipped_step(progress.step, line)
        return not_finite or video_ids

    def validation(self, step: int, loss: float | None) -> None:
        """Logs the validation loss (null where it is not finite), if there is one, and tells Ray Train; collective."""
        if loss is None:
            return
        self._validation_loss = loss
        if self._log is not None:
            self._log.write(step, {"validation_loss": loss})
        self._since = time.perf_counter()
        self._tell(self.status(), force=True)
        ray.train.report({"step": step, "validation_loss": loss, **self._last})

    def checkpoint(self, step: TrainingStep, progress: Progress) -> None:
        """Writes a checkpoint, unless this step has one, and brings the logs up to it; a collective call."""
        started = time.perf_counter()
        failure: RunError | None = None
        if self._log is not None:
            try:
                self._settings.lease.check()
                self._log.sync()
                # Written again, the newest could be torn.
                if progress.step != self._saved_step:
                    keep = self._settings.config.training.keep_checkpoints
                    save_checkpoint(self._settings.run_dir, step, progress, keep)
            except RunError as error:
                failure = error
        outage = isinstance(failure, OutageError)
        num_failed, num_outages = _sum_over_workers(step.device, [failure is not None, outage])
        reason = str(failure or "the first worker could not write the checkpoint")
        if num_outages:
            raise OutageError(reason)  # Ray Train starts the workers anew, which ask the store again.
        if num_failed:
            if not isinstance(failure, LostError):
                reason += f"; {how_to_go_on(self._settings.run_dir, self._saved_step)}"
            raise UnsavedError(reason)
        self._saved_step = progress.step
        self._checkpointed += time.perf_counter() - started

    def close(self) -> None:
        """Brings the logs up to date for the last time."""
        if self._log is not None:
            self._log.close()

    def finish(self, progress: Progress) -> None:
        """Closes the logs and leaves the last word with the driver."""
        self._hear(wait=True)
        self.close()
        if self._log is not None:
            ray.get(
                self._settings.monitor.update.remote(replace(self.status(), step=progress.step, ended=True))
            )

    def status(self, loss: float | None = None) -> Status:
        """How far the run is."""
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

    def _tell(self, status: Status, *, force: bool = False) -> None:
        if self._log is None:
            return
        if self._hear(wait=force):
            self._answer = self._settings.monitor.update.remote(status)

    def _hear(self, *, wait: bool = False) -> bool:
        """Whether the driver's answer to the last status is here; takes note of it."""
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
