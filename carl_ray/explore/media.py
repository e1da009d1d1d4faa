"""The video files for the page: as they are where Chromium plays them exactly, else converted to H.264.

Files are read by ranges, from disk and from object stores. Converted ones (see carl_ray.explore.conversion) are made as
they are watched, and kept once they are complete, the last used ones, up to a size.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from carl_ray import address, storage
from carl_ray.data.child import BadVideoError, Child
from carl_ray.errors import RunError
from carl_ray.explore.conversion import CODE, CONTENT, FRAMES, PROBE, Children, Layout
from carl_ray.explore.library import Video

_CHUNK = 1 << 19  # bytes
_BLOCK = 1 << 12  # of a file system
_MOST_AT_ONCE = 2 << 20
"""Bytes of an answer to a request for a range: a browser has six connections, and would keep one a long video."""
_SECONDS = 60.0
"""Time limit of a probe and of a segment."""
_PROBES, _WORKERS = 2, 8
_MOST_OPEN = 8
"""Conversions that have a process."""
_NEAR = 4
"""Segments that are made on the way to the wanted one, rather than to start anew there."""
_EXACT = 0.25
"""Deviation of a file's times from those of the embeddings, as a share of the shortest frame, up to which it plays
as it is."""

_STALE_SECONDS = 86400.0

Read = Callable[[int, int], Awaitable[bytes]]
"""The bytes from a start to a stop."""


@dataclass(frozen=True)
class Plan:
    """How a video is played."""

    reason: str
    """Why it is converted; empty: it is not."""
    media_type: str
    codec: str
    layout: Layout


class Media:
    """The files of videos, as a browser gets them.

    Args:
        folder: Of converted videos.
        most_bytes: Room for complete ones.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._probes = Children(_PROBES)
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="conversion")
        self._plans: dict[int, asyncio.Task[Plan]] = {}
        self._failed: dict[int, str] = {}
        self._open: OrderedDict[str, Conversion] = OrderedDict()
        for part in folder.glob(".*.mp4.*"):  # of servers that were killed
            with suppress(FileNotFoundError):  # Another server cleans up, too.
                if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                    part.unlink()

    async def plan(self, video: Video) -> Plan:
        """How a video is played; it is probed once.

        Raises:
            BadVideoError: it cannot be.
            RunError: the store refuses or fails.
        """
        if video.number in self._failed:
            raise BadVideoError(self._failed[video.number])
        if video.number not in self._plans:
            self._plans[video.number] = asyncio.create_task(self._probe(video))
        try:
            return await asyncio.shield(self._plans[video.number])
        except (BadVideoError, RunError) as error:
            self._plans.pop(video.number, None)
            self._remember(video, error)
            raise

    async def _probe(self, video: Video) -> Plan:
        if not len(video):
            raise BadVideoError("it has no embedded frame")
        found = await self._probes.ask(video, PROBE, seconds=_SECONDS, task="probe")
        reason, times = found["reason"], found["times"]
        if not reason and len(times) != len(video):
            reason = f"{len(times)} frames, {len(video)} are embedded"
        if not reason and len(times) > 1:
            deviation = np.abs(times - video.times).max()
            reason = "other times" if deviation > _EXACT * np.diff(times).min() else ""
        layout = Layout(found["width"], found["height"], video.times)
        return Plan(reason, found["media_type"], found["codec"], layout)

    async def answer(self, request: web.Request, video: Video) -> web.StreamResponse:
        """Answer a request for the file of a video.

        Raises:
            BadVideoError, RunError: as `plan`.
            HTTPException: the file is gone, or has no such range.
        """
        plan = await self.plan(video)
        if not plan.reason:
            return await answer_file(request, video.uri, plan.media_type, video.key)
        kept = self._folder / f"{video.key}.mp4"
        if video.key not in self._open and kept.is_file():
            os.utime(kept)
            return await answer_file(request, str(kept), "video/mp4", video.key)
        conversion = await self._conversion(video, plan, kept)
        try:
            return await answer_ranges(request, conversion.size, conversion.read, "video/mp4", video.key)
        except (BadVideoError, RunError) as error:
            self._remember(video, error)
            raise

    async def _conversion(self, video: Video, plan: Plan, kept: Path) -> Conversion:
        conversion = self._open.get(video.key)
        if conversion is None:
            conversion = Conversion(video, plan, kept, self._workers, self._trim)
            self._open[video.key] = conversion
            for key in [k for k, other in self._open.items() if not other.is_busy][:-_MOST_OPEN]:
                self._open.pop(key).close()
        self._open.move_to_end(video.key)
        await conversion.prepare()
        return conversion

    def _remember(self, video: Video, error: Exception) -> None:
        if isinstance(error, BadVideoError):
            self._failed[video.number] = str(error)

    def _trim(self) -> None:
        """Delete the complete conversions that were used longest ago, until the rest fits."""
        kept = sorted(self._folder.glob("*.mp4"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in kept:
            total += path.stat().st_blocks * 512
            if total > self._most_bytes:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """End the processes, and delete what is incomplete."""
        self._probes.close()
        for conversion in self._open.values():
            conversion.close()
        self._workers.shutdown(wait=False, cancel_futures=True)


class Conversion:
    """A video that is converted as it is read.

    Args:
        video: The original.
        plan: Of it.
        kept: Path of the complete file.
        workers: Threads that wait for the process.
        on_complete: Called once the file is complete.
    """

    def __init__(
        self,
        video: Video,
        plan: Plan,
        kept: Path,
        workers: ThreadPoolExecutor,
        on_complete: Callable[[], None],
    ) -> None:
        self._video, self._plan, self._kept = video, plan, kept
        self._workers, self._on_complete = workers, on_complete
        self._child = Child(CODE)
        self._lock = asyncio.Lock()
        self._values: Iterator[dict[str, Any]] | None = None
        self._next = 0
        self._made = np.zeros(plan.layout.num_segments, bool)
        self._start = 0  # of the slots
        self._per_segment = plan.layout.offset(FRAMES)
        self._part = kept.with_name(f".{kept.name}.{os.getpid()}")
        self._file = -1
        self._described = {
            "width": plan.layout.width,
            "height": plan.layout.height,
            "times": video.times.tolist(),
        }

    @property
    def size(self) -> int:
        """Bytes of the converted file."""
        return self._start + self._plan.layout.offset(len(self._plan.layout.times))

    @property
    def is_busy(self) -> bool:
        """Whether a segment is being made."""
        return self._lock.locked()

    async def prepare(self) -> None:
        """Make the head of the file, once. Errors as `Media.plan`."""
        async with self._lock:
            if not self._start:
                await self._in_thread(self._write_header)

    async def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`; what is missing of them is made first. Errors as `Media.plan`."""
        first, last = (max(0, at - self._start) // self._per_segment for at in (start, stop - 1))
        for segment in range(first, last + 1) if stop > self._start else ():
            while self._file >= 0 and not self._made[segment]:
                async with self._lock:
                    if not self._made[segment]:
                        await self._in_thread(self._advance, segment)
        if self._file < 0:
            raise RunError("the conversion was stopped; play the video again")
        return os.pread(self._file, stop - start, start)

    async def _in_thread(self, function: Callable[..., None], *arguments: object) -> None:
        work = asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            # The browser has left; the process serves one thread at a time.
            await asyncio.wait([work])
            raise

    def _write_header(self) -> None:
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            if self._file < 0:
                self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise storage.storage_error(error, str(self._part), "write") from None
        arguments = {"task": "header", **self._described}
        (answer,) = self._child.ask(self._video.uri, arguments, CONTENT, seconds=_SECONDS)
        self._write(0, answer["content"])
        self._start = len(answer["content"])

    def _advance(self, wanted: int) -> None:
        """Make one segment: the wanted one, or one on the way to it."""
        if self._values is None or not self._next <= wanted < self._next + _NEAR:
            self._stop()
            arguments = {"task": "segments", "first": wanted, "codec": self._plan.codec, **self._described}
            # Some codecs are decoded from the first frame on.
            seconds = _SECONDS + wanted * FRAMES / 50
            self._values = self._child.ask(self._video.uri, arguments, CONTENT, seconds=seconds, values=None)
            self._next = wanted
        answer = next(self._values, None)
        if answer is None:
            raise BadVideoError(f"the decoder sent no frame {self._next * FRAMES}")
        start, stop = (self._start + at * self._per_segment for at in (self._next, self._next + 1))
        if start + len(answer["content"]) != min(stop, self.size):
            raise BadVideoError("the decoder sent no valid answer")
        self._write(start, answer["content"])
        self._made[self._next] = True
        self._next += 1
        if self._made.all():
            if self._next == len(self._made) and next(self._values, None) is not None:
                raise BadVideoError("the decoder sent more frames than are embedded")
            self._stop()
            self._child.close()
            self._part.replace(self._kept)
            self._on_complete()

    def _write(self, at: int, content: np.ndarray) -> None:
        try:
            os.ftruncate(self._file, max(self.size, at + len(content)))
            # Zeros are written as holes, which take no space.
            ends = range(_BLOCK - at % _BLOCK, len(content) + _BLOCK, _BLOCK)
            for end in ends:
                block = content[max(0, end - _BLOCK) : end]
                if block.any():
                    os.pwrite(self._file, block.data, at + max(0, end - _BLOCK))
        except OSError as error:
            raise storage.storage_error(error, str(self._part), "write") from None

    def _stop(self) -> None:
        values, self._values = self._values, None
        if values is not None:
            values.close()  # type: ignore[attr-defined]

    def close(self) -> None:
        """End the process; delete the file unless it is complete."""
        if self.is_busy:
            self._child.interrupt()  # A thread is reading from it.
        else:
            self._child.close()
        self._part.unlink(missing_ok=True)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


async def answer_ranges(
    request: web.Request, size: int, read: Read, media_type: str, etag: str
) -> web.StreamResponse:
    """Answer a request for a file, or for a range of its bytes (the first part of it), a chunk at a time."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": media_type, "ETag": f'"{etag}"'}
    start, stop, status = 0, size, 200
    if "Range" in request.headers and request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
        try:
            start, stop, _ = request.http_range.indices(size)
        except ValueError:
            start = stop = 0
        if start >= stop:
            raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"})
        status, stop = 206, min(stop, start + _MOST_AT_ONCE)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = stop - start
    # Before the status is sent: an error has one of its own.
    at = start
    content = b"" if request.method == "HEAD" else await read(at, min(at + _CHUNK, stop))
    await response.prepare(request)
    try:
        while content:
            await response.write(content)
            at += len(content)
            content = await read(at, min(at + _CHUNK, stop)) if at < stop else b""
    except (BadVideoError, RunError, OSError):
        # Shorter than announced: the browser asks again from there on, and gets the reason as a status.
        if request.transport is not None:
            request.transport.close()
        return response
    await response.write_eof()
    return response


async def answer_file(request: web.Request, uri: str, media_type: str, etag: str) -> web.StreamResponse:
    """Answer a request for a file of a disk or an object store, or a part of one; only what is asked for is read.

    Raises:
        HTTPNotFound: it is gone.
        RunError: the store refuses or fails.
    """
    part = address.parse(uri)

    def open_file() -> tuple[storage.NativeFile, int]:
        filesystem, path = storage.resolve(uri)
        file = storage.persistently(uri, "read", lambda: filesystem.open_input_file(path))
        return file, file.size() if part.byte_length is None else part.byte_length

    async def read(start: int, stop: int) -> bytes:
        attempt = lambda: file.read_at(stop - start, start + (part.byte_offset or 0))  # noqa: E731
        content = await asyncio.to_thread(storage.persistently, uri, "read", attempt)
        if len(content) < stop - start:
            raise OSError("it has become shorter")
        return content

    try:
        file, size = await asyncio.to_thread(open_file)
        with file:
            return await answer_ranges(request, size, read, media_type, etag)
    except FileNotFoundError:
        raise web.HTTPNotFound(text=f"{storage.public_uri(uri)}: no such file") from None
    except OSError as error:
        raise storage.storage_error(error, uri, "read") from None
