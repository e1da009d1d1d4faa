"""`carl_ray.data.keypoint_table`: rows join by id and content, and a run reads one video of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carl_ray.data import keypoint_table
from carl_ray.data.keypoint_table import (
    add_keypoints,
    locate_keypoints,
    read_keypoint_table,
    read_keypoints,
)
from carl_ray.errors import UserError

NUM_FRAMES = 3


def keypoints(number: int, score: float = 1.0) -> np.ndarray:
    """Of a video; no two are equal."""
    found = np.full((NUM_FRAMES, 17, 3), number / 64, np.float16)
    found[..., 2] = score
    return found.reshape(NUM_FRAMES, -1)


def videos(count: int, **columns: list) -> pa.Table:
    table = {
        "video_id": [f"v{number:02d}" for number in range(count)],
        "content_hash": [f"h{number}" for number in range(count)],
        "num_frames": [NUM_FRAMES] * count,
    }
    return pa.table(table | columns)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A table of 20 videos in three row groups; nobody is in the last one."""
    uri = str(tmp_path / "keypoints.parquet")
    arrays = [keypoints(number, score=number < 19) for number in range(20)]
    add_keypoints(uri, videos(20), arrays, "fake", "1")
    return uri


def test_a_run_reads_the_video_of_a_sample_alone(table, monkeypatch, capsys) -> None:
    located = locate_keypoints(videos(20), table)
    assert located.column("keypoints_group").to_pylist() == [0] * 8 + [1] * 8 + [2] * 3 + [None]
    digests = located.column("keypoints_digest").to_pylist()
    assert len(set(digests)) == 20 and digests[19] is None
    assert capsys.readouterr().err == "1 of 20 training videos have no keypoints of a person\n"
    groups: list[int] = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, names: groups.append(group) or read(self, group, names),
    )
    for number in (9, 18):
        found = read_keypoints(table, number // 8, f"v{number:02d}")
        assert found.dtype == np.float16 and found.shape == (NUM_FRAMES, 17, 3)
        np.testing.assert_array_equal(found.reshape(NUM_FRAMES, -1), keypoints(number))
    assert groups == [1, 2]


def test_rows_of_other_content_or_length_count_as_missing(table, capsys) -> None:
    hashes = ["h0", "other", *(f"h{number}" for number in range(2, 6))]
    located = locate_keypoints(videos(6, content_hash=hashes, num_frames=[3, 3, 4, 3, 3, 3]), table)
    assert located.column("keypoints_group").to_pylist() == [0, None, None, 0, 0, 0]
    assert capsys.readouterr().err == "2 of 6 training videos have no keypoints of a person\n"
    strange = videos(3, content_hash=["h0", "x", "y"])
    with pytest.raises(
        UserError, match=r"2 of 3 training videos have no keypoints .* --data.keypoints TABLE names"
    ):
        locate_keypoints(strange, table)
    assert locate_keypoints(strange, table, "validation").column("keypoints_group").null_count == 2


def test_a_table_that_is_replaced_during_a_run(table) -> None:
    """Rows are found again where their group is the same, and never taken for those of another video."""
    np.testing.assert_array_equal(read_keypoints(table, 1, "v09")[0, 0], [9 / 64, 9 / 64, 1])
    new = videos(1).set_column(0, "video_id", pa.array(["a"]))
    add_keypoints(table, new, [keypoints(33)], "fake", "1")
    assert read_keypoints(table, 0, "a")[0, 0, 0] == np.float16(33 / 64)
    for group in (0, 7):
        with pytest.raises(UserError, match="its rows are not those of the start of the run; start it again"):
            read_keypoints(table, group, "v09")


def test_a_row_replaces_that_of_the_same_id(table) -> None:
    add_keypoints(table, videos(1, content_hash=["new"]), [keypoints(50)], "fake", "1")
    whole = read_keypoint_table(table)
    assert whole.num_rows == 20 and whole.column("content_hash")[0].as_py() == "new"
    assert whole.schema.equals(keypoint_table.SCHEMA)


@pytest.mark.parametrize("content", ["text", "another table"])
def test_what_is_no_table_is_refused(tmp_path, content) -> None:
    path = tmp_path / "k.parquet"
    with pytest.raises(UserError, match=r"k.parquet: no table of keypoints there; `carl-ray poses"):
        locate_keypoints(videos(2), str(path))
    if content == "text":
        path.write_text("no")
    else:
        pq.write_table(pa.table({"video_id": ["v00"]}), path)
    for read in (read_keypoint_table, lambda uri: locate_keypoints(videos(2), uri)):
        with pytest.raises(UserError, match=r"k\.parquet: not a table of keypoints"):
            read(str(path))
