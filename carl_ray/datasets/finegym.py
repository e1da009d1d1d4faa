"""Convert FineGym (Shao et al., CVPR 2020): annotation and raw videos to cut events and a manifest.

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

    videos/<YouTube id>_E_<start>_<end>.mp4    one file an event; both sets of classes share them
    videos.parquet                             their index
    finegym99.parquet, finegym288.parquet      the manifests

An event becomes a video if an element of it is in the lists; `cutting` defines which frames it has. The rate is
25 frames a second, as in the released code (and the paper: its 140 to 5,153 frames are 5.6 to 206 seconds), the
shorter side 360 pixels as there; smaller videos keep their size. One core cuts 150 to 270 frames a second;
videos that are finished are not cut again.

- Video label: the event's class, by name. Split: "train", or "test" for the list that FineGym calls val,
  which is what CARL tests on. An event with elements in both lists is in "test", with the labels of that list
  alone.
- Frame labels: frame k has the class of the element with a stage whose [start, end) covers k / rate, the
  later one where two do; -1 elsewhere. (The released code labels one frame more at the end of each element,
  and of a vault only the last of its three stages.)
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from carl_ray import storage
from carl_ray.data.scan import VIDEO_SUFFIXES
from carl_ray.datasets.conversion import (
    Conversion,
    OnVideo,
    converter_parser,
    index_videos,
    summarize,
    write_manifest,
)
from carl_ray.datasets.cutting import Cut, cut_all, num_frames_between
from carl_ray.datasets.finegym_annotation import VERSIONS, Event, find_published, read_annotation
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.options import number
from carl_ray.progress import ProgressLine

FRAME_RATE = 25
SHORT_SIDE = 360

_SETTINGS = "cut.json"
_CUT_OFF = "ends of events that lie beyond their video (the beginnings are kept)"


def frame_labels(event: Event, num_frames: int, frame_rate: int) -> Int32[np.ndarray, " frames"]:
    """Class of each frame of an event's video: that of the element that covers its time, or -1.

    Args:
        event: Its stages may end beyond it.
        num_frames: Of its video.
        frame_rate: Frame k shows the time k / frame_rate of the event.
    """
    labels = np.full(num_frames, -1, np.int32)
    for start, end, label in event.stages:
        # Frame k is covered if start <= k / rate < end, in exact fractions.
        labels[max(0, math.ceil(start * frame_rate)) : max(0, math.ceil(end * frame_rate))] = label
    return labels


def find_videos(raw: Path, youtube_ids: set[str]) -> tuple[dict[str, Path], list[str]]:
    """Find the file of each video below a folder, the largest of several; list videos with several."""
    found: dict[str, list[Path]] = {}
    seen = set()
    for folder, subfolders, names in os.walk(raw, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            subfolders.clear()
            continue
        seen.add(real)
        for name in names:
            path = Path(folder, name)
            if name.startswith("._"):  # what macOS leaves beside a file
                continue
            if path.suffix.lower() in VIDEO_SUFFIXES and (video := _youtube_id(path.stem, youtube_ids)):
                found.setdefault(video, []).append(path)
    largest = {
        video: max(paths, key=lambda path: (path.stat().st_size, str(path))) for video, paths in found.items()
    }
    return largest, [video for video, paths in found.items() if len(paths) > 1]


def convert(
    raw: Path,
    out: Path,
    classes: int,
    *,
    version: str | None = None,
    frame_rate: int = FRAME_RATE,
    short_side: int = SHORT_SIDE,
    on_video: OnVideo = lambda done, total: None,
) -> Conversion:
    """Cut the events out of the videos, those that are not there yet, and collect their labels.

    Args:
        raw: The folder with the published files and the videos.
        out: The folder for the results; the videos go into its folder `videos`.
        classes: 99 or 288.
        version: As for `find_published`.
        frame_rate: Frames a second of the cut videos.
        short_side: Their shorter side in pixels; smaller videos keep their size.
        on_video: Called after each event.

    Raises:
        UserError: RAW is not as published, or `out` holds videos cut with other settings.
        RunError: a video cannot be written.
    """
    published = find_published(raw, classes, version)
    conversion = Conversion({})
    events = read_annotation(published, classes, conversion)
    counts = Counter(event.split for event in events)
    conversion.published = {split: counts[split] for split in ("train", "test")}
    youtube_ids = {event.youtube_id for event in events}
    videos, doubled = find_videos(raw, youtube_ids)
    if not videos:
        raise UserError(
            f"{raw}: expected the videos of FineGym below it, named <YouTube id>.mp4 (or another suffix), "
            f"found none of {len(youtube_ids)}"
        )
    _check_settings(out, {"frame_rate": frame_rate, "short_side": short_side, "version": published.version})
    if doubled:
        conversion.mended["videos with several files, of which the largest was taken"] = doubled
    cuts = {}
    for event in events:
        if source := videos.get(event.youtube_id):
            target = out / "videos" / f"{event.event_id}.mp4"
            cuts[Cut(source, target, event.start, event.end)] = event
        else:
            missing = len(youtube_ids - videos.keys())
            conversion.leave_out(event.event_id, f"events of {missing} missing videos")
    results = cut_all(list(cuts), frame_rate=frame_rate, short_side=short_side)
    for done, (cut, result) in enumerate(results, 1):
        event = cuts[cut]
        if result.reason is None:
            is_cut_off = result.num_frames < num_frames_between(cut.start, cut.end, frame_rate)
            notes = [_CUT_OFF] if is_cut_off else []
            labels = frame_labels(event, result.num_frames, frame_rate).tolist()
            conversion.add(cut.target.name, event.split, event.label, labels, *notes)
        else:
            conversion.leave_out(event.event_id, f"events: {result.reason}")
        on_video(done, len(cuts))
    return conversion


# The folders


def _youtube_id(stem: str, youtube_ids: set[str]) -> str | None:
    """Find the id in a file's name: all of it, in brackets at its end, after v_, or after a hyphen."""
    candidates = [stem]
    if stem.endswith("]"):
        candidates.append(stem[stem.rfind("[") + 1 : -1])
    candidates.append(stem.removeprefix("v_"))
    candidates += [stem[i + 1 :] for i, character in enumerate(stem) if character == "-"]
    return next((candidate for candidate in candidates if candidate in youtube_ids), None)


def _check_settings(out: Path, settings: dict[str, int | str]) -> None:
    """Store how the videos of a folder are cut; raise `UserError` if it has videos cut with other settings."""
    path = out / _SETTINGS
    if path.is_file():
        try:
            there = json.loads(path.read_text())
        except ValueError:
            there = None
        if there != settings:
            raise UserError(
                f"{out}: it holds events cut with {there}, not with {settings}; name another --out, or "
                "delete that folder"
            )
        return
    if (out / "videos").exists():
        raise UserError(f"{out}: its folder `videos` does not come from here; name another --out")
    storage.write_bytes(str(path), json.dumps(settings).encode() + b"\n")


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
        parser.add_argument(
            "--version",
            choices=VERSIONS,
            help="of the annotation; default: the one that is there, 1.0 (the released code's) of both",
        )
        parser.add_argument(
            "--frame-rate",
            metavar="N",
            type=number(int, at_least=1),
            default=FRAME_RATE,
            help=f"default {FRAME_RATE}",
        )
        parser.add_argument(
            "--short-side",
            metavar="N",
            type=number(int, at_least=1),
            default=SHORT_SIDE,
            help=f"pixels; smaller videos keep their size; default {SHORT_SIDE}",
        )
        options = vars(parser.parse_args(arguments))
        raw, out = _local(options.pop("raw")), _local(options.pop("out"))
        conversion = convert(raw, out, **options, on_video=ProgressLine("cut", "events"))
        if not conversion.rows:
            print(summarize(conversion))
            raise RunError(f"{raw}: no event could be cut out; the reasons are listed above")
        name = f"finegym{options['classes']}"
        indexed, rejects = index_videos(str(out / "videos"), str(out / "videos.parquet"))
        write_manifest(conversion, indexed, rejects, str(out / f"{name}.parquet"), name)


def _local(path: str) -> Path:
    if storage.is_remote(path):
        raise UserError(f"{storage.public_uri(path)}: expected a folder of this machine; videos are cut here")
    return Path(path).expanduser().absolute()


if __name__ == "__main__":
    main()
