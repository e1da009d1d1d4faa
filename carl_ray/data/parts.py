"""Videos that are parts of files: members of tar shards, and the ranges that a CSV file or a LeRobot dataset names.

    uri,start,end[,video_id,split,label]                  seconds; empty: from the first frame, to the last
    uri,start_frame,end_frame[,video_id,split,label]      `end_frame` is exclusive

A relative `uri` is relative to the CSV file's folder. A range in seconds has the frame that is on the screen at
`start` and every frame that starts before `end`. No Ray here.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64
from pyarrow import fs

from carl_ray import storage
from carl_ray.address import parse
from carl_ray.data.manifest import LABEL_COLUMNS, REJECTS_SCHEMA, SPLITS, refuse_pickles
from carl_ray.errors import UserError

EXACT_SECONDS = 0.002
"""Accuracy of times: containers round them to milliseconds, and the frame rate alone gives such times as well."""
_PAST_SECONDS = 0.1
"""A range may end this far behind the last frame: its video's sound is often a little longer."""
_HEADERS = 1 << 16  # bytes of a shard that are read at once
LABEL_SUFFIXES = (".cls", ".json")
"""Of members of shards that have the labels of the videos of the same key."""
_MOST_LABEL_BYTES = 1 << 20
_LEROBOT = "meta/info.json"
_EPISODE_PLACE = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


@dataclass(frozen=True)
class Range:
    """A video that is a range of a file."""

    uri: str
    """The file's, as its index stores it."""
    video_id: str
    start: float | None
    """In seconds or frames from the first frame on; None: from the first one."""
    end: float | None
    """Exclusive; None: to the last one."""
    in_frames: bool = False
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Values of `split` and `label`."""
    num_frames: int | None = None
    """How many frames it must have, where that is known."""

    def frames(self, file: Mapping[str, Any]) -> tuple[int, int]:
        """First frame, and the frame after the last, in a file with this row of the manifest.

        Raises:
            ValueError: it has no such frames; the message is the reject reason.
        """
        last = file["num_frames"]
        if self.in_frames:
            start, stop = int(self.start or 0), last if self.end is None else int(self.end)
        else:
            times = seconds_of(file)
            begin, end = self.start or 0.0, times[-1] if self.end is None else self.end
            start = int(np.searchsorted(times, begin + EXACT_SECONDS, side="right")) - 1
            stop = int(np.searchsorted(times[:-1], end - EXACT_SECONDS, side="left"))
            if end > times[-1] + _PAST_SECONDS:
                stop = last + 1
        # Without the numbers, by which rejects could not be counted.
        if not 0 <= start < last:
            raise ValueError("no such range: the video has no frame at its start")
        if stop > last:
            raise ValueError("no such range: it ends behind the last frame of the video")
        if stop <= start:
            raise ValueError("no such range: it ends before it starts")
        if self.num_frames not in (None, stop - start):
            raise ValueError("another number of frames in the range than the episode has")
        return start, stop


def seconds_of(file: Mapping[str, Any]) -> Float64[np.ndarray, " frames+1"]:
    """Start of each frame of a row of a manifest, and the end of the last one.

    Raises:
        ValueError: its frame rate is not known; the message is a reject reason.
    """
    if not file["fps"]:
        raise ValueError("no such range: the frame rate of the video is unknown, so name frames")
    times = file["frame_times"] or np.arange(file["num_frames"]) / file["fps"]
    return np.append(times, times[-1] + 1 / file["fps"])


def cut(index: pa.Table, rejects: pa.Table, ranges: Sequence[Range]) -> tuple[pa.Table, pa.Table]:
    """Manifest and rejects of ranges, given those of their files; nothing is read."""
    files = {row["uri"]: row for row in index.to_pylist()}
    reasons = {row["uri"]: row for row in rejects.to_pylist()}
    rows: dict[str, dict[str, Any]] = {}
    rejected = []
    for part in ranges:
        file = files.get(part.uri, {})
        found = file or reasons.get(part.uri) or {"reason": "no such video", "bytes": 0}
        try:
            if not file:
                raise ValueError(found["reason"])
            if part.video_id in rows:
                raise ValueError("another range has its video_id")
            rows[part.video_id] = range_row(file, part)
        except ValueError as error:
            end = "the end" if part.end is None else f"{part.end:g}"
            where = f"{part.uri} ({part.start or 0:g} to {end}{'' if part.in_frames else ' s'})"
            reject = {"uri": where, "bytes": found["bytes"], "modified_ns": found.get("modified_ns")}
            rejected.append({**reject, "reason": str(error)})
    manifest = pa.Table.from_pylist([*rows.values()], schema=index.schema).sort_by("video_id")
    return manifest, pa.Table.from_pylist(rejected, schema=REJECTS_SCHEMA).sort_by("uri")


def range_row(file: Mapping[str, Any], part: Range) -> dict[str, Any]:
    """The row of a range, given its file's; errors as `Range.frames`."""
    start, stop = part.frames(file)
    row = {**file, **part.columns, "video_id": part.video_id}
    if (start, stop) == (0, file["num_frames"]):
        return row
    times, keys = file["frame_times"], file["key_frames"]
    place = parse(file["uri"])._replace(start_frame=start, end_frame=stop, file_frames=file["num_frames"])
    identity = f"{file['content_hash']} frames {start} to {stop}".encode()
    return row | {
        "uri": str(place),
        "num_frames": stop - start,
        "duration": float(np.ptp(seconds_of(file)[[start, stop]])) if file["fps"] else None,
        "frame_times": times and [round(time - times[start], 6) for time in times[start:stop]],
        "key_frames": keys and [key - start for key in keys if start <= key < stop],
        "content_hash": hashlib.blake2b(identity, digest_size=16).hexdigest(),
    }


# Tar shards


def members(filesystem: fs.FileSystem, path: str) -> Iterator[tuple[str, int, int, bytes | None]]:
    """Yield name, offset and size of the files in a tar archive, and the content of small `LABEL_SUFFIXES`.

    Only headers and these are read.

    Raises:
        tarfile.TarError, OSError: it is no such archive, is compressed or cannot be read.
    """
    with (
        filesystem.open_input_file(path) as file,
        io.BufferedReader(file, _HEADERS) as buffered,
        tarfile.open(fileobj=buffered, mode="r:") as archive,
    ):
        end = -1
        for member in archive:
            if member.size < 0 or member.offset_data <= end:
                raise tarfile.ReadError("a member that begins before the end of the one before it")
            end = member.offset_data - 1 + member.size
            if member.isreg() and member.sparse is None:
                content = None
                if member.name.endswith(LABEL_SUFFIXES) and member.size <= _MOST_LABEL_BYTES:
                    buffered.seek(member.offset_data)
                    content = buffered.read(member.size)
                yield member.name.removeprefix("./"), member.offset_data, member.size, content


def label_columns(name: str, content: bytes | None) -> dict[str, Any]:
    """The `LABEL_COLUMNS` that a member of a shard has for the videos of its key, as WebDataset writes them.

    A `.cls` is the label, an integer or a name; of a `.json`, keys that are columns count. Many data sets have files of
    these names for something else: what is no object, a label that is neither integer nor text, and a split that is
    none of ours are no labels.

    Raises:
        ValueError: it is not so; the message is a reject reason.
    """
    if content is None:
        raise ValueError(f"not read: labels of over {_MOST_LABEL_BYTES} bytes")
    found: Any
    if name.endswith(".cls"):
        try:
            found = {"label": content.decode().strip()}
        except UnicodeDecodeError:
            found = {"label": ""}
    else:
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            return {}
        if type(found.get("label")) not in (int, str):
            found.pop("label", None)
        split = found.pop("split", None)
        if isinstance(split, str) and split.strip().lower() in SPLITS:
            found["split"] = _split(split)
    given: dict[str, Any] = {name: found[name] for name in LABEL_COLUMNS if found.get(name) is not None}
    if "label" in given:
        given["label"] = str(given["label"])
    are_labels = all(map(_is_label, given.keys(), given.values()))
    if are_labels and {"frame_labels", "phase_names"} <= given.keys():
        are_labels = max(given["frame_labels"], default=-1) < len(given["phase_names"])
    if not are_labels:
        raise ValueError(f"not the labels of a video, as {' or '.join(LABEL_SUFFIXES)} has them")
    return given


def _is_label(column: str, value: Any) -> bool:
    """Whether a value from a shard may stand in a column of labels."""
    if column in ("label", "split"):
        return bool(value) and value.isprintable()
    if not isinstance(value, list):
        return False
    if column == "frame_labels":
        return all(type(one) is int and -1 <= one < 2**31 for one in value)
    if column == "progress":
        return all(type(one) in (int, float) and 0 <= one <= 1 for one in value)
    return all(isinstance(one, str) and one.isprintable() for one in value)


# Tables of ranges


def read_ranges(source: str) -> tuple[str | None, list[Range]] | None:
    """The folder of the files, None where they are anywhere, and the ranges; None if `source` names no ranges.

    Raises:
        UserError: it is a CSV file or a LeRobot dataset, and not as described.
        RunError: the store refuses or fails.
    """
    if source.partition("?")[0].lower().endswith(".csv"):
        return None, list(_csv_ranges(source))
    cameras, splits = _lerobot_cameras(storage.join(source, *_LEROBOT.split("/")))
    if not cameras:
        return None
    return storage.join(source, "videos"), list(_lerobot_ranges(source, cameras, splits))


def _stored(folder: str, name: str) -> str:
    """The URI of a file of a folder as an index of it has it."""
    if storage.is_remote(folder):
        return storage.join(storage.public_uri(folder), quote(name))
    return storage.absolute(storage.join(folder, name))


def _csv_ranges(uri: str) -> Iterator[Range]:
    shown, folder = storage.public_uri(uri), storage.parent(storage.absolute(uri))
    _refuse_credentials(uri, shown)
    try:
        reader = csv.DictReader(io.StringIO(storage.read_bytes(uri).decode("utf-8-sig"), newline=""))
        names, rows = reader.fieldnames or (), [(row, reader.line_num) for row in reader]
    except (UnicodeDecodeError, csv.Error):
        names, rows = (), []
    in_frames = "start_frame" in names
    bounds = ("start_frame", "end_frame") if in_frames else ("start", "end")
    if not {"uri", *bounds} <= set(names):
        expected = "uri,start,end (seconds) or uri,start_frame,end_frame, and any of video_id,split,label"
        got = ",".join(names) or "none"
        raise UserError(f"{shown}: expected a CSV file with the columns {expected}; got {got}")
    for row, line in rows:
        cells = {name: (row[name] or "").strip() for name in names}
        named, span = cells["uri"], [cells[name] for name in bounds]
        try:
            start, end = (float(text) if text else None for text in span)
            given = [number for number in (start, end) if number is not None]
            is_wrong = not named or not np.isfinite(given).all() or (in_frames and any(n % 1 for n in given))
            if is_wrong or None in row or parse(named).is_range:
                raise ValueError
        except ValueError:
            expected = f"uri,{','.join(bounds)} in {'whole frames' if in_frames else 'seconds'}"
            got = ",".join(cells.values())[:100]
            raise UserError(f"{shown}, line {line}: expected {expected}, got {got!r}") from None
        _refuse_credentials(named, f"{shown}, line {line}")
        is_full = "://" in named or named.startswith(("/", "~"))
        file = named
        with suppress(UserError):  # As named it becomes a reject.
            file = storage.absolute(named) if is_full else _stored(folder, named)
        name = named.partition("?")[0] if storage.is_remote(named) else named
        video_id = cells.get("video_id") or f"{name}_{'-'.join(span)}"
        columns = {"split": _split(cells.get("split")), "label": cells.get("label") or None}
        yield Range(file, video_id, start, end, in_frames, columns)


def _split(name: str | None) -> str | None:
    return SPLITS.get(name.strip().lower(), name) if name else None


def _refuse_credentials(uri: str, where: str) -> None:
    if storage.public_uri(uri) != uri:
        raise UserError(f"{where}: expected a URI without credentials, which belong into the environment")


def _lerobot_cameras(uri: str) -> tuple[list[str], dict[str, range]]:
    """Cameras and splits of a LeRobotDataset v3; none where it is not one, or has no videos.

    Earlier versions have a file for each episode: they are folders of videos as any other.

    Raises:
        UserError: its splits are not `first:end`, or its features are not described.
    """
    if not storage.is_file(uri):
        return [], {}
    try:
        info = json.loads(storage.read_bytes(uri))
        if not str(info["codebase_version"]).startswith("v3."):
            return [], {}
    except (ValueError, LookupError, TypeError):
        return [], {}
    try:
        cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
        splits = {name: text.split(":") for name, text in (info.get("splits") or {}).items()}
        return cameras, {_split(name) or name: range(int(a), int(b)) for name, (a, b) in splits.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{storage.public_uri(uri)}: not the description of a LeRobotDataset v3 ({error})"
        ) from None


def _lerobot_ranges(root: str, cameras: Sequence[str], splits: Mapping[str, range]) -> Iterator[Range]:
    """Ranges of the episodes, one for each camera; the label is the task."""
    for episode in _lerobot_episodes(storage.join(root, "meta", "episodes"), cameras):
        number = episode["episode_index"]
        split = next((split for split, part in splits.items() if number in part), None)
        columns = {"split": split, "label": "; ".join(episode["tasks"] or ()) or None}
        for camera in cameras:
            chunk, file, start, end = (episode[f"videos/{camera}/{place}"] for place in _EPISODE_PLACE)
            if file is None:
                continue  # The episode has no such camera.
            name = f"videos/{camera}/chunk-{chunk:03d}/file-{file:03d}.mp4"
            video_id = f"episode_{number:06d}" + (f"_{camera}" if len(cameras) > 1 else "")
            yield Range(_stored(root, name), video_id, start, end, False, columns, episode["length"])


def _episodes_schema(places: Sequence[str]) -> pa.Schema:
    """Types of the columns of a table of episodes, of which only places may be null."""
    whole = {"episode_index": pa.int64(), "length": pa.int64()}
    fields = [pa.field(name, type_, nullable=False) for name, type_ in whole.items()]
    fields.append(pa.field("tasks", pa.list_(pa.string())))
    return pa.schema(fields + [(name, pa.int64() if "index" in name else pa.float64()) for name in places])


def _lerobot_episodes(folder: str, cameras: Sequence[str]) -> Iterator[dict[str, Any]]:
    places = [f"videos/{camera}/{place}" for camera in cameras for place in _EPISODE_PLACE]
    for chunk in storage.list_folder(folder):
        for name in storage.list_folder(storage.join(folder, chunk)):
            uri = storage.join(folder, chunk, name)
            try:
                file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)))
                refuse_pickles(file.schema_arrow)
                table = file.read(["episode_index", "length", "tasks", *places])
                if len(table.column_names) < 3 + len(places):
                    raise ValueError(f"it has no column {', '.join({*places} - {*table.column_names})}")
                table = table.cast(_episodes_schema(places), safe=True)
            except (pa.ArrowException, ValueError) as error:
                raise UserError(f"{storage.public_uri(uri)}: not episodes of LeRobot v3 ({error})") from None
            yield from table.to_pylist()
