"""The optional decoder decord (extra `carl_ray[decord]`). No Ray here.

PyAV is the default because decord decoded 11 to 24 % fewer frames a CPU second, returned wrong frames without an
error on files with edit lists or hidden frames and on transport streams, and failed on files that PyAV reads, AV1
among them. It also picks FFmpeg's best stream instead of the first, fails where the result is under 64 pixels wide,
may hang, and is no longer maintained.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from carl_ray.data.video_file import COUNT_AGAIN, DecodeError, one_line, open_container, scaled_size
from carl_ray.errors import UserError


def read_with_decord(
    readable: bytes | Path, indices: np.ndarray, short_side: int | None
) -> UInt8[np.ndarray, "frames height width 3"]:
    """The frames at the given indices, in order; errors as in `decode.read_frames`."""
    try:
        import decord
    except ImportError:
        raise UserError(
            "decoder decord is not installed: `pip install 'carl_ray[decord]'`, or choose pyav"
        ) from None
    try:
        # decord has no list of formats: refuse what PyAV refuses, such as a playlist, which names other files.
        open_container(readable).close()
    except DecodeError as error:
        raise DecodeError(f"not given to decord: {error}") from None

    def reader(**size: int) -> Any:
        file = io.BytesIO(readable) if isinstance(readable, bytes) else str(readable)
        return decord.VideoReader(file, ctx=decord.cpu(0), num_threads=1, **size)

    try:
        video = reader()
        if short_side is not None:
            height, width = video[0].shape[:2]
            width, height = scaled_size(width, height, short_side)
            video = reader(width=width, height=height)
        if indices.max() >= len(video):
            raise DecodeError(
                f"frame {indices.max()} was asked for, but decord finds {len(video)} frames; {COUNT_AGAIN}"
            )
        return video.get_batch(indices.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise DecodeError(f"decord: {one_line(error).partition(' Stack trace')[0]}") from None
