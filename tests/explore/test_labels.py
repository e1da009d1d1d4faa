"""`carl_ray.explore.labels`: what was drawn is in the file, and nothing is lost or overwritten."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carl_ray import storage
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embeddings import EmbeddedVideo
from carl_ray.explore.labels import ConflictError, LabelStore, drawn, labels_of_another_form

UP = {"start": 0.5, "end": 1.0, "label": "up"}
DOWN = {"start": 1.0, "end": 2.04, "label": ' "down",\n<b> '}


def video(name: str, fps: float | None = 10.0, **fields: Any) -> EmbeddedVideo:
    return EmbeddedVideo(
        video_id=name,
        uri=f"/videos/{name}",
        timestamps=np.arange(20.0),
        embeddings=np.ones((20, 2), np.float32),
        fps=fps,
        **fields,
    )


VIDEOS = [video("a.mp4"), video('b "x",\n.mp4'), video("c.mp4", fps=None)]


def test_what_is_drawn_is_saved_and_read_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "deep" / "labels.csv")
    store = LabelStore(uri, VIDEOS, lambda: None)
    assert store.read(0) == ([], 0) and not Path(uri).exists()
    version = store.save(0, [DOWN, UP], 0)
    assert store.save(1, [UP], 0) not in (0, version)
    found = [(start, end, label) for start, end, label, _ in store.read(0)[0]]
    assert found == [(0.5, 1.0, "up"), (1.0, 2.0, '"down", <b>')]
    rows = list(csv.reader(io.StringIO(Path(uri).read_text())))
    assert rows[0] == ["video", "start", "end", "label"]
    assert rows[2] == ["a.mp4", "1.0000", "2.0000", '"down", <b>']
    again = LabelStore(uri, VIDEOS)
    for number in (0, 1):
        assert again.read(number) == store.read(number)
    phases = again.labelled()[0]
    assert phases.phase_names == ["up", '"down", <b>']
    assert phases.phases.tolist() == [-1] * 5 + [0] * 5 + [1] * 10
    assert drawn(phases) == store.read(0)[0]
    assert store.save(0, [], version) == 0
    assert 0 not in store.labelled() and list(store.labelled([0, 1])) == [1]


def test_labels_of_another_form_are_a_beginning(tmp_path: Path) -> None:
    few, own = tmp_path / "few.csv", tmp_path / "labels.csv"
    # Frames; ids without the suffix; times of a clock: columns alone do not tell the page's file.
    for text in (
        "video,start_frame,end_frame,label\na.mp4,5,10,up\na.mp4,10,20,down\n",
        "video,start,end,label\na,0.5,1,up\na,1,2,down\n",
        "video,start,end,label\na.mp4,0:00.5,0:01,up\na.mp4,0:01,0:02,down\n",
    ):
        few.write_text(text)
        start = labels_of_another_form(str(few), VIDEOS[:2])
        assert {n: [(s, e, label) for s, e, label, _ in found] for n, found in start.items()} == {
            0: [(0.5, 1.0, "up"), (1.0, 2.0, "down")]
        }
    store = LabelStore(str(own), VIDEOS[:2], lambda: None, start)
    found, version = store.read(0)
    assert found == start[0] and list(store.labelled()) == [0] and not own.exists()
    store.save(1, [UP], 0)
    store.save(0, [UP], version)
    # The page's own file is no other form, and what is in it goes before.
    assert labels_of_another_form(str(own), VIDEOS[:2]) == {}
    assert LabelStore(str(own), VIDEOS[:2], None, start).read(0) == store.read(0)
    assert labels_of_another_form(str(tmp_path / "none.csv"), VIDEOS[:2]) == {}


def test_rows_that_somebody_else_writes_into_the_file_stay(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    store = LabelStore(str(file), VIDEOS, lambda: None)
    version = store.save(0, [UP], 0)
    with file.open("a") as more:
        more.write("b.mp4,0.5000,1.0000,by hand\n")
    store.save(0, [DOWN], version)
    assert "b.mp4,0.5000,1.0000,by hand" in file.read_text() and "1.0000,2.0000" in file.read_text()
    file.write_text("video,start,end,label\na.mp4,0.2500,0.5000,by hand\n")
    with pytest.raises(ConflictError, match="changed elsewhere"):
        store.save(0, [UP], version)
    assert "by hand" in file.read_text()


def test_two_pages_do_not_overwrite_each_other(tmp_path: Path) -> None:
    store = LabelStore(str(tmp_path / "labels.csv"), VIDEOS, lambda: None)
    version = store.save(0, [UP], 0)
    assert store.save(0, [UP], 0) == version  # Sent again: the answer did not arrive.
    with pytest.raises(ConflictError, match="changed elsewhere"):
        store.save(0, [DOWN], 0)
    assert store.read(0)[0][0].label == "up"
    store.save(0, [DOWN], version)
    # Also after a restart.
    again = LabelStore(str(tmp_path / "labels.csv"), VIDEOS, lambda: None)
    with pytest.raises(ConflictError):
        again.save(0, [], version)


def test_who_may_not_write_does_not(tmp_path: Path) -> None:
    def lost() -> None:
        raise RunError("taken over")

    path = tmp_path / "labels.csv"
    LabelStore(str(path), VIDEOS, lambda: None).save(0, [UP], 0)
    content = path.read_bytes()
    for check, error in ((None, UserError), (lost, RunError)):
        store = LabelStore(str(path), VIDEOS, check)
        assert store.is_writable is (check is not None)
        found, version = store.read(0)
        with pytest.raises(error):
            store.save(0, [DOWN], version)
        assert store.read(0) == (found, version) and path.read_bytes() == content


def test_a_store_that_fails_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LabelStore(str(tmp_path / "labels.csv"), VIDEOS, lambda: None)
    store.save(0, [UP], 0)

    def fail(uri: str, content: bytes) -> None:
        raise RunError("full")

    monkeypatch.setattr(storage, "write_bytes", fail)
    for number in (0, 1):
        before = store.read(number)
        with pytest.raises(RunError, match="full"):
            store.save(number, [DOWN], before[1])
        assert store.read(number) == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "expected a list"),
        ([3], "expected intervals with start, end and label"),
        ([{"start": 0, "end": 1}], "expected intervals with start, end and label"),
        ([UP | {"start": 1.5}], "0 <= start < end <= 2.000 seconds, got 1.5 and 1.0"),
        ([UP | {"end": 2.2}], "seconds, got 0.5 and 2.2"),
        ([UP | {"start": float("nan")}], "seconds, got nan"),
        ([UP | {"start": True}], "seconds, got True"),
        ([UP | {"label": " \n"}], "label of 1 to 200 characters"),
        ([UP | {"label": "x" * 201}], "label of 1 to 200 characters"),
        ([UP | {"label": None}], "label of 1 to 200 characters"),
        ([UP, DOWN | {"start": 0.9}], "overlap"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path: Path, rows: object, message: str) -> None:
    store = LabelStore(str(tmp_path / "labels.csv"), VIDEOS, lambda: None)
    with pytest.raises(UserError, match=message):
        store.save(0, rows, 0)
    assert not [*tmp_path.iterdir()]


def test_videos_without_times_are_not_labelled(tmp_path: Path) -> None:
    store = LabelStore(str(tmp_path / "labels.csv"), VIDEOS, lambda: None)
    with pytest.raises(UserError, match=r"'c.mp4': its frame rate is unknown"):
        store.save(2, [UP], 0)


def test_nothing_is_moved_joined_or_dropped_by_a_restart(tmp_path: Path) -> None:
    names = ["#1.mp4", " a\tb.mp4", "one.mp4", "a.mp4"]
    videos = [
        video(name, split=split) for name, split in zip(names, ["test", "train", None, "test"], strict=True)
    ]
    videos[2] = replace(videos[2], timestamps=np.zeros(1), embeddings=np.ones((1, 2), np.float32))
    uri = str(tmp_path / "labels.csv")
    store = LabelStore(uri, videos, lambda: None)
    rep = [{"start": k / 4, "end": (k + 1) / 4, "label": str(k % 2)} for k in range(4)]
    rep += [{"start": 1.0, "end": 1.5, "label": "rep"}, {"start": 1.5, "end": 2.0, "label": "rep"}]
    for number, rows in enumerate([rep, rep, [{"start": 0, "end": 0.04, "label": "x"}], [UP]]):
        store.save(number, rows, 0)
    again = LabelStore(uri, videos, lambda: None)
    assert [again.read(n) for n in range(4)] == [store.read(n) for n in range(4)]
    # A video that is not embedded any more keeps its labels in the file.
    fewer = LabelStore(uri, videos[:3], lambda: None)
    fewer.save(0, [], fewer.read(0)[1])
    assert "a.mp4,0.5000,1.0000,up\n" in Path(uri).read_text()
    assert LabelStore(uri, videos).read(3) == store.read(3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video;time;event\na.mp4;0.5;start\n", "expected the columns video,start,end,label"),
        ("video,label,person\na.mp4,kick,Ada\n", r"got video,label,person: name another file by --labels"),
        ("video,start,end,label\na.mp4,1,x,up\n", "row 2 is no interval: a.mp4,1,x,up"),
        ("video,start,end,label\na.mp4,2,1,up\n", "row 2 is no interval"),
        ("", "got nothing"),
    ],
)
def test_other_files_are_refused_and_stay(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        LabelStore(str(path), VIDEOS, lambda: None)
    assert path.read_text() == content
