"""`carl_ray.explore.labels`: what was drawn is in the file, and nothing is lost or overwritten."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carl_ray import storage
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embeddings import EmbeddedVideo
from carl_ray.explore.labels import ConflictError, LabelStore, drawn

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
    store = LabelStore(uri, VIDEOS)
    assert store.read(0) == ([], 0) and not Path(uri).exists()
    assert store.save(0, [DOWN, UP], 0) == 1
    assert store.save(1, [UP], 0) == 1
    found = [(start, end, label) for start, end, label, _ in store.read(0)[0]]
    assert found == [(0.5, 1.0, "up"), (1.0, 2.0, '"down", <b>')]
    rows = list(csv.reader(io.StringIO(Path(uri).read_text())))
    assert rows[0] == ["video", "start", "end", "label"]
    assert rows[2] == ["a.mp4", "1.0000", "2.0000", '"down", <b>']
    again = LabelStore(uri, VIDEOS)
    for number in (0, 1):
        assert again.read(number)[0] == store.read(number)[0]
    phases = again.labelled()[0]
    assert phases.phase_names == ["up", '"down", <b>']
    assert phases.phases.tolist() == [-1] * 5 + [0] * 5 + [1] * 10
    assert drawn(phases) == store.read(0)[0]
    assert store.save(0, [], 1) == 2
    assert 0 not in store.labelled() and list(store.labelled([0, 1])) == [1]


def test_two_pages_do_not_overwrite_each_other(tmp_path: Path) -> None:
    store = LabelStore(str(tmp_path / "labels.csv"), VIDEOS)
    store.save(0, [UP], 0)
    with pytest.raises(ConflictError, match="expected version 1 of these labels, got 0"):
        store.save(0, [DOWN], 0)
    assert store.read(0)[0][0].label == "up"


def test_a_store_that_fails_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LabelStore(str(tmp_path / "labels.csv"), VIDEOS)
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
    store = LabelStore(str(tmp_path / "labels.csv"), VIDEOS)
    with pytest.raises(UserError, match=message):
        store.save(0, rows, 0)
    assert not [*tmp_path.iterdir()]


def test_videos_without_times_are_not_labelled(tmp_path: Path) -> None:
    store = LabelStore(str(tmp_path / "labels.csv"), VIDEOS)
    with pytest.raises(UserError, match=r"'c.mp4': its frame rate is unknown"):
        store.save(2, [UP], 0)


def test_files_in_other_forms_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("video;time;event\na.mp4;0.5;start\na.mp4;1.0;end\n")
    store = LabelStore(str(path), VIDEOS)
    assert [interval[:3] for interval in store.read(0)[0]] == [(0.5, 1.0, "start to end")]
    path.write_text("video,start,end,label\nz.mp4,0,1,up\n")
    with pytest.raises(UserError, match=r"z\.mp4"):
        LabelStore(str(path), VIDEOS)
