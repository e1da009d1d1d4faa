"""Video files in PyAV: opening, decoding, orientation, failures. No Ray here."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.packet
import av.video
import numpy as np

from carl_ray import address, storage

# Errors for which no video is to blame. FFmpeg has EIO for damage, too.
_STORAGE_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)
_CHUNK = 8 << 20  # bytes
COUNT_AGAIN = "`carl_ray.index … --verify` counts the frames that decode"
"""Remedy where a video has another number of frames than its manifest says."""


class DecodeError(Exception):
    """A video that cannot be opened or has no such frame; the message is one line."""


_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,asf,flv,ogg,mxf"
"""Formats that contain their pictures. A playlist (HLS, concat, SDP, …) under the name of a video would have FFmpeg
open other files, or the network."""


@dataclass(frozen=True)
class VideoSource:
    """A video as the decoders read it: a file, or frames `start` to `stop` - 1 of one."""

    readable: bytes | Path
    """The content of the file, or the path of a local one, which need not be held in memory."""
    start: int = 0
    stop: int | None = None
    """None: the whole file."""
    file_frames: int | None = None
    """Frames of the file of a range; None where they are not known."""

    @property
    def is_range(self) -> bool:
        """Whether it is a range of frames, not all of them."""
        return self.stop is not None

    @property
    def num_frames(self) -> int | None:
        """Frames of a range; None for a whole file."""
        return None if self.stop is None else self.stop - self.start

    def num_file_frames(self, num_frames: int | None) -> int | None:
        """Frames that a full decode of the file yields, given those of the video; None: not known."""
        return self.file_frames if self.is_range and num_frames is not None else num_frames

    def check(self, last: int) -> None:
        """Raise `DecodeError` for a frame beyond the range."""
        if self.num_frames is not None and last >= self.num_frames:
            raise DecodeError(f"frame {last} was asked for, but the range has {self.num_frames} frames")


AnySource = bytes | str | VideoSource
"""A video: the content of a file, a path, a URI or an address (`carl_ray.address`), or what was opened."""


def open_source(source: AnySource) -> VideoSource:
    """The readable of a video and its frames in it; fetches what is not a local file of its own.

    Raises:
        UserError: a remote file, or a part of a file, is not there.
        RunError: the store refuses or fails.
    """
    if isinstance(source, VideoSource):
        return source
    if isinstance(source, bytes):
        return VideoSource(source)
    place = address.parse(source)
    is_local = not storage.is_remote(source) and place.byte_offset is None
    readable = Path(storage.resolve(source)[1]) if is_local else storage.read_bytes(source)
    return VideoSource(readable, place.start_frame or 0, place.end_frame, place.file_frames)


def open_container(readable: bytes | Path) -> av.container.InputContainer:
    """Open a video file of one of `_FORMATS`.

    Raises:
        DecodeError: it does not exist or cannot be opened; the message says why.
        RunError: the disk fails.
    """
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
        _raise_storage_error(readable, error)
        raise DecodeError(_why_not_opened(readable, error)) from None


def video_stream(container: av.container.InputContainer) -> av.video.VideoStream:
    """The first video stream that is not a cover picture, with one thread.

    Raises:
        DecodeError: there is none, or no decoder for it.
    """
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise DecodeError("no decoder for its video stream")
            stream.codec_context.thread_count = 1
            return stream
    # The remaining streams of type "video" are cover pictures.
    others = sorted({"a cover picture" if s.type == "video" else s.type for s in container.streams}, key=len)
    raise DecodeError(
        f"no video stream, only {' and '.join(others)}" if others else "no video stream, no stream at all"
    )


def packets_of(
    container: av.container.InputContainer, stream: av.video.VideoStream
) -> Iterator[av.packet.Packet]:
    """Yield the packets that are not empty, up to the end or to a read error."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except (av.FFmpegError, OSError):
        return


def decoded_frames(
    readable: bytes | Path,
    container: av.container.InputContainer,
    stream: av.video.VideoStream,
    failure: list[str],
) -> Iterator[av.VideoFrame]:
    """Yield all frames up to the first bad packet; its error goes into `failure`.

    Packets before the first key frame may fail, since they may refer to pictures that are not in the file.

    Raises:
        RunError: the disk fails.
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
                failure[:] = [one_line(error)]
        if begun:
            failure.clear()
    except (av.FFmpegError, OSError) as error:
        _raise_storage_error(readable, error)
        failure[:] = [one_line(error)]


def _raise_storage_error(readable: bytes | Path, error: Exception) -> None:
    """Raise `RunError` if the disk failed and not the video."""
    if isinstance(readable, bytes) or not isinstance(error, OSError) or error.errno not in _STORAGE_ERRORS:
        return
    try:
        if error.errno != errno.EIO:
            raise error
        with readable.open("rb") as file:
            while file.read(_CHUNK):
                pass
    except OSError as cause:
        raise storage.storage_error(cause, str(readable), "read") from None


# Orientation and size


@dataclass(frozen=True)
class Orientation:
    """Transformation of stored to displayed pixels: transposition, then flips."""

    transpose: bool = False
    flip_horizontal: bool = False
    flip_vertical: bool = False

    @staticmethod
    def of(frame: av.VideoFrame) -> Orientation:
        """Read the display matrix (a b u; c d v; x y w).

        Displayed x = a x + c y, displayed y = b x + d y.
        """
        try:
            side_data: Any = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV has no name for one of the types, such as Exif of a Motion JPEG.
            side_data = None
        if side_data is None:
            return Orientation()
        a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].astype(np.int64).tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return Orientation(True, flip_horizontal=c < 0, flip_vertical=b < 0)
        return Orientation(False, flip_horizontal=a < 0, flip_vertical=d < 0)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """The displayed picture (height, width, 3) of a stored one, as a view."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        if self.flip_horizontal:
            pixels = pixels[:, ::-1]
        return pixels[::-1] if self.flip_vertical else pixels


def displayed_size(
    stream: av.video.VideoStream, frame: av.VideoFrame, orientation: Orientation
) -> tuple[int, int]:
    """Width and height after rotation, in pixels."""
    # The stream's size, not the frame's: if frames change size, the shape must not depend on which are read.
    width = stream.codec_context.width or frame.width
    height = stream.codec_context.height or frame.height
    return (height, width) if orientation.transpose else (width, height)


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height with this shorter side (None: unchanged), rounded."""
    if short_side is None:
        return width, height
    scale = Fraction(short_side, min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


# Reasons


def _why_not_opened(readable: bytes | Path, error: Exception) -> str:
    if isinstance(readable, Path) and readable.is_dir():
        return "a folder, not a video"
    if (len(readable) if isinstance(readable, bytes) else readable.stat().st_size) == 0:
        return "the file is empty"
    boxes = mp4_boxes(readable)
    if boxes and boxes[0][0] == b"ftyp" and b"moov" not in [name for name, _ in boxes]:
        return "truncated: the table of its frames (moov) is missing"
    if _is_encrypted(boxes):
        return "encrypted"
    return f"not a video that can be opened ({one_line(error)})"


def why_nothing_decodes(readable: bytes | Path, failure: list[str]) -> str:
    """Reason why a file has no frame; `failure` as from `decoded_frames`."""
    if _is_encrypted(mp4_boxes(readable)):
        return "encrypted"
    return f"no frame decodes ({failure[0] if failure else 'the stream holds no complete frame'})"


def _is_encrypted(boxes: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"moov" and b"encv" in content for name, content in boxes)


def mp4_boxes(readable: bytes | Path) -> list[tuple[bytes, bytes]]:
    """The outermost boxes of an MP4 file: name, and for `moov` the content."""
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


def one_line(error: Exception) -> str:
    """The text of an error of the system or FFmpeg, without line breaks."""
    strerror = getattr(error, "strerror", None)
    return " ".join(str(strerror or error).split())
