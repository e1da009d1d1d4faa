"""`carl_ray.data.manifest`: what is written is read, and nothing else is taken for a manifest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carl_ray.data.manifest import (
    REJECTS_SCHEMA,
    SCHEMA,
    check_columns,
    first_difference,
    read_manifest,
    write_table,
)
from carl_ray.errors import RunError, UserError
from tests.samples import manifest_row


def row(video_id: str = "a", **values: Any) -> dict[str, Any]:
    file = {"duration": 0.1, "codec": "h264", "modified_ns": 1_700_000_000_123_456_789}
    frames = {"frame_times": [0.0, 0.03, 0.1], "key_frames": [0, 2], "frame_labels": [0, 1, -1]}
    names = {"phase_names": ["up", "down", "rest"], "progress": [0.0, 0.5, 1.0]}
    row = manifest_row(video_id, uri=f"/videos/{video_id}.mp4", rotation=90, split=None, label=None)
    return row | file | frames | names | values


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def test_survives_the_file(tmp_path: Path) -> None:
    # A folder that looks like a partition of a dataset is only a name.
    uri = str(tmp_path / "split=test" / "manifest.parquet")
    nothing = dict.fromkeys(("fps", "duration", "codec", "modified_ns", "frame_labels"))
    written = table(row("b"), row("a", split="test", label="jump"), row("c", **nothing))
    write_table(written, uri)
    assert read_manifest(uri).equals(written, check_metadata=True)
    chosen = read_manifest(uri, ["split", "video_id"])
    assert chosen.to_pylist() == [
        {"split": None, "video_id": "b"},
        {"split": "test", "video_id": "a"},
        {"split": None, "video_id": "c"},
    ]
    assert [path.name for path in (tmp_path / "split=test").iterdir()] == ["manifest.parquet"]


def test_an_empty_manifest_and_the_rejects_survive_too(tmp_path: Path) -> None:
    write_table(table(), str(tmp_path / "empty"))
    assert read_manifest(str(tmp_path / "empty")).equals(SCHEMA.empty_table())
    rejects = pa.Table.from_pylist(
        [{"uri": "/x", "bytes": 0, "modified_ns": None, "reason": "empty"}], schema=REJECTS_SCHEMA
    )
    write_table(rejects, str(tmp_path / "rejects"))
    assert read_manifest(str(tmp_path / "rejects"), REJECTS_SCHEMA.names).equals(rejects)


def test_columns_of_other_tools_get_the_schemas_types(tmp_path: Path) -> None:
    uri = str(tmp_path / "manifest.parquet")
    plain = pa.Table.from_pylist([row("a", extra="kept"), row("b")])  # types as they are guessed
    plain = plain.set_column(0, "video_id", plain.column("video_id").cast(pa.large_string()))
    plain = plain.set_column(2, "num_frames", plain.column("num_frames").cast(pa.int16()))
    assert plain.schema.field("split").type == pa.null()
    pq.write_table(plain, uri)
    read = read_manifest(uri)
    assert read.select(SCHEMA.names).schema.equals(SCHEMA)
    assert read.select(SCHEMA.names).to_pylist() == [row("a"), row("b")]
    assert read.column("extra").to_pylist() == ["kept", None]
    assert read_manifest(uri, split="train").num_rows == 2
    assert read_manifest(uri, split="test").num_rows == 0


def test_split(tmp_path: Path) -> None:
    uri = str(tmp_path / "manifest.parquet")
    splits = {"a": None, "b": "test", "c": "train", "d": None, "e": "Train"}
    write_table(table(*(row(name, split=split) for name, split in splits.items())), uri)
    # Upper case in a name that is known is a slip of whoever wrote it.
    for split, expected in {"train": "acde", "test": "b", "Train": "acde", "validation": ""}.items():
        assert read_manifest(uri, split=split).column("video_id").to_pylist() == list(expected)
        # The split need not be among the columns that are asked for.
        chosen = read_manifest(uri, ["num_frames", "video_id"], split=split)
        assert chosen.column_names == ["num_frames", "video_id"]
        assert chosen.column("video_id").to_pylist() == list(expected)


def test_what_is_no_manifest(tmp_path: Path) -> None:
    write_table(table(row()).drop(["frame_step"]), str(tmp_path / "short"))
    pq.write_table(pa.Table.from_pylist([row(num_frames="many")]), tmp_path / "words")
    pq.write_table(pa.Table.from_pylist([row(uri=None)]), tmp_path / "null")
    (tmp_path / "video.mp4").write_bytes(b"\0" * 100)
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "missing": r"no manifest there; make one with `python -m carl_ray\.index FOLDER --out MANIFEST`$",
        "short": r"not a manifest \(it has no column frame_step\)$",
        "words": r"not a manifest \(.*many",
        "null": r"not a manifest \(.*uri",
        "video.mp4": r"not a manifest \(",
        "nothing": r"not a manifest \(",
        "folder": r"not a manifest \(it has no column video_id",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            read_manifest(str(tmp_path / name))
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="frame_step"):
        read_manifest(str(tmp_path / "short"), ["video_id", "frame_step"])


def test_label_columns_that_a_file_lacks_are_null(tmp_path: Path) -> None:
    uri = str(tmp_path / "older.parquet")
    write_table(table(row(), row(video_id="b")).drop(["split", "progress", "key_frames"]), uri)
    for split in (None, "train"):
        read = read_manifest(uri, split=split)
        assert set(read.column_names) == set(SCHEMA.names)
        assert read.column("progress").to_pylist() == read.column("split").to_pylist() == [None, None]
        assert read.column("key_frames").to_pylist() == [None, None]
    assert read_manifest(uri, ["keypoints"]).column("keypoints").to_pylist() == [None, None]
    assert read_manifest(uri, ["video_id"], split="test").num_rows == 0
    read = read_manifest(uri, ["video_id"], further=("label", "group"))
    assert read.column_names == ["video_id", "label"]


def test_a_damaged_file_is_one_line_or_unharmed(tmp_path: Path) -> None:
    uri = tmp_path / "manifest.parquet"
    written = table(*(row(str(i)) for i in range(20)))
    write_table(written, str(uri))
    content = uri.read_bytes()
    failures = 0
    for position in range(4, len(content), 61):
        uri.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            read_manifest(str(uri))
        except (UserError, RunError) as error:
            failures += 1
            assert "\n" not in str(error)
    assert failures > 10


def test_all_contradictions_are_listed_at_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    wrong = [
        row("short", num_frames=60, frame_times=None, frame_labels=[1] * 59, progress=None),
        row("long", frame_labels=None, progress=[0.5] * 4),
        row("twice"),
        row("twice"),
        row("none", num_frames=0, frame_labels=[], progress=[]),
        row("still", frame_step=float("nan")),
        row("absurd", frame_labels=[0, 1, 1_000_000], phase_names=None),
        row("nameless", frame_labels=[0, 1, 3], frame_times=[0.0, 0.1]),
    ]
    write_table(table(*wrong), uri)
    for columns, split in ((None, None), (["video_id"], "test")):
        with pytest.raises(UserError) as caught:
            read_manifest(uri, columns, split=split)
        assert "\n" not in str(caught.value)
        for said in (
            r"m\.parquet: not a manifest \(rows count from 0\): ",
            r"row 0 \('short'\) has 59 frame_labels for 60 frames: .*--verify",
            r"row 1 \('long'\) has 4 progress for 3 frames",
            r"row 3 \('twice'\) has the video_id of row 2: give each",
            r"row 4 \('none'\) has 0 frames",
            r"row 5 \('still'\) has frame_step nan",
            r"row 7 \('nameless'\) has 2 frame_times for 3 frames",
            r"row 7 \('nameless'\) has frame labels beyond its 3 phase_names",
            r"up to 1000000, which makes 1000001 classes of which 4 occur",
        ):
            assert re.search(said, str(caught.value)), said
    assert read_manifest(uri, check=False).num_rows == 8
    # Mended in the same place, it is read.
    write_table(table(row("short", num_frames=60, frame_times=None, frame_labels=None, progress=None)), uri)
    assert read_manifest(uri).num_rows == 1
    many = [row("same") for _ in range(20)]
    write_table(table(*many), uri)
    with pytest.raises(UserError, match=r"row 5 \('same'\) has the video_id of row 0, and 14 more: "):
        read_manifest(uri)


def test_values_that_cannot_be_are_listed_with_their_rows(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    wrong = [
        row("a"),
        row(video_id=None),
        row(" \r\n"),
        row("no frames", num_frames=None),
        row("no uri", uri=None),
        row("no step", frame_step=None),
        row("endless", frame_step=float("inf")),
        row("part", frame_labels=[0, 1.5, 2]),
        row("huge", frame_labels=[0, 1, 2**40]),
        row("below", progress=[0.0, -0.1, 1.0]),
        row("over", progress=[0.0, 0.1, float("inf")]),
        row("a\r"),
        row("many", num_frames=2.5),
    ]
    floats = pa.array([r["frame_labels"] for r in wrong], pa.list_(pa.float64()))
    bare = pa.Table.from_pylist([r | {"frame_labels": None} for r in wrong])
    pq.write_table(bare.set_column(bare.column_names.index("frame_labels"), "frame_labels", floats), uri)
    for check in (True, False):
        with pytest.raises(UserError) as caught:
            read_manifest(uri, check=check)
        assert "\n" not in str(caught.value)
        for said in (
            r"row 1 \(None\) has no video_id, row 2 \(None\) has no video_id: every video needs one",
            r"row 12 \('many'\) has num_frames 2\.5: expected int64",
            r"row 4 \('no uri'\) has no uri",
            r"row 5 \('no step'\) has no frame_step",
            r"row 6 \('endless'\) has frame_step inf",
            r"row 7 \('part'\) has frame_labels 1\.5, row 8 \('huge'\) has frame_labels 10995\d+\.0: expected int32",
            r"row 9 \('below'\) has progress -0\.1\d*, row 10 \('over'\) has progress inf: .*from 0 to 1",
            r"row 11 \('a'\) has the video_id of row 0: give each",
        ):
            assert re.search(said, str(caught.value)), (said, str(caught.value))
    write_table(table(row("a", num_frames=60, frame_labels=[-2] * 60), row("b\r")), uri)
    with pytest.raises(UserError, match=r"row 0 \('a'\) has frame_labels -2: classes count from 0") as caught:
        read_manifest(uri)
    write_table(table(row("a"), row("b\r")), uri)
    assert read_manifest(uri).column("video_id").to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("frame_labels", pa.array([1, 2]), r"frame_labels is of type int64: expected list<\w+: int32>"),
        ("progress", pa.array([0.5, 1]), r"progress is of type double: expected list<\w+: float>"),
        ("frame_labels", pa.array([{"a": 1}] * 2), "frame_labels is of type struct<a: int64>"),
        ("frame_labels", pa.array(["x", "y"]).dictionary_encode(), "frame_labels is of type dictionary"),
        ("frame_labels", pa.array([["up"], ["1"]]), r"row 0 \('a'\) has frame_labels 'up': expected int32"),
        ("label", pa.array([["up"]] * 2), "label is of type list<.*: expected string"),
        ("verified", pa.array(["true", "perhaps"]), r"row 1 \('b'\) has verified 'perhaps': expected bool"),
        ("fps", pa.array(["30", "?"]), r"row 1 \('b'\) has fps '\?': expected double"),
    ],
)
def test_columns_of_another_type_are_named(tmp_path: Path, name: str, values: pa.Array, said: str) -> None:
    whole = table(row("a", num_frames=0), row("b", num_frames=1))
    whole = whole.set_column(whole.column_names.index(name), name, values)
    pq.write_table(whole, tmp_path / "m.parquet")
    for check in (True, False):
        with pytest.raises(UserError, match=said) as caught:
            read_manifest(str(tmp_path / "m.parquet"), check=check)
        assert "row 0 ('a') has 0 frames" in str(caught.value) and "\n" not in str(caught.value)


def test_labels_are_cleaned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = str(tmp_path / "m.parquet")
    rows = [
        row("a", split=" Train\r", label="pour\r", frame_labels=[0, None, 2], progress=[0, None, 1]),
        row("b", split="TEST", label=" Pour ", frame_labels=None, progress=[0, float("nan"), 1]),
        row("c", split="", label="\r\n", frame_labels=[None] * 3, progress=None),
        row("d", split="Mine", label="pour"),
    ]
    write_table(table(*rows), uri)
    read = read_manifest(uri)
    assert read.schema.equals(SCHEMA)
    assert read.column("split").to_pylist() == ["train", "test", None, "Mine"]
    assert read.column("label").to_pylist() == ["pour", "Pour", None, "pour"]
    assert read.column("frame_labels").to_pylist() == [[0, -1, 2], None, [-1] * 3, [0, 1, -1]]
    assert read.column("progress").to_pylist() == [None, None, None, [0.0, 0.5, 1.0]]
    assert "label 'Pour' and 'pour' differ only by case" in capsys.readouterr().err
    assert read_manifest(uri, ["video_id"], split="train").column("video_id").to_pylist() == ["a", "c"]
    # As floating point with NaN, which is how pandas writes integers with gaps.
    floats = pa.array([[0.0, float("nan"), 2.0], [1.0, 1.0, 1.0], None, []], pa.list_(pa.float64()))
    pq.write_table(table(*rows).drop(["frame_labels"]).append_column("frame_labels", floats).slice(0, 3), uri)
    assert read_manifest(uri).column("frame_labels").to_pylist() == [[0, -1, 2], [1, 1, 1], None]


def test_a_table_in_memory_is_checked_as_a_file_is(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["video_id", "num_frames", "label", "frame_labels"]  # Any of the columns will do.
    good = table(row("a ", label=" pour\r"), row("b", label="Pour", frame_labels=[0, None, 2])).select(
        columns
    )
    cleaned, problems = check_columns(good, "labels.csv")
    assert not problems and cleaned.column_names == columns
    assert cleaned.column("video_id").to_pylist() == ["a", "b"]
    assert cleaned.column("label").to_pylist() == ["pour", "Pour"]
    assert cleaned.column("frame_labels").to_pylist() == [[0, 1, -1], [0, -1, 2]]
    assert "labels.csv: label 'Pour' and 'pour' differ only by case" in capsys.readouterr().err
    _, problems = check_columns(table(row("a"), row("a", num_frames=0)).select(columns), "labels.csv")
    assert [problem.split(":")[0] for problem in problems] == [
        "row 1 ('a') has the video_id of row 0",
        "row 1 ('a') has 0 frames",
        "row 1 ('a') has 3 frame_labels for 0 frames",
    ]


def test_a_row_without_a_value_of_a_column_of_fixed_size(tmp_path: Path) -> None:
    uri, rows = str(tmp_path / "m.parquet"), [row("a"), row("b"), row("c")]
    for name in ("frame_labels", "frame_times", "progress", "key_frames"):
        whole = table(*rows)
        values = pa.array([[0.0, 1.0, 1.0], None, [0.0, 1.0, 1.0]], pa.list_(pa.float64(), 3))
        whole = whole.set_column(whole.column_names.index(name), name, values)
        pq.write_table(whole, uri)
        assert read_manifest(uri).column(name).to_pylist() == [[0, 1, 1], None, [0, 1, 1]]
    # The bad row is named, though the one before it has values that do not count.
    write_table(table(row("a"), row("b", progress=[0, float("nan"), 1]), row("c", progress=[0, 0, 2])), uri)
    with pytest.raises(UserError, match=r"row 2 \('c'\) has progress 2:"):
        read_manifest(uri)
    values = pa.array([[0, 0, 0], None, [0, 0, -2]], pa.list_(pa.int32(), 3))
    whole = table(*rows)
    pq.write_table(whole.set_column(whole.column_names.index("frame_labels"), "frame_labels", values), uri)
    with pytest.raises(UserError, match=r"row 2 \('c'\) has frame_labels -2"):
        read_manifest(uri)


def test_nan_is_null(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    whole = table(row("a"), row("b"))
    for name in ("split", "label", "codec", "fps", "duration", "modified_ns"):
        floats = pa.array([float("nan"), 2.0])
        whole = whole.set_column(whole.column_names.index(name), name, floats)
    pq.write_table(whole, uri)
    read = read_manifest(uri)
    assert read.column("label").to_pylist() == [None, "2"]
    for name in ("split", "codec", "fps", "duration", "modified_ns"):
        assert read.column(name)[0].as_py() is None, name
    nameless = whole.set_column(1, "uri", pa.array([float("nan")] * 2))
    pq.write_table(nameless, uri)
    with pytest.raises(UserError, match=r"row 0 \('a'\) has no uri"):
        read_manifest(uri)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"fps": 0.0}, r"has fps 0\.0: expected a finite number above 0 or null"),
        ({"fps": -25.0}, r"has fps -25\.0: expected"),
        ({"fps": float("inf")}, "has fps inf: expected"),
        ({"duration": -1.0}, r"has duration -1\.0: expected"),
        ({"frame_times": [0.0, 0.2, 0.1]}, "has frame_times that decrease: sort them"),
        ({"key_frames": [0, 3]}, "has key_frames 3: they count the frames of the video from 0"),
        ({"key_frames": [-1]}, "has key_frames -1: they count"),
        ({"uri": ""}, "has no uri: every video needs one"),
        ({"uri": " "}, "has no uri: every video needs one"),
    ],
)
def test_numbers_and_places_that_no_video_has(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    uri = str(tmp_path / "m.parquet")
    write_table(table(row("good", key_frames=[2]), row("bad", **values)), uri)
    with pytest.raises(UserError, match=rf"row 1 \('bad'\) {said}"):
        read_manifest(uri)


def test_splits_are_those_of_folders(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    names = {"VAL": "validation", "Valid ": "validation", "dev": "validation", "testing": "test"}
    names |= {"Training": "train", "mine": "mine"}
    write_table(table(*(row(name, split=name) for name in names)), uri)
    assert read_manifest(uri).column("split").to_pylist() == [*names.values()]
    assert read_manifest(uri, split="val").num_rows == 3


def test_blanks_around_phase_names_are_removed(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    write_table(table(row("a", phase_names=["reach\r", " lift", "hold"]), row("b", phase_names=None)), uri)
    read = read_manifest(uri)
    assert read.schema.equals(SCHEMA)
    assert read.column("phase_names").to_pylist() == [["reach", "lift", "hold"], None]


def test_the_video_of_an_absurd_class_is_named(tmp_path: Path) -> None:
    write_table(table(row("a"), row("b", frame_labels=[0, 10**6, 2], phase_names=None)), str(tmp_path / "m"))
    with pytest.raises(UserError, match=r"go up to 1000000, .* of which 4 occur \(row 1, 'b'\): number"):
        read_manifest(str(tmp_path / "m"))


@pytest.mark.parametrize("type_", [pa.null(), pa.dictionary(pa.int8(), pa.string()), pa.large_string()])
def test_a_column_without_a_value_is_null_whatever_its_type(tmp_path: Path, type_: pa.DataType) -> None:
    plain = table(row("a", label=None), row("b", label=None))
    for name in ("split", "label"):
        plain = plain.set_column(plain.column_names.index(name), name, pa.nulls(2, type_))
    pq.write_table(plain, tmp_path / "m.parquet")
    for split, count in (("train", 2), ("test", 0)):
        read = read_manifest(str(tmp_path / "m.parquet"), split=split)
        assert read.schema.equals(SCHEMA) and read.num_rows == count
        assert read.column("label").null_count == count


def test_the_first_difference_is_named() -> None:
    before = table(row("a"), row("b", label="x"), row("c"))
    assert first_difference(before, before) is None
    for after, said in (
        (
            table(row("a"), row("b", label="y"), row("c", uri="/elsewhere")),
            "video 'c': uri was '/videos/c.mp4', is",
        ),
        (table(row("a"), row("b", label="y"), row("c")), "video 'b': label was 'x', is now 'y'"),
        (table(row("a"), row("c"), row("b")), "video 'b': video_id was 'b', is now 'c'"),
        (table(row("a"), row("b", label="x")), "3 videos before, now 2"),
        (
            table(row("a", frame_labels=[0, 2, -1]), row("b", label="x"), row("c")),
            "'a': frame 1: frame_labels was 1,",
        ),
        (
            table(row("a", frame_labels=None), row("b", label="x"), row("c")),
            "frame_labels was 3 values, is now None",
        ),
    ):
        assert said in str(first_difference(before, after))
