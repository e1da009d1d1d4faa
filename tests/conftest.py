"""Fixtures that every test may use: small real videos whose pixels encode the frame number."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

_ROWS, _COLUMNS = 3, 4  # blocks of the barcode, one bit each


def _barcode(number: int, height: int, width: int) -> np.ndarray:
    bits = np.array([number >> bit & 1 for bit in range(_ROWS * _COLUMNS)]).reshape(_ROWS, _COLUMNS)
    rows = np.minimum(np.arange(height) * _ROWS // height, _ROWS - 1)
    columns = np.minimum(np.arange(width) * _COLUMNS // width, _COLUMNS - 1)
    gray = (40 + 175 * bits[rows][:, columns]).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _frame_numbers(frames: np.ndarray) -> list[int]:
    numbers = []
    for frame in frames:
        height, width = frame.shape[:2]
        rows = ((np.arange(_ROWS) + 0.5) * height / _ROWS).astype(int)
        columns = ((np.arange(_COLUMNS) + 0.5) * width / _COLUMNS).astype(int)
        bits = frame[rows][:, columns, 1] > 127
        numbers.append(int((bits.reshape(-1) << np.arange(bits.size)).sum()))
    return numbers


def _make_video(
    path: Path,
    num_frames: int = 60,
    width: int = 64,
    height: int = 48,
    *,
    fps: int = 30,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    gop: int = 250,
    b_frames: int = 2,
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    matrix: tuple[int, int, int, int] | None = None,
) -> Path:
    """Writes a video; frame i shows i as 12 blocks, black or white.

    Args:
        path: The suffix names the container.
        num_frames: At most 4,096.
        width: Pixels.
        height: Pixels.
        fps: Frames a second; also the time base.
        codec: FFmpeg's name of the encoder.
        pixel_format: FFmpeg's name of it.
        gop: Frames between key frames.
        b_frames: At most so many B-frames in a row.
        options: Of the encoder.
        pts: Timestamps of the frames in units of 1 / fps; None means 0, 1, 2, …
        matrix: (a, b, c, d) of the display matrix, written into an MP4 or MOV file's track header.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(_barcode(index, height, width), format="rgb24")
            frame.pts = index if pts is None else pts[index]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if matrix is not None:
        content = bytearray(path.read_bytes())
        a, b, c, d = (value << 16 for value in matrix)
        at = content.index(b"tkhd") + 44
        content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(content)
    return path


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """A function that writes a small video whose frame i shows the number i; see `_make_video`."""
    return _make_video


@pytest.fixture(scope="session")
def frame_numbers() -> Callable[[np.ndarray], list[Any]]:
    """A function that reads the numbers back from frames (N, H, W, 3) of any size."""
    return _frame_numbers
