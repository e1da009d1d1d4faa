"""The manifest: a Parquet table with one row a video. Schema, reading, writing, splits, labels.

Every stage reads videos from here. The columns from `split` on may be null; frame labels of -1 mean "no label".

Whoever reads a manifest gets it checked as a whole and cleaned. Refused, all at once: values of another type or none
where one must be, a `video_id` twice, `frame_labels` or `progress` of another number than the video's frames, frame
labels below -1 or far beyond the number of classes, progress outside 0 to 1, a `frame_step` that is no step.
Mended: blanks around ids, splits and labels (nothing but blanks is null), upper case in `train`, `validation` and
`test`, null or NaN among frame labels (-1) or progress (none is known of that video).
"""

from __future__ import annotations

import hashlib
import io
import sys
from typing import Any

import numpy as np
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

_SPLITS = ("train", "validation", "test")
_MOST_UNUSED_CLASSES = 1000
_NUM_SHOWN = 5
_COUNT_AGAIN = "`carl_ray.index … --verify` counts the frames again"

_checked: set[tuple[str, int | None, int | None]] = set()
"""URI, size and time of the manifests that this process has checked."""

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


def read_manifest(
    uri: str, columns: list[str] | None = None, *, split: str | None = None, check: bool = True
) -> pa.Table:
    """The manifest as a cleaned table, in file order. Label columns that the file lacks are null.

    Args:
        uri: Where it is.
        columns: The columns to read; all of `SCHEMA` where not given.
        split: Only rows of this split; rows without a split count as "train".
        check: Refuse it, whatever rows are asked for, where it contradicts itself. Not for who makes it anew.

    Raises:
        UserError: it is not there, or is not a manifest: a column is missing or holds values of another type; or it
            contradicts itself, and the message lists how.
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

        def read(names: list[str]) -> pa.Table:
            present = [name for name in schema.names if name in names]
            table = storage.persistently(
                uri, "read", lambda: pq.read_table(path, filesystem=filesystem, columns=present)
            )
            for name in LABEL_COLUMNS:
                if name in names and name not in present:
                    table = table.append_column(name, pa.nulls(len(table)))
            return table

        missing = [name for name in wanted if name not in schema.names and name not in LABEL_COLUMNS]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        info = filesystem.get_file_info(path)
        version = (uri, info.size, info.mtime_ns)
        if check and (version not in _checked or not info.is_file):
            _refuse_contradictions(read(SCHEMA.names), uri)
            _checked.add(version)
        table = read([*(columns or [*schema.names, *LABEL_COLUMNS]), "split"])
        try:
            table = _cleaned(table)
        except pa.ArrowException:
            _refuse_contradictions(table, uri)
            raise
        if split is not None:
            wanted_split = _clean_splits(pa.array([split]))[0]
            table = table.filter(pc.equal(pc.fill_null(table.column("split"), "train"), wanted_split))
        # In the order asked for.
        return table.select(columns) if columns else table
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{storage.public_uri(uri)}: not a manifest ({reason})") from None
    except OSError as error:
        raise storage.storage_error(error, uri, "read") from None


def _cleaned(table: pa.Table) -> pa.Table:
    """The table with the types of `SCHEMA`, its ids and labels as they were meant."""
    table = clean_labels(table, SCHEMA.names)
    for name in set(SCHEMA.names) & set(table.column_names):
        if table.column(name).null_count and not SCHEMA.field(name).nullable:
            raise pa.ArrowInvalid(f"null among its {name}")
    return table


def clean_labels(table: pa.Table, names: list[str] = LABEL_COLUMNS) -> pa.Table:
    """The table with those of `LABEL_COLUMNS` (or of `names`) that it has cleaned, as the module says."""
    for place, name in enumerate(table.column_names):
        if name in names:
            table = table.set_column(place, SCHEMA.field(name), _clean(table.column(name), name))
    return table


def _clean(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    # Other tools write a column that is null throughout, or small integers, with a type of their own.
    type_ = SCHEMA.field(name).type
    if pa.types.is_string(type_):
        column = column.cast(type_)
        if name in ("video_id", "split", "label"):
            column = pc.utf8_trim_whitespace(column)
            column = pc.if_else(pc.equal(column, ""), None, column)
        return _clean_splits(column) if name == "split" else column
    if pa.types.is_list(type_) and not pa.types.is_null(column.type):
        if not isinstance(column.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
            raise pa.ArrowTypeError(f"its {name} are of type {column.type}, expected {type_}, one a frame")
        return pa.chunked_array([_clean_list(chunk, type_) for chunk in column.chunks], type_)
    return column.cast(type_)


def _clean_splits(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    lower = pc.utf8_lower(column)
    return pc.if_else(pc.is_in(lower, pa.array(_SPLITS)), lower, column)


def _clean_list(lists: pa.Array, type_: pa.DataType) -> pa.Array:
    """The lists with -1 for what is no integer, or null for those with something that is no number."""
    values = lists.flatten()
    is_float = pa.types.is_floating(values.type)
    if not values.null_count and not (is_float and pc.any(pc.is_nan(values)).as_py()):
        return lists.cast(type_)
    unknown = pc.is_null(values, nan_is_null=is_float)
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))])
    absent = lists.is_null()
    if pa.types.is_integer(type_.value_type):
        values = pc.if_else(unknown, -1, values)
    else:
        before = np.concatenate([[0], np.cumsum(unknown.to_numpy(zero_copy_only=False))])
        absent = pc.or_(absent, pa.array(before[offsets[1:]] > before[offsets[:-1]]))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.cast(type_.value_type), mask=absent)


def _refuse_contradictions(table: pa.Table, uri: str) -> None:
    """Raises `UserError` with all that cannot be meant, of the columns there; warns of what may not be."""
    shown = storage.public_uri(uri)
    problems = []
    columns = {
        name: pa.chunked_array([pa.nulls(len(table), SCHEMA.field(name).type)]) for name in SCHEMA.names
    }
    ids = columns["video_id"]

    def refuse(rows: np.ndarray, what: str, remedy: str, *values: Any) -> None:
        named = [
            f"row {row} ({ids[row].as_py()!r}) {what.format(*(value[row] for value in values))}"
            for row in rows[:_NUM_SHOWN].tolist()
        ]
        more = [f"and {len(rows) - _NUM_SHOWN:,} more"] if len(rows) > _NUM_SHOWN else []
        if named:
            problems.append(f"{', '.join(named + more)}: {remedy}")

    for name in [name for name in SCHEMA.names if name in table.column_names]:
        raw, field = table.column(name), SCHEMA.field(name)
        try:
            columns[name] = _clean(raw, name)
        except pa.ArrowException:
            misfits = _misfits(raw, name)
            if not misfits:
                problems.append(f"{name} is of type {raw.type}: expected {field.type}")
            wanted = getattr(field.type, "value_type", field.type)
            refuse(np.array([*misfits], int), f"has {name} {{}}", f"expected {wanted} in every row", misfits)
            continue
        ids = columns["video_id"]
        if not field.nullable:
            refuse(_rows(columns[name].is_null()), f"has no {name}", "every video needs one")
    frames, steps, labels, progress = (
        columns[name] for name in ("num_frames", "frame_step", "frame_labels", "progress")
    )
    codes = ids.combine_chunks().dictionary_encode("encode").indices.to_numpy(zero_copy_only=False)
    first = np.unique(codes, return_index=True)[1][codes]
    again = _rows(pc.and_(pa.array(first != np.arange(len(ids))), ids.is_valid()))
    refuse(again, "has the video_id of row {}", "give each an id of its own", first)
    refuse(_rows(pc.less(frames, 1)), "has {} frames", _COUNT_AGAIN, frames)
    no_step = pc.invert(pc.and_(pc.less(0, steps), pc.is_finite(steps)))
    refuse(_rows(no_step), "has frame_step {}", "expected a finite number above 0", steps)
    for name, lists, lowest, highest, meaning in (
        ("frame_labels", labels, -1, np.inf, "classes count from 0, and -1 is no label"),
        ("progress", progress, 0, 1, "it is the share of the action that is done, from 0 to 1"),
    ):
        lengths = pc.list_value_length(lists)
        remedy = f"give {name} for each frame (-1: no label), or null for the whole video; {_COUNT_AGAIN}"
        what = f"has {{}} {name} for {{}} frames"
        refuse(_rows(pc.not_equal(lengths, frames)), what, remedy, lengths, frames)
        rows, found = _outside(lists, lowest, highest)
        refuse(rows, f"has {name} {{:g}}", meaning, dict(zip(rows.tolist(), found, strict=True)))
    occurring = pc.unique(pc.list_flatten(labels)).to_numpy()
    occurring = occurring[occurring >= 0]
    highest = int(occurring.max(initial=-1))
    if highest >= max(_MOST_UNUSED_CLASSES, 10 * len(occurring)):
        problems.append(
            f"frame_labels go up to {highest}, which makes {highest + 1} classes of which {len(occurring)} occur: "
            "number the classes from 0 on"
        )
    if problems:
        raise UserError(f"{shown}: not a manifest (rows count from 0): {'; '.join(problems)}")
    for name in ("split", "label"):
        spelled: dict[str, str] = {}
        for value in sorted(columns[name].unique().drop_null().to_pylist()):
            other = spelled.setdefault(value.casefold(), value)
            if other != value:
                warning = f"warning: {shown}: {name} {other!r} and {value!r} differ only by case"
                print(warning, file=sys.stderr, flush=True)


def _rows(wrong: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.flatnonzero(pc.fill_null(wrong, False))


def _misfits(column: pa.ChunkedArray, name: str) -> dict[int, str]:
    """The first rows that do not become the type of `SCHEMA`, and a value that does not; none for another type.

    By halving: Arrow does not name them.
    """
    found: dict[int, str] = {}

    def search(part: pa.ChunkedArray, start: int) -> None:
        try:
            if len(found) < _NUM_SHOWN:
                # A copy: a cast of lists looks at what a slice leaves out, too.
                _clean(part.take(pa.array(np.arange(len(part)))), name)
        except pa.ArrowException:
            value, half = part[0].as_py(), len(part) // 2
            if half:
                search(part.slice(0, half), start)
                search(part.slice(half), start + half)
            elif isinstance(value, list) and len(value) > 1:
                each = pa.array([[one] for one in value], pa.list_(part.type.value_type))
                found[start] = next(iter(_misfits(pa.chunked_array([each]), name).values()), "such values")
            else:
                found[start] = repr(value[0] if isinstance(value, list) else value)[:80]

    try:
        _clean(column.slice(0, 0), name)
    except pa.ArrowException:
        return found
    search(column, 0)
    return found


def _outside(lists: pa.ChunkedArray, lowest: float, highest: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows of lists with a value outside the range, and the first such value of each."""
    rows, found, start = [np.array([], int)], [np.array([])], 0
    for chunk in lists.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        places = np.flatnonzero(~((values >= lowest) & (values <= highest)))
        ends = np.cumsum(pc.fill_null(pc.list_value_length(chunk), 0))
        of_chunk, firsts = np.unique(np.searchsorted(ends, places, side="right"), return_index=True)
        rows.append(start + of_chunk)
        found.append(values[places[firsts]])
        start += len(chunk)
    return np.concatenate(rows), np.concatenate(found)


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


def first_difference(before: pa.Table, after: pa.Table) -> str | None:
    """Where the second table differs first from the first one, in a column that both have; None where nowhere.

    Args:
        before: With `video_id`.
        after: Likewise.
    """
    for name in [name for name in before.column_names if name in after.column_names]:
        old, new = (table.column(name).combine_chunks() for table in (before, after))
        if old.equals(new):
            continue
        start, stop = 0, min(len(old), len(new))
        # By halving: Arrow compares no lists one by one.
        while start < stop:
            middle = (start + stop + 1) // 2
            same = old.slice(start, middle - start).equals(new.slice(start, middle - start))
            start, stop = (middle, stop) if same else (start, middle - 1)
        if start == min(len(old), len(new)):
            return f"{len(old)} videos before, now {len(new)}"
        one, other = old[start].as_py(), new[start].as_py()
        where = f"video {before.column('video_id')[start].as_py()!r}: "
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            place = next(i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
            one, other, where = one[place], other[place], f"{where}frame {place}: "
        return f"{where}{name} was {_shortened(one)}, is now {_shortened(other)}"
    return None


def _shortened(value: object) -> str:
    return f"{len(value)} values" if isinstance(value, list) else repr(value)


def write_table(table: pa.Table, uri: str) -> None:
    """Writes a table as one Parquet file, whole or not at all."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())
