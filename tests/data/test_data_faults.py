"""What a folder may hold beside sound videos, through the processes that index and train: frames or a reason."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from carl_ray.config import AugmentConfig, Config, DataConfig, ModelConfig
from carl_ray.data import stream
from carl_ray.data.child import BadVideoError
from carl_ray.data.decode import DecodeError, read_frames
from carl_ray.data.guard import ViewReader
from carl_ray.data.probing import probe_guarded
from carl_ray.data.sample import sample_spec
from carl_ray.errors import RunError
from tests.samples import make_crops, video_row

CONFIG = Config(
    preset="test",
    data=DataConfig(short_side=32),
    augment=AugmentConfig(image_size=24),
    model=ModelConfig(num_frames=8, backbone="small", weights="random"),
)


@pytest.fixture(scope="module")
def reader() -> Iterator[ViewReader]:
    reader = ViewReader()
    yield reader
    reader.close()


def probe(path: Path, *, verify: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        return probe_guarded(file, path.stat().st_size, verify=verify)


def remux(source: Path, target: Path, **options: str) -> Path:
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return target


def assert_read(path: Path, num_frames: int, reader: ViewReader) -> None:
    """The views of the guarded process are those made here, from all frames of the video."""
    pair = reader.read(video_row(str(path), "v", num_frames, 1.0), 0, sample_spec(CONFIG))["crops"]
    here = make_crops(str(path), "v", num_frames, 1.0, 0, CONFIG)
    np.testing.assert_array_equal(pair.pixels, here.pixels)


@pytest.mark.parametrize("name", ["mkv.mp4", "mp4.avi", "ts.mkv", "webm.mov", "mp4.TXT"])
def test_a_wrong_extension_does_not_matter(
    name: str, make_video: Callable[..., Path], frame_numbers: Any, tmp_path: Path, reader: ViewReader
) -> None:
    codec = "libvpx" if name.startswith("webm") else "libx264"
    path = make_video(tmp_path / f"v.{name.partition('.')[0]}", 20, codec=codec).rename(tmp_path / name)
    assert probe(path, verify=True)["num_frames"] == 20
    assert frame_numbers(read_frames(str(path), range(20))) == list(range(20))
    assert_read(path, 20, reader)


def _picture() -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    "content,reason",
    [
        (b"<!DOCTYPE html><title>404 Not Found</title>", "not a video that can be opened"),
        (b"1\n00:00:01,000 --> 00:00:02,000\nHello.\n\n", "(not a video|no video stream)"),
        (b"PK\3\4" + bytes(100), "not a video that can be opened"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "not a video that can be opened",
        ),
        (bytes(5000), "not a video that can be opened"),
        (b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\1free" + b"\xff" * 50, "truncated"),
        (b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\1moov\1" + bytes(50), "no video stream"),
        (_picture(), "(not a video that can be opened|frame 4 was asked for, but only 1 frames decode)"),
    ],
)
def test_what_is_no_video_says_so(content: bytes, reason: str, tmp_path: Path, reader: ViewReader) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(content)
    if "asked" not in reason:
        assert re.match(reason, probe(path)["reason"])
    with pytest.raises(BadVideoError, match=f"^{reason}"):
        reader.read(video_row(str(path), "v", 5, 1.0), 0, sample_spec(CONFIG))


def test_encrypted_says_so(make_video: Callable[..., Path], tmp_path: Path, reader: ViewReader) -> None:
    path = remux(
        make_video(tmp_path / "v.mp4", 20),
        tmp_path / "encrypted.mp4",
        encryption_scheme="cenc-aes-ctr",
        encryption_key="76a6c65c5ea762046bd749a2e632ccbb",
        encryption_kid="a7e61c373e219033c21091fa607bf3b8",
    )
    assert probe(path) == {"reason": "encrypted"}
    with pytest.raises(BadVideoError, match=r"^encrypted$"):
        reader.read(video_row(str(path), "v", 20, 1.0), 0, sample_spec(CONFIG))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_no_frames_is_a_reason(suffix: str, tmp_path: Path, reader: ViewReader) -> None:
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    found = probe(path)
    assert found.keys() == {"reason"}
    with pytest.raises(BadVideoError) as caught:
        reader.read(video_row(str(path), "v", 5, 1.0), 0, sample_spec(CONFIG))
    assert str(caught.value) == found["reason"]


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_truncated_gives_what_is_there(
    suffix: str, make_video: Callable[..., Path], frame_numbers: Any, tmp_path: Path, reader: ViewReader
) -> None:
    path = make_video(tmp_path / f"v.{suffix}", 60, gop=10, b_frames=0)
    if suffix == "mp4":  # else its table of frames is lost
        path = remux(path, tmp_path / "fast.mp4", movflags="faststart")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    count = probe(path, verify=True)["num_frames"]
    assert 10 < count < 55
    assert frame_numbers(read_frames(str(path), range(count - 1))) == list(range(count - 1))
    assert_read(path, count, reader)
    with pytest.raises(BadVideoError, match=rf"^frame \d+ was asked for, but only {count} frames decode"):
        reader.read(video_row(str(path), "v", 1000, 1.0), 0, sample_spec(CONFIG))


def test_flipped_bits_give_frames_or_a_reason(
    make_video: Callable[..., Path], tmp_path: Path, reader: ViewReader
) -> None:
    content = make_video(tmp_path / "v.mp4", 60, gop=10).read_bytes()
    path = tmp_path / "flipped.mp4"
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        damaged = bytearray(content)
        for at in rng.integers(len(content), size=20):
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        found = probe(path)
        seen.add(found.keys() == {"reason"})
        if "reason" not in found:
            try:
                here = make_crops(str(path), "v", found["num_frames"], 1.0, 0, CONFIG)
            except DecodeError as error:
                with pytest.raises(BadVideoError) as caught:
                    reader.read(video_row(str(path), "v", found["num_frames"], 1.0), 0, sample_spec(CONFIG))
                assert str(caught.value) == str(error)
            else:
                pair = reader.read(
                    video_row(str(path), "v", found["num_frames"], 1.0), 0, sample_spec(CONFIG)
                )["crops"]
                np.testing.assert_array_equal(pair.pixels, here.pixels)
    assert seen == {True, False}


def test_an_hour_is_read_like_a_second(
    make_video: Callable[..., Path], frame_numbers: Any, tmp_path: Path, reader: ViewReader
) -> None:
    second = make_video(tmp_path / "second.mp4", 30, 16, 16, gop=30, b_frames=0)
    path = tmp_path / "hour.mp4"
    with av.open(str(second)) as old, av.open(str(path), "w") as new:
        packets = [(bytes(p), p.is_keyframe) for p in old.demux(video=0) if p.size]
        stream = new.add_stream_from_template(old.streams.video[0])
        for number in range(108_000):
            content, is_key = packets[number % 30]
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 30), is_key
            packet.pts = packet.dts = number
            packet.duration = 1
            new.mux(packet)
    found = probe(path)
    assert (found["num_frames"], found["duration"]) == (108_000, 3600)
    assert frame_numbers(read_frames(str(path), [107_999, 54_017, 0])) == [29, 17, 0]
    assert reader.read(video_row(str(path), "v", 108_000, 1.0), 0, sample_spec(CONFIG))["crops"].mask.all()


def test_8k_fits_in_the_memory_of_a_video(tmp_path: Path, reader: ViewReader) -> None:
    path = tmp_path / "8k.mp4"
    levels = [40, 120, 200]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 7680, 4320, "yuv420p"
        for number, level in enumerate(levels):
            frame = av.VideoFrame(7680, 4320, "yuv420p")
            for plane, value in zip(frame.planes, (level, 128, 128), strict=True):
                np.frombuffer(plane, np.uint8)[:] = value
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = probe(path)
    assert (found["num_frames"], found["width"], found["height"]) == (3, 7680, 4320)
    pair = reader.read(video_row(str(path), "v", 3, 1.0), 0, sample_spec(CONFIG))["crops"]
    assert pair.mask.sum(axis=1).tolist() == [3, 3]
    means = read_frames(str(path), range(3), short_side=32).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, [(level - 16) * 255 / 219 for level in levels], atol=3)


def test_an_outage_of_the_store_fails_the_task_and_takes_no_video_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What stays unread because of its storage is no bad video; what is bad costs no second try."""
    failures: list[Exception] = []

    class Reader:
        def read(self, *arguments: object, **options: object) -> None:
            raise failures.pop()

    row = {"video_id": "v", "uri": "s3://b/v.mp4", "num_frames": 5, "verified": True, "frame_step": 1.0}
    planned = {"row": 7, "step": 1, "epoch": 0, "video_index": 0}
    monkeypatch.setattr(stream.ray, "get", lambda manifest: manifest)
    monkeypatch.setattr(stream, "_reader", Reader())
    monkeypatch.setattr(stream, "_FIRST_RETRY_SECONDS", 0.0)
    manifest: Any = pa.Table.from_pylist([row])
    down = RunError("s3://b/v.mp4: could not read it (SLOW_DOWN)")
    failures[:] = [down] * (CONFIG.data.retries + 1)
    with pytest.raises(RunError, match=r"^v: s3://b/v\.mp4: could not read it .SLOW_DOWN.$"):
        stream._load_sample(planned, manifest, sample_spec(CONFIG))
    assert failures == []
    failures[:] = [BadVideoError("no frame decodes"), down]
    read = stream._load_sample(planned, manifest, sample_spec(CONFIG))
    assert (read.row, read.video_id, read.error, read.views) == (7, "v", "no frame decodes", None)
