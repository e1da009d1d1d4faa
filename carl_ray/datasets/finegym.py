"""FineGym (Shao et al., CVPR 2020), 99 and 288 classes: published annotation and raw videos → a manifest.

    python -m carl_ray.datasets.finegym RAW --out FOLDER --classes 99
    python -m carl_ray.datasets.finegym RAW --out FOLDER --classes 288

RAW holds what the project page (https://sdolivia.github.io/FineGym) publishes, in itself or in its folders:

    finegym_annotation_info_v1.0.json    or v1.1: YouTube id → event id E_<start>_<end> → event (1 vault,
                                         2 floor exercise, 3 balance beam, 4 uneven bars), timestamps
                                         [[start, end]] in seconds of the video, segments: element id
                                         A_<start>_<end> → stages (3 for vaults, else 1), timestamps
                                         [[start, end], …] of each in seconds from the event's start;
                                         segments may be null
    gym99_train_element_v1.0.txt         or v1.1, and gym288_…: lines "<YouTube id>_E_…_A_… <class>"
    gym99_val_element.txt                and gym288_…: the same for both versions

and the videos, wherever below it they lie: <YouTube id>.<any suffix of a video>, v_<YouTube id>.mp4, or the
names that download tools give, "<title> [<id>].mp4" and "<title>-<id>.mp4". Where a video is there several
times, the largest file counts. Missing and broken videos are counted, and tried again by the next run.

FOLDER gets

    videos/<YouTube id>_E_<start>_<end>.mp4    one file an event; both sets of classes share them
    videos.parquet                             their index
    finegym99.parquet, finegym288.parquet      the manifests

An event becomes a video if an element of it is in the lists; `cutting` says which frames it has. The rate
is 25 frames a second, that of the released code (and of the paper: its 140 to 5,153 frames are 5.6 to 206
seconds), the shorter side 360 pixels as there; smaller videos keep their size. One core cuts 150 to 270
frames a second; videos that are finished are not cut again.

- Video label: the event's class, by name. Split: "train", or "test" for the list that FineGym calls val,
  which is what CARL tests on. An event with elements in both lists is in "test", with the labels of that list
  alone.
- Frame labels: frame k has the class of the element with a stage whose [start, end) covers k / rate, the
  later one where two do; -1 elsewhere. (The released code labels one frame more at the end of each element,
  and of a vault only the last of its three stages.)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from carl_ray import storage
from carl_ray.data.manifest import attach_labels, write_table
from carl_ray.data.scan import VIDEO_SUFFIXES, index_folder
from carl_ray.datasets.cutting import Cut, cut_all, num_frames_between
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.options import OptionParser, print_next

FRAME_RATE = 25
SHORT_SIDE = 360

_EVENTS = {1: "vault", 2: "floor exercise", 3: "balance beam", 4: "uneven bars"}
_VERSIONS = ("1.0", "1.1")  # the first that is there counts; the released code used 1.0
# The parts become names of files: of YouTube's ids no other character is known.
_ELEMENT = re.compile(r"(?P<video>[\w-]+)_(?P<event>E_\d+_\d+)_(?P<element>A_\d+_\d+)", re.ASCII)
_SETTINGS = "cut.json"


@dataclass(frozen=True)
class Element:
    """A sub-action of an event."""

    label: int
    stages: tuple[tuple[Fraction, Fraction], ...]
    """Start and end of each stage, in seconds from the start of the event."""


@dataclass(frozen=True)
class Event:
    """One performance on one apparatus."""

    event_id: str
    """`<YouTube id>_E_<start>_<end>`."""
    youtube_id: str
    label: str
    split: str
    start: Fraction
    """Seconds of the video."""
    end: Fraction
    """Seconds, exclusive."""
    elements: tuple[Element, ...]
    """By start."""


@dataclass(frozen=True)
class Published:
    """The published files for one set of classes."""

    annotation: Path
    train: Path
    test: Path
    """The list that FineGym calls val."""
    version: str


def find_published(raw: Path, classes: int, version: str | None = None) -> Published:
    """The published files in a folder or in one of its folders.

    Args:
        raw: The folder.
        classes: 99 or 288.
        version: "1.0" or "1.1"; none: the one that is there, 1.0 where both are.

    Raises:
        UserError: a file is missing.
    """
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder on this machine")

    def find(name: str) -> Path | None:
        candidates = [raw / name, *sorted(raw.glob(f"*/{name}"))]
        return next((path for path in candidates if path.is_file()), None)

    test = find(f"gym{classes}_val_element.txt")
    for candidate in _VERSIONS if version is None else (version,):
        annotation = find(f"finegym_annotation_info_v{candidate}.json")
        train = find(f"gym{classes}_train_element_v{candidate}.txt")
        if annotation and train and test:
            return Published(annotation, train, test, candidate)
    wanted = version or "1.0 (or 1.1)"
    expected = [
        f"finegym_annotation_info_v{version or '*'}.json",
        f"gym{classes}_train_element_v{version or '*'}.txt",
        f"gym{classes}_val_element.txt",
    ]
    there = [name for name in expected if any(raw.glob(name)) or any(raw.glob(f"*/{name}"))]
    missing = [name for name in expected if name not in there]
    raise UserError(
        f"{raw}: expected FineGym as published, {', '.join(expected)} of version {wanted} and the videos "
        f"<YouTube id>.mp4, in it or in its folders; "
        + (f"missing: {', '.join(missing)}" if missing else "the annotation and the lists differ in version")
    )


def read_annotation(published: Published, classes: int) -> tuple[list[Event], Counter[str]]:
    """The events with an element in the lists, by id, and how many of what was left out.

    Raises:
        UserError: a file is not as published.
    """
    annotation = _read_json(published.annotation)
    left_out: Counter[str] = Counter()
    listed: dict[tuple[str, str], dict[str, dict[str, int]]] = {}
    for split, path in (("train", published.train), ("test", published.test)):
        for (youtube_id, event, element), label in _read_list(path, classes, left_out).items():
            listed.setdefault((youtube_id, event), {}).setdefault(split, {})[element] = label
    events = []
    for (youtube_id, name), labels_of in sorted(listed.items()):
        split = "test" if "test" in labels_of else "train"
        if len(labels_of) == 2:
            left_out["elements of the training list in an event of the test list"] += len(labels_of["train"])
        where = f"{published.annotation}: {youtube_id} {name}"
        record = _table(_table(annotation.get(youtube_id), where).get(name), where)
        if not record:
            left_out["elements of events that the annotation lacks"] += len(labels_of[split])
            continue
        span = _spans(record.get("timestamps"))
        elements = _elements(_table(record.get("segments"), where), labels_of[split], where, left_out)
        if not span or span[0][0] < 0:
            left_out["events without a start and an end"] += 1
        elif not elements:
            left_out["events without a usable element"] += 1
        else:
            action = _EVENTS.get(record.get("event", 0), f"event {record.get('event')}")
            event_id = f"{youtube_id}_{name}"
            events.append(Event(event_id, youtube_id, action, split, span[0][0], span[-1][1], elements))
    num_annotated = sum(len(_table(record, str(published.annotation))) for record in annotation.values())
    num_known = sum(name in _table(annotation.get(video), "") for video, name in listed)
    left_out["annotated events without an element in the lists"] += num_annotated - num_known
    return events, +left_out


def frame_labels(event: Event, num_frames: int, frame_rate: int) -> NDArray[np.int32]:
    """Class of each frame of an event's video: that of the element that covers its time, or -1.

    Args:
        event: Its elements may end beyond it.
        num_frames: Of its video.
        frame_rate: Frame k shows the time k / frame_rate of the event.
    """
    labels = np.full(num_frames, -1, np.int32)
    for element in event.elements:
        for start, end in element.stages:
            # Frame k is covered where start <= k / rate < end, in exact fractions.
            labels[max(0, math.ceil(start * frame_rate)) : max(0, math.ceil(end * frame_rate))] = (
                element.label
            )
    return labels


def label_table(events: Sequence[Event], num_frames: Mapping[str, int], frame_rate: int) -> pa.Table:
    """Columns video_id, split, label and frame_labels of the events whose videos are there.

    Args:
        events: As `read_annotation` returns them.
        num_frames: Of the videos, by event id.
        frame_rate: Of the videos.
    """
    there = [event for event in events if event.event_id in num_frames]
    return pa.table(
        {
            "video_id": pa.array([f"{event.event_id}.mp4" for event in there], pa.string()),
            "split": pa.array([event.split for event in there], pa.string()),
            "label": pa.array([event.label for event in there], pa.string()),
            "frame_labels": pa.array(
                [frame_labels(event, num_frames[event.event_id], frame_rate) for event in there],
                pa.list_(pa.int32()),
            ),
        }
    )


def find_videos(raw: Path, youtube_ids: set[str]) -> tuple[dict[str, Path], int]:
    """The file of each video below a folder, the largest of several, and how many videos have several."""
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
    return largest, sum(len(paths) > 1 for paths in found.values())


def convert(
    raw: Path,
    out: Path,
    classes: int,
    *,
    version: str | None = None,
    frame_rate: int = FRAME_RATE,
    short_side: int = SHORT_SIDE,
    num_processes: int | None = None,
) -> tuple[pa.Table, Counter[str]]:
    """Cuts the events out of the videos (those that are not there yet) and returns their labels.

    Args:
        raw: The folder with the published files and the videos.
        out: The folder for the results; the videos go into its folder `videos`.
        classes: 99 or 288.
        version: As for `find_published`.
        frame_rate: Frames a second of the cut videos.
        short_side: Their shorter side in pixels; smaller videos keep their size.
        num_processes: As for `cut_all`.

    Returns:
        The table of `label_table`, and how many of what was left out.

    Raises:
        UserError: RAW is not as published, or `out` holds videos cut in another way.
        RunError: a video cannot be written.
    """
    published = find_published(raw, classes, version)
    events, left_out = read_annotation(published, classes)
    videos, num_doubled = find_videos(raw, {event.youtube_id for event in events})
    if not videos:
        raise UserError(
            f"{raw}: expected the videos of FineGym below it, named <YouTube id>.mp4 (or another suffix), "
            f"found none of {len({event.youtube_id for event in events})}"
        )
    _check_settings(out, {"frame_rate": frame_rate, "short_side": short_side, "version": published.version})
    left_out["videos with several files, of which the largest was taken"] += num_doubled
    missing = [event for event in events if event.youtube_id not in videos]
    left_out[f"events of {len({event.youtube_id for event in missing})} missing videos"] += len(missing)
    cuts = {
        Cut(videos[event.youtube_id], out / "videos" / f"{event.event_id}.mp4", event.start, event.end): event
        for event in events
        if event.youtube_id in videos
    }
    num_frames = {}
    report = _Progress(len(cuts))
    for cut, outcome in cut_all(
        list(cuts), frame_rate=frame_rate, short_side=short_side, num_processes=num_processes
    ):
        report.advance()
        event = cuts[cut]
        if outcome.reason is None:
            num_frames[event.event_id] = outcome.num_frames
            if outcome.num_frames < num_frames_between(cut.start, cut.end, frame_rate):
                left_out["ends of events that lie beyond their video (the beginnings are kept)"] += 1
        else:
            left_out[f"events: {outcome.reason}"] += 1
    table = label_table(events, num_frames, frame_rate)
    return table, +left_out


# The published files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        # Times as exact fractions: 3.2 s at 25 frames a second is frame 80 and not 79 or 81.
        return _table(json.loads(path.read_bytes(), parse_float=Fraction), str(path))
    except ValueError as error:
        raise UserError(f"{path}: not the JSON file as published ({error}); fetch it again") from None
    except OSError as error:
        raise storage.storage_error(error, str(path), "read") from None


def _read_list(path: Path, classes: int, left_out: Counter[str]) -> dict[tuple[str, str, str], int]:
    """Class by (YouTube id, event, element); elements that have two classes are left out."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: it cannot be read as text ({error})") from None
    labels: dict[tuple[str, str, str], int] = {}
    ambiguous = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        match = _ELEMENT.fullmatch(name.strip())
        if not match or not label.isdecimal() or int(label) >= classes:
            raise UserError(
                f"{path}, line {number}: expected <YouTube id>_E_<start>_<end>_A_<start>_<end> and a class "
                f"from 0 to {classes - 1}, got {line.strip()[:80]!r}"
            )
        key = match["video"], match["event"], match["element"]
        if labels.setdefault(key, int(label)) != int(label):
            ambiguous.add(key)
    left_out["elements of the lists with two classes"] += len(ambiguous)
    return {key: label for key, label in labels.items() if key not in ambiguous}


def _table(value: object, where: str) -> dict[str, Any]:
    """A JSON object; empty for null, which the annotation has for events without elements."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object as published, got {type(value).__name__}")
    return value


def _spans(value: object) -> list[tuple[Fraction, Fraction]]:
    """The [start, end] pairs of a list that are a time range."""
    spans = []
    for pair in value if isinstance(value, list) else []:
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, int | Fraction) for t in pair):
            start, end = Fraction(pair[0]), Fraction(pair[1])
            if start < end:
                spans.append((start, end))
    return spans


def _elements(
    segments: Mapping[str, Any], labels: Mapping[str, int], where: str, left_out: Counter[str]
) -> tuple[Element, ...]:
    """The elements with a label, by their start."""
    elements = []
    for name, label in labels.items():
        if name not in segments:
            left_out["elements of the lists that the annotation lacks"] += 1
        elif stages := _spans(_table(segments[name], f"{where} {name}").get("timestamps")):
            elements.append((stages[0], name, Element(label, tuple(stages))))
        else:
            left_out["elements without a start and an end"] += 1
    return tuple(element for *_, element in sorted(elements, key=lambda found: found[:2]))


# The folders


def _youtube_id(stem: str, youtube_ids: set[str]) -> str | None:
    """The id in a file's name: all of it, all after v_, or at its end in brackets or after a hyphen."""
    if stem in youtube_ids:
        return stem
    if stem.endswith("]") and (inside := stem[stem.rfind("[") + 1 : -1]) in youtube_ids:
        return inside
    if (after := stem.removeprefix("v_")) in youtube_ids:
        return after
    tails = (stem[i + 1 :] for i, character in enumerate(stem) if character == "-")
    return next((tail for tail in tails if tail in youtube_ids), None)


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Notes how the videos of a folder are cut; raises `UserError` where there are some of another way."""
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


class _Progress:
    """Events done, rate, time left on standard error: one line rewritten on a terminal, else now and then."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._start = self._shown = time.monotonic()
        self._live = sys.stderr.isatty()

    def advance(self) -> None:
        """Counts one event more."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown < (0.2 if self._live else 10) and self._done < self._total:
            return
        self._shown = now
        rate = self._done / max(now - self._start, 1e-9)
        left = timedelta(seconds=round((self._total - self._done) / rate))
        text = f"cut {self._done}/{self._total} events, {rate:.2f}/s, {left} left"
        end = "\n" if not self._live or self._done == self._total else ""
        print(f"\r\x1b[K{text}" if self._live else text, end=end, file=sys.stderr, flush=True)


# The command line


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    with one_line_errors():
        parser = OptionParser(
            prog="python -m carl_ray.datasets.finegym",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("raw", metavar="RAW", help="folder with the published files and the videos")
        parser.add_argument("--out", metavar="FOLDER", required=True, help="folder for the results")
        parser.add_argument("--classes", type=int, choices=(99, 288), default=99, help="default 99")
        parser.add_argument(
            "--version",
            choices=_VERSIONS,
            help="of the annotation; default: the one that is there, 1.0 (the released code's) of both",
        )
        parser.add_argument(
            "--frame-rate", metavar="N", type=_positive, default=FRAME_RATE, help=f"default {FRAME_RATE}"
        )
        parser.add_argument(
            "--short-side",
            metavar="N",
            type=_positive,
            default=SHORT_SIDE,
            help=f"pixels; smaller videos keep their size; default {SHORT_SIDE}",
        )
        options = parser.parse_args(arguments)
        out = _local(options.out)
        labels, left_out = convert(
            _local(options.raw),
            out,
            options.classes,
            version=options.version,
            frame_rate=options.frame_rate,
            short_side=options.short_side,
        )
        target = str(out / f"finegym{options.classes}.parquet")
        if labels.num_rows:
            manifest = _manifest(out, labels)
            write_table(manifest, target)
            print(_counts_by_split(manifest))
        print("left out or remarkable:" if left_out else "nothing left out")
        for text, count in sorted(left_out.items()):
            print(f"  {count:>6} x {text}")
        if labels.num_rows == 0:
            raise RunError(f"{options.raw}: no event could be cut out; the reasons are listed above")
        print(f"manifest: {target}")
        print_next("train", f"finegym{options.classes}", "--data.manifest", target)


def _manifest(out: Path, labels: pa.Table) -> pa.Table:
    """The rows of the index of all cut events that have labels, with these."""
    from carl_ray.session import connect

    with connect():
        index, _ = index_folder(str(out / "videos"), str(out / "videos.parquet"))
    index = index.filter(pc.is_in(index.column("video_id"), labels.column("video_id")))
    if index.num_rows < labels.num_rows:
        raise RunError(
            f"{out / 'videos'}: {labels.num_rows - index.num_rows} of its videos cannot be read; the reasons "
            "are in videos.rejects.parquet beside it"
        )
    return attach_labels(index, labels)


def _counts_by_split(manifest: pa.Table) -> str:
    lines = [f"{'split':<12}{'events':>8}{'frames':>12}{'labelled':>12}"]
    for split in ("train", "test"):
        rows = manifest.filter(pc.field("split") == split)
        frames = rows.column("frame_labels").combine_chunks().flatten()
        labelled = pc.sum(pc.greater_equal(frames, 0)).as_py() or 0
        lines.append(f"{split:<12}{rows.num_rows:>8,}{len(frames):>12,}{labelled:>12,}")
    return "\n".join(lines)


def _local(path: str) -> Path:
    if storage.is_remote(path):
        raise UserError(f"{storage.public_uri(path)}: expected a folder of this machine; videos are cut here")
    return Path(path).expanduser().absolute()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
