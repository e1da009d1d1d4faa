"""The logs of a run: metrics.jsonl, bad_videos.jsonl, skipped_steps.jsonl, warnings.jsonl, TensorBoard events.

Written by one worker. A local run folder is written directly; for object storage, where nothing can be
appended, the files grow in a temporary folder and `sync` copies them whole. What a full disk does not take waits
in memory: it is an error when `sync` or `close` cannot write it either.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import struct
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carl_ray import storage
from carl_ray.errors import RunError

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

METRICS = "metrics.jsonl"
BAD_VIDEOS = "bad_videos.jsonl"
SKIPPED_STEPS = "skipped_steps.jsonl"
WARNINGS = "warnings.jsonl"

_EVENTS = "events"
_LOGGER = logging.getLogger(__name__)


class RunLog:
    """Appends to the logs of a run folder, from one step on.

    Args:
        run_dir: URI of the run folder.
        step: Steps already done; later lines, of an attempt that went on past its last checkpoint, are
            dropped.

    Raises:
        RunError: the folder cannot be written to.
    """

    def __init__(self, run_dir: str, step: int) -> None:
        self._run_dir = run_dir
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        try:
            if storage.is_remote(run_dir):
                self._temporary = tempfile.TemporaryDirectory(prefix="carl_ray-log-")
                self._folder = Path(self._temporary.name)
            else:
                self._folder = Path(storage.resolve(run_dir)[1])
            (self._folder / _EVENTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage.storage_error(error, run_dir, "write") from None
        for name in (METRICS, BAD_VIDEOS, SKIPPED_STEPS, WARNINGS):
            uri = storage.join(run_dir, name)
            # A run that begins anew writes its line of step 0 anew.
            lines = read_log(run_dir, name) if step or name == WARNINGS else []
            # What was warned of is true also of steps that are done again.
            kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step or name == WARNINGS]
            if kept or storage.exists(uri):
                # Whole or not at all: a full disk must not cost the lines there are.
                storage.write_bytes(str(self._folder / name), "".join(kept).encode())
        self._files: dict[str, _GrowingFile] = {}
        # The rest of the name is the host's and the second's: a quick restart would write over the old file.
        self._events = f"{_EVENTS}/events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.from-{step}"
        # tensorboardX imports torch, which those who only read logs need not wait for.
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # At the second one, TensorBoard drops what older files have from its step on.
        first = [(Event(file_version="brain.Event:2"), 0)]
        first.append((Event(session_log=SessionLog(status=SessionLog.START)), step + 1 if step else 0))
        self._add(self._events, b"".join(_record(event, of_step) for event, of_step in first))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl, null for what is not finite, and its numbers to the events."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        self._append(METRICS, {"step": step, **_finite(values)})
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        self._add(
            self._events, b"".join(_record(Event(summary=scalar(k, v)), step) for k, v in numbers.items())
        )

    def write_bad_video(self, step: int, video_id: str, reason: str) -> None:
        """Adds one line to bad_videos.jsonl."""
        self._append(BAD_VIDEOS, {"step": step, "video_id": video_id, "reason": reason})

    def write_skipped_step(self, step: int, values: dict[str, Any]) -> None:
        """Adds one line to skipped_steps.jsonl, null for what is not finite."""
        self._append(SKIPPED_STEPS, {"step": step, **_finite(values)})

    def write_warning(self, step: int, message: str) -> None:
        """Adds one line to warnings.jsonl."""
        self._append(WARNINGS, {"step": step, "time": time.time(), "warning": message})

    def sync(self) -> None:
        """Makes all that was written so far visible in the run folder, and safe from a crash of the machine.

        Raises:
            RunError: a disk is full, or storage failed; the next call tries again.
        """
        failures = []
        for file in self._files.values():
            try:
                file.sync()
            except RunError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        if self._temporary is not None:
            for path in sorted(self._folder.rglob("*")):
                if path.is_file():
                    names = path.relative_to(self._folder).parts
                    storage.write_bytes(storage.join(self._run_dir, *names), path.read_bytes())

    def close(self) -> None:
        """Makes everything visible and removes what was temporary. Errors as `sync`."""
        try:
            self.sync()
        finally:
            if self._temporary is not None:
                self._temporary.cleanup()

    def _append(self, name: str, line: dict[str, Any]) -> None:
        self._add(name, (json.dumps(line) + "\n").encode())

    def _add(self, name: str, content: bytes) -> None:
        if name not in self._files:
            self._files[name] = _GrowingFile(self._folder / name)
        self._files[name].add(content)


class _GrowingFile:
    """A file of this machine that gets whole lines or records, at once where there is room, else later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting = b""

    def add(self, content: bytes) -> None:
        is_first = not self._waiting
        self._waiting += content
        try:
            self._write()
        except OSError as error:
            if is_first:
                reason = storage.storage_error(error, str(self._path), "write")
                _LOGGER.warning("%s; kept in memory until the next checkpoint", reason)

    def sync(self) -> None:
        try:
            self._write()
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise storage.storage_error(error, str(self._path), "write") from None

    def _write(self) -> None:
        if not self._waiting:
            return
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("ab") as file:
                file.write(self._waiting)
        except OSError:
            # A part of a line would spoil the next one, too.
            with suppress(OSError):
                os.truncate(self._path, size)
            raise
        self._waiting = b""


def _record(event: Event, step: int) -> bytes:
    """An event as TensorBoard reads it from a file.

    tensorboardX's own writer is a thread that dies of a full disk; its `add_scalar` then never returns.
    """
    from tensorboardX.record_writer import masked_crc32c

    event.wall_time, event.step = time.time(), step
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in (length, data))


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    # JSON has no NaN: other readers than Python's would stop at such a line.
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def read_log(run_dir: str, name: str = METRICS) -> list[dict[str, Any]]:
    """The lines of a log of a run folder, oldest first, but a torn last one; empty where it has none."""
    uri = storage.join(run_dir, name)
    if not storage.exists(uri):
        return []
    lines = storage.read_bytes(uri).decode().splitlines()
    parsed = []
    for number, line in enumerate(lines):
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise
    return parsed
