"""Videos as H.264 that browsers play, a segment at a time. No Ray here.

A converted video is an MP4 file whose layout is known before any frame is converted: every segment of `FRAMES` frames
has a slot of the same size, and an index of all slots comes first.

    ftyp │ moov │ sidx: offset and duration of every slot │ moof mdat free │ moof mdat free │ …

So a browser can seek to any time, and only the slots that it asks for are made. Slots are padded, which costs no disk
space in a sparse file. Frame k is shown from its time in the embeddings on, to 1/90000 s.

Everything here but `Layout` runs in a child process: the videos are untrusted.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8

from carl_ray.data.child import Array, Child, Values, open_channel

FRAMES = 32
"""Of a segment, whose first one is a key frame."""

_TICKS = 90_000  # a second
_LONGEST_SHORT_SIDE = 720  # pixels of a converted video
_SMALLEST_SIDE = 16
_PIXELS_A_BYTE = 16
_LEAST_SLOT = 1 << 16  # bytes
_MOST_SLOT = 1 << 28
_QUALITIES = (23, 33, 43, 51)
"""Constant rate factors; the next one where a segment does not fit into its slot."""
_MOST_AT_ONCE = 4  # segments
_POSTER_SIDE = 240  # pixels
_MAX_HEADER = 1 << 22  # bytes
_SIDX = struct.Struct(">I4sIIIIIHH")
_SEEKABLE = ("h264", "hevc")
_PLAYED = {
    "h264": ("Constrained Baseline", "Baseline", "Main", "High"),
    "vp8": None,
    "vp9": ("Profile 0",),
    "av1": ("Main",),
}
"""Codecs and profiles that Chromium plays."""

PROBE = {"reason": str, "codec": str, "width": int, "height": int, "times": Array("<f8", (range(1, 1 << 31),))}
POSTER = {"poster": Array("|u1", (range(1, 1 << 16), range(1, 1 << 16), 3))}
HEADER = {"content": Array("|u1", (range(1, _MAX_HEADER),))}
SEGMENT = {"content": Array("|u1", (range(1, _MOST_SLOT),))}


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
        """Number of slots."""
        return -(-len(self.times) // FRAMES)

    @property
    def slot(self) -> int:
        """Bytes of a slot."""
        width, height = self.size
        return min(max(_LEAST_SLOT, width * height * FRAMES // _PIXELS_A_BYTE), _MOST_SLOT)

    @property
    def ticks(self) -> Int64[np.ndarray, " frames+1"]:
        """Start of every frame and the end of the last one, which is shown as long as the one before."""
        times = np.asarray(self.times, np.float64)
        last = times[-1] - times[-2] if len(times) > 1 else 1.0
        ticks = np.round(np.append(times, times[-1] + last) * _TICKS).astype(np.int64)
        steps = np.arange(len(ticks))
        return np.maximum.accumulate(ticks - steps) + steps  # no two at once


def media_child() -> Child:
    """A child process that answers `probe`, `poster`, `header` and `segments`."""
    return Child("from carl_ray.explore.segments import answer; answer()", quiet=True)


def answer() -> None:
    """Main function of the child process."""
    serve = open_channel("converting")
    import cv2

    cv2.setNumThreads(1)
    serve(lambda source, task, **arguments: _TASKS[task](source, **arguments))


def _probe(source: bytes | str) -> Values:
    from carl_ray.data.decode import probe_video
    from carl_ray.data.video_file import local_or_content

    readable = local_or_content(source)
    found = probe_video(readable if isinstance(readable, bytes) else source)
    reason = _why_not_played(readable) or ("uncertain frames" if found.doubtful else "")
    fields: dict[str, object] = {"reason": reason, "codec": found.codec, "times": found.frame_times}
    yield fields | {"width": found.width, "height": found.height}


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


def _poster(source: bytes | str, frame: int, num_frames: int) -> Values:
    from carl_ray.data.decode import read_frames

    yield {"poster": read_frames(source, [frame], short_side=_POSTER_SIDE, num_frames=num_frames)[0]}


def _header(source: bytes | str, **described: Any) -> Values:
    layout = _layout(described)
    width, height = layout.size
    ticks = layout.ticks
    init, _ = _encode(np.zeros((1, height, width, 3), np.uint8), ticks[:2], layout, _QUALITIES[0])
    entries = []
    for segment in range(layout.num_segments):
        start, stop = segment * FRAMES, min((segment + 1) * FRAMES, len(ticks) - 1)
        # Size of the slot; its duration; it starts with a key frame.
        entries.append(struct.pack(">III", layout.slot, int(ticks[stop] - ticks[start]), 0x90000000))
    length = _SIDX.size + 12 * len(entries)
    sidx = _SIDX.pack(length, b"sidx", 0, 1, _TICKS, int(ticks[0]), 0, 0, len(entries))
    yield {"content": np.frombuffer(init + sidx + b"".join(entries), np.uint8)}


def _segments(source: bytes | str, first: int, codec: str, **described: Any) -> Values:
    layout = _layout(described)
    for number, frames in enumerate(_chunks(source, layout, first, codec), first):
        ticks = layout.ticks[number * FRAMES : number * FRAMES + len(frames) + 1]
        for quality in _QUALITIES:
            _, fragment = _encode(frames, ticks, layout, quality)
            if len(fragment) <= layout.slot - 8:
                break
        else:
            raise RuntimeError(f"segment {number} does not fit")
        struct.pack_into(">I", fragment, fragment.index(b"mfhd") + 8, number + 1)  # its place among the fragments
        struct.pack_into(">Q", fragment, fragment.index(b"tfdt") + 8, int(ticks[0]))  # its time
        padding = struct.pack(">I4s", layout.slot - len(fragment), b"free")
        yield {"content": np.frombuffer(bytes(fragment) + padding, np.uint8)}


def _layout(described: Mapping[str, Any]) -> Layout:
    return Layout(described["width"], described["height"], np.array(described["times"], np.float64))


def _chunks(
    source: bytes | str, layout: Layout, first: int, codec: str
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


def _encode(
    frames: UInt8[np.ndarray, "n h w 3"], ticks: Int64[np.ndarray, " n+1"], layout: Layout, quality: int
) -> tuple[bytes, bytearray]:
    """The header of an MP4 file, and one fragment with these frames."""
    import av

    content = io.BytesIO()
    options = {
        "movflags": "frag_keyframe+empty_moov+default_base_moof",
        "video_track_timescale": str(_TICKS),
    }
    # One header fits all segments, whatever their quality: "stitchable". Without B-frames the times of decoding and
    # showing are the same.
    x264 = {"preset": "veryfast", "crf": str(quality), "bf": "0", "sc_threshold": "0"}
    x264["x264-params"] = "stitchable=1:threads=1"
    with av.open(content, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=30, options=x264)
        stream.width, stream.height = layout.size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = Fraction(1, _TICKS)
        context.gop_size = 10 * FRAMES
        context.thread_count = 1
        context.color_range, context.colorspace = 1, 6  # limited range, BT.601: what swscale converts to
        ends = dict(zip(ticks[:-1].tolist(), ticks[1:].tolist(), strict=True))

        def mux(picture: av.VideoFrame | None) -> None:
            for packet in stream.encode(picture):
                packet.duration = ends[packet.pts] - packet.pts
                container.mux(packet)

        for pixels, tick in zip(frames, ticks.tolist(), strict=False):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            picture = picture.reformat(*layout.size, format="yuv420p", threads=1)
            picture.pts, picture.time_base = tick, Fraction(1, _TICKS)
            mux(picture)
        mux(None)
    whole = content.getvalue()
    boxes, at = {}, 0
    while at < len(whole):
        size, name = struct.unpack_from(">I4s", whole, at)
        boxes[name] = whole[at : at + size]
        at += size
    return boxes[b"ftyp"] + boxes[b"moov"], bytearray(boxes[b"moof"] + boxes[b"mdat"])


_TASKS = {"probe": _probe, "poster": _poster, "header": _header, "segments": _segments}
