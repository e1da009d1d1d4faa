"""Spans of frames that the rows of a file of labels name; nothing else of a manifest is needed here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from carl_ray.data.label_files import LabelRow, seconds

_PAST_SECONDS = 0.1
"""A time this far behind the last frame is the end of the video: its sound is often a little longer."""


class Clock:
    """Frames of a video by number and by seconds."""

    def __init__(self, num_frames: int, fps: float | None, frame_times: list[float] | None) -> None:
        self.num_frames = num_frames
        last = 1 / (fps or 1)
        starts = [*frame_times, frame_times[-1] + last] if frame_times else np.arange(num_frames + 1) * last
        self._middles = (np.array(starts[:-1]) + starts[1:]) / 2
        self._end = float(starts[-1]) if fps else None

    def boundary(self, text: str, column: str) -> int:
        """Number of the first frame whose middle is not before a time, or the number of a frame.

        From 0 to `num_frames`; `ValueError` says what is wrong with the text.
        """
        is_frame = "frame" in column
        if not text:
            raise ValueError(f"no {column}")
        try:
            value = _whole(text) if is_frame else seconds(text)
        except ValueError:
            value = np.nan
        if not value >= 0:
            remedy = "; export hh:mm:ss.ms or seconds, not SMPTE" if text.count(":") > 2 else ""
            expected = "a frame, from 0 on" if is_frame else f"seconds{remedy}"
            raise ValueError(f"{column} {text!r}: expected {expected}")
        if is_frame:
            if value > (last := self.num_frames - 1) + (column == "end_frame"):
                raise ValueError(f"{column} {text} is past the end: the frames are 0 to {last}")
            return int(value)
        if self._end is None:
            raise ValueError("the frame rate of the video is unknown: name frames")
        if value > self._end + _PAST_SECONDS:
            raise ValueError(f"{column} {text} is past the end of the video, {self._end:.3f} s")
        return int(np.searchsorted(self._middles, value))


def _whole(text: str) -> int:
    """A number such as `9` or `9.0`; `ValueError` otherwise."""
    if not (value := float(text)).is_integer():
        raise ValueError(f"{text}: no whole number")
    return int(value)


def is_inclusive(videos: Iterable[tuple[int, list[LabelRow]]]) -> bool:
    """Whether `end_frame` is the last frame of its interval, in videos with their numbers of frames.

    So it is where an interval begins one frame after another's, and none where another's ends or behind the last frame.
    """
    touching = following = False
    for num_frames, rows in videos:
        try:
            ends = sorted((_whole(row.cells["start_frame"]), _whole(row.cells["end_frame"])) for row in rows)
        except ValueError:
            continue
        touching |= ends[-1][1] == num_frames
        following |= any(start == end for start, end in ends)
        for (_, end), (start, _) in pairwise(ends):
            touching |= end == start
            following |= end + 1 == start
    return following and not touching


def spans(
    form: str, rows: list[LabelRow], clock: Clock, to_last: bool, problems: list[str]
) -> Iterator[tuple[int, int, str, LabelRow]]:
    """First frame, frame after the last, phase and row of all labelled spans of a video.

    Args:
        form: Of the file.
        rows: About this video, at least one.
        clock: The video's.
        to_last: `end_frame` is the last frame of its interval.
        problems: Gets a line for each row that does not fit.
    """
    columns = ("start", "end", "start_frame", "end_frame", "time", "frame")
    times = [column for column in columns if column in rows[0].cells]
    kind = "event" if form == "events" else "label"
    events: list[tuple[int, LabelRow]] = []
    for row in rows:
        phase = row.cells[kind]
        try:
            start, *ends = (clock.boundary(row.cells[column], column) for column in times)
            if form == "frames":
                if phase not in ("", "-1"):
                    start = min(start, clock.num_frames - 1)
                    yield start, start + 1, phase, row
            elif not phase:
                raise ValueError(f"no {kind}")
            elif form == "events":
                events.append((start, row))
            elif (end := ends[0] + to_last) > start:
                if phase != "-1":
                    yield start, end, phase, row
            else:
                what = "ends before it starts" if ends[0] < start else "holds the middle of no frame"
                raise ValueError(f"{phase!r} {what} ({' to '.join(row.cells[column] for column in times)})")
        except ValueError as error:
            problems.append(f"{row.place}: {error}")
    events.sort(key=lambda event: event[0])
    if len(events) == 1:
        problems.append(f"{events[0][1].place}: the only event of its video: a phase lies between two")
    for (start, row), (end, after) in pairwise(events):
        if start == end:
            problems.append(f"{after.place}: no frame lies between this event and that of {row.place}")
        yield start, end, f"{row.cells['event']} to {after.cells['event']}", row
