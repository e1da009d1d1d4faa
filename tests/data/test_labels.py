"""Labels of one's own: every form of file, every row that does not fit, splits, and their way into a manifest."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carl_ray import index
from carl_ray.data.labels import LabelOptions, folders_like_labels, join_labels, label_manifest
from carl_ray.data.manifest import SCHEMA, read_manifest, write_table
from carl_ray.errors import UserError
from tests.samples import manifest_row

NUM_FRAMES = 48
RATES = {"a.mp4": 24.0, "sub/b.mp4": 30000 / 1001, "sub/c d.mp4": 20.0}
VARIABLE = np.cumsum([0.0, *np.random.default_rng(0).uniform(0.02, 0.08, NUM_FRAMES - 1)])
SPANS = [(2, 10, "up"), (10, 31, "down"), (33, 48, "up")]  # first frame, frame after the last, phase


def manifest(**columns: list[Any]) -> pa.Table:
    rows = [
        manifest_row(name, num_frames=NUM_FRAMES, fps=fps, frame_times=times)
        for (name, fps), times in zip(RATES.items(), (None, None, VARIABLE.tolist()), strict=True)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    for name, values in columns.items():
        table = table.set_column(
            table.column_names.index(name), SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type)
        )
    return table


def seconds(video: str) -> np.ndarray:
    times = VARIABLE if video == "sub/c d.mp4" else np.arange(NUM_FRAMES) / RATES[video]
    return np.append(times, times[-1] + 1 / RATES[video])


def join(tmp_path: Path, text: str | bytes, name: str = "labels.csv", **options: Any) -> tuple[pa.Table, str]:
    table = options.pop("table", None) or manifest()
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    joined, notes = join_labels(table, LabelOptions(files=(str(tmp_path / name),), **options))
    return joined, "\n".join(notes)


def lines(header: str, row: Callable[[str, int, int, str], str]) -> str:
    return "\n".join([header, *(row(video, *span) for video in RATES for span in SPANS)])


EXPECTED = np.full(NUM_FRAMES, -1)
for _start, _end, _name in SPANS:
    EXPECTED[_start:_end] = ("up", "down").index(_name)
FORMS = {
    "seconds": lines("video,start,end,label", lambda v, a, b, n: f"{v},{seconds(v)[a]},{seconds(v)[b]},{n}"),
    "milliseconds": lines(
        "label;end;start;video", lambda v, a, b, n: f"{n};{seconds(v)[b]:.3f};{seconds(v)[a]:.3f};{v}"
    ).replace(".", ",").replace(",mp4", ".mp4"),
    "clock": lines(
        "video\tstart\tend\tlabel", lambda v, a, b, n: f"{v}\t0:00:{seconds(v)[a]:.3f}\t00:{seconds(v)[b]:.3f}\t{n}"
    ),
    "frames after the last": lines("video,start_frame,end_frame,label", lambda v, a, b, n: f"{v},{a},{b},{n}"),
    "last frames": lines("video,start_frame,end_frame,label", lambda v, a, b, n: f"{v},{a},{b - 1},{n}"),
    "frame by frame": "video,frame,label\n"
    + "\n".join(f"{v},{f},{('', 'up', 'down')[EXPECTED[f] + 1]}" for v in RATES for f in range(NUM_FRAMES)),
    "times of frames": "\ufeffVideo,Time,Label\r\n"
    + "\r\n".join(f'"{v}",{seconds(v)[f]},{n}' for v in RATES for a, b, n in SPANS for f in range(a, b)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same_frame_labels(form: str, tmp_path: Path) -> None:
    joined, notes = join(tmp_path, FORMS[form])
    for labels in joined.column("frame_labels").to_pylist():
        assert labels == EXPECTED.tolist()
    assert joined.column("phase_names").to_pylist() == [["up", "down"]] * 3
    assert joined.schema.equals(SCHEMA)
    assert "rows for 3 of 3 videos" in notes and "12 of the 144 frames of its videos are in no phase" in notes
    assert ("end_frame is the last frame" in notes) == (form == "last frames")


def test_encodings_and_parquet(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        joined, _ = join(tmp_path, FORMS["clock"].replace("\n", "\r\n").encode(encoding))
        assert joined.column("frame_labels")[0].as_py() == EXPECTED.tolist()
    rows = [{"video": v, "start_frame": a, "end_frame": b, "label": n} for v in RATES for a, b, n in SPANS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "l.parquet")
    joined, _ = join(tmp_path, (tmp_path / "l.parquet").read_bytes(), "l.parquet")
    assert joined.column("frame_labels")[1].as_py() == EXPECTED.tolist()
    with pytest.raises(UserError, match="not UTF-8"):
        join(tmp_path, "video,label\na.mp4,ä".encode("latin-1"))


def test_events_are_the_ends_of_phases(tmp_path: Path) -> None:
    times = seconds("sub/c d.mp4")
    text = f"video,time,event\nc d,{times[30]},end\nc d,{times[3]},lift\nc d,{times[12]},top\n"
    joined, notes = join(tmp_path, text)
    assert joined.column("frame_labels")[2].as_py() == [-1] * 3 + [0] * 9 + [1] * 18 + [-1] * 18
    assert joined.column("phase_names")[2].as_py() == ["lift to top", "top to end"]
    assert joined.column("frame_labels").null_count == 2 and "events (video, time, event)" in notes
    joined, _ = join(tmp_path, "video,frame,event\na.mp4,0,rep\na.mp4,20,rep\n")
    assert joined.column("frame_labels")[0].as_py() == [0] * 20 + [-1] * 28


def test_one_row_a_video(tmp_path: Path) -> None:
    text = "person,video,label,split,num_frames\nann,a.mp4,squat,Training,9\nbob,sub/b.mp4,jump,,9\n"
    joined, notes = join(tmp_path, text)
    assert joined.column("label").to_pylist() == ["squat", "jump", None]
    assert joined.column("split").to_pylist() == ["train", None, None]
    assert joined.column("person").to_pylist() == ["ann", "bob", None]
    assert joined.column("num_frames").to_pylist() == [NUM_FRAMES] * 3
    assert "not used, for the manifest has them: num_frames" in notes
    # Phases are numbered by action; what a later file does not name stays.
    joined, notes = join(tmp_path, "video,start,end,label\na,0,1,sit\nb,0,1,fly\n", table=joined)
    assert joined.column("phase_names").to_pylist() == [["sit"], ["fly"], None]
    assert joined.column("person").to_pylist() == ["ann", "bob", None] and "phases of jump: 0 fly" in notes
    joined, _ = join(tmp_path, "video,label\nb,squat\n", table=joined)
    assert joined.column("phase_names").to_pylist() == [["fly", "sit"], ["fly", "sit"], None]
    assert [labels and labels[0] for labels in joined.column("frame_labels").to_pylist()] == [1, 0, None]


def test_numbers_instead_of_names_stay(tmp_path: Path) -> None:
    joined, _ = join(tmp_path, "video,frame,label\na.mp4,0,3\na.mp4,1,0\na.mp4,2,-1\n")
    assert joined.column("frame_labels")[0].as_py() == [3, 0, -1] + [-1] * 45
    assert joined.column("phase_names").null_count == 3
    joined, _ = join(tmp_path, "video,start_frame,end_frame,label\nb,0,4,up\n", table=joined)
    assert joined.column("phase_names").to_pylist() == [["3", "up", "0"], ["3", "up", "0"], None]
    assert joined.column("frame_labels")[0].as_py()[:3] == [0, 2, -1]


ELAN = "phase\t\t00:00:00.500\t0.5\t00:00:01.000\t1.0\t00:00:00.500\t0.5\tup\n"
ELAN += "phase\t\t00:00:01.000\t1.0\t00:00:01.500\t1.5\t00:00:00.500\t0.5\t7"
ELAN_TIERS = "Begin Time - hh:mm:ss.ms\tBegin Time - ss.msec\tEnd Time - hh:mm:ss.ms\tEnd Time - ss.msec"
ELAN_TIERS += "\tDuration - ss.msec\tphase\tstage\tFile Path\n"
ELAN_TIERS += "00:00:00.500\t0.5\t00:00:01.000\t1.0\t0.5\tup\t\t/home/me/a.eaf\n"
ELAN_TIERS += "00:00:01.000\t1.0\t00:00:01.500\t1.5\t0.5\t\t7\t/home/me/a.eaf\n"
BORIS = "Observation id\tDescription\tMedia duration (s)\tFPS\tSubject\tBehavior\tBehavioral category\t"
BORIS_EVENTS = BORIS + "Behavior type\tTime\tMedia file name\tImage index\n" + "".join(
    f"first\t\t2.0\t24\tme\t{name}\t\t{kind}\t{time}\tC:\\films\\a.mp4\t9\n"
    for name, kind, time in (("up", "START", 0.5), ("7", "START", 1.0), ("up", "STOP", 1.0), ("7", "STOP", 1.5))
)  # fmt: skip
BORIS_STATES = BORIS + "Behavior type\tStart (s)\tStop (s)\tMedia file name\n" + "".join(
    f"first\t\t2.0\t24\tme\t{name}\t\t{kind}\t{start}\t{stop}\t/films/a.mp4\n"
    for name, kind, start, stop in (("up", "STATE", 0.5, 1.0), ("7", "STATE", 1.0, 1.5), ("clap", "POINT", 1, 1))
)  # fmt: skip
BORIS_OLD = "Observation id\tfirst\n\nMedia file(s)\nPlayer #1\ta.mp4\n\n"
BORIS_OLD += "Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tComment\tStatus\n" + "".join(
    f"{time}\ta.mp4\t2.0\t24\tme\t{name}\t\t{kind}\n"
    for name, kind, time in (("up", "START", 0.5), ("up", "STOP", 1.0), ("7", "START", 1.0), ("7", "STOP", 1.5))
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", ELAN),
        ("a.txt", '"#file:///home/me/a.mp4 -- offset: 0, duration: 00:00:02.000 / 2.0 / 2000"\n\n' + ELAN),
        ("many.txt", "".join(f"{line}\t/home/me/a.eaf\n" for line in ELAN.splitlines())),
        ("a.txt", "phase\t\t500\t1000\t500\tup\nphase\t\t1000\t1500\t500\t7\n"),
        ("tiers.txt", ELAN_TIERS),
        ("events.tsv", BORIS_EVENTS),
        ("states.tsv", BORIS_STATES),
        ("old.tsv", BORIS_OLD),
    ],
)
def test_exports_work_as_they_come(name: str, text: str, tmp_path: Path) -> None:
    joined, notes = join(tmp_path, text, name)
    assert joined.column("frame_labels")[0].as_py() == [-1] * 12 + [0] * 12 + [1] * 12 + [-1] * 12
    assert joined.column("phase_names")[0].as_py() == ["up", "7"]
    assert ("1 point events of BORIS not used" in notes) == (name == "states.tsv")


def test_points_of_boris_are_events(tmp_path: Path) -> None:
    text = BORIS + "Behavior type\tTime\tMedia file name\n"
    text += "".join(
        f"x\t\t2\t24\tme\t{name}\t\tPOINT\t{time}\ta.mp4\n" for name, time in (("up", 0), ("down", 1))
    )
    joined, _ = join(tmp_path, text, "points.tsv")
    assert joined.column("frame_labels")[0].as_py() == [0] * 24 + [-1] * 24
    assert joined.column("phase_names")[0].as_py() == ["up to down"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("z.mp4,0,1,up", "no video 'z.mp4'"),
        ("sub/bb.mp4,0,1,up", "no video 'sub/bb.mp4'; did you mean sub/b.mp4?"),
        ("a.avi,0,1,up", "no video 'a.avi'"),
        (",0,1,up", "no video ''"),
        ("a.mp4,1,0.5,up", "'up' ends before it starts (1 to 0.5)"),
        ("a.mp4,0.5,0.501,up", "'up' holds the middle of no frame (0.5 to 0.501)"),
        ("a.mp4,0,1.5,up", "overlaps labels.csv, row 2"),
        ("a.mp4,1.5,9,up", "end 9 is past the end of the video, 2.000 s"),
        ("a.mp4,9,9.5,up", "start 9 is past the end of the video, 2.000 s"),
        ("a.mp4,-1,1,up", "start '-1': expected seconds"),
        ("a.mp4,soon,1,up", "start 'soon': expected seconds"),
        ("a.mp4,--1,1,up", "start '--1': expected seconds"),
        ("a.mp4,1:-59,1,up", "start '1:-59': expected seconds"),
        ("a.mp4,1.5,,up", "no end"),
        ("a.mp4,1.5,1.8,", "no label"),
    ],
)
def test_rows_that_do_not_fit_are_listed(row: str, said: str, tmp_path: Path) -> None:
    text = f"video,start,end,label\na.mp4,1,1.4,down\n\n{row}\nq.mp4,1,2,up\n"
    with pytest.raises(UserError) as caught:
        join(tmp_path, text)
    message, bad, other = caught.value.args
    assert "2 mistakes; nothing was joined" in message
    of_row, of_unknown = sorted((bad, other))
    assert (
        of_row.startswith(f"labels.csv, row 4: {said}")
        and of_unknown == "labels.csv, row 5: no video 'q.mp4'"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("video,start_frame,end_frame,label\na,0,49,up\n", "end_frame 49 is past the end: the frames are 0 to 47"),
        ("video,start_frame,end_frame,label\na,1.5,3,up\n", "start_frame '1.5': expected a frame, from 0 on"),
        ("video,frame,label\na,48,up\n", "row 2: frame 48 is past the end"),
        ("video,frame,label\na,4,up\na,4,down\n", "row 3: overlaps labels.csv, row 2"),
        ("video,time,label\na,2.5,up\n", "time 2.5 is past the end"),
        ("video,time,event\na,1,up\n", "the only event of its video"),
        ("video,time,event\na,1,up\na,1.001,down\n", "row 3: no frame lies between this event and that of"),
        ("video,label\na,x\na.mp4,y\n", "row 3: labels.csv, row 2 is about the same video"),
        ("video,time,event\na,1,\na,1.5,x\n", "row 2: no event"),
        ("video,label,split\na,x,train\nb,y,test\n", "row 3: the label 'y' is only in test videos"),
    ],
)  # fmt: skip
def test_rows_of_other_forms_that_do_not_fit(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        join(tmp_path, text)


def test_a_phase_only_in_test_videos(tmp_path: Path) -> None:
    table = manifest(split=["train", "test", None])
    text = "video,start,end,label\na,0,1,up\nb,0,1,up\nb,1,1.5,down\n"
    with pytest.raises(UserError, match="row 4: the phase 'down' is only in test videos"):
        join(tmp_path, text, table=table)
    join(tmp_path, text + "c d,0,1,down\n", table=table)  # a video without a split is trained on
    join(
        tmp_path, "video,start,end,label\nb,0,1,up\n", table=table
    )  # nothing to be fitted: no mistake of these rows


def test_names_of_videos(tmp_path: Path) -> None:
    table = manifest(
        video_id=["a/x.mp4", "b/x.mp4", "b/y.mp4"], uri=["/v/a/x.mp4", "/v/b/x.mp4", "/v/b/y.mp4"]
    )
    for name in ("y.mp4", "y", "b/y.mp4", "./v/b/y.mp4", "/v/b/y.mp4", "D:\\old\\y.mp4", "b\\y.mp4"):
        assert (
            join(tmp_path, f"video,label\n{name},l\n", table=table)[0].column("label").to_pylist()[2] == "l"
        )
    for name, said in (
        ("x.mp4", "'x.mp4' may be any of a/x.mp4, b/x.mp4: name the id"),
        ("c/y.mp4", "no video 'c/y.mp4'"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            join(tmp_path, f"video,label\n{name},l\n", table=table)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "got an empty file"),
        ("film,what\na,b\n", "expected columns video,start,end,label in seconds .*got film, what"),
        ("video,start,end,label\na,0,1,up,5\n", "row 2 has 5 cells, the header 4"),
    ],
)
def test_what_is_no_file_of_labels(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        join(tmp_path, text)


def test_labels_from_folders(tmp_path: Path) -> None:
    ids = ["train/squat/1.mp4", "test/squat/2.mp4", "train/jump/3.mp4"]
    table = manifest(video_id=ids)
    joined, _ = join_labels(table, LabelOptions(label_from="folder"))
    assert joined.column("label").to_pylist() == ["squat", "squat", "jump"]
    assert join_labels(table, LabelOptions(label_from="1"))[0].column("label").to_pylist() == [
        "train",
        "test",
        "train",
    ]
    with pytest.raises(UserError, match=r"a\.mp4: it has no folder for --label-from folder"):
        join_labels(manifest(), LabelOptions(label_from="folder"))
    assert folders_like_labels([*ids, "train/jump/4.mp4"]) == ["jump", "squat"]
    assert folders_like_labels(ids) == folders_like_labels(["a.mp4", "b/c.mp4", "b/d.mp4"]) == []


@pytest.mark.parametrize("seed", range(5))
def test_no_person_is_on_both_sides(seed: int) -> None:
    persons = [f"p{k % 7}" for k in range(40)]
    rows = [manifest().slice(0, 1)] * 40
    table = pa.concat_tables(rows).append_column("person", pa.array(persons))
    table = table.set_column(0, SCHEMA.field(0), pa.array([f"{k}.mp4" for k in range(40)]))
    split, notes = join_labels(table, LabelOptions(split_by="person", test_fraction=0.3, seed=seed))
    sides = {*zip(persons, split.column("split").to_pylist(), strict=True)}
    assert len(sides) == 7 and [side for _, side in sides].count("test") == 2
    assert re.search(r"train \d+ videos \(5 of its values\), test \d+ videos \(2 of its values\)$", notes[-1])
    again, _ = join_labels(table, LabelOptions(split_by="person", test_fraction=0.3, seed=seed))
    assert again.equals(split)
    for column, said in (
        ("who", "no such column; there are split, label, person, video, folder"),
        ("label", "at least 2 values of it for the splits train, test, and .* got 0 and 0.3"),
    ):
        with pytest.raises(UserError, match=said):
            join_labels(table, LabelOptions(split_by=column))
    three = LabelOptions(split_by="person", test_fraction=0.3, validation_fraction=0.3, seed=seed)
    of_three, notes = join_labels(table, three)
    sides = {*zip(persons, of_three.column("split").to_pylist(), strict=True)}
    assert [[side for _, side in sides].count(name) for name in ("train", "test", "validation")] == [3, 2, 2]
    tested = [
        [p for p, side in zip(persons, t.column("split").to_pylist(), strict=True) if side == "test"]
        for t in (split, of_three)
    ]
    assert tested[0] == tested[1]
    assert three.arguments()[2:] == [
        "--test-fraction",
        "0.3",
        "--validation-fraction",
        "0.3",
        "--seed",
        str(seed),
    ]


@pytest.mark.parametrize(
    ("persons", "shares"), [(3, (0.9, 0.05)), (3, (0.01, 0.01)), (40, (0.01, 0.01)), (40, (0.5, 0.45))]
)
def test_every_split_has_a_value(persons: int, shares: tuple[float, float]) -> None:
    table = pa.concat_tables([manifest().slice(0, 1)] * 40)
    table = table.append_column("person", pa.array([f"p{k % persons}" for k in range(40)]))
    table = table.set_column(0, SCHEMA.field(0), pa.array([f"{k}.mp4" for k in range(40)]))
    options = LabelOptions(split_by="person", test_fraction=shares[0], validation_fraction=shares[1])
    assert {*join_labels(table, options)[0].column("split").to_pylist()} == {"train", "test", "validation"}
    with pytest.raises(UserError, match=r"shares below 1 together; got .* and 1"):
        join_labels(table, replace(options, validation_fraction=1 - shares[0]))
    few = table.slice(0, 2)
    with pytest.raises(UserError, match="at least 3 values of it for the splits train, test, validation"):
        join_labels(few, options)


def test_labels_join_a_manifest_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = str(tmp_path / "m.parquet")
    write_table(manifest(), uri)
    (tmp_path / "labels.csv").write_text(FORMS["seconds"])
    (tmp_path / "who.csv").write_text("video,person\na,ann\nb,bob\nc d,cy\n")
    index.main(
        ["--update", uri, "--labels", str(tmp_path / "labels.csv"), "--labels", str(tmp_path / "who.csv")]
    )
    index.main(["--update", uri, "--split-by", "person"])
    said = capsys.readouterr()
    assert "labels.csv: intervals (video, start, end, label), 9 rows for 3 of 3 videos" in said.err
    assert "next: " in said.out and "was read as" not in said.out and re.search(r"test +1 ", said.out)
    read = read_manifest(uri)
    assert read.column("phase_names").to_pylist() == [["up", "down"]] * 3
    assert read.column("person").to_pylist() == ["ann", "bob", "cy"]
    (tmp_path / "labels.csv").write_text("video,start,end,label\nx,0,1,up\na,2,1,up\n")
    with pytest.raises(SystemExit) as exit_:
        index.main(["--update", uri, "--labels", str(tmp_path / "labels.csv")])
    block = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2 and len(block) == 3 and read_manifest(uri).equals(read)
    assert block[0].startswith("carl_ray: ") and block[1] == "  labels.csv, row 2: no video 'x'"


def test_labels_of_a_video_that_could_not_be_read_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "video,start,end,label\na.mp4,0,1,up\nsquats/b.avi,0,1,up\nb.avi,1,2,up\n"
    )
    options = LabelOptions(files=(str(tmp_path / "labels.csv"),))
    _, notes = join_labels(manifest(), options, ["/videos/squats/b.avi"])
    assert "labels.csv, row 3: passed over, for 'squats/b.avi' could not be read as a video" in notes
    with pytest.raises(UserError, match="the labels do not fit the videos, 2 mistakes"):
        join_labels(manifest(), options)


def test_an_empty_cell_keeps_what_is_there(tmp_path: Path) -> None:
    table = manifest(split=["train", "test", None])
    joined, _ = join(tmp_path, "video,split,person\na,,ann\nb,,\n", table=table)
    assert joined.column("split").to_pylist() == ["train", "test", None]
    joined, _ = join(tmp_path, "video,split,person\na,test,\n", table=joined)
    assert joined.column("split").to_pylist() == ["test", "test", None]
    assert joined.column("person").to_pylist() == ["ann", None, None]


@pytest.mark.parametrize(
    ("values", "text", "expected"),
    [
        ([30, 41, None], "31", [31, 41, None]),
        ([1.5, None, None], "2", [2.0, None, None]),
        ([None, None, None], "31", ["31", None, None]),
        (pa.array(["x", "y", None]).dictionary_encode(), "z", ["z", "y", None]),
    ],
)
def test_a_column_keeps_its_type(values: Any, text: str, expected: list[Any], tmp_path: Path) -> None:
    column = pa.array(values)
    table = manifest().append_column("age", column)
    joined, _ = join(tmp_path, f"video,age\na,{text}\n", table=table)
    assert joined.column("age").to_pylist() == expected
    assert joined.schema.field("age").type == (pa.string() if pa.types.is_null(column.type) else column.type)


@pytest.mark.parametrize(
    ("values", "text", "kind"),
    [([30, 41, None], "old", "int64"), ([[1.0], None, None], "1", "list<item: double>")],
)
def test_cells_of_another_type_are_listed(values: list[Any], text: str, kind: str, tmp_path: Path) -> None:
    table = manifest().append_column("age", pa.array(values))
    with pytest.raises(UserError, match="2 mistakes") as caught:
        join(tmp_path, f"video,age\na,{text}\nb,{text}\n", table=table)
    problem = f"labels.csv, row 2: age {text!r}: expected {kind}, as the column age of the manifest"
    assert caught.value.args[1:] == (problem, problem.replace("row 2", "row 3"))


def test_lists_cannot_split(tmp_path: Path) -> None:
    table = manifest().append_column("tint", pa.array([[1.0], [2.0], None]))
    with pytest.raises(UserError, match=r"^--split-by tint: expected a column of single values, got list$"):
        join_labels(table, LabelOptions(split_by="tint"))


def test_the_manifest_is_checked_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nothing was joined.*\n.*makes 1000001 classes of which 2 occur"
    ) as caught:
        join(tmp_path, "video,frame,label\na,0,1000000\na,1,5\n")
    assert len(caught.value.args) == 2
    places = ("byte_offset", "byte_length", "file_frames", "keypoints")
    joined, notes = join(tmp_path, f"video,person,{','.join(places)}\na,ann,1,2,3,4\n")
    assert f"not used, for the manifest has them: {', '.join(places)}" in notes
    assert joined.column_names == [*SCHEMA.names, "person"]
    joined, notes = join(tmp_path, "video,person,progress\na,ann,1\n")
    assert "not used, for the manifest has them: progress" in notes
    pq.write_table(pa.table({"video": ["a"], "progress": [[0.0, 0.5]]}), tmp_path / "lists.parquet")
    with pytest.raises(
        UserError, match=r"progress: expected labels of frames in rows of a frame or an interval"
    ):
        join(tmp_path, (tmp_path / "lists.parquet").read_bytes(), "lists.parquet")
    # Bare columns of `propagate`, without sizes and hashes, are checked as well.
    bare = (
        "video_id",
        "uri",
        "num_frames",
        "fps",
        "frame_times",
        "split",
        "label",
        "frame_labels",
        "phase_names",
    )
    joined, _ = join(tmp_path, "video,frame,label\na,0,5\n", table=manifest().select(bare))
    assert joined.column("frame_labels")[0].as_py() == [5] + [-1] * 47


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    for folder, phase in (("one", "up"), ("two", "down")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "l.csv").write_text(f"video,start,end,label\na,0,1,{phase}\n")
        (tmp_path / folder / "v.csv").write_text(f"video,label,person\na,{phase},ann\nb,same,ann\n")
    with pytest.raises(
        UserError, match=r"l\.csv: the phases of a\.mp4 are in another file of this name already"
    ):
        join_labels(manifest(), LabelOptions(files=(f"{tmp_path}/one/l.csv", f"{tmp_path}/two/l.csv")))
    with pytest.raises(UserError, match="1 mistake") as caught:
        join_labels(manifest(), LabelOptions(files=(f"{tmp_path}/one/v.csv", f"{tmp_path}/two/v.csv")))
    assert caught.value.args[1] == "v.csv, row 2: label is 'down', but 'up' in v.csv, row 2 of another file"


def test_a_label_only_in_test_is_named_wherever_it_comes_from(tmp_path: Path) -> None:
    ids = ["train/squat/1.mp4", "test/jump/2.mp4", "train/squat/3.mp4"]
    split = ["train", "test", "train"]
    _, notes = join_labels(manifest(video_id=ids, split=split), LabelOptions(label_from="folder"))
    assert "warning: the label 'jump' is only in test videos (test/jump/2.mp4): nothing learns it" in notes
    labelled = manifest(label=["x", "x", "y"])
    with pytest.raises(UserError, match=r"labels\.csv, row 4: the label 'y' is only in test videos"):
        join(tmp_path, "video,split\na,train\nb,train\nc d,test\n", table=labelled)
    of_seeds = [join_labels(labelled, LabelOptions(split_by="video", seed=seed))[1] for seed in range(9)]
    warned = [any("the label 'y' is only in test videos" in note for note in notes) for notes in of_seeds]
    assert 0 < sum(warned) < 9
    # What the manifest has already is no mistake of this file.
    known = manifest(label=["x", "y", "x"], split=split)
    join(tmp_path, "video,person\na,ann\n", table=known)


def test_videos_without_a_split_are_not_compared_with_test_videos(tmp_path: Path) -> None:
    text = "video,start,end,label\na,0,1,up\nb,0,1,up\nb,1,1.5,down\n"
    joined, _ = join(tmp_path, text, table=manifest(split=[None, None, None]))
    assert joined.column("phase_names").to_pylist() == [["up", "down"]] * 2 + [None]


def test_names_of_other_unicode_forms(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Über.mp4") for form in ("NFC", "NFD"))
    for known, written in ((composed, decomposed), (decomposed, composed)):
        table = manifest(video_id=[known, "b", "c"], uri=[f"/v/{known}", "/v/b", "/v/c"])
        joined, _ = join(tmp_path, f"video,label\n{written},x\n", table=table)
        assert joined.column("label")[0].as_py() == "x"


def test_names_of_many_videos_are_not_all_listed(tmp_path: Path) -> None:
    ids = [f"{k}/x.mp4" for k in range(9)]
    table = pa.concat_tables([manifest()] * 3)
    for place, values in enumerate((ids, [f"/v/{name}" for name in ids])):
        table = table.set_column(place, SCHEMA.field(place), pa.array(values))
    with pytest.raises(UserError, match=r"may be any of 0/x\.mp4, .*, 4/x\.mp4, 4 more: name the id"):
        join(tmp_path, "video,label\nx.mp4,l\n", table=table)


def test_hints_are_for_the_first_names_only(tmp_path: Path) -> None:
    text = "video,label\n" + "".join(f"sub/b{k}.mp4,x\n" for k in range(50))
    with pytest.raises(UserError) as caught:
        join(tmp_path, text)
    assert len(caught.value.args) == 51
    assert sum("did you mean" in line for line in caught.value.args) == 3


def test_after_a_mistake_the_command_to_go_on_is_named(tmp_path: Path) -> None:
    uri, labels = str(tmp_path / "m.parquet"), str(tmp_path / "my labels.csv")
    write_table(manifest(), uri)
    Path(labels).write_text("video,label\nnone,x\n")
    with pytest.raises(UserError) as caught:
        label_manifest(uri, LabelOptions(files=(labels,), split_by="video"))
    _, _, command = caught.value.args[0].partition(f"The videos are in {uri}: correct this, then run: ")
    assert shlex.split(command) == [
        *("carl-ray", "index", "--update", uri, "--labels", labels),
        *("--split-by", "video", "--test-fraction", "0.3", "--seed", "0"),
    ]
