"""Status of a run, sent by the workers to the driver, and the driver's wait."""

from __future__ import annotations

import math
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from carl_ray.progress import StatusLine, duration

_TIMEOUT_SECONDS = 5.0
"""Of a call of the monitor, and of a connection to Ray's servers."""
_PROBE_SECONDS = 2.0
"""Interval of the connections to Ray's servers."""
_REFUSED_SECONDS, _SILENT_SECONDS = 10.0, 40.0
"""Ray's servers count as gone after refusing connections, or timing out, for so long."""
_SHARE_OF_GRACE = 0.7
"""Share of the grace period for the checkpoint; the rest is for Ray's shutdown."""
_TASK_WARNING_SECONDS = 30.0
"""Between two warnings of the tasks that load videos: an outage of storage has many in each."""
_MOST_TASK_WARNINGS = 10_000
"""Texts of such warnings that are kept, to show none twice."""
_SHUTDOWN_SECONDS = 5.0
"""Timeout for Ray Train to end after its workers have."""


@dataclass(frozen=True)
class Status:
    """Progress of a run."""

    step: int
    num_steps: int
    loss: float | None
    validation_loss: float | None
    steps_per_second: float
    precision: str | None = None
    """Type of the matrix products: bf16 or fp32."""
    saved_step: int | None = None
    """Step of the last checkpoint; None before the first."""
    ended: bool = False
    """The workers have ended, after a checkpoint."""
    failure: str | None = None
    """Why the run ended early; restarting the workers would not help."""

    @property
    def finished(self) -> bool:
        """Whether the run has ended after its last step."""
        return self.ended and self.step == self.num_steps


_Shown = tuple[str, int]
"""Id of a monitor process, and the number of its warnings that were shown."""


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class RunMonitor:
    """Actor with the latest status of a run, its warnings, and the stop request.

    It is restarted when it dies, and then knows nothing until the next step.
    """

    def __init__(self) -> None:
        self._status: Status | None = None
        self._stop = False
        self._warnings: list[str] = []
        self._id = uuid.uuid4().hex
        self._num_logged = 0
        self._next_of_task, self._num_held_back = -math.inf, 0
        self._of_tasks: set[str] = set()

    def update(self, status: Status) -> tuple[bool, list[str]]:
        """Set the status; return the stop request and the warnings to log."""
        self._status = status
        unlogged = self._warnings[self._num_logged :]
        self._num_logged = len(self._warnings)
        return self._stop, unlogged

    def warn(self, message: str) -> None:
        """Add a warning of a worker."""
        self._warnings.append(message)

    def warn_of_task(self, message: str) -> None:
        """Add a warning of a task that loads a video, or count it for the next one where one has just been added.

        A text that was added before, as that of a damaged video in every epoch, is not added again.
        """
        if message in self._of_tasks:
            return
        if (now := time.monotonic()) < self._next_of_task:
            self._num_held_back += 1
            return
        held_back = f" ({self._num_held_back} more since the last one)" if self._num_held_back else ""
        self.warn(f"loading videos: {message}{held_back}")
        if len(self._of_tasks) < _MOST_TASK_WARNINGS:
            self._of_tasks.add(message)
        self._next_of_task, self._num_held_back = now + _TASK_WARNING_SECONDS, 0

    def latest(self, shown: _Shown = ("", 0)) -> tuple[Status | None, list[str], _Shown]:
        """The last status (None before the first), new warnings, and those shown then."""
        monitor_id, count = shown
        new = self._warnings[count if monitor_id == self._id else 0 :]
        return self._status, new, (self._id, len(self._warnings))

    def request_stop(self) -> None:
        """Have the run write a checkpoint and stop at its next step."""
        self._stop = True


@dataclass
class Ending:
    """Why the driver stopped waiting for a run."""

    status: Status | None = None
    """The last status received."""
    error: BaseException | None = None
    """Exception of Ray Train."""
    signal: signal.Signals | None = None
    """Signal that the driver received."""
    head_gone: bool = False
    """Ray's servers do not answer."""


def wait_for_run(
    fit: Callable[[], object],
    monitor: Any,
    *,
    stop: threading.Event,
    lost: threading.Event,
    grace_seconds: float,
) -> Ending:
    """Run Ray Train and show its progress, with a timeout on every wait after a failure.

    Ray Train runs in a thread, which keeps it from installing its own SIGINT handler (exit status 0, no checkpoint) and
    lets the driver leave before it has ended. (Over 60 lines: the reasons to leave share the state of the wait.)

    Args:
        fit: Runs the training.
        monitor: Handle of its `RunMonitor`.
        stop: Once set, as by SIGINT and SIGTERM here, the run is to write a checkpoint and end.
        lost: Once set, another process has taken over the run folder: the driver leaves.
        grace_seconds: After a signal the driver leaves in time for the process to end within this time.
    """
    ending, done = Ending(), threading.Event()
    line, servers = StatusLine(sys.stdout), _ServerProbe(_servers())
    shown: _Shown = ("", 0)

    def receive() -> Status | None:
        nonlocal shown
        status, warnings = None, []
        with suppress(RayError):  # Including a timeout.
            status, warnings, shown = ray.get(monitor.latest.remote(shown), timeout=_TIMEOUT_SECONDS)
        for warning in warnings:
            line.say(f"warning: {warning}", sys.stderr)
        if status is not None and status.failure is None:
            line.show(progress_line(status))
        return status

    def work() -> None:
        try:
            fit()
        except BaseException as error:
            ending.error = error
        finally:
            done.set()

    asked_at = ended_at = math.inf
    with _signals(stop) as signals:
        threading.Thread(target=work, name="Ray Train", daemon=True).start()
        while not done.wait(0.5) and not lost.is_set():
            now = time.monotonic()
            ending.head_gone = servers.are_gone(now)
            if ending.head_gone:
                break
            ending.status = receive() or ending.status
            if ending.status is not None and ending.status.ended:
                ended_at = min(ended_at, now)
            if stop.is_set():
                # Repeated: a restarted monitor has lost the request.
                monitor.request_stop.remote()
                if asked_at == math.inf and ending.status is not None:
                    line.say("stopping at the next step, after a checkpoint")
                asked_at = min(asked_at, now)
            if signals and (
                ending.status is None  # No worker has started: there is nothing to save.
                or now - asked_at > _SHARE_OF_GRACE * grace_seconds
                or now - ended_at > _SHUTDOWN_SECONDS
                # A second Ctrl-C; `timeout` sends its signal twice at once.
                or any(number == signal.SIGINT and moment > signals[0][1] + 1 for number, moment in signals)
            ):
                break
    ending.signal = signals[0][0] if signals else None
    if done.is_set():
        last = receive()
        # None where the monitor was restarted after the last status.
        ending.status = last if ending.error is None else last or ending.status
    line.close()
    return ending


@contextmanager
def _signals(stop: threading.Event) -> Iterator[list[tuple[signal.Signals, float]]]:
    """Record SIGINT and SIGTERM, and set an event; in the main thread alone."""
    received: list[tuple[signal.Signals, float]] = []

    def note(number: int, frame: object) -> None:
        received.append((signal.Signals(number), time.monotonic()))
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _servers() -> list[tuple[str, int]]:
    """Host and port of Ray's control store and of this machine's raylet."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    nodes = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return [
        (host.strip("[]"), int(port)),
        *((node["NodeManagerAddress"], node["NodeManagerPort"]) for node in nodes),
    ]


class _ServerProbe:
    """Detects that Ray's servers are gone, before Ray itself ends the process."""

    def __init__(self, servers: list[tuple[str, int]]) -> None:
        self._servers = servers
        self._probed_at = self._accepted_at = time.monotonic()

    def are_gone(self, now: float) -> bool:
        """Whether the servers have refused connections, or timed out, for too long."""
        if now - self._probed_at < _PROBE_SECONDS:
            return False
        self._probed_at = now
        try:
            for server in self._servers:
                socket.create_connection(server, timeout=_TIMEOUT_SECONDS).close()
        except OSError as error:
            limit = _REFUSED_SECONDS if isinstance(error, ConnectionRefusedError) else _SILENT_SECONDS
            return now - self._accepted_at > limit
        self._accepted_at = now
        return False


def progress_line(status: Status) -> str:
    """Format steps, precision, losses, rate and remaining time as one line."""
    parts = [f"step {status.step}/{status.num_steps}", status.precision]
    for name, loss in (("loss", status.loss), ("validation", status.validation_loss)):
        parts.append(None if loss is None else f"{name} {loss:.4f}")
    if status.steps_per_second > 0:
        parts.append(f"{status.steps_per_second:.2f} steps/s")
        parts.append(f"{duration((status.num_steps - status.step) / status.steps_per_second)} left")
    return "  ".join(part for part in parts if part is not None)
