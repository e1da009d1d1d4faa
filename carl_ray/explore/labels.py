"""Labels that people draw on the page: intervals in one CSV file, saved at every change.

The file has the columns video,start,end,label, as `index --labels` and `propagate --labels` read them. It is replaced
atomically, so that a crash leaves the last saved state. Each video has a version, which tells a page that another one
has saved since it read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int32

from carl_ray import storage
from carl_ray.errors import UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.intervals import Interval, LabelledVideo, intervals, with_labels

_LONGEST_LABEL = 200
_MOST_INTERVALS = 10_000
_PAST_SECONDS = 0.1
"""An end this far behind the last frame is the end of the video."""


class ConflictError(UserError):
    """Another page has saved the intervals of a video since they were read."""


@dataclass
class _Saved:
    intervals: list[Interval]
    version: int


class LabelStore:
    """The intervals of videos in a file.

    Args:
        uri: The file; labels in any other form that `index --labels` reads are taken over at the first change.
        videos: All videos, of which `seconds` must be known to be labelled.

    Raises:
        UserError: the file does not fit the videos.
        RunError: the store refuses or fails.
    """

    def __init__(self, uri: str, videos: Sequence[EmbeddedVideo]) -> None:
        self.uri = uri
        self._videos = videos
        self._saved: dict[int, _Saved] = {}
        if storage.exists(uri):
            for number, video in enumerate(with_labels(videos, [uri])[0]):
                if found := drawn(video):
                    self._saved[number] = _Saved(found, 1)

    def read(self, number: int) -> tuple[list[Interval], int]:
        """The intervals of a video in order, and their version; 0 where none were ever saved."""
        saved = self._saved.get(number, _Saved([], 0))
        return saved.intervals, saved.version

    def save(self, number: int, rows: object, version: int) -> int:
        """Replace the intervals of a video; return the new version, once the file is written.

        Args:
            number: Place of the video.
            rows: What the page sends: a list of objects with start, end (seconds) and label.
            version: Of the intervals that were changed.

        Raises:
            ConflictError: there is a newer version.
            UserError: the rows are no intervals of the video.
            RunError: the store refuses or fails; the intervals stay as they were.
        """
        now = self.read(number)[1]
        if version != now:
            raise ConflictError(
                f"expected version {now} of these labels, got {version}: they were saved elsewhere"
            )
        before, checked = self._saved.get(number), self._checked(number, rows)
        self._saved[number] = _Saved(checked, now + 1)
        try:
            storage.write_bytes(self.uri, self.csv())
        except BaseException:
            if before is None:
                del self._saved[number]
            else:
                self._saved[number] = before
            raise
        return now + 1

    def csv(self) -> bytes:
        """The content of the file."""
        rows = [
            (self._videos[number].video_id, f"{start:.4f}", f"{end:.4f}", label)
            for number, saved in sorted(self._saved.items())
            for start, end, label, _ in saved.intervals
        ]
        return storage.csv_bytes(["video", "start", "end", "label"], rows)

    def labelled(self, numbers: Sequence[int] | None = None) -> dict[int, EmbeddedVideo]:
        """Videos with intervals, with these as their only labels, by number.

        Args:
            numbers: Of the videos asked for; None: of all.
        """
        wanted = self._saved if numbers is None else [n for n in numbers if n in self._saved]
        found = {number: self._saved[number].intervals for number in sorted(wanted)}
        return {
            number: _with_intervals(self._videos[number], spans) for number, spans in found.items() if spans
        }

    def _checked(self, number: int, rows: object) -> list[Interval]:
        video = self._videos[number]
        if video.seconds is None or not len(video):
            raise UserError(
                f"{video.video_id!r}: its frame rate is unknown; name frames in a file of labels instead"
            )
        if not isinstance(rows, list) or len(rows) > _MOST_INTERVALS:
            raise UserError(f"expected a list of at most {_MOST_INTERVALS:,} intervals")
        length = float(video.seconds[-1]) + 1 / (video.fps or 1)
        found = sorted(_interval(row, length) for row in rows)
        for one, other in itertools.pairwise(found):
            if other.start < one.end:
                raise UserError(
                    f"{one.label!r} to {one.end:.3f} s and {other.label!r} from {other.start:.3f} s overlap"
                )
        return found


def drawn(video: EmbeddedVideo) -> list[Interval]:
    """The labels of the frames of a video as intervals; none where its frame rate is unknown."""
    if video.seconds is None or not len(video):
        return []
    labels = [video.phase_name(phase) or "" for phase in video.phases.tolist()]
    return intervals(LabelledVideo(video, labels, np.ones(len(video))))


def _interval(row: object, length: float) -> Interval:
    """A checked interval of a video of so many seconds."""
    if not isinstance(row, Mapping) or not {"start", "end", "label"} <= row.keys():
        raise UserError("expected intervals with start, end and label")
    start, end, label = row["start"], row["end"], row["label"]
    is_time = all(type(value) in (int, float) and math.isfinite(value) for value in (start, end))
    if not is_time or not 0 <= start < end <= length + _PAST_SECONDS:
        raise UserError(f"expected 0 <= start < end <= {length:.3f} seconds, got {start!r} and {end!r}")
    if not isinstance(label, str) or not (text := " ".join(label.split())) or len(text) > _LONGEST_LABEL:
        raise UserError(f"expected a label of 1 to {_LONGEST_LABEL} characters, got {str(label)[:40]!r}")
    return Interval(float(start), min(float(end), length), text, 1.0)


def _with_intervals(video: EmbeddedVideo, spans: Sequence[Interval]) -> EmbeddedVideo:
    """The video with these labels; a frame has that of the interval that holds the middle of its time."""
    assert video.seconds is not None
    starts = np.append(video.seconds, video.seconds[-1] + 1 / (video.fps or 1))
    middles = (starts[:-1] + starts[1:]) / 2
    names = list(dict.fromkeys(span.label for span in spans))
    phases: Int32[np.ndarray, " frames"] = np.full(len(video), -1, np.int32)
    for span in spans:
        first, last = np.searchsorted(middles, [span.start, span.end])
        phases[first:last] = names.index(span.label)
    return replace(video, frame_labels=phases, phase_names=names)
