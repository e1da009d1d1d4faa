"""Files of labels: CSV, TSV and Parquet in four forms, and the exports of ELAN and BORIS.

The columns tell the form, in any order and case (`_COLUMNS` has other names that are understood):

    intervals   video, start, end, label in seconds, or start_frame, end_frame for the times
    events      video, time (or frame), event: phases lie between events
    frames      video, frame (or time), label
    videos      video and any of label, split and other columns, one row a video

A file without a column `video` is about the video of its own name: `a.csv` about `a.mp4`. Nothing is joined here.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from carl_ray import storage
from carl_ray.data.manifest import refuse_pickles
from carl_ray.errors import UserError

Form = Literal["intervals", "events", "frames", "videos"]

_COLUMNS = {
    "video": "video|video_id|media file name|media file path|media file|file path|file name|file|observation id",
    "start": "start|start (s)|begin time - ss.msec|begin time - hh:mm:ss.ms",
    "end": "end|stop|stop (s)|end time - ss.msec|end time - hh:mm:ss.ms",
    "start_frame": "start_frame",
    "end_frame": "end_frame",
    "frame": "frame",
    "time": "time|time_s|time (s)|seconds",
    "event": "event",
    "label": "label|phase|behavior|annotation",
    "kind": "behavior type|status",
}
"""Names of each column, those of ELAN and BORIS among them. The first one with content is used."""
_FORMS: list[tuple[Form, tuple[str, ...]]] = [
    ("intervals", ("time", "kind", "label")),
    ("intervals", ("start", "end", "label")),
    ("intervals", ("start_frame", "end_frame", "label")),
    ("events", ("time", "event")),
    ("events", ("frame", "event")),
    ("frames", ("frame", "label")),
    ("frames", ("time", "label")),
    ("videos", ("video",)),
]
_EXPECTED = (
    "expected columns video,start,end,label in seconds (or start_frame,end_frame), video,time,event, "
    "video,frame,label, or video with label, split or others"
)
_NO_TIER = re.compile(r"begin time|end time|duration|file path|file name|participant|$")
"""Columns of an ELAN export that are no tier."""
_MEDIA = re.compile(r"#(file://)?(?P<path>.+?) -- offset: (?P<offset>-?\d+)")
"""Line of an ELAN export that names the video, and the milliseconds left out at its start."""
_ELAN = ("video", "start", "end", "label")
_MOST_LINES_BEFORE = 60
"""Lines before the header, in which BORIS describes the observation."""
_Row = tuple[str, list[str]]
"""Where a row is, and its cells."""


@dataclass(frozen=True)
class LabelRow:
    """A row of a file of labels."""

    place: str
    """File and number of the row, as a spreadsheet counts; the first one in Parquet is 0."""
    video: str
    cells: dict[str, str]
    """By column: those of the form; in the form `videos` all others."""


@dataclass(frozen=True)
class LabelFile:
    """A file of labels, not yet joined to videos."""

    name: str
    form: Form
    columns: tuple[str, ...]
    """Those of the cells."""
    rows: list[LabelRow]
    notes: list[str]
    """What the terminal says besides, such as columns that are not used."""


def read_label_file(uri: str) -> LabelFile:
    """Read a file of labels.

    Raises:
        UserError: it is not there, or no such file; the message says what was expected.
        RunError: the store fails.
    """
    if not storage.is_file(uri):
        raise UserError(f"{storage.public_uri(uri)}: no such file of labels")
    content = storage.read_bytes(uri)
    is_parquet = content.startswith(b"PAR1")
    with storage.reading(uri, "not a file of labels"):
        cells = _parquet_cells(content) if is_parquet else _text_cells(content)
        return _recognise(storage.resolve(uri)[1].rpartition("/")[2], cells, -1 if is_parquet else 1)


def seconds(text: str) -> float:
    """Seconds of a time such as `12.5`, `12,5` or `0:01:02.5`; `ValueError` otherwise."""
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part.replace(",", "."))
    return total


def _parquet_cells(content: bytes) -> list[list[str]]:
    refuse_pickles(pq.read_schema(pa.BufferReader(content)))
    table = pq.read_table(pa.BufferReader(content))
    columns = (column.to_pylist() for column in table.columns)
    texts = (["" if cell is None or cell != cell else str(cell) for cell in column] for column in columns)
    return [table.column_names, *map(list, zip(*texts, strict=True))]


def _text_cells(content: bytes) -> list[list[str]]:
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("its text is not UTF-8: save it as CSV UTF-8") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(('"#', "#"))]
    is_tabular = any("\t" in line for line in lines[:_MOST_LINES_BEFORE])
    delimiter = "\t" if is_tabular else ";" if lines and ";" in lines[0] else ","
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(str(error)) from None


def _recognise(name: str, cells: list[list[str]], first: int) -> LabelFile:
    """The content of a file whose first row has this number."""
    media = next((m for row in cells for cell in row[:1] if (m := _MEDIA.match(cell))), None)
    of_file = media["path"] if media else name.rpartition(".")[0] or name
    rows = [
        (f"{name}, row {number}", [cell.strip() for cell in row])
        for number, row in enumerate(cells, first)
        if any(cell.strip() for cell in row) and not row[0].startswith("#")
    ]
    header, places, form, below = _below_header(rows)
    if form is None:
        elan = [_elan_row(row, of_file, int(media["offset"]) if media else 0) for _, row in rows]
        below = [(place, row) for (place, _), row in zip(rows, elan, strict=True) if row]
        if not rows or len(below) < len(rows):
            got = ", ".join(rows[0][1])[:200] if rows else "an empty file"
            raise ValueError(f"{_EXPECTED}; got {got}")
        header, form, places = [*_ELAN], "intervals", {column: place for place, column in enumerate(_ELAN)}
    notes = [] if "video" in places else [f"no column video: the labels are those of {of_file}"]
    unused = [cell for place, cell in enumerate(header) if cell and place not in places.values()]
    if unused:
        notes.append(f"columns not used: {', '.join(unused)}")
    label_rows = []
    for place, row in below:
        if len(row) > len(header):
            raise ValueError(f"{place} has {len(row)} cells, the header {len(header)}")
        values = {column: "".join(row[at : at + 1]) for column, at in places.items()}
        label_rows.append(LabelRow(place, values.pop("video", of_file), values))
    if "kind" in places:
        return _of_boris(name, label_rows, notes)
    return LabelFile(name, form, tuple(column for column in places if column != "video"), label_rows, notes)


def _below_header(rows: list[_Row]) -> tuple[list[str], dict[str, int], Form | None, list[_Row]]:
    """Header, place of each column of the form, form, and rows below; no form where there is no header."""
    for number, (_, row) in enumerate(rows[:_MOST_LINES_BEFORE]):
        header, below = [cell.lower() for cell in row], rows[number + 1 :]
        if any(cell.startswith("begin time - ") for cell in header) and "annotation" not in header:
            tiers = [place for place, cell in enumerate(header) if not _NO_TIER.match(cell)]
            below = [(where, [*row, row[t]]) for where, row in below for t in tiers if row[t : t + 1] > [""]]
            header = ["" if place in tiers else cell for place, cell in enumerate(header)] + ["label"]
        found: dict[str, int] = {}
        for column, names in _COLUMNS.items():
            places = [header.index(name) for name in names.split("|") if name in header]
            filled = [p for p in places if any(row[p : p + 1] not in ([], [""], ["NA"]) for _, row in below)]
            if places:
                found[column] = (filled or places)[0]
        # BORIS has "Observation id" in a line before the header as well.
        for form, columns in _FORMS if len(found) > 1 or "observation id" not in header else []:
            if form == "videos" and "video" in found:
                others = {
                    cell: place for place, cell in enumerate(header) if cell and place != found["video"]
                }
                return header, {"video": found["video"], **others}, form, below
            if found.keys() >= {*columns}:
                used = {column: found[column] for column in ("video", "kind", *columns) if column in found}
                return header, used, form, below
    return [], {}, None, []


def _of_boris(name: str, rows: list[LabelRow], notes: list[str]) -> LabelFile:
    """States (START and STOP, or rows with both times) are intervals; points alone are events."""
    states = [row for row in rows if row.cells["kind"] != "POINT"]
    if not states:
        for row in rows:
            row.cells.update(event=row.cells["label"], time=row.cells.get("start") or row.cells["time"])
        return LabelFile(name, "events", ("time", "event"), rows, notes)
    if len(states) < len(rows):
        notes.append(f"{len(rows) - len(states)} point events of BORIS not used: its states are the phases")
    begun: dict[tuple[str, str], LabelRow] = {}
    intervals = []
    for row in states:
        key, is_stop = (row.video, row.cells["label"]), row.cells["kind"] == "STOP"
        if is_stop and (first := begun.pop(key, None)):
            first.cells["end"] = row.cells["time"]
            continue
        if "time" in row.cells:
            row.cells.update({"start": "", "end": "", "end" if is_stop else "start": row.cells["time"]})
            begun[key] = row
        intervals.append(row)
    return LabelFile(name, "intervals", ("start", "end", "label"), intervals, notes)


def _elan_row(row: list[str], of_file: str, offset: int) -> list[str] | None:
    """Cells of the columns `_ELAN` of a row of an ELAN export without header; None for another row.

    Such a row is tier, participant, then begin, end and duration in one to four formats each, the annotation and, in
    exports of several files, their paths.
    """
    for formats in range(1, 5):
        times = row[2 : 2 + 3 * formats : formats]
        if len(row) <= 2 + 3 * formats or not all(re.fullmatch(r"[\d:.]+", time) for time in times):
            continue
        begin, end, duration = (seconds(t) / (1 if ":" in t or "." in t else 1000) for t in times)
        if abs(end - begin - duration) < 0.002:
            video = next(filter(None, row[3 + 3 * formats :]), of_file)
            return [video, str(begin + offset / 1000), str(end + offset / 1000), row[2 + 3 * formats]]
    return None
