"""`carl_ray.data.manifest`: what is written is read, and nothing else is taken for a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carl_ray.data.manifest import REJECTS_SCHEMA, SCHEMA, read_manifest, write_table
from carl_ray.errors import RunError, UserError


def row(video_id: str = "a", **values: Any) -> dict[str, Any]:
    return {
        "video_id": video_id,
        "uri": f"/videos/{video_id}.mp4",
        "num_frames": 3,
        "fps": 29.97,
        "width": 64,
        "height": 48,
        "rotation": 90,
        "duration": 0.1,
        "codec": "h264",
        "bytes": 1000,
        "modified_ns": 1_700_000_000_123_456_789,
        "content_hash": "00",
        "verified": True,
        "frame_step": 1.0,
        "split": None,
        "label": None,
        "frame_labels": [0, 1, -1],
        "progress": [0.0, 0.5, 1.0],
    } | values


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
    for split, expected in {"train": "acd", "test": "b", "Train": "e", "validation": ""}.items():
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
    write_table(table(row(), row(video_id="b")).drop(["split", "progress"]), uri)
    for split in (None, "train"):
        read = read_manifest(uri, split=split)
        assert set(read.column_names) == set(SCHEMA.names)
        assert read.column("progress").to_pylist() == read.column("split").to_pylist() == [None, None]
    assert read_manifest(uri, ["video_id"], split="test").num_rows == 0


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
