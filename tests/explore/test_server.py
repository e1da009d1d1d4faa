"""The server: who gets an answer, and which."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from aiohttp.test_utils import TestClient
from PIL import Image

from carl_ray.data.manifest import SCHEMA, write_table
from carl_ray.explore.library import Corpus
from carl_ray.explore.pictures import Ribbons
from tests.explore.conftest import Make, Serve

HOSTILE = '../../etc/passwd "<img src=x onerror=alert(1)>\n🎬'


@pytest.fixture
def corpus(make_video: Callable[..., Path], embed: Make, tmp_path: Path) -> str:
    video = make_video(tmp_path / "a.mp4", 40)
    (tmp_path / "noise.mp4").write_bytes(b"no video" * 99)
    labels = np.repeat([-1, 0, 1], [10, 10, 20]).astype(np.int32)
    return embed(
        (
            "a",
            video,
            40,
            {"label": "kick", "split": "test", "frame_labels": labels, "content_hash": "../../x"},
        ),
        (HOSTILE, tmp_path / "gone.mp4", 3, {"fps": None}),
        ("noise", tmp_path / "noise.mp4", 5, {"label": "kick"}),
    )


def test_only_who_has_the_token_gets_an_answer(corpus: str, serve: Serve) -> None:
    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        for path in ("/", "/api/library", "/api/videos/0", "/media/0", "/api/labels.csv", "/static/main.js"):
            for query in ("", "?token=", "?token=x", "?token=%ff%fe"):
                answer = await client.get(path + query)
                assert answer.status == 403 and "no valid token" in (await answer.json())["error"]
        first = await client.get(f"/api/progress?{token}")
        assert first.status == 200
        cookie = first.headers["Set-Cookie"]
        assert (
            "HttpOnly" in cookie
            and "SameSite=Strict" in cookie
            and f"carl_ray_token_{client.port}=" in cookie
        )
        assert (await client.get("/api/progress")).status == 200  # by the cookie

    serve(corpus, conversation)


def test_other_hosts_and_origins_are_refused(corpus: str, serve: Serve) -> None:
    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        port = client.port
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", ""):
            answer = await client.get(f"/api/library?{token}", headers={"Host": host})
            assert answer.status in (400, 403), host
        headers = {"Host": f"localhost:{port}"}
        assert (await client.get(f"/api/library?{token}", headers=headers)).status == 200
        moved = await client.get(f"/?{token}", headers=headers, allow_redirects=False)
        assert moved.headers["Location"] == f"http://127.0.0.1:{port}/?{token}"
        path, body = f"/api/videos/0/intervals?{token}", {"intervals": [], "version": 0}
        for origin, status in (
            ("http://evil.example", 403),
            ("null", 403),
            (f"http://127.0.0.1:{port}", 403),
        ):
            answer = await client.put(path, json=body, headers={"Origin": origin})
            assert answer.status == status
            error = (await answer.json())["error"]
            # The right origin is refused by the labels alone: another process writes them.
            assert ("another origin" in error) == (str(port) not in origin), error
        assert (await client.put(path, data="{}", headers={"Content-Type": "text/plain"})).status == 415

    serve(corpus, conversation)


def test_no_file_but_the_page_and_the_videos(corpus: str, serve: Serve) -> None:
    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        for path in (
            "/static/../server.py",
            "/static/..%2fserver.py",
            "/static/%2e%2e/server.py",
            "/static//etc/passwd",
            "/media/../../etc/passwd",
            "/media/-1",
            "/media/0x0",
            "/media/٣",
            "/media/99999999999999999999",
            "/api/videos/3/poster",
            "/api/nothing",
        ):
            answer = await client.get(f"{path}?{token}")
            assert answer.status == 404 and list(await answer.json()) == ["error"], path
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        # The folder is not listed.
        for path, status in (("/static/", 403), ("/static/nothing.js", 404)):
            answer = await client.get(f"{path}?{token}")
            assert answer.status == status and answer.headers["X-Content-Type-Options"] == "nosniff"

    serve(corpus, conversation)


def test_files_of_the_page_have_their_type_and_the_headers(corpus: str, serve: Serve) -> None:
    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        for path, types in (
            ("/", ["text/html"]),
            ("/static/style.css", ["text/css"]),
            ("/static/main.js", ["text/javascript", "application/javascript"]),
        ):
            answer = await client.get(f"{path}?{token}")
            assert answer.status == 200 and answer.content_type in types
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-cache"
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]

    serve(corpus, conversation)


def test_unexpected_errors_are_answered_in_json(
    corpus: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ribbons, "png", lambda self, video: 1 / 0)

    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        answer = await client.get(f"/api/videos/0/ribbon?{token}")
        assert answer.status == 500 and "ZeroDivisionError" in (await answer.json())["error"]

    serve(corpus, conversation)


def test_library(corpus: str, serve: Serve) -> None:
    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        answer = await client.get(f"/api/library?{token}")
        assert answer.headers["Cache-Control"] == "no-store"
        library = await answer.json()
        assert [video["id"] for video in library["videos"]] == [HOSTILE, "a", "noise"]
        assert library["videos"][1] == {
            "number": 1,
            "id": "a",
            "label": "kick",
            "fields": {"split": "test"},
            "frames": 40,
            "fps": 30.0,
            "seconds": pytest.approx(40 / 30),
            "labelled": False,
            "available": True,
        }
        assert [video["available"] for video in library["videos"]] == [False, True, True]
        assert {"label": "kick", "phases": ["phase 0", "phase 1"]} in library["actions"]
        assert library["writable"] is False
        one = await (await client.get(f"/api/videos/1?{token}")).json()
        assert one["plays"] == "as is" and one["error"] is None and len(one["times"]) == 40
        assert [(i["start"], i["label"]) for i in one["intervals"]] == [
            (pytest.approx(10 / 30), "phase 0"),
            (pytest.approx(20 / 30), "phase 1"),
        ]
        noise = await (await client.get(f"/api/videos/2?{token}")).json()
        assert "not a video" in noise["error"]

    serve(corpus, conversation)


def test_further_columns_of_a_manifest(corpus: str, tmp_path: Path) -> None:
    manifest = str(tmp_path / "m.parquet")
    values: dict[str, list[Any]] = {
        "video_id": ["a", "other"],
        "uri": ["a", "b"],
        "content_hash": ["x", "y"],
        "verified": [True, True],
        "frame_step": [1.0, 1.0],
    } | {name: [40, 40] for name in ("num_frames", "width", "height", "bytes")}
    values = {field.name: values.get(field.name, [0 if not field.nullable else None] * 2) for field in SCHEMA}
    table = pa.table(values, SCHEMA)
    further = {"person": ["Ada", "Bob"], "trial": [3, None], "notes": [["x"], []]}
    for name, column in further.items():
        table = table.append_column(name, pa.array(column))
    write_table(table, manifest)
    opened = Corpus.open(corpus, manifest)
    assert opened.columns == ("split", "person", "trial")
    assert [dict(video.fields) for video in opened.videos] == [
        {"split": "", "person": "", "trial": ""},
        {"split": "test", "person": "Ada", "trial": "3"},
        {"split": "", "person": "", "trial": ""},
    ]


def test_posters_are_made_once(corpus: str, serve: Serve, frame_numbers: Callable[..., list[int]]) -> None:
    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        async def poster(number: int) -> Any:
            for _ in range(1800):
                answer = await client.get(f"/api/videos/{number}/poster?{token}")
                if answer.status != 503:
                    return answer
                assert answer.headers["Retry-After"] == "1"
                await asyncio.sleep(0.1)
            raise AssertionError("no poster in three minutes")

        assert (await poster(0)).status == 404
        assert (await poster(2)).status == 415
        made = await poster(1)
        assert made.status == 200 and made.content_type == "image/jpeg"
        pixels = np.asarray(Image.open(io.BytesIO(await made.read())))
        assert pixels.shape[0] <= 240 and frame_numbers(pixels[None]) == [20]
        headers = {"If-None-Match": made.headers["ETag"]}
        assert (await client.get(f"/api/videos/1/poster?{token}", headers=headers)).status == 304
        progress = await (await client.get(f"/api/progress?{token}")).json()
        assert progress["posters"] == {"done": 2, "total": 2}

    serve(corpus, conversation)
    # A hash from outside is no path.
    assert [path.suffix for path in (Path(corpus) / "explore" / "posters").iterdir()] == [".jpg"]


def test_ribbons_have_even_lightness_and_differ(corpus: str, serve: Serve) -> None:
    async def conversation(client: TestClient[Any, Any], token: str) -> None:
        pictures = []
        for number in (0, 1, 1):
            answer = await client.get(f"/api/videos/{number}/ribbon?{token}")
            pictures.append(await answer.read())
        assert pictures[1] == pictures[2] != pictures[0]
        picture = Image.open(io.BytesIO(pictures[1]))
        assert picture.size == (256, 1)
        light = np.asarray(picture.convert("L"), np.float64)
        assert light.min() > 90 and light.max() < 200
        blue_to_yellow = np.asarray(picture, np.float64)[0] @ [0.5, 0.5, -1]
        assert np.ptp(blue_to_yellow) > 60

    serve(corpus, conversation)


def test_the_command_serves_until_ctrl_c(corpus: str) -> None:
    command = [sys.executable, "-m", "carl_ray.explore", "--embeddings", corpus, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert re.fullmatch(r"explore: http://127\.0\.0\.1:\d+/\?token=[\w-]{32}\n", line)
        port = re.findall(r":(\d+)/", line)[0]
        other = subprocess.run([*command[:-1], port], capture_output=True, text=True)
        assert other.returncode == 2
        read_only, taken = [line for line in other.stderr.splitlines() if not line.startswith("indexed")]
        assert "labels are only shown" in read_only and f"--port {port}: Address already in use" in taken
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(180) == 130
        assert process.stderr.read().splitlines()[-1] == "carl_ray: interrupted"
    assert not (Path(corpus) / "labels.csv.lock").exists()
