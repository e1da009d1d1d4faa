"""Index FineGym (Shao et al., CVPR 2020): its events as ranges of the raw videos, with annotation.

    python -m carl_ray.datasets.finegym RAW --out FOLDER --classes 99
    python -m carl_ray.datasets.finegym RAW --out FOLDER --classes 288

RAW has the files of the project page (https://sdolivia.github.io/FineGym), in itself or in its folders:

    finegym_annotation_info_v1.0.json    or v1.1: YouTube id → event id E_<start>_<end> → event (1 vault,
                                         2 floor exercise, 3 balance beam, 4 uneven bars), timestamps
                                         [[start, end]] in seconds of the video, segments: element id
                                         A_<start>_<end> → stages (3 for vaults, else 1), timestamps
                                         [[start, end], …] of each in seconds from the event's start;
                                         segments may be null
    gym99_train_element_v1.0.txt         or v1.1, and gym288_…: lines "<YouTube id>_E_…_A_… <class>"
    gym99_val_element.txt                and gym288_…: the same for both versions

and the videos, anywhere below it: <YouTube id>.<any suffix of a video>, v_<YouTube id>.mp4, or the names that
download tools give, "<title> [<id>].mp4" and "<title>-<id>.mp4". Of several files of a video the largest is
used. Missing and broken videos are counted, and tried again by the next run.

Output in FOLDER:

    videos.parquet                             the index of the raw videos, shared by both sets of classes
    finegym99.parquet, finegym288.parquet      the manifests

An event becomes a row of the manifest, <YouTube id>_E_<start>_<end>.mp4, if an element of it is in the lists: the
frames of its raw video from the one that is shown at its start to the last that begins before its end. Nothing is
cut or resized, so that H.264 downloads are best: in VP9, each sample decodes its video from the start, for minutes.
The rate is that of the raw video; the released code's, and the paper's, is 25 frames a second,
which most of the videos have.

- Video label: the event's class, by name. Split: "train", or "test" for the list that FineGym calls val,
  which is what CARL tests on. An event with elements in both lists is in "test", with the labels of that list
  alone.
- Frame labels: a frame has the class of the element with a stage whose [start, end) covers its time since the
  event's first frame, the later one where two do; -1 elsewhere. (The released code labels one frame more at the
  end of each element, and of a vault only the last of its three stages.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from carl_ray import storage
from carl_ray.data.parts import EXACT_SECONDS, Range, range_row, seconds_of
from carl_ray.datasets.conversion import (
    Conversion,
    converter_parser,
    index_videos,
    summarize,
    write_manifest,
)
from carl_ray.datasets.finegym_annotation import Event, find_published, read_annotation
from carl_ray.errors import RunError, UserError, one_line_errors

_CUT_OFF = "ends of events that lie beyond their video (the beginnings are kept)"


def frame_labels(event: Event, seconds: Sequence[float] | np.ndarray) -> Int32[np.ndarray, " frames"]:
    """Class of each frame of an event: that of the element that covers its time, or -1.

    Args:
        event: Its stages may end beyond it.
        seconds: Of each frame, since the event's first.
    """
    labels = np.full(len(seconds), -1, np.int32)
    times = np.asarray(seconds) + 1e-5  # A manifest's are rounded to 1e-6.
    for start, end, label in event.stages:
        labels[(times >= float(start)) & (times < float(end))] = label
    return labels


def find_videos(
    index: pa.Table, rejects: Mapping[str, str], youtube_ids: set[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str], list[str]]:
    """The row of the largest file of each video, why others do not decode, and the videos with several files."""
    rows: dict[str, list[dict[str, Any]]] = {}
    reasons: dict[str, list[str]] = {}
    for row in index.to_pylist():
        if video := _youtube_id(row["video_id"], youtube_ids):
            rows.setdefault(video, []).append(row)
    for name, reason in rejects.items():
        if video := _youtube_id(name, youtube_ids):
            reasons.setdefault(video, []).append(reason)
    largest = {video: max(files, key=lambda row: (row["bytes"], row["uri"])) for video, files in rows.items()}
    doubled = [id_ for id_ in youtube_ids if len(rows.get(id_, [])) + len(reasons.get(id_, [])) > 1]
    return largest, {video: found[0] for video, found in reasons.items()}, doubled


def read_events(raw: Path, classes: int) -> tuple[list[Event], Conversion]:
    """The events of the lists, and a conversion that counts what the annotation lacks.

    Args:
        raw: The folder with the published files.
        classes: 99 or 288.

    Raises:
        UserError: RAW is not as published.
    """
    conversion = Conversion({})
    events = read_annotation(find_published(raw, classes), classes, conversion)
    counts = Counter(event.split for event in events)
    conversion.published = {split: counts[split] for split in ("train", "test")}
    return events, conversion


def add_events(
    events: Sequence[Event], conversion: Conversion, index: pa.Table, rejects: Mapping[str, str]
) -> pa.Table:
    """Add the events whose video is there to a conversion; return their rows of the manifest, without labels.

    Args:
        events: As `read_events` returns them.
        conversion: Likewise; it counts those that are left out.
        index: Of the raw videos, as `index_videos` returns it.
        rejects: Likewise.
    """
    youtube_ids = {event.youtube_id for event in events}
    videos, broken, doubled = find_videos(index, rejects, youtube_ids)
    if doubled:
        conversion.mended["videos with several files, of which the largest was taken"] = doubled
    missing = len(youtube_ids - videos.keys() - broken.keys())
    rows = []
    for event in events:
        file = videos.get(event.youtube_id)
        if file is None:
            reason = broken.get(event.youtube_id)
            why = f"events: {reason}" if reason else f"events of {missing} missing videos"
            conversion.leave_out(event.event_id, why)
            continue
        try:
            is_cut_off = event.end > seconds_of(file)[-1] + EXACT_SECONDS
            end = None if is_cut_off else float(event.end)
            row = range_row(file, Range(file["uri"], f"{event.event_id}.mp4", float(event.start), end))
        except ValueError as error:
            conversion.leave_out(event.event_id, f"events: {error}")
            continue
        labels = frame_labels(event, seconds_of(row)[:-1]).tolist()
        notes = [_CUT_OFF] if is_cut_off else []
        conversion.add(row["video_id"], event.split, event.label, labels, *notes)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=index.schema).sort_by("video_id")


def _youtube_id(name: str, youtube_ids: set[str]) -> str | None:
    """Find the id in a file's name: all of it, in brackets at its end, after v_, or after a hyphen."""
    path = PurePosixPath(name)
    stem = path.stem
    candidates = [stem]
    if stem.endswith("]"):
        candidates.append(stem[stem.rfind("[") + 1 : -1])
    candidates.append(stem.removeprefix("v_"))
    candidates += [stem[i + 1 :] for i, character in enumerate(stem) if character == "-"]
    # What macOS leaves beside a file begins with "._".
    return None if stem.startswith("._") else next((name for name in candidates if name in youtube_ids), None)


# The command line


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    with one_line_errors():
        parser = converter_parser(
            "finegym",
            __doc__,
            raw="folder with the published files and the videos",
            out="folder for the results",
        )
        parser.add_argument("--classes", type=int, choices=(99, 288), default=99, help="default 99")
        options = parser.parse_args(arguments)
        raw, out = _local(options.raw), _local(options.out)
        events, conversion = read_events(raw, options.classes)
        index, rejects = index_videos(str(raw), str(out / "videos.parquet"))
        manifest = add_events(events, conversion, index, rejects)
        if not conversion.rows:
            print(summarize(conversion))
            raise RunError(f"{raw}: no event has a video that can be read; the reasons are listed above")
        name = f"finegym{options.classes}"
        write_manifest(conversion, manifest, {}, str(out / f"{name}.parquet"), name)


def _local(path: str) -> Path:
    if storage.is_remote(path):
        raise UserError(f"{storage.public_uri(path)}: expected a folder of this machine")
    return Path(path).expanduser().absolute()


if __name__ == "__main__":
    main()
