"""The keypoints beside a manifest, which `carl_ray.poses` writes: files, writing, reading. No Ray and no torch here.

    FOLDER/part-00000.parquet     one row, and row group, a video

    video_id, content_hash        as in the manifest, by which the table joins it
    num_frames                    as in the manifest
    keypoints                     list<float16>: num_frames x 17 joints x (x, y, score), as `pose_estimator` has them
    keypoints_digest              hash of them; null: nobody is in the video
    estimator, estimator_version  that made them

Parts are written atomically and never changed: a run that reads a folder is not disturbed by a process that adds to it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16

from carl_ray import storage
from carl_ray.data.features import add_part, list_parts, open_parquet
from carl_ray.data.keypoints import KEYPOINTS, NUM_JOINTS, keypoints_digest, with_digests
from carl_ray.errors import UserError

SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("num_frames", pa.int64(), nullable=False),
        pa.field("keypoints", pa.list_(pa.float16()), nullable=False),
        pa.field("keypoints_digest", pa.string()),
        pa.field("estimator", pa.string(), nullable=False),
        pa.field("estimator_version", pa.string(), nullable=False),
    ]
)

PART, GROUP = "keypoints_part", "keypoints_group"
"""Columns of the videos of a run: URI of the part, number of the row group; null where a video has no keypoints."""

_KEY = ("video_id", "content_hash", "num_frames")
_T = TypeVar("_T")


def add_keypoints(
    folder: str,
    videos: pa.Table,
    keypoints: Sequence[Float16[np.ndarray, "frames 51"]],
    estimator: str,
    version: str,
) -> None:
    """Add a part, atomically; of the same video, the last part counts.

    Args:
        folder: URI; only one process at a time may write to it.
        videos: Columns `video_id`, `content_hash`.
        keypoints: Of each video.
        estimator: Name of what made them.
        version: Its version.
    """
    flat = [array.reshape(-1) for array in keypoints]
    offsets = np.cumsum([0, *(values.size for values in flat)]).astype(np.int32)
    columns = [videos.column("video_id"), videos.column("content_hash")]
    columns += [pa.array([len(array) for array in keypoints])]
    columns += [pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(flat)))]
    columns += [pa.array([keypoints_digest(values) for values in flat], pa.string())]
    columns += [pa.array([text] * len(videos)) for text in (estimator, version)]
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink, row_group_size=1, compression="zstd")
    add_part(folder, sink.getvalue())


def read_keypoint_table(folder: str, names: Sequence[str] = SCHEMA.names) -> pa.Table:
    """These columns of all parts, in the order of writing; without rows where there are none.

    Raises:
        UserError: a part is another file.
        RunError: the store refuses or fails.
    """
    schema = pa.schema([SCHEMA.field(name) for name in names])
    parts = [_read(part, lambda file: _checked(file.read(names), schema)) for part in _parts(folder)]
    return pa.concat_tables([schema.empty_table(), *parts])


def locate_keypoints(videos: pa.Table, folder: str, kind: str = "training") -> pa.Table:
    """The videos with `PART` and `GROUP`, null where they have no keypoints, and `keypoints_digest`.

    A video has none where its row is missing, made of another file or of another number of frames, or nobody is in it.
    Says how many.

    Args:
        videos: Columns `video_id`, `content_hash`, `num_frames`.
        folder: URI.
        kind: As for `check_keypoints`.

    Raises:
        UserError: there is no such folder, or more than half of the videos have no keypoints.
        RunError: the store refuses or fails.
    """
    folder = storage.absolute(folder)  # Decoding tasks have other working directories.
    shown = storage.public_uri(folder)
    parts = _parts(folder)
    if not parts:
        raise UserError(f"{shown}: no keypoints there; `carl-ray poses MANIFEST --out FOLDER` makes them")
    schema = pa.schema([SCHEMA.field(name) for name in (*_KEY, "keypoints_digest")])
    places: dict[tuple[str, str, int], tuple[str | None, int | None, str | None]] = {}
    for part in parts:
        rows = _read(part, lambda file: _checked(file.read(schema.names), schema))
        for group, (*key, digest) in enumerate(zip(*(column.to_pylist() for column in rows), strict=True)):
            places[tuple(key)] = (None, None, None) if digest is None else (part, group, digest)
    wanted = zip(*(videos.column(name).to_pylist() for name in _KEY), strict=True)
    found = [places.get(key, (None, None, None)) for key in wanted]
    videos = videos.append_column(PART, pa.array([part for part, _, _ in found], pa.string()))
    videos = videos.append_column(GROUP, pa.array([group for _, group, _ in found], pa.int32()))
    return with_digests(videos, [digest for _, _, digest in found], shown, kind)


def read_keypoints(part: str, group: int) -> Float16[np.ndarray, "frames 17 3"]:
    """The keypoints of every frame of a video.

    Args:
        part: URI, as from `locate_keypoints`.
        group: Number of the row group there.

    Raises:
        UserError: the part is damaged.
        RunError: the store refuses or fails.
    """
    values = _read(part, lambda file: file.read_row_group(group, [KEYPOINTS]).column(0)[0].values)
    return values.to_numpy(zero_copy_only=False).reshape(-1, NUM_JOINTS, 3)


def _parts(folder: str) -> list[str]:
    if storage.is_file(folder):
        raise UserError(
            f"{storage.public_uri(folder)}: expected a folder of keypoints, found a file; "
            "`carl-ray poses MANIFEST --out FOLDER` makes them anew"
        )
    return list_parts(folder)


def _checked(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.select(schema.names).cast(schema)


def _read(part: str, attempt: Callable[[pq.ParquetFile], _T]) -> _T:
    """Read from a part, persistently."""
    with storage.reading(part, "not a part of keypoints"):
        return storage.persistently(part, "read", lambda: attempt(open_parquet(part, "part of keypoints")))
