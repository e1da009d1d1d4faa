"""Labels of one's own in a manifest: joined from files and folders; splits by a column.

Phases are named: `phase_names` of a row are those of its action (`label`), numbered in the order in which they first
occur in its videos; whole numbers instead of names stay as they are. A frame belongs to the interval that holds the
middle of its time on the screen, so that times rounded by less than half a frame give the same frames. Whatever does
not fit is listed, and nothing is joined then.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from carl_ray import storage
from carl_ray.address import Address
from carl_ray.data.label_files import LabelFile, LabelRow, read_label_file
from carl_ray.data.label_spans import Clock, is_inclusive, spans
from carl_ray.data.manifest import (
    SCHEMA,
    SPLITS,
    check_columns,
    read_manifest,
    rejects_uri,
    save_manifest,
)
from carl_ray.data.video_names import VideoNames
from carl_ray.errors import UserError, note

_RESERVED = {*SCHEMA.names, *Address._fields[1:], "keypoints"} - {"split", "label"}
"""Columns of a manifest that a file of labels cannot set."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Labels to join to a manifest, in this order."""

    label_from: str | None = None
    """Folder that is the label of its videos: `folder`, the one that a video is in, or the number of its level."""
    files: tuple[str, ...] = ()
    """URIs of files of labels (`carl_ray.data.label_files`)."""
    split_by: str | None = None
    """Column whose values keep their videos on one side, or `folder` or `video`; None: no new split."""
    test_fraction: float = 0.3
    """Share of the videos in the split `test` that `split_by` makes, as near as the values allow."""
    validation_fraction: float = 0.0
    """The same of the split `validation`, on which a sweep chooses."""
    seed: int = 0
    """Of `split_by`."""

    @cached_property
    def content(self) -> list[LabelFile]:
        """The content of the files; errors as `read_label_file`."""
        return [read_label_file(uri) for uri in self.files]

    def arguments(self) -> list[str]:
        """The options of `carl-ray index` that say the same."""
        given = [("--labels", uri) for uri in self.files]
        given += [("--label-from", self.label_from)] if self.label_from else []
        if self.split_by:
            given += [("--split-by", self.split_by), ("--test-fraction", f"{self.test_fraction:g}")]
            if self.validation_fraction:
                given += [("--validation-fraction", f"{self.validation_fraction:g}")]
            given += [("--seed", str(self.seed))]
        return [word for pair in given for word in pair]


def label_manifest(uri: str, options: LabelOptions) -> pa.Table:
    """Join labels to a manifest, write and return it; say on standard error what was joined.

    Labels of videos that the files do not name, and columns that they do not have, stay. Rows about the manifest's
    rejects are passed over, and counted.

    Raises:
        UserError: there is no manifest, no such file, or something does not fit; all bad rows are listed.
    """
    table, rejects = read_manifest(uri), rejects_uri(uri)
    rejected = read_manifest(rejects, ["uri"]).column("uri").to_pylist() if storage.exists(rejects) else []
    try:
        table, notes = join_labels(table, options, rejected)
    except UserError as error:
        again = storage.shell_command("carl-ray", "index", "--update", uri, *options.arguments())
        go_on = f"The videos are in {storage.public_uri(uri)}: correct this, then run: {again}"
        raise UserError(f"{error.args[0]}. {go_on}", *error.args[1:]) from None
    save_manifest(table, uri)
    for line in notes:
        note(line)
    return table


def join_labels(
    table: pa.Table, options: LabelOptions, rejected: Sequence[str] = ()
) -> tuple[pa.Table, list[str]]:
    """The table with labels joined, and what the terminal says about them.

    Args:
        table: A manifest, or its columns `video_id`, `uri`, `num_frames`, `fps`, `frame_times` and those of labels.
        options: Which labels.
        rejected: URIs of videos that could not be read, whose labels are passed over.

    Raises:
        UserError: as `label_manifest`.
    """
    files = options.content
    join = _Join(table, rejected)
    if options.label_from is not None:
        join.label_from(options.label_from)
    for file in files:
        join.add(file)
    if options.split_by is not None:
        shares = {"test": options.test_fraction, "validation": options.validation_fraction}
        join.split_by(
            options.split_by, {name: share for name, share in shares.items() if share}, options.seed
        )
    join.check_splits()
    join.number_phases()
    if join.problems:
        count = f"{len(join.problems):,} mistake{'s' * (len(join.problems) > 1)}"
        raise UserError(f"the labels do not fit the videos, {count}; nothing was joined", *join.problems)
    joined = join.result()
    of_labels = ["video_id", "num_frames", "split", "label", "frame_labels", "phase_names"]
    _, problems = check_columns(joined.select(of_labels), "the labels")
    if problems:
        raise UserError("commands would refuse the manifest with these labels; nothing was joined", *problems)
    return joined, join.notes


def label_of_folder(video_id: str, level: str = "folder") -> str | None:
    """Name of a folder of a video's path: of a level from 1, or the last one that is no split's."""
    folders = video_id.split("/")[:-1]
    if level != "folder":
        return folders[int(level) - 1] if int(level) <= len(folders) else None
    return next((name for name in reversed(folders) if name.strip().lower() not in SPLITS), None)


def folders_like_labels(video_ids: Iterable[str]) -> list[str]:
    """Names of the folders if they look like labels: two or more, each of several videos."""
    videos = [label_of_folder(video_id) for video_id in video_ids]
    names = sorted({name for name in videos if name is not None})
    return names if len(names) > 1 and None not in videos and all(videos.count(n) > 1 for n in names) else []


class _Join:
    """Labels of the videos of a table while files are joined to it."""

    def __init__(self, table: pa.Table, rejected: Sequence[str]) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._table = table
        self._ids: list[str] = table.column("video_id").to_pylist()
        self._names = VideoNames(self._ids, table.column("uri").to_pylist())
        self._rejected = VideoNames(list(rejected), list(rejected))
        self._rows = table.select(["num_frames", "fps", "frame_times"]).to_pylist()
        added = [name for name in table.column_names if name not in SCHEMA.names]
        self._columns: dict[str, list[Any]] = {
            name: table.column(name).to_pylist() for name in ("split", "label", *added)
        }
        # The phase of each frame as its place in the vocabulary, -1 for none; of the videos with frame labels.
        self._vocabulary: dict[str, int] = {}
        self._phases: dict[int, Int32[np.ndarray, " _"]] = {}
        for row, known in enumerate(table.select(["frame_labels", "phase_names"]).to_pylist()):
            if (labels := known["frame_labels"]) is not None:
                found, places = np.unique(np.array(labels, np.int32), return_inverse=True)
                names = known["phase_names"]
                codes = [-1 if k < 0 else self._code(names[k] if names else str(k)) for k in found.tolist()]
                self._phases[row] = np.array(codes, np.int32)[places]
        self._phase_names: list[list[str] | None] = [None] * len(self._ids)
        self._places: dict[
            tuple[int, str | None], str
        ] = {}  # of the first row by video and phase; None: its label
        self._files: dict[int, LabelFile] = {}  # of the phases by video
        self._given: dict[tuple[int, str], tuple[str, str]] = {}  # cell and its place by video and column
        self._only_in_test_before = {*self._only_in_test()}

    def _code(self, name: str) -> int:
        return self._vocabulary.setdefault(name, len(self._vocabulary))

    def label_from(self, level: str) -> None:
        """Take the labels of the videos from their paths."""
        labels = [label_of_folder(video_id, level) for video_id in self._ids]
        lacking = [video_id for video_id, label in zip(self._ids, labels, strict=True) if label is None]
        self.problems += [f"{video_id}: it has no folder for --label-from {level}" for video_id in lacking]
        self.notes.append(f"labels from folders: {', '.join(sorted({*filter(None, labels)}))}")
        self._columns["label"] = labels

    def add(self, file: LabelFile) -> None:
        """Join a file; what does not fit goes to the problems."""
        by_name: dict[str, list[LabelRow]] = defaultdict(list)
        for row in file.rows:
            by_name[row.video].append(row)
        by_video: dict[int, list[LabelRow]] = defaultdict(list)
        for name, rows in by_name.items():
            try:
                by_video[self._names.row(name)] += rows
            except ValueError as error:
                more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
                try:
                    self._rejected.row(name)
                    self.notes.append(
                        f"{rows[0].place}{more}: passed over, for {name!r} could not be read as a video"
                    )
                except ValueError:
                    no_video = f" ({file.no_video})" if file.no_video else ""
                    self.problems.append(f"{rows[0].place}{more}: {error}{no_video}")
        counts = f"{len(file.rows):,} rows for {len(by_video):,} of {len(self._ids):,} videos"
        self.notes.append(f"{file.name}: {file.form} ({', '.join(('video', *file.columns))}), {counts}")
        self.notes += [f"{file.name}: {note}" for note in file.notes]
        (self._add_columns if file.form == "videos" else self._add_phases)(file, by_video)

    def _add_columns(self, file: LabelFile, by_video: dict[int, list[LabelRow]]) -> None:
        own = [column for column in file.columns if column in _RESERVED]
        if own:
            self.notes.append(f"{file.name}: not used, for the manifest has them: {', '.join(own)}")
        cells = [row.cells for (row, *_) in by_video.values()]
        lists = [column for column in own if any(cell[column].startswith("[") for cell in cells)]
        if lists:
            self.problems.append(
                f"{file.name}: {lists[0]}: expected labels of frames in rows of a frame or an interval each, not in "
                "one row a video; docs/data.md shows the forms"
            )
        for column in (column for column in file.columns if column not in own):
            values = self._columns.setdefault(column, [None] * len(self._ids))
            kind = self._field(column).type
            for video, (row, *_) in by_video.items():
                if not (cell := row.cells[column]):
                    continue
                value = SPLITS.get(cell.lower(), cell) if column == "split" else cell
                if kind != pa.string():
                    try:
                        value = pa.scalar(cell).cast(kind).as_py()
                    except pa.ArrowException:
                        expected = f"expected {kind}, as the column {column} of the manifest"
                        self.problems.append(f"{row.place}: {column} {cell!r}: {expected}")
                        continue
                values[video] = value
                other, place = self._given.setdefault((video, column), (value, row.place))
                if other != value:
                    differs = f"{column} is {value!r}, but {other!r} in {place} of another file"
                    self.problems.append(f"{row.place}: {differs}")
        for video, (row, *others) in by_video.items():
            self._places[video, None] = row.place
            self.problems += [f"{other.place}: {row.place} is about the same video" for other in others]

    def _add_phases(self, file: LabelFile, by_video: dict[int, list[LabelRow]]) -> None:
        of_videos = [(self._rows[video]["num_frames"], rows) for video, rows in by_video.items()]
        to_last = "end_frame" in file.columns and is_inclusive(of_videos)
        if "end_frame" in file.columns:
            meaning = "the last frame" if to_last else "the frame after the last"
            self.notes.append(f"{file.name}: end_frame is {meaning} of its interval")
        num_outside = 0
        for video, rows in by_video.items():
            if (other := self._files.setdefault(video, file)) is not file:
                name = other.name if other.name != file.name else "another file of this name"
                self.problems.append(f"{file.name}: the phases of {self._ids[video]} are in {name} already")
            clock = Clock(**self._rows[video])
            owner = np.full(clock.num_frames, -1, np.int32)
            owners: list[LabelRow] = []
            codes: list[int] = []
            for start, end, phase, row in spans(file.form, rows, clock, to_last, self.problems):
                if (taken := np.max(owner[start:end], initial=-1)) >= 0:
                    self.problems.append(f"{row.place}: overlaps {owners[taken].place}")
                owner[start:end] = len(owners)
                owners.append(row)
                codes.append(self._code(phase))
                self._places.setdefault((video, phase), row.place)
            self._phases[video] = np.array([*codes, -1], np.int32)[owner]
            num_outside += int((owner < 0).sum())
        if num_outside:
            of = sum(num_frames for num_frames, _ in of_videos)
            self.notes.append(
                f"{file.name}: {num_outside:,} of the {of:,} frames of its videos are in no phase"
            )

    def number_phases(self) -> None:
        """Number the phases of each action from 0, in the order in which they first occur."""
        vocabulary = [*self._vocabulary]
        for action, rows in _places_of(self._columns["label"]).items():
            first: dict[int, list[float]] = defaultdict(list)
            for phases in (self._phases[row] for row in rows if row in self._phases):
                for code, place in zip(*np.unique(phases, return_index=True), strict=True):
                    first[int(code)].append(place / len(phases))
            first.pop(-1, None)
            order = sorted(first, key=lambda code: (np.mean(first[code]), vocabulary[code]))
            names = [vocabulary[code] for code in order]
            are_numbers = all(re.fullmatch(r"\d{1,9}", name) for name in names)
            numbers = np.full(len(vocabulary) + 1, -1, np.int32)
            numbers[order] = [int(name) for name in names] if are_numbers else range(len(names))
            for row in (row for row in rows if row in self._phases):
                self._phases[row] = numbers[self._phases[row]]
                self._phase_names[row] = None if are_numbers else names
            if self._files and not are_numbers:
                of = f" of {action}" if action else ""
                self.notes.append(f"phases{of}: {', '.join(f'{k} {name}' for k, name in enumerate(names))}")

    def split_by(self, column: str, shares: Mapping[str, float], seed: int) -> None:
        """Split the videos into these shares and "train", those of one value on one side."""
        folders = [video_id.rpartition("/")[0] for video_id in self._ids]
        known: dict[str, list[Any]] = {**self._columns, "video": self._ids, "folder": folders}
        if column not in known:
            raise UserError(f"--split-by {column}: no such column; there are {', '.join(known)}")
        if nested := [value for value in known[column] if not isinstance(value, Hashable)]:
            kind = type(nested[0]).__name__
            raise UserError(f"--split-by {column}: expected a column of single values, got {kind}")
        groups = _places_of(known[column])
        self.problems += [f"{self._ids[row]}: it has no {column} to split by" for row in groups.pop(None, [])]
        splits = ["train", *shares]
        if len(groups) < len(splits) or sum(shares.values()) >= 1:
            raise UserError(
                f"--split-by {column}: expected at least {len(splits)} values of it for the splits "
                f"{', '.join(splits)}, and shares below 1 together; got {len(groups)} and {sum(shares.values()):g}"
            )
        drawn = sorted(groups, key=lambda name: hashlib.blake2b(f"{seed}:{name}".encode()).digest())
        split_of: dict[Any, str] = {}
        for missing, (split, share) in enumerate(shares.items(), 1):
            rest = [name for name in drawn if name not in split_of]
            chosen: list[Any] = []
            count, wanted, most = 0, share * len(self._ids), len(rest) - (len(splits) - missing)
            for name in rest:
                if count + len(groups[name]) / 2 <= wanted and len(chosen) < most:
                    chosen.append(name)
                    count += len(groups[name])
            split_of |= dict.fromkeys(chosen or [min(rest, key=lambda name: len(groups[name]))], split)
        self._columns["split"] = [split_of.get(value, "train") for value in known[column]]
        of_split = {
            split: [name for name in groups if split_of.get(name, "train") == split] for split in splits
        }
        told = [
            f"{split} {sum(len(groups[n]) for n in names)} videos ({len(names)} of its values)"
            for split, names in of_split.items()
        ]
        self.notes.append(f"split by {column} (seed {seed}): {', '.join(told)}")

    def check_splits(self) -> None:
        """Say which labels and phases only test videos have now, and not before.

        Those of a file are mistakes of their row; folders and splits may not allow another way.
        """
        only = "is only in test videos"
        videos: dict[str, list[int]] = defaultdict(list)
        for row, phase, what in self._only_in_test():
            if (row, phase, what) in self._only_in_test_before:
                continue
            if place := self._places.get((row, phase)):
                remedy = "label a training video so too, or split otherwise"
                self.problems.append(f"{place}: the {what} {only}: {remedy}")
            else:
                videos[what].append(row)
        for what, rows in videos.items():
            more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
            self.notes.append(f"warning: the {what} {only} ({self._ids[rows[0]]}{more}): nothing learns it")

    def _only_in_test(self) -> list[tuple[int, str | None, str]]:
        """Row, phase (None: the label) and description of what test videos have, but no training video."""
        labels, names = self._columns["label"], [*self._vocabulary]
        of_split = _places_of([split or "train" for split in self._columns["split"]])
        trained_labels = {labels[row] for row in of_split.get("train", [])} - {None}
        phases_of: dict[int, set[str]] = defaultdict(set)
        for row, phases in self._phases.items():
            phases_of[row] = {names[code] for code in np.unique(phases) if code >= 0}
        trained: dict[str | None, set[str]] = defaultdict(set)
        for row in of_split.get("train", []):
            trained[labels[row]] |= phases_of[row]
        found: list[tuple[int, str | None, str]] = []
        for row in of_split.get("test", []):
            if trained_labels and labels[row] is not None and labels[row] not in trained_labels:
                found.append((row, None, f"label {labels[row]!r}"))
            new = phases_of[row] - trained[labels[row]] if trained[labels[row]] else set()
            found += [(row, phase, f"phase {phase!r}") for phase in sorted(new)]
        return found

    def result(self) -> pa.Table:
        """The table with all labels."""
        table = self._table
        phases = [self._phases.get(row) for row in range(len(self._ids))]
        columns = {**self._columns, "frame_labels": phases, "phase_names": self._phase_names}
        for name, values in columns.items():
            place, field = table.schema.get_field_index(name), self._field(name)
            if place >= 0:
                table = table.remove_column(place)
            table = table.add_column(place % (table.num_columns + 1), field, pa.array(values, field.type))
        return table

    def _field(self, column: str) -> pa.Field:
        """The field of a column of the result: text where the table has nothing in it."""
        if column in SCHEMA.names:
            return SCHEMA.field(column)
        known = self._table.schema.field(column) if column in self._table.column_names else None
        return pa.field(column, pa.string()) if known is None or pa.types.is_null(known.type) else known


def _places_of(values: Sequence[Any]) -> dict[Any, list[int]]:
    """Places of each value, by first occurrence."""
    places: dict[Any, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return places
