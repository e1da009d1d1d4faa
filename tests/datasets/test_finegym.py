"""FineGym from a small imitation of what its owners publish, with the traps of real copies."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from carl_ray.data.decode import read_frames
from carl_ray.data.manifest import SCHEMA, read_manifest
from carl_ray.datasets import finegym
from carl_ray.datasets.conversion import Conversion, index_videos
from carl_ray.datasets.finegym import add_events, find_videos, frame_labels
from carl_ray.datasets.finegym_annotation import Event, find_published
from carl_ray.errors import UserError


def _element(*stages):
    return {"stages": len(stages), "timestamps": [list(stage) for stage in stages]}


ANNOTATION = {
    "-dash_dash-": {
        "E_000001_000003": {
            "event": 4,
            "timestamps": [[1.0, 3.0]],
            "segments": {
                "A_0000_0000": _element([0.2, 0.48]),
                "A_0001_0002": _element([1.0, 1.2]),
                "A_0001_0001": _element([1.1, 1.4]),  # overlaps the one before, whatever their names
                "A_0001_0009": _element([1.8, 9.0]),  # ends beyond the event
                "A_0005_0005": _element([5.0, 5.1]),  # lies beyond it
            },
        },
        "E_000004_000005": {"event": 3, "timestamps": [[4.0, 5.0]], "segments": None},
        "E_000005_000006": {
            "event": 3,
            "timestamps": [[5.0, 6.0]],
            "segments": {"A_0000_0000": _element([0.0, 0.2])},
        },
    },
    "_vault_E_01": {
        "E_000002_000004": {
            "event": 1,
            "timestamps": [[2.4, 4.0]],
            "segments": {"A_0000_0001": _element([0.04, 0.2], [0.2, 0.4], [0.6, 0.8])},
        },
        "E_000007_000010": {
            "event": 1,
            "timestamps": [[7, 10]],  # the video ends at 8 s
            "segments": {"A_0000_0003": _element([0, 1], [1, 2], [2, 3])},
        },
        "E_000020_000022": {
            "event": 1,
            "timestamps": [[20.0, 22.0]],  # lies beyond the video
            "segments": {"A_0000_0001": _element([0.0, 1.0])},
        },
    },
    "title-id-99": {
        "E_000000_000001": {
            "event": 11,
            "timestamps": [[0.0, 1.0]],
            "segments": {"A_0000_0000": _element([0.0, 0.12]), "A_0000_0001": _element([0.4, 0.44])},
        },
    },
    "missing-vid": {
        "E_000001_000002": {
            "event": 2,
            "timestamps": [[1.0, 2.0]],
            "segments": {"A_0000_0001": _element([0.0, 1.0])},
        },
    },
    "broken__vid": {
        "E_000001_000002": {
            "event": 2,
            "timestamps": [[1.0, 2.0]],
            "segments": {"A_0000_0001": _element([0.0, 1.0]), "A_0001_0001": {"timestamps": None}},
        },
        "E_000003_000003": {
            "event": 2,
            "timestamps": None,
            "segments": {"A_0000_0001": _element([0.0, 1.0])},
        },
    },
}

TRAIN_99 = """\
title-id-99_E_000000_000001_A_0000_0000 5
broken__vid_E_000001_000002_A_0000_0001 7
broken__vid_E_000001_000002_A_0001_0001 7
broken__vid_E_000003_000003_A_0000_0001 7
missing-vid_E_000001_000002_A_0000_0001 8
_vault_E_01_E_000002_000004_A_0000_0001 2
_vault_E_01_E_000020_000022_A_0000_0001 2
-dash_dash-_E_000001_000003_A_0001_0001 97
-dash_dash-_E_000001_000003_A_0001_0001 97
-dash_dash-_E_000001_000003_A_0001_0002 98
-dash_dash-_E_000001_000003_A_0001_0009 96
-dash_dash-_E_000001_000003_A_0000_0000 0
-dash_dash-_E_000001_000003_A_0005_0005 0
-dash_dash-_E_000001_000003_A_0077_0078 0
unknown-vid_E_000001_000003_A_0000_0001 0
"""
TEST_99 = """\
\ufeff_vault_E_01_E_000007_000010_A_0000_0003 3
title-id-99_E_000000_000001_A_0000_0001 6

"""
TRAIN_288 = "-dash_dash-_E_000005_000006_A_0000_0000 287\n-dash_dash-_E_000001_000003_A_0000_0000 200\n"
TEST_288 = "title-id-99_E_000000_000001_A_0000_0001 6\ntitle-id-99_E_000000_000001_A_0000_0001 7\n"


@pytest.fixture(scope="module")
def published(make_video, tmp_path_factory) -> Path:
    raw = tmp_path_factory.mktemp("FineGym")
    (raw / "annotations").mkdir()
    (raw / "finegym_annotation_info_v1.0.json").write_text(json.dumps(ANNOTATION, indent="\t"))
    (raw / "annotations" / "gym99_train_element_v1.0.txt").write_text(TRAIN_99)
    (raw / "annotations" / "gym99_val_element.txt").write_text(TEST_99.replace("\n", "\r\n"), "utf-8")
    (raw / "gym288_train_element_v1.0.txt").write_text(TRAIN_288)
    (raw / "gym288_val_element.txt").write_text(TEST_288)
    make_video(raw / "videos" / "-dash_dash-.mkv", 200, fps=25, gop=25)
    make_video(raw / "videos" / "deep" / "_vault_E_01.mp4", 200, fps=25, gop=25)
    make_video(raw / "videos" / "体操 – Finale [title-id-99].mp4", 50, fps=25)
    (raw / "videos" / "title-id-99.webm").write_bytes(b"the smaller one")
    (raw / "videos" / "broken__vid.mp4").write_bytes(b"not a video" * 100)
    (raw / "videos" / "missing-vid.mp4.part").write_bytes(b"half a download")
    return raw


@pytest.fixture
def raw(published, tmp_path) -> Path:
    return shutil.copytree(published, tmp_path / "raw")


def _labels(length, *runs):
    labels = [-1] * length
    for start, stop, label in runs:
        labels[start:stop] = [label] * (stop - start)
    return labels


# 0.2 * 25 = 5, 0.48 * 25 = 12, 1.1 * 25 = 27.5: frame 28 is the first that begins within.
DASH = _labels(50, (5, 12, 0), (25, 30, 98), (28, 35, 97), (45, 50, 96))
VAULT = _labels(40, (1, 10, 2), (15, 20, 2))
EXPECTED_99 = {
    "-dash_dash-_E_000001_000003.mp4": ("train", "uneven bars", DASH),
    "_vault_E_01_E_000002_000004.mp4": ("train", "vault", VAULT),
    "_vault_E_01_E_000007_000010.mp4": ("test", "vault", [3] * 25),
    "title-id-99_E_000000_000001.mp4": ("test", "event 11", _labels(25, (10, 11, 6))),
}
LEFT_OUT_99 = {
    "annotated events without an element in the lists": 2,
    "elements of events that the annotation lacks": 1,
    "elements of the lists that the annotation lacks": 1,
    "elements of the training list in an event of the test list": 1,
    "elements without a start and an end": 1,
    "ends of events that lie beyond their video (the beginnings are kept)": 1,
    "events of 1 missing videos": 1,
    "events without a start and an end": 1,
    "events: not a video that can be opened (Invalid data found when processing input)": 1,
    "events: no such range: the video has no frame at its start": 1,
    "videos with several files, of which the largest was taken": 1,
}


def _rows(table):
    return {
        row["video_id"]: (row["split"], row["label"], row["frame_labels"])
        for row in table.select(["video_id", "split", "label", "frame_labels"]).to_pylist()
    }


def _convert(raw: Path, out: Path) -> tuple[Conversion, pa.Table]:
    events, conversion = finegym.read_events(raw, 99)
    return conversion, add_events(events, conversion, *index_videos(str(raw), str(out / "videos.parquet")))


def test_conversion_has_exactly_the_expected_rows_and_counts(
    raw, tmp_path, frame_numbers, ray_session, make_video
):
    conversion, manifest = _convert(raw, tmp_path)
    assert _rows(conversion.labels) == EXPECTED_99
    counted = conversion.left_out | conversion.mended
    assert {reason: len(names) for reason, names in counted.items()} == LEFT_OUT_99
    assert conversion.published == {"train": 5, "test": 2}
    shown = {
        row["video_id"]: frame_numbers(read_frames(row["uri"], range(row["num_frames"])))
        for row in manifest.to_pylist()
    }
    assert shown == {
        "-dash_dash-_E_000001_000003.mp4": list(range(25, 75)),
        "_vault_E_01_E_000002_000004.mp4": list(range(60, 100)),
        "_vault_E_01_E_000007_000010.mp4": list(range(175, 200)),
        "title-id-99_E_000000_000001.mp4": list(range(25)),
    }
    assert len({*manifest.column("content_hash").to_pylist()}) == 4
    # What was missing is added by the next run.
    (raw / "videos" / "missing-vid.mp4.part").unlink()
    make_video(raw / "videos" / "missing-vid.mp4", 60, fps=25)
    conversion, _ = _convert(raw, tmp_path)
    assert _rows(conversion.labels) == EXPECTED_99 | {
        "missing-vid_E_000001_000002.mp4": ("train", "floor exercise", [8] * 25)
    }
    assert not any("missing" in text for text in conversion.left_out)


def test_the_command_line_makes_both_manifests_from_one_index(raw, tmp_path, ray_session, capsys):
    out = tmp_path / "out"
    finegym.main([str(raw), "--out", str(out), "--classes", "99"])
    printed = capsys.readouterr().out
    assert "train                2          5               36          90" in printed
    assert "test                 2          2               26          50" in printed
    assert (
        "       1 x events of 1 missing videos (missing-vid_E_000001_000002)" in printed
        and "finegym99.parquet" in printed
    )
    manifest = read_manifest(str(out / "finegym99.parquet"))
    assert manifest.schema.equals(SCHEMA) and _rows(manifest) == EXPECTED_99
    assert manifest.column("num_frames").to_pylist() == [50, 40, 25, 25]
    content = (out / "finegym99.parquet").read_bytes()

    finegym.main([str(raw), "--out", str(out), "--classes", "288"])
    captured = capsys.readouterr()
    assert "       1 x elements of the lists with two classes" in captured.out
    assert "0 to read, 5 unchanged" in captured.err
    assert _rows(read_manifest(str(out / "finegym288.parquet"))) == {
        "-dash_dash-_E_000001_000003.mp4": ("train", "uneven bars", _labels(50, (5, 12, 200))),
        "-dash_dash-_E_000005_000006.mp4": ("train", "balance beam", _labels(25, (0, 5, 287))),
    }
    finegym.main([str(raw), "--out", str(out), "--classes", "99"])
    assert (out / "finegym99.parquet").read_bytes() == content
    assert {path.name for path in out.iterdir()} == {
        "finegym288.parquet",
        "finegym99.parquet",
        "videos.parquet",
        "videos.rejects.parquet",
    }


def test_version_1_0_goes_before_1_1(raw):
    shutil.copy(raw / "finegym_annotation_info_v1.0.json", raw / "finegym_annotation_info_v1.1.json")
    shutil.copy(raw / "gym288_train_element_v1.0.txt", raw / "gym288_train_element_v1.1.txt")
    assert find_published(raw, 288).train.name == "gym288_train_element_v1.0.txt"
    (raw / "finegym_annotation_info_v1.0.json").unlink()
    assert find_published(raw, 288).train.name == "gym288_train_element_v1.1.txt"
    with pytest.raises(UserError, match=r"differ in version"):
        find_published(raw, 99)


def test_frames_are_labelled_by_exact_times():
    stages = ((Fraction("-0.5"), Fraction("0.08"), 7), (Fraction("3.2"), Fraction("3.201"), 7))
    event = Event("a", "a", "vault", "train", Fraction(0), Fraction(4), stages)
    assert frame_labels(event, np.arange(100) / 25).tolist() == _labels(100, (0, 2, 7), (80, 81, 7))


def test_the_largest_file_of_a_video_that_decodes_is_taken():
    rows = [
        ("x/some-title--starts-with.mp4", 5),
        ("v_b.mkv", 4),
        ("y/b.mp4", 6),
        ("._b.mp4", 9),
        ("T [c].webm", 1),
    ]
    index = pa.Table.from_pylist(
        [{"video_id": name, "uri": f"/{name}", "bytes": size} for name, size in rows]
    )
    found, broken, doubled = find_videos(
        index, {"b.avi": "empty", "d.mp4": "empty"}, {"-starts-with", "b", "c", "d"}
    )
    assert {name: row["video_id"] for name, row in found.items()} == {
        "-starts-with": "x/some-title--starts-with.mp4",
        "b": "y/b.mp4",
        "c": "T [c].webm",
    }
    assert doubled == ["b"] and broken.keys() == {"b", "d"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: shutil.rmtree(raw), "no such folder"),
        (
            lambda raw: (raw / "finegym_annotation_info_v1.0.json").unlink(),
            r"missing: finegym_annotation_info",
        ),
        (
            lambda raw: (raw / "annotations" / "gym99_val_element.txt").unlink(),
            "missing: gym99_val_element.txt",
        ),
        (
            lambda raw: (raw / "finegym_annotation_info_v1.0.json").write_text('{"a": {'),
            "not the JSON file as published",
        ),
        (lambda raw: (raw / "finegym_annotation_info_v1.0.json").write_text("[]"), "expected an object"),
        (
            lambda raw: (raw / "annotations" / "gym99_train_element_v1.0.txt").write_text(
                "a_E_1_2_A_1_2 99\n"
            ),
            "line 1: expected .* from 0 to 98, got",
        ),
    ],
)
def test_a_folder_that_is_not_as_published_is_refused_in_one_line(raw, tmp_path, capsys, spoil, message):
    spoil(raw)
    with pytest.raises(SystemExit) as exit_:
        finegym.main([str(raw), "--out", str(tmp_path / "out"), "--classes", "99"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(UserError, match=message):
        finegym.read_events(raw, 99)


def test_object_stores_are_refused(raw, capsys):
    with pytest.raises(SystemExit) as exit_:
        finegym.main([str(raw), "--out", "s3://bucket/finegym"])
    assert exit_.value.code == 2 and "a folder of this machine" in capsys.readouterr().err


def test_no_video_at_all_fails(raw, tmp_path, capsys, ray_session):
    shutil.rmtree(raw / "videos")
    (raw / "videos").mkdir()
    (raw / "videos" / "-dash_dash-.mp4").write_bytes(b"")
    with pytest.raises(SystemExit) as exit_:
        finegym.main([str(raw), "--out", str(tmp_path / "out")])
    assert exit_.value.code == 1
    captured = capsys.readouterr()
    assert "no event has a video that can be read" in captured.err
    assert "1 x events: the file is empty" in captured.out
    assert not (tmp_path / "out" / "finegym99.parquet").exists()
