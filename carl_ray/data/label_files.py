"""Files of labels: CSV, TSV and Parquet in four forms, and the exports of ELAN and BORIS.

The columns tell the form, in any order and case (`_COLUMNS` has other names that are understood):

    intervals   video, start, end, label in seconds, or start_frame, end_frame for the times
    events      video, time (or frame), event: phases lie between events
    frames      video, frame (or time), label
    videos      video and any of label, split and other columns, one row a video

A file without a column `video` is about the video of its own name: `a.csv` about `a.mp4`. Nothing is joined here.

More than 400 lines: forms and exports share the search for the header and its columns.
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
from carl_ray.data.manifest import refuse_pickles
from carl_ray.errors import UserError

Form = Literal["intervals", "events", "frames", "videos"]

_COLUMNS = {
    "video": "video|video_id|media file name|media file path|media file|file path|file name|file|observation id||"
    "video name|video file|video path|filename|filepath|path|clip",
    "start": "start|start (s)||start time|starttime|time start|t start|begin|begin time|onset|from",
    "end": "end|stop|stop (s)||end time|endtime|time end|t end|stop time|offset|to",
    "duration": "||duration",
    "start_frame": "start_frame||startframe|frame start|begin frame",
    "end_frame": "end_frame||endframe|frame end|stop frame",
    "frame": "frame||frame index|frame number|frame id",
    "time": "time|time_s|time (s)|seconds||timestamp",
    "event": "event",
    "label": "label|phase|behavior|annotation||phase name|behaviour|class|action|category|activity|name|tag",
    "kind": "behavior type|status",
    "subject": "subject",
    "source": "source",
    "observation": "observation id",
    "time offset": "time offset (s)",
}
"""Exact names of each column, then others, as `_plain` writes them, that may also be columns of one's own.

A form of exact names comes before any other; of several names of a column the first with content is used.
"""
_TIMES = ("start", "end", "time", "duration")
"""Columns whose names may end in a unit."""
_UNIT = re.compile(
    r"( in)? (s|secs?|seconds?|ms|msecs?|milliseconds?|ss msec|hh mm ss( ms| ff)?|(smpte|pal|ntsc).*)$"
)
_MILLISECONDS = re.compile(r"(?<!ss) (ms|msecs?|milliseconds?)$")
_LIKE_A_TIME = re.compile(r"\b(start|begin|onset|end|stop|time|timestamp|timecode|frame(?! step| times))\b")
_BOUNDARY = re.compile(r"((time|t|frame) )?(start|begin|onset|end|stop)( ?(time|frame))?( \d+)?")
"""A column of intervals, whose form is wrong, unless there is a label or split of the video."""
_FORMS: list[tuple[Form, tuple[str, ...]]] = [  # all but `videos`
    ("intervals", ("time", "kind", "label")),
    ("intervals", ("start", "end", "label")),
    ("intervals", ("start", "duration", "label")),
    ("intervals", ("start_frame", "end_frame", "label")),
    ("events", ("time", "event")),
    ("events", ("frame", "event")),
    ("frames", ("frame", "label")),
    ("frames", ("time", "label")),
]
_EXPECTED = (
    "expected columns video,start,end,label in seconds (or start_frame,end_frame), video,time,event, "
    "video,frame,label, or video with label, split or others"
)
_KINDS = {"POINT", "START", "STOP", "STATE"}
"""What BORIS has in the column `kind`; with other values a file is not one of its."""
_EMPTY = ("", "NA")
_NO_TIER = re.compile(r"begin time|end time|duration|file path|file name|participant|tier$|$")
"""Columns of an ELAN export that are no tier."""
_MEDIA = re.compile(r'"?#(file://)?(?P<path>.+?) -- offset: (?P<offset>-?\d+)')
"""Line of an ELAN export that names the video, and the milliseconds left out at its start."""
_COMMENT = ("#", '"#')
_COMMENT_BELOW = re.compile(r"# |#[^\t]*$")  # no video such as #1.mp4
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
    if re.search(r"[-+:]\s*[-+]", text):
        raise ValueError(f"{text!r}: a sign inside a time")
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
    head = [line[: csv.field_size_limit()] for line in lines[:_MOST_LINES_BEFORE]]
    tables = {one: [next(csv.reader([line], delimiter=one)) for line in head] for one in ",;\t"}
    elan = {one for one, rows in tables.items() if rows and _is_elan(rows[0])}
    headers = {one: _find_header(rows) or (len(rows), "videos", {}) for one, rows in tables.items()}
    delimiter = min(headers, key=lambda one: (one not in elan, headers[one][1] == "videos", headers[one][0]))
    # ELAN writes quotes as they are; elsewhere an open one takes in the last row.
    quote = "\0" if delimiter == "\t" and "\t" in elan and lines[0][0] != '"' else '"'
    reader = csv.reader(io.StringIO(f"{text}\nend", newline=""), delimiter=delimiter, quotechar=quote)
    try:
        cells = [*reader]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    if cells.pop() != ["end"]:
        raise ValueError(f"row {len(cells) + 1}: a quote is open to the end: close, double or remove it")
    at, form, _ = headers[delimiter]
    num_between = len(tables[delimiter][at]) - 1 if form != "videos" else 0
    for number, row in enumerate(cells, 1) if form != "videos" else ():
        if any(line.count(delimiter) == num_between for cell in row for line in cell.split("\n")[1:]):
            raise ValueError(f"row {number}: a cell has a line break and a row below it: is a quote missing?")
    return cells


def _recognise(name: str, cells: list[list[str]], first: int) -> LabelFile:
    """The content of a file whose first row has this number."""
    of_file = name.rpartition(".")[0] or name
    rows = [
        (f"{name}, row {number}", [cell.strip() for cell in row])
        for number, row in enumerate(cells, first)
        if any(cell.strip() for cell in row)
    ]
    below_comments = dropwhile(lambda row: row[1][0][:1] == "#", rows)
    uncommented = [row for row in below_comments if not _COMMENT_BELOW.match("\t".join(row[1]).rstrip())]
    table = _elan_rows(rows, of_file) or uncommented
    if (found := _find_header([row for _, row in table])) is None:
        got = ", ".join(table[0][1])[:200] if table else "an empty file"
        raise ValueError(f"{_EXPECTED}; got {got}")
    at, form, places = found
    header, below = ["" if _INDEX.fullmatch(cell.lower()) else cell for cell in table[at][1]], table[at + 1 :]
    if form == "videos":
        places |= {cell.lower(): at for at, cell in enumerate(header) if cell and at != places["video"]}
    if not below:
        raise ValueError("it has no rows below its header")
    among = ", ".join(filter(None, header))
    no_video = f"no column video among {among}: the labels are those of {of_file}"
    unused = ", ".join(cell for at, cell in enumerate(header) if cell and at not in places.values())
    notes = [no_video] * ("video" not in places) + [f"columns not used: {unused}"] * bool(unused)
    if form == "videos":
        notes += _notes_of_columns([cell for cell in places if cell != "video"])
    too_long = [(place, len(row)) for place, row in below if any(row[len(header) :])]
    if too_long:
        count = "{} has {} cells, the header {} (rows like this: {:,})"
        remedy = "is a comma in a number or text? Separate cells by semicolons, or quote them"
        raise ValueError(f"{count.format(*too_long[0], len(header), len(too_long))}: {remedy}")
    scales = {c: 1e-3 if _MILLISECONDS.search(_plain(header[at])) else 1 for c, at in places.items()}
    # Older versions of BORIS have the offset above the header.
    above = [row[1] for _, row in rows[:_MOST_LINES_BEFORE] if _plain(row[0]) == "time offset s" and row[1:]]
    label_rows = []
    for place, row in below:
        values = {column: "".join(row[at : at + 1]) for column, at in places.items()}
        if form != "videos":
            _to_seconds(values, values.pop("time offset", "".join(above[:1])), scales, place)
        if "label" in values:
            values["label"] = re.sub(r"^(-?\d+)\.0+$", r"\1", values["label"])
        label_rows.append(LabelRow(place, values.pop("video", of_file), values))
    columns = tuple(c for c in places if c != "video" and (c != "time offset" or form == "videos"))
    file = LabelFile(name, form, columns, label_rows, notes, "" if "video" in places else no_video)
    return _of_boris(file) if form != "videos" and "kind" in places else file


def _notes_of_columns(columns: list[str]) -> list[str]:
    """Notes on columns of a video that may be meant for something else; `ValueError` where they surely are."""
    labels = [column for column in columns if _plain(column) in _COLUMNS["label"].split("|")]
    times = [column for column in columns if _LIKE_A_TIME.search(_plain(column))]
    bounds = [column for column in times if _BOUNDARY.fullmatch(_UNIT.sub("", _plain(column)))]
    if bounds and not {"label", "split"} & {*columns}:
        own = f"{bounds[0]!r} looks like a time or a frame; rename it if it is a column of your own"
        raise ValueError(f"{_EXPECTED}; got {', '.join(columns)[:200]}: {own}")
    notes = [f"one row a video: {', '.join(times)} are columns of your own, no times of phases"] * bool(times)
    if labels and "label" not in columns:
        notes.append(f"{labels[0]} is a column of its own: name it label if it is the label of the video")
    return notes


def _plain(cell: str) -> str:
    """The words of a cell of a header: `start_s`, `Start (s)` and `start-s` are the same."""
    return re.sub(r"[\W_]+", " ", cell.lower()).strip()


def _find_header(rows: list[list[str]]) -> tuple[int, Form, dict[str, int]] | None:
    """Number of the first row with the columns of a form, form, and places of the columns.

    It is of the form `videos` (with the place of the video alone) only where no row is of another.
    """
    of_videos: list[tuple[int, int, int]] = []
    for at, row in enumerate(rows[:_MOST_LINES_BEFORE]):
        below, lower = rows[at + 1 :], [cell.strip().lower() for cell in row]
        exact, found = _places(lower, below, is_exact=True), _places(lower, below, is_exact=False)
        is_labelled = "label" in lower or "split" in lower
        forms = [form for form in _FORMS if all(exact[column] for column in form[1])]
        others = [form for form in _FORMS if all(found[column] for column in form[1])]
        videos = [cells[place] for place in found["video"][:1] for cells in below if cells[place:]]
        if found["video"] and len({*videos}) == len(videos):  # a date or a name is rather one of the video
            others = [form for form in others if form[0] == "intervals" and "split" not in lower]
        if "from" in lower and "to" not in lower:
            others = [form for form in others if "duration" not in form[1]]
        for form, columns in [*forms, *others]:
            boris = ("kind", "subject", "source", "observation") if found["kind"] else ()
            used = [column for column in ("video", *boris, "time offset", *columns) if found[column]]
            return at, form, {column: found[column][0] for column in used}
        # BORIS has "Observation id" in a line before the header as well.
        if found["video"] and len(row) > 1 and ("observation id" not in lower or is_labelled):
            of_videos.append((0 if is_labelled else 1 if exact["video"] else 2, at, found["video"][0]))
            if is_labelled and exact["video"]:
                break
    return (min(of_videos)[1], "videos", {"video": min(of_videos)[2]}) if of_videos else None


def _places(header: list[str], below: list[list[str]], is_exact: bool) -> dict[str, list[int]]:
    """Places of the cells of a header in lower case that may be each column, the likeliest first."""
    plain, found = [*map(_plain, header)], {}
    bare = [_UNIT.sub("", cell) for cell in plain]

    def is_empty(place: int) -> bool:
        return all(not row[place:] or row[place] in _EMPTY for row in below)

    for column, names in _COLUMNS.items():
        known = names.split("||")[0].split("|") if is_exact else [*map(_plain, names.split("|"))]
        cells = header if is_exact else bare if column in _TIMES else plain
        places = [at for name in known for at, cell in enumerate(cells) if cell and cell == name]
        found[column] = sorted(dict.fromkeys(places), key=is_empty)
    kinds = {row[at].upper() for at in found["kind"][:1] for row in below if row[at:]} - {*_EMPTY}
    if not kinds or not kinds <= _KINDS:
        found["kind"] = []
    else:  # a variable of BORIS may be called video
        found["video"].sort(key=lambda at: (is_empty(at), not header[at].startswith("media file")))
    return found


def _to_seconds(cells: dict[str, str], offset: str, scales: dict[str, float], place: str) -> None:
    """Turn times into seconds, without their offset, and a duration into an end; leave to `Clock` what is no time."""
    try:
        shift = 0 if offset.lower() in ("", "na", "nan", "none") else seconds(offset)
    except ValueError as error:
        raise ValueError(f"{place}: time offset (s): {error}") from None
    for column in ("start", "end", "time"):
        if column in cells and (scales[column], shift) != (1, 0):
            with suppress(ValueError):
                cells[column] = str(seconds(cells[column]) * scales[column] - shift)
    if "duration" in cells:
        cells["end"] = cells.pop("duration")
        with suppress(ValueError):
            cells["end"] = str(seconds(cells["start"]) + seconds(cells["end"]) * scales["duration"])


def _of_boris(file: LabelFile) -> LabelFile:
    """States (START and STOP, or rows with both times) are intervals; points alone are events."""
    videos: dict[str, str] = {}
    for at, row in enumerate(file.rows):
        observation, player = row.cells.get("observation", ""), row.cells.get("source", "").partition("|")[0]
        if row.video.lower() == "not found":  # past the end of the media file
            file.rows[at] = replace(row, video=videos.get(observation, row.video))
        elif observation in _EMPTY:
            continue
        elif videos.setdefault(observation, row.video) != row.video or re.match("player #.*;", player):
            several = (
                f"observation {observation!r} has several media files in a player, with one time for all"
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
    columns = ("begin time - ", "end time - ", "duration - ")
    return sum(cell.lower().startswith(columns) for cell in first) > 1 or _elan_cells(first) is not None


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
