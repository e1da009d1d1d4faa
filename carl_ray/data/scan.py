"""Scan videos in a folder, in tar shards or in lists of ranges into a manifest and a table of rejects.

folder ─ list (`listing`) ▶ compare with the earlier manifest ▶ probe what is new (`probing`) ▶ manifest, rejects
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from carl_ray import storage
from carl_ray.address import file_of
from carl_ray.data.child import KILLED, TOO_SLOW
from carl_ray.data.labels import LabelOptions, label_manifest
from carl_ray.data.listing import UNREAD, ListedVideo, Reject, list_files, list_videos
from carl_ray.data.manifest import (
    REJECTS_SCHEMA,
    SCHEMA,
    SPLITS,
    attach_labels,
    read_manifest,
    rejects_uri,
    save_manifest,
    scan_uri,
    write_table,
)
from carl_ray.data.parts import Range, cut, read_ranges
from carl_ray.data.probing import probe_all
from carl_ray.errors import UserError, note

_TRANSIENT = (UNREAD, TOO_SLOW, KILLED)
"""Prefixes of reject reasons that may not hold at the next scan, which tries these files again."""

# Seconds between two saves, at least, and as a multiple of the duration of the last one.
_SAVE_SECONDS = 5.0
_SAVE_SHARE = 20


def build_manifest(
    folder: str, out: str, labels: pa.Table | str | Path | LabelOptions | None = None, *, verify: bool = False
) -> tuple[pa.Table, pa.Table]:
    """Index a folder of videos, or the ranges that a CSV file or a LeRobot dataset names; start Ray unless it runs.

    Arguments, result (the manifest and its rejects) and errors are those of `index_folder`, and for a CSV file and a
    dataset also those of `carl_ray.data.parts`. Besides a table, `labels` may be a file of labels (CSV, TSV, Parquet)
    or what `carl_ray.data.labels.label_manifest` takes; labels that do not fit are a `UserError`, after which the
    manifest without them is there, with those that its shards have.
    """
    options = LabelOptions(files=(str(labels),)) if isinstance(labels, str | Path) else labels
    if isinstance(options, LabelOptions):
        options.content  # noqa: B018 - mistakes before the scan
    ranges = read_ranges(folder)
    # Lazily: tables need no Ray.
    from carl_ray.session import connect

    with connect():
        joined = None if isinstance(options, LabelOptions) else options
        if ranges is None:
            _, rejects = index_folder(folder, out, joined, verify=verify)
        else:
            _, rejects = _index_ranges(*ranges, out, joined, verify)
    # Read as every command does: labels in shards that do not fit are said now.
    return label_manifest(out, options) if isinstance(options, LabelOptions) else read_manifest(out), rejects


def _index_ranges(
    folder: str | None, ranges: list[Range], out: str, labels: pa.Table | None, verify: bool
) -> tuple[pa.Table, pa.Table]:
    """Index the files of ranges beside the manifest, which is kept for the next time; write that of the ranges."""
    files = sorted({part.uri for part in ranges})
    known, _ = _read_earlier(files, out)
    index = index_folder(folder or files, scan_uri(out), verify=verify)
    manifest, rejects = cut(*index, ranges)
    earlier = {row["video_id"]: row for row in known.to_pylist()}
    rows = []
    for row in manifest.to_pylist():
        added = _added_columns(earlier[row["video_id"]], row) if row["video_id"] in earlier else {}
        rows.append(row | added | {name: row[name] for name in ("split", "label") if row[name] is not None})
    manifest = pa.Table.from_pylist(rows, schema=known.schema)
    if labels is not None:
        manifest = attach_labels(manifest, labels)
    write_table(rejects, rejects_uri(out))
    save_manifest(manifest, out)
    return manifest, rejects


def index_folder(
    folder_uri: str | list[str], out: str, labels: pa.Table | None = None, *, verify: bool = False
) -> tuple[pa.Table, pa.Table]:
    """Write the manifest and the rejects of a folder; return both, sorted by URI.

    They have the schemas `SCHEMA` (and the columns that labels have added) and `REJECTS_SCHEMA`.

    Videos are the files with one of `VIDEO_SUFFIXES`, each real path once, and such members of tar shards; one that
    cannot be read is a reject. The `video_id` is the path inside the folder. The split is that of the first-level
    folder where `SPLITS` has it, else null. Progress goes to standard error. Ray must have been started.

    An earlier manifest at `out` is continued. Rows whose file has kept its size and modification time are not read
    again (with `verify`, only verified ones). Where a file is read again and has kept its content, the columns that
    people and converters add (split, labels, frame step) are kept. Earlier rejects are kept likewise, except for
    files that could not be read or timed out. Both tables are saved now and then, and when the scan is interrupted.

    Args:
        folder_uri: Path or URI on any storage that `storage.resolve` supports, or a list of those of the files, which
            are the ids then. Credentials in it are not stored.
        out: Path or URI of the manifest; the rejects are written beside it, see `rejects_uri`.
        labels: Labels to join, see `attach_labels`; None: label columns are null, or those of the earlier manifest.
        verify: Decode every frame of every video, so that `num_frames` counts the frames that decode. Otherwise
            only files whose packets are unreliable are decoded.

    Raises:
        UserError: there is no such folder or no video in it, or `out` is not a manifest or that of another folder.
        ValueError: `labels` do not fit the videos.
        RunError: the storage refuses or fails.
    """
    known, known_rejects = _read_earlier(folder_uri, out)
    if isinstance(folder_uri, str):
        filesystem, root = storage.resolve(folder_uri)
        files, rejects, num_others = list_videos(filesystem, root, folder_uri)
        place = storage.public_uri(folder_uri)
    else:
        filesystem, num_others, place = None, 0, "a list"
        files, rejects = list_files(folder_uri)
    rows_of = _rows_by_uri(known.select(["uri", "bytes", "modified_ns", "verified"]))
    kept, still_rejected, to_probe = _compare(files, rows_of, _rows_by_uri(known_rejects), verify)
    rejects += still_rejected
    note(
        f"{len(files)} videos in {place}: {len(to_probe)} to read, "
        f"{len(files) - len(to_probe)} unchanged; {num_others} other files passed over"
    )
    rows: list[dict[str, Any]] = []
    unread = {file["uri"] for file in to_probe}

    def save() -> tuple[pa.Table, pa.Table]:
        """Write both tables so far; a video not read yet keeps its earlier row."""
        old = kept + [rows_of[uri]["row"] for uri in sorted(unread & rows_of.keys())]
        new = pa.Table.from_pylist(rows, schema=known.schema)
        manifest = pa.concat_tables([known.take(pa.array(old, pa.int64())), new]).sort_by("uri")
        rejected = pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA).sort_by("uri")
        write_table(rejected, rejects_uri(out))
        save_manifest(manifest, out)
        return manifest, rejected

    next_save = time.monotonic() + _SAVE_SECONDS
    try:
        for file, outcome in probe_all(to_probe, filesystem, verify):
            unread.remove(file["uri"])
            if "reason" in (outcome := _with_labels(outcome, columns := file.get("columns", {}))):
                rejects.append({**file, "reason": outcome["reason"]})
            else:
                row = {**file, **outcome, "frame_step": 1.0, "split": _split(file["video_id"])}
                row |= {name: None for name in ("fps", "duration") if (row[name] or 0) <= 0}
                if file["uri"] in rows_of:
                    row |= _added_columns(known.slice(rows_of[file["uri"]]["row"], 1).to_pylist()[0], row)
                rows.append({**row, **columns})
            if (began := time.monotonic()) >= next_save:
                save()
                next_save = time.monotonic() + max(_SAVE_SECONDS, _SAVE_SHARE * (time.monotonic() - began))
    except BaseException:
        if len(unread) < len(to_probe):
            save()
            num_read = len(to_probe) - len(unread)
            note(f"kept {num_read} of {len(to_probe)} videos: the same command goes on")
        raise
    manifest, rejected = save()
    if labels is not None:
        manifest = attach_labels(manifest, labels)
        save_manifest(manifest, out)
    return manifest, rejected


def count_reasons(rejects: pa.Table) -> list[tuple[str, int, str]]:
    """Count rejects by reason: (reason, count, first URI), most frequent first."""
    first = dict(zip(*(rejects.column(name).to_pylist()[::-1] for name in ("reason", "uri")), strict=True))
    counts = Counter(rejects.column("reason").to_pylist()).most_common()
    return [(reason, count, first[reason]) for reason, count in counts]


# The earlier manifest


def _read_earlier(source: str | list[str], out: str) -> tuple[pa.Table, pa.Table]:
    """The manifest and rejects at `out`; empty tables where there are none.

    Raises:
        UserError: the manifest is that of another folder, or of other files.
    """
    known, rejects = SCHEMA.empty_table(), REJECTS_SCHEMA.empty_table()
    if storage.exists(out):
        known = read_manifest(out, check=False)
        added = [name for name in known.column_names if name not in SCHEMA.names]
        known = known.select([*SCHEMA.names, *added])
        # An earlier version kept what a file says, which readers refuse now.
        for name in ("fps", "duration"):
            place, values = known.schema.get_field_index(name), known.column(name)
            usable = pc.if_else(pc.greater(values, 0), values, None)
            known = known.set_column(place, known.schema.field(name), usable)
        listed = [source] if isinstance(source, str) else source
        places = {_without_query(place).rstrip("/") for place in listed}
        inside = tuple(f"{place}/" for place in places)
        files = (_without_query(file_of(uri)) for uri in known.column("uri").to_pylist())
        if known.num_rows and not any(file in places or file.startswith(inside) for file in files):
            raise UserError(
                f"{storage.public_uri(out)}: the manifest of another folder; name another one, or delete it"
            )
    if storage.exists(rejects_uri(out)):
        rejects = read_manifest(rejects_uri(out), REJECTS_SCHEMA.names)
    return known, rejects


def _without_query(folder_uri: str) -> str:
    """Prefix of the URIs of everything in a folder, as a manifest stores them."""
    if storage.is_remote(folder_uri):
        return storage.public_uri(folder_uri).partition("?")[0]
    with suppress(UserError):  # Of a list of files: a reject.
        return storage.resolve(folder_uri)[1]
    return folder_uri


def _rows_by_uri(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["uri"]: {**row, "row": number} for number, row in enumerate(table.to_pylist())}


def _is_unchanged(file: ListedVideo, earlier: dict[str, Any]) -> bool:
    return file["modified_ns"] is not None and all(
        file[name] == earlier[name] for name in ("modified_ns", "bytes")
    )


def _compare(
    files: list[ListedVideo],
    rows_of: dict[str, dict[str, Any]],
    rejects_of: dict[str, dict[str, Any]],
    verify: bool,
) -> tuple[list[int], list[Reject], list[ListedVideo]]:
    """Rows of the earlier manifest that hold, rejects that are rejects again, and files to be probed."""
    kept: list[int] = []
    rejects: list[Reject] = []
    to_probe: list[ListedVideo] = []
    for file in files:
        row, reject = rows_of.get(file["uri"]), rejects_of.get(file["uri"])
        if row and _is_unchanged(file, row) and (row["verified"] or not verify):
            kept.append(row["row"])
        elif reject and _is_unchanged(file, reject) and not reject["reason"].startswith(_TRANSIENT):
            rejects.append({**file, "reason": reject["reason"]})
        else:
            to_probe.append(file)
    return kept, rejects, to_probe


def _with_labels(outcome: dict[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome of a probe; a `reason` where labels of a shard are not those of its frames."""
    lengths = {len(columns[name]) for name in ("frame_labels", "progress") if name in columns}
    if "reason" not in outcome and lengths - {outcome["num_frames"]}:
        return {"reason": "the labels in its shard are not as many as its frames"}
    return outcome


def _added_columns(earlier: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Values of an earlier row of the same content that do not come from the file."""
    if earlier["content_hash"] != row["content_hash"]:
        return {}
    names = [
        n for n in earlier if n not in SCHEMA.names or n in ("frame_step", "split", "label", "phase_names")
    ]
    # Not by the earlier number of frames, which may have been counted wrong.
    names += [n for n in ("frame_labels", "progress") if len(earlier[n] or []) == row["num_frames"]]
    return {name: earlier[name] for name in names}


def _split(video_id: str) -> str | None:
    folder, slash, _ = video_id.partition("/")
    return SPLITS.get(folder.strip().lower()) if slash else None
