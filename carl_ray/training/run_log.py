"""The logs of a run: metrics.jsonl, bad_videos.jsonl, TensorBoard events.

Written by one worker. A local run folder is written directly; for object storage, where nothing can be
appended, the files grow in a temporary folder and `sync` copies them whole.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from carl_ray import storage

METRICS = "metrics.jsonl"
BAD_VIDEOS = "bad_videos.jsonl"
_EVENTS = "events"


class RunLog:
    """Appends to the logs of a run folder, from one step on.

    Args:
        run_dir: URI of the run folder.
        step: Steps already done; later lines, of an attempt that went on past its last checkpoint, are
            dropped.
    """

    def __init__(self, run_dir: str, step: int) -> None:
        self._run_dir = run_dir
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if storage.is_remote(run_dir):
            self._temporary = tempfile.TemporaryDirectory(prefix="carl_ray-log-")
            self._folder = Path(self._temporary.name)
        else:
            self._folder = Path(storage.resolve(run_dir)[1])
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, BAD_VIDEOS):
            uri = storage.join(run_dir, name)
            # A run that begins anew writes its line of step 0 anew.
            lines = read_log(run_dir, name) if step else []
            kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
            if kept or storage.exists(uri):
                # Whole or not at all: a full disk must not cost the lines there are.
                temporary = self._folder / f".{name}"
                temporary.write_text("".join(kept), encoding="utf-8")
                temporary.replace(self._folder / name)
        self._events = SummaryWriter(
            str(self._folder / _EVENTS),
            purge_step=step + 1 if step else 0,
            # The rest of the name is the host's and the second's: a quick restart would write over the old file.
            filename_suffix=f".from-{step}",
            write_to_disk=True,
        )

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl, null for what is not finite, and its numbers to the events."""
        # JSON has no NaN: other readers than Python's would stop at such a line.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._append(METRICS, {"step": step, **finite})
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._events.add_scalar(name, value, step)

    def write_bad_video(self, step: int, video_id: str, reason: str) -> None:
        """Adds one line to bad_videos.jsonl."""
        self._append(BAD_VIDEOS, {"step": step, "video_id": video_id, "reason": reason})

    def sync(self) -> None:
        """Makes the lines written so far visible in the run folder; the very last events may follow later."""
        self._events.flush()
        self._copy()

    def close(self) -> None:
        """Makes everything visible and removes what was temporary."""
        # Events are written in a thread, which only `close` waits for.
        self._events.close()
        self._copy()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _copy(self) -> None:
        if self._temporary is None:
            return
        for path in sorted(self._folder.rglob("*")):
            if path.is_file():
                names = path.relative_to(self._folder).parts
                storage.write_bytes(storage.join(self._run_dir, *names), path.read_bytes())

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


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
