"""Converters of data sets that are published as lists and video files: the videos stay where they are.

The lists name the videos, any copy of the videos is searched for these names, and the manifest has those that are there
and decode.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from carl_ray import storage
from carl_ray.data.manifest import rejects_uri, scan_uri
from carl_ray.datasets.conversion import Conversion, converter_parser, index_videos, write_manifest
from carl_ray.errors import RunError, UserError, note, one_line_errors

_SPLITS = ("train", "validation", "test")

Key = TypeVar("Key", bound=Hashable)


class Listed(NamedTuple):
    """What the lists of a data set say of a video."""

    split: str | None
    """None: the split that is converted does not use it."""
    label: str | None
    group: str | None = None
    """Videos of one group must not be on both sides of a hold-out; None: the data set names none."""


def label_listed(
    entries: Mapping[Key, Listed],
    match: Callable[[str], Key | None],
    video_ids: Sequence[str],
    rejects: Mapping[str, str],
    *,
    lists: str,
    shown: Callable[[Key], str] = str,
    is_preferred: Callable[[str], bool] = lambda video_id: False,
) -> Conversion:
    """Select the files to use and label them; count what is missing or broken, by split.

    Args:
        entries: What the lists say, by a key of each video.
        match: The key of a file, by its path; None where the lists do not name it.
        video_ids: Files that decode, as paths inside the folder.
        rejects: Files that do not, with the reason.
        lists: What the lists are called.
        shown: Name of an entry, for the report.
        is_preferred: Of several files of an entry that decode, whether this one is used first.
    """
    counts = _counts(entries)
    conversion = Conversion({split: counts[split] for split in (*_SPLITS, *counts) if counts[split]})
    files: dict[Key, list[str]] = {}
    for video_id in [*video_ids, *rejects]:
        named = match(video_id)
        if named is None:
            conversion.leave_out(video_id, f"files that {lists} do not list")
        else:
            files.setdefault(named, []).append(video_id)
    for key, listed in entries.items():
        # Files that decode first.
        names = sorted(files.get(key, []), key=lambda name: (name in rejects, not is_preferred(name), name))
        if listed.split is None:
            for name in names[:1]:
                conversion.leave_out(name, "videos that the split does not use")
        elif not names:
            conversion.leave_out(shown(key), f"{listed.split}: missing")
        elif names[0] in rejects:
            conversion.leave_out(names[0], f"{listed.split}: {rejects[names[0]]}")
        else:
            conversion.add(names[0], listed.split, listed.label, None)
            if listed.group is not None:
                conversion.rows[-1]["group"] = listed.group
        for name in names[1:]:
            conversion.leave_out(name, "further files of clips that are there several times")
    return conversion


def match_names(names: Iterable[str]) -> Callable[[str], str | None]:
    """A function from a file's path to the listed name that it has, whatever the case, its folder and suffix.

    Args:
        names: `NAME` or `CLASS/NAME` without suffix. Where several classes list a name, the file's folder decides.
    """
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(name.rpartition("/")[2].casefold(), []).append(name)

    def match(video_id: str) -> str | None:
        path = PurePosixPath(video_id)
        found = by_stem.get(path.stem.casefold(), [])
        if len(found) > 1:
            folder = path.parent.name.casefold()
            found = [name for name in found if name.rpartition("/")[0].casefold() == folder]
        return found[0] if len(found) == 1 else None

    return match


def find_lists(raw: str, folders: Sequence[str]) -> list[tuple[str, str]]:
    """Name and URI of each file in a folder and in some of those inside it, in this order.

    Raises:
        UserError: there is no such folder.
        RunError: the store refuses or fails.
    """
    if not storage.exists(raw):
        raise UserError(f"{storage.public_uri(raw)}: no such folder")
    return [
        (name, storage.join(folder, quote(name) if storage.is_remote(folder) else name))
        for folder in (raw, *(storage.join(raw, *name.split("/")) for name in folders))
        for name in storage.list_folder(folder)
    ]


def read_lines(uri: str) -> Iterator[tuple[str, str]]:
    """Place ("FILE, line 3") and text of each line that is not blank; CRLF and a byte order mark are dropped.

    Raises:
        UserError: it is not UTF-8.
    """
    shown = storage.public_uri(uri)
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{shown}: expected a list in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{shown}, line {number}", line.strip()


def check_counts(entries: Mapping[str, Listed], published: Mapping[str, int]) -> None:
    """Warn where the lists name another number of videos than the published ones."""
    counts = _counts(entries)
    for split, expected in published.items():
        if counts[split] != expected:
            note(f"warning: the lists have {counts[split]:,} {split} videos, the published ones {expected:,}")


def _counts(entries: Mapping[Any, Listed]) -> Counter[str]:
    return Counter(listed.split for listed in entries.values() if listed.split is not None)


Labeller = Callable[[Sequence[str], Mapping[str, str]], Conversion]
"""Labels of the files that decode, given these and the reasons why others do not."""


def publish_listed(raw: str, out: str, preset: str, label: Labeller, lists: str) -> None:
    """Index the videos of a folder where they are; write the manifest of the listed ones, with report.

    Raises:
        RunError: none of the listed clips is usable, or as `write_manifest`.
    """
    # Not at --out: an interrupted scan, or videos that no list names, must not look like the manifest.
    indexed, rejects = index_videos(raw, scan_uri(out))
    conversion = label(indexed.column("video_id").to_pylist(), rejects)
    print(f"rejects:  {storage.public_uri(rejects_uri(scan_uri(out)))}")
    write_manifest(conversion, indexed, rejects, out, preset)
    if not conversion.rows:
        raise RunError(f"{storage.public_uri(raw)}: none of the clips in {lists} is usable")


def listed_command(
    module: str,
    description: str | None,
    read_lists: Callable[..., Mapping[str, Listed]],
    arguments: list[str] | None,
    *,
    preset: str,
    lists: str = "the lists",
) -> None:
    """The command of a data set whose lists name files, as `read_lists` returns them: CLASS/NAME without suffix.

    It has RAW and --out, --split where `read_lists` has a parameter `split`, of three, and --unused where it has
    `unused`. `preset` is the one to train with.
    """
    parser = converter_parser(
        module,
        description,
        raw=f"path or URI of the folder with {lists.removeprefix('the ')} and videos",
        out="path or URI of the manifest",
    )
    choices = inspect.signature(read_lists).parameters.keys() - {"raw"}
    if "split" in choices:
        parser.add_argument("--split", type=int, choices=(1, 2, 3), default=1, help="of the three [1]")
    if "unused" in choices:
        unused = 'keep videos that the split does not use, as the split "unused"'
        parser.add_argument("--unused", action="store_true", help=unused)
    with one_line_errors():
        options = parser.parse_args(arguments)
        entries = read_lists(options.raw, **{name: getattr(options, name) for name in choices})
        if "split" in choices:
            print(f"split {options.split} only; published figures are often means over the three")
        label = partial(label_listed, entries, match_names(entries), lists=lists)
        publish_listed(options.raw, options.out, preset, label, lists)
