"""Small copies of videos have their frames at their times, and their ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.data import Dataset

from carl_ray import index, storage
from carl_ray.data import prepare
from carl_ray.data.decode import DecodeError, probe_video, read_frames
from carl_ray.data.manifest import SCHEMA, read_manifest, write_table
from carl_ray.errors import RunError, UserError
from tests.samples import failure, manifest_row

VARIABLE = [0, 1, 2, 5, 9, 10, 11, 30, 31, 33, 34, 40]


@pytest.mark.parametrize(
    ("width", "height", "size"), [(455, 256, (456, 256)), (64, 48, (64, 48)), (300, 540, (256, 462))]
)
def test_a_copy_has_the_frames_at_their_times(
    make_video: Callable[..., Path],
    frame_numbers: Callable[[np.ndarray], list[int]],
    tmp_path: Path,
    width: int,
    height: int,
    size: tuple[int, int],
) -> None:
    path = str(make_video(tmp_path / "v.mp4", 12, width, height, pixel_format="yuv444p", pts=VARIABLE))
    original = probe_video(path, verify=True)
    short_side = min(width, height, prepare.SHORT_SIDE)
    content = prepare.encode_copy(path, original.frame_times, short_side)
    copy = probe_video(content)
    assert (copy.num_frames, copy.width, copy.height, copy.doubtful) == (12, *size, False)
    assert prepare._copy_size(width, height) == size
    np.testing.assert_allclose(copy.frame_times, np.array(VARIABLE) / 30, atol=2e-5)
    assert frame_numbers(read_frames(content, np.arange(12))) == list(range(12))
    theirs = read_frames(path, [11], short_side=short_side).astype(int)
    assert np.abs(read_frames(content, [11])[:, : theirs.shape[1], : theirs.shape[2]] - theirs).mean() < 3


@pytest.mark.parametrize("num_frames", [11, 13])
def test_another_number_of_frames_is_no_copy(
    make_video: Callable[..., Path], tmp_path: Path, num_frames: int
) -> None:
    path = str(make_video(tmp_path / "v.mp4", 12))
    with pytest.raises(DecodeError, match=rf"^{num_frames} frames were expected, but "):
        prepare.encode_copy(path, np.arange(num_frames) / 30, 48)


def test_times_that_stand_still_ascend_by_a_tick(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = str(make_video(tmp_path / "v.mp4", 4))
    content = prepare.encode_copy(path, np.array([0.0, 0.1, 0.1, 0.2]), 48)
    assert (np.diff(probe_video(content).frame_times) > 0).all()


def test_prepare_makes_what_is_missing_and_keeps_what_identifies_a_video(
    make_video: Callable[..., Path],
    ray_session: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, copies, out = tmp_path / "videos", tmp_path / "copies", str(tmp_path / "m.parquet")
    make_video(folder / "train" / "a b%#?.mp4", 12, 640, 360, pts=VARIABLE)
    make_video(folder / "b.mkv", 20)
    make_video(folder / "c.mp4", 20)
    command = [str(folder), "--out", out, "--prepare", str(copies)]
    index.main(command)
    assert "copies of 3 of 3 videos: " in capsys.readouterr().out
    original, copied = read_manifest(out), read_manifest(str(copies / "manifest.parquet"))
    changed = {"uri", "bytes", "modified_ns", "codec", "rotation", "verified", "width", "height"}
    same = [name for name in original.column_names if name not in changed]
    assert copied.select(same).equals(original.select(same))
    for row in copied.to_pylist():
        assert probe_video(row["uri"]).num_frames == row["num_frames"]
        assert (Path(row["uri"]).stat().st_size, row["verified"]) == (row["bytes"], True)
    assert copied.column("width").to_pylist() == [64, 64, 456]

    # Again: copies that are there stay, a missing one is made, and what cannot be copied is said.
    times = {row["uri"]: Path(row["uri"]).stat().st_mtime_ns for row in copied.to_pylist()}
    first, second, _ = copied.column("uri").to_pylist()
    Path(second).unlink()
    Path(original.column("uri")[1].as_py()).unlink()
    prepared, rejects, _ = prepare.prepare_videos(original, str(copies))
    assert prepared.column("uri").to_pylist() == [first, *copied.column("uri").to_pylist()[2:]]
    assert {
        uri: Path(uri).stat().st_mtime_ns for uri in prepared.column("uri").to_pylist()
    }.items() <= times.items()
    assert rejects.column("reason").to_pylist() == ["no such file"]


def test_long_videos_reserve_memory_of_their_own(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, head = {"CPU": 2.0, "memory": 2 << 30}, {"memory": 64 << 30}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": own} for own in (head, worker)])
    reserved, map_rows = [], Dataset.map

    def noted(self: Dataset, function: object, *, memory: int) -> Dataset:
        reserved.append(memory)
        return map_rows(self, function)

    monkeypatch.setattr(Dataset, "map", noted)
    rows = [
        manifest_row(f"{name}.mp4", uri=str(tmp_path / name), num_frames=frames)
        for name, frames in (("minute", 1800), ("hour", 54_000), ("day", 2_000_000), ("second", 30))
    ]
    _, rejects, _ = prepare.prepare_videos(
        pa.Table.from_pylist(rows, schema=SCHEMA), str(tmp_path / "copies")
    )
    usual, hour = ((480 << 20) + 3 * 4096 * frames for frames in (1800, 54_000))
    assert reserved == [2 << 30, hour, usual]
    assert set(rejects.column("reason").to_pylist()) == {"no such file"} and len(rejects) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--prepare copies", "name FOLDER and --out"),
        # Else the next index would take copies of test videos for training videos.
        ("videos --out m.parquet --prepare videos/copies", "expected a folder outside the indexed one"),
        ("videos --out copies/manifest.parquet --prepare copies", "--out: expected another folder"),
    ],
)
def test_copies_that_cannot_be(
    words: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    status, line = failure(capsys, index.main, *words.split())
    assert status == 2 and said in line


def test_copies_of_other_videos_are_kept(tmp_path: Path) -> None:
    of_a, of_b = (
        pa.Table.from_pylist([manifest_row(name, uri=str(tmp_path / name))], schema=SCHEMA) for name in "ab"
    )
    write_table(of_a, str(tmp_path / "copies" / "manifest.parquet"))
    with pytest.raises(UserError, match=r"manifest.parquet: copies of other videos; name another folder"):
        prepare.prepare_videos(of_b, str(tmp_path / "copies"))


def test_a_store_that_refuses_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(storage, "persistently", refuse)
    with pytest.raises(RunError, match=r"a.mp4: could not look at it"):
        prepare._size(str(tmp_path / "a.mp4"))
