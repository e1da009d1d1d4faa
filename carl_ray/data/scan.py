"""Scan videos in a folder, in tar shards or in lists of ranges into a manifest and a table of rejects.

Ray Data distributes the files over the cluster. Each worker streams a file to a child process, which probes it: a
decoder that crashes or hangs ends the child and not the scan, and its file is rejected with the reason.

Longer than 400 lines: listing, probing and continuing an earlier scan share the identity of a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypedDict, TypeVar, get_type_hints
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from pyarrow import fs

from carl_ray import storage
from carl_ray.address import Address, file_of, parse
from carl_ray.data.child import (
    KILLED,
    MEMORY,
    TOO_SLOW,
    Array,
    BadVideoError,
    Child,
    KilledError,
    Values,
    open_channel,
)
from carl_ray.data.decode import VideoProbe, probe_video
from carl_ray.data.labels import LabelOptions, label_manifest
from carl_ray.data.manifest import (
    REJECTS_SCHEMA,
    SCHEMA,
    SPLITS,
    VIDEO_SUFFIXES,
    attach_labels,
    read_manifest,
    rejects_uri,
    save_manifest,
    scan_uri,
    write_table,
)
from carl_ray.data.parts import EXACT_SECONDS, Range, cut, members, read_ranges
from carl_ray.errors import RunError, UserError
from carl_ray.progress import ProgressLine

PROBING_FAILED = "probing failed"
"""Prefix of the reject reason of a file whose probing raised an unexpected exception."""

_ARCHIVES = {".7z", ".gz", ".rar", ".tgz", ".zip"}
_SHARD = ".tar"
_LISTED_AT_ONCE = 16  # shards, or files of ranges

_UNREAD = "could not be read"
_TRANSIENT = (_UNREAD, TOO_SLOW, KILLED)
"""Prefixes of reject reasons that may not hold at the next scan, which tries these files again."""

# Time limit of a probe: a constant, and a part that grows with the file at paces that no hang has. A working
# decoder is more than ten times as fast, also on a busy machine.
_PATIENCE = 120  # seconds
_BYTES_PER_SECOND = 1_000_000
_PIXELS_PER_SECOND = 5_000_000
_MAX_SECONDS = 7 * 86_400  # the number of pixels comes from the decoder and is not trusted

_MOST_FRAMES = (
    2**26
)  # 600 hours at 30 a second; their times are 512 MiB, which a hostile decoder may make us read
_SAME = ""  # source of a request: the content of the previous one
_CHUNK = 8 << 20  # bytes
# Seconds between two saves, at least, and as a multiple of the duration of the last one.
_SAVE_SECONDS = 5.0
_SAVE_SHARE = 20

_Item = TypeVar("_Item")


class ListedVideo(TypedDict):
    """A file with the name of a video."""

    uri: str
    """As the manifest stores it: quoted, without credentials, with the place of a member in its shard."""
    path: str
    """In its filesystem."""
    video_id: str
    bytes: int
    modified_ns: int | None


class Reject(ListedVideo):
    """A file that is not in the manifest."""

    reason: str


def build_manifest(
    folder: str, out: str, labels: pa.Table | str | Path | LabelOptions | None = None, *, verify: bool = False
) -> tuple[pa.Table, pa.Table]:
    """Index a folder of videos, or the ranges that a CSV file or a LeRobot dataset names; start Ray unless it runs.

    Arguments, result (the manifest and its rejects) and errors are those of `index_folder`, and for a CSV file and a
    dataset also those of `carl_ray.data.parts`. Besides a table, `labels` may be a file of labels (CSV, TSV, Parquet)
    or what `carl_ray.data.labels.label_manifest` takes; labels that do not fit are a `UserError`, after which the
    manifest without them is there.
    """
    options = LabelOptions(files=(str(labels),)) if isinstance(labels, str | Path) else labels
    if isinstance(options, LabelOptions):
        options.content  # noqa: B018 - mistakes before the scan
    ranges = read_ranges(folder)
    # Lazily: the child processes import this module too, and must start quickly.
    from carl_ray.session import connect

    with connect():
        joined = None if isinstance(options, LabelOptions) else options
        if ranges is None:
            manifest, rejects = index_folder(folder, out, joined, verify=verify)
        else:
            manifest, rejects = _index_ranges(*ranges, out, joined, verify)
    return label_manifest(out, options) if isinstance(options, LabelOptions) else manifest, rejects


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
        files, rejects, num_others = _list_videos(filesystem, root, folder_uri)
        place = storage.public_uri(folder_uri)
    else:
        filesystem, num_others, place = None, 0, "a list"
        files, rejects = _list_files(folder_uri)
    rows_of = _rows_by_uri(known.select(["uri", "bytes", "modified_ns", "verified"]))
    rejects_of = _rows_by_uri(known_rejects)
    kept: list[int] = []
    to_probe: list[ListedVideo] = []
    for file in files:
        row, reject = rows_of.get(file["uri"]), rejects_of.get(file["uri"])
        if row and _is_unchanged(file, row) and (row["verified"] or not verify):
            kept.append(row["row"])
        elif reject and _is_unchanged(file, reject) and not reject["reason"].startswith(_TRANSIENT):
            rejects.append({**file, "reason": reject["reason"]})
        else:
            to_probe.append(file)
    _print(
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
        for file, outcome in _probe_all(to_probe, filesystem, verify):
            unread.remove(file["uri"])
            if "reason" in outcome:
                rejects.append({**file, "reason": outcome["reason"]})
            else:
                row = {**file, **outcome, "frame_step": 1.0, "split": _split(file["video_id"])}
                if file["uri"] in rows_of:
                    row |= _added_columns(known.slice(rows_of[file["uri"]]["row"], 1).to_pylist()[0], row)
                rows.append(row)
            if (began := time.monotonic()) >= next_save:
                save()
                next_save = time.monotonic() + max(_SAVE_SECONDS, _SAVE_SHARE * (time.monotonic() - began))
    except BaseException:
        if len(unread) < len(to_probe):
            save()
            num_read = len(to_probe) - len(unread)
            _print(f"kept {num_read} of {len(to_probe)} videos: the same command goes on")
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
    return storage.resolve(folder_uri)[1]


def _rows_by_uri(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["uri"]: {**row, "row": number} for number, row in enumerate(table.to_pylist())}


def _is_unchanged(file: ListedVideo, earlier: dict[str, Any]) -> bool:
    return file["modified_ns"] is not None and all(
        file[name] == earlier[name] for name in ("modified_ns", "bytes")
    )


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


# Listing


def _list_videos(
    filesystem: fs.FileSystem, root: str, folder_uri: str
) -> tuple[list[ListedVideo], list[Reject], int]:
    """List the videos below a folder, or of a shard, and the rejects; count other files.

    A reject has the name of a video, or is a folder that cannot be listed and may hold videos.
    """
    shown = storage.public_uri(folder_uri)
    try:
        kind = storage.persistently(folder_uri, "list", lambda: filesystem.get_file_info(root).type)
        if kind == fs.FileType.NotFound:
            raise UserError(f"{shown}: no such folder")
        is_shard = kind == fs.FileType.File and root.lower().endswith(_SHARD)
        if kind == fs.FileType.File and not is_shard:
            raise UserError(f"{shown}: expected a folder of videos, a tar shard or a CSV file, got a file")
        if is_shard:
            info = storage.persistently(folder_uri, "list", lambda: filesystem.get_file_info(root))
            found: Iterable[tuple[str, int, int | None, str | None]] = [
                (root, info.size, info.mtime_ns, None)
            ]
        elif isinstance(filesystem, fs.LocalFileSystem):
            found = _walk(root)
        else:
            selector = fs.FileSelector(root, recursive=True)
            infos = storage.persistently(folder_uri, "list", lambda: filesystem.get_file_info(selector))
            found = ((i.path, i.size, i.mtime_ns, None) for i in infos if i.type != fs.FileType.Directory)
    except OSError as error:
        raise storage.storage_error(error, folder_uri, "list") from None
    files: list[ListedVideo] = []
    rejects: list[Reject] = []
    num_others, archives, shards = 0, list[str](), list[ListedVideo]()
    for path, size, modified_ns, wrong in found:
        video_id = PurePosixPath(path).name if is_shard else path.removeprefix(root.rstrip("/") + "/")
        suffix = PurePosixPath(video_id).suffix.lower()
        if suffix not in VIDEO_SUFFIXES and suffix != _SHARD and not (wrong or "").startswith(_UNREAD):
            num_others += 1
            archives += [video_id] if suffix in _ARCHIVES else []
            continue
        # In a URI a name is quoted; a local path is stored absolute: it must mean the same to every worker.
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        uri = name
        if storage.is_remote(shown):
            uri = shown if is_shard else storage.join(shown, quote(video_id))
        file = ListedVideo(uri=uri, path=path, video_id=video_id, bytes=size, modified_ns=modified_ns)
        if name != path:
            wrong = "its name is not UTF-8: rename it"
        if wrong is None:
            (shards if suffix == _SHARD else files).append(file)
        else:
            rejects.append({**file, "reason": wrong})
    with ThreadPoolExecutor(_LISTED_AT_ONCE) as threads:
        for in_shard, wrong_in_shard, others in threads.map(partial(_list_members, filesystem), shards):
            files += in_shard
            rejects += wrong_in_shard
            num_others += others
    if not files and not rejects:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        hint = f"; unpack its {len(archives)} archives ({min(archives)}, …) first" if archives else ""
        raise UserError(
            f"{shown}: no video in it, but {num_others} other files (videos end in {suffixes}){hint}"
        )
    return files, rejects, num_others


def _list_members(
    filesystem: fs.FileSystem, shard: ListedVideo
) -> tuple[list[ListedVideo], list[Reject], int]:
    """List the videos in a tar shard and the rejects; count other members."""
    files: list[ListedVideo] = []
    rejects: list[Reject] = []
    num_others = 0

    def found() -> list[tuple[str, int, int]]:
        listed.clear()
        listed.extend(members(filesystem, shard["path"]))
        return listed

    listed: list[tuple[str, int, int]] = []
    try:
        storage.persistently(shard["uri"], "list", found)
    except (OSError, tarfile.TarError, ValueError) as error:  # `tarfile` parses some headers with int().
        kind = _UNREAD if isinstance(error, OSError) else "not a whole tar archive"
        rejects.append({**shard, "reason": f"{kind}: {' '.join(str(error).split())}"})
    last = {name: offset for name, offset, _ in listed}
    for name, offset, size in listed:
        if PurePosixPath(name).suffix.lower() not in VIDEO_SUFFIXES:
            num_others += 1
            continue
        shown = name.encode("utf-8", "backslashreplace").decode()
        uri, video_id = str(Address(shard["uri"], offset, size)), f"{shard['video_id']}/{shown}"
        file = ListedVideo({**shard, "uri": uri, "video_id": video_id, "bytes": size})
        reason = None
        if shown != name:
            reason = "its name is not UTF-8: rename it"
        elif last[name] != offset:
            reason = "replaced by a later member of the same name"
        elif not size:
            reason = "the file is empty"
        elif offset + size > shard["bytes"]:
            reason = "truncated: the shard ends before it does"
        if reason is None:
            files.append(file)
        else:
            rejects.append({**file, "reason": reason})
    return files, rejects, num_others


def _list_files(uris: list[str]) -> tuple[list[ListedVideo], list[Reject]]:
    """List files that are named one by one, and those that are not there."""
    files: list[ListedVideo] = []
    rejects: list[Reject] = []

    def look_at(uri: str) -> tuple[ListedVideo, bool]:
        filesystem, path = storage.resolve(file_of(uri))
        try:
            info = storage.persistently(uri, "look at", partial(filesystem.get_file_info, path))
        except OSError as error:
            raise storage.storage_error(error, uri, "look at") from None
        size = parse(uri).byte_length or info.size or 0  # of a member of a shard, or of the file
        file = ListedVideo(uri=uri, path=path, video_id=uri, bytes=size, modified_ns=info.mtime_ns)
        return file, info.type == fs.FileType.File

    with ThreadPoolExecutor(_LISTED_AT_ONCE) as threads:
        for file, is_there in threads.map(look_at, uris):
            if is_there:
                files.append(file)
            else:
                rejects.append({**file, "reason": "no such file"})
    return files, rejects


def _walk(root: str) -> Iterator[tuple[str, int, int | None, str | None]]:
    """Yield (path, size, time, problem) of all files below a folder, each file once.

    Links are followed last, so that a file is listed under its own name if it has one in the folder.
    """
    folders, links = [root], list[str]()
    seen: set[tuple[int, int]] = set()
    while folders or links:
        path = folders.pop() if folders else links.pop(0)
        size, modified_ns, problem = 0, None, None
        try:
            status = Path(path).stat()
            place = (status.st_dev, status.st_ino)
            if stat.S_ISDIR(status.st_mode):
                if place in seen:
                    continue
                seen.add(place)
                with os.scandir(path) as entries:
                    inside = sorted(entries, key=lambda entry: entry.name)
                folders += [entry.path for entry in reversed(inside) if not entry.is_symlink()]
                links += [entry.path for entry in inside if entry.is_symlink()]
                continue
            if not stat.S_ISREG(status.st_mode):
                problem = "not a regular file"
            else:
                size = status.st_size
                if place in seen and Path(path).is_symlink():
                    problem = "a link to a video that is there under another name"
                else:
                    modified_ns = status.st_mtime_ns
            seen.add(place)
        except FileNotFoundError:
            problem = "a link to nothing"
        except OSError as error:
            problem = f"{_UNREAD}: {error.strerror}"
        yield path, size, modified_ns, problem


# Probing on the cluster


def _probe_all(
    files: list[ListedVideo], filesystem: fs.FileSystem | None, verify: bool
) -> Iterator[tuple[ListedVideo, dict[str, Any]]]:
    """Yield each file with its outcome: columns of the manifest, or a `reason`."""
    if not files:
        return
    # Lazily: the child processes import this module too, and must start quickly.
    import ray

    from carl_ray.data.coordinator import limit_retries

    def probe(row: dict[str, Any]) -> dict[str, Any]:
        try:
            limit_retries("it, or another file of the same task,")
        except RunError as error:  # Rejected for now: the next scan has smaller tasks for what is left.
            return {"number": row["number"], "outcome": json.dumps({"reason": f"{_UNREAD}: {error}"})}
        return _probe_file(row, filesystem=filesystem, verify=verify)

    table = pa.Table.from_pylist([{**file, "number": number} for number, file in enumerate(files)])
    # Few files a task, so that the last tasks do not keep one CPU busy alone; more than one, for its overhead.
    per_task = max(1, min(16, len(files) // (8 * int(ray.cluster_resources().get("CPU", 1)))))
    outcomes = ray.data.from_arrow(table, override_num_blocks=-(-len(files) // per_task)).map(probe)
    progress = ProgressLine("indexed")
    for done, outcome in enumerate(outcomes.iter_rows(), 1):
        progress(done, len(files))
        yield files[outcome["number"]], json.loads(outcome["outcome"])


def _probe_file(row: dict[str, Any], *, filesystem: fs.FileSystem | None, verify: bool) -> dict[str, Any]:
    """Probe a file on a Ray worker; JSON text, since fields differ from row to row."""
    place = parse(row["uri"])

    def attempt() -> dict[str, Any]:
        store = filesystem or storage.resolve(row["uri"])[0]
        # A failed read ends the child, too: each attempt is a new request to a new child.
        if place.byte_offset is None:
            with store.open_input_stream(row["path"]) as file:
                return probe_guarded(file, row["bytes"], verify=verify)
        with store.open_input_file(row["path"]) as shard:
            return probe_guarded(
                shard.get_stream(place.byte_offset, row["bytes"]), row["bytes"], verify=verify
            )

    try:
        outcome = storage.persistently(row["uri"], "read", attempt)
    except Exception as error:  # pyarrow refuses some names of S3 with errors of its own
        outcome = {"reason": f"{_UNREAD}: {' '.join(str(error).split())}"}
    return {"number": row["number"], "outcome": json.dumps(outcome)}


_child = Child("from carl_ray.data.scan import answer_probes; answer_probes()", quiet=True)


def probe_guarded(file: BinaryIO, size: int, *, verify: bool) -> dict[str, Any]:
    """Probe an open file in the child: columns of the manifest, or a `reason`.

    Raises:
        OSError: the file cannot be read to its end, or has another size.
    """
    digest = hashlib.blake2b(digest_size=16)

    def chunks() -> Iterator[bytes]:
        left = size
        while chunk := file.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            yield chunk
        if left:
            raise OSError("its size has changed since the folder was listed")

    def probe(source: str | tuple[int, Iterator[bytes]], seconds: float, verify: bool) -> dict[str, Any]:
        fields = get_type_hints(VideoProbe) | {
            "frame_times": Array("<f8", (range(1, _MOST_FRAMES),)),
            "key_frames": Array("<i8", (range(_MOST_FRAMES),)),
        }
        (probed,) = _child.ask(source, {"verify": verify}, fields, seconds=seconds, memory=2 * size + MEMORY)
        if min(probed["num_frames"], probed["width"], probed["height"]) < 1:
            raise BadVideoError(f"the decoder sent no valid answer ({probed})")
        return probed

    try:
        probed = probe((size, chunks()), _PATIENCE + size // _BYTES_PER_SECOND, verify=False)
        if verify or probed["doubtful"]:
            pixels = probed["num_frames"] * probed["width"] * probed["height"]
            seconds = min(_PATIENCE + pixels // _PIXELS_PER_SECOND, _MAX_SECONDS)
            probed = probe(_SAME, seconds, verify=True)
    except (BadVideoError, KilledError) as error:
        return {"reason": str(error)}
    except RunError as error:  # the child stopped or did not start: retry
        raise OSError(str(error)) from None
    if probed["num_frames"] != len(times := probed["frame_times"]):
        return {"reason": f"the decoder sent no valid answer ({len(times)} times)"}
    keys = probed["key_frames"]
    if not (np.diff(keys, prepend=-1, append=len(times)) > 0).all():
        return {"reason": "the decoder sent no valid answer (key frames that the video does not have)"}
    is_even = not probed["fps"] or np.abs(times - np.arange(len(times)) / probed["fps"]).max() < EXACT_SECONDS
    frame_times = None if is_even else times.round(6).tolist()
    probed |= {"frame_times": frame_times, "key_frames": keys.tolist()}
    return {**probed, "content_hash": digest.hexdigest()}


def answer_probes() -> None:
    """Main function of the child: probe the content that is sent, or the previous."""
    content: bytes | None = None

    def probe(source: bytes | str, verify: bool) -> Values:
        nonlocal content
        if isinstance(source, bytes):
            content = source
        if content is None:
            raise RunError("the process that held the file was replaced")
        yield asdict(probe_video(content, verify=verify))

    open_channel("probing")(probe)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
