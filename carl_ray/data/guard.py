"""Videos read in a process that may hang or crash without harm to this one: two views of each, or all its frames.

    this process (no torch) ── request ▶ child: fetch ▶ decode ▶ augment, or cut ── arrays ▶ this process

The child lives on from video to video; where one kills it, the next video gets a new one. It ends with the
thread that started it. Arrays pass a pipe as they are: shared memory was measured, and is no faster. No Ray
here. `carl_ray.data.scan` probes files in such a process too.
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import math
import os
import pickle
import re
import resource
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from jaxtyping import UInt8

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
_COUNT_LIMITS = 10
"""Counting has so many times `data.time_limit`: it decodes a video of any length in one go."""
_START_SECONDS = 300.0
"""Until a process has imported what it needs, from a slow file system and beside many others."""
_END_SECONDS = 5.0
_PIPE_BYTES = 1 << 18

_KILLED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>
_LENGTH = struct.Struct("<Q")
_LONGEST_POLL = 2**31 - 1  # milliseconds
_FULL_SIZE_FRAMES = 8
"""At most so many are decoded at a time where frames are not resized: 64 of 3840 x 2160 would take 1.6 GB."""


class BadVideoError(Exception):
    """A video that another try would not read either; the message is one line."""


class _Reader:
    """Asks a process of its own about one video after the other; for one thread at a time.

    Args:
        code: What that process runs: Python that calls one of the `answer_…` functions.
    """

    def __init__(self, code: str) -> None:
        self._code = code
        self._process: subprocess.Popen[bytes] | None = None
        self._is_idle = False
        self._has_greeted = False

    def start(self) -> None:
        """Starts the process unless there is an idle one already; it ends with the thread that calls this.

        Reading starts it too; a thread that will end soon is better spared that. Several start side by side.

        Raises:
            RunError: it could not be started.
        """
        if self._process is None or not self._is_idle or self._process.poll() is not None:
            self.close()
            self._process = _start_decoder(self._code)
            self._is_idle, self._has_greeted = True, False

    def interrupt(self) -> None:
        """Ends the process if it is at work, for which it counts as killed; any thread may call this."""
        process = self._process
        if process is not None and not self._is_idle:
            _kill(process)

    def close(self) -> None:
        """Ends the process; another video would start a new one."""
        process, self._process = self._process, None
        if process is not None:
            _kill(process)
            _close_pipes(process)

    def _answers(
        self, source: bytes | str, arguments: dict[str, object], *, seconds: float, memory: int
    ) -> Iterator[Any]:
        """What the process makes of a video, one value after the other. Whoever stops early costs the process.

        Args:
            source: The content of a video file, or its path or URI.
            arguments: What else the process wants to know.
            seconds: What each value may take to be made, from when the one before was taken.
            memory: Bytes that the process may take for them.

        Raises:
            BadVideoError: as `ViewPairReader.read`.
            RunError: as `ViewPairReader.read`.
        """
        self.start()
        process = self._process
        assert process is not None
        # Idle again once it has answered: whatever interrupts this task (Ray raises KeyboardInterrupt in one
        # that is cancelled), the next video must not be given the answer for this one.
        self._is_idle = False
        if not self._has_greeted:
            _await_greeting(process)
            self._has_greeted = True
        try:
            _send(process, (source, arguments, seconds, memory))
            while (answer := _receive(process, seconds + _FETCH_SECONDS))[0] == "value":
                yield answer[1]
        except (BrokenPipeError, EOFError):
            status = end_child(process)
            if status == -signal.SIGALRM:
                raise BadVideoError(f"the decoder took longer than {seconds:g} s") from None
            error = RunError if killed_from_outside(status) else BadVideoError
            raise error(cause_of_death(status)) from None
        except BaseException:
            _kill(process)
            _close_pipes(process)
            raise
        kind, value = answer
        if kind == "unexpected":  # Nobody knows what it has left behind.
            self.close()
        else:
            self._is_idle = True
        match kind:
            case "end":
                return
            case "again":
                raise RunError(value)
        raise BadVideoError(value)


class ViewPairReader(_Reader):
    """Makes the two views of one video after the other in a process of its own; for one thread at a time.

    Args:
        code: What that process runs: Python that calls `answer_view_pairs`.
    """

    def __init__(
        self, code: str = "from carl_ray.data.guard import answer_view_pairs; answer_view_pairs()"
    ) -> None:
        super().__init__(code)

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
        arguments = {
            "video_id": video_id,
            "num_video_frames": num_video_frames,
            "frame_step": frame_step,
            "epoch": epoch,
            "config": config,
            "verified": verified,
            "frame_labels": frame_labels,
        }
        memory = load_task_bytes(config) + _MEMORY_BEYOND_RESERVED
        (fields,) = self._answers(uri, arguments, seconds=config.data.time_limit, memory=memory)
        return cast("ViewPair", SimpleNamespace(**fields))


class FrameReader(_Reader):
    """Decodes all frames of one video after the other in a process of its own; for one thread at a time.

    Args:
        code: What that process runs: Python that calls `answer_frames`.
    """

    def __init__(self, code: str = "from carl_ray.data.guard import answer_frames; answer_frames()") -> None:
        super().__init__(code)

    def read(
        self,
        source: bytes | str,
        num_frames: int,
        config: Config,
        *,
        chunk_frames: int,
        short_side: int | None = None,
    ) -> Iterator[UInt8[np.ndarray, "chunk height width 3"]]:
        """What `carl_ray.data.decode.iterate_frames` gives, cut to squares; the next chunk is made meanwhile.

        Whoever does not take all of it closes the iterator, which ends the process.

        Args:
            source: The content of a video file, or its path or URI.
            num_frames: How many frames it has.
            config: Of the run: decoder, time limit, and the side S of the squares (`augment.image_size`).
            chunk_frames: Frames of a chunk; the last one may have fewer.
            short_side: As for `iterate_frames`.

        Returns:
            Chunks, in order: the central S x S pixels of each frame, or all of it where it has not as many. Where
            the decoder hangs or dies, the chunk before may be lost as well.

        Raises:
            BadVideoError: while iterating: as `ViewPairReader.read`, but the time limit holds for each chunk
                and does not run while nobody takes it.
            RunError: while iterating: as `ViewPairReader.read`.
        """
        arguments: dict[str, object] = {
            "num_frames": num_frames,
            "chunk_frames": chunk_frames,
            "short_side": short_side,
            "image_size": config.augment.image_size,
            "decoder": config.data.decoder,
        }
        # As decoded (16:9), and cut.
        chunk = chunk_frames * config.augment.image_size**2 * 25 // 9 * 3
        memory = 2 * chunk + _MEMORY_BEYOND_RESERVED
        return self._answers(source, arguments, seconds=config.data.time_limit, memory=memory)

    def count(self, source: bytes | str, config: Config) -> int:
        """How many frames of a video decode, within ten times `data.time_limit`.

        Raises:
            BadVideoError, RunError: as `ViewPairReader.read`.
        """
        seconds = _COUNT_LIMITS * config.data.time_limit
        (count,) = self._answers(source, {}, seconds=seconds, memory=_MEMORY_BEYOND_RESERVED)
        return int(count)


def _start_decoder(code: str) -> subprocess.Popen[bytes]:
    """A process that will wait for requests, once it has greeted."""
    try:
        process = start_child(code)
    except OSError as error:
        raise RunError(f"the process that decodes videos could not be started ({error})") from None
    if sys.platform == "linux":
        # Each time that a pipe is full, the decoder stands still until this process is run. A user may have 64 MiB.
        with suppress(OSError):
            fcntl.fcntl(_output(process), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process


def _await_greeting(process: subprocess.Popen[bytes]) -> None:
    ready = select.poll()
    ready.register(_output(process), select.POLLIN)
    if not ready.poll(1000 * _START_SECONDS):
        _kill(process)
        _close_pipes(process)
        raise RunError(f"the process that decodes videos did not start within {_START_SECONDS:.0f} s")
    if not _output(process).read(1):
        cause = cause_of_death(end_child(process))
        raise RunError(f"the process that decodes videos did not start, {cause}; see its standard error")


def _output(process: subprocess.Popen[bytes]) -> io.FileIO:
    # Without a buffer: `poll` knows nothing of what has been read ahead.
    return cast(io.FileIO, cast(io.BufferedReader, process.stdout).raw)


def _send(process: subprocess.Popen[bytes], request: object) -> None:
    assert process.stdin is not None
    pickle.dump(request, process.stdin)
    process.stdin.flush()


def _receive(process: subprocess.Popen[bytes], seconds: float) -> tuple[str, Any]:
    """Kind and value of the next answer.

    Raises:
        EOFError: the process has died over it.
        RunError: nothing came for so many seconds.
    """
    ready = select.poll()
    ready.register(_output(process), select.POLLIN)

    def read(num_bytes: int) -> UInt8[np.ndarray, " num_bytes"]:
        content = np.empty(num_bytes, np.uint8)
        missing = content.data
        while missing:
            if not ready.poll(min(1000 * seconds, _LONGEST_POLL)):
                raise RunError(f"the process that decodes videos gave no answer for {seconds:g} s")
            count = _output(process).readinto(missing)
            if not count:
                raise EOFError
            missing = missing[count:]
        return content

    (length,) = _LENGTH.unpack(read(_LENGTH.size).data)
    kind, head, sizes = pickle.loads(read(length).data)
    return kind, pickle.loads(head, buffers=[read(size) for size in sizes])


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    # One that waits for a device that does not answer stays until it does.
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)


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
    _close_pipes(process)
    return process.wait()


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()


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
    channel = open_channel()
    keep_memory()
    import cv2

    from carl_ray.data import sample

    cv2.setNumThreads(1)  # its threads, begun at large images, would take memory that is counted here

    def view_pair(source: bytes | str, **arguments: Any) -> Iterator[dict[str, object]]:
        yield vars(sample.make_view_pair(source=source, **arguments))

    _answer_requests(*channel, view_pair)


def answer_frames() -> None:
    """Body of the child process of a `FrameReader`."""
    channel = open_channel()
    keep_memory()
    from carl_ray.data import decode

    def frames(source: bytes | str, **arguments: Any) -> Iterator[object]:
        if not arguments:
            yield decode.probe_video(source, verify=True).num_frames
            return
        size, chunk_frames = arguments.pop("image_size"), arguments.pop("chunk_frames")
        full_size = arguments["short_side"] is None
        at_once = math.gcd(chunk_frames, _FULL_SIZE_FRAMES) if full_size else chunk_frames
        squares: list[np.ndarray] = []
        for chunk in decode.iterate_frames(source, chunk_frames=at_once, **arguments):
            squares.append(_central_square(chunk, size))
            del chunk  # before the next one is made
            if len(squares) * at_once == chunk_frames:
                yield squares[0] if len(squares) == 1 else np.concatenate(squares)
                squares.clear()
        if squares:
            yield np.concatenate(squares)

    _answer_requests(*channel, frames)


def _central_square(
    frames: UInt8[np.ndarray, "n height width 3"], size: int
) -> UInt8[np.ndarray, "n height_cut width_cut 3"]:
    """The central size x size pixels, contiguous; all of them where one side has fewer.

    Half of an odd difference is rounded down, but to the even number where the shorter side has just `size` pixels,
    as `carl_ray.data.augment.center_view` does, to which nothing is left to cut.
    """
    extents = frames.shape[1:3]
    if min(extents) < size:
        return frames
    is_larger = min(extents) > size
    top, left = ((side - size) // 2 if is_larger else round((side - size) / 2) for side in extents)
    return np.ascontiguousarray(frames[:, top : top + size, left : left + size])


def _answer_requests(
    requests: BinaryIO, answers: BinaryIO, values_of: Callable[..., Iterator[object]]
) -> None:
    """Answers each request with the values that `values_of` gives for it, and a last answer that says how it ended."""
    from pyarrow import allocate_buffer

    allocate_buffer(1)  # Arrow takes a GiB of address space at its first use: before anything is counted
    with ThreadPoolExecutor(1) as sender:
        sent = sender.submit(_greet, answers)  # the thread has its memory before any is counted
        while True:
            try:
                request = pickle.load(requests)
            except EOFError:
                return
            for answer in _answers_to(values_of, *request):
                # The next one is made while one is on its way.
                sent.result()
                sent = sender.submit(_answer, answers, *answer)


def _greet(answers: BinaryIO) -> None:
    answers.write(b"+")
    answers.flush()


def _answer(answers: BinaryIO, kind: str, value: object) -> None:
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    opening = pickle.dumps((kind, head, [view.nbytes for view in views]))
    answers.write(_LENGTH.pack(len(opening)) + opening)
    for view in views:
        answers.write(view)
    answers.flush()


def _answers_to(
    values_of: Callable[..., Iterator[object]],
    source: bytes | str,
    arguments: dict[str, object],
    seconds: float,
    memory: int,
) -> Iterator[tuple[str, object]]:
    """Kind and value of each answer to a request; the last one has another kind than "value"."""
    from carl_ray.data.decode import DecodeError

    try:
        # The storage has its own patience, and is not to blame on the decoder; nor is the size of the file.
        content = (
            storage.read_bytes(source) if isinstance(source, str) and storage.is_remote(source) else source
        )
        limit_memory(memory)
        values = values_of(content, **arguments)
        while True:
            with time_limit(seconds):
                value = next(values, None)
            if value is None:
                break
            yield "value", value
        yield "end", None
    except RunError as error:
        yield "again", str(error)
    except (DecodeError, UserError) as error:
        yield "refused", str(error)
    except MemoryError:
        yield "unexpected", f"reading it takes more than {memory / 2**30:.1f} GiB of memory"
    except Exception as error:  # Whatever one video does to a decoder must not end the run.
        yield "unexpected", f"{UNEXPECTED} ({type(error).__name__}: {' '.join(str(error).split())})"
    finally:
        limit_memory(None)
