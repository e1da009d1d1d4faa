"""List the videos of a folder or of tar shards, with what a scan must know of a file. No Ray here."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict
from urllib.parse import quote

from pyarrow import fs

from carl_ray import storage
from carl_ray.address import Address, file_of, parse
from carl_ray.data.manifest import VIDEO_SUFFIXES
from carl_ray.data.parts import LABEL_SUFFIXES, label_columns, members
from carl_ray.errors import UserError

UNREAD = "could not be read"
"""Prefix of the reject reason of a file that its storage did not give."""

_ARCHIVES = {".7z", ".gz", ".rar", ".tgz", ".zip"}
_SHARD = ".tar"
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)  # faults of a path, not of its storage
_LISTED_AT_ONCE = 16  # shards, or files of ranges


class ListedVideo(TypedDict):
    """A file with the name of a video."""

    uri: str
    """As the manifest stores it: quoted, without credentials, with the place of a member in its shard."""
    path: str
    """In its filesystem."""
    video_id: str
    bytes: int
    modified_ns: int | None
    columns: NotRequired[Mapping[str, Any]]
    """`LABEL_COLUMNS` that its shard has."""


class Reject(ListedVideo):
    """A file that is not in the manifest."""

    reason: str


def list_videos(
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
        if suffix not in VIDEO_SUFFIXES and suffix != _SHARD and not (wrong or "").startswith(UNREAD):
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
    # A manifest is read without blanks around ids; a name without them comes first, and keeps its id.
    by_id: dict[str, ListedVideo] = {}
    for file in sorted(files, key=lambda file: file["video_id"] != file["video_id"].strip()):
        trimmed: ListedVideo = {**file, "video_id": file["video_id"].strip()}
        if by_id.setdefault(trimmed["video_id"], trimmed) is not trimmed:
            rejects.append({**file, "reason": "it has another's name but for blanks at an end: rename it"})
    files = [*by_id.values()]
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
    listed: list[tuple[str, int, int]] = []
    columns: dict[str, dict[str, Any]] = defaultdict(dict)  # By key.
    wrong: dict[str, str] = {}  # Members of labels.

    def found() -> None:
        listed.clear()
        for name, offset, size, content in members(filesystem, shard["path"]):
            listed.append((name, offset, size))
            if name.endswith(LABEL_SUFFIXES):
                try:
                    columns[_key(name)] |= label_columns(name, content)
                except ValueError as error:
                    wrong[name] = str(error)

    try:
        storage.persistently(shard["uri"], "list", found)
    except (OSError, tarfile.TarError, ValueError) as error:  # `tarfile` parses some headers with int().
        kind = UNREAD if isinstance(error, OSError) else "not a whole tar archive"
        rejects.append({**shard, "reason": f"{kind}: {' '.join(str(error).split())}"})
    last = {name: offset for name, offset, _ in listed}
    for name, offset, size in listed:
        if PurePosixPath(name).suffix.lower() not in VIDEO_SUFFIXES and name not in wrong:
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
        reason = reason or wrong.get(name)
        if reason is None:
            files.append({**file, "columns": columns[key]} if (key := _key(name)) in columns else file)
        else:
            rejects.append({**file, "reason": reason})
    return files, rejects, num_others


def _key(name: str) -> str:
    """Key of a member: WebDataset takes all files of the same path up to the first dot of the name for one sample."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def list_files(uris: list[str]) -> tuple[list[ListedVideo], list[Reject]]:
    """List files that are named one by one, and those that are not there or that no store can have."""
    files: list[ListedVideo] = []
    rejects: list[Reject] = []

    def look_at(uri: str) -> tuple[ListedVideo, str | None]:
        try:
            filesystem, path = storage.resolve(file_of(uri))
            info = storage.persistently(uri, "look at", partial(filesystem.get_file_info, path))
        except UserError as error:
            # Without the URI, by which rejects could not be counted.
            reason = str(error).removeprefix(f"{storage.public_uri(uri)}: ")
            return ListedVideo(uri=uri, path="", video_id=uri, bytes=0, modified_ns=None), reason
        except OSError as error:
            if storage.is_remote(file_of(uri)) or error.errno not in _NO_PATH:
                raise storage.storage_error(error, uri, "look at") from None
            reason = f"no path: {os.strerror(error.errno)}"
            return ListedVideo(uri=uri, path="", video_id=uri, bytes=0, modified_ns=None), reason
        size = parse(uri).byte_length or info.size or 0  # of a member of a shard, or of the file
        file = ListedVideo(uri=uri, path=path, video_id=uri, bytes=size, modified_ns=info.mtime_ns)
        return file, None if info.type == fs.FileType.File else "no such file"

    with ThreadPoolExecutor(_LISTED_AT_ONCE) as threads:
        for file, reason in threads.map(look_at, uris):
            if reason is None:
                files.append(file)
            else:
                rejects.append({**file, "reason": reason})
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
            problem = f"{UNREAD}: {error.strerror}"
        yield path, size, modified_ns, problem
