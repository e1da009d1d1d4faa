"""FineGym's published files: the annotation of events and the lists of labelled elements."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from carl_ray import storage
from carl_ray.datasets.conversion import Conversion
from carl_ray.errors import UserError

_EVENTS = {1: "vault", 2: "floor exercise", 3: "balance beam", 4: "uneven bars"}
_VERSIONS = ("1.0", "1.1")  # the first that is there counts; the released code used 1.0
# The parts become names of files: of YouTube's ids no other character is known.
_ELEMENT = re.compile(r"(?P<video>[\w-]+)_(?P<event>E_\d+_\d+)_(?P<element>A_\d+_\d+)", re.ASCII)


class Event(NamedTuple):
    """A performance on one apparatus."""

    event_id: str
    """`<YouTube id>_E_<start>_<end>`."""
    youtube_id: str
    label: str
    split: str
    start: Fraction
    """Seconds of the video."""
    end: Fraction
    """Seconds, exclusive."""
    stages: tuple[tuple[Fraction, Fraction, int], ...]
    """Start and end of each stage of an element, in seconds of the event, and class; ordered by element."""


class Published(NamedTuple):
    """The published files for one set of classes."""

    annotation: Path
    train: Path
    test: Path
    """The list that FineGym calls val."""


def find_published(raw: Path, classes: int) -> Published:
    """Find the published files in a folder or in one of its folders.

    Args:
        raw: The folder.
        classes: 99 or 288.

    Raises:
        UserError: a file is missing.
    """
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder on this machine")

    def names(version: str) -> tuple[str, str, str]:
        return (
            f"finegym_annotation_info_v{version}.json",
            f"gym{classes}_train_element_v{version}.txt",
            f"gym{classes}_val_element.txt",
        )

    def find(name: str) -> Path | None:
        candidates = [*sorted(raw.glob(name)), *sorted(raw.glob(f"*/{name}"))]
        return next((path for path in candidates if path.is_file()), None)

    for version in _VERSIONS:
        annotation, train, test = map(find, names(version))
        if annotation and train and test:
            return Published(annotation, train, test)
    expected = names("*")
    missing = [name for name in expected if not find(name)]
    raise UserError(
        f"{raw}: expected FineGym as published, {', '.join(expected)} of version 1.0 (or 1.1) "
        "and the videos <YouTube id>.mp4, in it or in its folders; "
        + (f"missing: {', '.join(missing)}" if missing else "the annotation and the lists differ in version")
    )


def read_annotation(published: Published, classes: int, conversion: Conversion) -> list[Event]:
    """Read the events that have an element in the lists, by id; count what is left out.

    Raises:
        UserError: a file is not as published.
    """
    annotation = _read_json(published.annotation)
    listed: dict[tuple[str, str], tuple[str, dict[str, int]]] = {}
    for split, path in (("test", published.test), ("train", published.train)):
        for (youtube_id, event, element), label in _read_list(path, classes, conversion).items():
            split_of_event, labels = listed.setdefault((youtube_id, event), (split, {}))
            if split_of_event == split:
                labels[element] = label
            else:
                reason = "elements of the training list in an event of the test list"
                conversion.leave_out(f"{youtube_id}_{event}_{element}", reason)
    events = []
    for (youtube_id, name), (split, labels) in sorted(listed.items()):
        event_id, where = f"{youtube_id}_{name}", f"{published.annotation}: {youtube_id} {name}"
        record = _object(_object(annotation.get(youtube_id), where).get(name), where)
        segments, elements = _object(record.get("segments"), where), []
        for element, label in labels.items():
            if not record:
                reason = "elements of events that the annotation lacks"
            elif element not in segments:
                reason = "elements of the lists that the annotation lacks"
            elif spans := _spans(_object(segments[element], f"{where} {element}").get("timestamps")):
                elements.append((spans[0], element, [(*span, label) for span in spans]))
                continue
            else:
                reason = "elements without a start and an end"
            conversion.leave_out(f"{event_id}_{element}", reason)
        times = _spans(record.get("timestamps"))
        if record and (not times or times[0][0] < 0):
            conversion.leave_out(event_id, "events without a start and an end")
        elif record and not elements:
            conversion.leave_out(event_id, "events without a usable element")
        elif record:
            stages = tuple(stage for *_, stages in sorted(elements) for stage in stages)
            action = _EVENTS.get(record.get("event", 0), f"event {record.get('event')}")
            events.append(Event(event_id, youtube_id, action, split, times[0][0], times[-1][1], stages))
    for youtube_id, names in annotation.items():
        for name in _object(names, str(published.annotation)):
            if (youtube_id, name) not in listed:
                reason = "annotated events without an element in the lists"
                conversion.leave_out(f"{youtube_id}_{name}", reason)
    return events


def _read_json(path: Path) -> dict[str, Any]:
    content = storage.read_bytes(str(path))
    try:
        # Times as exact fractions: 3.2 s at 25 frames a second is frame 80 and not 79 or 81.
        return _object(json.loads(content, parse_float=Fraction), str(path))
    except ValueError as error:
        raise UserError(f"{path}: not the JSON file as published ({error}); fetch it again") from None


def _read_list(path: Path, classes: int, conversion: Conversion) -> dict[tuple[str, str, str], int]:
    """Read the class by (YouTube id, event, element); elements that have two classes are left out."""
    try:
        lines = storage.read_bytes(str(path)).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: it cannot be read as text ({error})") from None
    labels: dict[tuple[str, str, str], int] = {}
    ambiguous = {}
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
            ambiguous[key] = match[0]
    for key, name in ambiguous.items():
        del labels[key]
        conversion.leave_out(name, "elements of the lists with two classes")
    return labels


def _object(value: object, where: str) -> dict[str, Any]:
    """A JSON object; empty for null, which the annotation has for events without elements."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object as published, got {type(value).__name__}")
    return value


def _spans(value: object) -> list[tuple[Fraction, Fraction]]:
    """Return the [start, end] pairs of a list that are a time range."""
    spans = []
    for pair in value if isinstance(value, list) else []:
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, int | Fraction) for t in pair):
            start, end = Fraction(pair[0]), Fraction(pair[1])
            if start < end:
                spans.append((start, end))
    return spans
