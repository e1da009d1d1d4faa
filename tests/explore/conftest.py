"""A corpus of small videos of several codecs, and a client of its server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Origin, write_part
from carl_ray.explore.api import open_workbench
from carl_ray.explore.library import Corpus
from carl_ray.explore.server import TOKEN, make_app

ORIGIN = Origin("run", "0" * 64, "demo", 1, 8, 8, "resized", has_untrained=False)

Make = Callable[..., str]
Serve = Callable[..., None]


@pytest.fixture
def embed(tmp_path: Path) -> Make:
    """A function that writes embeddings of files: id, URI, frames, further fields; random ones, on a walk."""

    def write(*videos: tuple[str, str | Path, int, dict[str, Any]]) -> str:
        generator = np.random.default_rng(3)
        rows = [
            EmbeddedVideo(
                video_id=video_id,
                uri=str(uri),
                timestamps=np.arange(frames, dtype=np.float64),
                embeddings=generator.normal(size=(frames, 8)).cumsum(0).astype(np.float32),
                **{"fps": 30.0, **fields},
            )
            for video_id, uri, frames, fields in videos
        ]
        write_part(str(tmp_path / "E"), rows, ORIGIN, "float32")
        return str(tmp_path / "E")

    return write


@pytest.fixture
def serve() -> Serve:
    """A function that serves embeddings while a coroutine function talks to a client, with the token or without."""

    def run(
        uri: str, conversation: Callable[[TestClient[Any, Any], str], Awaitable[None]], **options: Any
    ) -> None:
        async def talk() -> None:
            corpus = Corpus.open(uri)
            app = make_app(corpus, open_workbench(corpus, f"{corpus.folder}/labels.csv"), **options)
            async with TestClient(TestServer(app)) as client:
                await conversation(client, f"token={app[TOKEN]}")

        asyncio.run(talk())

    return run
