"""Files of labels as people and tools write them: names of columns, units, quotes, exports; and what is refused."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carl_ray.data.label_files import read_label_file, seconds
from carl_ray.errors import UserError
from tests.data.test_labels import BORIS_OLD, ELAN, ELAN_TIERS, join, manifest

HALF = [-1] * 12 + [0] * 12 + [-1] * 24
"""Labels of a.mp4, 24 frames a second, of an interval from 0.5 to 1 s."""


def labels(tmp_path: Path, text: str | bytes, name: str = "labels.csv") -> list[int]:
    return join(tmp_path, text, name)[0].column("frame_labels")[0].as_py()


def refused(tmp_path: Path, text: str | bytes, name: str = "labels.csv") -> str:
    with pytest.raises(UserError) as caught:
        join(tmp_path, text, name)
    return str(caught.value)


SECONDS = """start,end|start (s),end (s)|Start Time,End Time|start_time,end_time|start_s,end_s|start_sec,end_sec
begin,end|onset,offset|from,to|Begin-Time,End-Time|start [s],stop [s]|starttime,endtime|start_seconds,end_seconds"""


@pytest.mark.parametrize("columns", SECONDS.replace("\n", "|").split("|"))
def test_columns_of_seconds_have_many_names(columns: str, tmp_path: Path) -> None:
    assert labels(tmp_path, f"video,{columns},label\na,0.5,1,up\n") == HALF


@pytest.mark.parametrize("columns", ["start_ms,end_ms", "Start (ms),End (ms)", "onset msec,offset msec"])
def test_milliseconds(columns: str, tmp_path: Path) -> None:
    assert labels(tmp_path, f"video,{columns},label\na,500,1000,up\n") == HALF


@pytest.mark.parametrize("columns", ["Start Frame,End Frame", "startframe,endframe", "frame_start,frame_end"])
def test_columns_of_frames_have_many_names(columns: str, tmp_path: Path) -> None:
    assert labels(tmp_path, f"video,{columns},label\na,12,24,up\n") == HALF


def test_a_duration_instead_of_an_end(tmp_path: Path) -> None:
    assert labels(tmp_path, "video,start,duration,label\na,0.5,0.5,up\n") == HALF
    assert labels(tmp_path, "video,start_ms,duration (s),label\na,500,0.5,up\n") == HALF
    # An end comes first; a bad duration is named with its row.
    assert labels(tmp_path, "video,start,end,duration,label\na,0.5,1,9,up\n") == HALF
    assert "row 2: end '?': expected seconds" in refused(tmp_path, "video,start,duration,label\na,1,?,up\n")


@pytest.mark.parametrize(
    "column",
    [
        "class",
        "action",
        "category",
        "behaviour",
        "behavior",
        "activity",
        "phase",
        "phase_name",
        "name",
        "tag",
        "Label",
    ],
)
def test_columns_of_labels_have_many_names(column: str, tmp_path: Path) -> None:
    assert labels(tmp_path, f"video,start,end,{column}\na,0.5,1,up\n") == HALF


def test_columns_of_single_frames_have_many_names(tmp_path: Path) -> None:
    for column in ("frame_index", "Frame Number", "frame"):
        assert (
            labels(tmp_path, f"video,{column},label\na,12,up\na,13,up\n") == [-1] * 12 + [0] * 2 + [-1] * 34
        )
    for column in ("timestamp", "Time (s)", "time_sec"):
        text = f"video,{column},label\na,0.5,up\na,1,up\n"
        assert labels(tmp_path, text) == [-1] * 12 + [0] + [-1] * 11 + [0] + [-1] * 23


@pytest.mark.parametrize(
    "column",
    [
        "filename",
        "file",
        "file_name",
        "video_name",
        "video id",
        "clip",
        "path",
        "Video File",
        "video path",
    ],
)
def test_columns_of_videos_have_many_names(column: str, tmp_path: Path) -> None:
    assert labels(tmp_path, f"{column},start,end,label\na.mp4,0.5,1,up\n") == HALF


@pytest.mark.parametrize("column", ["start", "Start Frame", "end (ms)", "begin time 2", "time end", "stop"])
def test_times_are_no_columns_of_a_video(column: str, tmp_path: Path) -> None:
    said = refused(tmp_path, f"video,{column},exercise\na,1,2\n")
    assert "expected columns video,start,end,label in seconds" in said
    assert f"{column.lower()!r} looks like a time or a frame" in said
    for own in ("label", "split"):
        joined, notes = join(tmp_path, f"video,{own},{column},lead_time\na,test,1,2\n")
        assert joined.column("lead_time")[0].as_py() == "2"
        assert f"one row a video: {column.lower()}, lead_time are columns of your own" in notes


def test_columns_that_may_be_the_label_of_a_video_are_named(tmp_path: Path) -> None:
    joined, notes = join(tmp_path, "video,Action,fps_camera\na,squat,9\n")
    assert joined.column("action").to_pylist() == ["squat", None, None]
    assert "action is a column of its own: name it label if it is the label of the video" in notes


def test_a_file_without_a_column_of_videos_says_what_it_has(tmp_path: Path) -> None:
    said = refused(tmp_path, "film,start,end,label\na,0,1,up\n", "mine.csv")
    assert "no video 'mine'" in said
    assert "no column video among film, start, end, label: the labels are those of mine" in said
    assert "got film, what" in refused(tmp_path, "film,what\na,b\n")


def test_whole_numbers_may_be_written_as_floats(tmp_path: Path) -> None:
    text = "video,start_frame,end_frame,label\na,0.0,9.0,up\na,10.0,20.0,down\n"
    joined, notes = join(tmp_path, text)
    assert joined.column("frame_labels")[0].as_py() == [0] * 10 + [1] * 11 + [-1] * 27
    assert "end_frame is the last frame of its interval" in notes
    assert labels(tmp_path, "video,frame,label\na,12.0,1.0\na,13,0.0\n")[11:15] == [-1, 1, 0, -1]
    joined, _ = join(tmp_path, "video,start,end,label\na,0,1,3.0\na,1,2,0.0\n")
    assert joined.column("phase_names").null_count == 3
    assert joined.column("frame_labels")[0].as_py() == [3] * 24 + [0] * 24
    assert "start_frame '9.5': expected a frame" in refused(
        tmp_path, "video,start_frame,end_frame,label\na,9.5,12,u\n"
    )
    assert "frame 'inf': expected a frame" in refused(tmp_path, "video,frame,label\na,inf,u\n")


def test_minus_one_is_no_label_of_an_interval(tmp_path: Path) -> None:
    for nothing in ("-1", "-1.0"):
        text = f"video,start,end,label\na,0,0.5,{nothing}\na,0.5,1,0\na,1,2,{nothing}\n"
        assert labels(tmp_path, text) == HALF
    assert "'-1' ends before it starts" in refused(tmp_path, "video,start,end,label\na,1,0.5,-1\n")


@pytest.mark.parametrize("rest", ['a,0,1,"up\na,1,2,down\n', 'a,0,1,up\na,1,2,"down\nb,0,1,"x"\n'])
def test_an_open_quote_is_named_with_its_row(rest: str, tmp_path: Path) -> None:
    row = 2 if '"up' in rest else 3
    said = refused(tmp_path, f"video,start,end,label\n{rest}")
    assert f"row {row}: " in said and "quote" in said and "\n" not in said


def test_a_quote_over_two_rows_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, 'video,start,end,label\na,0,1,"up\na,1,2,down"\n')
    assert "row 2: a cell has a line break and a row below it: is a quote missing?" in said


def test_exports_of_elan_have_no_quotes(tmp_path: Path) -> None:
    text = ELAN.replace("up\n", '"up\n')
    joined, _ = join(tmp_path, text, "a.txt")
    assert joined.column("phase_names")[0].as_py() == ['"up', "7"]
    joined, _ = join(tmp_path, ELAN_TIERS.replace("\tup\t", '\t"up\t'), "tiers.txt")
    assert joined.column("phase_names")[0].as_py() == ['"up', "7"]


def test_rows_that_begin_with_a_hash(tmp_path: Path) -> None:
    table = manifest(video_id=["#1.mp4", "b", "c"], uri=["/v/#1.mp4", "/v/b", "/v/c"])
    joined, notes = join(
        tmp_path, "# made by me\nvideo,start,end,label\n#1.mp4,0,1,up\nb,0,1,up\n", table=table
    )
    assert joined.column("frame_labels")[0].as_py() == [0] * 24 + [-1] * 24 and "2 rows" in notes


def test_elan_tiers_of_rows_shorter_than_the_header(tmp_path: Path) -> None:
    lines = [line.split("\t") for line in ELAN_TIERS.splitlines()]
    # The path first, the tiers last: a row ends with the tier that it is about.
    moved = ["\t".join([line[7], *line[:7]]).rstrip("\t") for line in lines]
    assert labels(tmp_path, "\n".join(moved), "many.txt") == [-1] * 12 + [0] * 12 + [1] * 12 + [-1] * 12


MEDIA = '"#file:///v/{}.mp4 -- offset: {}, duration: 00:00:02.000 / 2.0 / 2000"\n'


def test_each_media_line_of_elan_is_about_the_rows_below_it(tmp_path: Path) -> None:
    row = "phase\t\t0.5\t1.0\t0.5\tup\n"
    text = MEDIA.format("a", 0) + row + MEDIA.format("b", 500) + MEDIA.format("b.wav", 0) + row
    joined, _ = join(tmp_path, text, "x.txt")
    header = "Begin Time - ss.msec\tEnd Time - ss.msec\tDuration - ss.msec\tphase\n"
    tiers = text.replace("phase\t\t", "")
    for head in (header + tiers, tiers.replace("\n", "\n" + header, 1)):
        again, _ = join(tmp_path, head, "y.txt")
        assert again.equals(joined)
    times = [[k >= 0 for k in found] for found in joined.column("frame_labels").to_pylist()[:2]]
    assert [found.index(True) for found in times] == [12, 30] and joined.column("frame_labels")[
        2
    ].as_py() is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("video,start,end,label\na,00:00:00:12,00:00:01:00,up\n", "labels.csv"),
        ("phase\t\t00:00:00:12\t00:00:01:00\t00:00:00:13\tup\n", "a.txt"),
        ("Begin Time - hh:mm:ss:ff\tEnd Time - hh:mm:ss:ff\tphase\n00:00:00:12\t00:00:01:00\tup\n", "a.txt"),
    ],
)
def test_times_with_frames_are_refused(text: str, name: str, tmp_path: Path) -> None:
    said = refused(tmp_path, text, name)
    assert "'00:00:00:12'" in said and "export hh:mm:ss.ms or seconds" in said


@pytest.mark.parametrize("text", ["1:-2", "1: -2", "1:+2", "--5", "-+5", "+-5", "- -5", "-1:-2"])
def test_signs_inside_a_time_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="sign"):
        seconds(text)
    assert [seconds(good) for good in ("-1:30", "+3", "-5", "1e-05", "0:01:02,5")] == [-90, 3, -5, 1e-5, 62.5]


def test_milliseconds_of_elan_tiers(tmp_path: Path) -> None:
    header = "Begin Time - msec\tEnd Time - msec\tDuration - msec\tphase\n"
    assert labels(tmp_path, header + "500\t1000\t500\tup\n", "a.txt") == HALF


def test_a_tier_may_have_the_name_of_a_column(tmp_path: Path) -> None:
    for tier in ("video", "id", "clip"):
        assert labels(tmp_path, f"{tier}\t\t0.5\t1.0\t0.5\tup\n", "a.txt") == HALF


BORIS_MEDIA = "Observation id\tSource\tTime offset (s)\tvideo\tfile\tSubject\tBehavior\tBehavior type\tTime"
BORIS_MEDIA += "\tMedia file name\n"


def boris(*rows: tuple[object, ...], source: str = "player #1:/v/a.mp4", offset: object = 0) -> str:
    """An export of events: subject, behaviour, type and time, maybe the media file."""
    lines = [
        f"one\t{source}\t{offset}\tday 1\tx\t{who}\t{what}\t{kind}\t{time}\t{media[0] if media else '/v/a.mp4'}\n"
        for who, what, kind, time, *media in rows
    ]
    return BORIS_MEDIA + "".join(lines)


UP = (("me", "up", "START", 0.5), ("me", "up", "STOP", 1.0))


def test_boris_variables_may_be_called_video_and_file(tmp_path: Path) -> None:
    assert labels(tmp_path, boris(*UP), "b.tsv") == HALF


@pytest.mark.parametrize(("offset", "added"), [(100, 100), ("-0.25", -0.25), ("00:01:00.000", 60), ("NA", 0)])
def test_the_time_offset_of_boris_is_subtracted(offset: object, added: float, tmp_path: Path) -> None:
    moved = [(who, what, kind, time + added) for who, what, kind, time in UP]
    assert labels(tmp_path, boris(*moved, offset=offset), "b.tsv") == HALF
    above = BORIS_OLD.replace("\n\n", f"\n\nTime offset (s)\t{offset}\n", 1)
    for time in ("1.5", "1.0", "0.5"):
        above = above.replace(f"\n{time}\ta", f"\n{float(time) + added}\ta")
    assert labels(tmp_path, above, "old.tsv") == labels(tmp_path, BORIS_OLD, "old.tsv")


def test_boris_with_several_media_in_a_player_is_refused(tmp_path: Path) -> None:
    sequence = boris(*UP, ("me", "up", "START", 2.5, "/v/b.mp4"), ("me", "up", "STOP", 3, "/v/b.mp4"))
    for text in (sequence, boris(*UP, source="player #1:/v/a.mp4;/v/b.mp4")):
        said = refused(tmp_path, text, "b.tsv")
        assert "observation 'one' has several media files" in said and "one media file at a time" in said
    assert labels(tmp_path, boris(*UP, source="player #1:/v/a.mp4|player #2:/v/b.mp4"), "b.tsv") == HALF


def test_subjects_of_boris_are_paired_apart(tmp_path: Path) -> None:
    lower = boris(*((who, what, kind.lower(), time) for who, what, kind, time in UP))
    assert labels(tmp_path, lower, "b.tsv") == HALF
    both = boris(*UP[:1], ("you", "up", "START", 0.7), *UP[1:], ("you", "up", "STOP", 1.5))
    assert refused(tmp_path, both, "b.tsv").endswith("b.tsv, row 3: overlaps b.tsv, row 2")


def test_a_status_that_is_not_of_boris_is_not_used(tmp_path: Path) -> None:
    text = "video,start,end,label,status\na,0.5,1,up,done\nb,0.5,1,up,open\n"
    joined, _ = join(tmp_path, text)
    assert joined.column("frame_labels")[0].as_py() == HALF and joined.column("frame_labels").null_count == 1
    joined, notes = join(tmp_path, "video,time,label,status\na,0.5,up,done\nb,0.5,up,done\n")
    assert (
        joined.column("frame_labels")[0].as_py() == [-1] * 12 + [0] + [-1] * 35 and "frames (video, " in notes
    )


def test_a_decimal_comma_between_commas(tmp_path: Path) -> None:
    said = refused(tmp_path, "video,start,end,label\na,0,5,1,0,up\na,1,0,1,5,up\n")
    assert (
        "row 2 has 6 cells, the header 4" in said
        and "Separate cells by semicolons, or quote them" in said
        and "rows like this: 2" in said
    )
    assert labels(tmp_path, "video,start,end,label\na,0.5,1,up,,\n") == HALF


def test_the_header_tells_the_delimiter(tmp_path: Path) -> None:
    assert labels(tmp_path, 'video,start,end,label\na,0.5,1,"up\tfast; very"\n') == HALF
    assert labels(tmp_path, "# a; comment\nvideo,start,end,label\na,0.5,1,up\n") == HALF
    assert labels(tmp_path, "my labels\nvideo;start;end;label\na;0,5;1;up\n") == HALF


def test_how_ends_were_read_is_always_said(tmp_path: Path) -> None:
    header = "video,start_frame,end_frame,label\n"
    assert "end_frame is the frame after the last of its interval" in join(tmp_path, header + "a,0,9,up\n")[1]
    said = refused(tmp_path, header + "a,0,4,up\na,5,8,down\na,10,9,up\n")
    assert "'up' ends before it starts (10 to 9)" in said


def test_parquet_of_other_tools(tmp_path: Path) -> None:
    half, whole = datetime.timedelta(seconds=0.5), datetime.timedelta(seconds=1)
    table = pa.table(
        {
            "video": pa.array([b"a.mp4"]),
            "start": pa.array([half], pa.duration("ns")),
            "end": pa.array([whole], pa.duration("us")),
            "label": pa.array([b"up"]),
            "__index_level_0__": [7],
        }
    )
    pq.write_table(table, tmp_path / "l.parquet")
    assert labels(tmp_path, (tmp_path / "l.parquet").read_bytes(), "l.parquet") == HALF
    pq.write_table(table.select(["video", "label", "__index_level_0__"]), tmp_path / "l.parquet")
    joined, _ = join(tmp_path, (tmp_path / "l.parquet").read_bytes(), "l.parquet")
    assert joined.column_names == manifest().column_names
    joined, _ = join(tmp_path, "Unnamed: 0,video,label\n0,a.mp4,up\n")
    assert joined.column_names == manifest().column_names
    pq.write_table(pa.table({"video": ["a"], "label": [1.0], "frame": [3.0]}), tmp_path / "l.parquet")
    assert labels(tmp_path, (tmp_path / "l.parquet").read_bytes(), "l.parquet")[2:5] == [-1, 1, -1]


@pytest.mark.parametrize("text", ["video,start,end,label\n", "# a comment\nvideo,label\n\n"])
def test_a_header_alone_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match="no rows below its header"):
        read_label_file(str(tmp_path / "l.csv"))


ELAN_HEAD = "Begin Time - ss.msec,End Time - ss.msec,Annotation"
QUOTED = '"Begin Time - ss.msec","End Time - ss.msec","Annotation"\n"0.5","1.0","up"\n'


@pytest.mark.parametrize("text", [f"{ELAN_HEAD}\n0.5,1.0,up\n", QUOTED, "phase,,0.5,1.0,0.5,up\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "above", ["", '"#file:///v/a.mp4 -- offset: 0, duration: 00:00:02.000 / 2.0 / 2000"\n']
)
def test_exports_of_elan_saved_by_spreadsheets(text: str, delimiter: str, above: str, tmp_path: Path) -> None:
    assert labels(tmp_path, above + text.replace(",", delimiter), "x.csv" if above else "a.csv") == HALF


TWO_VIDEOS = {
    "status": "video,time,label,status\na,0.5,up,START\na,1,up,STOP\nb,0.5,up,START\nb,1,up,STOP\n",
    "states": "Media file name,Behavior,Behavior type,Start (s),Stop (s)\na,up,STATE,0.5,1\nb,up,STATE,0.5,1\n",
    "no id": "Observation id,video,time,label,status\n,a,0.5,up,START\n,a,1,up,STOP\n,b,0.5,up,POINT\n",
}


@pytest.mark.parametrize("form", TWO_VIDEOS)
def test_like_boris_without_observations(form: str, tmp_path: Path) -> None:
    assert labels(tmp_path, TWO_VIDEOS[form]) == HALF


def test_points_like_boris_of_two_videos(tmp_path: Path) -> None:
    text = "video,time,label,status\na,0.5,up,POINT\nb,0.5,up,POINT\na,1,down,POINT\nb,1,down,POINT\n"
    assert labels(tmp_path, text) == HALF


def test_boris_finds_no_media_past_the_end(tmp_path: Path) -> None:
    past = boris(UP[0], ("me", "up", "STOP", 2.05, "Not found"))
    assert labels(tmp_path, past, "b.tsv") == [-1] * 12 + [0] * 36
    said = refused(tmp_path, past.replace("2.05", "2.5"), "b.tsv")
    assert "end 2.5 is past the end of the video" in said


def form_of(tmp_path: Path, text: str) -> tuple[str, tuple[str, ...], str]:
    (tmp_path / "a.csv").write_text(text)
    file = read_label_file(str(tmp_path / "a.csv"))
    return file.form, file.columns, file.rows[0].video


@pytest.mark.parametrize(
    ("text", "form", "columns"),
    [
        ("video,start,end,label,status,timestamp\na,0,1,up,done,2024-01-01", "intervals", "start,end,label"),
        ("video,time,event,status,name\na,0,go,done,x", "events", "time,event"),
        ("video,start_frame,end_frame,label,start_time,end_time\na,0,9,up,0,1",
         "intervals", "start_frame,end_frame,label"),
        ("video,frame,timestamp,event\na,0,x,up", "events", "frame,event"),
        ("video,frame,timestamp,label\na,0,x,up", "frames", "frame,label"),
        ("video,label,timestamp\na,up,1\nb,up,1", "videos", "label,timestamp"),
        ("video,timestamp,label\na,0,up\na,1,up", "frames", "time,label"),
        ("video,name,time\na,up,1\nb,up,1", "videos", "name,time"),
        ("video,action,frame\na,up,1\nb,up,1", "videos", "action,frame"),
        ("media file,video,start,end,label\nx,a,0,1,up", "intervals", "start,end,label"),
        ("clip,video_id,start,end,label\nx,a,0,1,up", "intervals", "start,end,label"),
        ("video,label,split,start_time,end_time\na,up,train,0,1", "videos", "label,split,start_time,end_time"),
        ("id,video,label,lead_time,from\n1,a,up,3,x", "videos", "id,label,lead_time,from"),
        ("video,person,stop_reason,end_effector,offset\na,x,y,z,1", "videos", "person,stop_reason,end_effector,offset"),
        ("video,split,start\na,test,1", "videos", "split,start"),
        ("Filename,b.mp4\nstart,end,label\n0,1,up", "intervals", "start,end,label"),
        ("Clip,b\n\nstart,end,label\n0,1,up", "intervals", "start,end,label"),
        ("Filename,b.mp4\nvideo,label\na,up", "videos", "label"),
        ("filename,label,type\na,up,video\nb,up,video", "videos", "label,type"),
        ("Observation id,label\na,up", "videos", "label"),
        ("video,label,kind\na,up,POINT", "videos", "label,kind"),
        ("video,label,duration,from\na,up,1,x", "videos", "label,duration,from"),
        ("video,label,class\na,time,event", "videos", "label,class"),
        ('video,label,note\na,up,"x;video;y"', "videos", "label,note"),
    ],
)  # fmt: skip
def test_exact_names_of_columns_tell_the_form(text: str, form: str, columns: str, tmp_path: Path) -> None:
    assert form_of(tmp_path, text + "\n") == (form, tuple(columns.split(",")), "a")


def test_a_variable_of_boris_above_the_header_may_be_called_clip(tmp_path: Path) -> None:
    text = BORIS_OLD.replace("\n\n", "\n\nclip\t7\n", 1)
    assert labels(tmp_path, text, "old.tsv") == labels(tmp_path, BORIS_OLD, "old.tsv")


def test_comments_between_rows(tmp_path: Path) -> None:
    for comment in ("# seen twice, by me", "#,,,", "#todo", '"# a, b"'):
        assert labels(tmp_path, f"video,start,end,label\n{comment}\na,0.5,1,up\n{comment}\n") == HALF


def test_quotes_and_line_breaks_in_cells(tmp_path: Path) -> None:
    joined, _ = join(tmp_path, 'video,start,end,label\na,0,1,"quick" lift\n')
    assert joined.column("phase_names")[0].as_py() == ["quick lift"]
    joined, _ = join(tmp_path, 'video,start,end,label,note\na,0.5,1,"up\nand, down","see\nbelow, or not"\n')
    assert joined.column("frame_labels")[0].as_py() == HALF
    assert "row 2: a cell has a line break" in refused(
        tmp_path, 'video,start,end,label,note\na,0,1,up,"x\na,1,2,down,"y"\n'
    )


@pytest.mark.parametrize("offset", ["None", "none", "", "nan", "soon"])
def test_an_offset_of_boris_that_is_no_time(offset: str, tmp_path: Path) -> None:
    if offset == "soon":
        said = refused(tmp_path, boris(*UP, offset=offset), "b.tsv")
        assert "b.tsv, row 2: time offset (s): could not convert string to float: 'soon'" in said
    else:
        assert labels(tmp_path, boris(*UP, offset=offset), "b.tsv") == HALF
