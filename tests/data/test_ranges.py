"""Ranges of frames and members of shards: the same as the same content in a file of its own."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from carl_ray import address, storage
from carl_ray.address import Address
from carl_ray.config import Config, DataConfig, ModelConfig
from carl_ray.data import seeking
from carl_ray.data.child import BadVideoError
from carl_ray.data.decode import DecodeError, iterate_frames, probe_video, read_frames
from carl_ray.data.guard import FrameReader, ViewReader
from carl_ray.data.manifest import read_manifest, save_manifest
from carl_ray.data.sample import arrays_of, sample_spec
from carl_ray.errors import UserError
from carl_ray.objectives.views import AugmentConfig
from tests.samples import video_row

CONFIG = Config(
    preset="test",
    data=DataConfig(short_side=32),
    augment=AugmentConfig(image_size=24),
    model=ModelConfig(num_frames=8, backbone="small", weights="random"),
)
SPEC = sample_spec(CONFIG)
START, STOP, ALL = 1200, 1300, 2000


@pytest.fixture(scope="module")
def long(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(
        tmp_path_factory.mktemp("long") / "long #1.mp4", ALL, gop=50, options={"sc_threshold": "0"}
    )


@pytest.fixture(scope="module")
def own(long: Path) -> Path:
    """The packets of the range in a file of its own; it begins at a key frame."""
    target = long.with_name("own.mp4")
    with av.open(str(long)) as source, av.open(str(target), "w") as container:
        stream = source.streams.video[0]
        copied = container.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size and START <= packet.pts * packet.time_base * 30 < STOP:
                packet.pts, packet.dts = (
                    int(t - START / 30 / packet.time_base) for t in (packet.pts, packet.dts)
                )
                packet.stream = copied
                container.mux(packet)
    return target


@pytest.fixture(scope="module")
def reader() -> Iterator[ViewReader]:
    with closing(ViewReader()) as reader:
        yield reader


def views(reader: ViewReader, uri: str, num_frames: int = STOP - START, **more: object) -> dict[str, bytes]:
    row = video_row(uri, "one video", num_frames, **more)
    return {name: array.tobytes() for name, array in arrays_of(reader.read(row, 3, SPEC)).items()}


@pytest.mark.parametrize(
    "text", ["/a/b c.mp4", "s3://b/k.mp4?scheme=http", "/a/#1.mp4", "a#frames=", "a#bytes=1+2&"]
)
def test_a_name_is_no_place(text: str) -> None:
    assert address.parse(text) == Address(text) and str(Address(text)) == text


@pytest.mark.parametrize("place", ["bytes=5+70", "frames=0-9", "frames=3-9/10", "bytes=5+70&frames=3-9/10"])
def test_addresses(place: str) -> None:
    for file in ("s3://bucket/k.tar?scheme=http", "/a #1.tar"):
        assert (
            str(address.parse(f"{file}#{place}"))
            == storage.public_uri(f"{file}#{place}")
            == f"{file}#{place}"
        )
        assert (
            address.file_of(f"{file}#{place}") == file and address.place_of(f"{file}#{place}") == f"#{place}"
        )
    assert storage.public_uri(f"s3://u:p@b/k#secret={place}") == "s3://b/k"


@pytest.mark.parametrize("verified", [False, True])
def test_views_of_a_range_are_those_of_its_own_file(
    reader: ViewReader, long: Path, own: Path, verified: bool
) -> None:
    expected = views(reader, str(own), verified=verified)
    assert views(reader, f"{long}#frames={START}-{STOP}/{ALL}", verified=verified) == expected
    content = bytes(3000) + long.read_bytes() + bytes(10)
    shard = long.with_name("shard.bin")
    shard.write_bytes(content)
    member = f"bytes=3000+{long.stat().st_size}"
    assert views(reader, f"{shard}#{member}&frames={START}-{STOP}", verified=verified) == expected
    assert views(reader, f"{shard}#{member}", ALL) == views(reader, str(long), ALL)


def test_all_frames_of_a_range_in_order_and_no_frame_far_before_it(
    long: Path, frame_numbers: Callable[[np.ndarray], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, decoded = f"{long}#frames=1230-1300/{ALL}", []
    read_run = seeking._read_run

    def counted(*arguments: object, **options: object) -> Iterator[tuple[int, av.VideoFrame]]:
        for index, frame in read_run(*arguments, **options):  # type: ignore[arg-type]
            decoded.append(index)
            yield index, frame

    monkeypatch.setattr(seeking, "_read_run", counted)
    monkeypatch.setattr("carl_ray.data.decode.decoded_frames", None)
    chunks = list(iterate_frames(uri, 70, chunk_frames=16))
    assert [len(chunk) for chunk in chunks] == [16, 16, 16, 16, 6]
    assert frame_numbers(np.concatenate(chunks)) == list(range(1230, 1300))
    assert frame_numbers(read_frames(uri, [69, 0, 5])) == [1299, 1230, 1235]
    assert min(decoded) == 1200 and max(decoded) == 1299 and seeking._timeline_of_file.cache_info().hits


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("every_packet_is_marked", [False, True])
def test_av1_is_sought_too(
    make_video: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    every_packet_is_marked: bool,
) -> None:
    options = {"preset": "10", "svtav1-params": "scd=0:enable-overlays=1"}
    # SVT-AV1 gives root's thread that opens it real-time priority, which all processes started from there inherit.
    with ThreadPoolExecutor(1) as pool:
        path = tmp_path / f"av1{suffix}"
        pool.submit(make_video, path, 120, codec="libsvtav1", gop=20, options=options).result()
    (expected,) = iterate_frames(str(path), 120, chunk_frames=120)
    packets_of = seeking.packets_of

    def marked(*arguments: Any) -> Iterator[av.Packet]:
        for packet in packets_of(*arguments):
            packet.is_keyframe |= packet.size > 0
            yield packet

    if every_packet_is_marked:  # the frames are the same, decoded from the start if need be
        monkeypatch.setattr(seeking, "packets_of", marked)
    else:
        monkeypatch.setattr("carl_ray.data.decode.decoded_frames", None)
    for start, stop in ((47, 90), (100, 120)):
        (chunk,) = iterate_frames(f"{path}#frames={start}-{stop}/120", stop - start, chunk_frames=99)
        assert np.array_equal(chunk, expected[start:stop])
        assert np.array_equal(read_frames(f"{path}#frames={start}-{stop}", [9]), expected[[start + 9]])
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.parametrize("codec", ["mpeg4", "libvpx-vp9"])
def test_a_codec_without_exact_seeking_is_decoded_from_its_start(
    make_video: Callable[..., Path],
    frame_numbers: Callable[[np.ndarray], list[int]],
    tmp_path: Path,
    codec: str,
) -> None:
    path = make_video(tmp_path / "video.mkv", 60, codec=codec, gop=12, b_frames=0)
    chunks = list(iterate_frames(f"{path}#frames=30-50", 20, chunk_frames=7))
    assert frame_numbers(np.concatenate(chunks)) == list(range(30, 50))
    assert frame_numbers(read_frames(f"{path}#frames=30-50", [0, 19])) == [30, 49]


def test_a_wrong_count_of_the_file_is_no_ground_for_seeking(
    long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_frames(str(long), [1233])
    monkeypatch.setattr(seeking, "_read_run", None)  # Would raise.
    wrong = f"{long}#frames=1230-1300/{ALL - 1}"
    assert np.array_equal(read_frames(wrong, [3], num_frames=70), expected)
    assert len(next(iterate_frames(wrong, 70, chunk_frames=70))) == 70


def test_frames_beyond_a_range_are_not_its_own(long: Path, reader: ViewReader) -> None:
    uri = f"{long}#frames=10-30"
    with pytest.raises(DecodeError, match="frame 20 was asked for, but the range has 20"):
        read_frames(uri, [20])
    with pytest.raises(DecodeError, match="frame 20 was asked for, but the range has 20"):
        next(iterate_frames(uri, 21, chunk_frames=8))
    with pytest.raises(DecodeError, match="no such range: frames 10 to 2009 of 2000"):
        probe_video(f"{long}#frames=10-2010")
    with pytest.raises(BadVideoError, match="frame 2009 was asked for, but only 2000 frames decode"):
        reader.read(video_row(f"{long}#frames=2009-2010", "video", 1), 0, SPEC)
    with pytest.raises(BadVideoError, match="no such bytes, the file has"):
        reader.read(video_row(f"{long}#bytes=10+99999999", "video", 20), 0, SPEC)


def test_probe_of_a_range(long: Path, own: Path) -> None:
    part, whole = probe_video(f"{long}#frames={START}-{STOP}"), probe_video(str(own))
    assert (part.num_frames, part.fps, part.duration) == (100, 30, pytest.approx(whole.duration))
    np.testing.assert_allclose(part.frame_times, whole.frame_times, atol=1e-6)
    assert part.key_frames.tolist() == whole.key_frames.tolist() == [0, 50]
    assert probe_video(f"{long}#frames=1975-2000").duration == pytest.approx(25 / 30)


def test_a_reader_of_all_frames_counts_and_reads_a_range(long: Path, own: Path) -> None:
    with closing(FrameReader()) as reader:
        uri = f"{long}#frames={START}-{STOP}"
        assert reader.count(uri, CONFIG) == 100
        ours, theirs = (
            np.concatenate(list(reader.read(u, 100, CONFIG, chunk_frames=16, short_side=24)))
            for u in (uri, str(own))
        )
        assert np.array_equal(ours, theirs)


def test_a_member_of_an_object_store_is_read_by_its_bytes(s3_endpoint: str, long: Path, own: Path) -> None:
    uri = f"s3://ranges/shard.tar?scheme=http&endpoint_override={s3_endpoint}"
    store = fs.S3FileSystem(endpoint_override=s3_endpoint, scheme="http", allow_bucket_creation=True)
    store.create_dir("ranges")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(own, "own.mp4")
        offset = buffer.tell() - -(-own.stat().st_size // 512) * 512
    storage.write_bytes(uri, buffer.getvalue())
    member = f"{uri}#bytes={offset}+{own.stat().st_size}"
    assert storage.exists(member) and storage.read_bytes(member) == own.read_bytes()
    assert np.array_equal(read_frames(f"{member}&frames=50-90", [7]), read_frames(str(own), [57]))
    with pytest.raises(UserError, match=r"tar.*#bytes=9000000\+9: no such bytes, the file has \d+"):
        storage.read_bytes(f"{uri}#bytes=9000000+9")


def manifest_of(folder: Path, **columns: object) -> str:
    row = {
        "video_id": "a", "uri": "/v.mp4", "num_frames": 20, "width": 8, "height": 8, "rotation": 0, "bytes": 9,
        "content_hash": "x", "verified": True, "frame_step": 1.0, "fps": 25.0, "duration": 1.0, "codec": "h264",
        "modified_ns": 1,
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row | columns]), folder / "manifest.parquet")
    return str(folder / "manifest.parquet")


def test_a_manifest_has_places_as_columns_and_addresses_in_memory(tmp_path: Path) -> None:
    uri = manifest_of(tmp_path, start_frame=30, end_frame=50, group="g")
    table = read_manifest(uri)
    assert table.column("uri").to_pylist() == ["/v.mp4#frames=30-50"]
    assert "group" in table.column_names and "start_frame" not in table.column_names
    assert read_manifest(uri, ["uri", "video_id"]).to_pylist() == [
        {"uri": "/v.mp4#frames=30-50", "video_id": "a"}
    ]
    save_manifest(table, uri)
    written = pq.read_table(uri).select(["uri", *Address._fields[1:]]).to_pylist()
    assert [tuple(row.values()) for row in written] == [Address("/v.mp4", None, None, 30, 50)]
    assert read_manifest(uri).equals(table)
    plain = read_manifest(manifest_of(tmp_path))
    save_manifest(plain, uri)
    assert not {*Address._fields} & {*pq.read_table(uri).column_names}


@pytest.mark.parametrize(
    "columns",
    [
        {"start_frame": 30, "end_frame": 51},
        {"start_frame": 30},
        {"start_frame": -1, "end_frame": 19},
        {"start_frame": 30, "end_frame": 50, "file_frames": 49},
        {"byte_offset": 3, "byte_length": 0},
        {"byte_offset": 3},
        {"byte_offset": -3, "byte_length": 8},
        {"start_frame": "x", "end_frame": "y"},
    ],
)
def test_places_that_cannot_be_are_refused(tmp_path: Path, columns: dict[str, object]) -> None:
    with pytest.raises(UserError, match="not a manifest"):
        read_manifest(manifest_of(tmp_path, **columns))
