"""Child processes that decode untrusted videos. No Ray here.

A child may hang, crash or be compromised without harm to its parent.

    parent ── request ▶ child: fetch ▶ decode ── answers ▶ parent: validated against the expected fields

A request is a JSON head and the content of a file, an answer is a JSON head and the bytes of arrays; the length of
the head comes first. Nothing is unpickled. The parent specifies fields, dtypes and shapes; any other answer is the
reject reason of that video and ends the child. A child serves one video after another; if one kills it, the next
video starts a new child. It ends with the thread that started it. Arrays go through the pipe: shared memory was
measured, and is no faster.

Longer than 400 lines because both ends of the protocol are here.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import math
import os
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from jaxtyping import UInt8

from carl_ray import address, storage
from carl_ray.errors import RunError, UserError, warnings_to

if TYPE_CHECKING:
    from carl_ray.data.video_file import VideoSource

MEMORY = 2 << 30
"""Bytes that one video may allocate in addition to what its task has reserved: H.264 of 7680 x 4320 with 16
reference pictures takes 1.2 GiB."""
TOO_SLOW = "the decoder took longer than"
KILLED = "the decoder was killed"

_FETCH_SECONDS = 600.0
"""Time to fetch a video, beside its time limit: a store that sends a byte now and then never times out."""
_START_SECONDS = 300.0
"""Time to start: the imports, from a slow file system and beside many other processes."""
_END_SECONDS = 5.0
_PIPE_BYTES = 1 << 18
_MAX_HEAD_BYTES = 1 << 16
_MAX_REASON = 2000  # characters
_MOST_WARNINGS = 1000  # beside an answer

_KILLED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>
_LENGTH = struct.Struct("<Q")
_LONGEST_POLL = 2**31 - 1  # milliseconds
_LOGGER = logging.getLogger(__name__)


class BadVideoError(Exception):
    """A video that cannot be read, also by another try; the message is one line."""


class RefusedError(BadVideoError):
    """What the child itself says against a video or its arguments; its process is in order."""


class KilledError(RunError):
    """A child killed from outside, as the kernel does for lack of memory: retry."""


class _MalformedError(Exception):
    """An answer that is not as specified."""


@dataclass(frozen=True)
class Array:
    """Specification of an array: `numpy.dtype.str`, sizes or their ranges."""

    dtype: str
    shape: tuple[int | range, ...]

    def num_bytes(self, dtype: object, shape: list[int]) -> int:
        """Check dtype and shape of a received array; return its size in bytes."""
        pairs = zip(shape, self.shape, strict=True)
        if dtype != self.dtype or not all(
            type(got) is int and (got in want if isinstance(want, range) else got == want)
            for got, want in pairs
        ):
            raise _MalformedError(f"expected {self.dtype} {self.shape}, got {dtype} {shape}")
        return math.prod(shape) * np.dtype(self.dtype).itemsize


Source = str | bytes | tuple[int, Iterable[bytes]]
"""A video file: its path or URI, its content, or its size and an iterable of chunks of its content."""

Fields = Mapping[str, Any]
"""Fields of an answer: an `Array`, or a JSON type (whole numbers below 2^31, finite floats, printable text)."""


class Child:
    """A child process that serves one video after another, for one thread at a time.

    Args:
        code: Python code of the child, which calls `open_channel`.
        quiet: Discard its standard error.
    """

    def __init__(self, code: str, *, quiet: bool = False) -> None:
        self._code, self._quiet = code, quiet
        self._process: subprocess.Popen[bytes] | None = None
        self._is_idle = False
        self._has_greeted = False

    def start(self) -> None:
        """Start the process unless there is an idle one; it ends with this thread.

        `ask` starts it too, in a thread that may end sooner, and waits for it; several can start in parallel.

        Raises:
            RunError: it could not be started.
        """
        # Replace one that has died since, or has sent an answer without a request.
        if (
            self._process is None
            or not self._is_idle
            or (self._has_greeted and _is_ready(self._process.stdout, select.POLLIN, 0))
        ):
            self.close()
            self._process = _start(self._code, self._quiet)
            self._is_idle, self._has_greeted = True, False

    def interrupt(self) -> None:
        """Kill the process if it is serving a request; any thread may call this."""
        process = self._process
        if process is not None and not self._is_idle:
            process.kill()

    def close(self) -> None:
        """End the process; the next request starts a new one."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)

    def ask(
        self,
        source: Source,
        arguments: Mapping[str, object],
        expected: Fields,
        *,
        seconds: float,
        memory: int = MEMORY,
        values: int | None = 1,
    ) -> Iterator[dict[str, Any]]:
        """Send a request, yield the values of the answer; stopping early ends the process.

        Args:
            source: The video.
            arguments: Arguments of the child's function, as JSON.
            expected: The fields of each value.
            seconds: Time limit of each value, from when the previous one was received.
            memory: Bytes that the process may allocate for them, and that a value may have.
            values: Number of values; None: any.

        Raises:
            BadVideoError: it cannot be read, takes too long or too much memory, or its process crashes or sends
                an invalid answer.
            KilledError: the process was killed from outside.
            RunError: a retry may succeed: the storage failed, or the process stopped or did not start.
        """
        self.start()
        process = self._process
        assert process is not None
        # Idle again only after the last answer: if this task is interrupted (Ray raises KeyboardInterrupt in one
        # that is cancelled), the next video must not get the answer for this one.
        self._is_idle = False
        patience = seconds + _FETCH_SECONDS
        try:
            if not self._has_greeted:
                _receive(process, {}, 0, _START_SECONDS)
                self._has_greeted = True
            _send(process, source, {"arguments": arguments, "seconds": seconds, "memory": memory}, patience)
            for number in count():
                how, fields = _receive(process, expected, memory, patience)
                if values is not None and (how, number < values) in (("value", False), ("end", True)):
                    raise _MalformedError(f"{values} values were expected")
                if how != "value":
                    break
                yield fields
        except (BrokenPipeError, EOFError):
            raise self._death(_end(process, _END_SECONDS), seconds) from None
        except BaseException as error:
            _end(process)
            if not isinstance(error, _MalformedError):
                raise
            kind = BadVideoError if self._has_greeted else RunError
            raise kind(f"the decoder sent no valid answer ({error})") from None
        self._is_idle = how != "broken"
        if how != "end":
            kinds = {"again": RunError, "refused": RefusedError}
            raise kinds.get(how, BadVideoError)(fields["reason"])

    def _death(self, status: int | None, seconds: float) -> Exception:
        """The error for a video during which the process ended with this exit status."""
        if status is None:
            return BadVideoError("the decoder stopped answering")
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        cause = f"the decoder crashed ({name})"
        if -status in _KILLED_FROM_OUTSIDE:
            cause = f"{KILLED} ({name}){', perhaps for want of memory' if name == 'SIGKILL' else ''}"
        if not self._has_greeted:
            return RunError(f"the process that decodes videos did not start, {cause}; see its standard error")
        if status == -signal.SIGALRM:
            return BadVideoError(f"{TOO_SLOW} {seconds:g} s")
        return (KilledError if -status in _KILLED_FROM_OUTSIDE else BadVideoError)(cause)


def _start(code: str, quiet: bool) -> subprocess.Popen[bytes]:
    # A worker's import path need not be the one that a new interpreter would have (Ray's working_dir). While another
    # thread imports OpenCV, its folder is there, too, whose `typing` would hide Python's.
    entries = (Path(entry).absolute() for entry in sys.path)
    path = os.pathsep.join(str(entry) for entry in entries if entry.name != "cv2")
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            bufsize=0,  # `poll` does not see bytes that were read ahead
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            env={**os.environ, "PYTHONPATH": path},
        )
    except OSError as error:
        raise RunError(f"the process that decodes videos could not be started ({error})") from None
    assert process.stdin is not None and process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    if sys.platform == "linux":
        # The decoder waits for this process whenever the pipe is full. A user may have 64 MiB of pipes.
        with suppress(OSError):
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process


def _send(process: subprocess.Popen[bytes], source: Source, head: dict[str, object], seconds: float) -> None:
    """Send a request, with a time limit for each chunk."""
    assert process.stdin is not None
    if isinstance(source, bytes):
        source = len(source), [source]
    head["source"], chunks = (source, []) if isinstance(source, str) else source
    text = json.dumps(head).encode()
    for chunk in chain([_LENGTH.pack(len(text)) + text], chunks):
        deadline = time.monotonic() + seconds
        missing = memoryview(chunk)
        while missing:
            _await(process.stdin, select.POLLOUT, deadline, seconds)
            missing = missing[process.stdin.write(missing) or 0 :]


def _receive(
    process: subprocess.Popen[bytes], expected: Fields, limit: int, seconds: float
) -> tuple[str, dict[str, Any]]:
    """Receive the next answer: its kind, and the fields of a value, else a `reason`; log the warnings before it.

    Raises:
        EOFError: the process ended.
        RunError: it did not arrive completely within `seconds`.
        _MalformedError: it is not as specified, or its arrays have more than `limit` bytes.
    """
    output = cast(FileIO, process.stdout)
    deadline = time.monotonic() + seconds

    def read(num_bytes: int) -> UInt8[np.ndarray, " num_bytes"]:
        content = np.empty(num_bytes, np.uint8)
        missing = content.data
        while missing:
            _await(output, select.POLLIN, deadline, seconds)
            done = output.readinto(missing)
            if not done:
                raise EOFError
            missing = missing[done:]
        return content

    try:
        for _ in range(_MOST_WARNINGS):
            (length,) = _LENGTH.unpack(read(_LENGTH.size).data)
            if length > _MAX_HEAD_BYTES:
                raise _MalformedError(f"a head of {length} bytes")
            head = json.loads(read(length).tobytes())
            kind, fields = head["kind"], head["fields"]
            if kind == "value":
                break
            reason = "".join(c if c.isprintable() else "?" for c in fields["reason"])
            if kind != "warning":
                return kind, {"reason": reason}
            _LOGGER.warning("%s", reason[:_MAX_REASON])
        else:
            raise _MalformedError(f"{_MOST_WARNINGS} warnings")
        for name, dtype, shape in head["arrays"]:
            num_bytes = expected[name].num_bytes(dtype, shape)
            limit -= num_bytes
            if limit < 0 or name in fields:
                raise _MalformedError(f"{name} of {num_bytes} bytes")
            fields[name] = read(num_bytes).view(dtype).reshape(shape)
        if fields.keys() != expected.keys():
            raise _MalformedError(f"expected {', '.join(expected)}, got {', '.join(fields)}")
        return kind, {name: _checked(fields[name], want) for name, want in expected.items()}
    except (EOFError, RunError, _MalformedError):
        raise
    except Exception as error:  # whatever an invalid head or array raises
        raise _MalformedError(
            f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_REASON]
        ) from None


def _checked(value: Any, want: Any) -> Any:
    if isinstance(want, Array):
        if value.dtype == bool:
            return value.view(np.uint8) != 0  # other bytes than 0 and 1 are undefined
        is_sound = value.dtype.kind != "f" or np.isfinite(value).all()
    elif not isinstance(value, want):
        is_sound = False
    elif isinstance(value, str):
        is_sound = value.isprintable()
    else:
        is_sound = math.isfinite(value) if isinstance(value, float) else abs(value or 0) < 2**31
    if not is_sound:
        raise _MalformedError(f"expected {want}, got {str(value)[:80]!r}")
    return value


def _is_ready(file: Any, event: int, seconds: float) -> bool:
    ready = select.poll()
    ready.register(file, event)
    return bool(ready.poll(min(1000 * max(seconds, 0), _LONGEST_POLL)))


def _await(file: Any, event: int, deadline: float, seconds: float) -> None:
    if not _is_ready(file, event, deadline - time.monotonic()):
        raise RunError(f"the process that decodes videos gave no answer for {seconds:g} s")


def _end(process: subprocess.Popen[bytes], seconds: float = 0) -> int | None:
    """Exit status of a process that ends within `seconds`; else kill it."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    process.kill()
    # A process that waits for a device cannot be killed before the device answers.
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    return None


# In the child


Values = Iterator[Mapping[str, object]]
"""Values of an answer: arrays and JSON values, by name."""


def open_channel(doing: str = "reading") -> Callable[[Callable[..., Values]], None]:
    """Prepare a child process; return its loop over requests.

    The argument of the loop is a function from `source` and arguments to values.

    Args:
        doing: What the child does, for the reject reasons of videos at which it fails.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library may print to standard output
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        # End with the parent at once, not only after the current video. To the kernel the parent is the thread that
        # started this process: a process that ended while idle is replaced, and no video is rejected for it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def serve(values_of: Callable[..., Values]) -> None:
        from pyarrow import allocate_buffer

        allocate_buffer(1)  # Arrow reserves a GiB of address space at its first use: not to be counted
        requests = sys.stdin.buffer
        with ThreadPoolExecutor(1) as sender, ExitStack() as stack:
            # The thread allocates its memory before any is counted.
            sent = sender.submit(_answer, answers, "ready", {"reason": ""})

            def warn(message: str) -> None:
                sender.submit(_answer, answers, "warning", {"reason": message[:_MAX_REASON]})

            stack.enter_context(warnings_to(warn))
            while length := requests.read(_LENGTH.size):
                request = json.loads(requests.read(*_LENGTH.unpack(length)))
                if not isinstance(request["source"], str):
                    request["source"] = requests.read(request["source"])
                for answer in _answers_to(values_of, doing, **request):
                    # Compute the next answer while one is sent.
                    sent.result()
                    sent = sender.submit(_answer, answers, *answer)

    return serve


def _answer(answers: BinaryIO, kind: str, fields: Mapping[str, object]) -> None:
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    head = {
        "kind": kind,
        "fields": {name: value for name, value in fields.items() if name not in arrays},
        "arrays": [(name, array.dtype.str, array.shape) for name, array in arrays.items()],
    }
    text = json.dumps(head).encode()
    answers.write(_LENGTH.pack(len(text)) + text)
    for array in arrays.values():
        answers.write(np.ascontiguousarray(array).data)
    answers.flush()


def _answers_to(
    values_of: Callable[..., Values],
    doing: str,
    source: bytes | str | VideoSource,
    arguments: Mapping[str, object],
    seconds: float,
    memory: int,
) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield kind and fields of each answer to a request; all but the last are values."""
    from carl_ray.data.video_file import DecodeError, open_source

    kind, reason = "end", ""
    try:
        # Neither the time limit nor the memory limit of decoding applies to fetching the file.
        if isinstance(source, str) and (storage.is_remote(source) or address.place_of(source)):
            opened = open_source(source)
            source = opened if opened.is_range or isinstance(opened.readable, Path) else opened.readable
        _limit_memory(memory)
        values = values_of(source, **arguments)
        while True:
            # The kernel ends this process with SIGALRM, even while a decoder does not let Python run.
            signal.setitimer(signal.ITIMER_REAL, seconds)
            value = next(values, None)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if value is None:
                break
            yield "value", value
    except RunError as error:
        kind, reason = "again", str(error)
    except (DecodeError, UserError) as error:
        kind, reason = "refused", str(error)
    except MemoryError:  # here and below the process is in an unknown state
        kind, reason = "broken", f"{doing} it takes more than {memory / 2**30:.1f} GiB of memory"
    except Exception as error:  # no error of a decoder may end the run
        kind, reason = "broken", f"{doing} failed ({type(error).__name__}: {' '.join(str(error).split())})"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _limit_memory(None)
    yield kind, {"reason": reason[:_MAX_REASON]}


def _limit_memory(num_bytes: int | None) -> None:
    """Limit (None: unlimit) what this process allocates from now on. Linux only."""
    if sys.platform == "linux":
        kilobytes = re.search(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.M)
        assert kilobytes is not None
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = hard if num_bytes is None else int(kilobytes[1]) * 1024 + num_bytes
        if limit == hard or hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def keep_memory() -> None:
    """Make glibc keep freed memory in this process.

    Every video allocates the same hundreds of megabytes again; new pages from the kernel took a sixth to a third of
    the time of a pair of views. The task has reserved this memory.
    """
    with suppress(AttributeError):  # no mallopt
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
