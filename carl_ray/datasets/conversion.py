"""Common parts of the converters: their result, label fitting, writing videos, manifest and report.

A converter reads the annotations of a published data set, writes or finds its videos, and collects one row of
labels a video. Everything that it skips or corrects is counted with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc

from carl_ray import storage
from carl_ray.data.manifest import SCHEMA, attach_labels, save_manifest
from carl_ray.datasets.motion_jpeg import mux_motion_jpeg
from carl_ray.errors import RunError, UserError
from carl_ray.options import OptionParser, print_next, program

FRAMES_PER_SECOND = 25
"""Nominal frame rate where a data set states none, as in the files shared by CARL's authors.

Nothing is computed from it; a manifest's timestamps are frame indices.
"""

LABELS_SCHEMA = pa.schema([SCHEMA.field(name) for name in ("video_id", "split", "label", "frame_labels")])

_NUM_SHOWN = 5  # videos named for each reason
_MAX_NAME_BYTES = 240  # file systems allow 255, and a file being written has a longer name

OnVideo = Callable[[int, int], None]
"""Called with (videos done, videos in all or 0 if unknown) after each video."""


class LeftOut(Exception):  # noqa: N818 - no error: the conversion goes on with the next video
    """A video that cannot be converted; the message is the reason."""


class LabelRow(TypedDict):
    """A row of `LABELS_SCHEMA`, with `group` where the data set has groups."""

    video_id: str
    split: str
    label: str | None
    frame_labels: Sequence[int] | None
    group: NotRequired[str]


@dataclass
class Conversion:
    """Labels of the converted videos, and what was skipped or corrected."""

    published: Mapping[str, int]
    """Number of videos in the published lists, by split."""
    rows: list[LabelRow] = field(default_factory=list)
    """One a video."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Videos (or parts of them) that are not among the rows, by reason."""
    mended: dict[str, list[str]] = field(default_factory=dict)
    """Videos among the rows of which something was corrected, by what it was."""

    @property
    def labels(self) -> pa.Table:
        """The rows as a table of `LABELS_SCHEMA` (and `group`), sorted by video id."""
        has_groups = any("group" in row for row in self.rows)
        schema = LABELS_SCHEMA.append(pa.field("group", pa.string())) if has_groups else LABELS_SCHEMA
        return pa.Table.from_pylist(self.rows, schema=schema).sort_by("video_id")

    def add(
        self, video_id: str, split: str, label: str | None, frame_labels: Sequence[int] | None, *notes: str
    ) -> None:
        """Add a row; each note says what was corrected."""
        self.rows.append({"video_id": video_id, "split": split, "label": label, "frame_labels": frame_labels})
        for note in notes:
            self.mended.setdefault(note, []).append(video_id)

    def leave_out(self, video: str, reason: str) -> None:
        """Count a video that is skipped."""
        self.left_out.setdefault(reason, []).append(video)

    @contextmanager
    def counting(self, video: str) -> Iterator[None]:
        """Skip and count a video for which the body raises `LeftOut`."""
        try:
            yield
        except LeftOut as reason:
            self.leave_out(video, str(reason))


def fit_labels(
    labels: Sequence[int], frame_numbers: Sequence[int], num_frames: int, num_phases: int
) -> tuple[list[int], list[str]]:
    """Fit phase labels to the frames that are there: one label a frame, and notes on what was corrected.

    Labels belong to frame numbers. Lists that are one longer or one shorter than the video are common: a
    surplus label is dropped, a frame without one gets -1. If the lengths differ by more, the labels are of
    another sampling of the video and are stretched over it: frame i of n takes label floor(i * labels / n).
    The released code does so if there are more labels, and drops frames if there are fewer.

    Args:
        labels: At least one, each a phase or -1 (unknown).
        frame_numbers: Of the frames that are there, ascending, from 0; a missing frame leaves a gap.
        num_frames: As the data set states it, which counts if the last frames are missing.
        num_phases: Phases are 0 to `num_phases` - 1.

    Raises:
        LeftOut: a label is outside of that range.
    """
    if min(labels) < -1 or max(labels) >= num_phases:
        raise LeftOut(f"a phase label is outside 0 to {num_phases - 1}")
    numbered = frame_numbers[-1] + 1
    if len(labels) == len(frame_numbers) != numbered:
        return list(labels), ["frame numbers with gaps, as many labels as frames"]
    if min(abs(len(labels) - numbered), abs(len(labels) - num_frames)) > 1:
        count = len(frame_numbers)
        stretched = [labels[i * len(labels) // count] for i in range(count)]
        return stretched, ["labels of another number of frames, stretched"]
    fitted = [labels[number] if number < len(labels) else -1 for number in frame_numbers]
    if len(labels) == numbered - 1:
        return fitted, ["one label too few, the last frame has none"]
    if len(labels) == max(numbered, num_frames) + 1:
        return fitted, ["one label too many, dropped"]
    return fitted, []


def check_file_name(name: str) -> None:
    """Raise `LeftOut` if a name from a data set is unsafe as a file name.

    Unsafe are separators, leading dots, control characters and more bytes than file systems allow.
    """
    is_whole = name.isprintable() and 0 < len(name.encode()) <= _MAX_NAME_BYTES
    if not is_whole or name.startswith(".") or "/" in name:
        raise LeftOut("its name cannot be that of a file")


class VideoFolder:
    """Output folder of Motion JPEG videos; videos that an earlier run finished are not written again."""

    def __init__(self, out: str) -> None:
        self._out = out
        self._finished = {
            f"{split}/{name}"
            for split in ("train", "test")
            for name in storage.list_folder(storage.join(out, split))
        }

    def add(self, video_id: str, frames: Iterable[bytes]) -> None:
        """Write a video atomically, unless it is there.

        Args:
            video_id: `train/NAME` or `test/NAME`.
            frames: JPEG files.

        Raises:
            LeftOut: the frames do not make a video, or the name is unsafe.
            RunError: the storage refuses, fails or is full.
        """
        if video_id in self._finished:
            return
        check_file_name(video_id.partition("/")[2])
        try:
            content = mux_motion_jpeg(frames, frames_per_second=FRAMES_PER_SECOND)
        except ValueError as error:
            raise LeftOut(str(error)) from None
        name = quote(video_id) if storage.is_remote(self._out) else video_id
        storage.write_bytes(storage.join(self._out, name), content)
        self._finished.add(video_id)


# The command line of a converter


def converter_parser(
    module: str,
    description: str | None,
    *,
    raw: str,
    out: str = "path or URI for the videos and the manifest",
) -> OptionParser:
    """Parser with the arguments that every converter has: RAW and --out.

    Args:
        module: Name in this package.
        description: The module's docstring.
        raw: Help text of RAW.
        out: Help text of --out.
    """
    parser = OptionParser(prog=program(f"datasets.{module}"), description=description)
    parser.add_argument("raw", metavar="RAW", help=raw)
    parser.add_argument("--out", required=True, metavar="OUT", help=out)
    return parser


def index_videos(folder: str, index: str) -> tuple[pa.Table, dict[str, str]]:
    """Index a folder of videos on a Ray cluster: manifest without labels, reject reasons by video id.

    Args:
        folder: Path or URI.
        index: Where to keep the index for later runs; the rejects are beside it.

    Raises:
        RunError, UserError: as `scan.index_folder`.
    """
    # Lazy imports of Ray and FFmpeg: usage errors and conversion need neither.
    from carl_ray.data.scan import index_folder
    from carl_ray.session import connect

    with connect():
        manifest, rejects = index_folder(folder, index)
    rejected = rejects.column("uri").to_pylist()
    if storage.is_remote(folder):
        root = storage.public_uri(folder).partition("?")[0].rstrip("/")
        ids = [unquote(uri.partition("?")[0].removeprefix(f"{root}/")) for uri in rejected]
    else:
        root = storage.absolute(folder).rstrip("/")
        ids = [uri.removeprefix(f"{root}/") for uri in rejected]
    return manifest, dict(zip(ids, rejects.column("reason").to_pylist(), strict=True))


def write_manifest(
    conversion: Conversion, indexed: pa.Table, rejects: Mapping[str, str], manifest: str, preset: str
) -> None:
    """Write the labelled rows of an index as a manifest, print report and next command.

    Args:
        conversion: Only its videos get into the manifest, whatever else is in the folder.
        indexed: Of the folder with the videos, as `index_videos` returns it.
        rejects: Likewise.
        manifest: Path or URI.
        preset: To train with.

    Raises:
        RunError: a converted video cannot be decoded or is gone, or has another number of frames than labels.
    """
    labels = conversion.labels
    indexed = indexed.filter(pc.is_in(indexed.column("video_id"), value_set=labels.column("video_id")))
    missing = set(labels.column("video_id").to_pylist()) - set(indexed.column("video_id").to_pylist())
    if missing:
        video_id = min(missing)
        reason = rejects.get(video_id, "it is gone")
        raise RunError(f"{video_id}: the video cannot be read ({reason}); delete it and convert again")
    try:
        table = attach_labels(indexed, labels)
    except ValueError as error:
        raise RunError(f"{error}; the video is of another download: delete it and convert again") from None
    save_manifest(table, manifest)
    print(summarize(conversion))
    print(f"manifest: {storage.public_uri(manifest)}")
    print_next("train", preset, "--data.manifest", manifest)


def publish(conversion: Conversion, raw: str, out: str, preset: str) -> None:
    """Index the videos in the folder `out` and write `manifest.parquet` into it, with report.

    Raises:
        UserError: no video was converted; the message has the most frequent reason.
        RunError: as `write_manifest`.
    """
    if not conversion.rows:
        if not conversion.left_out:
            raise UserError(f"{raw}: it holds no video")
        reason, videos = max(conversion.left_out.items(), key=lambda item: len(item[1]))
        most = f"most frequent reason: {reason} ({len(videos)})"
        raise UserError(f"{raw}: no video could be converted; {most}")
    from carl_ray.data.manifest import scan_uri

    manifest = storage.join(out, "manifest.parquet")
    write_manifest(conversion, *index_videos(out, scan_uri(manifest)), manifest, preset)


def summarize(conversion: Conversion) -> str:
    """Format a report: videos and labelled frames of each split, what was left out and corrected."""
    lines = [f"{'split':<12}{'videos':>10}{'published':>11}{'labelled frames':>17}{'of':>12}"]
    for split, expected in conversion.published.items():
        rows = [row for row in conversion.rows if row["split"] == split]
        labels = [label for row in rows for label in row["frame_labels"] or []]
        labelled = sum(label >= 0 for label in labels)
        lines.append(f"{split:<12}{len(rows):>10,}{expected:>11,}{labelled:>17,}{len(labels):>12,}")
    for title, counted in (("left out", conversion.left_out), ("mended", conversion.mended)):
        lines.append(f"{title}: {sum(map(len, counted.values()))}")
        for reason, videos in sorted(counted.items(), key=lambda item: (-len(item[1]), item[0])):
            names = ", ".join(sorted(videos)[:_NUM_SHOWN]) + (", …" if len(videos) > _NUM_SHOWN else "")
            lines.append(f"{len(videos):>8} x {reason} ({names})")
    # Names come from the download and could contain terminal control sequences.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
