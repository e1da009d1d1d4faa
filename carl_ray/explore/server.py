"""The page's server: routes, token, headers.

Whoever has the token may see what the embeddings name, and nothing else: URLs have numbers of videos, never paths.
Only pages of this server may use it: other hosts (DNS rebinding) and origins are refused.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from aiohttp import web

from carl_ray.data.child import BadVideoError
from carl_ray.errors import RunError, UserError, note
from carl_ray.explore.api import WORKBENCH, Workbench, add_routes, labels_of
from carl_ray.explore.library import Corpus, Video
from carl_ray.explore.media import Media
from carl_ray.explore.pictures import Posters, Ribbons

PORT = 8765
"""Drafts of labels lie in the browser by address: the port is the same at the next start."""
CACHE_BYTES = 10 * 10**9

CORPUS = web.AppKey("corpus", Corpus)
TOKEN = web.AppKey("token", str)
MEDIA = web.AppKey("media", Media)
POSTERS = web.AppKey("posters", Posters)
RIBBONS = web.AppKey("ribbons", Ribbons)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LOGGER = logging.getLogger(__name__)
_MAX_BODY = 16 << 20  # bytes
_PORTS = 20
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_STATIC = Path(str(files("carl_ray.explore"))) / "static"


def serve(app: web.Application, port: int | None) -> None:
    """Serve the page on this machine until it is interrupted; print its address.

    Args:
        app: Of `make_app`.
        port: 0: a free one; None: `PORT`, or the next free one.

    Raises:
        UserError: the port is taken.
    """
    asyncio.run(_serve(app, port))


async def _serve(app: web.Application, port: int | None) -> None:
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await _listen(runner, range(PORT, PORT + _PORTS) if port is None else [port])
        address = f"http://127.0.0.1:{runner.addresses[0][1]}/?token={app[TOKEN]}"
        print(f"explore: {address}\nopen it in a browser of this machine; Ctrl-C ends the page", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, ports: Sequence[int]) -> None:
    """Listen on the first port that is free."""
    for port in ports:
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == ports[-1]:
                raise UserError(f"--port {port}: {os.strerror(error.errno or 0)}; name another one") from None


def make_app(corpus: Corpus, workbench: Workbench, *, cache_bytes: int = CACHE_BYTES) -> web.Application:
    """The application.

    Args:
        corpus: The videos.
        workbench: Their index and labels.
        cache_bytes: Room for converted videos.
    """
    app = web.Application(middlewares=[_guard], client_max_size=_MAX_BODY)
    app[CORPUS], app[TOKEN] = corpus, secrets.token_urlsafe(24)
    app[MEDIA] = Media(corpus.folder / "videos", cache_bytes)
    app[POSTERS] = Posters(corpus.folder / "posters")
    app[RIBBONS] = Ribbons(corpus.videos)
    app.on_response_prepare.append(_add_headers)
    app.on_cleanup.append(_close)
    add_routes(app, workbench)
    app.add_routes(
        [
            web.get("/", _index),
            web.static("/static", _STATIC),
            web.get("/api/library", _library),
            web.get(r"/api/videos/{number:\d{1,9}}", _video),
            web.get(r"/api/videos/{number:\d{1,9}}/poster", _poster),
            web.get(r"/api/videos/{number:\d{1,9}}/ribbon", _ribbon),
            web.get("/api/progress", _progress),
            web.get(r"/media/{number:\d{1,9}}", _media),
        ]
    )
    return app


async def _close(app: web.Application) -> None:
    app[MEDIA].close()
    app[POSTERS].close()


def video_of(request: web.Request) -> Video:
    """The video whose number is in the URL.

    Raises:
        HTTPNotFound: there is none.
    """
    videos = request.app[CORPUS].videos
    number = int(request.match_info["number"])
    if number >= len(videos):
        raise web.HTTPNotFound(text=f"no video {number}: there are {len(videos)}")
    return videos[number]


@web.middleware
async def _guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Refuse strangers; answer every error of a handler as JSON."""
    try:
        _check(request)
        if request.path == "/" and request.host.startswith("localhost"):
            # Drafts of labels lie in the browser by address.
            raise web.HTTPFound(f"http://127.0.0.1:{_port(request)}{request.path_qs}")
        response = await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _error(error.status, error.text or error.reason, error.headers)
    except UserError as error:
        return _error(400, str(error))
    except BadVideoError as error:
        return _error(415, str(error))
    except RunError as error:
        note(f"carl_ray: {error}")
        return _error(502, str(error))
    except Exception as error:
        _LOGGER.exception("%s %s", request.method, request.path)
        return _error(500, f"{type(error).__name__}: {error}")
    if "token" in request.query and not response.prepared:
        name = _cookie_name(request)
        response.set_cookie(name, request.app[TOKEN], httponly=True, samesite="Strict")
    return response


def _check(request: web.Request) -> None:
    """Raise HTTPForbidden unless host, token, origin and content type are right."""
    hosts = [f"{name}:{_port(request)}" for name in ("127.0.0.1", "localhost")]
    if request.headers.get("Host") not in hosts:
        raise web.HTTPForbidden(text=f"expected the host {hosts[0]}")
    given = request.query.get("token") or request.cookies.get(_cookie_name(request)) or ""
    if not hmac.compare_digest(given.encode(), request.app[TOKEN].encode()):
        raise web.HTTPForbidden(text="no valid token: open the address that the server has printed")
    if request.method not in ("GET", "HEAD"):
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="expected application/json")
        if request.headers.get("Origin", f"http://{hosts[0]}") not in [f"http://{host}" for host in hosts]:
            raise web.HTTPForbidden(text="a page of another origin")


def _port(request: web.Request) -> int:
    assert request.transport is not None
    return int(request.transport.get_extra_info("sockname")[1])


def _cookie_name(request: web.Request) -> str:
    return f"carl_ray_token_{_port(request)}"


def _error(status: int, text: str, headers: Any = None) -> web.Response:
    kept = {
        name: headers[name] for name in ("Retry-After", "Allow", "Content-Range") if name in (headers or {})
    }
    body = {"error": " ".join(text.split())}
    return web.json_response(body, status=status, headers=kept)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    is_file = isinstance(response, web.FileResponse)
    response.headers.setdefault("Cache-Control", "no-cache" if is_file else "no-store")


async def _index(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(_STATIC / "index.html")


async def _library(request: web.Request) -> web.StreamResponse:
    corpus, labels = request.app[CORPUS], request.app[WORKBENCH].labels

    def summaries() -> list[dict[str, Any]]:
        return [
            {
                "number": video.number,
                "id": video.video_id,
                "label": video.label,
                "fields": dict(video.fields),
                "frames": len(video),
                "fps": video.fps,
                "seconds": video.duration,
                "labelled": bool(labels.read(video.number)[0]),
                "available": video.is_available,
            }
            for video in corpus.videos
        ]

    answer = {
        "title": corpus.title,
        "corpus": corpus.key,
        "writable": labels.is_writable,
        "actions": [{"label": label, "phases": phases} for label, phases in corpus.actions.items()],
        "columns": list(corpus.columns),
        "videos": await asyncio.to_thread(summaries),
    }
    return web.json_response(answer)


async def _video(request: web.Request) -> web.StreamResponse:
    video = video_of(request)
    answer = {"number": video.number, "id": video.video_id, "times": video.times.tolist()}
    answer |= labels_of(request.app[WORKBENCH], video.number)
    answer |= {"plays": "as is", "error": None}
    try:
        if (await request.app[MEDIA].plan(video)).reason:
            answer["plays"] = "transcoded"
    except (BadVideoError, RunError) as error:
        answer["error"] = str(error)
    return web.json_response(answer)


async def _poster(request: web.Request) -> web.StreamResponse:
    video = video_of(request)
    if not video.is_available:
        raise web.HTTPNotFound(text="the video file is gone")
    path = request.app[POSTERS].get(video)
    if path is None:
        raise web.HTTPServiceUnavailable(text="it is being made", headers={"Retry-After": "1"})
    return web.FileResponse(path, headers={"Cache-Control": "private, no-cache"})


async def _ribbon(request: web.Request) -> web.StreamResponse:
    content = await asyncio.to_thread(request.app[RIBBONS].png, video_of(request))
    return web.Response(body=content, content_type="image/png")


async def _progress(request: web.Request) -> web.StreamResponse:
    posters = request.app[POSTERS]
    # The index is complete before the server starts.
    return web.json_response({"posters": {"done": posters.done, "total": posters.asked}, "index": 1.0})


async def _media(request: web.Request) -> web.StreamResponse:
    video = video_of(request)
    if not video.is_available:
        raise web.HTTPNotFound(text="the video file is gone")
    return await request.app[MEDIA].answer(request, video)
