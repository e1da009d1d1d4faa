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
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import dropwhile
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from carl_ray import storage
from carl_ray.data.manifest import SCHEMA, refuse_pickles
from carl_ray.errors import UserError

Form = Literal["intervals", "events", "frames", "videos"]

_COLUMNS = {
    "video": "media file name|media file path|media file|video|video id|video name|video file|video path|filename|"
    "file name|file|filepath|file path|path|clip|observation id",
    "start": "start|start time|starttime|time start|t start|begin|begin time|onset|from",
    "end": "end|end time|endtime|time end|t end|stop|stop time|offset|to",
    "duration": "duration",
    "start_frame": "start frame|startframe|frame start|begin frame",
    "end_frame": "end frame|endframe|frame end|stop frame",
    "frame": "frame|frame index|frame number|frame id",
    "time": "time|timestamp|seconds",
    "event": "event",
    "label": "label|phase|phase name|behavior|behaviour|annotation|class|action|category|activity|name|tag",
    "kind": "behavior type|status",
    "subject": "subject",
    "source": "source",
    "observation": "observation id",
    "offset": "time offset s",
}
"""Names of each column as `_plain` writes them, those of ELAN and BORIS among them; the first with content is used."""
_TIMES = ("start", "end", "time", "duration")
"""Columns whose names may end in a unit."""
_UNIT = re.compile(
    r"( in)? (s|secs?|seconds?|ms|msecs?|milliseconds?|ss msec|hh mm ss( ms| ff)?|(smpte|pal|ntsc).*)$"
)
_MILLISECONDS = re.compile(r"(?<!ss) (ms|msecs?|milliseconds?)$")
_LIKE_A_TIME = re.compile(
    r"\b(start(time|frame)?|begin|onset|end(time|frame)?|stop|frame|time|timestamp|timecode|secs?|seconds?|ms|msec)\b"
    r"(?! rate| of day)|^(offset|from|to)$"
)
"""A column of a video, other than those of the manifest, that is a misspelt one of another form instead."""
_FORMS: list[tuple[Form, tuple[str, ...]]] = [
    ("intervals", ("time", "kind", "label")),
    ("intervals", ("start", "end", "label")),
    ("intervals", ("start", "duration", "label")),
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
_KINDS = {"POINT", "START", "STOP", "STATE"}
"""What BORIS has in the column `kind`, without which a file is none of its."""
_NO_TIER = re.compile(r"begin time|end time|duration|file path|file name|participant|tier$|$")
"""Columns of an ELAN export that are no tier."""
_MEDIA = re.compile(r'"?#(file://)?(?P<path>.+?) -- offset: (?P<offset>-?\d+)')
"""Line of an ELAN export that names the video, and the milliseconds left out at its start."""
_COMMENT = ("#", '"#')
_INDEX = re.compile(r"__index_level_\d+__|unnamed: \d+")
"""Names that pandas gives the column of its index."""
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
    no_video: str = ""
    """Says that it has no column `video`, and which it has."""


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
    if text.count(":") > 2:
        raise ValueError(f"{text!r}: export hh:mm:ss.ms or seconds, SMPTE times end with a frame")
    total = 0.0
    for part in text.removeprefix("-").split(":"):
        total = 60 * total + float(part.replace(",", "."))
    return -total if text.startswith("-") else total


def _parquet_cells(content: bytes) -> list[list[str]]:
    refuse_pickles(pq.read_schema(pa.BufferReader(content)))
    table = pq.read_table(pa.BufferReader(content))
    texts = ([_text_of(cell) for cell in column.to_pylist()] for column in table.columns)
    return [table.column_names, *map(list, zip(*texts, strict=True))]


def _text_of(cell: object) -> str:
    if isinstance(cell, timedelta):
        return str(cell.total_seconds())
    if isinstance(cell, bytes):
        return cell.decode()
    return "" if cell is None or cell != cell else str(cell)


def _text_cells(content: bytes) -> list[list[str]]:
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("its text is not UTF-8: save it as CSV UTF-8") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(_COMMENT)]
    heads = {one: [line.split(one) for line in lines[:_MOST_LINES_BEFORE]] for one in "\t;,"}
    elan = [delimiter for delimiter, head in heads.items() if head and _is_elan(head[0])]
    others = [delimiter for delimiter, head in heads.items() if any(map(_form, head))]
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=(*elan, *others, ",")[0],
        quoting=csv.QUOTE_NONE if elan[:1] == ["\t"] else csv.QUOTE_MINIMAL,  # ELAN writes quotes as they are
        strict=True,
    )
    cells: list[list[str]] = []
    try:
        for row in reader:
            cells += [row]
    except csv.Error as error:
        raise ValueError(f"row {len(cells) + 1}: {error}: close, double or remove its quote") from None
    return cells


def _recognise(name: str, cells: list[list[str]], first: int) -> LabelFile:
    """The content of a file whose first row has this number."""
    of_file = name.rpartition(".")[0] or name
    rows = [
        (f"{name}, row {number}", [cell.strip() for cell in row])
        for number, row in enumerate(cells, first)
        if any(cell.strip() for cell in row)
    ]
    below_comments = [*dropwhile(lambda row: row[1][0].startswith(_COMMENT), rows)]
    header, places, form, below = _below_header(_elan_rows(rows, of_file) or below_comments)
    if not below:
        raise ValueError("it has no rows below its header")
    among = ", ".join(filter(None, header))
    no_video = f"no column video among {among}: the labels are those of {of_file}"
    notes = [] if "video" in places else [no_video]
    unused = [cell for place, cell in enumerate(header) if cell and place not in places.values()]
    if unused:
        notes.append(f"columns not used: {', '.join(unused)}")
    own = [cell for cell in places if _plain(cell) in _COLUMNS["label"].split("|")]
    if form == "videos" and own and "label" not in places:
        notes.append(f"{own[0]} is a column of its own: name it label if it is the label of the video")
    too_long = [(place, len(row)) for place, row in below if any(row[len(header) :])]
    if too_long:
        place, length = too_long[0]
        count = f"{place} has {length} cells, the header {len(header)} (rows like this: {len(too_long):,})"
        remedy = "is a comma in a number or text? Separate cells by semicolons, or quote them"
        raise ValueError(f"{count}: {remedy}")
    plain = {column: _plain(header[at]) for column, at in places.items()}
    scales = {column: 1e-3 if _MILLISECONDS.search(name) else 1 for column, name in plain.items()}
    # Older versions of BORIS have the offset above the header.
    above = (row[1:2] for _, row in rows[:_MOST_LINES_BEFORE] if _plain(row[0]) == "time offset s")
    offset = "".join(next(above, []))
    label_rows = []
    for place, row in below:
        values = {column: "".join(row[at : at + 1]) for column, at in places.items()}
        if form != "videos":
            _to_seconds(values, values.pop("offset", offset), scales)
        if any("\n" in cell for cell in values.values()) and form != "videos":
            raise ValueError(f"{place}: a cell has a line break: is a quote missing?")
        if "label" in values:
            values["label"] = re.sub(r"^(-?\d+)\.0+$", r"\1", values["label"])
        label_rows.append(LabelRow(place, values.pop("video", of_file), values))
    columns = tuple(column for column in places if column not in ("video", "offset"))
    file = LabelFile(name, form, columns, label_rows, notes, "" if "video" in places else no_video)
    if _KINDS & {row.cells.get("kind", "").upper() for row in label_rows}:
        return _of_boris(file)
    return replace(file, form="frames") if {"time", "kind"} <= places.keys() else file


def _plain(cell: str) -> str:
    """The words of a cell of a header: `start_s`, `Start (s)` and `start-s` are the same."""
    return re.sub(r"[\W_]+", " ", cell.lower()).strip()


def _places(header: list[str]) -> dict[str, list[int]]:
    """Places of the cells that may be each column, the likeliest name first."""
    plain = [_plain(cell) for cell in header]
    bare = [_UNIT.sub("", cell) for cell in plain]
    found = {}
    for column, names in _COLUMNS.items():
        cells = bare if column in _TIMES else plain
        found[column] = [at for name in names.split("|") for at, cell in enumerate(cells) if cell == name]
    return found


def _form(header: list[str]) -> tuple[Form, tuple[str, ...]] | None:
    """Form that a header tells, with its columns; None for a row that is no header."""
    found = _places(header)
    told = next((form for form in _FORMS if all(found[column] for column in form[1])), None)
    # BORIS has "Observation id" in a line before the header as well.
    is_line_before = len(header) == 1 or [*filter(None, map(_plain, header))][:1] == ["observation id"]
    return None if told and told[0] == "videos" and is_line_before else told


def _below_header(rows: list[_Row]) -> tuple[list[str], dict[str, int], Form, list[_Row]]:
    """Header, place of each column of the form, form, and rows below."""
    head = enumerate(rows[:_MOST_LINES_BEFORE])
    told = next(((at, *recognised) for at, (_, row) in head if (recognised := _form(row))), None)
    if told is None:
        got = ", ".join(rows[0][1])[:200] if rows else "an empty file"
        raise ValueError(f"{_EXPECTED}; got {got}")
    at, form, columns = told
    header, below = rows[at][1], rows[at + 1 :]

    def is_empty(place: int) -> bool:
        return all(row[place : place + 1] in ([], [""], ["NA"]) for _, row in below)

    found = {column: sorted(places, key=is_empty) for column, places in _places(header).items()}
    header = ["" if _INDEX.fullmatch(cell.lower()) else cell for cell in header]
    if form != "videos":
        boris = ("kind", "subject", "source", "observation") if found["kind"] else ()
        used = [column for column in ("video", *boris, "offset", *columns) if found[column]]
        return header, {column: found[column][0] for column in used}, form, below
    video = found["video"][0]
    others = {cell.lower(): place for place, cell in enumerate(header) if cell and place != video}
    for cell, place in others.items():
        if cell not in SCHEMA.names and _LIKE_A_TIME.search(_plain(cell)):
            own = f"{header[place]!r} looks like a time or a frame; rename it if it is a column of your own"
            raise ValueError(f"{_EXPECTED}; got {', '.join(header)[:200]}: {own}")
    return header, {"video": video, **others}, form, below


def _to_seconds(cells: dict[str, str], offset: str, scales: dict[str, float]) -> None:
    """Turn times into seconds, without their offset, and a duration into an end; leave to `Clock` what is no time."""
    shift = 0 if offset in ("", "NA") else -seconds(offset)
    for column in ("start", "end", "time"):
        if column in cells and (scales[column], shift) != (1, 0):
            with suppress(ValueError):
                cells[column] = str(seconds(cells[column]) * scales[column] + shift)
    if "duration" in cells:
        cells["end"] = cells.pop("duration")
        with suppress(ValueError):
            cells["end"] = str(seconds(cells["start"]) + seconds(cells["end"]) * scales["duration"])


def _of_boris(file: LabelFile) -> LabelFile:
    """States (START and STOP, or rows with both times) are intervals; points alone are events."""
    videos: dict[str, str] = {}
    for row in file.rows:
        observation, player = row.cells.get("observation", ""), row.cells.get("source", "").partition("|")[0]
        is_another = videos.setdefault(observation, row.video) != row.video
        if is_another or (player.startswith("player #") and ";" in player):
            several = (
                f"observation {observation!r} has several media files in a player, which BORIS times as one"
            )
            raise ValueError(f"{row.place}: {several}: export one media file at a time")
    states = [row for row in file.rows if row.cells["kind"].upper() != "POINT"]
    if not states:
        for row in file.rows:
            row.cells.update(event=row.cells["label"], time=row.cells.get("start") or row.cells["time"])
        return replace(file, form="events", columns=("time", "event"))
    if num_points := len(file.rows) - len(states):
        file.notes.append(f"{num_points} point events of BORIS not used: its states are the phases")
    begun: dict[tuple[str, str, str], LabelRow] = {}
    intervals = []
    for row in states:
        key = (row.video, row.cells.get("subject", ""), row.cells["label"])
        is_stop = row.cells["kind"].upper() == "STOP"
        if is_stop and (first := begun.pop(key, None)):
            first.cells["end"] = row.cells["time"]
            continue
        if "time" in row.cells:
            row.cells.update({"start": "", "end": "", "end" if is_stop else "start": row.cells["time"]})
            begun[key] = row
        intervals.append(row)
    return replace(file, columns=("start", "end", "label"), rows=intervals)


def _is_elan(first: list[str]) -> bool:
    """Whether this is the first row of an export of ELAN, with or without a header."""
    return any(cell.lower().startswith("begin time - ") for cell in first) or _elan_cells(first) is not None


def _elan_rows(rows: list[_Row], of_file: str) -> list[_Row]:
    """Header and rows of one label each of an export of ELAN; nothing for another file.

    A media line is about the rows below it; of several in succession the first one, the others being sound and so on.
    """
    header = next((row for _, row in rows if not row[0].startswith(_COMMENT)), [])
    if not _is_elan(header):
        return []
    is_headed = _elan_cells(header) is None
    plain = [_plain(cell) for cell in header] if is_headed else []
    tiers = [at for at, cell in enumerate(plain) if not _NO_TIER.match(cell)]
    tiers = [plain.index("annotation")] if "annotation" in plain else tiers
    paths = [at for at, cell in enumerate(plain) if cell in ("file path", "file name")]
    columns = ["" if at in (*tiers, *paths) else header[at] for at in range(len(plain))] or ["start", "end"]
    found: list[_Row] = [("", [*columns, "label", "video", "time offset (s)"])]
    video, back, is_below_media = of_file, "", False
    for place, row in rows:
        if row[0].startswith(_COMMENT):
            if (media := _MEDIA.match(row[0])) and not is_below_media:
                video, back, is_below_media = media["path"], str(-int(media["offset"]) / 1000), True
            continue
        is_below_media = False
        padded = row + [""] * (len(plain) - len(row))
        path = next((padded[at] for at in paths if padded[at]), video)
        labelled = [[*padded, padded[tier], path] for tier in tiers if padded[tier] and row != header]
        if not is_headed:
            if (cells := _elan_cells(row)) is None:
                raise ValueError(f"{place}: expected a label with its times, as in the first row")
            labelled = [[*cells[:3], cells[3] or video]]
        found += [(place, [*cells, back]) for cells in labelled]
    return found


def _elan_cells(row: list[str]) -> list[str] | None:
    """Begin, end, label, path (maybe empty) of a row of an ELAN export without header; None for another row.

    Such a row is tier, participant, then begin, end and duration in one to four formats each, the annotation and, in
    exports of several files, their paths.
    """
    for formats in range(1, 5):
        times = row[2 : 2 + 3 * formats : formats]
        if len(row) <= 2 + 3 * formats or not all(re.fullmatch(r"[\d:.]+", time) for time in times):
            continue
        if all(time.count(":") == 3 for time in times):
            seconds(times[0])  # SMPTE: its error is that of the file
        with suppress(ValueError):
            begin, end, duration = (seconds(t) / (1 if ":" in t or "." in t else 1000) for t in times)
            if abs(end - begin - duration) < 0.002:
                path = next(filter(None, row[3 + 3 * formats :]), "")
                return [str(begin), str(end), row[2 + 3 * formats], path]
    return None
