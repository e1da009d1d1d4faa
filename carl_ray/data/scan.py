"""A folder of videos becomes a manifest and a table of rejects.

Ray Data spreads the files over the cluster. Each of its workers streams a file to a child process, which
probes it: a decoder that crashes or hangs takes the child with it, not the scan, and its file is rejected
with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, get_type_hints
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from carl_ray import storage
from carl_ray.data.child import (
    KILLED,
    MEMORY,
    TOO_SLOW,
    BadVideoError,
    Child,
    KilledError,
    Values,
    open_channel,
)
from carl_ray.data.decode import VideoProbe, probe_video
from carl_ray.data.manifest import REJECTS_SCHEMA, SCHEMA, read_manifest, write_table
from carl_ray.errors import RunError, UserError

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv"}
)

# First-level folders that name a split, in lower case.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}

PROBING_FAILED = "probing failed"
"""Prefix of the reject reason of a file whose probing raised an unexpected exception."""

# Reasons that may be gone at the next scan begin so: what was rejected for one of them is tried again.
_UNREAD = "could not be read"

# Seconds for a probe besides what grows with the file, and the paces that are still not a hang. A working
# decoder is more than ten times as fast, also on a busy machine.
_PATIENCE = 120
_BYTES_PER_SECOND = 1_000_000
_PIXELS_PER_SECOND = 5_000_000

_MAX_SECONDS = 7 * 86_400  # what a decoder says of a video is not to be trusted
_SAME = ""  # source: the content that was sent before

_CHUNK = 8 << 20  # bytes
# Seconds between two saves, and how many times as long as the last one took.
_SAVE_SECONDS = 5.0
_SAVE_SHARE = 20


def index_folder(folder_uri: str, out: str, *, verify: bool = False) -> tuple[pa.Table, pa.Table]:
    """Scans a folder, writes its manifest to `out` and the rejects beside it; both tables.

    An earlier manifest at `out` is continued, as `scan_folder` says.

    Raises:
        UserError: no such folder, no video in it, or `out` is no manifest or that of another folder.
        RunError: the storage refuses or fails.
    """
    known = known_rejects = None
    if storage.exists(out):
        known = read_manifest(out, check=False)
        inside = _without_query(folder_uri).rstrip("/") + "/"
        if known.num_rows and not any(uri.startswith(inside) for uri in known.column("uri").to_pylist()):
            raise UserError(
                f"{storage.public_uri(out)}: the manifest of another folder; name another one, or delete it"
            )
    if storage.exists(rejects_uri(out)):
        known_rejects = read_manifest(rejects_uri(out), REJECTS_SCHEMA.names)

    def save(manifest: pa.Table, rejects: pa.Table) -> None:
        write_table(rejects, rejects_uri(out))
        write_table(manifest, out)

    manifest, rejects = scan_folder(
        folder_uri, known=known, known_rejects=known_rejects, verify=verify, save=save
    )
    save(manifest, rejects)
    return manifest, rejects


def scan_uri(manifest_uri: str) -> str:
    """Where a converter keeps what it scanned, apart from the manifest that it makes of it."""
    return _beside(manifest_uri, "scan")


def rejects_uri(manifest_uri: str) -> str:
    """Where the rejects of a manifest lie: beside `videos.parquet` it is `videos.rejects.parquet`."""
    return _beside(manifest_uri, "rejects")


def _beside(manifest_uri: str, name: str) -> str:
    _, mark, query = manifest_uri.partition("?") if storage.is_remote(manifest_uri) else ("", "", "")
    base = manifest_uri.removesuffix(mark + query)
    return f"{base.removesuffix('.parquet')}.{name}.parquet{mark}{query}"


def scan_folder(
    folder_uri: str,
    *,
    known: pa.Table | None = None,
    known_rejects: pa.Table | None = None,
    verify: bool = False,
    save: Callable[[pa.Table, pa.Table], None] | None = None,
) -> tuple[pa.Table, pa.Table]:
    """The manifest (`SCHEMA`) of all videos below a folder and the rejects (`REJECTS_SCHEMA`), by URI.

    Videos are the files with one of `VIDEO_SUFFIXES`, each real path once; what cannot be read under such a name
    is a reject, whatever it is. The id of a video is its path inside the folder; its split is that of the
    first-level folder it lies in, where `SPLITS` has it, else null. Labels are null. Progress goes to standard
    error. Ray must have been started.

    Args:
        folder_uri: Of any storage that `storage.resolve` knows. Credentials in it are used but not stored.
        known: An earlier manifest. Rows whose file has kept its size and modification time are taken over
            unread (under `verify` only verified ones). Where a file is read again and has kept its content,
            what people and converters have added (split, labels, step) is taken over too.
        known_rejects: The earlier rejects, likewise, but for files that could not be read or took too long.
        verify: Decodes every frame of every video, so that `num_frames` is what really decodes; without it, of
            those alone whose packets cannot be trusted.
        save: Called now and then, and when the scan is interrupted, with both tables as far as they are, for a
            later scan to continue from; a video not read yet has its earlier row in them, if it has one.

    Raises:
        UserError: no such folder, or no video in it.
        RunError: the storage refuses to list it.
    """
    filesystem, root = storage.resolve(folder_uri)
    files, unreadable, num_others = _list_videos(filesystem, root, folder_uri)
    rows_of = {} if known is None else _rows_by_uri(known.select(["uri", "bytes", "modified_ns", "verified"]))
    rejects_of = {} if known_rejects is None else _rows_by_uri(known_rejects)
    kept, rejects, to_probe = [], unreadable, []
    for file in files:
        row, reject = rows_of.get(file["uri"]), rejects_of.get(file["uri"])
        if row and _is_unchanged(file, row) and (row["verified"] or not verify):
            kept.append(row["row"])
        elif reject and _is_unchanged(file, reject) and not _may_be_gone(reject["reason"]):
            rejects.append(reject)
        else:
            to_probe.append(file)
    print(
        f"{len(files)} videos in {storage.public_uri(folder_uri)}: {len(to_probe)} to read, "
        f"{len(files) - len(to_probe)} unchanged; {num_others} other files passed over",
        file=sys.stderr,
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    unread = {file["uri"] for file in to_probe}

    def tables() -> tuple[pa.Table, pa.Table]:
        manifest = pa.Table.from_pylist(rows, schema=SCHEMA)
        if known is not None:
            old = kept + [rows_of[uri]["row"] for uri in sorted(unread & rows_of.keys())]
            manifest = pa.concat_tables(
                [known.select(SCHEMA.names).cast(SCHEMA).take(pa.array(old, pa.int64())), manifest]
            )
        return manifest.sort_by("uri"), pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA).sort_by("uri")

    next_save = time.monotonic() + _SAVE_SECONDS
    try:
        for file, outcome in _probe_all(to_probe, filesystem, verify):
            unread.remove(file["uri"])
            if "reason" in outcome:
                rejects.append({**file, **outcome})
            else:
                row = {**file, **outcome, "frame_step": 1.0, "split": _split(file["video_id"])}
                if known is not None and file["uri"] in rows_of:
                    earlier = known.slice(rows_of[file["uri"]]["row"], 1).to_pylist()[0]
                    row.update(_added_by_people(earlier, row))
                rows.append(row)
            if save is not None and (began := time.monotonic()) >= next_save:
                save(*tables())
                next_save = time.monotonic() + max(_SAVE_SECONDS, _SAVE_SHARE * (time.monotonic() - began))
    except BaseException:
        if save is not None and len(unread) < len(to_probe):
            save(*tables())
            print(
                f"kept {len(to_probe) - len(unread)} of {len(to_probe)} videos: the same command goes on",
                file=sys.stderr,
                flush=True,
            )
        raise
    return tables()


def count_reasons(rejects: pa.Table) -> list[tuple[str, int, str]]:
    """How many of the rejects have each reason, and the first of them, the most frequent reason first."""
    first = dict(zip(*(rejects.column(name).to_pylist()[::-1] for name in ("reason", "uri")), strict=True))
    counts = Counter(rejects.column("reason").to_pylist()).most_common()
    return [(reason, count, first[reason]) for reason, count in counts]


def _without_query(folder_uri: str) -> str:
    """What the URIs of everything in a folder begin with, as a manifest stores them."""
    if storage.is_remote(folder_uri):
        return storage.public_uri(folder_uri).partition("?")[0]
    return storage.resolve(folder_uri)[1]


def _list_videos(
    filesystem: fs.FileSystem, root: str, folder_uri: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """The videos below a folder (uri, path, video_id, bytes, modified_ns), rejects, and how many other files.

    A reject has a name of a video, or is a folder that cannot be listed.
    """
    shown = storage.public_uri(folder_uri)
    try:
        kind = storage.persistently(folder_uri, "list", lambda: filesystem.get_file_info(root).type)
        if kind == fs.FileType.NotFound:
            raise UserError(f"{shown}: no such folder")
        if kind == fs.FileType.File:
            raise UserError(f"{shown}: expected a folder of videos, got a file")
        if isinstance(filesystem, fs.LocalFileSystem):
            return _sorted_out(_walk(root), root, shown)
        selector = fs.FileSelector(root, recursive=True)
        infos = storage.persistently(folder_uri, "list", lambda: filesystem.get_file_info(selector))
    except OSError as error:
        raise storage.storage_error(error, folder_uri, "list") from None
    found = ((i.path, i.size, i.mtime_ns, None) for i in infos if i.type != fs.FileType.Directory)
    return _sorted_out(found, root, shown)


def _walk(root: str) -> Iterator[tuple[str, int, int | None, str | None]]:
    """Path, size, time and what is wrong, of all files below a folder of this machine; each real path once.

    Links are followed after everything else: a file that is there under its own name keeps it.
    """
    folders, links = [root], list[str]()
    seen: set[tuple[int, int]] = set()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = Path(folder).stat()
        except OSError as error:
            nowhere = isinstance(error, FileNotFoundError)
            yield folder, 0, None, "a link to nothing" if nowhere else f"{_UNREAD}: {error.strerror}"
            continue
        place = (status.st_dev, status.st_ino)
        is_link = Path(folder).is_symlink()
        if stat.S_ISDIR(status.st_mode):
            if place in seen:
                continue
            try:
                with os.scandir(folder) as entries:
                    inside = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                yield folder, 0, None, f"{_UNREAD}: {error.strerror}"
                inside = []
            folders += [entry.path for entry in reversed(inside) if not entry.is_symlink()]
            links += [entry.path for entry in inside if entry.is_symlink()]
        elif not stat.S_ISREG(status.st_mode):
            yield folder, 0, None, "not a regular file"
        elif is_link and place in seen:
            yield folder, status.st_size, None, "a link to a video that is there under another name"
        else:
            yield folder, status.st_size, status.st_mtime_ns, None
        seen.add(place)


def _sorted_out(
    found: Iterable[tuple[str, int, int | None, str | None]], root: str, shown: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    files: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    num_others = 0
    prefix = root.rstrip("/") + "/"
    for path, size, modified_ns, wrong in found:
        video_id = path.removeprefix(prefix)
        # A folder that cannot be listed may hold videos.
        if PurePosixPath(video_id).suffix.lower() not in VIDEO_SUFFIXES and not (wrong or "").startswith(
            _UNREAD
        ):
            num_others += 1
            continue
        # In a URI a name is quoted; a local path is stored absolute: it must mean the same to every worker.
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        uri = storage.join(shown, quote(video_id)) if storage.is_remote(shown) else name
        file = {"uri": uri, "path": path, "video_id": video_id, "bytes": size, "modified_ns": modified_ns}
        if name != path:
            wrong = "its name is not UTF-8: rename it"
        if wrong is None:
            files.append(file)
        else:
            rejects.append({**file, "reason": wrong})
    if not files and not rejects:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        raise UserError(f"{shown}: no video in it, but {num_others} other files (videos end in {suffixes})")
    return files, rejects, num_others


def _rows_by_uri(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["uri"]: {**row, "row": number} for number, row in enumerate(table.to_pylist())}


def _is_unchanged(file: dict[str, Any], earlier: dict[str, Any]) -> bool:
    return (
        file["modified_ns"] is not None
        and file["modified_ns"] == earlier["modified_ns"]
        and file["bytes"] == earlier["bytes"]
    )


def _may_be_gone(reason: str) -> bool:
    return reason.startswith((_UNREAD, TOO_SLOW, KILLED))


def _split(video_id: str) -> str | None:
    folder, slash, _ = video_id.partition("/")
    return SPLITS.get(folder.strip().lower()) if slash else None


def _added_by_people(earlier: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """What an earlier row of the same content holds beyond what a file tells."""
    if earlier["content_hash"] != row["content_hash"]:
        return {}
    names = ["frame_step", "split", "label"]
    # Not by the earlier number of frames, which may have been counted wrong.
    names += [n for n in ("frame_labels", "progress") if len(earlier[n] or []) == row["num_frames"]]
    return {name: earlier[name] for name in names}


# On the cluster


def _probe_all(
    files: list[dict[str, Any]], filesystem: fs.FileSystem, verify: bool
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each file with its outcome, as they are done: columns of the manifest, or a `reason` why not."""
    if not files:
        return
    # Here and not above: the child processes import this module too, and must start quickly.
    import ray

    columns = {name: [f[name] for f in files] for name in ("uri", "path")}
    numbered = pa.table({"number": range(len(files)), **columns})
    sized = numbered.append_column("bytes", pa.array([f["bytes"] for f in files], pa.int64()))
    # Few files a task, lest the last ones keep one CPU busy alone; not one, for tasks cost something too.
    per_task = max(1, min(16, len(files) // (8 * int(ray.cluster_resources().get("CPU", 1)))))
    outcomes = ray.data.from_arrow(sized, override_num_blocks=-(-len(files) // per_task)).map(
        _probe_file, fn_kwargs={"filesystem": filesystem, "verify": verify}
    )
    progress = _Progress(len(files))
    for outcome in outcomes.iter_rows():
        progress.advance()
        yield files[outcome["number"]], json.loads(outcome["outcome"])


def _probe_file(row: dict[str, Any], *, filesystem: fs.FileSystem, verify: bool) -> dict[str, Any]:
    """Runs on a Ray worker. The outcome is JSON text: its fields differ from row to row."""

    def attempt() -> dict[str, Any]:
        # What fails on the way costs the child, too: each attempt is a new request to a new one.
        with filesystem.open_input_stream(row["path"]) as file:
            return probe_guarded(file, row["bytes"], verify=verify)

    try:
        outcome = storage.persistently(row["uri"], "read", attempt)
    except Exception as error:  # pyarrow refuses some names of S3 with errors of its own
        outcome = {"reason": f"{_UNREAD}: {' '.join(str(error).split())}"}
    return {"number": row["number"], "outcome": json.dumps(outcome)}


_child = Child("from carl_ray.data.scan import answer_probes; answer_probes()", quiet=True)


def probe_guarded(file: BinaryIO, size: int, *, verify: bool) -> dict[str, Any]:
    """Columns of the manifest for an open file of `size` bytes, or a `reason`, from the process that probes.

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
        fields = get_type_hints(VideoProbe)
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
    except RunError as error:  # it stopped, or did not start: worth another try
        raise OSError(str(error)) from None
    return {**probed, "content_hash": digest.hexdigest()}


def answer_probes() -> None:
    """Body of the child process: probes what it is sent, or what it was sent before."""
    content: bytes | None = None

    def probe(source: bytes | str, verify: bool) -> Values:
        nonlocal content
        if isinstance(source, bytes):
            content = source
        if content is None:
            raise RunError("the process that held the file was replaced")
        yield asdict(probe_video(content, verify=verify))

    open_channel("probing")(probe)


class _Progress:
    """Files done, rate, time left on standard error: one line rewritten on a terminal, else now and then."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._start = self._shown = time.monotonic()
        self._live = sys.stderr.isatty()

    def advance(self) -> None:
        """Counts one file more."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown < (0.2 if self._live else 5) and self._done < self._total:
            return
        self._shown = now
        rate = self._done / max(now - self._start, 1e-9)
        left = round((self._total - self._done) / rate)
        text = f"indexed {self._done}/{self._total} videos, {rate:.1f}/s, {timedelta(seconds=left)} left"
        end = "\n" if not self._live or self._done == self._total else ""
        print(f"\r\x1b[K{text}" if self._live else text, end=end, file=sys.stderr, flush=True)
