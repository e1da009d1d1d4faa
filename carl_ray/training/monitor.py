"""A run's news on their way to the driver, its wish to stop on the way back, and how long the driver waits."""

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

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_TO_ANSWER = 5.0
_REFUSED_SECONDS, _SILENT_SECONDS = 10.0, 40.0
"""Ray's servers are taken for gone when they refuse connections, or are not reached, for so long."""
_SHARE_OF_GRACE = 0.7
"""Of the time that a run has to end, for the checkpoint; the rest is for Ray's own end."""
_LAST_SECONDS = 5.0
"""Ray Train gets so long to end after its workers have."""


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    step: int
    num_steps: int
    loss: float | None
    validation_loss: float | None
    steps_per_second: float
    precision: str | None = None
    """Type of the matrix products."""
    saved_step: int | None = None
    """Step of the last checkpoint; none where there is none yet."""
    ended: bool = False
    """The workers have ended, after a checkpoint."""
    failure: str | None = None
    """Why the run ended early, where trying again would not help."""

    @property
    def finished(self) -> bool:
        """Whether the run did its last step, and has ended."""
        return self.ended and self.step == self.num_steps


_Shown = tuple[str, int]
"""Of a monitor since its start, which has a name, the number of warnings that were shown."""


# Whatever kills it, neither the workers nor the driver shall notice.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class RunMonitor:
    """Holds the latest status of a run; one small actor between the workers and the driver.

    One that was killed is started anew, and knows nothing until the next step.
    """

    def __init__(self) -> None:
        self._status: Status | None = None
        self._stop = False
        self._warnings: list[str] = []
        self._name = uuid.uuid4().hex
        self._num_logged = 0

    def update(self, status: Status) -> tuple[bool, list[str]]:
        """Takes a status; returns whether the run should write a checkpoint and stop, and the warnings to log."""
        self._status = status
        unlogged = self._warnings[self._num_logged :]
        self._num_logged = len(self._warnings)
        return self._stop, unlogged

    def warn(self, message: str) -> None:
        """Takes a warning of a worker."""
        self._warnings.append(message)

    def latest(self, shown: _Shown = ("", 0)) -> tuple[Status | None, list[str], _Shown]:
        """The last status, or none before the first, the warnings that are not shown yet, and what then is."""
        name, count = shown
        new = self._warnings[count if name == self._name else 0 :]  # One that was started anew counts from 0.
        return self._status, new, (self._name, len(self._warnings))

    def request_stop(self) -> None:
        """Asks the run to stop at its next step."""
        self._stop = True


@dataclass
class Ending:
    """Why the driver waits no longer for a run."""

    status: Status | None = None
    """The last one that came."""
    error: BaseException | None = None
    """What Ray Train raised."""
    signal: signal.Signals | None = None
    """What the driver was sent."""
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
    """Runs Ray Train and shows its progress; no wait in it is without an end once something went wrong.

    Ray Train runs in a thread, so that its own answer to Ctrl-C, which leaves with status 0 and without a checkpoint,
    is not installed, and so that the driver can leave it behind.

    Args:
        fit: Runs the training.
        monitor: Handle of its `RunMonitor`.
        stop: Once set, as by SIGINT and SIGTERM here, the run is asked for a checkpoint and to end.
        lost: Once set, the run has no right to its folder any more: the driver leaves.
        grace_seconds: After a signal the driver leaves in time for the process to end within so many seconds.
    """
    ending, done = Ending(), threading.Event()
    display, servers = _Display(), _servers()
    shown: _Shown = ("", 0)

    def work() -> None:
        try:
            fit()
        except BaseException as error:
            ending.error = error
        finally:
            done.set()

    def news() -> Status | None:
        nonlocal shown
        status, warnings = None, []
        with suppress(RayError):  # Also where the answer takes too long.
            status, warnings, shown = ray.get(monitor.latest.remote(shown), timeout=_SECONDS_TO_ANSWER)
        display.show(status, warnings)
        return status

    asked_at = ended_at = math.inf
    accepted_at = time.monotonic()
    with _signals(stop) as signals:
        threading.Thread(target=work, name="Ray Train", daemon=True).start()
        while not done.wait(0.5) and not lost.is_set():
            now = time.monotonic()
            failure = _connection_failure(servers)
            if failure is None:
                accepted_at = now
            # Ray waits a minute for its control store, then ends the process with a line of its own.
            patience = _REFUSED_SECONDS if isinstance(failure, ConnectionRefusedError) else _SILENT_SECONDS
            ending.head_gone = now - accepted_at > patience
            if ending.head_gone:
                break
            ending.status = news() or ending.status
            if ending.status is not None and ending.status.ended:
                ended_at = min(ended_at, now)
            if stop.is_set():
                # Each time: a monitor that was started anew has forgotten it.
                monitor.request_stop.remote()
                if asked_at == math.inf and ending.status is not None:
                    display.say("stopping at the next step, after a checkpoint")
                asked_at = min(asked_at, now)
            if signals and (
                ending.status is None  # No worker has begun: there is nothing to keep.
                or now - asked_at > _SHARE_OF_GRACE * grace_seconds
                or now - ended_at > _LAST_SECONDS
                # Ctrl-C again; `timeout` sends its signal twice at once.
                or any(number == signal.SIGINT and moment > signals[0][1] + 1 for number, moment in signals)
            ):
                break
    ending.signal = signals[0][0] if signals else None
    if done.is_set():
        last = news()
        # None where the monitor was killed after the last news.
        ending.status = last if ending.error is None else last or ending.status
    display.close()
    return ending


@contextmanager
def _signals(stop: threading.Event) -> Iterator[list[tuple[signal.Signals, float]]]:
    """SIGINT and SIGTERM, with the time of each, which set an event while the body runs; in the main thread alone."""
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


def _connection_failure(servers: list[tuple[str, int]]) -> OSError | None:
    try:
        for server in servers:
            socket.create_connection(server, timeout=_SECONDS_TO_ANSWER).close()
    except OSError as error:
        return error
    return None


class _Display:
    """A run's progress: a line that changes on a terminal, elsewhere one now and then; warnings above it."""

    def __init__(self) -> None:
        self._shown: Status | None = None
        self._printed_at = -math.inf
        self._on_terminal = sys.stdout.isatty()

    def show(self, status: Status | None, warnings: list[str]) -> None:
        """Prints what is new."""
        for warning in warnings:
            self.say(f"warning: {warning}", file=sys.stderr)
        if status is None or status == self._shown or status.failure is not None:
            return
        if self._on_terminal:
            print(f"\r\x1b[K{progress_line(status)}", end="", flush=True)
        elif time.monotonic() - self._printed_at >= _SECONDS_BETWEEN_LINES or self._shown is None:
            print(progress_line(status), flush=True)
            self._printed_at = time.monotonic()
        self._shown = status

    def say(self, message: str, file: Any = None) -> None:
        """Prints a line below the progress."""
        self.close()
        print(message, file=file, flush=True)

    def close(self) -> None:
        """Ends the line of progress on a terminal."""
        if self._shown is not None and self._on_terminal:
            print(flush=True)
            self._shown = None


def progress_line(status: Status) -> str:
    """One line: steps, losses, rate, time left."""
    parts = [f"step {status.step}/{status.num_steps}"]
    if status.precision is not None:
        parts.append(status.precision)
    if status.loss is not None:
        parts.append(f"loss {status.loss:.4f}")
    if status.validation_loss is not None:
        parts.append(f"validation {status.validation_loss:.4f}")
    if status.steps_per_second > 0:
        left = int((status.num_steps - status.step) / status.steps_per_second)
        parts.append(f"{status.steps_per_second:.2f} steps/s")
        parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
    return "  ".join(parts)
