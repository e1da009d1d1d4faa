"""Every frame that comes out is the one a plain full decode gives at that index, bit by bit."""

from __future__ import annotations

import errno
import io
import os
import resource
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from carl_ray.data import decode, seeking
from carl_ray.data.decode import DecodeError, iterate_frames, probe_video, read_frames
from carl_ray.errors import RunError, UserError


def _real_videos() -> list[Any]:
    """Odd ones for every change, ordinary ones among the slow tests."""
    folder = Path(os.environ.get("CARL_RAY_VIDEOS", Path(__file__).parents[3] / "shared" / "videos"))
    return [
        pytest.param(path, id=path.name, marks=marks)
        for name, marks in (("odd", ()), ("corpus", pytest.mark.slow))
        for path in sorted(folder.glob(f"{name}/*"))
        if path.is_file()
    ]


def _plain_decode(
    path: Path, indices: set[int] | None, short_side: int | None, limit: int
) -> dict[int, np.ndarray]:
    """The frames at some indices (None: all) of the first `limit`, by PyAV's simplest loop, unrotated."""
    frames: dict[int, np.ndarray] = {}
    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # how damage is painted over depends on the threads
        try:
            for packet in container.demux(stream):
                for frame in packet.decode():
                    if count >= limit:
                        return frames
                    if indices is None or count in indices:
                        width, height = frame.width, frame.height
                        if short_side is not None:
                            scale = short_side / min(width, height)
                            width, height = max(1, round(width * scale)), max(1, round(height * scale))
                        rgb = frame.to_ndarray(format="rgb24", width=width, height=height)
                        frames[count] = np.rot90(rgb, round(frame.rotation / 90) % 4)
                    count += 1
        except av.FFmpegError:
            pass
    return frames


def _count(path: Path, limit: int) -> int:
    return len(_plain_decode(path, None, 2, limit))


def _assert_exact(path: Path, short_side: int | None, limit: int = 400, *, subsets: int = 4) -> None:
    count = _count(path, limit)
    assert count > 0
    rng = np.random.default_rng(0)
    requests = [rng.integers(0, count, 5), np.array([count - 1])]
    for _ in range(subsets):
        start = int(rng.integers(count))
        requests.append(rng.permutation(np.arange(start, min(count, start + 40)))[:8])
    reference = _plain_decode(path, {int(i) for r in requests for i in r}, short_side, limit)
    content = path.read_bytes()
    for request in requests:
        got = read_frames(content, request, short_side=short_side)
        for index, frame in zip(request.tolist(), got, strict=True):
            np.testing.assert_array_equal(frame, reference[index], err_msg=f"{path.name} frame {index}")


VARIANTS = {
    "b_frames.mp4": {"b_frames": 3, "gop": 20},
    "gop_250.mp4": {"num_frames": 300, "gop": 250},
    "open_gop.mp4": {"gop": 15, "b_frames": 3, "options": {"x264-params": "open-gop=1:scenecut=0"}},
    "intra_refresh.mp4": {"gop": 15, "b_frames": 0, "options": {"x264-params": "intra-refresh=1"}},
    "variable_rate.mp4": {"pts": np.cumsum(np.arange(60) % 5 + 1).tolist(), "gop": 12},
    "late_start.mkv": {"pts": range(300, 360), "gop": 12},
    "odd_size.mp4": {"width": 71, "height": 53, "pixel_format": "yuv444p", "gop": 10},
    "hevc.mp4": {"codec": "libx265", "gop": 12, "options": {"x265-params": "log-level=none:pools=1"}},
    "hevc_open_gop.mkv": {
        "codec": "libx265",
        "b_frames": 4,
        "options": {"x265-params": "log-level=none:pools=1:keyint=12:min-keyint=12:open-gop=1:scenecut=0"},
    },
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 12, "options": {"cpu-used": "8", "auto-alt-ref": "1"}},
    "vp8.webm": {"codec": "libvpx", "gop": 12, "options": {"cpu-used": "8", "auto-alt-ref": "1"}},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 12},
    "transport.ts": {"gop": 12, "b_frames": 2},
    "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p", "b_frames": 0},
}


@pytest.fixture(scope="module", params=VARIANTS)
def made_video(request, make_video, tmp_path_factory):
    try:
        return make_video(tmp_path_factory.mktemp("made") / request.param, **VARIANTS[request.param])
    except av.FFmpegError as error:
        pytest.skip(f"this PyAV cannot encode it: {error}")


def test_frames_equal_a_full_decode(made_video):
    _assert_exact(made_video, None, subsets=8)
    _assert_exact(made_video, 32, subsets=2)


def test_pixels_show_the_index(made_video, frame_numbers):
    indices = [41, 7, 7, 0, 59, 30, 31]
    assert frame_numbers(read_frames(str(made_video), indices)) == indices
    assert frame_numbers(read_frames(made_video.read_bytes(), indices, short_side=24)) == indices


def test_long_skips_seek_and_stay_exact(make_video, frame_numbers, tmp_path, monkeypatch):
    path = make_video(tmp_path / "long.mp4", 600, gop=25)
    decoded = []
    put = decode._Output.put
    monkeypatch.setattr(
        decode._Output, "put", lambda self, i, *rest: (decoded.append(i), put(self, i, *rest))
    )
    indices = [580, 3, 310, 299]
    assert frame_numbers(read_frames(str(path), indices)) == indices
    assert len(decoded) < 100


def test_a_doubtful_seek_falls_back_to_the_start(make_video, frame_numbers, tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mp4", 200, gop=20)
    monkeypatch.setattr(seeking, "_read_run", lambda *args: iter(()))
    assert frame_numbers(read_frames(str(path), [170, 171])) == [170, 171]


def test_a_known_number_of_frames_guards_against_lost_ones(make_video, frame_numbers, tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mp4", 200, gop=20)
    seeks = []
    read_run = seeking._read_run
    monkeypatch.setattr(seeking, "_read_run", lambda *args: (seeks.append(1), read_run(*args))[1])
    for num_frames, sought in ((None, 1), (200, 1), (199, 0)):
        seeks.clear()
        assert frame_numbers(read_frames(str(path), [150], num_frames=num_frames)) == [150]
        assert len(seeks) == sought


def test_damage_gives_what_a_full_decode_gives(make_video, tmp_path):
    path = make_video(tmp_path / "v.mp4", 120, 128, 96, gop=20, b_frames=0)
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for at in rng.integers(content.index(b"mdat") + 800, content.index(b"moov"), 5):
        content[at] ^= 0x55
    path.write_bytes(content)
    reference = _plain_decode(path, None, None, 120)
    for start in range(0, len(reference) - 5, 5):
        frames = read_frames(bytes(content), range(start, start + 5), num_frames=len(reference))
        for index, frame in enumerate(frames, start):
            np.testing.assert_array_equal(frame, reference[index])


def test_falsely_marked_key_frames_are_not_trusted(make_video, tmp_path):
    path = make_video(tmp_path / "v.mp4", 120, gop=250)
    content = path.read_bytes().replace(b"stss", b"free")  # without a sync table every packet counts as one
    wanted = list(range(90, 100))
    np.testing.assert_array_equal(read_frames(content, wanted), read_frames(str(path), range(100))[90:])


@pytest.mark.parametrize(
    "matrix,turn",
    [
        ((1, 0, 0, 1), lambda x: x),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    ],
)
def test_display_matrix_is_applied(make_video, tmp_path, matrix, turn):
    plain = make_video(tmp_path / "plain.mp4", 12)
    turned = make_video(tmp_path / "turned.mp4", 12, matrix=matrix)
    expected = turn(read_frames(str(plain), [11])[0])
    np.testing.assert_array_equal(read_frames(str(turned), [11])[0], expected)
    probe = probe_video(str(turned))
    assert (probe.height, probe.width) == expected.shape[:2]
    assert read_frames(str(turned), [0], short_side=24).shape[1:3] == tuple(
        s // 2 for s in expected.shape[:2]
    )


def test_short_side_always_becomes_short_side(make_video, tmp_path):
    path = str(make_video(tmp_path / "v.mp4", 4, 90, 60))
    assert read_frames(path, [0], short_side=30).shape == (1, 30, 45, 3)
    assert read_frames(path, [0], short_side=120).shape == (1, 120, 180, 3)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p"])
@pytest.mark.parametrize(("width", "height"), [(160, 90), (128, 96), (90, 160)])
def test_the_short_way_to_an_odd_width_gives_the_same_pixels(
    make_video, tmp_path, pixel_format, width, height
):
    path = make_video(tmp_path / "a.mp4", 3, width, height, pixel_format=pixel_format)
    small = read_frames(str(path), range(3), short_side=31)
    assert 31 in small.shape[1:3]
    with av.open(str(path)) as container:
        plain = [
            frame.reformat(width=small.shape[2], height=small.shape[1], format="rgb24").to_ndarray()
            for frame in container.decode(video=0)
        ]
    assert np.array_equal(small, np.stack(plain))


def test_probe_counts_and_measures(made_video):
    count = _count(made_video, 1000)
    for verify in (False, True):
        probe = probe_video(made_video.read_bytes(), verify=verify)
        if verify or made_video.suffix != ".webm":  # hidden frames are packets too
            assert probe.num_frames == count
        assert probe.fps == pytest.approx(30, rel=0.02) or made_video.stem == "variable_rate"
        assert probe.duration == pytest.approx(count / probe.fps, rel=0.1)


def test_probe_rotation(make_video, tmp_path):
    probe = probe_video(str(make_video(tmp_path / "v.mp4", 3, 80, 48, matrix=(0, 1, -1, 0))))
    assert (probe.rotation, probe.width, probe.height, probe.codec) == (-90, 48, 80, "h264")


def test_frames_beyond_the_end(make_video, tmp_path):
    path = str(make_video(tmp_path / "v.mp4", 60, gop=10))
    with pytest.raises(DecodeError, match="frame 60 was asked for, but only 60 frames decode"):
        read_frames(path, [0, 60])
    for wrong in ([], [-1]):
        with pytest.raises(ValueError, match="at least one index"):
            read_frames(path, wrong)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("chunk_frames", [1, 7, 10, 20, 64])
def test_all_frames_come_in_chunks(make_video, tmp_path, chunk_frames, decoder):
    if decoder == "decord":
        pytest.importorskip("decord")
    path = str(make_video(tmp_path / "a.mp4", 20, 160, 80))
    chunks = list(iterate_frames(path, 20, chunk_frames=chunk_frames, short_side=72, decoder=decoder))
    full, rest = divmod(20, chunk_frames)
    assert [len(chunk) for chunk in chunks] == [chunk_frames] * full + [rest] * (rest > 0)
    whole = read_frames(path, range(20), short_side=72, decoder=decoder)
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_chunks_of_a_video_that_is_shorter_than_expected(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", 20)
    chunks = iterate_frames(str(path), 21, chunk_frames=8)
    assert [len(next(chunks)), len(next(chunks))] == [8, 8]
    with pytest.raises(DecodeError, match="21 frames were expected, but only 20 decode"):
        next(chunks)
    with pytest.raises(DecodeError, match="no such file"):
        next(iterate_frames(str(tmp_path / "none.mp4"), 2, chunk_frames=8))
    longer = iterate_frames(path.read_bytes(), 19, chunk_frames=8)
    assert [len(next(longer)) for _ in range(3)] == [8, 8, 3]
    with pytest.raises(DecodeError, match="19 frames were expected, but more decode"):
        next(longer)
    with pytest.raises(ValueError, match="at least 1, got 0, 8 and 1"):
        next(iterate_frames(str(path), 0, chunk_frames=8))


def test_what_cannot_be_decoded_says_why(make_video, tmp_path):
    content = make_video(tmp_path / "v.mp4", 30).read_bytes()
    damaged = {
        "empty": b"",
        "moov": content[: content.index(b"mdat") + 200],
        "not a video": b"hello " * 100,
        "no such file": str(tmp_path / "none.mp4"),
        "a folder": str(tmp_path),
    }
    for reason, source in damaged.items():
        for call in (probe_video, lambda s: read_frames(s, [0])):
            with pytest.raises(DecodeError, match=reason) as caught:
                call(source)
            assert "\n" not in str(caught.value)


def test_a_file_without_a_key_frame_says_what_the_decoder_said(make_video, tmp_path):
    content = io.BytesIO()
    with (
        av.open(str(make_video(tmp_path / "v.mp4", 12))) as old,
        av.open(content, "w", format="matroska") as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in [packet for packet in old.demux(video=0) if packet.size][1:]:
            damaged = av.Packet(b"\xff" * packet.size)
            damaged.stream, damaged.time_base = stream, packet.time_base
            damaged.pts, damaged.dts = packet.pts, packet.dts
            new.mux(damaged)
    for call in (probe_video, lambda s: read_frames(s, [0])):
        with pytest.raises(DecodeError, match=r"no frame decodes \(Invalid data"):
            call(content.getvalue())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_disk_that_fails_is_not_blamed_on_the_video(make_video, tmp_path, monkeypatch):
    path = str(make_video(tmp_path / "v.mp4", 30))
    # At address 0 a process has no memory: reading gives EIO.
    with pytest.raises(RunError, match=r"^/proc/self/mem: could not read it .*Input/output error"):
        read_frames("/proc/self/mem", [0])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(RunError, match=r"could not read it .*Too many open files"):
            read_frames(path, [0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    demuxed = av.container.InputContainer.demux

    class Container:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._container.close()

        def demux(self, *arguments, **options):
            packets = demuxed(self._container, *arguments, **options)
            yield from (next(packets) for _ in range(10))
            raise OSError(code, os.strerror(code))

    opened = decode.open_container
    monkeypatch.setattr(decode, "open_container", lambda readable: Container(opened(readable)))
    code = errno.ESTALE
    with pytest.raises(RunError, match=r"v\.mp4: could not read it .*Stale file handle"):
        read_frames(path, [20])
    with pytest.raises(RunError, match="Stale file handle"):
        list(iterate_frames(path, 30, chunk_frames=8))
    code = errno.EIO  # FFmpeg's for damage, too: the file itself can be read
    with pytest.raises(DecodeError, match="decoding stops there: Input/output error"):
        read_frames(path, [20])


def test_audio_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DecodeError, match=r"no video stream, only audio$"):
        probe_video(str(path))
    covered = tmp_path / "cover.mp4"
    with av.open(str(path)) as sound, av.open(str(covered), "w") as container:
        audio = container.add_stream_from_template(sound.streams.audio[0])
        cover = container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")))
        for packet in sound.demux(audio=0):
            if packet.size:
                packet.stream = audio
                container.mux(packet)
    with pytest.raises(DecodeError, match=r"no video stream, only audio and a cover picture$"):
        probe_video(str(covered))


def test_decoding_stops_at_the_first_undecodable_packet(make_video, tmp_path):
    path = make_video(tmp_path / "v.mp4", 60, gop=10, b_frames=0)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    position, size = packets[25]
    content[position : position + size] = b"\xff" * size
    assert 0 < probe_video(bytes(content), verify=True).num_frames <= 25
    with pytest.raises(DecodeError, match="decoding stops there"):
        read_frames(bytes(content), [26])


def test_decord_gives_the_same_indices(make_video, frame_numbers, tmp_path):
    pytest.importorskip("decord")
    path = make_video(tmp_path / "v.mp4", 60, 192, 128, gop=20)
    for source in (str(path), path.read_bytes()):
        frames = read_frames(source, [50, 3, 3, 20], short_side=64, decoder="decord")
        assert frames.shape == (4, 64, 96, 3)
        assert frame_numbers(frames) == [50, 3, 3, 20]
    with pytest.raises(DecodeError, match="60 frames"):
        read_frames(str(path), [60], decoder="decord")
    with pytest.raises(DecodeError, match="decord"):
        read_frames(b"no video", [0], decoder="decord")


def test_missing_decord_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(UserError, match=r"pip install .carl_ray\[decord\]."):
        read_frames(b"", [0], decoder="decord")


@pytest.mark.parametrize("path", _real_videos())
def test_real_videos(path):
    if _opens_to_nothing(path):
        for call in (probe_video, lambda s: read_frames(s, [0])):
            with pytest.raises(DecodeError):
                call(path.read_bytes())
    else:
        # At their own size where that is cheap: every pixel format, odd size and rotation without a resize.
        _assert_exact(path, None if path.stat().st_size < 200_000 else 64, subsets=1)


def _opens_to_nothing(path: Path) -> bool:
    try:
        return _count(path, 1) == 0
    except (av.FFmpegError, IndexError):
        return True


def _cut_and_joined(make_video, make_field_pictures, remux, folder: Path) -> dict[Path, tuple[int, int]]:
    """Videos whose packets tell neither count nor rate, with their frames and frames a second."""
    found = {}
    for suffix in ("ts", "m2ts", "mkv", "mp4", "mov", "avi"):
        found[make_field_pictures(folder / f"fields.{suffix}", 40)] = (40, 25)
    h264 = make_video(folder / "whole.ts", 120, gop=30)
    mpeg2 = make_video(folder / "whole2.ts", 120, gop=12, codec="mpeg2video")
    options = {"x265-params": "open-gop=1:keyint=24:min-keyint=24:bframes=3:scenecut=0:log-level=none"}
    hevc = make_video(folder / "whole5.ts", 96, 64, 64, codec="libx265", options=options)
    for suffix in ("ts", "mkv", "mp4", "avi"):
        found[remux(h264, folder / f"inside.{suffix}", (14, None, 0))] = (90, 30)
    for suffix in ("ts", "mkv", "mpg"):
        # The two pictures that lead the first key frame have lost what they refer to.
        found[remux(mpeg2, folder / f"inside2.{suffix}", (6, None, 0))] = (108, 30)
    with av.open(str(hevc)) as container:
        keys = [i for i, p in enumerate(p for p in container.demux(video=0) if p.size) if p.is_keyframe]
    for suffix in ("ts", "mkv", "mp4"):
        found[remux(hevc, folder / f"open.{suffix}", (keys[1], None, 0))] = (72, 30)
    vp9 = make_video(folder / "whole.webm", 96, codec="libvpx-vp9", gop=24)
    found[remux(vp9, folder / "inside.webm", (5, None, 0))] = (72, 30)
    for name, source, frames in (("h264", h264, 120), ("mpeg2", mpeg2, 120), ("hevc", hevc, 96)):
        # The times of the second part: the same, overlapping, much later, a little later, before.
        for shift in (0, -20 * 3000, 10**7, 4 * 90_000 + 45_000, -(10**6)):
            parts = [
                remux(source, folder / f"{at}.ts", (0, None, at)).read_bytes()
                for at in (2 * 10**6, 2 * 10**6 + shift)
            ]
            joined = folder / f"{name}{shift}.ts"
            joined.write_bytes(b"".join(parts))
            found[joined] = (2 * frames, 30)
        later = ((0, None, 0), (0, None, 200 * 90_000))
        found[remux(source, folder / f"{name}_later.mkv", *later)] = (2 * frames, 30)
    return found


def test_packets_that_cannot_be_trusted_are_not(
    make_video, make_field_pictures, remux, frame_numbers, tmp_path
):
    videos = _cut_and_joined(make_video, make_field_pictures, remux, tmp_path)
    for path, (frames, fps) in videos.items():
        probe = probe_video(str(path))
        assert (probe.num_frames, probe.verified) == (frames, True), path.name
        assert probe.fps == pytest.approx(fps, rel=0.01), path.name
        assert probe.duration == pytest.approx(frames / fps, rel=0.02), path.name
        count = _count(path, 1000) if path.suffix != ".webm" else frames
        assert count == frames, path.name
        (whole,) = iterate_frames(str(path), frames, chunk_frames=frames)
        if path.name.startswith(("fields", "h264")):
            assert frame_numbers(whole) == [i % (40 if fps == 25 else 120) for i in range(frames)], path.name
        for index in (0, frames // 2, frames - 1):
            for known in (frames, None):
                assert np.array_equal(read_frames(str(path), [index], num_frames=known)[0], whole[index]), (
                    path.name
                )
        with pytest.raises(DecodeError, match=rf"only {frames} frames decode.*--verify"):
            read_frames(str(path), [frames])


def test_plain_files_are_counted_without_decoding(make_video, tmp_path):
    for name, options in {
        "a.mp4": {},
        "b.mkv": {},
        "c.ts": {},
        "d.avi": {"codec": "mpeg4"},
        "e.mpg": {"codec": "mpeg2video"},
        "variable.mp4": {"pts": [i + i // 7 for i in range(60)]},
        "one.mp4": {"num_frames": 1},
        "pause.mp4": {"pts": [i if i < 30 else i + 60 for i in range(60)]},
    }.items():
        probe = probe_video(str(make_video(tmp_path / name, **options)))
        assert (probe.num_frames, probe.doubtful) == (options.get("num_frames", 60), False), name


def _marked(path: Path) -> list[int]:
    """Frames that a full decode marks as key frames."""
    with av.open(str(path)) as container:
        return [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]


def test_key_frames_are_those_that_a_decoder_marks(made_video):
    # Packets also mark where a decoder recovers, without a key frame.
    for verify in (True,) if made_video.name == "intra_refresh.mp4" else (None, True):
        assert probe_video(str(made_video), verify=verify).key_frames.tolist() == _marked(made_video)


def test_key_frames_of_all_and_of_one_and_behind_an_edit_list(make_video, remux, tmp_path):
    whole = make_video(tmp_path / "whole.mp4", 60, gop=12, b_frames=2)
    # Negative times are before the video: the edit list hides these frames.
    cut = {"movflags": "use_metadata_tags", "avoid_negative_ts": "disabled", "use_editlist": "1"}
    hidden = remux(whole, tmp_path / "hidden.mp4", (0, None, -14 * 512), options=cut)
    every = make_video(tmp_path / "every.mp4", 20, gop=1, b_frames=0)
    one = make_video(tmp_path / "one.mkv", 60, options={"x264-params": "scenecut=0"})
    for path, expected in (
        (whole, [0, 12, 24, 36, 48]),
        (hidden, [10, 22, 34]),
        (every, [*range(20)]),
        (one, [0]),
    ):
        for verify in (None, True):
            probe = probe_video(str(path), verify=verify)
            assert probe.key_frames.tolist() == expected == _marked(path), path.name
            assert probe.key_frames.dtype == np.int64
