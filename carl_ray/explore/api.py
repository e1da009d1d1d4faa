"""What the page computes: nearest moments, alignments, labels and their propagation.

Alignment and propagation run in a process of their own (`carl_ray.explore.alignments`), for they need torch, which
would take half of the memory that the server has.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from aiohttp import web

from carl_ray.data.child import BadVideoError, Child, KilledError, RefusedError
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.intervals import Interval
from carl_ray.explore.alignments import Ends, described
from carl_ray.explore.conversion import CONTENT
from carl_ray.explore.labels import ConflictError, LabelStore, drawn
from carl_ray.explore.library import Corpus
from carl_ray.explore.moments import MomentIndex

_MOST_MOMENTS = 200
_MOST_ALIGNED = 6
_TARGETS_AT_A_TIME = 16
_ANSWER_SECONDS = 900.0
_MEMORY = {"aligned": 8 << 30}
"""Limits in bytes of tasks that decode videos; to align two of 6,000 frames takes almost 2 GB."""
_CODE = "from carl_ray.explore.alignments import answer; answer()"
_NUMBERS = re.compile(r"\d{1,9}(,\d{1,9})*")


class Calculator:
    """The process that aligns and propagates; it answers one question at a time."""

    def __init__(self) -> None:
        self._child = Child(_CODE)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="calculator")  # The child ends with it.
        self._one_at_a_time = asyncio.Lock()

    async def ask(self, task: str, **arguments: Any) -> bytes:
        """The answer to one question, JSON or a video.

        Raises:
            UserError: the task refuses its arguments.
            RunError: it failed, or the process died or took too long.
        """

        def ask() -> bytes:
            (answer,) = self._child.ask(
                "",
                {"task": task, **arguments},
                CONTENT,
                seconds=_ANSWER_SECONDS,
                memory=_MEMORY.get(task, 1 << 40),
            )
            content: bytes = answer["content"].tobytes()
            return content

        async with self._one_at_a_time:
            job = self._thread.submit(ask)
            try:
                return await asyncio.wrap_future(job)
            except asyncio.CancelledError:
                while not job.done():  # The process may only be starting.
                    self._child.interrupt()
                    await asyncio.sleep(0.05)
                raise
            except RefusedError as error:
                raise UserError(str(error)) from None
            except (BadVideoError, KilledError) as error:  # `Child` calls its process the decoder.
                raise RunError(f"the process that aligns and propagates ended: {error}") from None

    def close(self) -> None:
        """End the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._child.interrupt()


@dataclass
class Workbench:
    """What the routes of this module work on."""

    videos: Sequence[EmbeddedVideo]
    """In the order of the numbers; their embeddings are unit vectors."""
    index: MomentIndex
    labels: LabelStore
    calculator: Calculator = field(default_factory=Calculator)

    def numbers(self, text: str | None) -> list[int]:
        """Numbers of videos, separated by commas.

        Raises:
            HTTPBadRequest: the text is something else, or there is no such video.
        """
        if text is None or not _NUMBERS.fullmatch(text):
            raise web.HTTPBadRequest(text="expected numbers of videos, separated by commas")
        return self.known([int(number) for number in text.split(",")])

    def known(self, numbers: Any) -> list[int]:
        """The numbers, if there is a video of each."""
        if not isinstance(numbers, list) or not all(
            type(n) is int and 0 <= n < len(self.videos) for n in numbers
        ):
            raise web.HTTPBadRequest(text=f"expected numbers of videos, from 0 to {len(self.videos) - 1}")
        return numbers


WORKBENCH = web.AppKey("workbench", Workbench)


def open_workbench(
    corpus: Corpus,
    labels: str,
    check: Callable[[], object] | None = None,
    start: Mapping[int, list[Interval]] | None = None,
) -> Workbench:
    """A corpus with its labels.

    Args:
        corpus: The videos.
        labels: URI of the file of labels.
        check: As of `LabelStore`.
        start: As of `LabelStore`.

    Raises:
        UserError: the labels do not fit the videos.
        RunError: the store refuses or fails.
    """
    return Workbench(corpus.videos, corpus.index, LabelStore(labels, corpus.videos, check, start))


def add_routes(app: web.Application, workbench: Workbench) -> None:
    """Add the routes of this module to the server's application."""
    app[WORKBENCH] = workbench
    app.cleanup_ctx.append(_calculator)
    app.add_routes(
        [
            web.get("/api/moments", _moments),
            web.get("/api/alignment", _alignment),
            web.get("/api/aligned.mp4", _aligned_video),
            web.put(r"/api/videos/{number:\d{1,9}}/intervals", _save),
            web.post("/api/propagation", _propagation),
            web.get("/api/labels.csv", _labels),
        ]
    )


async def _calculator(app: web.Application) -> AsyncIterator[None]:
    yield
    app[WORKBENCH].calculator.close()


def labels_of(workbench: Workbench, number: int) -> dict[str, Any]:
    """The intervals of a video, its own and those of the manifest, and the version of its own."""
    own, version = workbench.labels.read(number)
    shown = [(interval, "own") for interval in own]
    shown += [(interval, "manifest") for interval in drawn(workbench.videos[number])]
    return {"intervals": [_row(interval, origin) for interval, origin in shown], "version": version}


async def _moments(request: web.Request) -> web.StreamResponse:
    workbench, query = request.app[WORKBENCH], request.query
    (number,) = workbench.numbers(query.get("video"))[:1]
    video, frame = workbench.videos[number], _whole(query.get("frame"), 0, len(workbench.videos[number]) - 1)
    count, label, split = (
        _whole(query.get("count", "24"), 1, _MOST_MOMENTS),
        query.get("label"),
        query.get("split"),
    )
    allowed = np.array(
        [
            not _same_file(other, video) and label in (None, other.label) and split in (None, other.split)
            for other in workbench.videos
        ]
    )
    started = time.perf_counter()
    found = await asyncio.to_thread(workbench.index.search, video.embeddings[frame], count, allowed)
    moments = [
        {
            "video": moment.video,
            "frame": moment.frame,
            "time": _time(workbench.videos[moment.video], moment.frame),
            "similarity": round(moment.similarity, 4),
            "label": workbench.videos[moment.video].label,
        }
        for moment in found
    ]
    answer = {
        "query": {"video": number, "frame": frame, "time": _time(video, frame)},
        "moments": moments,
        "searched": int(allowed.sum()),
        "seconds": time.perf_counter() - started,
    }
    return web.json_response(answer)


async def _alignment(request: web.Request) -> web.StreamResponse:
    workbench = request.app[WORKBENCH]
    numbers, ends = workbench.numbers(request.query.get("videos")), _ends(request)
    if not 2 <= len(numbers) <= _MOST_ALIGNED:
        raise web.HTTPBadRequest(text=f"expected 2 to {_MOST_ALIGNED} videos, got {len(numbers)}")
    places = [workbench.index.place(number) for number in numbers]
    followers = json.loads(await workbench.calculator.ask("follow", places=places, ends=ends))
    length = len(workbench.videos[numbers[0]])
    frames = [list(range(length)), *(follower["frames"] for follower in followers)]
    videos = [workbench.videos[number] for number in numbers]
    times = [[_time(v, frame) for frame in shown] for v, shown in zip(videos, frames, strict=True)]
    return web.json_response(
        {
            "videos": numbers,
            "frames": frames,
            "times": times,
            "shared": [[0, length], *(follower["shared"] for follower in followers)],
            "similarity": [None, *(follower["similarity"] for follower in followers)],
        }
    )


async def _aligned_video(request: web.Request) -> web.StreamResponse:
    workbench = request.app[WORKBENCH]
    numbers, ends = workbench.numbers(request.query.get("videos")), _ends(request)
    if len(numbers) != 2:
        raise web.HTTPBadRequest(text=f"expected two videos, got {len(numbers)}")
    places = [workbench.index.place(number) for number in numbers]
    files = [(workbench.videos[n].video_id, workbench.videos[n].uri) for n in numbers]
    content = await workbench.calculator.ask("aligned", files=files, places=places, ends=ends)
    headers = {"Content-Disposition": 'attachment; filename="aligned.mp4"'}
    return web.Response(body=content, content_type="video/mp4", headers=headers)


async def _save(request: web.Request) -> web.StreamResponse:
    workbench, body = request.app[WORKBENCH], await _json(request)
    (number,) = workbench.numbers(request.match_info["number"])
    store, given = workbench.labels, body.get("version")
    if not store.is_writable:
        raise web.HTTPForbidden(text="another process writes these labels: this page only reads")
    if type(given) is not int:
        raise web.HTTPBadRequest(text="expected the version of the intervals that were changed")
    try:
        version = await asyncio.to_thread(store.save, number, body.get("intervals"), given)
    except ConflictError as error:
        own, version = store.read(number)
        answer = {"error": str(error), "intervals": [_row(i, "own") for i in own], "version": version}
        return web.json_response(answer, status=409)
    return web.json_response({"version": version})


async def _propagation(request: web.Request) -> web.StreamResponse:
    workbench, body = request.app[WORKBENCH], await _json(request)
    store = workbench.labels
    asked = body.get("sources")
    sources = store.labelled(None if asked is None else workbench.known(asked))
    if not sources:
        raise UserError("no video has labels to propagate: draw some first")
    given = body.get("targets")
    targets = workbench.known(list(range(len(workbench.videos))) if given is None else given)
    # Without a choice, the videos that have no labels of their own.
    own = store.labelled() if given is None else sources
    targets = [number for number in targets if number not in own and number not in sources]
    labelled = [described(video, workbench.index.place(number)) for number, video in sources.items()]
    proposed = []
    for start in range(0, len(targets), _TARGETS_AT_A_TIME):
        some = targets[start : start + _TARGETS_AT_A_TIME]
        videos = [described(workbench.videos[number], workbench.index.place(number)) for number in some]
        found = json.loads(await workbench.calculator.ask("propagate", sources=labelled, targets=videos))
        for number, spans in zip(some, found, strict=True):
            if spans is not None:
                intervals = [Interval(*span) for span in spans]
                lengths = [interval.end - interval.start for interval in intervals]
                sure = np.average([i.confidence for i in intervals], weights=lengths) if intervals else 0.0
                rows = [_row(interval, "propagated") for interval in intervals]
                version = store.read(number)[1]
                proposed.append(
                    {"number": number, "intervals": rows, "confidence": float(sure), "version": version}
                )
    proposed.sort(key=lambda video: (video["confidence"], video["number"]))
    agreement, straight_line = json.loads(await workbench.calculator.ask("agreement", sources=labelled))
    shown = {"agreement": agreement, "straight_line": straight_line}
    return web.json_response({"videos": proposed, "control": shown})


async def _labels(request: web.Request) -> web.StreamResponse:
    headers = {"Content-Disposition": 'attachment; filename="labels.csv"'}
    content = request.app[WORKBENCH].labels.csv()
    return web.Response(body=content, content_type="text/csv", charset="utf-8", headers=headers)


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="expected a JSON object")
    return body


def _same_file(one: EmbeddedVideo, other: EmbeddedVideo) -> bool:
    return one.uri == other.uri or (bool(one.content_hash) and one.content_hash == other.content_hash)


def _ends(request: web.Request) -> str:
    ends = request.query.get("ends", "tied")
    if ends not in get_args(Ends):
        raise web.HTTPBadRequest(text=f"ends: expected {', '.join(get_args(Ends))}, got {ends[:20]!r}")
    return ends


def _whole(text: str | None, least: int, most: int) -> int:
    if text is None or not re.fullmatch(r"\d{1,9}", text) or not least <= int(text) <= most:
        raise web.HTTPBadRequest(
            text=f"expected a whole number from {least} to {most}, got {str(text)[:20]!r}"
        )
    return int(text)


def _time(video: EmbeddedVideo, frame: int) -> float | None:
    return None if video.seconds is None else float(video.seconds[frame])


def _row(interval: Interval, origin: str) -> dict[str, Any]:
    confidence = interval.confidence if origin == "propagated" else None
    return {
        "start": interval.start,
        "end": interval.end,
        "label": interval.label,
        "confidence": confidence,
        "origin": origin,
    }
