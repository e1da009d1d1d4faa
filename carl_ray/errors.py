"""The ways a command can end badly, and the exit status of each."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class UserError(Exception):
    """A mistake that the user can mend: printed as one line, exit status 2."""


class RunError(Exception):
    """A failure of the work itself (storage, disk, bad videos beyond the budget): one line, exit status 1."""

    status = 1


class OutageError(RunError):
    """An object store that failed for longer than it is tried again; later it may answer."""


class InterruptedRunError(RunError):
    """A run that ended because of a signal, after what it had to do: one line, exit status 128 + signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def signal_of(interruption: KeyboardInterrupt) -> signal.Signals:
    """The signal that raised it."""
    return signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT


_INTERRUPTIONS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated (SIGTERM)"}
_REPEAT_SECONDS = 1.0
"""`timeout` signals its child, then its group: the second must not end what the first has begun to put in order."""
_catching = 0
"""How many `one_line_errors` are open."""


def handle_signals() -> None:
    """Makes SIGINT and SIGTERM end this process in one line, with status 130 and 143, at any moment.

    They raise `KeyboardInterrupt` and `Terminated` where `one_line_errors` catches them. Outside of it, and inside an
    import, which may swallow an exception, the process ends at once.
    """
    process = os.getpid()
    moments: dict[int, float] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # A fork, which was told alone.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not _catching or _is_importing(frame):
            _print_line(_INTERRUPTIONS[signal.Signals(number)])
            os._exit(128 + number)
        elif time.monotonic() > moments.get(number, -math.inf) + _REPEAT_SECONDS:
            moments[number] = time.monotonic()
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for number in _INTERRUPTIONS:
        # Whoever starts a command in the background of a script has SIGINT ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Keeps SIGTERM for this process, whatever the body, which starts Ray, starts and installs.

    `timeout`, systemd and Slurm signal every process of a command, but the driver alone must hear it, to end the others
    once a checkpoint is written: a signal that is blocked here is so in all that starts here. (Ray does so for SIGINT.)
    """
    handler = signal.getsignal(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Instead of Ray's.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _print_line(message: str) -> None:
    # Names from data may hold what a terminal would obey.
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    print(f"carl_ray: {line}", file=sys.stderr, flush=True)


def fail(message: str, status: int) -> NoReturn:
    """Prints one line to standard error and leaves with an exit status."""
    _print_line(message)
    sys.exit(status)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns the errors of a command into one line on standard error.

    `UserError` exits with status 2, `RunError` with 1, Ctrl-C with 130 and SIGTERM with 143.
    """
    global _catching
    _catching += 1
    try:
        yield
    except UserError as error:
        fail(str(error), 2)
    except RunError as error:
        fail(str(error), error.status)
    except KeyboardInterrupt as interruption:
        number = signal_of(interruption)
        fail(_INTERRUPTIONS[number], 128 + number)
    finally:
        _catching -= 1
