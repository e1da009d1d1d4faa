"""`carl_ray.datasets.pouring`: TFRecords as the TCC authors publish them, with the traps of real ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from carl_ray import storage
from carl_ray.data.decode import probe_video, read_frames
from carl_ray.data.manifest import SCHEMA, read_manifest
from carl_ray.datasets import pouring
from carl_ray.errors import UserError
from tests.samples import failure

Make = Callable[..., bytes]


@pytest.fixture
def record(jpeg: Make, sequence_example: Make) -> Make:
    """A function that makes one record of the data set."""

    def make(
        name: str | bytes, num_frames: int = 4, labels: list[int] | None = None, **changes: object
    ) -> bytes:
        frames = [jpeg(number) for number in range(num_frames)]
        labels = [min(number, 4) for number in range(num_frames)] if labels is None else labels
        context = {"name": name.encode() if isinstance(name, str) else name, "len": num_frames, "label": -1}
        lists = {"video": frames, "frame_labels": labels}
        lists.update({key: value for key, value in changes.items() if key in lists})
        context.update({key: value for key, value in changes.items() if key not in lists})
        return sequence_example(context, lists)

    return make


@pytest.fixture
def raw(tmp_path: Path, record: Make, write_tfrecord: Callable[..., Path]) -> Path:
    folder = tmp_path / "Gießen"
    write_tfrecord(folder / "pouring_val-0-of-1.tfrecord", [record("creamer to clear0", 6), record("b", 5)])
    write_tfrecord(folder / "pouring_train-1-of-2.tfrecord", [record("größe_木", 3)])
    write_tfrecord(folder / "pouring_train-0-of-2.tfrecord", [record("b", 4), record("a", 5)])
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "._pouring_val-0-of-1.tfrecord").write_bytes(b"\0")
    (folder / "pouring_val-0-of-1.tfrecord.1").write_bytes(b"half a download")
    return folder


def test_records_become_videos_with_labels(raw: Path, jpeg: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    conversion = pouring.convert(raw, str(out))
    assert conversion.labels.to_pylist() == [
        {"video_id": video_id, "split": split, "label": "pouring", "frame_labels": labels}
        for video_id, split, labels in [
            ("test/b.mp4", "test", [0, 1, 2, 3, 4]),
            ("test/creamer to clear0.mp4", "test", [0, 1, 2, 3, 4, 4]),
            ("train/a.mp4", "train", [0, 1, 2, 3, 4]),
            ("train/b.mp4", "train", [0, 1, 2, 3]),
            ("train/größe_木.mp4", "train", [0, 1, 2]),
        ]
    ]
    assert (conversion.left_out, conversion.mended) == ({}, {})
    probe = probe_video(str(out / "train" / "größe_木.mp4"), verify=True)
    assert (probe.num_frames, probe.width, probe.height, probe.codec) == (3, 24, 16, "mjpeg")
    frames = read_frames(str(out / "train" / "a.mp4"), range(5))
    expected = [number * 37 % 256 for number in range(5)]
    assert np.abs(frames[:, :, :, 0].astype(int) - np.reshape(expected, (5, 1, 1))).max() <= 3


def test_traps_are_left_out_or_mended_and_counted(
    raw: Path, record: Make, jpeg: Make, write_tfrecord: Callable[..., Path], tmp_path: Path
) -> None:
    write_tfrecord(
        raw / "pouring_train-1-of-2.tfrecord",
        [
            record("good"),
            record("../../escape"),
            record("inner/folder"),
            record(".hidden"),
            record(b"\xff\xfe"),
            record(""),
            record("a", 7),
            record("empty", 0),
            record("text", video=[1, 2]),
            record("sizes", video=[jpeg(0), jpeg(1, 32, 16)]),
            record("broken", video=[jpeg(0), jpeg(1)[:-2]]),
            record("sixth phase", labels=[0, 1, 4, 5]),
            record("long", 3, labels=[0, 1, 2, 3]),
            record("short", 3, labels=[0, 1]),
            record("other", 2, labels=[0, 0, 1, 1]),
            record("unlabelled", 2, labels=[]),
            record("length", 2, len=9),
        ],
    )
    out = tmp_path / "out"
    conversion = pouring.convert(raw, str(out))
    shard = "pouring_train-1-of-2.tfrecord"
    assert conversion.left_out == {
        "its name cannot be that of a file": [f"{shard}:{number}" for number in (1, 2, 3, 4, 5)],
        "another record of its split has the same name": ["train/a"],
        "it has no frames": ["train/empty", "train/text"],
        "frame 1 has 32 x 16 pixels, the first one 24 x 16": ["train/sizes"],
        "frame 1 is a damaged JPEG file: its end is missing": ["train/broken"],
        "a phase label is outside 0 to 4": ["train/sixth phase"],
    }
    assert conversion.mended == {
        "one label too many, dropped": ["train/long.mp4"],
        "one label too few, the last frame has none": ["train/short.mp4"],
        "labels of another number of frames, stretched": ["train/other.mp4"],
        "no frame labels": ["train/unlabelled.mp4"],
        "`len` is not the number of frames": ["train/length.mp4"],
    }
    labels = {row["video_id"]: row["frame_labels"] for row in conversion.labels.to_pylist()}
    assert labels["train/a.mp4"] == [0, 1, 2, 3, 4]  # of the first record with that name
    assert labels["train/long.mp4"] == [0, 1, 2]
    assert labels["train/short.mp4"] == [0, 1, -1]
    assert labels["train/other.mp4"] == [0, 1]
    assert labels["train/unlabelled.mp4"] is None
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == labels.keys()


def test_a_damaged_file_ends_the_conversion(raw: Path, tmp_path: Path) -> None:
    path = raw / "pouring_val-0-of-1.tfrecord"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"pouring_val-0-of-1\.tfrecord: damaged record at byte [1-9]"):
        pouring.convert(raw, str(tmp_path / "out"))


def test_missing_files_are_named(raw: Path, tmp_path: Path) -> None:
    for name in ("pouring_train-0-of-2.tfrecord", "pouring_val-0-of-1.tfrecord"):
        (raw / name).unlink()
    named = r"there is no pouring_train-0-of-2\.tfrecord, pouring_val-0-of-1\.tfrecord$"
    for folder in (raw, raw / "nowhere"):
        with pytest.raises(UserError, match=named if folder == raw else "there is no pouring_train-0"):
            pouring.convert(folder, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command_makes_a_manifest(
    raw: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    pouring.main([str(raw), "--out", str(out)])
    manifest = read_manifest(str(out / "manifest.parquet"))
    assert pq.read_schema(out / "manifest.parquet").equals(SCHEMA)
    rows = {row["video_id"]: row for row in manifest.to_pylist()}
    assert {
        video_id: (row["split"], row["label"], row["num_frames"], row["frame_labels"])
        for video_id, row in rows.items()
    } == {
        "test/b.mp4": ("test", "pouring", 5, [0, 1, 2, 3, 4]),
        "test/creamer to clear0.mp4": ("test", "pouring", 6, [0, 1, 2, 3, 4, 4]),
        "train/a.mp4": ("train", "pouring", 5, [0, 1, 2, 3, 4]),
        "train/b.mp4": ("train", "pouring", 4, [0, 1, 2, 3]),
        "train/größe_木.mp4": ("train", "pouring", 3, [0, 1, 2]),
    }
    assert rows["train/a.mp4"]["fps"] == 25 and rows["train/a.mp4"]["progress"] is None
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines() if line.startswith(("train", "test"))] == [
        ["train", "3", "70", "12", "12"],
        ["test", "2", "14", "11", "11"],
    ]
    # Again, with a stray video in the folder: the manifest is the same.
    shutil.copy(out / "train" / "a.mp4", out / "train" / "stray.mp4")
    pouring.main([str(raw), "--out", str(out)])
    assert read_manifest(str(out / "manifest.parquet")) == manifest
    # A video of another download with the same name.
    shutil.copy(out / "train" / "b.mp4", out / "train" / "a.mp4")
    status, line = failure(capsys, pouring.main, str(raw), "--out", str(out))
    assert status == 1 and "train/a.mp4" in line and "has 5 frame_labels for 4 frames" in line
    (out / "train" / "a.mp4").write_bytes(b"no video")
    status, line = failure(capsys, pouring.main, str(raw), "--out", str(out))
    assert status == 1 and "train/a.mp4: the video cannot be read (" in line and "it is gone" not in line


def test_the_folder_may_be_in_an_object_store(
    raw: Path,
    record: Make,
    write_tfrecord: Callable[..., Path],
    s3_endpoint: str,
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_tfrecord(raw / "pouring_train-1-of-2.tfrecord", [record("größe 100%25#?_木", 3)])
    store = fs.S3FileSystem(endpoint_override=s3_endpoint, scheme="http", allow_bucket_creation=True)
    store.create_dir("kitchen")
    out = f"s3://kitchen/cups?endpoint_override={s3_endpoint}&scheme=http"
    for _ in range(2):
        pouring.main([str(raw), "--out", out])
        manifest = read_manifest(storage.join(out, "manifest.parquet"))
        assert dict(
            zip(*(manifest.column(name).to_pylist() for name in ("video_id", "split")), strict=True)
        ) == {
            "test/b.mp4": "test",
            "test/creamer to clear0.mp4": "test",
            "train/a.mp4": "train",
            "train/b.mp4": "train",
            "train/größe 100%25#?_木.mp4": "train",
        }
        uris = dict(zip(*(manifest.column(name).to_pylist() for name in ("video_id", "uri")), strict=True))
        assert read_frames(uris["train/größe 100%25#?_木.mp4"], [0, 2]).shape == (2, 16, 24, 3)
    written = [info for info in store.get_file_info(fs.FileSelector("kitchen/cups/train")) if info.is_file]
    assert len(written) == 3
