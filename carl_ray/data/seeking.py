"""Exact frames by decoding from key frames, not the file's start. No Ray here.

One pass over the packets, without decoding, collects their timestamps. Where these are complete, unique and in step
with the codec (H.264, H.265, AV1), decoding starts at the last key frame before the first wanted frame, and every frame
must carry the next expected timestamp. At any doubt (edit lists, hidden frames, damaged packets, key frames that
are none) the caller decodes the file from its start. Only a full decode can notice damage before that key frame
which makes frames vanish: the `num_frames` of a verified manifest guards against it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import av
import av.container
import av.video
import numpy as np
from jaxtyping import Int64

from carl_ray.data.video_file import DecodeError, open_container, packets_of, video_stream

WORTH_A_SEEK = 16
"""Frames between wanted ones from which on a seek is cheaper than decoding them."""

Put = Callable[[int, av.VideoFrame, av.video.VideoStream], None]
"""Receives the index of a frame, the frame, and its stream."""


@dataclass(frozen=True)
class _Timeline:
    """Timestamps of all frames, ascending, and the frames at which decoding may start."""

    pts: Int64[np.ndarray, " frames"]
    starts: list[int]  # indices into `pts`, ascending; the first is 0
    start_dts: list[int]


def read_by_seeking(readable: bytes | Path, wanted: Sequence[int], put: Put, num_frames: int | None) -> bool:
    """Decode wanted frames from key frames; False (ignore what was put) at any doubt.

    Args:
        readable: The content of a video file, or its path.
        wanted: Indices of frames, ascending.
        put: Called with every decoded frame.
        num_frames: How many frames a full decode yields, where that is known.
    """
    timeline = _timeline(readable)
    if timeline is None or wanted[-1] >= len(timeline.pts) or num_frames not in (None, len(timeline.pts)):
        return False
    runs: list[tuple[int, int]] = []  # start, last frame
    for index in wanted:
        start = bisect_right(timeline.starts, index) - 1
        if runs and timeline.starts[start] <= runs[-1][1] + WORTH_A_SEEK:
            runs[-1] = runs[-1][0], index
        else:
            runs.append((start, index))
    if len(runs) == 1 and runs[0][0] == 0:
        return False  # nothing to gain over decoding from the start
    with _open_strictly(readable) as container:
        stream = video_stream(container)
        for run in runs:
            reached = -1
            with suppress(DecodeError):
                for reached, frame in _read_run(container, stream, timeline, *run, num_frames is not None):
                    put(reached, frame, stream)
            if reached != run[1]:
                return False
    return True


def frames_by_seeking(
    readable: bytes | Path, first: int, stop: int, num_frames: int | None
) -> Iterator[tuple[av.VideoFrame, av.video.VideoStream]]:
    """Yield the frames from `first` to `stop` - 1, decoded from a key frame on; at any doubt none, or no more.

    `num_frames` are those of the file, where they are known.
    """
    timeline = _timeline(readable)
    if timeline is None or stop > len(timeline.pts) or num_frames not in (None, len(timeline.pts)):
        return
    start = bisect_right(timeline.starts, first) - 1
    with _open_strictly(readable) as container:
        stream = video_stream(container)
        for index, frame in _read_run(container, stream, timeline, start, stop - 1, counted=False):
            if index >= first:
                yield frame, stream


def _open_strictly(readable: bytes | Path) -> av.container.InputContainer:
    """Open a video so that damage is an error: what a decoder paints over it depends on where the decoding began."""
    container = open_container(readable)
    video_stream(container).codec_context.options = {"err_detect": "explode"}
    return container


def _timeline(readable: bytes | Path) -> _Timeline | None:
    """The timeline of a video with certainly one frame a packet; otherwise None."""
    if isinstance(readable, Path):
        with suppress(OSError):
            status = readable.stat()
            return _timeline_of_file(readable, status.st_size, status.st_mtime_ns)
    with open_container(readable) as container:
        return _read_timeline(container, video_stream(container))


@lru_cache(maxsize=64)
def _timeline_of_file(path: Path, size: int, modified_ns: int) -> _Timeline | None:
    """The timeline of a local file, cached: many ranges may be of one long video."""
    with open_container(path) as container:
        return _read_timeline(container, video_stream(container))


def _read_timeline(container: av.container.InputContainer, stream: av.video.VideoStream) -> _Timeline | None:
    length_size = _length_size(stream)
    if length_size is None:
        return None
    pts: list[int] = []
    starts: list[tuple[int, int]] = []
    for packet in packets_of(container, stream):
        if packet.pts is None or packet.dts is None or packet.is_discard or packet.is_corrupt:
            return None
        pts.append(packet.pts)
        if packet.is_keyframe:
            match _start_kind(stream.codec_context.name, length_size, bytes(packet)):
                case "clean":
                    starts.append((packet.pts, packet.dts))
                case "broken":
                    return None
    first = pts[0] if pts else None
    pts.sort()
    place = {value: index for index, value in enumerate(pts)}
    # Frames before the first start cannot be decoded; a timestamp that occurs twice is ambiguous.
    if not starts or starts[0][0] != first or pts[0] != first or len(place) < len(pts):
        return None
    starts.sort()
    return _Timeline(np.array(pts, np.int64), [place[p] for p, _ in starts], [d for _, d in starts])


def _read_run(
    container: av.container.InputContainer,
    stream: av.video.VideoStream,
    timeline: _Timeline,
    start: int,
    last: int,
    counted: bool,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield index and frame from a start to the frame `last`; ends before it at an unexpected timestamp.

    So it does where packets may be fields, unless it was `counted` that each is a frame.
    """
    expected = timeline.starts[start]
    start_pts, start_dts = int(timeline.pts[expected]), timeline.start_dts[start]
    fresh = True
    try:
        container.seek(start_pts, stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            if packet.pts == start_pts:
                break
            if packet.dts is None or packet.dts >= start_dts:
                return  # the seek went past the start
        else:
            return
        while True:
            for frame in packet.decode():
                if fresh and frame.pts is not None and frame.pts < start_pts:
                    continue  # leads the key frame: belongs to the pictures before it
                if frame.pts != timeline.pts[expected] or (fresh and not frame.key_frame):
                    return
                if frame.interlaced_frame and not counted:
                    return
                fresh = False
                yield expected, frame
                expected += 1
                if expected > last:
                    return
            packet = next(packets)
    except (av.FFmpegError, StopIteration):
        return


# NAL units of H.264 and H.265

_AV1 = ("libdav1d", "av1")

_LENGTH_SIZE_AT = {"h264": 4, "hevc": 21}  # byte of the codec's extradata


def _length_size(stream: av.video.VideoStream) -> int | None:
    """Size of the length before a NAL unit, 0: start codes, None: may hide pictures.

    A packet of VP8 or VP9 may hold a picture that is not shown. One of AV1 holds exactly one that is (7.5 of its
    specification).
    """
    if stream.codec_context.name in _AV1:
        return 0
    extradata = stream.codec_context.extradata or b""
    at = _LENGTH_SIZE_AT.get(stream.codec_context.name)
    if at is None:
        return None
    return (extradata[at] & 3) + 1 if len(extradata) > at and extradata[0] == 1 else 0


def _start_kind(codec: str, length_size: int, packet: bytes) -> Literal["clean", "unclear", "broken"]:
    """`clean`: every picture shown after this one decodes without the ones before it.

    The container's mark for key frames is not enough: files without a sync table mark every packet, and
    the pictures after an H.264 recovery point may refer to those before. At `broken` (H.265 BLA) the
    decoder drops pictures. In AV1 a key frame that is shown resets all references, and `_read_run` requires one.
    """
    if codec in _AV1:
        return "clean"
    for kind in _unit_types(codec, length_size, packet):
        if codec == "h264" and kind in (1, 2, 5):
            return "clean" if kind == 5 else "unclear"
        if codec == "hevc" and kind < 32:
            return "clean" if kind in (19, 20, 21) else "broken" if kind in (16, 17, 18) else "unclear"
    return "unclear"


def _unit_types(codec: str, length_size: int, packet: bytes) -> Iterator[int]:
    at = 0
    while True:
        if length_size:
            start = at + length_size
            at = start + int.from_bytes(packet[at:start], "big")
        else:
            start = packet.find(b"\0\0\1", at) + 3
            if start < 3:
                return
            at = start
        if start >= len(packet):
            return
        yield packet[start] & 31 if codec == "h264" else packet[start] >> 1 & 63
