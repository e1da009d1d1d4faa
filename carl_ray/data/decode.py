"""Exact frames of a video, and what a video is: frame count, size, rotation. No Ray here.

The index of a frame is its place in presentation order among the frames that one full decode from the start
yields; decoding stops at the first packet that cannot be decoded (those before the first key frame are skipped:
the file may begin inside a group of pictures). Of several video streams the first counts (cover pictures do
not). Rotations and mirrorings that the file asks for are applied, to the nearest quarter turn; non-square
pixels are left as they are stored.

How the wanted frames are reached fast and still exactly: one pass over the packets, without decoding,
collects their timestamps. Where these are complete, unique and in step with the codec (H.264, H.265),
decoding starts at the last key frame before the first wanted frame, and every frame that comes out must carry
the next expected timestamp. At any doubt (edit lists, hidden frames, damaged packets, key frames that are
none) the file is decoded from its start. One thing only a full decode can notice: damage before that key
frame which makes frames vanish; the `num_frames` of a verified manifest guards against it.
"""

from __future__ import annotations

import errno
import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
import av.container
import av.packet
import av.video
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from pyarrow import fs

from carl_ray import storage
from carl_ray.errors import UserError

Decoder = Literal["pyav", "decord"]

# Decoding on is cheaper than seeking when the next wanted frame is fewer frames past the last one than this.
_WORTH_A_SEEK = 16

# Of these no video is to blame. FFmpeg has EIO for damage, too.
_NOT_THE_VIDEOS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)
_CHUNK = 8 << 20  # bytes
_COUNT_AGAIN = "`carl_ray.index … --verify` counts the frames that decode"


class DecodeError(Exception):
    """A video that cannot be opened or has no such frame; the message is one line."""


@dataclass(frozen=True)
class VideoProbe:
    """What a video is."""

    num_frames: int
    """Frames: of packets that a decode will show, or really decoded ones where that was asked for."""
    fps: float | None
    """Frames a second, on average; none for a single frame without a rate."""
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
    """The packets do not tell how many frames there are, nor when."""


def read_frames(
    source: bytes | str,
    frame_indices: Sequence[int] | np.ndarray,
    *,
    short_side: int | None = None,
    decoder: Decoder = "pyav",
    num_frames: int | None = None,
) -> UInt8[np.ndarray, "frames height width 3"]:
    """The frames at the given indices, in their order, as RGB uint8.

    Args:
        source: The content of a video file, or its path or URI.
        frame_indices: Places in presentation order, in any order, with repetitions if wanted.
        short_side: The shorter side of the result in pixels, smaller or larger than the video's; the other
            side keeps the proportion, rounded to the nearest whole pixel. None keeps the size.
        decoder: `pyav`, exact on whatever it decodes, or `decord`. decord 0.6 returns wrong frames without an
            error on files with edit lists or hidden frames and on transport streams, picks FFmpeg's best
            stream rather than the first, reads no AV1, fails where the result is under 64 pixels wide, and
            may hang.
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
    readable = _readable(source)
    match decoder:
        case "pyav":
            try:
                return _read_with_pyav(readable, indices, short_side, num_frames)
            except av.FFmpegError as error:
                raise DecodeError(f"a frame could not be converted to RGB ({_reason(error)})") from None
        case "decord":
            return _read_with_decord(readable, indices, short_side)
        case _:
            raise ValueError(f'decoder must be "pyav" or "decord", got {decoder!r}')


def iterate_frames(
    source: bytes | str,
    num_frames: int,
    *,
    chunk_frames: int,
    short_side: int | None = None,
    decoder: Decoder = "pyav",
) -> Iterator[UInt8[np.ndarray, "chunk height width 3"]]:
    """All frames of a video, in order, as RGB uint8, some at a time: a video of any length in bounded memory.

    Args:
        source: The content of a video file, or its path or URI.
        num_frames: How many frames it has.
        chunk_frames: Frames of a chunk; the last one may have fewer.
        short_side: As for `read_frames`.
        decoder: As for `read_frames`; decord opens the file anew for every chunk.

    Raises:
        DecodeError: while iterating: it cannot be opened, or another number of frames decodes.
        ValueError: while iterating: `num_frames` or `chunk_frames` is below 1.
        UserError, RunError: as `read_frames`.
    """
    if min(num_frames, chunk_frames) < 1:
        raise ValueError(
            f"num_frames and chunk_frames must be at least 1, got {num_frames} and {chunk_frames}"
        )
    readable = _readable(source)
    if decoder == "decord":
        for start in range(0, num_frames, chunk_frames):
            indices = np.arange(start, min(start + chunk_frames, num_frames))
            yield _read_with_decord(readable, indices, short_side)
        return
    failure: list[str] = []
    count = 0
    output = _Output(np.arange(min(chunk_frames, num_frames)), short_side)
    try:
        with _open(readable) as container:
            stream = _video_stream(container)
            for frame in _decoded(readable, container, stream, failure):
                if count == num_frames:
                    raise DecodeError(f"{num_frames} frames were expected, but more decode; {_COUNT_AGAIN}")
                output.put(count % chunk_frames, frame, stream)
                count += 1
                if count == num_frames or count % chunk_frames == 0:
                    yield output.result()
                    output = _Output(np.arange(min(chunk_frames, num_frames - count)), short_side)
    except av.FFmpegError as error:
        raise DecodeError(f"a frame could not be converted to RGB ({_reason(error)})") from None
    if count == num_frames:
        return
    if count == 0:
        raise DecodeError(_why_nothing_decodes(readable, failure))
    why = f" (decoding stops there: {failure[0]})" if failure else ""
    raise DecodeError(f"{num_frames} frames were expected, but only {count} decode{why}; {_COUNT_AGAIN}")


def probe_video(source: bytes | str, *, verify: bool | None = None) -> VideoProbe:
    """What a video is; its first frame is always decoded, so that an unreadable video is never let through.

    Args:
        source: The content of a video file, or its path or URI.
        verify: True decodes every frame and counts those; False counts packets, which is wrong for damaged and
            for `doubtful` files, and for the rare ones whose codec hides frames. None decodes doubtful ones.

    Raises:
        DecodeError: nothing decodes; the message says why.
        UserError, RunError: a remote file is not there or cannot be read.
    """
    readable = _readable(source)
    with _open(readable) as container:
        packets = [
            (packet.pts, packet.dts, packet.is_keyframe, packet.is_discard or packet.is_corrupt)
            for packet in _packets(container, _video_stream(container))
        ]
    failure: list[str] = []
    with _open(readable) as container:
        stream = _video_stream(container)
        # A transport stream may be joined of several, and has no pauses.
        longest_pause = float((0 if container.format.name == "mpegts" else 10) / (stream.time_base or 1))
        frames = _decoded(readable, container, stream, failure)
        first = next(frames, None)
        if first is None:
            raise DecodeError(_why_nothing_decodes(readable, failure))
        timestamps = [pts for pts, _, _, _ in packets if pts is not None]
        # Each field of an interlaced picture may have a packet of its own.
        doubtful = first.interlaced_frame or _are_doubtful(packets, longest_pause)
        verified = doubtful if verify is None else verify
        orientation = _Orientation.of(first)
        width, height = _displayed_size(stream, first, orientation)
        if verified:
            timestamps = [first.pts, *(frame.pts for frame in frames)]
        else:
            timestamps.sort()
        num_frames = len(timestamps) if verified else len(packets)
        fps, duration = _timing(container, stream, timestamps, longest_pause)
        return VideoProbe(
            num_frames=num_frames,
            fps=fps,
            width=width,
            height=height,
            rotation=int(first.rotation),
            duration=duration,
            codec=stream.codec_context.name,
            verified=verified,
            doubtful=doubtful,
        )


def _are_doubtful(packets: list[tuple[int | None, int | None, bool, bool]], longest_pause: float) -> bool:
    """Whether other frames than one a packet may decode, or their timestamps jump."""
    if not packets[0][2] or any(pts is None or damaged for pts, _, _, damaged in packets):
        return True
    pts = np.array([pts for pts, *_ in packets], np.int64)
    shown, sent = np.diff(np.sort(pts)), np.diff([dts for _, dts, *_ in packets if dts is not None])
    return bool(
        pts.min() < pts[0]  # pictures before the first key frame, which refer to what is not there
        or _jumps(sent, longest_pause).any()
        or (len(shown) and shown.min() < 0.6 * np.median(shown))  # twice the same, or fields among frames
    )


def _jumps(steps: np.ndarray, longest_pause: float) -> np.ndarray:
    """Which steps from one timestamp to the next are no time that passes."""
    usual = np.median(steps[steps > 0]) if (steps > 0).any() else 0
    return (steps <= 0) | (steps > max(longest_pause, 10 * usual))


# PyAV


def _read_with_pyav(
    readable: bytes | Path, indices: np.ndarray, short_side: int | None, num_frames: int | None
) -> UInt8[np.ndarray, "frames height width 3"]:
    output = _Output(indices, short_side)
    # From the first frame on there is nothing to seek to, unless the wanted frames lie far apart.
    if output.wanted[-1] >= len(output.wanted) + _WORTH_A_SEEK and _read_by_seeking(
        readable, output, num_frames
    ):
        return output.result()
    failure: list[str] = []
    count = 0
    with _open(readable) as container:
        stream = _video_stream(container)
        for frame in _decoded(readable, container, stream, failure):
            output.put(count, frame, stream)
            count += 1
            if count > output.wanted[-1]:
                return output.result()
    if count == 0:
        raise DecodeError(_why_nothing_decodes(readable, failure))
    why = f" (decoding stops there: {failure[0]})" if failure else ""
    raise DecodeError(
        f"frame {output.wanted[-1]} was asked for, but only {count} frames decode{why}; {_COUNT_AGAIN}"
    )


class _Output:
    """Where wanted frames go, converted; all have the size and the orientation of the first that comes."""

    def __init__(self, indices: np.ndarray, short_side: int | None):
        self.places: dict[int, list[int]] = {}
        for place, index in enumerate(indices.tolist()):
            self.places.setdefault(index, []).append(place)
        self.wanted = sorted(self.places)
        self._count = len(indices)
        self._short_side = short_side
        self._reformatter = VideoReformatter()
        self._packer = VideoReformatter()
        self._frames: np.ndarray | None = None
        self._orientation: _Orientation | None = None
        self._angle = 0

    def put(self, index: int, frame: av.VideoFrame, stream: av.video.VideoStream) -> None:
        """Stores a decoded frame wherever its index is wanted."""
        places = self.places.get(index)
        if places is None:
            return
        orientation = self._orientation_of(frame)
        if self._frames is None:
            width, height = _scaled(*_displayed_size(stream, frame, orientation), self._short_side)
            self._frames = np.empty((self._count, height, width, 3), np.uint8)
        height, width = self._frames.shape[1:3]
        if orientation.transpose:
            width, height = height, width
        pixels = orientation.apply(self._to_rgb(frame, width, height).to_ndarray())
        for place in places:
            self._frames[place] = pixels

    def _to_rgb(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        # The task that decodes has one CPU: without `threads` the conversion would start one a core.
        if width % 2 and width < frame.width and height < frame.height:
            # 16:9 and 4:3 have an odd width at a short side of 256. There swscale's packed RGB takes three times as
            # long as planar RGB that is then packed; the values are the same, bit by bit.
            planar = self._reformatter.reformat(frame, width=width, height=height, format="gbrp", threads=1)
            return self._packer.reformat(planar, format="rgb24", threads=1)
        return self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)

    def _orientation_of(self, frame: av.VideoFrame) -> _Orientation:
        # Side data that was looked at makes a frame part of a reference cycle: hundreds of large pictures would wait
        # for the garbage collector. The angle costs nothing, and tells when to look again.
        angle = int(frame.rotation)
        if self._orientation is None or angle != self._angle:
            self._orientation, self._angle = _Orientation.of(frame), angle
        return self._orientation

    def result(self) -> UInt8[np.ndarray, "frames height width 3"]:
        assert self._frames is not None
        return self._frames


@dataclass(frozen=True)
class _Orientation:
    """How stored pixels become displayed ones: first the transposition, then the flips."""

    transpose: bool = False
    flip_horizontal: bool = False
    flip_vertical: bool = False

    @staticmethod
    def of(frame: av.VideoFrame) -> _Orientation:
        """From the display matrix (a b u; c d v; x y w): displayed x = a x + c y, displayed y = b x + d y."""
        try:
            side_data = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV knows no name for one of its kinds, such as Exif of a Motion JPEG.
            side_data = None
        if side_data is None:
            return _Orientation()
        a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].astype(np.int64).tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return _Orientation(True, flip_horizontal=c < 0, flip_vertical=b < 0)
        return _Orientation(False, flip_horizontal=a < 0, flip_vertical=d < 0)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """The displayed picture (height, width, 3) of a stored one, as a view."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        if self.flip_horizontal:
            pixels = pixels[:, ::-1]
        return pixels[::-1] if self.flip_vertical else pixels


def _displayed_size(
    stream: av.video.VideoStream, frame: av.VideoFrame, orientation: _Orientation
) -> tuple[int, int]:
    # The stream's size, not the frame's: if frames change size, the shape must not depend on which are read.
    width = stream.codec_context.width or frame.width
    height = stream.codec_context.height or frame.height
    return (height, width) if orientation.transpose else (width, height)


def _scaled(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    if short_side is None:
        return width, height
    scale = Fraction(short_side, min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


# Seeking


@dataclass(frozen=True)
class _Timeline:
    """Timestamps of all frames, ascending, and the places in it where decoding may start."""

    pts: list[int]
    starts: list[int]  # indices into `pts`, ascending; the first is 0
    start_dts: list[int]


def _read_by_seeking(readable: bytes | Path, output: _Output, num_frames: int | None) -> bool:
    """Fills the output by decoding from key frames; False at any doubt, and then nothing in it counts."""
    with _open(readable) as container:
        stream = _video_stream(container)
        # Damage must show as an error: what a decoder paints over it depends on where the decoding began.
        stream.codec_context.options = {"err_detect": "explode"}
        timeline = _timeline(container, stream)
        if timeline is None or output.wanted[-1] >= len(timeline.pts):
            return False
        if num_frames is not None and num_frames != len(timeline.pts):
            return False
        run: list[int] = []
        run_start = 0
        runs = []
        for index in output.wanted:
            start = bisect_right(timeline.starts, index) - 1
            if run and timeline.starts[start] <= run[-1] + _WORTH_A_SEEK:
                run.append(index)
            else:
                run, run_start = [index], start
                runs.append((run_start, run))
        if len(runs) == 1 and runs[0][0] == 0:
            return False  # nothing to gain over decoding from the start
        counted = num_frames is not None
        return all(
            _read_run(container, stream, timeline, start, run[-1], output, counted) for start, run in runs
        )


def _timeline(container: av.container.InputContainer, stream: av.video.VideoStream) -> _Timeline | None:
    """The timeline of a stream whose packets and frames certainly correspond one to one; otherwise None."""
    nal_units = _NalUnits.of(stream)
    if nal_units is None:
        return None
    pts: list[int] = []
    starts: list[tuple[int, int]] = []
    for packet in _packets(container, stream):
        if packet.pts is None or packet.dts is None or packet.is_discard or packet.is_corrupt:
            return None
        pts.append(packet.pts)
        if packet.is_keyframe:
            match nal_units.start_kind(bytes(packet)):
                case "clean":
                    starts.append((packet.pts, packet.dts))
                case "broken":
                    return None
    first = pts[0] if pts else None
    pts.sort()
    if not starts or starts[0][0] != first or pts[0] != first:
        return None  # starts with frames that no decoder can show
    if any(a == b for a, b in pairwise(pts)):
        return None
    place = {value: index for index, value in enumerate(pts)}
    starts.sort()
    return _Timeline(pts, [place[p] for p, _ in starts], [d for _, d in starts])


def _read_run(
    container: av.container.InputContainer,
    stream: av.video.VideoStream,
    timeline: _Timeline,
    start: int,
    last: int,
    output: _Output,
    counted: bool,
) -> bool:
    """Decodes from a start to the frame `last`; False where what comes is not what the timeline announces.

    Nor where packets may be fields, unless it has been `counted` that each is a frame.
    """
    expected = timeline.starts[start]
    start_pts, start_dts = timeline.pts[expected], timeline.start_dts[start]
    fresh = True
    try:
        container.seek(start_pts, stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            if packet.pts == start_pts:
                break
            if packet.dts is None or packet.dts >= start_dts:
                return False  # the seek went past the start
        else:
            return False
        while True:
            for frame in packet.decode():
                if fresh and frame.pts is not None and frame.pts < start_pts:
                    continue  # leads the key frame: belongs to the pictures before it
                if frame.pts != timeline.pts[expected] or (fresh and not frame.key_frame):
                    return False
                if frame.interlaced_frame and not counted:
                    return False
                fresh = False
                output.put(expected, frame, stream)
                expected += 1
                if expected > last:
                    return True
            packet = next(packets)
    except (av.FFmpegError, StopIteration):
        return False


@dataclass(frozen=True)
class _NalUnits:
    """How to tell, from a packet's own bytes, whether decoding may start at it."""

    codec: Literal["h264", "hevc"]
    length_size: int
    """Bytes of the length before each unit; 0 means that start codes divide the units."""

    @staticmethod
    def of(stream: av.video.VideoStream) -> _NalUnits | None:
        """For a codec whose packets hold one shown picture each; None otherwise (VP8, VP9, AV1 hide some)."""
        codec = stream.codec_context.name
        extradata = stream.codec_context.extradata or b""
        at = {"h264": 4, "hevc": 21}.get(codec)
        if at is None:
            return None
        boxed = len(extradata) > at and extradata[0] == 1
        return _NalUnits(codec, (extradata[at] & 3) + 1 if boxed else 0)

    def start_kind(self, packet: bytes) -> Literal["clean", "unclear", "broken"]:
        """`clean`: every picture shown after this one decodes without the ones before it.

        The container's mark for key frames is not enough: files without a sync table mark every packet, and
        the pictures after an H.264 recovery point may refer to those before. At `broken` (H.265 BLA) the
        decoder drops pictures.
        """
        for kind in self._kinds(packet):
            if self.codec == "h264" and kind in (1, 2, 5):
                return "clean" if kind == 5 else "unclear"
            if self.codec == "hevc" and kind < 32:
                return "clean" if kind in (19, 20, 21) else "broken" if kind in (16, 17, 18) else "unclear"
        return "unclear"

    def _kinds(self, packet: bytes) -> Iterator[int]:
        at = 0
        while True:
            if self.length_size:
                start = at + self.length_size
                at = start + int.from_bytes(packet[at:start], "big")
            else:
                start = packet.find(b"\0\0\1", at) + 3
                if start < 3:
                    return
                at = start
            if start >= len(packet):
                return
            yield packet[start] & 31 if self.codec == "h264" else packet[start] >> 1 & 63


# Opening, demuxing, decoding

_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,asf,flv,ogg,mxf"
"""Of files that hold their pictures themselves. A playlist (HLS, concat, SDP, …) under the name of a video would have
FFmpeg open other files, or the network."""


def _readable(source: bytes | str) -> bytes | Path:
    """The content itself, or a path of this machine: a long local file need not be held in memory."""
    if isinstance(source, bytes):
        return source
    filesystem, path = storage.resolve(source)
    return Path(path) if isinstance(filesystem, fs.LocalFileSystem) else storage.read_bytes(source)


def _open(readable: bytes | Path) -> av.container.InputContainer:
    try:
        # Bytes or an absolute path: never a name that FFmpeg could take for a protocol.
        if isinstance(readable, bytes):
            options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
            return av.open(io.BytesIO(readable), mode="r", options=options)
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        return av.open(str(readable), mode="r", options=options)
    except FileNotFoundError:
        raise DecodeError("no such file") from None
    except PermissionError:
        raise DecodeError("no permission to read it") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        _raise_where_unread(readable, error)
        raise DecodeError(_why_not_opened(readable, error)) from None


def _video_stream(container: av.container.InputContainer) -> av.video.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise DecodeError("no decoder for its video stream")
            stream.codec_context.thread_count = 1
            return stream
    # What is left of the kind "video" are covers.
    others = sorted({"a cover picture" if s.type == "video" else s.type for s in container.streams}, key=len)
    raise DecodeError(
        f"no video stream, only {' and '.join(others)}" if others else "no video stream, no stream at all"
    )


def _packets(
    container: av.container.InputContainer, stream: av.video.VideoStream
) -> Iterator[av.packet.Packet]:
    """Packets that hold something, up to the end or to where the file can no longer be read."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except (av.FFmpegError, OSError):
        return


def _decoded(
    readable: bytes | Path,
    container: av.container.InputContainer,
    stream: av.video.VideoStream,
    failure: list[str],
) -> Iterator[av.VideoFrame]:
    """All frames, up to the first packet that cannot be decoded; its error goes into `failure`.

    Packets before the first key frame may refer to what is not in the file: they may fail.

    Raises:
        RunError: the file cannot be read, and may be another time.
    """
    begun = False
    try:
        for packet in container.demux(stream):
            begun = begun or packet.is_keyframe
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                if begun or not packet.size:
                    raise
                failure[:] = [_reason(error)]
        if begun:
            failure.clear()
    except (av.FFmpegError, OSError) as error:
        _raise_where_unread(readable, error)
        failure[:] = [_reason(error)]


def _raise_where_unread(readable: bytes | Path, error: Exception) -> None:
    """Raises RunError where what the file lies on has failed, not the video."""
    if isinstance(readable, bytes) or not isinstance(error, OSError) or error.errno not in _NOT_THE_VIDEOS:
        return
    try:
        if error.errno != errno.EIO:
            raise error
        with readable.open("rb") as file:
            while file.read(_CHUNK):
                pass
    except OSError as cause:
        raise storage.storage_error(cause, str(readable), "read") from None


def _timing(
    container: av.container.InputContainer,
    stream: av.video.VideoStream,
    timestamps: Sequence[int | None],
    longest_pause: float,
) -> tuple[float | None, float | None]:
    """Frames a second and seconds, from the timestamps of the frames in order; jumps in them take no time.

    The container's rate is kept where these agree with it to 5 %: it knows 29.97, they are often rounded.
    """
    rate = float(stream.average_rate) if stream.average_rate else None
    steps = np.diff(np.array([pts for pts in timestamps if pts is not None], np.int64)).astype(np.float64)
    if (steps <= 0).sum() > 0.1 * len(steps):
        # AVI has times of decoding alone, which the frames carry in another order.
        steps = np.diff(np.sort(np.array([pts for pts in timestamps if pts is not None], np.float64)))
    if (steps > 0).any() and stream.time_base:
        steps[_jumps(steps, longest_pause)] = np.median(steps[steps > 0])
        measured = float(1 / (steps.mean() * stream.time_base))
        for known in (rate, float(stream.guessed_rate or 0)):
            if known and abs(known / measured - 1) <= 0.05:
                return known, len(timestamps) / measured
        return measured, len(timestamps) / measured
    if stream.duration and stream.time_base:
        return rate, float(stream.duration * stream.time_base)
    return rate, container.duration / av.time_base if container.duration else None


# Reasons


def _why_not_opened(readable: bytes | Path, error: Exception) -> str:
    if isinstance(readable, Path) and readable.is_dir():
        return "a folder, not a video"
    if (len(readable) if isinstance(readable, bytes) else readable.stat().st_size) == 0:
        return "the file is empty"
    boxes = _mp4_boxes(readable)
    if boxes and boxes[0][0] == b"ftyp" and b"moov" not in [name for name, _ in boxes]:
        return "truncated: the table of its frames (moov) is missing"
    if _is_encrypted(boxes):
        return "encrypted"
    return f"not a video that can be opened ({_reason(error)})"


def _why_nothing_decodes(readable: bytes | Path, failure: list[str]) -> str:
    if _is_encrypted(_mp4_boxes(readable)):
        return "encrypted"
    return f"no frame decodes ({failure[0] if failure else 'the stream holds no complete frame'})"


def _is_encrypted(boxes: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"moov" and b"encv" in content for name, content in boxes)


def _mp4_boxes(readable: bytes | Path) -> list[tuple[bytes, bytes]]:
    """The outermost boxes of an MP4 file: name, and for `moov` the content. Nonsense where it is not MP4."""
    boxes = []
    with io.BytesIO(readable) if isinstance(readable, bytes) else readable.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        while len(header := file.read(8)) == 8:
            size, name, used = int.from_bytes(header[:4], "big"), header[4:], 8
            if size == 1:
                size, used = int.from_bytes(file.read(8), "big"), 16
            # A damaged size may be any: neither to be allocated nor to be added.
            left = min(max(0, size - used), end - file.tell())
            boxes.append((name, file.read(left) if name == b"moov" else b""))
            if name != b"moov":
                file.seek(left, io.SEEK_CUR)
            if size < used:  # 0: up to the end of the file
                break
    return boxes


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return " ".join(str(strerror or error).split())


# decord


def _read_with_decord(
    readable: bytes | Path, indices: np.ndarray, short_side: int | None
) -> UInt8[np.ndarray, "frames height width 3"]:
    try:
        import decord
    except ImportError:
        raise UserError("decoder decord is not installed: `pip install decord`, or choose pyav") from None

    try:
        # decord has no list of formats: what PyAV refuses, such as a playlist, does not get there.
        _open(readable).close()
    except DecodeError as error:
        raise DecodeError(f"not given to decord: {error}") from None

    def reader(**size: int) -> Any:
        file = io.BytesIO(readable) if isinstance(readable, bytes) else str(readable)
        return decord.VideoReader(file, ctx=decord.cpu(0), num_threads=1, **size)

    try:
        video = reader()
        if short_side is not None:
            height, width = video[0].shape[:2]
            width, height = _scaled(width, height, short_side)
            video = reader(width=width, height=height)
        if indices.max() >= len(video):
            raise DecodeError(
                f"frame {indices.max()} was asked for, but decord finds {len(video)} frames; {_COUNT_AGAIN}"
            )
        return video.get_batch(indices.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise DecodeError(f"decord: {_reason(error).partition(' Stack trace')[0]}") from None
