"""The table of keypoints beside a manifest, which `carl_ray.poses` writes: format, writing, reading. No Ray here.

    video_id, content_hash        as in the manifest, by which the table joins it
    keypoints                     list<float16>: num_frames x 17 joints x (x, y, score), as `pose_estimator` has them
    estimator, estimator_version  that made them

Rows are in the order of the ids. A row group holds few videos, of which a run reads one for a sample. The whole table
is written anew each time: up to some 40 million frames, the most that one column of an Arrow table holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float16

from carl_ray import storage
from carl_ray.data.features import open_parquet
from carl_ray.data.keypoints import KEYPOINTS, NUM_JOINTS, keypoints_digest, with_digests
from carl_ray.data.manifest import write_table
from carl_ray.errors import UserError

SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("keypoints", pa.list_(pa.float16()), nullable=False),
        pa.field("estimator", pa.string(), nullable=False),
        pa.field("estimator_version", pa.string(), nullable=False),
    ]
)

GROUP = "keypoints_group"
"""Column of the videos of a run: number of the row group of the table; null where a video has no keypoints."""

_VIDEOS_PER_GROUP = 8
_T = TypeVar("_T")


def add_keypoints(
    uri: str,
    videos: pa.Table,
    keypoints: Sequence[Float16[np.ndarray, "frames 51"]],
    estimator: str,
    version: str,
) -> None:
    """Add rows of videos to a table, or begin it, atomically; they replace rows of the same ids.

    `videos` has the columns `video_id` and `content_hash`.
    """
    table = read_keypoint_table(uri)
    offsets = np.cumsum([0, *(array.size for array in keypoints)]).astype(np.int32)
    values = pa.array(np.concatenate([array.reshape(-1) for array in keypoints]))
    columns = [videos.column("video_id"), videos.column("content_hash")]
    columns += [pa.ListArray.from_arrays(pa.array(offsets), values)]
    columns += [pa.array([text] * len(videos)) for text in (estimator, version)]
    is_old = pc.is_in(table.column("video_id"), columns[0].combine_chunks())
    rows = pa.table(columns, schema=SCHEMA)
    whole = pa.concat_tables([table.filter(pc.invert(is_old)), rows]).sort_by("video_id")
    write_table(whole, uri, row_group_size=_VIDEOS_PER_GROUP)


def read_keypoint_table(uri: str, names: Sequence[str] = SCHEMA.names) -> pa.Table:
    """These columns of a table, without rows where it does not exist.

    Raises:
        UserError: it is another file.
        RunError: the store refuses or fails.
    """
    if not storage.exists(uri):
        return SCHEMA.empty_table()
    open_parquet.cache_clear()  # It may have grown.
    schema = pa.schema([SCHEMA.field(name) for name in names])
    return _read(uri, lambda file: file.read(names).select(names).cast(schema))


def locate_keypoints(videos: pa.Table, uri: str, kind: str = "training") -> pa.Table:
    """The videos with `keypoints_group`, null where they have none, and `keypoints_digest`.

    A video has none where its row is missing, made of another file or of another number of frames, or nobody is in it.
    Says how many.

    Args:
        videos: Columns `video_id`, `content_hash`, `num_frames`.
        uri: Of the table.
        kind: As for `check_keypoints`.

    Raises:
        UserError: there is no such table, or more than half of the videos have no keypoints.
        RunError: the store refuses or fails.
    """
    shown = storage.public_uri(storage.absolute(uri))
    if not storage.exists(uri):
        raise UserError(
            f"{shown}: no table of keypoints there; `carl-ray poses MANIFEST --out TABLE` makes one"
        )
    names = ("video_id", "content_hash", "num_frames")
    wanted = zip(*(videos.column(name).to_pylist() for name in names), strict=True)
    indices = {key: index for index, key in enumerate(wanted)}
    groups: list[int | None] = [None] * len(videos)
    digests: list[str | None] = [None] * len(videos)

    def scan(file: pq.ParquetFile) -> None:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        group_of = iter(np.repeat(np.arange(len(sizes)), sizes).tolist())
        for batch in file.iter_batches(batch_size=256, columns=[*names[:2], KEYPOINTS]):
            for video_id, content_hash, found in zip(*batch.columns, strict=True):
                group, values = next(group_of), found.values.to_numpy(zero_copy_only=False)
                frames, rest = divmod(len(values), NUM_JOINTS * 3)
                index = indices.get((video_id.as_py(), content_hash.as_py(), frames))
                if index is not None and not rest:
                    digests[index] = keypoints_digest(values)
                    groups[index] = None if digests[index] is None else group

    open_parquet.cache_clear()
    _read(uri, scan)
    videos = videos.append_column(GROUP, pa.array(groups, pa.int32()))
    return with_digests(videos, digests, shown, kind)


def read_keypoints(uri: str, group: int, video_id: str) -> Float16[np.ndarray, "frames 17 3"]:
    """The keypoints of every frame of a video.

    Args:
        uri: Of the table.
        group: Number of its row group, as from `locate_keypoints`.
        video_id: Of the video.

    Raises:
        UserError: the table is damaged, or another one than was located.
        RunError: the store refuses or fails.
    """
    for _ in range(2):
        with suppress(UserError):
            rows = _read(uri, lambda file: file.read_row_group(group, ["video_id", KEYPOINTS]))
            ids = rows.column("video_id").to_pylist()
            if video_id in ids:
                values = rows.column(KEYPOINTS)[ids.index(video_id)].values
                return values.to_numpy(zero_copy_only=False).reshape(-1, NUM_JOINTS, 3)
        open_parquet.cache_clear()  # It may have been opened before the one that was located replaced it.
    raise UserError(
        f"{storage.public_uri(uri)}: its rows are not those of the start of the run; start it again"
    )


def _read(uri: str, attempt: Callable[[pq.ParquetFile], _T]) -> _T:
    """Read from a table, persistently."""
    try:
        return storage.persistently(uri, "read", lambda: attempt(open_parquet(uri, "table of keypoints")))
    except (pa.ArrowException, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{storage.public_uri(uri)}: not a table of keypoints ({reason})") from None
    except OSError as error:
        raise storage.storage_error(error, uri, "read") from None
