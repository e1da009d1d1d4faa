"""Kinetics-400 (Kay et al., 2017): the official CSV files and clips of any usual copy → a manifest.

    python -m carl_ray.datasets.kinetics400 RAW --out MANIFEST

RAW is a folder, local or in an object store, that holds

- the CSV files, in itself or in a folder `annotations`: any names (train.csv, validate.csv, val.csv,
  test.csv, kinetics-400_train.csv, …) with the header label,youtube_id,time_start,time_end,split[,is_cc];
  that of the test split may lack the labels. A row's split counts (train, val or validate, test); a file
  without that column has it in its name.
- the clips, anywhere below it, named <YouTube id>_<start>_<end>.<any suffix of a video> with the times in
  seconds as six digits, as every known copy has them: CVDF's (train/, val/, test/ and
  replacement/replacement_for_corrupted_k400/), one folder a class with spaces or underscores in its name
  (ActivityNet's crawler, torchvision, MMAction2), or all in one folder. Folders say nothing: names do.

A clip belongs to the row with its id and times; where there is none (copies of another edition of the CSV
files) to the only row with its id, for no two clips of Kinetics are of the same video. Where a clip is there
several times, one that decodes counts, before the others the one in a folder `replacement…`.

The manifest has a row for each listed clip that is there and decodes, with its split ("train", "validation",
"test") and label; clips that do not decode are in the rejects beside it. Clips without a row in the CSV files
are left out: nothing says that they are not of the test split. Lists of broken videos, as the released code
has one, are not needed. Indexing again reads only what is new or has changed.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc

from carl_ray import storage
from carl_ray.data.manifest import attach_labels, write_table
from carl_ray.data.scan import index_folder, rejects_uri, scan_uri
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.options import OptionParser, print_next

_SPLITS = {"train": "train", "val": "validation", "validate": "validation", "validation": "validation"} | {
    "test": "test"
}
_HEADER = "label,youtube_id,time_start,time_end,split[,is_cc]"
_CLIP = re.compile(r"(?P<id>.+)_(?P<start>\d{6})_(?P<end>\d{6})")

Clip = tuple[str, int, int]
"""YouTube id, start and end in seconds."""


@dataclass(frozen=True)
class Listed:
    """What the CSV files say of a clip."""

    split: str
    label: str | None


@dataclass(frozen=True)
class Report:
    """How much of what the CSV files list is there."""

    listed: Counter[str] = field(default_factory=Counter)
    """Clips in the CSV files, by split."""
    usable: Counter[str] = field(default_factory=Counter)
    """Those that are there and decode."""
    missing: Counter[str] = field(default_factory=Counter)
    """Those that are not there."""
    broken: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Those that are there and do not decode, by split and reason."""
    unlisted: int = 0
    """Files that no row of the CSV files names."""
    doubled: int = 0
    """Files of a clip that has another one."""


def read_lists(raw: str) -> dict[Clip, Listed]:
    """What the CSV files in a folder, and in its folder `annotations`, say of each clip.

    A clip that is listed twice counts as what it is listed as first, the test split before the validation
    split before the training split.

    Args:
        raw: Path or URI of the folder.

    Raises:
        UserError: no CSV file has the official header, or a row is not as published.
        RunError: the store refuses or fails.
    """
    if not storage.exists(raw):
        raise UserError(f"{storage.public_uri(raw)}: no such folder")
    found = {}
    folders = [raw, storage.join(raw, "annotations")]
    for folder in folders:
        for name in storage.list_folder(folder):
            if name.lower().endswith(".csv") and not name.startswith("."):
                uri = storage.join(folder, quote(name) if storage.is_remote(folder) else name)
                found[uri] = _read_list(uri)
    lists = [rows for rows in found.values() if rows is not None]
    if not lists:
        others = f"; {', '.join(map(_name, found))} have another header" if found else ""
        raise UserError(
            f"{storage.public_uri(raw)}: expected Kinetics-400, its CSV files with the header {_HEADER} "
            "and its clips <YouTube id>_<start>_<end>.mp4 in its folders; no such CSV file in it or in its "
            f"folder annotations{others}"
        )
    clips: dict[Clip, Listed] = {}
    for split in ("test", "validation", "train"):
        for clip, listed in (item for rows in lists for item in rows):
            if listed.split == split:
                clips.setdefault(clip, listed)
    return clips


def label_table(
    clips: Mapping[Clip, Listed], video_ids: Sequence[str], rejects: Mapping[str, str]
) -> tuple[pa.Table, Report]:
    """Columns video_id, split, label, frame_labels (null) of the files to use, and what is missing or broken.

    Args:
        clips: As `read_lists` returns them.
        video_ids: Files that decode, as paths inside the folder.
        rejects: Files that do not, with the reason.
    """
    by_id: dict[str, list[Clip]] = {}
    for clip in clips:
        by_id.setdefault(clip[0], []).append(clip)
    files: dict[Clip, list[str]] = {}
    unlisted = 0
    for video_id in [*video_ids, *rejects]:
        named = _clip_of(video_id, clips, by_id)
        if named is None:
            unlisted += 1
        else:
            files.setdefault(named, []).append(video_id)
    report = Report(unlisted=unlisted, doubled=sum(len(names) - 1 for names in files.values()))
    rows = []
    for clip, listed in clips.items():
        report.listed[listed.split] += 1
        names = files.get(clip, [])
        usable = [name for name in names if name not in rejects]
        if usable:
            report.usable[listed.split] += 1
            rows.append((min(usable, key=lambda name: (not _is_replacement(name), name)), listed))
        elif names:
            report.broken[listed.split, rejects[min(names)]] += 1
        else:
            report.missing[listed.split] += 1
    rows.sort(key=lambda row: row[0])
    columns = {
        "video_id": pa.array([name for name, _ in rows], pa.string()),
        "split": pa.array([listed.split for _, listed in rows], pa.string()),
        "label": pa.array([listed.label for _, listed in rows], pa.string()),
        "frame_labels": pa.nulls(len(rows), pa.list_(pa.int32())),
    }
    return pa.table(columns), report


def summarize(report: Report) -> str:
    """A table for people: listed, usable, missing and broken clips of each split, and the reasons."""
    lines = [f"{'split':<12}{'listed':>10}{'usable':>10}{'missing':>10}{'broken':>10}"]
    for split in ("train", "validation", "test"):
        if report.listed[split]:
            broken = sum(count for (of, _), count in report.broken.items() if of == split)
            lines.append(
                f"{split:<12}{report.listed[split]:>10,}{report.usable[split]:>10,}"
                f"{report.missing[split]:>10,}{broken:>10,}"
            )
    lines += [f"  {split}: {count} x {reason}" for (split, reason), count in report.broken.most_common()]
    lines.append(f"files that the CSV files do not list, left out: {report.unlisted:,}")
    lines.append(f"further files of clips that are there several times, left out: {report.doubled:,}")
    return "\n".join(lines)


def _read_list(uri: str) -> list[tuple[Clip, Listed]] | None:
    """The rows of a CSV file; None where it is not one of Kinetics."""
    shown = storage.public_uri(uri)
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if not {"youtube_id", "time_start", "time_end"} <= set(reader.fieldnames or ()):
        return None
    # Of a name like kinetics-400_val.csv; the column counts where there is one.
    of_file = next((word for word in re.split(r"[^a-z]+", _name(uri).lower()) if word in _SPLITS), "")
    rows: list[tuple[Clip, Listed]] = []
    for row in reader:
        split = _SPLITS.get((row.get("split") or of_file).strip().lower())
        try:
            # Some editions write the times as 10.0.
            clip = row["youtube_id"].strip(), int(float(row["time_start"])), int(float(row["time_end"]))
        except (TypeError, ValueError, AttributeError):
            split = None
        if split is None or not clip[0]:
            raise UserError(
                f"{shown}, line {reader.line_num}: expected {_HEADER} with a split of {', '.join(_SPLITS)}, "
                f"got {','.join(str(value) for value in row.values())[:100]!r}"
            )
        rows.append((clip, Listed(split, (row.get("label") or "").strip() or None)))
    return rows


def _clip_of(video_id: str, clips: Mapping[Clip, Listed], by_id: Mapping[str, list[Clip]]) -> Clip | None:
    stem = PurePosixPath(video_id).stem
    match = _CLIP.fullmatch(stem)
    if match and (clip := (match["id"], int(match["start"]), int(match["end"]))) in clips:
        return clip
    same = by_id.get(match["id"] if match else stem, [])
    return same[0] if len(same) == 1 else None


def _is_replacement(video_id: str) -> bool:
    return any(folder.startswith("replacement") for folder in PurePosixPath(video_id).parts[:-1])


def _name(uri: str) -> str:
    return unquote(PurePosixPath(storage.public_uri(uri).partition("?")[0]).name)


def _video_ids(uris: Iterable[str], raw: str) -> list[str]:
    """Paths inside the folder, as `index_folder` makes ids of them."""
    if storage.is_remote(raw):
        prefix = storage.public_uri(raw).partition("?")[0].rstrip("/") + "/"
        return [unquote(uri.partition("?")[0].removeprefix(prefix)) for uri in uris]
    prefix = storage.resolve(raw)[1].rstrip("/") + "/"
    return [uri.removeprefix(prefix) for uri in uris]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    with one_line_errors():
        parser = OptionParser(
            prog="python -m carl_ray.datasets.kinetics400",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("raw", metavar="RAW", help="path or URI of the folder with CSV files and clips")
        parser.add_argument("--out", metavar="MANIFEST", required=True, help="path or URI of the manifest")
        options = parser.parse_args(arguments)
        clips = read_lists(options.raw)
        from carl_ray.session import connect

        with connect():
            # Apart: half a scan, or clips that no list names, must not look like the manifest.
            manifest, rejects = index_folder(options.raw, scan_uri(options.out))
        rejected = _video_ids(rejects.column("uri").to_pylist(), options.raw)
        labels, report = label_table(
            clips,
            manifest.column("video_id").to_pylist(),
            dict(zip(rejected, rejects.column("reason").to_pylist(), strict=True)),
        )
        manifest = manifest.filter(pc.is_in(manifest.column("video_id"), labels.column("video_id")))
        write_table(attach_labels(manifest, labels), options.out)
        print(summarize(report))
        print(f"manifest: {storage.public_uri(options.out)}")
        print(f"rejects:  {storage.public_uri(rejects_uri(scan_uri(options.out)))}")
        print_next("train", "kinetics400", "--data.manifest", options.out)
        if manifest.num_rows == 0:
            raise RunError(f"{storage.public_uri(options.raw)}: none of the clips in the CSV files is usable")


if __name__ == "__main__":
    main()
