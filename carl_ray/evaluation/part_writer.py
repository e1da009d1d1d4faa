"""Write what is computed for the videos of a manifest: parts every few minutes, progress, and those that failed.

After any interruption, only missing videos are computed. Those that could not be read are listed in bad_videos.jsonl
beside the parts. No Ray here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from carl_ray import storage
from carl_ray.errors import RunError
from carl_ray.lease import Lease
from carl_ray.progress import ProgressLine
from carl_ray.training.run_log import BAD_VIDEOS, read_log

if TYPE_CHECKING:
    from carl_ray.config import Config

_PART_BYTES = 64 * 2**20
_PART_SECONDS = 300.0


@dataclass
class EmbeddingResult:
    """What a call of `embed_corpus` did."""

    num_present: int
    """Videos whose embeddings existed already."""
    has_test_videos: bool
    """Whether there are videos of the split `test`, which `evaluate` measures on."""
    num_embedded: int = 0
    num_frames: int = 0
    """Frames of the videos embedded now."""
    bad_videos: list[tuple[str, str]] = field(default_factory=list)
    """(video id, reason) of those that could not be embedded."""
    seconds: float = 0.0

    def check(self, num_videos: int, config: Config, verb: str, allows: str = "allows") -> None:
        """Raise RunError where more than `data.max_bad_fraction` of so many videos are bad."""
        most = config.data.max_bad_fraction
        if len(self.bad_videos) > most * num_videos:
            video_id, reason = self.bad_videos[0]
            raise RunError(
                f"{len(self.bad_videos)} of {num_videos} videos could not be {verb}, more than data.max_bad_fraction = "
                f"{most:g} {allows}; {video_id}: {reason}"
            )


def write_rows(
    rows: Generator[tuple[int, list[np.ndarray] | str], None, None],
    videos: pa.Table,
    result: EmbeddingResult,
    writer: PartWriter,
    verb: str = "embedded",
) -> None:
    """Write and count what `extraction.embedded_rows` yields for the videos."""
    bad_before = {line["video_id"]: line["reason"] for line in read_log(writer.folder, BAD_VIDEOS)}
    started = time.monotonic()
    progress = ProgressLine(verb)
    try:
        with closing(rows):
            for done, (index, embedded) in enumerate(rows, 1):
                if isinstance(embedded, str):
                    result.bad_videos.append((videos.column("video_id")[index].as_py(), embedded))
                else:
                    writer.add(videos, index, embedded)
                    result.num_embedded += 1
                    result.num_frames += len(embedded[0])
                frame_rate = result.num_frames / max(time.monotonic() - started, 1e-9)
                progress(done, videos.num_rows, f"{frame_rate:.0f} frames/s")
    finally:
        # Also on errors and interrupts, so that nothing is computed twice.
        writer.flush()
        tried = set(videos.column("video_id").to_pylist())
        _write_bad_videos(writer.folder, bad_before, tried, result.bad_videos)
    result.seconds += time.monotonic() - started


class PartWriter:
    """Buffers videos and writes a part by size or age.

    Args:
        folder: URI.
        lease: Checked before each part.
        write: Writes a part with videos: each its table of videos, its index in it, and its arrays.
        seconds: Age at which a part is written.
    """

    def __init__(
        self,
        folder: str,
        lease: Lease,
        write: Callable[[list[tuple[pa.Table, int, list[np.ndarray]]]], None],
        seconds: float = _PART_SECONDS,
    ) -> None:
        self.folder = folder
        self._lease, self._write, self._seconds = lease, write, seconds
        self._videos: list[tuple[pa.Table, int, list[np.ndarray]]] = []
        self._bytes = 0
        self._written = time.monotonic()

    def add(self, videos: pa.Table, index: int, arrays: list[np.ndarray]) -> None:
        """Take the arrays of a video; write a part if it is time."""
        self._videos.append((videos, index, arrays))
        self._bytes += sum(array.nbytes for array in arrays)
        if self._bytes >= _PART_BYTES or time.monotonic() - self._written >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write a part with the videos taken since the last one."""
        if self._videos:
            self._lease.check()
            self._write(self._videos)
        self._videos, self._bytes, self._written = [], 0, time.monotonic()


def _write_bad_videos(
    out: str, before: dict[str, str], tried: set[str], bad_videos: Sequence[tuple[str, str]]
) -> None:
    """Write the bad videos, keeping those of earlier calls not tried again."""
    bad = {video_id: reason for video_id, reason in before.items() if video_id not in tried}
    bad |= dict(bad_videos)
    if bad or before:
        lines = [json.dumps({"video_id": video_id, "reason": reason}) for video_id, reason in bad.items()]
        storage.write_bytes(storage.join(out, BAD_VIDEOS), "".join(f"{line}\n" for line in lines).encode())
