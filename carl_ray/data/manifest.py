"""The manifest: a Parquet table with one row a video. Schema, reading, writing, splits, labels.

Every stage reads videos from here. The columns from `split` on may be null; frame labels of -1 mean "no label".
"""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from carl_ray import storage
from carl_ray.errors import UserError

SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),  # unique in the manifest
        pa.field("uri", pa.string(), nullable=False),  # where the file is, without credentials
        pa.field("num_frames", pa.int64(), nullable=False),  # frames that a full decode yields
        pa.field("fps", pa.float64()),  # frames a second, on average
        pa.field("width", pa.int32(), nullable=False),  # pixels, after rotation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("rotation", pa.int32(), nullable=False),  # degrees, as the file stores it
        pa.field("duration", pa.float64()),  # seconds
        pa.field("codec", pa.string()),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("modified_ns", pa.int64()),  # of the file, for incremental scans
        pa.field("content_hash", pa.string(), nullable=False),  # BLAKE2b-128 of the file, hex
        pa.field("verified", pa.bool_(), nullable=False),  # every frame was decoded once
        pa.field("frame_step", pa.float64(), nullable=False),  # timestamp of frame i is i * frame_step
        pa.field("split", pa.string()),  # null counts as "train"
        pa.field("label", pa.string()),  # of the video
        pa.field("frame_labels", pa.list_(pa.int32())),  # num_frames of them
        pa.field("progress", pa.list_(pa.float32())),  # true share of the action done, of each frame
    ]
)

LABEL_COLUMNS = ["split", "label", "frame_labels", "progress"]
"""What people and converters know of a video, and no scan can find out."""

STREAM_COLUMNS = ["video_id", "uri", "num_frames", "verified", "frame_step"]
"""What the stream of a run needs; `frame_labels` may stand beside them."""

REJECTS_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("modified_ns", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


def read_manifest(uri: str, columns: list[str] | None = None, *, split: str | None = None) -> pa.Table:
    """The manifest as a table, in file order. Label columns that the file lacks are null.

    Args:
        uri: Where it is.
        columns: The columns to read; all of `SCHEMA` where not given.
        split: Only rows of this split, filtered while reading; rows without a split count as "train".

    Raises:
        UserError: it is not there, or is not a manifest: a column is missing or holds values of another type.
    """
    filesystem, path = storage.resolve(uri)
    if not storage.exists(uri):
        raise UserError(
            f"{storage.public_uri(storage.absolute(uri))}: no manifest there; make one with "
            "`python -m carl_ray.index FOLDER --out MANIFEST`"
        )
    wanted = columns or SCHEMA.names
    try:
        schema = storage.persistently(
            uri, "read", lambda: pq.ParquetDataset(path, filesystem=filesystem).schema
        )
        refuse_pickles(schema)
        missing = [name for name in wanted if name not in schema.names and name not in LABEL_COLUMNS]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        filters = _in_split(split) if "split" in schema.names else None
        present = [name for name in wanted if name in schema.names] if columns else None
        table = storage.persistently(
            uri,
            "read",
            lambda: pq.read_table(path, filesystem=filesystem, columns=present, filters=filters),
        )
        if "split" not in schema.names and split not in (None, "train"):
            table = table.slice(0, 0)
        for name in wanted:
            if name in LABEL_COLUMNS and name not in table.column_names:
                table = table.append_column(
                    SCHEMA.field(name), pa.nulls(table.num_rows, SCHEMA.field(name).type)
                )
        # Other tools write a column that is null throughout, or small integers, with a type of their own.
        return table.cast(
            pa.schema([SCHEMA.field(f.name) if f.name in SCHEMA.names else f for f in table.schema])
        )
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{storage.public_uri(uri)}: not a manifest ({reason})") from None
    except OSError as error:
        raise storage.storage_error(error, uri, "read") from None


def refuse_pickles(schema: pa.Schema) -> None:
    """Raises `ValueError` where a column is of an extension type, of which a table of ours has none.

    Ray Data registers one with Arrow whose values are pickles: reading a value would run what is in it.
    """
    for field in schema:
        # The text of a nested type has those inside.
        if "extension<" in str(field.type):
            raise ValueError(f"its column {field.name!r} is of the type {field.type}, which may run code")


def attach_labels(manifest: pa.Table, labels: pa.Table) -> pa.Table:
    """The manifest with some of `LABEL_COLUMNS` taken from a table of labels, by video id.

    Args:
        manifest: As a scan of the folder with the videos makes it, or another table with `LABEL_COLUMNS`.
        labels: Column `video_id` and any of `LABEL_COLUMNS`, which replace the manifest's; videos that the
            manifest lacks are ignored.

    Raises:
        ValueError: a video of the manifest has no labels, or frame labels or progress of another number of
            frames than it has.
    """
    names = [name for name in LABEL_COLUMNS if name in labels.column_names]
    place_of = {video_id: place for place, video_id in enumerate(labels.column("video_id").to_pylist())}
    video_ids = manifest.column("video_id").to_pylist()
    unknown = [video_id for video_id in video_ids if video_id not in place_of]
    if unknown:
        raise ValueError(f"{unknown[0]}: it has no labels; was the manifest made of another folder?")
    found = labels.take(pa.array([place_of[video_id] for video_id in video_ids], pa.int64()))
    num_frames = manifest.column("num_frames") if "num_frames" in manifest.column_names else None
    for name in names:
        field = SCHEMA.field(name)
        column = found.column(name).cast(field.type)
        if pa.types.is_list(field.type) and num_frames is not None:
            wrong = pc.indices_nonzero(
                pc.fill_null(pc.not_equal(pc.list_value_length(column), num_frames), False)
            )
            if len(wrong):
                row = wrong[0].as_py()
                raise ValueError(
                    f"{video_ids[row]}: expected {num_frames[row]} of {name}, one a frame, "
                    f"got {len(column[row])}"
                )
        manifest = manifest.set_column(manifest.schema.get_field_index(name), field, column)
    return manifest


def videos_digest(table: pa.Table) -> str:
    """A short hash of which videos a table holds, in which order and how long: what a plan depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in table.select(["video_id", "num_frames"]).to_batches():
        for video_id, num_frames in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(f"{len(video_id)}:{video_id}:{num_frames};".encode())
    return digest.hexdigest()


def write_table(table: pa.Table, uri: str) -> None:
    """Writes a table as one Parquet file, whole or not at all."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())


def _in_split(split: str | None) -> pc.Expression | None:
    if split is None:
        return None
    chosen = pc.field("split") == split
    return chosen | pc.field("split").is_null() if split == "train" else chosen
