"""Labels that people draw on the page: intervals in one CSV file, saved at every change.

The file has the columns video,start,end,label, as `index --labels` and `propagate --labels` read them. It is read here
as it was written: no interval is moved, joined or left out, and rows of videos that are not embedded stay in it. It is
replaced atomically, so that a crash leaves the last saved state. Each video's labels have a version, a digest, which
tells a page that they were changed elsewhere since it read them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
from jaxtyping import Int32

from carl_ray import storage
from carl_ray.errors import UserError, note
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.intervals import Interval, LabelledVideo, intervals, with_labels

_COLUMNS = ["video", "start", "end", "label"]
_LONGEST_LABEL = 200
_MOST_INTERVALS = 10_000
_FRESH_SECONDS = 1.0
_PAST_SECONDS = 0.1
"""An end this far behind the last frame is the end of the video."""


class ConflictError(UserError):
    """Another page has saved the intervals of a video since they were read."""


class LabelStore:
    """The intervals of videos in a file.

    Args:
        uri: The file, as this class writes it; it need not exist.
        videos: All videos, of which `seconds` must be known to be labelled.
        check: Called before each writing; raises where this process may not write any more. None: it may never.
        start: Intervals by number of the video, where the file does not exist yet.

    Raises:
        UserError: the file is another one.
        RunError: the store refuses or fails.
    """

    def __init__(
        self,
        uri: str,
        videos: Sequence[EmbeddedVideo],
        check: Callable[[], object] | None = None,
        start: Mapping[int, list[Interval]] | None = None,
    ) -> None:
        self.uri = uri
        self._videos = videos
        self._check = check
        self._saving = threading.Lock()
        self._saved = dict(start or {})
        self._others: list[list[str]] = []
        self._read_at = -math.inf
        self._read()

    @property
    def is_writable(self) -> bool:
        """Whether this process may write the file."""
        return self._check is not None

    @property
    def has_others(self) -> bool:
        """Whether the file has rows of videos that are not embedded, or not by this id."""
        return bool(self._others)

    def read(self, number: int) -> tuple[list[Interval], int]:
        """The intervals of a video in order, and their version; 0 where there are none."""
        self._refresh()
        found = self._saved.get(number, [])
        return found, _version(found)

    def save(self, number: int, rows: object, version: int) -> int:
        """Replace the intervals of a video; return the new version, once the file is written.

        Args:
            number: Place of the video.
            rows: What the page sends: a list of objects with start, end (seconds) and label.
            version: Of the intervals that were changed.

        Raises:
            ConflictError: they were changed elsewhere.
            UserError: the rows are no intervals of the video, or this process only reads.
            RunError: the store refuses or fails, or another process has taken over; the intervals stay as they were.
        """
        if self._check is None:
            raise UserError("another process writes these labels: this page only reads")
        checked = self._checked(number, rows)
        # One at a time, also where the page has left: each writes the whole file.
        with self._saving:
            self._read()  # Somebody may have written into the file.
            before, now = self.read(number)
            if checked == before:
                return now
            if version != now:
                raise ConflictError("these labels were changed elsewhere since they were read")
            self._check()
            self._saved[number] = checked
            try:
                storage.write_bytes(self.uri, self.csv())
            except BaseException:
                self._saved[number] = before
                raise
        return _version(checked)

    def csv(self) -> bytes:
        """The content of the file."""
        self._refresh()
        rows = [
            [self._videos[number].video_id, f"{start:.4f}", f"{end:.4f}", label]
            for number, found in sorted(self._saved.items())
            for start, end, label, _ in found
        ]
        return storage.csv_bytes(_COLUMNS, [*rows, *self._others])

    def _refresh(self) -> None:
        """Read what the process that writes has saved since."""
        if self._check is None and time.monotonic() - self._read_at > _FRESH_SECONDS:
            self._read()

    def _read(self) -> None:
        self._read_at = time.monotonic()
        if not storage.exists(self.uri):
            return
        shown = storage.public_uri(self.uri)
        text = storage.read_bytes(self.uri).decode("utf-8-sig", "replace")
        head, *rows = [*csv.reader(io.StringIO(text, newline=""))] or [[]]
        if head != _COLUMNS:
            raise UserError(
                f"{shown}: expected the columns {','.join(_COLUMNS)}, which this page writes, got "
                f"{','.join(head)[:80] or 'nothing'}: name another file by --labels, and join this one by "
                "`index --labels`"
            )
        numbers = {video.video_id: number for number, video in enumerate(self._videos)}
        saved: dict[int, list[Interval]] = {}
        others = []
        for line, row in enumerate(rows, 2):
            try:
                video_id, start, end, label = row
                interval = Interval(float(start), float(end), label, 1.0)
                if not 0 <= interval.start < interval.end < math.inf:
                    raise ValueError
            except ValueError:
                raise UserError(f"{shown}: row {line} is no interval: {','.join(row)[:80]}") from None
            number = numbers.get(video_id)
            if number is None:
                others.append(row)
            else:
                saved.setdefault(number, []).append(interval)
        self._saved = {number: sorted(found) for number, found in saved.items()}
        self._others = others

    def labelled(self, numbers: Sequence[int] | None = None) -> dict[int, EmbeddedVideo]:
        """Videos with intervals, with these as their only labels, by number.

        Args:
            numbers: Of the videos asked for; None: of all.
        """
        self._refresh()
        wanted = self._saved if numbers is None else [n for n in numbers if n in self._saved]
        found = {number: self._saved[number] for number in sorted(wanted)}
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
        # The page shows the last frame for as long as the one before.
        last = max(
            1 / (video.fps or 1), float(video.seconds[-1] - video.seconds[-2]) if len(video) > 1 else 0.0
        )
        length = float(video.seconds[-1]) + last
        found = sorted(_interval(row, length) for row in rows)
        for one, other in itertools.pairwise(found):
            if other.start < one.end:
                raise UserError(
                    f"{one.label!r} to {one.end:.3f} s and {other.label!r} from {other.start:.3f} s overlap"
                )
        return found


def labels_of_another_form(uri: str, videos: Sequence[EmbeddedVideo]) -> dict[int, list[Interval]]:
    """Intervals by number of the video, of a file that `LabelStore` did not write; empty where it did or there is none.

    Args:
        uri: A file as for `index --labels`.
        videos: All videos.

    Raises:
        UserError: the labels do not fit the videos.
        RunError: the store refuses or fails.
    """
    if not storage.exists(uri):
        return {}
    with suppress(UserError):  # One that the page could not read, either.
        own = LabelStore(uri, videos)
        if own.labelled() or not own.has_others:
            return {}
    labelled, notes = with_labels(videos, [uri])
    note("\n".join(notes))
    return {number: found for number, video in enumerate(labelled) if (found := drawn(video))}


def drawn(video: EmbeddedVideo) -> list[Interval]:
    """The labels of the frames of a video as intervals; none where its frame rate is unknown."""
    if video.seconds is None or not len(video):
        return []
    labels = [video.phase_name(phase) or "" for phase in video.phases.tolist()]
    return intervals(LabelledVideo(video, labels, np.ones(len(video))))


def _version(found: Sequence[Interval]) -> int:
    rows = [(f"{start:.4f}", f"{end:.4f}", label) for start, end, label, _ in found]
    # 48 bits: JavaScript's numbers are exact up to 53.
    return int.from_bytes(hashlib.sha256(repr(rows).encode()).digest()[:6], "big") if found else 0


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
    # As the file has them, so that what was saved is equal to what is read.
    return Interval(round(float(start), 4), round(min(float(end), length), 4), text, 1.0)


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
