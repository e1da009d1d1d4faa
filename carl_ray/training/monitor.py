"""A run's news on their way to the driver, and its wish to stop on the way back."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    step: int
    num_steps: int
    loss: float | None
    validation_loss: float | None
    steps_per_second: float
    finished: bool = False
    """The run did its last step."""
    failure: str | None = None
    """Why the run ended early, where trying again would not help."""


# Whatever kills it, neither the workers nor the driver shall notice.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class RunMonitor:
    """Holds the latest status of a run; one small actor between the first worker and the driver.

    One that was killed is started anew, and knows nothing until the next step.
    """

    def __init__(self) -> None:
        self._status: Status | None = None
        self._stop = False

    def update(self, status: Status) -> bool:
        """Takes a new status; returns whether the run should write a checkpoint and stop."""
        self._status = status
        return self._stop

    def latest(self) -> Status | None:
        """The last status, or none before the first."""
        return self._status

    def request_stop(self) -> None:
        """Asks the run to stop at its next step."""
        self._stop = True


@contextmanager
def watched(monitor: Any, stop: threading.Event) -> Iterator[None]:
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
        status: Status | None = ray.get(monitor.latest.remote())
        if stop.is_set():
            # Each time: a monitor that was started anew has forgotten it.
            ray.get(monitor.request_stop.remote())
            if not asked and status is None and shown is None:
                # No worker has begun, so there is nothing to keep, and nobody else to hear of it.
                os.kill(os.getpid(), signal.SIGINT)
            elif not asked:
                print("\nstopping at the next step, after a checkpoint", flush=True)
            asked = True
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
