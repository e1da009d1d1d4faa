"""Video files as a browser gets them: by ranges, as they are or converted frame by frame."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from aiohttp.test_utils import TestClient

from carl_ray import storage
from carl_ray.data.decode import probe_video, read_frames
from carl_ray.errors import RunError
from carl_ray.explore import conversion, media
from carl_ray.explore.server import MEDIA
from tests.explore.conftest import Make, Serve

FRAMES = 75


async def fetch(client: TestClient[Any, Any], path: str, step: int = 1 << 30) -> bytes:
    """The whole file, by ranges."""
    content, size = b"", 1
    while len(content) < size:
        headers = {"Range": f"bytes={len(content)}-{len(content) + step - 1}"}
        answer = await client.get(path, headers=headers)
        assert answer.status == 206, await answer.text()
        size = int(answer.headers["Content-Range"].partition("/")[2])
        content += await answer.read()
    return content


VIDEOS: dict[str, dict[str, Any]] = {
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 0},
    "matroska.mkv": {},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}, "gop": 20},
    "ten.mp4": {"pixel_format": "yuv420p10le"},
    "full.mp4": {"pixel_format": "yuv444p"},
    "turned.mp4": {"matrix": (0, 1, -1, 0)},
    "uneven.mkv": {"pts": np.arange(FRAMES) + np.arange(FRAMES) // 7},
    "odd.mkv": {"width": 65, "height": 49, "codec": "ffv1", "b_frames": 0},
}


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_of_converted_videos(
    name: str,
    make_video: Callable[..., Path],
    frame_numbers: Callable[..., list[int]],
    embed: Make,
    serve: Serve,
    tmp_path: Path,
) -> None:
    path = make_video(tmp_path / name, FRAMES, **VIDEOS[name])
    times = probe_video(str(path)).frame_times
    uri = embed(("a", path, FRAMES, {"frame_times": times}))

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        described = await (await client.get(f"/api/videos/0?{token}")).json()
        assert described["plays"] == "transcoded" and described["error"] is None
        content = await fetch(client, f"/media/0?{token}", 50_000)
        (tmp_path / "converted.mp4").write_bytes(content)
        again = await client.get(f"/media/0?{token}", headers={"Range": "bytes=-9"})
        assert await again.read() == content[-9:]

    serve(uri, conversation)
    with av.open(str(tmp_path / "converted.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frames = list(container.decode(stream))
        shown = [float(frame.pts * stream.time_base) for frame in frames]
        np.testing.assert_allclose(shown, times, atol=1e-5)
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
        if name != "turned.mp4":
            assert frame_numbers(pictures) == list(range(FRAMES))
        else:
            assert pictures.shape[1:3] == (64, 48)
            assert frame_numbers(np.rot90(pictures, axes=(1, 2))) == list(range(FRAMES))
        # Each segment can be played alone.
        container.seek(int(times[70] / stream.time_base), stream=stream)
        assert next(container.decode(stream)).pts * stream.time_base == pytest.approx(times[64], abs=1e-5)
    assert len(list((Path(uri) / "explore" / "videos").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mp4", {}),
        ("vp9.webm", {"codec": "libvpx-vp9", "b_frames": 0}),
        ("vp8.webm", {"codec": "libvpx", "b_frames": 0}),
    ],
)
def test_playable_files_are_sent_as_they_are(
    name: str,
    options: dict[str, Any],
    make_video: Callable[..., Path],
    embed: Make,
    serve: Serve,
    tmp_path: Path,
) -> None:
    path = make_video(tmp_path / name, FRAMES, **options)
    times = probe_video(str(path)).frame_times
    uri = embed(("a", path, FRAMES, {"frame_times": times}), ("b", path, FRAMES, {"fps": 24.0}))
    content = path.read_bytes()

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        assert await fetch(client, f"/media/0?{token}", 1000) == content
        answer = await client.get(f"/media/0?{token}")
        assert (answer.status, answer.content_type) == (200, f"video/{path.suffix[1:]}")
        assert answer.headers["Accept-Ranges"] == "bytes" and await answer.read() == content
        # Frame k must be shown from its time in the embeddings on: not if they have another rate.
        other = await (await client.get(f"/api/videos/1?{token}")).json()
        assert other["plays"] == "transcoded"

    serve(uri, conversation)


def test_parts_of_files_are_played_as_files_of_their_own(
    make_video: Callable[..., Path],
    frame_numbers: Callable[..., list[int]],
    embed: Make,
    serve: Serve,
    tmp_path: Path,
) -> None:
    content = make_video(tmp_path / "long.mp4", 200, gop=20).read_bytes()
    (tmp_path / "shard.tar").write_bytes(bytes(512) + content + bytes(512))
    member = f"{tmp_path}/shard.tar#bytes=512+{len(content)}"
    parts = [f"{tmp_path}/long.mp4#frames=50-{50 + FRAMES}/200", f"{member}&frames=50-{50 + FRAMES}"]
    uri = embed(("a", parts[0], FRAMES, {}), ("b", parts[1], FRAMES, {}), ("c", member, 200, {}))

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        assert await fetch(client, f"/media/2?{token}", 1000) == content
        for number in (0, 1):
            described = await (await client.get(f"/api/videos/{number}?{token}")).json()
            assert described["plays"] == "transcoded" and described["error"] is None
            shown = read_frames(await fetch(client, f"/media/{number}?{token}"), range(FRAMES))
            assert frame_numbers(shown) == list(range(50, 50 + FRAMES))

    serve(uri, conversation)


def test_ranges(make_video: Callable[..., Path], embed: Make, serve: Serve, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", FRAMES)
    content = path.read_bytes()
    uri = embed(("a", path, FRAMES, {}))

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        async def ask(given: str, **headers: str) -> tuple[int, bytes]:
            answer = await client.get(f"/media/0?{token}", headers={"Range": given, **headers})
            return answer.status, await answer.read()

        assert await ask("bytes=10-19") == (206, content[10:20])
        assert await ask("bytes=-7") == (206, content[-7:])
        assert await ask(f"bytes=5-{10**9}") == (206, content[5:])
        for wrong in (f"bytes={len(content)}-", "bytes=9-3", "bytes=a-b", "bytes=0-1,4-5", "lines=0-1"):
            status, body = await ask(wrong)
            assert status == 416 and b"error" in body, wrong
        assert await ask("bytes=0-1", **{"If-Range": '"other"'}) == (200, content)
        head = await client.head(f"/media/0?{token}")
        assert head.headers["Content-Length"] == str(len(content)) and await head.read() == b""
        path.unlink()
        assert (await ask("bytes=0-1"))[0] == 404

    serve(uri, conversation)


def test_an_answer_is_never_long(
    make_video: Callable[..., Path],
    embed: Make,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(media, "_MOST_AT_ONCE", 1000)
    path = make_video(tmp_path / "a.mp4", FRAMES)

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        answer = await client.get(f"/media/0?{token}", headers={"Range": "bytes=0-"})
        assert answer.headers["Content-Range"].startswith("bytes 0-999/") and len(await answer.read()) == 1000
        assert await fetch(client, f"/media/0?{token}") == path.read_bytes()

    serve(embed(("a", path, FRAMES, {})), conversation)


def test_files_of_a_bucket(
    make_video: Callable[..., Path], embed: Make, serve: Serve, tmp_path: Path, s3_endpoint: str
) -> None:
    import boto3

    boto3.client("s3", endpoint_url=f"http://{s3_endpoint}").create_bucket(Bucket="explore")
    query = f"?scheme=http&endpoint_override={s3_endpoint}&allow_bucket_creation=true"
    uris = [f"s3://explore/{name}{query}" for name in ("a.mp4", "b.mkv")]
    contents = [make_video(tmp_path / name, FRAMES).read_bytes() for name in ("a.mp4", "b.mkv")]
    for uri, content in zip(uris, contents, strict=True):
        storage.write_bytes(uri, content)
    gone = f"s3://explore/gone.mp4{query}"
    times = probe_video(contents[1]).frame_times
    uri = embed(
        ("a", uris[0], FRAMES, {}), ("b", uris[1], FRAMES, {"frame_times": times}), ("c", gone, 3, {})
    )

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        answer = await client.get(f"/media/0?{token}", headers={"Range": "bytes=100-299"})
        assert (answer.status, await answer.read()) == (206, contents[0][100:300])
        converted = await fetch(client, f"/media/1?{token}")
        with av.open(io.BytesIO(converted)) as container:
            assert len(list(container.decode(video=0))) == FRAMES
        missing = await client.get(f"/media/2?{token}")
        assert missing.status == 415 and "no such file" in (await missing.json())["error"]

    serve(uri, conversation)


def test_only_the_wanted_segments_are_made(
    make_video: Callable[..., Path], embed: Make, serve: Serve, tmp_path: Path
) -> None:
    path = make_video(tmp_path / "a.mkv", 320, gop=16)
    times = probe_video(str(path)).frame_times

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        answer = await client.get(f"/media/0?{token}", headers={"Range": "bytes=-64"})
        assert answer.status == 206
        (conversion,) = client.app[MEDIA]._open.values()  # type: ignore[union-attr]
        assert conversion._made.tolist() == [False] * 9 + [True]

    serve(embed(("a", path, 320, {"frame_times": times})), conversation)
    # What is incomplete does not stay.
    assert list((tmp_path / "E" / "explore" / "videos").iterdir()) == []


def test_the_last_used_conversions_are_kept(
    make_video: Callable[..., Path], embed: Make, serve: Serve, tmp_path: Path
) -> None:
    path = make_video(tmp_path / "a.avi", 20, codec="mpeg4", b_frames=0)
    uri = embed(*((name, path, 20, {"content_hash": name}) for name in "abc"))
    left = Path(uri) / "explore" / "videos" / ".x.mp4.1"  # by a server that was killed
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (1, 1))

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        sizes = []
        for number in (0, 1, 2):
            await fetch(client, f"/media/{number}?{token}")
            sizes.append(len(list((Path(uri) / "explore" / "videos").iterdir())))
        assert sizes == [1, 1, 1]

    serve(uri, conversation, cache_bytes=150_000)


def test_a_conversion_that_gives_way_ends_its_process(
    make_video: Callable[..., Path],
    embed: Make,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(media, "_MOST_OPEN", 1)
    path = make_video(tmp_path / "a.avi", 100, codec="mpeg4", b_frames=0)
    uri = embed(*((name, path, 100, {"content_hash": name}) for name in "abc"))

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        opened = client.app[MEDIA]._open  # type: ignore[union-attr]
        earlier, process = None, None
        # It is idle after the head of the file, and between two segments.
        for number, method in enumerate(("HEAD", "GET", "HEAD")):
            headers = {"Range": "bytes=0-9000"}
            await client.request(method, f"/media/{number}?{token}", headers=headers)
            if earlier is not None and process is not None:
                assert process.wait(60) is not None
                with pytest.raises(RunError, match="the conversion was stopped"):
                    await earlier.read(earlier.size - 9, earlier.size)
                assert earlier._child._process is None
            (earlier,) = opened.values()
            process = earlier._child._process
            assert process is not None and process.poll() is None

    serve(uri, conversation)


def test_another_try_for_the_head_of_a_file(
    make_video: Callable[..., Path],
    embed: Make,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = make_video(tmp_path / "a.avi", 20, codec="mpeg4", b_frames=0)
    ask, failures = media.Child.ask, iter(["once", "twice"])

    def fail_twice(child: media.Child, *arguments: Any, **options: Any) -> Any:
        failure = next(failures, None) if arguments[1]["task"] == "header" else None
        if failure:
            raise RunError(failure)
        return ask(child, *arguments, **options)

    monkeypatch.setattr(media.Child, "ask", fail_twice)

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        answers = [await client.head(f"/media/0?{token}") for _ in range(3)]
        assert [answer.status for answer in answers] == [502, 502, 200]
        opened = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
        assert len([name for name in opened if ".mp4." in name]) == 1

    serve(embed(("a", path, 20, {})), conversation)


def test_another_number_of_frames(
    make_video: Callable[..., Path], embed: Make, serve: Serve, tmp_path: Path
) -> None:
    path = make_video(tmp_path / "a.mp4", 50)

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        for number, error in ((0, "only 50 decode"), (1, "more decode")):
            with pytest.raises(AssertionError, match=error):
                await fetch(client, f"/media/{number}?{token}")
            described = await (await client.get(f"/api/videos/{number}?{token}")).json()
            assert error in described["error"]

    serve(embed(("a", path, 60, {}), ("b", path, 40, {})), conversation)


HANGS = """
import time
from carl_ray.explore import conversion
conversion._TASKS = dict.fromkeys(conversion._TASKS, lambda source, **arguments: iter(lambda: time.sleep(60), 1))
conversion.answer()
"""


def test_a_video_that_hangs_its_decoder(
    make_video: Callable[..., Path],
    embed: Make,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(media, "_SECONDS", 0.5)
    monkeypatch.setattr(conversion, "CODE", HANGS)
    path = make_video(tmp_path / "a.mp4", 9)

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        waiting = asyncio.create_task(client.get(f"/media/0?{token}"))
        assert (await client.get(f"/api/library?{token}")).status == 200  # meanwhile
        answer = await waiting
        assert answer.status == 415 and "the decoder took longer than 0.5 s" in (await answer.json())["error"]

    serve(embed(("a", path, 9, {})), conversation)
