"""Exact frames of a video, and its frame count, size and rotation. No Ray here.

The index of a frame is its place in presentation order among the frames that one full decode from the start
yields; decoding stops at the first packet that cannot be decoded (those before the first key frame are skipped:
the file may begin inside a group of pictures). Of several video streams the first counts (cover pictures do
not). Rotations and mirrorings that the file asks for are applied, to the nearest quarter turn; non-square
pixels are left as they are stored. `carl_ray.data.seeking` reaches distant frames without decoding those before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal, get_args

import av
import av.container
import av.video
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float64, Int64, UInt8

from carl_ray.data.decord_reader import read_with_decord
from carl_ray.data.seeking import WORTH_A_SEEK, frames_by_seeking, read_by_seeking
from carl_ray.data.video_file import (
    COUNT_AGAIN,
    AnySource,
    DecodeError,
    Orientation,
    VideoSource,
    decoded_frames,
    displayed_size,
    one_line,
    open_container,
    open_source,
    packets_of,
    scaled_size,
    video_stream,
    why_nothing_decodes,
)

Decoder = Literal["pyav", "decord"]


@dataclass(frozen=True)
class VideoProbe:
    """Properties of a video."""

    num_frames: int
    """Number of packets that a decode will show, or of decoded frames where `verified`."""
    fps: float | None
    """Frames a second, on average; None for a single frame without a rate."""
    width: int
    """Pixels, after rotation."""
    height: int
    """Pixels, after rotation."""
    rotation: int
    """Degrees counter-clockwise, as the file stores it; frames are returned with it applied."""
    duration: float | None
    """Seconds from the first frame's start to the last one's end, without jumps of the timestamps."""
    codec: str
    """FFmpeg's name of the codec, such as `h264`."""
    verified: bool
    """Every frame was decoded."""
    doubtful: bool
    """The packets determine neither the number of frames nor their times."""
    frame_times: Float64[np.ndarray, " frames"] = field(compare=False)
    """Seconds from the first frame to each; index / `fps` where the file does not say."""
    key_frames: Int64[np.ndarray, " key"] = field(compare=False)
    """Indices of the frames that the file marks as key frames, ascending: by the decoder where `verified`, else by the
    packets."""

    def part(self, start: int, stop: int) -> VideoProbe:
        """Properties of the frames `start` to `stop` - 1, whose times and key frames count from the first of these.

        Raises:
            DecodeError: the video has no such frames.
        """
        if not 0 <= start < stop <= self.num_frames:
            raise DecodeError(f"no such range: frames {start} to {stop - 1} of {self.num_frames}")
        times, keys = self.frame_times[start : stop + 1], self.key_frames
        # The last frame is shown up to the next one, the file's last as long as the others on average.
        end = times[-1] if stop < len(self.frame_times) else self.duration
        return replace(
            self,
            num_frames=stop - start,
            duration=None if end is None else float(end - times[0]),
            frame_times=times[: stop - start] - times[0],
            key_frames=keys[(keys >= start) & (keys < stop)] - start,
        )


def read_frames(
    source: AnySource,
    frame_indices: Sequence[int] | np.ndarray,
    *,
    short_side: int | None = None,
    decoder: Decoder = "pyav",
    num_frames: int | None = None,
) -> UInt8[np.ndarray, "frames height width 3"]:
    """The frames at the given indices, in their order, as RGB uint8.

    Args:
        source: The content of a video file, or its path, URI or address: of a range, frame 0 is its first.
        frame_indices: Places in presentation order, in any order, with repetitions if wanted.
        short_side: The shorter side of the result in pixels, smaller or larger than the video's; the other
            side keeps the proportion, rounded to the nearest whole pixel. None keeps the size.
        decoder: `pyav`, exact on whatever it decodes, or `decord`, see `carl_ray.data.decord_reader`.
        num_frames: How many frames a full decode yields, where that is known (a verified manifest). A file
            with another number of packets is damaged or hides frames, and is decoded from its start.

    Raises:
        DecodeError: the video cannot be opened, or an index lies beyond what decodes.
        ValueError: no index, or a negative one.
        UserError: a remote file is not there; decord is not installed.
        RunError: the store or the disk refuses or fails.
    """
    indices = np.asarray(frame_indices, dtype=np.int64).reshape(-1)
    if len(indices) == 0 or np.min(indices) < 0:
        raise ValueError(
            f"frame_indices must hold at least one index and none below 0, got {indices.tolist()}"
        )
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side must be at least 1, got {short_side}")
    if decoder not in get_args(Decoder):
        raise ValueError(f"decoder must be one of {get_args(Decoder)}, got {decoder!r}")
    video = open_source(source)
    video.check(int(np.max(indices)))
    indices, readable = indices + video.start, video.readable
    if decoder == "decord":
        return read_with_decord(readable, indices, short_side)
    output = _Output(indices, short_side)
    last = output.wanted[-1]
    # From the first frame on there is nothing to seek to, unless the wanted frames lie far apart.
    if last >= len(output.wanted) + WORTH_A_SEEK and read_by_seeking(
        readable, output.wanted, output.put, video.num_file_frames(num_frames)
    ):
        return output.result()
    failure: list[str] = []
    count = 0
    with open_container(readable) as container:
        stream = video_stream(container)
        for frame in decoded_frames(readable, container, stream, failure):
            output.put(count, frame, stream)
            count += 1
            if count > last:
                return output.result()
    raise _too_few(f"frame {last} was asked for, but only {count} frames decode", count, readable, failure)


def iterate_frames(
    source: AnySource,
    num_frames: int,
    *,
    chunk_frames: int,
    frame_stride: int = 1,
    short_side: int | None = None,
    decoder: Decoder = "pyav",
) -> Iterator[UInt8[np.ndarray, "chunk height width 3"]]:
    """Yield the frames of a video in order as RGB uint8, in chunks.

    Args:
        source: As for `read_frames`.
        num_frames: How many frames it has.
        chunk_frames: Frames of a chunk; the last one may have fewer.
        frame_stride: Only every so many frames, from the first.
        short_side: As for `read_frames`.
        decoder: As for `read_frames`; decord opens the file anew for every chunk.

    Raises:
        DecodeError: while iterating: it cannot be opened, or another number of frames decodes.
        ValueError: while iterating: `num_frames`, `chunk_frames` or `frame_stride` is below 1.
        UserError, RunError: as `read_frames`.
    """
    if min(num_frames, chunk_frames, frame_stride) < 1:
        raise ValueError(
            "num_frames, chunk_frames and frame_stride must be at least 1, got "
            f"{num_frames}, {chunk_frames} and {frame_stride}"
        )
    num_taken = math.ceil(num_frames / frame_stride)
    video = open_source(source)
    video.check(num_frames - 1)
    if decoder == "decord":
        for start in range(0, num_taken, chunk_frames):
            indices = frame_stride * np.arange(start, min(start + chunk_frames, num_taken))
            yield read_with_decord(video.readable, video.start + indices, short_side)
        return
    failure: list[str] = []
    count = taken = 0
    output = _Output(np.arange(min(chunk_frames, num_taken)), short_side)
    for frame, stream in _frames_in_order(video, failure):
        if count == num_frames:
            raise DecodeError(f"{num_frames} frames were expected, but more decode; {COUNT_AGAIN}")
        count += 1
        if (count - 1) % frame_stride:
            continue
        output.put(taken % chunk_frames, frame, stream)
        taken += 1
        if taken == num_taken or taken % chunk_frames == 0:
            yield output.result()
            output = _Output(np.arange(min(chunk_frames, num_taken - taken)), short_side)
    if count < num_frames:
        expected = f"{num_frames} frames were expected, but only {count} decode"
        raise _too_few(expected, count, video.readable, failure)


def _frames_in_order(
    video: VideoSource, failure: list[str]
) -> Iterator[tuple[av.VideoFrame, av.video.VideoStream]]:
    """Yield the frames of a video; a range is reached by seeking where that is exact. `failure` as `decoded_frames`."""
    done = video.start
    if video.stop is not None and done >= WORTH_A_SEEK:
        for found in frames_by_seeking(video.readable, done, video.stop, video.file_frames):
            yield found
            done += 1
    if done != video.stop:
        with open_container(video.readable) as container:
            stream = video_stream(container)
            frames = decoded_frames(video.readable, container, stream, failure)
            yield from ((frame, stream) for frame in islice(frames, done, video.stop))


def _too_few(expected: str, count: int, readable: bytes | Path, failure: list[str]) -> DecodeError:
    if count == 0:
        return DecodeError(why_nothing_decodes(readable, failure))
    why = f" (decoding stops there: {failure[0]})" if failure else ""
    return DecodeError(f"{expected}{why}; {COUNT_AGAIN}")


class _Output:
    """Array of the wanted frames in RGB; the first one determines its size."""

    def __init__(self, indices: np.ndarray, short_side: int | None):
        self._places: dict[int, list[int]] = {}
        for place, index in enumerate(indices.tolist()):
            self._places.setdefault(index, []).append(place)
        self.wanted = sorted(self._places)
        self._count = len(indices)
        self._short_side = short_side
        self._reformatter = VideoReformatter()
        self._packer = VideoReformatter()
        self._frames: np.ndarray | None = None
        self._orientation: Orientation | None = None
        self._angle = 0

    def put(self, index: int, frame: av.VideoFrame, stream: av.video.VideoStream) -> None:
        """Store a decoded frame wherever its index is wanted."""
        places = self._places.get(index)
        if places is None:
            return
        # Side data that was read makes a frame part of a reference cycle: hundreds of large pictures would wait
        # for the garbage collector. The angle costs nothing, and tells when to read it again.
        angle = int(frame.rotation)
        if self._orientation is None or angle != self._angle:
            self._orientation, self._angle = Orientation.of(frame), angle
        if self._frames is None:
            width, height = scaled_size(*displayed_size(stream, frame, self._orientation), self._short_side)
            self._frames = np.empty((self._count, height, width, 3), np.uint8)
        height, width = self._frames.shape[1:3]
        if self._orientation.transpose:
            width, height = height, width
        try:
            pixels = self._orientation.apply(self._to_rgb(frame, width, height).to_ndarray())
        except av.FFmpegError as error:
            raise DecodeError(f"a frame could not be converted to RGB ({one_line(error)})") from None
        self._frames[places] = pixels

    def _to_rgb(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        # The task that decodes has one CPU: without `threads` the conversion would start one a core.
        if width % 2 and width < frame.width and height < frame.height:
            # 16:9 and 4:3 have an odd width at a short side of 256. There swscale's packed RGB takes three times as
            # long as planar RGB that is then packed; the values are the same, bit by bit.
            planar = self._reformatter.reformat(frame, width=width, height=height, format="gbrp", threads=1)
            return self._packer.reformat(planar, format="rgb24", threads=1)
        return self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)

    def result(self) -> UInt8[np.ndarray, "frames height width 3"]:
        """The array, once every wanted frame is in it."""
        assert self._frames is not None
        return self._frames


def probe_video(source: AnySource, *, verify: bool | None = None) -> VideoProbe:
    """Properties of a video; always decodes its file's first frame.

    Args:
        source: As for `read_frames`.
        verify: True decodes every frame and counts those; False counts packets, which is wrong for damaged and
            for `doubtful` files, and for the rare ones whose codec hides frames. None decodes doubtful ones.

    Raises:
        DecodeError: nothing decodes; the message says why.
        UserError, RunError: a remote file is not there or cannot be read.
    """
    video = open_source(source)
    readable = video.readable
    with open_container(readable) as container:
        packets = [
            (packet.pts, packet.dts, packet.is_keyframe, packet.is_discard or packet.is_corrupt)
            for packet in packets_of(container, video_stream(container))
        ]
    failure: list[str] = []
    with open_container(readable) as container:
        stream = video_stream(container)
        # A transport stream may be joined of several, and has no pauses.
        longest_pause = float((0 if container.format.name == "mpegts" else 10) / (stream.time_base or 1))
        frames = decoded_frames(readable, container, stream, failure)
        first = next(frames, None)
        if first is None:
            raise DecodeError(why_nothing_decodes(readable, failure))
        # Each field of an interlaced picture may have a packet of its own.
        doubtful = first.interlaced_frame or _are_doubtful(packets, longest_pause)
        verified = doubtful if verify is None else verify
        width, height = displayed_size(stream, first, Orientation.of(first))
        if verified:
            marked = [(frame.pts, frame.key_frame) for frame in chain([first], frames)]
        else:
            in_order = sorted((p for p in packets if p[0] is not None), key=lambda p: p[0] or 0)
            marked = [(pts, is_key) for pts, _, is_key, damaged in in_order]
        timestamps = [pts for pts, _ in marked]
        fps, duration, frame_times = _timing(container, stream, timestamps, longest_pause)
        probe = VideoProbe(
            num_frames=len(timestamps) if verified else len(packets),
            fps=fps,
            width=width,
            height=height,
            rotation=int(first.rotation),
            duration=duration,
            codec=stream.codec_context.name,
            verified=verified,
            doubtful=doubtful,
            frame_times=frame_times,
            key_frames=np.flatnonzero([is_key for _, is_key in marked]),
        )
        return probe if video.stop is None else probe.part(video.start, video.stop)


def _are_doubtful(packets: list[tuple[int | None, int | None, bool, bool]], longest_pause: float) -> bool:
    """Whether other frames than one a packet may decode, or their timestamps jump."""
    if not packets[0][2] or any(pts is None or damaged for pts, _, _, damaged in packets):
        return True
    pts = np.array([pts for pts, *_ in packets], np.int64)
    shown, sent = np.diff(np.sort(pts)), np.diff([dts for _, dts, *_ in packets if dts is not None])
    return bool(
        np.min(pts) < pts[0]  # pictures before the first key frame, which refer to what is not there
        or _jumps(sent, longest_pause).any()
        or (len(shown) and np.min(shown) < 0.6 * np.median(shown))  # twice the same, or fields among frames
    )


def _jumps(steps: np.ndarray, longest_pause: float) -> np.ndarray:
    """Which steps from one timestamp to the next are no time that passes."""
    usual = np.median(steps[steps > 0]) if (steps > 0).any() else 0
    return (steps <= 0) | (steps > max(longest_pause, 10 * usual))


def _timing(
    container: av.container.InputContainer,
    stream: av.video.VideoStream,
    timestamps: Sequence[int | None],
    longest_pause: float,
) -> tuple[float | None, float | None, Float64[np.ndarray, " frames"]]:
    """Frames a second, seconds and time of each frame, from the timestamps without their jumps.

    The container's rate is kept where these agree with it to 5 %: it has 29.97, they are often rounded.
    """
    rate = float(stream.average_rate) if stream.average_rate else None
    even = np.arange(len(timestamps)) / (rate or 1)
    pts = np.array([pts for pts in timestamps if pts is not None], np.float64)
    steps = np.diff(pts)
    if (steps <= 0).sum() > 0.1 * len(steps):
        # AVI has times of decoding alone, which the frames carry in another order.
        steps = np.diff(np.sort(pts))
    if (steps > 0).any() and stream.time_base:
        steps[_jumps(steps, longest_pause)] = np.median(steps[steps > 0])
        measured = float(1 / (steps.mean() * stream.time_base))
        close = (r for r in (rate, float(stream.guessed_rate or 0)) if r and abs(r / measured - 1) <= 0.05)
        fps = next(close, measured)
        if len(pts) < len(timestamps):
            return fps, len(timestamps) / measured, np.arange(len(timestamps)) / fps
        times = np.cumsum([0.0, *steps]) * float(stream.time_base)
        return fps, len(timestamps) / measured, times
    if stream.duration and stream.time_base:
        return rate, float(stream.duration * stream.time_base), even
    return rate, container.duration / av.time_base if container.duration else None, even
