"""Two augmented views of a video, and their row in an Arrow table. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64, UInt8

from carl_ray.config import Config
from carl_ray.data.memory import NUM_COLOR_VALUES, frame_shape


@dataclass(frozen=True)
class ViewPair:
    """Two views of one video, of T frames each."""

    frames: UInt8[np.ndarray, "2 time *frame"]
    """RGB (S, S, 3), or packed as by `carl_ray.data.pixels.to_yuv420`."""
    timestamps: Float64[np.ndarray, "2 time"]
    """Frame index in the raw video times the manifest's `frame_step`."""
    frame_mask: Bool[np.ndarray, "2 time"]
    """True for frames of the video, False for padding."""
    frame_labels: Int64[np.ndarray, "2 time"]
    """Class of each frame; -1 where it has none, and at padded places."""
    color: Float64[np.ndarray, "2 values"]
    """`AugmentParameters.to_vector` of each view, for a trainer that computes colour itself."""


def array_types(config: Config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The NumPy dtype and the shape of each field of a `ViewPair` of this run."""
    views = (2, config.model.num_frames)
    return {
        "frames": ("|u1", (*views, *frame_shape(config))),
        "timestamps": ("<f8", views),
        "frame_mask": ("|b1", views),
        "frame_labels": ("<i8", views),
        "color": ("<f8", (2, NUM_COLOR_VALUES)),
    }


def to_columns(pair: ViewPair | None, config: Config) -> dict[str, pa.Array]:
    """The columns of one row: the arrays' bytes without a copy; null for no pair."""
    columns = {}
    for name in array_types(config):
        if pair is None:
            columns[name] = pa.nulls(1, pa.large_binary())
            continue
        array = np.ascontiguousarray(getattr(pair, name))
        offsets = pa.py_buffer(np.array([0, array.nbytes], dtype=np.int64))
        buffers = [None, offsets, pa.py_buffer(array.reshape(-1))]
        columns[name] = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, buffers)
    return columns


def from_columns(table: pa.Table, index: int, config: Config) -> ViewPair | None:
    """The pair in a row of `to_columns`; read-only views of the table's memory."""
    fields = {}
    for name, (dtype, shape) in array_types(config).items():
        # Arrow's scalars are copies.
        (value,) = table.column(name).slice(index, 1).chunks
        if value.null_count:
            return None
        _, offsets, data = value.buffers()
        first, stop = np.frombuffer(offsets, np.int64)[value.offset : value.offset + 2]
        fields[name] = np.frombuffer(data, np.uint8)[first:stop].view(dtype).reshape(shape)
    return ViewPair(**fields)
