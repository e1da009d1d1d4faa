"""The manifest, a Parquet table with one row a video: schema, reading, labels.

The columns from `split` on may be null; a frame label of -1 means "no label".

A row may be a part of its file: a member of a shard (`byte_offset`, `byte_length`), a range of frames (`start_frame`,
`end_frame`, exclusive, and `file_frames`, those of the whole), or both. These columns are in the file alone, which may
lack them: in a table that `read_manifest` returns, `uri` is the address (`carl_ray.address`), and `save_manifest`
divides it again.

`read_manifest` validates the whole table and cleans it. Errors, all reported at once: values of another type, null
where one is required, a `video_id` twice, `frame_labels` or `progress` whose number is not that of the video's
frames, frame labels below -1, far beyond the number of classes or without a name, progress outside 0 to 1, a
`frame_step`, `fps` or `duration` that is not positive and finite, `frame_times` that decrease, `key_frames` that the
video does not have. Cleaned: blanks around ids, splits, labels and phase names (an empty one of the first three is
null), other spellings of splits (`SPLITS`), null or NaN among frame labels (-1) or progress (null for that video), NaN
in other columns that may be null.

Longer than 400 lines: schema, checks and cleaning of a column change together.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from carl_ray import storage
from carl_ray.address import Address, parse
from carl_ray.errors import UserError, note

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
        pa.field("frame_times", pa.list_(pa.float64())),  # seconds from frame 0; null: frame i is at i / fps
        pa.field("key_frames", pa.list_(pa.int32())),  # indices of those that the file marks; null: not known
        pa.field("split", pa.string()),  # null counts as "train"
        pa.field("label", pa.string()),  # of the video
        pa.field("frame_labels", pa.list_(pa.int32())),  # num_frames of them
        pa.field("phase_names", pa.list_(pa.string())),  # name k is that of frame label k; null: no names
        pa.field("progress", pa.list_(pa.float32())),  # true share of the action done, of each frame
    ]
)

_PLACE = Address._fields[1:]
"""Columns of the place of a video in its file, int64; null: the whole file."""

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv"}
)

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of splits and of first-level folders that determine them, in lower case."""

_MOST_UNUSED_CLASSES = 1000
_NUM_SHOWN = 5
_COUNT_AGAIN = "`carl_ray.index … --verify` counts the frames again"

LABEL_COLUMNS = ["split", "label", "frame_labels", "phase_names", "progress"]
"""Columns that people and converters add, and a scan leaves null."""

_MAY_LACK = [*LABEL_COLUMNS, "frame_times", "key_frames", "keypoints"]
"""Columns that a file may lack: they are null then. `keypoints` is not of `SCHEMA`, whose cleaning drops NaN."""


class StreamVideo(TypedDict):
    """A row of a table with `STREAM_COLUMNS`."""

    video_id: str
    uri: str
    num_frames: int
    verified: bool
    frame_step: float
    frame_labels: NotRequired[list[int] | None]
    key_frames: NotRequired[list[int] | None]
    keypoints: NotRequired[np.ndarray | None]
    """float16 (num_frames, 17, 3), as from `carl_ray.data.keypoints.video_keypoints`."""
    keypoints_part: NotRequired[str | None]
    keypoints_group: NotRequired[int]
    features_part: NotRequired[str]
    features_group: NotRequired[int]


STREAM_COLUMNS = ["video_id", "uri", "num_frames", "verified", "frame_step"]
"""Columns that the stream of a run requires; `frame_labels` is optional."""

REJECTS_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("modified_ns", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


def scan_uri(manifest_uri: str) -> str:
    """URI of a converter's scan: beside `videos.parquet`, `videos.scan.parquet`."""
    return _beside(manifest_uri, "scan")


def rejects_uri(manifest_uri: str) -> str:
    """URI of the rejects: beside `videos.parquet`, `videos.rejects.parquet`."""
    return _beside(manifest_uri, "rejects")


def _beside(manifest_uri: str, name: str) -> str:
    _, mark, query = manifest_uri.partition("?") if storage.is_remote(manifest_uri) else ("", "", "")
    base = manifest_uri.removesuffix(mark + query)
    return f"{base.removesuffix('.parquet')}.{name}.parquet{mark}{query}"


def read_manifest(
    uri: str,
    columns: list[str] | None = None,
    *,
    further: tuple[str, ...] = (),
    split: str | None = None,
    check: bool = True,
) -> pa.Table:
    """Read, validate and clean a manifest; label columns that it lacks are null.

    Rows are in file order.

    Args:
        uri: Path or URI of the manifest.
        columns: The columns to return, in this order; None: all of the file.
        further: Columns to return besides, where the file has them.
        split: Only rows of this split; rows without a split count as "train".
        check: Refuse contradictions between values anywhere in the table, whichever rows and columns are returned;
            otherwise only values of another type, and null where it is not allowed.

    Raises:
        UserError: it does not exist, or is not a manifest: a column is missing, or values are refused; the message
            lists them.
    """
    filesystem, path = storage.resolve(uri)
    if not storage.exists(uri):
        raise UserError(
            f"{storage.public_uri(storage.absolute(uri))}: no manifest there; make one with "
            "`python -m carl_ray.index FOLDER --out MANIFEST`"
        )
    shown = storage.public_uri(uri)
    with storage.reading(uri, "not a manifest"):
        schema = storage.persistently(
            uri, "read", lambda: pq.ParquetDataset(path, filesystem=filesystem).schema
        )
        refuse_pickles(schema)
        columns = columns and [*columns, *(name for name in further if name in schema.names)]
        wanted = {*SCHEMA.names, *_PLACE, *(columns or schema.names)}
        names = [name for name in schema.names if name in wanted]
        missing = [n for n in columns or SCHEMA.names if n not in schema.names and n not in _MAY_LACK]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        table = storage.persistently(
            uri, "read", lambda: pq.read_table(path, filesystem=filesystem, columns=names)
        )
        table = _with_addresses(table)
    for name in _MAY_LACK:
        if name in wanted and name not in names:
            table = table.append_column(name, pa.nulls(len(table)))
    table, problems = check_columns(table, shown, contradictions=check)
    if problems:
        raise UserError(f"{shown}: not a manifest (rows count from 0): {'; '.join(problems)}")
    if split is not None:
        wanted_split = _clean_splits(pa.array([split]))[0]
        table = table.filter(pc.equal(pc.fill_null(table.column("split"), "train"), wanted_split))
    return table.select(columns) if columns else table


def check_columns(table: pa.Table, shown: str, *, contradictions: bool = True) -> tuple[pa.Table, list[str]]:
    """A table of any columns, those of a manifest cleaned, and the problems: what `read_manifest` does, and refuses.

    Without `contradictions` only types and nulls are checked; `shown` is the table's name in warnings.
    """
    cleaned, problems = _clean_columns(table)
    if contradictions or problems:
        problems += _contradictions(cleaned)
    if contradictions and not problems:
        _warn_of_spellings(cleaned, shown)
    for name, column in cleaned.items():
        if name in table.column_names:
            table = table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), column)
    return table, problems


def _with_addresses(table: pa.Table) -> pa.Table:
    """Join the place columns to the URIs; `ValueError` for a place that cannot be."""
    places = [name for name in _PLACE if name in table.column_names]
    if not places or "uri" not in table.column_names:
        return table
    numbers = {name: table.column(name).cast(pa.int64()).to_pylist() for name in places}
    uris = table.column("uri").to_pylist()
    frames = (
        table.column("num_frames").to_pylist() if "num_frames" in table.column_names else [None] * len(uris)
    )
    for row, (uri, count, *values) in enumerate(zip(uris, frames, *numbers.values(), strict=True)):
        if uri is None or all(value is None for value in values):
            continue
        place = Address(uri, **dict(zip(places, values, strict=True)))
        start, stop, of_all = place[3:]
        fits = (place.byte_offset is None) == (place.byte_length is None) and (start is None) == (
            stop is None
        )
        fits &= min(value or 0 for value in place[1:]) >= 0 and place.byte_length != 0
        if start is not None and stop is not None:
            fits &= start < stop <= (of_all or stop) and (count is None or stop - start == count)
        if not fits:
            raise ValueError(
                f"row {row} is {', '.join(f'{n} {v}' for n, v in zip(places, values, strict=True))} of {count} "
                "frames: expected byte_offset with byte_length above 0, and start_frame with end_frame, num_frames on"
            )
        uris[row] = str(place)
    table = table.set_column(
        table.schema.get_field_index("uri"), SCHEMA.field("uri"), pa.array(uris, pa.string())
    )
    return table.drop_columns(places)


def save_manifest(table: pa.Table, uri: str) -> None:
    """Write a manifest as one Parquet file, atomically; addresses are divided into the URI and the place columns."""
    addresses = [parse(video) for video in table.column("uri").to_pylist()]
    if any(place != Address(place.file) for place in addresses):
        columns = [pa.array(values) for values in zip(*addresses, strict=True)]
        at = table.schema.get_field_index("uri")
        table = table.set_column(at, SCHEMA.field("uri"), columns[0])
        for name, column in zip(_PLACE, columns[1:], strict=True):
            table = table.append_column(name, column.cast(pa.int64()))
    write_table(table, uri)


def clean_labels(table: pa.Table) -> pa.Table:
    """Clean the `LABEL_COLUMNS` of a table, as `read_manifest` does."""
    for place, name in enumerate(table.column_names):
        if name in LABEL_COLUMNS:
            table = table.set_column(place, SCHEMA.field(name), _clean(table.column(name), name))
    return table


def _clean(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    # Other tools write a column that is null throughout, or small integers, with a type of their own.
    type_ = SCHEMA.field(name).type
    is_text = pa.types.is_string(type_)
    if pa.types.is_floating(column.type) and (is_text or SCHEMA.field(name).nullable):
        column = pc.if_else(pc.is_nan(column), None, column)
    if is_text:
        column = column.cast(type_)
        if name in ("video_id", "uri", "split", "label"):
            trimmed = pc.utf8_trim_whitespace(column)
            # The name of a file may begin with a blank.
            column = pc.if_else(pc.equal(trimmed, ""), None, column if name == "uri" else trimmed)
        return _clean_splits(column) if name == "split" else column
    if pa.types.is_list(type_) and not pa.types.is_null(column.type):
        if not isinstance(column.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
            raise pa.ArrowTypeError(f"its {name} are of type {column.type}, expected {type_}, one a frame")
        return pa.chunked_array([_clean_list(chunk, type_) for chunk in column.chunks], type_)
    return column.cast(type_)


def _clean_splits(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    place = pc.index_in(pc.utf8_lower(column), pa.array(SPLITS))
    return pc.coalesce(pc.take(pa.array(SPLITS.values()), place), column)


def _clean_list(lists: pa.Array, type_: pa.DataType) -> pa.Array:
    """Replace null and NaN by -1 among integers; such a list of floats becomes null. Trim names."""
    lists = _without_hidden(lists.cast(pa.list_(lists.type.value_type)))
    values, absent, is_text = lists.flatten(), lists.is_null(), pa.types.is_string(type_.value_type)
    unknown = pc.is_null(values, nan_is_null=pa.types.is_floating(values.type))
    if not is_text and not pc.any(unknown).as_py():
        return lists.cast(type_)
    if is_text and values.null_count:
        raise pa.ArrowInvalid("a name is null")
    if is_text:
        values = pc.utf8_trim_whitespace(values.cast(type_.value_type))
    elif pa.types.is_integer(type_.value_type):
        values = pc.if_else(unknown, -1, values)
    else:
        rows = pc.list_parent_indices(lists).filter(unknown)
        absent = pc.or_(absent, pa.array(np.isin(np.arange(len(lists)), rows)))
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))])
    values = values.cast(type_.value_type)
    return _without_hidden(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=absent))


def _without_hidden(lists: pa.ListArray) -> pa.ListArray:
    """Lists of which a null has no values: `pc.list_parent_indices` counts such values, `pc.list_flatten` does not."""
    return lists.take(pa.array(np.arange(len(lists)))) if lists.null_count else lists


def _clean_columns(table: pa.Table) -> tuple[dict[str, pa.ChunkedArray], list[str]]:
    """Clean the columns of `SCHEMA` (null if missing or bad), and list the problems."""
    columns = {
        name: pa.chunked_array([pa.nulls(len(table), SCHEMA.field(name).type)]) for name in SCHEMA.names
    }
    problems = []
    for name in [name for name in SCHEMA.names if name in table.column_names]:
        raw, field = table.column(name), SCHEMA.field(name)
        try:
            columns[name] = _clean(raw, name)
        except pa.ArrowException:
            misfits = _misfits(raw, name)
            if not misfits:
                problems.append(f"{name} is of type {raw.type}: expected {field.type}")
            wanted = getattr(field.type, "value_type", field.type)
            rows = np.array([*misfits], int)
            problems += _refusal(
                columns, rows, f"has {name} {{}}", f"expected {wanted} in every row", misfits
            )
        else:
            if not field.nullable:
                rows = _rows(columns[name].is_null())
                problems += _refusal(columns, rows, f"has no {name}", "every video needs one")
    return columns, problems


def _misfits(column: pa.ChunkedArray, name: str) -> dict[int, str]:
    """The first rows that do not cast to the type of `SCHEMA`, with a bad value each.

    None at all where the column is of a type that does not cast.
    """

    def fits(part: pa.ChunkedArray) -> bool:
        try:
            _clean(part, name)
        except pa.ArrowException:
            return False
        return True

    found: dict[int, str] = {}
    for row in range(len(column) if fits(column.slice(0, 0)) else 0):
        # A copy of the row: a cast of lists also casts what a slice leaves out.
        part = column.take(pa.array([row]))
        if not fits(part):
            value = part[0].as_py()
            if isinstance(value, list):
                each = (pa.chunked_array([pa.array([[one]], part.type)]) for one in value)
                value = next((one[0].as_py()[0] for one in each if not fits(one)), value)
            found[row] = repr(value)[:80]
            if len(found) == _NUM_SHOWN:
                break
    return found


def _contradictions(columns: dict[str, pa.ChunkedArray]) -> list[str]:
    """Problems of values of the right type: one text a kind, with rows and remedy."""
    ids, frames, times, labels = (
        columns[name] for name in ("video_id", "num_frames", "frame_times", "frame_labels")
    )
    codes = ids.combine_chunks().dictionary_encode("encode").indices.to_numpy(zero_copy_only=False)
    first = np.unique(codes, return_index=True)[1][codes]
    again = _rows(pc.and_(pa.array(first != np.arange(len(ids))), ids.is_valid()))
    problems = [
        *_refusal(columns, again, "has the video_id of row {}", "give each an id of its own", first),
        *_refusal(columns, _rows(pc.less(frames, 1)), "has {} frames", _COUNT_AGAIN, frames),
    ]
    for name, expected in (("frame_step", ""), ("fps", " or null"), ("duration", " or null")):
        rows = _rows(pc.invert(pc.and_(pc.less(0, columns[name]), pc.is_finite(columns[name]))))
        remedy = f"expected a finite number above 0{expected}"
        problems += _refusal(columns, rows, f"has {name} {{}}", remedy, columns[name])
    last = pc.fill_null(frames.cast(pa.float64(), safe=False), np.inf).to_numpy() - 1
    for name, lists, lowest, highest, meaning in (
        ("frame_times", times, 0, np.inf, "they are seconds from the first frame on"),
        ("key_frames", columns["key_frames"], 0, last, "they count the frames of the video from 0"),
        ("frame_labels", labels, -1, np.inf, "classes count from 0, and -1 is no label"),
        ("progress", columns["progress"], 0, 1, "it is the share of the action that is done, from 0 to 1"),
    ):
        if name != "key_frames":
            lengths = pc.list_value_length(lists)
            rows = _rows(pc.not_equal(lengths, frames))
            what = f"has {{}} {name} for {{}} frames"
            remedy = f"give {name} for each frame (-1: no label), or null for the whole video; {_COUNT_AGAIN}"
            problems += _refusal(columns, rows, what, remedy, lengths, frames)
        values, parents = pc.list_flatten(lists).to_numpy(), pc.list_parent_indices(lists).to_numpy()
        limits = highest[parents] if isinstance(highest, np.ndarray) else highest
        outside = np.flatnonzero(~((values >= lowest) & (values <= limits)))
        rows, firsts = np.unique(parents[outside], return_index=True)
        found = dict(zip(rows.tolist(), values[outside[firsts]], strict=True))
        problems += _refusal(columns, rows, f"has {name} {{:g}}", meaning, found)
    seconds, parents = pc.list_flatten(times).to_numpy(), pc.list_parent_indices(times).to_numpy()
    back = np.flatnonzero(seconds[1:] < seconds[:-1])
    back = back[parents[back] == parents[back + 1]]  # not from one video to the next
    problems += _refusal(columns, np.unique(parents[back]), "has frame_times that decrease", "sort them")
    num_names = pc.list_value_length(columns["phase_names"]).to_numpy(zero_copy_only=False)
    parents = pc.list_parent_indices(labels).to_numpy()
    nameless = np.unique(parents[pc.list_flatten(labels).to_numpy() >= num_names[parents]])
    what = "has frame labels beyond its {:g} phase_names"
    problems += _refusal(columns, nameless, what, "name each phase, or none (null)", num_names)
    occurring = pc.unique(pc.list_flatten(labels)).to_numpy()
    occurring = occurring[occurring >= 0]
    highest = int(occurring.max(initial=-1))
    if highest >= max(_MOST_UNUSED_CLASSES, 10 * len(occurring)):
        row = int(pc.list_parent_indices(labels)[pc.index(pc.list_flatten(labels), highest).as_py()].as_py())
        problems.append(
            f"frame_labels go up to {highest}, which makes {highest + 1} classes of which {len(occurring)} occur "
            f"(row {row}, {ids[row].as_py()!r}): number the classes from 0 on"
        )
    return problems


def _rows(wrong: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.flatnonzero(pc.fill_null(wrong, False))


def _refusal(
    columns: dict[str, pa.ChunkedArray], rows: np.ndarray, what: str, remedy: str, *values: Any
) -> list[str]:
    """One text of the first of these rows, `what` with their values, and the remedy."""
    named = [
        f"row {row} ({columns['video_id'][row].as_py()!r}) {what.format(*(value[row] for value in values))}"
        for row in rows[:_NUM_SHOWN].tolist()
    ]
    more = [f"and {len(rows) - _NUM_SHOWN:,} more"] if len(rows) > _NUM_SHOWN else []
    return [f"{', '.join(named + more)}: {remedy}"] if named else []


def _warn_of_spellings(columns: dict[str, pa.ChunkedArray], shown: str) -> None:
    """Warn of splits and labels that differ only by case."""
    for name in ("split", "label"):
        spelled: dict[str, str] = {}
        for value in sorted(columns[name].unique().drop_null().to_pylist()):
            other = spelled.setdefault(value.casefold(), value)
            if other != value:
                note(f"warning: {shown}: {name} {other!r} and {value!r} differ only by case")


def refuse_pickles(schema: pa.Schema) -> None:
    """Raise `ValueError` for a column of an extension type, which may run code.

    Ray Data registers one with Arrow whose values are pickles: reading a value would run code in it.
    """
    for field in schema:
        # The text of a nested type has those inside.
        if "extension<" in str(field.type):
            raise ValueError(f"its column {field.name!r} is of the type {field.type}, which may run code")


def attach_labels(manifest: pa.Table, labels: pa.Table) -> pa.Table:
    """Join labels to a manifest by video id.

    Args:
        manifest: A manifest, or another table with `LABEL_COLUMNS`.
        labels: Column `video_id` and any of `LABEL_COLUMNS`, which replace the manifest's, as do columns that are not
            in `SCHEMA` (`group`). Videos that the manifest lacks are ignored.

    Raises:
        ValueError: a video of the manifest has no labels, or labels that `read_manifest` would refuse.
    """
    place_of = {video_id: place for place, video_id in enumerate(labels.column("video_id").to_pylist())}
    video_ids = manifest.column("video_id").to_pylist()
    unknown = [video_id for video_id in video_ids if video_id not in place_of]
    if unknown:
        raise ValueError(f"{unknown[0]}: it has no labels; was the manifest made of another folder?")
    found = labels.take(pa.array([place_of[video_id] for video_id in video_ids], pa.int64()))
    for name in labels.column_names:
        if name in LABEL_COLUMNS:
            field = SCHEMA.field(name)
            place = manifest.schema.get_field_index(name)
            manifest = manifest.set_column(place, field, found.column(name).cast(field.type))
        elif name not in SCHEMA.names:
            rest = manifest.drop_columns([name] if name in manifest.column_names else [])
            manifest = rest.append_column(labels.schema.field(name).with_nullable(True), found.column(name))
    columns, problems = _clean_columns(manifest)
    if problems := problems + _contradictions(columns):
        raise ValueError("; ".join(problems))
    return manifest


def videos_digest(table: pa.Table) -> str:
    """Hash of the ids and frame counts of a table, in order: what a plan depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in table.select(["video_id", "num_frames"]).to_batches():
        for video_id, num_frames in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(f"{len(video_id)}:{video_id}:{num_frames};".encode())
    return digest.hexdigest()


def first_difference(before: pa.Table, after: pa.Table) -> str | None:
    """Describe the first difference between two tables of videos; None if equal.

    Compares the columns that both have; both have `video_id`.
    """
    for name in [name for name in before.column_names if name in after.column_names]:
        old, new = (table.column(name).combine_chunks() for table in (before, after))
        if old.equals(new):
            continue
        common = range(min(len(old), len(new)))
        row = next((row for row in common if not old.slice(row, 1).equals(new.slice(row, 1))), None)
        if row is None:
            return f"{len(old)} videos before, now {len(new)}"
        one, other = old[row].as_py(), new[row].as_py()
        where = f"video {before.column('video_id')[row].as_py()!r}: "
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            place = next(i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
            one, other, where = one[place], other[place], f"{where}frame {place}: "
        return f"{where}{name} was {_shortened(one)}, is now {_shortened(other)}"
    return None


def _shortened(value: object) -> str:
    return f"{len(value)} values" if isinstance(value, list) else repr(value)


def write_table(table: pa.Table, uri: str, row_group_size: int | None = None) -> None:
    """Write a table as one Parquet file, atomically; None: row groups of pyarrow's size."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
    storage.write_bytes(uri, sink.getvalue())
