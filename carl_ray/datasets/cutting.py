"""Time ranges of long videos as video files of their own. No Ray here.

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

import io
import math
import os
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import av.container
import av.video
import av.video.reformatter
import numpy as np

from carl_ray import storage
from carl_ray.data.child import BadVideoError, Child, KilledError, Values, open_channel
from carl_ray.data.decode import DecodeError, probe_video, read_frames

# Decoding starts this long before a range: pictures that lead a key frame may need those before it.
_SETTLING_SECONDS = 1

# Seconds for one cut besides what grows with it; more is a hang. Decoding a whole competition may be part of
# it, where a file cannot be searched.
_PATIENCE = 7200
_SECONDS_PER_SECOND = 60


@dataclass(frozen=True)
class Cut:
    """A time range of a video and where it goes."""

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
    """What became of a cut: its number of frames, or the reason why there is none."""

    num_frames: int = 0
    reason: str | None = None


def num_frames_between(start: Fraction, end: Fraction, frame_rate: int) -> int:
    """How many frames a cut has, if the video is long enough."""
    return max(0, math.ceil((end - start) * frame_rate))


def cut_video(
    source: Path, start: Fraction, end: Fraction, *, frame_rate: int, short_side: int
) -> tuple[bytes, int]:
    """The content of an MP4 file with the frames of a time range, and how many they are.

    Fewer than `num_frames_between` where the video ends within the range.

    Args:
        source: A local video file. Of several video streams the first counts.
        start: Seconds from the first frame of the video.
        end: Seconds, exclusive.
        frame_rate: Frames a second of the cut.
        short_side: The shorter side of the cut in pixels; a smaller video keeps its size.

    Raises:
        DecodeError: the video cannot be opened, is damaged within the range or ends before it.
    """
    read_frames(str(source), [0], short_side=16)  # says in plain words why a file is none that decodes
    encoder: _Encoder | None = None
    try:
        for frame in _on_screen(_frames_around(source, start), start, end, frame_rate):
            if encoder is None:
                encoder = _Encoder(frame, frame_rate, short_side)
            encoder.add(frame)
    except (av.FFmpegError, OSError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DecodeError(f"damaged within the range ({reason})") from None
    if encoder is None:
        raise DecodeError("the video ends before the range begins")
    return encoder.finish(), encoder.num_frames


def _video_stream(container: av.container.InputContainer) -> av.video.VideoStream:
    """The stream that `read_frames` reads."""
    return next(
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    )


def _frames_around(source: Path, start: Fraction) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Decoded frames with the times at which they begin; the first begins at or before `start`."""
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
    with av.open(str(source)) as container:
        stream = _video_stream(container)
        stream.codec_context.thread_count = 1  # there is one process a core
        time_base = Fraction(stream.time_base)
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
    """The frame on the screen at each start + k / frame_rate before `end` and before the video's end."""
    wanted = num_frames_between(start, end, frame_rate)
    done = 0
    shown, begun, over = None, Fraction(0), Fraction(0)
    for time, frame in frames:
        while shown is not None and done < wanted and start + Fraction(done, frame_rate) < time:
            yield shown
            done += 1
        if done == wanted:
            return
        duration = frame.duration * Fraction(frame.time_base) if frame.duration else time - begun
        shown, begun, over = frame, time, time + duration
    while shown is not None and done < wanted and start + Fraction(done, frame_rate) < over:
        yield shown
        done += 1


class _Encoder:
    """An MP4 file in memory, of the size and orientation of the first frame."""

    def __init__(self, first: av.VideoFrame, frame_rate: int, short_side: int) -> None:
        self.num_frames = 0
        self._quarter_turns = round(first.rotation / 90) % 4
        scale = min(Fraction(1), Fraction(short_side, min(first.width, first.height)))
        width, height = (max(2, 2 * round(side * scale / 2)) for side in (first.width, first.height))
        if self._quarter_turns % 2:
            width, height = height, width
        self._width, self._height = width, height
        self._last: tuple[av.VideoFrame, av.VideoFrame] | None = None
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        # Without the macroblock tree, which reads memory that nobody has written: equal frames give equal
        # bytes. So does one thread, whose number would otherwise follow the machine.
        options = {"preset": "fast", "crf": "18", "x264-params": "mbtree=0", "g": str(2 * frame_rate)}
        self._stream = self._container.add_stream("libx264", rate=frame_rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.thread_count = 1
        if not self._quarter_turns:
            # Kept, for the pixels keep their colour space; without it a reader would guess another one.
            self._stream.codec_context.colorspace = first.colorspace
            self._stream.codec_context.color_primaries = first.color_primaries
            self._stream.codec_context.color_trc = first.color_trc
        self._time_base = Fraction(1, frame_rate)

    def add(self, frame: av.VideoFrame) -> None:
        """Appends a frame; the same one may come several times in a row."""
        if self._last is None or self._last[0] is not frame:
            self._last = frame, self._converted(frame)
        converted = self._last[1]
        converted.pts, converted.time_base = self.num_frames, self._time_base
        converted.pict_type = av.video.frame.PictureType.NONE  # the encoder decides, not the source
        self._container.mux(self._stream.encode(converted))
        self.num_frames += 1

    def _converted(self, frame: av.VideoFrame) -> av.VideoFrame:
        if self._quarter_turns:
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), self._quarter_turns)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        # Phones write full-range pixels; a reader takes yuv420p for limited range unless told otherwise.
        limited = av.video.reformatter.ColorRange.MPEG
        return frame.reformat(
            width=self._width, height=self._height, format="yuv420p", dst_color_range=limited, threads=1
        )

    def finish(self) -> bytes:
        """The content of the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._buffer.getvalue()


# Many cuts, in processes of their own


def cut_all(
    cuts: Sequence[Cut], *, frame_rate: int, short_side: int, num_processes: int | None = None
) -> Iterator[tuple[Cut, CutResult]]:
    """Cuts with their outcomes, as they are done, in no particular order.

    A target that is there already and opens is finished: its frames are counted, nothing is cut. Targets
    appear whole or not at all. A decoder that crashes or hangs takes its process with it and not the others.

    Args:
        cuts: With different targets.
        frame_rate: As for `cut_video`.
        short_side: As for `cut_video`.
        num_processes: None stands for one a core.

    Raises:
        RunError: a target cannot be written.
    """
    by_source: dict[Path, list[Cut]] = {}
    for cut in cuts:
        by_source.setdefault(cut.source, []).append(cut)
    # The longest first, lest one process be busy with it alone at the end.
    groups = sorted(by_source.values(), key=len, reverse=True)
    answers: queue.SimpleQueue[tuple[Cut, CutResult] | Exception] = queue.SimpleQueue()
    children: set[Child] = set()
    stopped = threading.Event()

    def run(group: Sequence[Cut]) -> None:
        """Has a process of this thread do some cuts."""
        with closing(Child(_CODE, quiet=True)) as child:
            children.add(child)
            for cut in group:
                if stopped.is_set():
                    return
                try:
                    answers.put((cut, _outcome(child, cut, frame_rate=frame_rate, short_side=short_side)))
                except Exception as error:  # for the thread that waits for the answers
                    answers.put(error)
                    return

    with ThreadPoolExecutor(min(num_processes or os.cpu_count() or 1, max(1, len(groups)))) as threads:
        try:
            running = [threads.submit(run, group) for group in groups]
            for _ in cuts:
                answer = answers.get()
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        finally:
            stopped.set()
            while wait(running, timeout=0.1).not_done:
                for child in list(children):
                    child.interrupt()


_CODE = "from carl_ray.datasets.cutting import answer_cuts; answer_cuts()"


def _outcome(child: Child, cut: Cut, **settings: int) -> CutResult:
    arguments = {"target": str(cut.target), "start": str(cut.start), "end": str(cut.end), **settings}
    seconds = _PATIENCE + math.ceil((cut.end - cut.start) * _SECONDS_PER_SECOND)
    try:
        (answer,) = child.ask(str(cut.source), arguments, {"num_frames": int}, seconds=seconds)
    except (BadVideoError, KilledError) as error:
        return CutResult(reason=str(error))
    return CutResult(**answer)


def answer_cuts() -> None:
    """Body of a process that cuts."""
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
