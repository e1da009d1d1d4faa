"""Logs of a run in JSON lines, and TensorBoard events.

The files are metrics.jsonl, bad_videos.jsonl, skipped_steps.jsonl, warnings.jsonl and events/. One worker writes
them. A local run folder is written directly; object storage has no append, so the files grow in a temporary folder and
`sync` copies them whole. Lines that a full disk refuses are buffered; if `sync` or `close` cannot write them either,
that is an error.
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
from carl_ray.config import Config
from carl_ray.errors import RunError
from carl_ray.training.loggers import LoggerThread, end_loggers

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

METRICS = "metrics.jsonl"
BAD_VIDEOS = "bad_videos.jsonl"
SKIPPED_STEPS = "skipped_steps.jsonl"
WARNINGS = "warnings.jsonl"

_EVENTS = "events"
_LOGGER = logging.getLogger(__name__)


class RunLog:
    """Writer of the logs of a run folder.

    Args:
        run_dir: URI of the run folder.
        step: Steps already done; later lines, written after the last checkpoint of an earlier start, are dropped.
        config: Of the run; each of its `training.loggers` gets the lines, too. None: no logger does.

    Raises:
        RunError: the folder cannot be written to.
    """

    def __init__(self, run_dir: str, step: int, config: Config | None = None) -> None:
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
        metrics: list[dict[str, Any]] = []
        for name in (METRICS, BAD_VIDEOS, SKIPPED_STEPS, WARNINGS):
            uri = storage.join(run_dir, name)
            # A run that starts from the beginning writes its line of step 0 again.
            lines = read_log(run_dir, name) if step or name == WARNINGS else []
            # Warnings are kept: they remain true when steps are repeated.
            kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step or name == WARNINGS]
            if name == METRICS:
                metrics = [line for line in lines if line["step"] <= step]
            if kept or storage.exists(uri):
                # Atomically: a full disk must not lose the existing lines.
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
        names = () if config is None else config.training.loggers
        self._loggers = [LoggerThread(name, run_dir, config, metrics) for name in names if config is not None]

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl, null for non-finite numbers, its events, and the loggers' copies."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        line = {"step": step, **_finite(values)}
        self._append(METRICS, line)
        for logger in self._loggers:
            logger.write(line)
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        self._add(
            self._events, b"".join(_record(Event(summary=scalar(k, v)), step) for k, v in numbers.items())
        )

    def write_bad_video(self, step: int, video_id: str, reason: str) -> None:
        """Add one line to bad_videos.jsonl."""
        self._append(BAD_VIDEOS, {"step": step, "video_id": video_id, "reason": reason})

    def write_skipped_step(self, step: int, values: dict[str, Any]) -> None:
        """Add one line to skipped_steps.jsonl, null for non-finite numbers."""
        self._append(SKIPPED_STEPS, {"step": step, **_finite(values)})

    def write_warning(self, step: int, message: str) -> None:
        """Add one line to warnings.jsonl."""
        self._append(WARNINGS, {"step": step, "time": time.time(), "warning": message})

    def sync(self) -> None:
        """Flush the logs to disk, and copy them to the run folder if it is remote.

        Raises:
            RunError: a disk is full, or storage failed; the next call retries.
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
        """Sync, end the loggers and delete temporary files. Errors as `sync`."""
        try:
            self.sync()
        finally:
            end_loggers(self._loggers)
            if self._temporary is not None:
                self._temporary.cleanup()

    def _append(self, name: str, line: dict[str, Any]) -> None:
        self._add(name, (json.dumps(line) + "\n").encode())

    def _add(self, name: str, content: bytes) -> None:
        if name not in self._files:
            self._files[name] = _GrowingFile(self._folder / name)
        self._files[name].add(content)


class _GrowingFile:
    """Local file that lines are appended to; lines that a full disk refuses are retried."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._buffer = b""

    def add(self, content: bytes) -> None:
        is_first = not self._buffer
        self._buffer += content
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
        if not self._buffer:
            return
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("ab") as file:
                file.write(self._buffer)
        except OSError:
            # A partial line would corrupt the next one.
            with suppress(OSError):
                os.truncate(self._path, size)
            raise
        self._buffer = b""


def _record(event: Event, step: int) -> bytes:
    """Encode an event as a record of a TensorBoard file.

    tensorboardX's writer is a thread that dies when the disk is full; its `add_scalar` then hangs.
    """
    from tensorboardX.record_writer import masked_crc32c

    event.wall_time, event.step = time.time(), step
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in (length, data))


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    # JSON has no NaN, and readers other than Python's reject it.
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def read_log(run_dir: str, name: str = METRICS) -> list[dict[str, Any]]:
    """Read the lines of a log, oldest first, without a torn last line; empty if absent."""
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
