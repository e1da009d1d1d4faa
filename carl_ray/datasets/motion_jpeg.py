"""Mux JPEG files into Motion JPEG in MP4, without encoding them again.

Every packet of the video is the JPEG file, and decodes to the same pixels up to the rounding of the color
conversion and the interpolation of subsampled color, in which decoders differ. MP4 gives the exact frame count
and equal bytes for equal frames; Matroska stores a random number, AVI adds 6,000 bytes.

Exif segments are removed: PyAV cannot represent them, and an orientation would rotate single frames.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction

import av
import av.packet

_START, _END, _SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
# Start-of-frame segments, which hold the size: SOF0 to SOF15 but for DHT (C4), JPG (C8) and DAC (CC).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def mux_motion_jpeg(frames: Iterable[bytes], *, frames_per_second: int) -> bytes:
    """Mux JPEG files: the content of an MP4 file; equal frames give equal bytes.

    Args:
        frames: Whole JPEG files, in order and of one size; baseline or progressive, color or grey.
        frames_per_second: Nominal rate.

    Raises:
        ValueError: there is no frame, or one is no whole JPEG file or has another size than the first; the
            message names it, counted from 0.
    """
    buffer = io.BytesIO()
    time_base = Fraction(1, frames_per_second)
    stream = first_size = None
    with av.open(buffer, "w", format="mp4") as container:
        for index, frame in enumerate(frames):
            try:
                content, size = _stripped(frame)
            except ValueError as error:
                raise ValueError(f"frame {index} {error}") from None
            if first_size is None:
                first_size = width, height = size
                stream = container.add_mux_stream(
                    "mjpeg", rate=frames_per_second, width=width, height=height, time_base=time_base
                )
            if size != first_size:
                shown, first = (f"{width} x {height}" for width, height in (size, first_size))
                raise ValueError(f"frame {index} has {shown} pixels, the first one {first}")
            packet = av.packet.Packet(content)
            packet.stream, packet.time_base = stream, time_base  # type: ignore[assignment]
            packet.pts = packet.dts = index
            packet.duration = 1
            packet.is_keyframe = True
            container.mux(packet)
        if stream is None:
            raise ValueError("there is no frame")
    return buffer.getvalue()


def _stripped(jpeg: bytes) -> tuple[bytes, tuple[int, int]]:
    """Remove the Exif segments of a JPEG file: content, and (width, height) in pixels.

    Layout: ISO/IEC 10918-1, annex B. Segments of a marker and a length precede the first scan; within scans
    the markers of a scan or of the end cannot occur by chance: a byte 0xFF there is followed by 0x00.

    Raises:
        ValueError: it is no JPEG file, or is truncated.
    """
    if not jpeg.startswith(_START):
        raise ValueError("is no JPEG file")
    kept = [_START]
    size = None
    at = 2
    while True:
        while jpeg[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if at + 4 > len(jpeg) or jpeg[at] != 0xFF:
            raise ValueError("is a damaged JPEG file: its header breaks off")
        marker = jpeg[at + 1]
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if marker == _SCAN[1]:
            break
        if marker in _FRAME_MARKERS:
            size = int.from_bytes(jpeg[at + 7 : at + 9]), int.from_bytes(jpeg[at + 5 : at + 7])
        if not (marker == 0xE1 and jpeg[at + 4 : at + 8] == b"Exif"):
            kept.append(jpeg[at:end])
        at = end
    if size is None or 0 in size:
        raise ValueError("is a damaged JPEG file: it states no size")
    if jpeg.rfind(_END) < jpeg.rfind(_SCAN):
        raise ValueError("is a damaged JPEG file: its end is missing")
    kept.append(jpeg[at:])
    return b"".join(kept), size
