"""Errors of commands, their exit statuses, and signal handling."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class UserError(Exception):
    """A mistake of the user's: printed as one line, exit status 2.

    Further arguments, such as the bad rows of a file, are printed on lines of their own below it.
    """

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.args))


class RunError(Exception):
    """A failure of the work (storage, disk, bad videos): one line, exit status 1."""

    status = 1


class OutageError(RunError):
    """An object store that failed until the retries ended."""


class NoBucketError(RunError):
    """An object store without the bucket that is named: most likely a mistake, exit status 2."""

    status = 2


class InterruptedRunError(RunError):
    """A run that a signal ended in order: one line, exit status 128 + signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class Terminated(KeyboardInterrupt):
    """Raised at SIGTERM, as KeyboardInterrupt is at SIGINT."""


def signal_of(interruption: KeyboardInterrupt) -> signal.Signals:
    """The signal that an interruption was raised for."""
    # Ray raises a plain KeyboardInterrupt of its own where one of ours ends its wait.
    is_sigterm = isinstance(interruption, Terminated) or _last_signal == signal.SIGTERM
    return signal.SIGTERM if is_sigterm else signal.SIGINT


_INTERRUPTIONS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated (SIGTERM)"}
_REPEAT_SECONDS = 1.0
"""Ignore a repeated signal for so long: `timeout` signals its child, then its group, and cleanup must not be cut."""
_last_signal: int | None = None
"""The last one that raised an exception."""
_catching = 0
"""Number of open `one_line_errors` contexts."""


def handle_signals() -> None:
    """End this process at SIGINT and SIGTERM with one line and status 130 and 143.

    Inside `one_line_errors` they raise `KeyboardInterrupt` and `Terminated`. Outside of it, and during an import, which
    may swallow exceptions, the process exits at once.
    """
    process = os.getpid()
    moments: dict[int, float] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        global _last_signal
        if os.getpid() != process:  # A forked child: default behaviour.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not _catching or _is_importing(frame):
            _print_line(_INTERRUPTIONS[signal.Signals(number)])
            os._exit(128 + number)
        elif time.monotonic() > moments.get(number, -math.inf) + _REPEAT_SECONDS:
            moments[number] = time.monotonic()
            _last_signal = number
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for number in _INTERRUPTIONS:
        # Shells ignore SIGINT for background commands of scripts; keep it ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Block SIGTERM in the processes that the body starts.

    `timeout`, systemd and Slurm signal the whole process group. Ray's processes, started in the body, must ignore that
    until the driver has had a checkpoint written; they inherit the signal mask. (Ray blocks SIGINT itself.)
    """
    handler = signal.getsignal(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has installed its own.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _print_line(message: str, before: str = "carl_ray: ") -> None:
    note(f"{before}{' '.join(message.split())}")


def note(message: str) -> None:
    """Print lines to standard error, as beside the results of a command; question marks replace what is unprintable."""
    # Names from data may hold control characters, which a terminal would obey.
    shown = "".join(c if c.isprintable() or c == "\n" else "?" for c in message)
    print(shown, file=sys.stderr, flush=True)


class _Warnings(logging.Handler):
    def __init__(self, send: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send(record.getMessage())


@contextmanager
def warnings_to(send: Callable[[str], object]) -> Iterator[None]:
    """Send the warnings that this package logs to a function while the body runs."""
    handler, logger = _Warnings(send), logging.getLogger("carl_ray")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def one_line(error: object) -> str:
    """A text, or that of an exception, on one line."""
    return " ".join(str(error).split())


def last_line(error: object) -> str:
    """The last line of a text, or of an exception's, that is not empty; without any the exception's class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    nothing = type(error).__name__ if isinstance(error, BaseException) else ""
    return lines[-1] if lines else nothing


def fail(message: str, status: int, details: Iterable[str] = ()) -> NoReturn:
    """Print one line to standard error, the details below it, and exit with a status."""
    _print_line(message)
    for detail in details:
        _print_line(detail, "  ")
    sys.exit(status)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print the errors of a command as one line on standard error and exit.

    The status is 2 for `UserError`, 1 for `RunError`, 130 for Ctrl-C and 143 for SIGTERM.
    """
    global _catching
    _catching += 1
    try:
        yield
    except UserError as error:
        message, *details = map(str, error.args)
        fail(message, 2, details)
    except RunError as error:
        fail(str(error), error.status)
    except KeyboardInterrupt as interruption:
        number = signal_of(interruption)
        fail(_INTERRUPTIONS[number], 128 + number)
    finally:
        _catching -= 1
