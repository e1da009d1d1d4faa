"""Cut time ranges out of long videos, without Ray.

A range [start, end) is in seconds from the first frame of the video. Frame k of the cut shows what was on the
screen of the video at start + k / rate, for all k with start + k / rate < end: the last frame that had begun
by then. Times are exact fractions, from the timestamps of the frames and not from their number, so that
variable frame rates, gaps and rounding move nothing. Where the rate is the video's own and `start` is the
time of a frame, the cut has exactly the frames of the range.

The cut is H.264 in MP4, yuv420p, with B-frames, a constant frame rate and a key frame at least every two
seconds. The rotation that a file asks for is applied; sides are rounded to even numbers of pixels; non-square
pixels are left as they are stored, and sound is left out.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import av.container
import av.video
import av.video.reformatter
import numpy as np

from carl_ray import storage
from carl_ray.data.child import BadVideoError, Child, KilledError, Values, open_channel
from carl_ray.data.decode import DecodeError, probe_video, read_frames
from carl_ray.datasets.h264 import encode_h264

# Decoding starts this long before a range: frames that lead a key frame may need those before it.
_SETTLING_SECONDS = 1

# Timeout of one cut: a constant part, which includes decoding a whole competition if the file is not seekable,
# and seconds per second of the cut.
_PATIENCE = 7200
_SECONDS_PER_SECOND = 60


@dataclass(frozen=True)
class Cut:
    """A time range of a video, and the file for it."""

    source: Path
    target: Path
    """An MP4 file."""
    start: Fraction
    """Seconds from the first frame of the video."""
    end: Fraction
    """Seconds, exclusive."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(
                f"expected 0 <= start < end, got [{float(self.start):g}, {float(self.end):g}) seconds"
            )


@dataclass(frozen=True)
class CutResult:
    """The number of frames of a cut, or the reason why there is none."""

    num_frames: int = 0
    reason: str | None = None


def num_frames_between(start: Fraction, end: Fraction, frame_rate: int) -> int:
    """Number of frames of a cut, if the video is long enough."""
    return max(0, math.ceil((end - start) * frame_rate))


def cut_video(
    source: Path, start: Fraction, end: Fraction, *, frame_rate: int, short_side: int
) -> tuple[bytes, int]:
    """Cut a time range: the content of an MP4 file, and its number of frames.

    There are fewer than `num_frames_between` if the video ends within the range.

    Args:
        source: A local video file. Of several video streams the first counts.
        start: Seconds from the first frame of the video.
        end: Seconds, exclusive.
        frame_rate: Frames a second of the cut.
        short_side: The shorter side of the cut in pixels; a smaller video keeps its size.

    Raises:
        DecodeError: the video cannot be opened, is damaged within the range or ends before it.
    """
    read_frames(str(source), [0], short_side=16)  # raises with a readable reason if nothing decodes
    frames = _on_screen(_frames_around(source, start), start, end, frame_rate)
    options = {"preset": "fast", "crf": "18", "x264-params": "mbtree=0", "g": str(2 * frame_rate)}
    try:
        first = next(frames, None)
        if first is None:
            raise DecodeError("the video ends before the range begins")
        turns = round(first.rotation / 90) % 4
        scale = min(Fraction(1), Fraction(short_side, min(first.width, first.height)))
        width, height = (max(2, 2 * round(side * scale / 2)) for side in (first.width, first.height))
        converted = _converted(chain([first], frames), width, height, turns)
        return encode_h264(converted, frame_rate, options)
    except (av.FFmpegError, OSError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DecodeError(f"damaged within the range ({reason})") from None


def _video_stream(container: av.container.InputContainer) -> av.video.VideoStream:
    """The stream that `read_frames` reads."""
    return next(
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    )


def _frames_around(source: Path, start: Fraction) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Yield decoded frames with the times at which they begin; the first begins at or before `start`."""
    if start > _SETTLING_SECONDS:
        frames = _decoded(source, start - _SETTLING_SECONDS)
        first = None
        with suppress(av.FFmpegError):  # a file that cannot be searched
            first = next(frames, None)
        if first is not None and first[0] <= start:
            return chain([first], frames)
        frames.close()
    return _decoded(source, None)


def _decoded(source: Path, seek_to: Fraction | None) -> Generator[tuple[Fraction, av.VideoFrame], None, None]:
    with av.open(str(source), "r") as container:
        stream = _video_stream(container)
        stream.codec_context.thread_count = 1  # there is one process a core
        time_base = Fraction(stream.time_base or 1)
        # AVI stores no presentation times; what FFmpeg guesses of them runs back and forth with B-frames.
        clock = "dts" if container.format.name == "avi" else "pts"
        frames = container.decode(stream)
        first = next(frames)
        origin = getattr(first, clock)
        if origin is None:
            raise DecodeError("its frames have no timestamps")
        if seek_to is None:
            frames = chain([first], frames)
        else:
            container.seek(origin + math.floor(seek_to / time_base), stream=stream)
            frames = container.decode(stream)
        last = None
        for frame in frames:
            now = getattr(frame, clock)
            if now is not None and (last is None or now > last):
                last = now
                yield (now - origin) * time_base, frame


def _on_screen(
    frames: Iterator[tuple[Fraction, av.VideoFrame]], start: Fraction, end: Fraction, frame_rate: int
) -> Iterator[av.VideoFrame]:
    """Yield the frame shown at each start + k / frame_rate before `end` and before the video's end."""
    wanted = num_frames_between(start, end, frame_rate)
    done = 0
    shown, begun, over = None, Fraction(0), Fraction(0)
    for time, frame in frames:
        while shown is not None and done < wanted and start + Fraction(done, frame_rate) < time:
            yield shown
            done += 1
        if done == wanted:
            return
        duration = frame.duration * Fraction(frame.time_base or 1) if frame.duration else time - begun
        shown, begun, over = frame, time, time + duration
    while shown is not None and done < wanted and start + Fraction(done, frame_rate) < over:
        yield shown
        done += 1


def _converted(
    frames: Iterator[av.VideoFrame], width: int, height: int, turns: int
) -> Iterator[av.VideoFrame]:
    """Scale frames and rotate them by quarter turns; an object that comes again gives the same object again."""
    shown = converted = None
    for frame in frames:
        if converted is None or frame is not shown:
            shown = turned = frame
            if turns:
                pixels: Any = np.rot90(frame.to_ndarray(format="rgb24"), turns)
                turned = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            # Phones write full-range pixels; a reader takes yuv420p for limited range unless told otherwise.
            converted = turned.reformat(
                width=height if turns % 2 else width,
                height=width if turns % 2 else height,
                format="yuv420p",
                dst_color_range=av.video.reformatter.ColorRange.MPEG,
                threads=1,
            )
        yield converted


# Many cuts, in child processes


def cut_all(
    cuts: Sequence[Cut], *, frame_rate: int, short_side: int, num_processes: int | None = None
) -> Iterator[tuple[Cut, CutResult]]:
    """Cut many ranges in child processes; yield the results as they are done, in no particular order.

    A target that exists and opens is finished: its frames are counted, nothing is cut. Targets are written
    atomically. A decoder that crashes or hangs costs its process and one cut.

    Args:
        cuts: With different targets.
        frame_rate: As for `cut_video`.
        short_side: As for `cut_video`.
        num_processes: None: one a core.

    Raises:
        RunError: a target cannot be written.
    """
    of_thread = threading.local()
    children: list[Child] = []

    def run(cut: Cut) -> CutResult:
        if not hasattr(of_thread, "child"):
            of_thread.child = Child(_CODE, quiet=True)
            children.append(of_thread.child)
        return _result(of_thread.child, cut, frame_rate=frame_rate, short_side=short_side)

    with ThreadPoolExecutor(num_processes or os.cpu_count() or 1) as threads:
        running = {threads.submit(run, cut): cut for cut in cuts}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            for future in running:
                future.cancel()
            while wait(running, timeout=0.1).not_done:
                for child in children:
                    child.interrupt()
            for child in children:
                child.close()


_CODE = "from carl_ray.datasets.cutting import answer_cuts; answer_cuts()"


def _result(child: Child, cut: Cut, **settings: int) -> CutResult:
    arguments = {"target": str(cut.target), "start": str(cut.start), "end": str(cut.end), **settings}
    seconds = _PATIENCE + math.ceil((cut.end - cut.start) * _SECONDS_PER_SECOND)
    try:
        (answer,) = child.ask(str(cut.source), arguments, {"num_frames": int}, seconds=seconds)
    except (BadVideoError, KilledError) as error:
        return CutResult(reason=str(error))
    return CutResult(**answer)


def answer_cuts() -> None:
    """Body of a child process that cuts."""
    open_channel("cutting")(_cut)


def _cut(source: str, target: str, start: str, end: str, frame_rate: int, short_side: int) -> Values:
    if Path(target).exists():
        with suppress(DecodeError):  # not one of ours: cut it anew
            yield {"num_frames": probe_video(target).num_frames}
            return
    content, num_frames = cut_video(
        Path(source), Fraction(start), Fraction(end), frame_rate=frame_rate, short_side=short_side
    )
    storage.write_bytes(target, content)
    yield {"num_frames": num_frames}
