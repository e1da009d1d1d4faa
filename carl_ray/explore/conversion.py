"""Videos as H.264 that browsers play, a segment at a time. No Ray here.

A converted video is an ordinary MP4 file whose layout is known before any frame is converted: every frame has a slot of
a size that depends on nothing but its place and the size of the picture, and the index of all frames comes first.

    ftyp │ moov: size, offset and time of every frame │ mdat: the slots

So a browser can seek to any time, and only the segments (`FRAMES` slots) that it asks for are made. Slots are filled up
with zeros, which take no space in a sparse file. Fragments (moof) need no slots, but FFmpeg's reader, also Chromium's,
loses the fragment at whose head a read is aborted. Frame k is shown from its time in the embeddings on, to 1/90000 s.

Everything below `answer` runs in child processes: the videos are untrusted.
"""

from __future__ import annotations

import asyncio
import io
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64, UInt8

from carl_ray.data.child import Array, Child, Fields, Values, open_channel

if TYPE_CHECKING:
    from carl_ray.data.video_file import AnySource
    from carl_ray.explore.library import Video

FRAMES = 32
"""Of a segment, whose first one is a key frame."""

_TICKS = 90_000  # a second
_LONGEST_SHORT_SIDE = 720  # pixels of a converted video
_SMALLEST_SIDE = 16
_KEY_PIXELS, _PIXELS = 3, 10
"""Pixels for which the slots of the first frame of a segment and of the others have a byte."""
_LEAST_SLOT = 1 << 12  # bytes
_QUALITIES = (23, 29, 36, 43, 51)
"""Constant rate factors; the next one where a frame does not fit into its slot."""
_FILLER = 12  # nal_unit_type
_MOST_AT_ONCE = 4  # segments
_POSTER_SIDE = 240  # pixels
_SEEKABLE = ("h264", "hevc")
_PLAYED = {
    "h264": ("Constrained Baseline", "Baseline", "Main", "High"),
    "vp8": None,
    "vp9": ("Profile 0",),
    "av1": ("Main",),
}
"""Codecs and profiles that Chromium plays."""

PROBE = {
    "reason": str,
    "codec": str,
    "media_type": str,
    "width": int,
    "height": int,
    "times": Array("<f8", (range(1, 1 << 31),)),
}
POSTER = {"poster": Array("|u1", (range(1, 1 << 16), range(1, 1 << 16), 3))}
CONTENT = {"content": Array("|u1", (range(1, 1 << 30),))}


@dataclass(frozen=True)
class Layout:
    """The layout of a converted video.

    Args:
        width: Pixels of the original, after rotation.
        height: Pixels of the original, after rotation.
        times: Seconds of every frame, ascending.
    """

    width: int
    height: int
    times: Float[np.ndarray, " frames"]

    @property
    def short_side(self) -> int | None:
        """The shorter side to decode at; None: that of the original."""
        return _LONGEST_SHORT_SIDE if min(self.width, self.height) > _LONGEST_SHORT_SIDE else None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the converted video: even, since 4:2:0 halves the resolution of colours."""
        scale = min(1.0, _LONGEST_SHORT_SIDE / min(self.width, self.height))
        width, height = (
            max(_SMALLEST_SIDE, round(side * scale) // 2 * 2) for side in (self.width, self.height)
        )
        return width, height

    @property
    def num_segments(self) -> int:
        """Number of segments."""
        return -(-len(self.times) // FRAMES)

    @property
    def slots(self) -> tuple[int, int]:
        """Bytes of the first frame of a segment, and of each other one."""
        pixels = self.size[0] * self.size[1]
        return max(_LEAST_SLOT, pixels // _KEY_PIXELS), max(_LEAST_SLOT, pixels // _PIXELS)

    def offset(self, frame: int) -> int:
        """Bytes of the slots before a frame."""
        key, other = self.slots
        return frame * other + -(-frame // FRAMES) * (key - other)

    @property
    def ticks(self) -> Int64[np.ndarray, " frames+1"]:
        """Start of every frame and the end of the last one, which is shown as long as the one before."""
        times = np.asarray(self.times, np.float64)
        last = times[-1] - times[-2] if len(times) > 1 else 0.04
        ticks = np.round(np.append(times, times[-1] + last) * _TICKS).astype(np.int64)
        steps = np.arange(len(ticks))
        return np.maximum.accumulate(ticks - steps) + steps  # no two at once


CODE = "from carl_ray.explore.conversion import answer; answer()"
"""Of the child process."""


class Children:
    """A few child processes that answer one question after another, in the order in which they are asked."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="media")
        self._own = threading.local()  # A child ends with the thread that started it.
        self._all: list[Child] = []

    async def ask(
        self, video: Video, expected: Fields, *, seconds: float, **arguments: object
    ) -> dict[str, Any]:
        """The answer to one question about a video; errors as `Child.ask`."""

        def ask() -> dict[str, Any]:
            if not hasattr(self._own, "child"):
                self._own.child = Child(CODE)
                self._all.append(self._own.child)
            (answer,) = self._own.child.ask(video.uri, arguments, expected, seconds=seconds)
            return answer

        return await asyncio.get_running_loop().run_in_executor(self._pool, ask)

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for child in self._all:
            child.interrupt()


def answer() -> None:
    """Main function of the child process."""
    serve = open_channel("converting")
    import carl_ray.data.decode  # noqa: F401  # Before memory is limited and time is measured.

    serve(lambda source, task, **arguments: _TASKS[task](source, **arguments))


def _probe(source: AnySource) -> Values:
    from carl_ray.data.decode import probe_video
    from carl_ray.data.video_file import open_source

    video = open_source(source)
    readable = video.readable
    found = probe_video(video)
    reason = "a range of a file" if video.is_range else _why_not_played(readable)
    reason = reason or ("uncertain frames" if found.doubtful else "")
    yield {
        "reason": reason,
        "codec": found.codec,
        "media_type": "video/webm" if _is_webm(readable) else "video/mp4",
        "width": found.width,
        "height": found.height,
        "times": found.frame_times,
    }


def _why_not_played(readable: bytes | Path) -> str:
    """Reason why Chromium may not show exactly the frames of a video at their times; empty: it does."""
    from carl_ray.data.video_file import Orientation, mp4_boxes, open_container, packets_of, video_stream

    with open_container(readable) as container:
        stream = video_stream(container)
        context, names = stream.codec_context, container.format.name.split(",")
        first_time = min((packet.pts or 0 for packet in packets_of(container, stream)), default=0)
        if context.name not in _PLAYED or context.format is None:
            return f"codec {context.name}"
        profiles = _PLAYED[context.name]
        if profiles is not None and context.profile not in profiles:
            return f"profile {context.profile}"
        if context.format.name not in ("yuv420p", "yuvj420p"):
            return f"pixel format {context.format.name}"
        if first_time or container.start_time:
            return "the first frame is not at zero"
        if len(container.streams.video) > 1:
            return "several video streams"
        if not container.duration:
            return "no duration"
        is_quicktime = container.metadata.get("major_brand", "").startswith("qt")
    if "webm" in names:
        if not _is_webm(readable):
            return "Matroska"
    elif "mp4" not in names or is_quicktime:
        return f"container {names[0]}"
    else:
        moov = b"".join(content for name, content in mp4_boxes(readable) if name == b"moov")
        if b"mvex" in moov:
            return "fragmented"
        if any(_cuts(edits) for edits in moov.split(b"elst")[1:]):
            return "edit list"
    with open_container(readable) as container:
        frame = next(iter(container.decode(video_stream(container))), None)
        if frame is None or Orientation.of(frame) != Orientation():
            return "rotated"
    return ""


def _is_webm(readable: bytes | Path) -> bool:
    if isinstance(readable, Path):
        with readable.open("rb") as file:
            readable = file.read(256)
    return b"\x42\x82\x84webm" in readable[:256]


def _cuts(edits: bytes) -> bool:
    """Whether an edit list does more than to move the first frame to zero."""
    version, count = edits[0], int.from_bytes(edits[4:8], "big")
    start, width = (16, 8) if version else (12, 4)
    return count != 1 or int.from_bytes(edits[start : start + width], "big", signed=True) < 0


def _poster(source: AnySource, frame: int, num_frames: int) -> Values:
    from carl_ray.data.decode import read_frames

    yield {"poster": read_frames(source, [frame], short_side=_POSTER_SIDE, num_frames=num_frames)[0]}


def _header(source: AnySource, **described: Any) -> Values:
    layout = _layout(described)
    width, height = layout.size
    description, _ = _encode(np.zeros((1, height, width, 3), np.uint8), layout, _QUALITIES[0])
    start = len(_head(layout, description, 0))
    yield {"content": np.frombuffer(_head(layout, description, start), np.uint8)}


def _head(layout: Layout, description: bytes, start: int) -> bytes:
    """All of an MP4 file before its slots (ISO/IEC 14496-12), which begin at `start`."""
    frames, ticks = len(layout.times), layout.ticks
    duration, (width, height) = int(ticks[-1]), layout.size
    firsts = range(0, frames, FRAMES)
    durations = [(len([*run]), step) for step, run in groupby(np.diff(ticks).tolist())]
    sizes = [layout.slots[frame % FRAMES > 0] for frame in range(frames)]
    runs = [(1, min(FRAMES, frames), 1)]
    if frames > FRAMES and frames % FRAMES:
        runs.append((layout.num_segments, frames % FRAMES, 1))
    matrix = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    table = _box(
        b"stbl",
        description,
        _box(b"stts", _rows(">II", durations)),
        _box(b"stss", _rows(">I", [(frame + 1,) for frame in firsts])),
        _box(b"stsc", _rows(">III", runs)),
        _box(b"stsz", bytes(8), struct.pack(f">I{frames}I", frames, *sizes)),
        _box(b"co64", _rows(">Q", [(start + layout.offset(frame),) for frame in firsts])),
    )
    data = _box(b"dinf", _box(b"dref", bytes(4), struct.pack(">I", 1), _box(b"url ", struct.pack(">I", 1))))
    media = _box(
        b"mdia",
        _box(b"mdhd", struct.pack(">I16xIQHH", 1 << 24, _TICKS, duration, 0x55C4, 0)),
        _box(b"hdlr", struct.pack(">8x4s13x", b"vide")),
        _box(b"minf", _box(b"vmhd", struct.pack(">I8x", 1)), data, table),
    )
    track = struct.pack(">I16xI4xQ16x", 1 << 24 | 3, 1, duration) + matrix
    movie = struct.pack(">I16xIQIH10x", 1 << 24, _TICKS, duration, 1 << 16, 1 << 8) + matrix
    moov = _box(
        b"moov",
        _box(b"mvhd", movie, bytes(24), struct.pack(">I", 2)),
        _box(b"trak", _box(b"tkhd", track, struct.pack(">II", width << 16, height << 16)), media),
    )
    brands = _box(b"ftyp", b"isom", struct.pack(">I", 512), b"isomiso2avc1mp41")
    return brands + moov + struct.pack(">I4sQ", 1, b"mdat", 16 + layout.offset(frames))


def _box(name: bytes, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">I4s", 8 + len(joined), name) + joined


def _rows(format: str, rows: Sequence[tuple[int, ...]]) -> bytes:
    return struct.pack(">II", 0, len(rows)) + b"".join(struct.pack(format, *row) for row in rows)


def _segments(source: AnySource, first: int, codec: str, **described: Any) -> Values:
    layout = _layout(described)
    for number, frames in enumerate(_chunks(source, layout, first, codec), first):
        for quality in _QUALITIES:
            _, packets = _encode(frames, layout, quality)
            content = _in_slots(packets, layout)
            if content is not None:
                break
        else:
            raise RuntimeError(f"segment {number} does not fit")
        yield {"content": content}


def _in_slots(packets: Sequence[bytes], layout: Layout) -> UInt8[np.ndarray, " bytes"] | None:
    """The packets of a segment in their slots; None where one does not fit."""
    content = np.zeros(layout.offset(len(packets)), np.uint8)
    for frame, packet in enumerate(packets):
        start, stop = layout.offset(frame), layout.offset(frame + 1)
        left = stop - start - len(packet)
        if left < 6:
            return None
        # The rest is a unit of filler data, which decoders skip: empty, and trailing zeros.
        filled = packet + struct.pack(">IBB", left - 4, _FILLER, 0x80)
        content[start : start + len(filled)] = np.frombuffer(filled, np.uint8)
    return content


def _layout(described: Mapping[str, Any]) -> Layout:
    return Layout(described["width"], described["height"], np.array(described["times"], np.float64))


def _chunks(
    source: AnySource, layout: Layout, first: int, codec: str
) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    """Frames of the segments from the first wanted one on."""
    from carl_ray.data.decode import iterate_frames, read_frames

    num_frames, side = len(layout.times), layout.short_side
    if first == 0 or codec not in _SEEKABLE:
        chunks = iterate_frames(source, num_frames, chunk_frames=FRAMES, short_side=side)
        yield from islice(chunks, first, None)
        return
    start, at_once = first * FRAMES, 1
    while start < num_frames:
        stop = min(start + at_once * FRAMES, num_frames)
        frames = read_frames(source, np.arange(start, stop), short_side=side, num_frames=num_frames)
        yield from (frames[at : at + FRAMES] for at in range(0, len(frames), FRAMES))
        # Each time decoding starts at the last key frame: first an early answer, then fewer starts.
        start, at_once = stop, min(2 * at_once, _MOST_AT_ONCE)


def _encode(frames: UInt8[np.ndarray, "n h w 3"], layout: Layout, quality: int) -> tuple[bytes, list[bytes]]:
    """The description of the stream (stsd) and the packets of frames, the first one a key frame."""
    import av

    content = io.BytesIO()
    # "stitchable": one description fits all segments, whatever their quality. No B-frames: packets are in the order of
    # the frames.
    options = {"preset": "veryfast", "crf": str(quality), "bf": "0", "sc_threshold": "0"}
    options["x264-params"] = "stitchable=1:threads=1"
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height = layout.size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.gop_size = 2 * FRAMES
        context.thread_count = 1
        context.color_range, context.colorspace = 1, 6  # limited range, BT.601: what swscale converts to
        for pixels in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(picture.reformat(*layout.size, format="yuv420p", threads=1)))
        container.mux(stream.encode(None))
    whole = content.getvalue()
    at = whole.rindex(b"stsd") - 4
    description = whole[at : at + int.from_bytes(whole[at : at + 4], "big")]
    with av.open(io.BytesIO(whole), "r") as written:
        return description, [bytes(packet) for packet in written.demux(video=0) if packet.size]


_TASKS: dict[str, Callable[..., Values]] = {
    "probe": _probe,
    "poster": _poster,
    "header": _header,
    "segments": _segments,
}
