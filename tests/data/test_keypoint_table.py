"""`carl_ray.data.keypoint_table`: rows join by id and content, and a run reads one video of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carl_ray.data.features import open_parquet
from carl_ray.data.keypoint_table import (
    GROUP,
    PART,
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
def folder(tmp_path: Path) -> str:
    """Keypoints of 5 videos in two parts; nobody is in the last one."""
    uri = str(tmp_path / "keypoints")
    arrays = [keypoints(number, score=number < 4) for number in range(5)]
    add_keypoints(uri, videos(5).slice(0, 3), arrays[:3], "fake", "1")
    add_keypoints(uri, videos(5).slice(3), arrays[3:], "fake", "1")
    return uri


def located(folder: str, **columns: list) -> list[tuple[str | None, int | None]]:
    """Names of the parts and numbers of the groups of five videos."""
    table = locate_keypoints(videos(5, **columns), folder, "validation")
    parts = [None if uri is None else Path(uri).name for uri in table.column(PART).to_pylist()]
    return list(zip(parts, table.column(GROUP).to_pylist(), strict=True))


FIRST, SECOND = "part-00000.parquet", "part-00001.parquet"
PLACES = [(FIRST, 0), (FIRST, 1), (FIRST, 2), (SECOND, 0), (None, None)]


def test_a_run_reads_the_video_of_a_sample_alone(folder, monkeypatch, capsys) -> None:
    monkeypatch.chdir(Path(folder).parent)
    table = locate_keypoints(videos(5), "keypoints")  # decoding tasks have other working directories
    assert table.column(PART)[3].as_py() == f"{folder}/{SECOND}"
    digests = table.column("keypoints_digest").to_pylist()
    assert len(set(digests)) == 5 and digests[4] is None
    assert capsys.readouterr().err == "1 of 5 training videos have no keypoints of a person\n"
    assert located(folder) == PLACES
    groups: list[int] = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, names: groups.append(group) or read(self, group, names),
    )
    for number in (1, 3):
        found = read_keypoints(f"{folder}/{PLACES[number][0]}", PLACES[number][1])
        assert found.dtype == np.float16 and found.shape == (NUM_FRAMES, 17, 3)
        np.testing.assert_array_equal(found.reshape(NUM_FRAMES, -1), keypoints(number))
    assert groups == [1, 0]


def test_rows_of_other_content_or_length_count_as_missing(folder) -> None:
    hashes = ["h0", "other", "h2", "h3", "h4"]
    expected = [PLACES[0], (None, None), (None, None), *PLACES[3:]]
    assert located(folder, content_hash=hashes, num_frames=[3, 3, 4, 3, 3]) == expected
    strange = videos(3, content_hash=["h0", "x", "y"])
    with pytest.raises(
        UserError, match=r"2 of 3 training videos have no keypoints .* --data.keypoints FOLDER names"
    ):
        locate_keypoints(strange, folder)


def test_the_last_part_counts(folder) -> None:
    """A video estimated again; one that has another content keeps its older row."""
    changed = pa.concat_tables([videos(2).slice(1), videos(1, content_hash=["new"])])
    add_keypoints(folder, changed, [keypoints(40, score=0), keypoints(50)], "fake", "1")
    assert located(folder) == [PLACES[0], (None, None), *PLACES[2:]]
    assert located(folder, content_hash=["new", "h1", "h2", "h3", "h4"])[0] == ("part-00002.parquet", 1)
    assert read_keypoint_table(folder, ["video_id"]).num_rows == 7


def test_what_holds_no_keypoints_is_refused(tmp_path) -> None:
    uri = str(tmp_path / "k")
    with pytest.raises(UserError, match=r"/k: no keypoints there; `carl-ray poses MANIFEST --out FOLDER`"):
        locate_keypoints(videos(2), uri)
    part = tmp_path / "k" / FIRST
    part.parent.mkdir()
    for write in (lambda: part.write_text("no"), lambda: pq.write_table(pa.table({"video_id": ["a"]}), part)):
        write()
        for read in (read_keypoint_table, lambda uri: locate_keypoints(videos(2), uri)):
            with pytest.raises(UserError, match=r"part-00000\.parquet: not a part of keypoints"):
                read(uri)
        open_parquet.cache_clear()


def test_a_file_in_the_place_of_the_folder(tmp_path) -> None:
    (tmp_path / "k.parquet").write_text("")
    for read in (read_keypoint_table, lambda uri: locate_keypoints(videos(2), uri)):
        with pytest.raises(UserError, match=r"k\.parquet: expected a folder of keypoints, found a file"):
            read(str(tmp_path / "k.parquet"))
