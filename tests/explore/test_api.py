"""The routes that compute, as the page calls them."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from carl_ray.data import child
from carl_ray.data.decode import probe_video
from carl_ray.evaluation.embeddings import Origin, write_part
from carl_ray.explore import api, labels
from carl_ray.explore.api import labels_of, open_workbench
from carl_ray.explore.library import Corpus
from carl_ray.explore.server import TOKEN, make_app
from tests.explore.test_alignments import labelled

ORIGIN = Origin("run", "0" * 64, "demo", 1, 8, 8, "resized", has_untrained=False)
EDGES = {"a": [5, 10, 20], "b": [12, 16, 20], 'c "<b>\n': [3, 15, 20]}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    uri = str(tmp_path / "embeddings")
    videos = [labelled(name, edges, label="kick", split="test") for name, edges in EDGES.items()]
    videos.append(labelled("d", [1, 2, 4], label="jump", split="train"))
    write_part(uri, videos, ORIGIN, "float32")
    return uri


Ask = Callable[..., Awaitable[tuple[int, Any]]]


def talk(folder: str, labels: str | None, conversation: Callable[[Ask], Awaitable[None]]) -> None:
    """Serve the folder, and let a conversation ask: method, path, JSON; answers are status and content."""

    async def run() -> None:
        corpus = Corpus.open(folder)
        app = make_app(
            corpus, open_workbench(corpus, labels or f"{folder}/labels.csv", labels and (lambda: None))
        )
        async with TestClient(TestServer(app)) as client:

            async def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
                joined = "&" if "?" in path else "?"
                url = f"{path}{joined}token={app[TOKEN]}"
                response: ClientResponse = await client.request(method, url, json=body)
                is_json = response.content_type == "application/json"
                return response.status, await (response.json() if is_json else response.read())

            await conversation(ask)

    asyncio.run(run())


def test_moments_of_other_videos(folder: str) -> None:
    async def conversation(ask: Ask) -> None:
        status, found = await ask("GET", "/api/moments?video=0&frame=7&count=9")
        assert status == 200 and found["query"] == {"video": 0, "frame": 7, "time": 0.7}
        assert [(m["video"], m["frame"], m["similarity"]) for m in found["moments"]] == [
            (1, 12, 1),
            (2, 3, 1),
            (3, 1, 1),
        ]
        assert found["moments"][0]["time"] == 1.2 and found["searched"] == 3
        _, some = await ask("GET", "/api/moments?video=0&frame=7&label=kick")
        assert [m["video"] for m in some["moments"]] == [1, 2] and some["searched"] == 2
        _, some = await ask("GET", "/api/moments?video=0&frame=7&split=train&count=1")
        assert [m["video"] for m in some["moments"]] == [3]
        for wrong in (
            "video=9&frame=0",
            "video=0&frame=20",
            "video=x&frame=0",
            "video=0",
            "video=0&frame=0&count=0",
        ):
            status, answer = await ask("GET", f"/api/moments?{wrong}")
            assert status == 400 and answer["error"].startswith("expected ")

    talk(folder, None, conversation)


def test_videos_in_step(folder: str) -> None:
    async def conversation(ask: Ask) -> None:
        status, found = await ask("GET", "/api/alignment?videos=0,1,2")
        assert status == 200 and found["videos"] == [0, 1, 2]
        assert found["frames"][0] == list(range(20)) and found["times"][0][5] == 0.5
        for number, edges in ((1, EDGES["b"]), (2, EDGES['c "<b>\n'])):
            phases = np.searchsorted(edges, found["frames"][number], "right")
            assert phases.tolist() == [0] * 5 + [1] * 5 + [2] * 10
        assert found["similarity"] == [None, 1, 1] and found["shared"] == [[0, 20]] * 3
        for wrong in ("videos=0", "videos=0,1,2,3,0,1,2", "videos=0,1&ends=loose", "videos=0,99", ""):
            assert (await ask("GET", f"/api/alignment?{wrong}"))[0] == 400
        status, answer = await ask("GET", "/api/aligned.mp4?videos=0,1")
        assert status == 400 and answer["error"]  # There are no such files.

    talk(folder, None, conversation)


def test_a_process_that_dies_costs_one_answer(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(ask: Ask) -> None:
        with monkeypatch.context() as patched:
            start = child._start
            patched.setattr(child, "_start", lambda code, quiet: start("raise SystemExit(3)", quiet))
            status, answer = await ask("GET", "/api/alignment?videos=0,1")
            assert status == 502 and "did not start" in answer["error"]
        assert (await ask("GET", "/api/alignment?videos=0,1"))[0] == 200

    talk(folder, None, conversation)


@pytest.mark.parametrize("delay", [0.0, 0.05, 5.0])
def test_an_answer_that_nobody_awaits_is_given_up(
    delay: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its process starts, and while it works."""
    hangs = """
import time
from carl_ray.explore import alignments
alignments._TASKS["hang"] = lambda: time.sleep(600)
alignments.answer()
"""
    monkeypatch.setattr(api, "_CODE", hangs)
    np.save(tmp_path / "vectors.npy", np.eye(5))

    async def conversation() -> None:
        calculator = api.Calculator()
        hanging = asyncio.create_task(calculator.ask("hang"))
        await asyncio.sleep(delay)
        hanging.cancel()
        places = [(str(tmp_path / "vectors.npy"), 0, 5)] * 2
        answer = await asyncio.wait_for(calculator.ask("follow", places=places, ends="tied"), 180)
        assert [follower["frames"] for follower in json.loads(answer)] == [[0, 1, 2, 3, 4]]
        calculator.close()

    asyncio.run(conversation())


def test_a_download_is_decoded_under_a_memory_limit(
    tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, large = str(tmp_path / "embeddings"), make_video(tmp_path / "large.mp4", 20, 1920, 1080)
    videos = [labelled("a", EDGES["a"]), labelled("b", EDGES["b"])]
    write_part(uri, [replace(video, uri=str(large)) for video in videos], ORIGIN, "float32")

    async def conversation(ask: Ask) -> None:
        with monkeypatch.context() as patched:
            patched.setitem(api._MEMORY, "aligned", 32 << 20)
            status, answer = await ask("GET", "/api/aligned.mp4?videos=0,1")
            # Python's memory is refused, or FFmpeg's, which then decodes nothing more.
            assert status in (400, 502) and answer["error"]
        status, content = await ask("GET", "/api/aligned.mp4?videos=0,1")
        assert status == 200 and probe_video(content).num_frames == 20

    talk(uri, None, conversation)


def test_labels_are_drawn_propagated_and_exported(folder: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "labels.csv")
    rows = [{"start": 0, "end": 0.5, "label": "low"}, {"start": 0.5, "end": 1.0, "label": "high"}]

    async def conversation(ask: Ask) -> None:
        status, answer = await ask("POST", "/api/propagation", {})
        assert status == 400 and "draw some first" in answer["error"]
        status, saved = await ask("PUT", "/api/videos/0/intervals", {"intervals": rows, "version": 0})
        assert status == 200 and saved["version"] > 0
        status, answer = await ask("PUT", "/api/videos/0/intervals", {"intervals": [], "version": 0})
        assert status == 409 and answer["version"] == saved["version"]
        assert [(i["label"], i["origin"]) for i in answer["intervals"]] == [("low", "own"), ("high", "own")]
        for wrong in ({"intervals": rows}, {"intervals": 3, "version": 1}, [], "x"):
            assert (await ask("PUT", "/api/videos/0/intervals", wrong))[0] == 400
        status, found = await ask("POST", "/api/propagation", {})
        assert [video["number"] for video in found["videos"]] and found["control"]["agreement"] is None
        by_number = {video["number"]: video["intervals"] for video in found["videos"]}
        assert sorted(by_number) == [1, 2]  # 3 is of another action.
        assert [(i["label"], i["start"], i["end"]) for i in by_number[1]][:2] == [
            ("low", 0, 1.2),
            ("high", 1.2, 1.6),
        ]
        assert all(0 < i["confidence"] <= 1 and i["origin"] == "propagated" for i in by_number[1])
        sure = [video["confidence"] for video in found["videos"]]
        assert sure == sorted(sure)
        assert [video["version"] for video in found["videos"]] == [0, 0]
        accepted = {"intervals": by_number[1], "version": 0}
        assert (await ask("PUT", "/api/videos/1/intervals", accepted))[0] == 200
        status, found = await ask("POST", "/api/propagation", {"sources": [0]})
        assert [video["number"] for video in found["videos"]] == [2]  # 1 has labels of its own now.
        status, found = await ask("POST", "/api/propagation", {"targets": [2]})
        assert [video["number"] for video in found["videos"]] == [2]
        assert found["control"]["agreement"] > found["control"]["straight_line"] > 0
        status, content = await ask("GET", "/api/labels.csv")
        text = content.decode()
        assert status == 200 and [row[0] for row in csv.reader(io.StringIO(text))][:3] == ["video", "a", "a"]
        assert Path(uri).read_text() == text

    talk(folder, uri, conversation)
    # What was accepted is there after a restart.
    workbench = open_workbench(Corpus.open(folder), uri)
    assert [i["label"] for i in labels_of(workbench, 0)["intervals"]] == ["low", "high", "rest", "up", "down"]
    assert labels_of(workbench, 3)["version"] == 0


def test_a_second_reader_sees_labels_and_does_not_write(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(folder, "labels.csv").write_text("video,start,end,label\na,0,0.5,low\na,0.5,1,high\n")

    async def conversation(ask: Ask) -> None:
        status, answer = await ask("PUT", "/api/videos/0/intervals", {"intervals": [], "version": 0})
        assert status == 403 and "this page only reads" in answer["error"]
        _, library = await ask("GET", "/api/library")
        assert library["writable"] is False and library["videos"][0]["labelled"] is True
        assert (await ask("GET", "/api/labels.csv"))[1].count(b"\n") == 3
        status, found = await ask("POST", "/api/propagation", {})
        assert status == 200 and len(found["videos"]) == 2
        # What the one that writes saves meanwhile.
        Path(folder, "labels.csv").write_text("video,start,end,label\nd,0,0.4,low\n")
        monkeypatch.setattr(labels, "_FRESH_SECONDS", 0.0)
        _, library = await ask("GET", "/api/library")
        assert [video["labelled"] for video in library["videos"]] == [False, False, False, True]
        assert (await ask("GET", "/api/videos/3"))[1]["intervals"][0]["label"] == "low"

    talk(folder, None, conversation)
