"""Two aligned videos side by side, as H.264 in MP4 (paper, figure 5).

    first, at its own pace │ second, the frame aligned with it │ second, the frame at the same relative position

The third panel shows the pair without alignment. All three stream: memory grows only with the compressed result.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import matplotlib
import numpy as np
from jaxtyping import Int, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont

from carl_ray import storage
from carl_ray.data.decode import VideoProbe, iterate_frames, probe_video
from carl_ray.data.video_file import AnySource, VideoSource, open_source

_HEIGHT = 240  # of the pictures, pixels
_MOST_WIDTH = 400  # of one picture; wider ones get bars above and below
_LEAST_WIDTH = 200  # of one panel: room for the text
_TEXT_HEIGHT = 52
_GAP = 4
_CHUNK_FRAMES = 16
_BACKGROUND = 24
_USUAL_RATE = 25.0


@dataclass(frozen=True)
class Clip:
    """A video file and its name in the picture."""

    name: str
    source: AnySource
    num_frames: int


def partners(path: Int[np.ndarray, "steps 2"], num_frames: int) -> Int64[np.ndarray, " num_frames"]:
    """The frame of the second video to show with each frame of the first.

    That is the middle one of its partners. Frames that the path lacks (it may be strided) are interpolated between
    their neighbours. The result never decreases.

    Args:
        path: Pairs of frames, both columns non-decreasing, as `carl_ray.evaluation.warping.align_pair`
            returns them.
        num_frames: Frames of the first video.
    """
    frames, starts = np.unique(path[:, 0], return_index=True)
    stops = np.append(starts[1:], len(path))
    middles = (path[starts, 1] + path[stops - 1, 1]) // 2
    return np.floor(np.interp(np.arange(num_frames), frames, middles)).astype(np.int64)


def same_relative_position(num_frames: int, other_frames: int) -> Int64[np.ndarray, " num_frames"]:
    """The frame of another video at the relative position of each frame."""
    steps = np.arange(num_frames) / max(num_frames - 1, 1)
    return np.floor(steps * (other_frames - 1) + 0.5).astype(np.int64)


def aligned_video(first: Clip, second: Clip, path: Int[np.ndarray, "steps 2"]) -> bytes:
    """Two aligned videos side by side, as MP4 (H.264, yuv420p, index first).

    It has the frames and the frame rate of the first video, and is deterministic with the same libraries.

    Args:
        first: Keeps its pace.
        second: Follows the first.
        path: As for `partners`.

    Raises:
        DecodeError: a video cannot be read, or has fewer frames than it should.
        UserError: a remote video is not there.
        RunError: the store refuses or fails, or there is no room for the temporary file.
    """
    # A remote file is fetched once for all panels.
    sources = [open_source(source) for source in (first.source, second.source)]
    probes = [probe_video(source) for source in sources]
    unaligned = same_relative_position(first.num_frames, second.num_frames)
    shown = [
        _panel(first.name, sources[0], probes[0], np.arange(first.num_frames), ""),
        _panel(second.name, sources[1], probes[1], partners(path, first.num_frames), "aligned"),
        _panel(second.name, sources[1], probes[1], unaligned, "not aligned"),
    ]
    try:
        with tempfile.TemporaryDirectory(prefix="carl_ray-video-") as folder:
            target = Path(folder) / "aligned.mp4"
            _encode(_side_by_side(shown), target, probes[0].fps or _USUAL_RATE)
            return target.read_bytes()
    except (av.FFmpegError, OSError) as error:
        failure = error if isinstance(error, OSError) else OSError(str(error))
        raise storage.storage_error(failure, tempfile.gettempdir(), "write a video into") from None


def _panel(
    name: str, source: VideoSource, probe: VideoProbe, indices: Int[np.ndarray, " shown"], remark: str
) -> Iterator[Image.Image]:
    """A picture for each of the non-decreasing indices: the frame below its video's name and its time."""
    scale = min(_HEIGHT / probe.height, _MOST_WIDTH / probe.width)
    # Even, since yuv420p halves the resolution of colours.
    width = max(_LEAST_WIDTH, round(probe.width * scale) // 2 * 2)
    # Matplotlib's copy of DejaVu has letters of most alphabets and is on every machine.
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 16)
    empty = Image.new("RGB", (width, _TEXT_HEIGHT + _HEIGHT), (_BACKGROUND,) * 3)
    ImageDraw.Draw(empty).text((4, 5), _shortened(name, font, width - 8), "white", font)
    short_side = max(1, round(min(probe.height, probe.width) * scale))
    chunks = iterate_frames(source, int(indices[-1]) + 1, chunk_frames=_CHUNK_FRAMES, short_side=short_side)
    frames = (frame for chunk in chunks for frame in chunk)
    at, picture = -1, empty
    for index in indices.tolist():
        while at < index:
            picture = Image.fromarray(next(frames))
            at += 1
        panel = empty.copy()
        time = f"frame {index}" if probe.fps is None else f"{index / probe.fps:.2f} s"
        ImageDraw.Draw(panel).text((4, 29), f"{time}  {remark}", (190,) * 3, font)
        # Rounding may have made a frame one pixel too large.
        left, top = (width - picture.width) // 2, max(0, (_HEIGHT - picture.height) // 2)
        panel.paste(picture, (left, _TEXT_HEIGHT + top))
        yield panel


def _side_by_side(panels: Sequence[Iterator[Image.Image]]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    gap = np.full((_TEXT_HEIGHT + _HEIGHT, _GAP, 3), _BACKGROUND, np.uint8)
    for first, second, third in zip(*panels, strict=True):
        yield np.concatenate([first, gap, second, gap, third], axis=1)


def _encode(pictures: Iterator[UInt8[np.ndarray, "height width 3"]], target: Path, fps: float) -> None:
    first = next(pictures)
    rate = Fraction(fps).limit_denominator(1001)
    # On disk, because faststart moves the index to the front by reading the file again.
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # With a fixed quantizer and one thread, x264 is deterministic.
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "qp": "26"})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in itertools.chain([first], pictures):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut at its beginning to so many pixels: names differ at the end."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text
