"""The table of keypoints beside a manifest, which `carl_ray.poses` writes: format, writing, reading. No Ray here.

    video_id, content_hash        as in the manifest, by which the table joins it
    keypoints                     list<float16>: num_frames x 17 joints x (x, y, score), as `pose_estimator` has them
    estimator, estimator_version  that made them

Rows are in the order of the ids. A row group holds few videos, so that a run reads those of a sample alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float16

from carl_ray import storage
from carl_ray.data.manifest import refuse_pickles, write_table
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

_VIDEOS_PER_GROUP = 8


def keypoint_rows(
    videos: pa.Table, keypoints: Sequence[Float16[np.ndarray, "frames 51"]], estimator: str, version: str
) -> pa.Table:
    """Rows with `SCHEMA` of videos with the columns `video_id` and `content_hash`."""
    offsets = np.cumsum([0, *(array.size for array in keypoints)]).astype(np.int32)
    values = pa.array(np.concatenate([array.reshape(-1) for array in keypoints]))
    columns = [videos.column("video_id"), videos.column("content_hash")]
    columns += [pa.ListArray.from_arrays(pa.array(offsets), values)]
    columns += [pa.array([text] * len(videos)) for text in (estimator, version)]
    return pa.table(columns, schema=SCHEMA)


def write_keypoint_table(table: pa.Table, rows: pa.Table, uri: str) -> pa.Table:
    """Write a table with more rows, atomically, and return it; they replace those of the same ids."""
    is_old = pc.is_in(table.column("video_id"), rows.column("video_id").combine_chunks())
    whole = pa.concat_tables([table.filter(pc.invert(is_old)), rows]).sort_by("video_id")
    write_table(whole, uri, row_group_size=_VIDEOS_PER_GROUP)
    return whole


def read_keypoint_table(uri: str) -> pa.Table:
    """All rows of a table; none where it does not exist.

    Raises:
        UserError: it is another file.
        RunError: the store refuses or fails.
    """
    if not storage.exists(uri):
        return SCHEMA.empty_table()
    try:
        file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)))
        refuse_pickles(file.schema_arrow)
        return file.read(SCHEMA.names).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{storage.public_uri(uri)}: not a table of keypoints ({reason})") from None
