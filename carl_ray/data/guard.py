"""The two views of a video, made in a process that may hang or crash without harm to this one.

    this process (no torch) ── request ▶ child: fetch ▶ decode ▶ augment ── arrays ▶ this process

The child lives on from video to video; where one kills it, the next video gets a new one. It ends with the
process that started it. Arrays pass a pipe as they are: shared memory was measured, and is no faster. No Ray
here. `carl_ray.data.scan` probes files in such a process too.
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import re
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from carl_ray import storage
from carl_ray.data.memory import load_task_bytes
from carl_ray.errors import RunError, UserError

if TYPE_CHECKING:
    # Not at run time: torch comes with them, which only the child needs.
    from carl_ray.config import Config
    from carl_ray.data.sample import ViewPair

UNEXPECTED = "reading failed"
"""How the reason of a video begins at which something failed that no error is foreseen for."""

_MEMORY_BEYOND_RESERVED = 2 << 30
"""Bytes that one video may take beside what its task has reserved: H.264 of 7680 x 4320 with 16 reference
pictures takes 1.2 GiB."""

_FETCH_SECONDS = 10 * storage.PATIENCE_SECONDS
"""What a video may take beside `data.time_limit`: a store that sends a byte now and then never falls silent."""
_END_SECONDS = 5.0

_KILLED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>


class BadVideoError(Exception):
    """A video that another try would not read either; the message is one line."""


class ViewPairReader:
    """Makes the two views of one video after the other in a process of its own; for one thread at a time.

    Args:
        code: What that process runs: Python that calls `answer_view_pairs`.
    """

    def __init__(
        self, code: str = "from carl_ray.data.guard import answer_view_pairs; answer_view_pairs()"
    ) -> None:
        self._code = code
        self._process: subprocess.Popen[bytes] | None = None

    def read(
        self,
        uri: str,
        video_id: str,
        num_video_frames: int,
        frame_step: float,
        epoch: int,
        config: Config,
        *,
        verified: bool = False,
        frame_labels: Sequence[int] | None = None,
    ) -> ViewPair:
        """What `carl_ray.data.sample.make_view_pair` gives for the same arguments.

        It has the fields of a `ViewPair`, but is not of that class, which would bring torch into this process.

        Raises:
            BadVideoError: it is no video that can be read; reading it takes longer than `data.time_limit`
                seconds or more memory than 2 GiB beside what its task reserves; its decoder crashed.
            RunError: it may be read another time: the storage refuses, fails or takes too long, the process was
                killed or stopped from outside or could not be started.
        """
        # Back in its place once it has answered: whatever interrupts this task (Ray raises KeyboardInterrupt in
        # one that is cancelled), the next video must not be given the answer for this one.
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            process = _start_decoder(self._code)
        request = {
            "source": uri,
            "video_id": video_id,
            "num_video_frames": num_video_frames,
            "frame_step": frame_step,
            "epoch": epoch,
            "config": config,
            "verified": verified,
            "frame_labels": frame_labels,
        }
        try:
            answer = _ask(process, request, config.data.time_limit + _FETCH_SECONDS)
        except TimeoutError as error:
            process.kill()
            # One that waits for a device that does not answer stays until it does.
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
                end_child(process)
            raise RunError(str(error)) from None
        except BaseException:
            process.kill()
            end_child(process)
            raise
        if answer is None:
            status = end_child(process)
            if status == -signal.SIGALRM:
                raise BadVideoError(f"the decoder took longer than {config.data.time_limit:g} s")
            raise (RunError if killed_from_outside(status) else BadVideoError)(cause_of_death(status))
        self._process = process
        kind, value = answer
        match kind:
            case "arrays":
                return cast("ViewPair", SimpleNamespace(**value))
            case "again":
                raise RunError(value)
            case "unexpected":  # Nobody knows what it has left behind.
                self.close()
        raise BadVideoError(value)

    def close(self) -> None:
        """Ends the process; another video would start a new one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            end_child(process)


def _start_decoder(code: str) -> subprocess.Popen[bytes]:
    """A process that waits for requests."""
    try:
        process = start_child(code)
    except OSError as error:
        raise RunError(f"the process that decodes videos could not be started ({error})") from None
    assert process.stdout is not None
    if not process.stdout.read(1):
        cause = cause_of_death(end_child(process))
        raise RunError(f"the process that decodes videos did not start, {cause}; see its standard error")
    return process


def _ask(process: subprocess.Popen[bytes], request: object, seconds: float) -> tuple[str, Any] | None:
    """Kind and value of the answer; None where the process died over the request.

    Raises:
        TimeoutError: no answer for so many seconds.
    """
    assert process.stdin is not None and process.stdout is not None
    try:
        pickle.dump(request, process.stdin)
        process.stdin.flush()
        answers = cast(io.BufferedReader, process.stdout)
        # Nothing is left in its buffer of the answer before.
        begun = select.poll()
        begun.register(answers, select.POLLIN)
        if not begun.poll(seconds * 1000):
            raise TimeoutError(f"the process that decodes videos gave no answer for {seconds:g} s")
        kind, head, sizes = pickle.load(answers)
        buffers = [np.empty(size, dtype=np.uint8) for size in sizes]
        if any(answers.readinto(buffer.data) < buffer.nbytes for buffer in buffers):
            return None
    except (BrokenPipeError, EOFError, pickle.UnpicklingError):
        return None
    return kind, pickle.loads(head, buffers=buffers)


# Both ends of a killable process


def start_child(code: str, *, quiet: bool = False) -> subprocess.Popen[bytes]:
    """A new interpreter that runs `code`, with pipes to its standard input and from its standard output.

    Args:
        code: Python that calls `open_channel`.
        quiet: What it writes to standard error is dropped.
    """
    # A worker's import path need not be the one that a new interpreter would have (Ray's working_dir).
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else None,
        env={**os.environ, "PYTHONPATH": path},
    )


def end_child(process: subprocess.Popen[bytes]) -> int:
    """Exit status of a child that has ended or is about to; its pipes are closed."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    return process.wait()


def killed_from_outside(status: int) -> bool:
    """Whether an exit status is that of a process that something else has ended, as the kernel does for memory."""
    return -status in _KILLED_FROM_OUTSIDE


def cause_of_death(status: int) -> str:
    """The reason for a video whose decoder's process ended with this exit status."""
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    if status == -signal.SIGKILL:
        return f"the decoder was killed ({name}), perhaps for want of memory"
    return f"the decoder {'was killed' if killed_from_outside(status) else 'crashed'} ({name})"


def open_channel() -> tuple[BinaryIO, BinaryIO]:
    """In a child: where requests come from, up to the end of the file, and where answers go."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library may print must not get among the answers
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        # In the middle of a video, too; where there is no such call, at its end. To the kernel the parent is
        # the thread that started this process: one that dies while it is idle is replaced, and no video blamed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return sys.stdin.buffer, answers


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """In a child: the kernel ends the process with SIGALRM unless the block is left in time.

    Also where a decoder spins without letting Python run, and where nobody waits for the answer any more.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def limit_memory(num_bytes: int | None) -> None:
    """In a child: from now on it gets at most so much memory more; then allocations fail. Linux only.

    Args:
        num_bytes: None lifts the limit.
    """
    if sys.platform == "linux":
        kilobytes = re.search(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.M)
        assert kilobytes is not None
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = hard if num_bytes is None else int(kilobytes[1]) * 1024 + num_bytes
        if limit == hard or hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def keep_memory() -> None:
    """From now on this process keeps what it frees, where its C library is glibc.

    Every video wants the same hundreds of megabytes again; pages fresh from the kernel took a sixth to a third of
    the time that a pair of views takes. It is memory that the task has reserved.
    """
    with suppress(AttributeError):  # no mallopt
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def answer_view_pairs() -> None:
    """Body of the child process of a `ViewPairReader`."""
    requests, answers = open_channel()
    keep_memory()
    from pyarrow import allocate_buffer

    from carl_ray.data import sample
    from carl_ray.data.decode import DecodeError

    allocate_buffer(1)  # Arrow takes a GiB of address space at its first use: before anything is counted

    def read(request: dict[str, Any]) -> tuple[str, object]:
        uri, config = request["source"], request["config"]
        memory = load_task_bytes(config) + _MEMORY_BEYOND_RESERVED
        try:
            # The storage has its own patience, and is not to blame on the decoder; nor is the size of the file.
            limit_memory(None)
            source = storage.read_bytes(uri) if storage.is_remote(uri) else uri
            limit_memory(memory)
            with time_limit(config.data.time_limit):
                pair = sample.make_view_pair(**request | {"source": source})
            return "arrays", vars(pair)
        except RunError as error:
            return "again", str(error)
        except (DecodeError, UserError) as error:
            return "refused", str(error)
        except MemoryError:
            return "unexpected", f"reading it takes more than {memory / 2**30:.1f} GiB of memory"
        except Exception as error:  # Whatever one video does to a decoder must not end the run.
            return "unexpected", f"{UNEXPECTED} ({type(error).__name__}: {' '.join(str(error).split())})"

    answers.write(b"+")
    answers.flush()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        kind, value = read(request)
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        views = [buffer.raw() for buffer in buffers]
        pickle.dump((kind, head, [view.nbytes for view in views]), answers)
        for view in views:
            answers.write(view)
        answers.flush()
