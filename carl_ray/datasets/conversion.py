"""What converters of single frames share: their result, fitting labels to frames, the way to a manifest.

A converter writes video files below a folder, `train/` and `test/`, and knows the labels of each. What it
leaves out or mends is counted with the reason, never passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from carl_ray import storage
from carl_ray.data.manifest import attach_labels, write_table
from carl_ray.datasets.motion_jpeg import mux_motion_jpeg
from carl_ray.errors import RunError, UserError

FRAMES_PER_SECOND = 25
"""What the video files state where a data set does not say it: as in the files that CARL's authors share.

Nothing is computed from it; a manifest's timestamps are frame indices.
"""

LABELS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),  # path inside the folder, "train/0001_squat.mp4"
        pa.field("split", pa.string(), nullable=False),  # "train" or "test"
        pa.field("label", pa.string(), nullable=False),  # name of the action
        pa.field(
            "frame_labels", pa.list_(pa.int32())
        ),  # phase of a frame, -1 where unknown; null without any
    ]
)

_SHOWN = 5  # videos named for each reason
_LONGEST_NAME = 240  # bytes: file systems take 255, and a file that is being written has a longer one

OnVideo = Callable[[int, int], None]
"""Called with (videos done, videos in all or 0 where that is unknown) after each video."""


class LeftOut(Exception):  # noqa: N818 - no error: the conversion goes on with the next video
    """A video that does not come out; the message says why."""


@dataclass
class Conversion:
    """What a conversion yields."""

    rows: list[dict[str, object]] = field(default_factory=list)
    """Rows of `LABELS_SCHEMA`, one a video."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Videos of the download that are not among the rows, by reason."""
    mended: dict[str, list[str]] = field(default_factory=dict)
    """Videos among the rows with something that did not fit, by what it was."""

    @property
    def labels(self) -> pa.Table:
        """The rows as a table of `LABELS_SCHEMA`, sorted by video id."""
        return pa.Table.from_pylist(self.rows, schema=LABELS_SCHEMA).sort_by("video_id")

    def leave_out(self, video: str, reason: str) -> None:
        """Counts a video that does not come out."""
        self.left_out.setdefault(reason, []).append(video)

    def mend(self, video: str, what: str) -> None:
        """Counts a video that comes out although something did not fit."""
        self.mended.setdefault(what, []).append(video)


def fit_labels(
    labels: Sequence[int], frame_numbers: Sequence[int], num_frames: int
) -> tuple[list[int], str | None]:
    """One label for each frame that is there, and what was mended (None where everything fits).

    Labels belong to frame numbers. Lists that are one longer or one shorter than the video are common: a
    surplus label is dropped, a frame without one gets -1. Where the lengths differ by more, the labels are of
    another sampling of the video and are stretched over it: frame i of n takes label floor(i * labels / n).
    The released code does so where labels are more, and drops frames where they are fewer.

    Args:
        labels: At least one.
        frame_numbers: Of the frames there are, ascending, counted from 0; a missing frame leaves a gap.
        num_frames: What the data set states, which counts where the last frames are missing.
    """
    numbered = frame_numbers[-1] + 1
    if len(labels) == len(frame_numbers) != numbered:
        return list(labels), "frame numbers with gaps, as many labels as frames"
    if min(abs(len(labels) - numbered), abs(len(labels) - num_frames)) > 1:
        count = len(frame_numbers)
        stretched = [labels[i * len(labels) // count] for i in range(count)]
        return stretched, "labels of another number of frames, stretched"
    fitted = [labels[number] if number < len(labels) else -1 for number in frame_numbers]
    if len(labels) == numbered - 1:
        return fitted, "one label too few, the last frame has none"
    if len(labels) == max(numbered, num_frames) + 1:
        return fitted, "one label too many, dropped"
    return fitted, None


def check_file_name(name: str) -> None:
    """Raises `LeftOut` where a name from a data set cannot be that of a file in a folder of ours.

    It must not lead out of the folder, hide the file, be too long, or hold what a terminal would obey.
    """
    if (
        not name
        or name.startswith(".")
        or "/" in name
        or not name.isprintable()
        or len(name.encode()) > _LONGEST_NAME
    ):
        raise LeftOut("its name cannot be that of a file")


def check_phases(labels: Sequence[int], num_phases: int) -> None:
    """Raises `LeftOut` where a label is no phase, 0 to `num_phases` - 1, and not -1 (unknown)."""
    if min(labels) < -1 or max(labels) >= num_phases:
        raise LeftOut(f"a phase label is outside 0 to {num_phases - 1}")


class VideoFolder:
    """The folder that videos are written to; those that an earlier run finished are not written again."""

    def __init__(self, out: str) -> None:
        self._out = out
        self._finished = {
            f"{split}/{name}"
            for split in ("train", "test")
            for name in storage.list_folder(storage.join(out, split))
        }

    def add(self, video_id: str, frames: Iterable[bytes]) -> None:
        """Writes a Motion JPEG video, whole or not at all, unless it is there.

        Args:
            video_id: `train/NAME` or `test/NAME`.
            frames: JPEG files.

        Raises:
            LeftOut: the frames do not make a video, or the name cannot be that of a file.
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


def index_converted(conversion: Conversion, out: str) -> pa.Table:
    """Writes `manifest.parquet` into the folder of the videos, and returns it. Ray must have been started.

    Only videos of this conversion are in it, whatever else lies in the folder.

    Raises:
        RunError: a converted video cannot be decoded or is gone, or has another number of frames than labels.
        UserError: the manifest there is none, or that of another folder.
    """
    # Only here: converting needs nothing of what scanning imports.
    from carl_ray.data.scan import index_folder, scan_uri

    manifest_uri = storage.join(out, "manifest.parquet")
    labels = conversion.labels
    manifest, rejects = index_folder(out, scan_uri(manifest_uri))
    manifest = manifest.filter(pc.is_in(manifest.column("video_id"), value_set=labels.column("video_id")))
    found = set(manifest.column("video_id").to_pylist())
    for video_id in labels.column("video_id").to_pylist():
        if video_id not in found:
            reason = next(
                (row["reason"] for row in rejects.to_pylist() if _is_at(video_id, row["uri"])), "it is gone"
            )
            raise RunError(f"{video_id}: the video cannot be read ({reason}); delete it and convert again")
    try:
        manifest = attach_labels(manifest, labels)
    except ValueError as error:
        raise RunError(f"{error}; the video is of another download: delete it and convert again") from None
    write_table(manifest, manifest_uri)
    return manifest


def _is_at(video_id: str, uri: str) -> bool:
    return uri.endswith((f"/{video_id}", f"/{quote(video_id)}"))


def require_videos(conversion: Conversion, raw: str) -> None:
    """Raises `UserError` with the most frequent reason where no video came out at all."""
    if conversion.rows:
        return
    if not conversion.left_out:
        raise UserError(f"{raw}: it holds no video")
    reason, videos = max(conversion.left_out.items(), key=lambda item: len(item[1]))
    raise UserError(f"{raw}: no video could be converted; most frequent reason: {reason} ({len(videos)})")


def summarize(conversion: Conversion, published: dict[str, int], manifest_uri: str) -> str:
    """A table for people: videos and frames of each split, what was left out, what was mended.

    Args:
        conversion: What came out.
        published: How many videos the authors' lists have, by split.
        manifest_uri: Where the manifest is.
    """
    lines = [f"{'split':<10}{'videos':>8}{'published':>11}{'labelled frames':>17}"]
    for split, expected in published.items():
        rows = [row for row in conversion.labels.to_pylist() if row["split"] == split]
        frames = sum(label >= 0 for row in rows for label in row["frame_labels"] or [])
        lines.append(f"{split:<10}{len(rows):>8,}{expected:>11,}{frames:>17,}")
    for title, counted in (("left out", conversion.left_out), ("mended", conversion.mended)):
        lines.append(f"{title}: {sum(map(len, counted.values()))}")
        for reason, videos in sorted(counted.items(), key=lambda item: (-len(item[1]), item[0])):
            names = ", ".join(videos[:_SHOWN]) + (", …" if len(videos) > _SHOWN else "")
            lines.append(f"{len(videos):>8} x {reason} ({names})")
    lines.append(f"manifest: {storage.public_uri(manifest_uri)}")
    # Names come from the download, and a terminal obeys what is in them.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def print_progress(done: int, total: int) -> None:
    """Prints how many videos are done, now and then."""
    if done % 100 == 0 or done == total:
        print(f"converted {done:,}{f' of {total:,}' if total else ''} videos", flush=True)
