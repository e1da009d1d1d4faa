"""The page's server: routes, token, headers.

Whoever has the token may see what the embeddings name, and nothing else: URLs have numbers of videos, never paths.
Only pages of this server may use it: other hosts (DNS rebinding) and origins are refused.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from aiohttp import web

from carl_ray.errors import RunError, UserError
from carl_ray.explore import media
from carl_ray.explore.library import Corpus, Video

CORPUS = web.AppKey("corpus", Corpus)
TOKEN = web.AppKey("token", str)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_MAX_BODY = 16 << 20  # bytes
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def serve(corpus: Corpus, port: int) -> None:
    """Serve the page on this machine until it is interrupted; print its address.

    Raises:
        UserError: the port is taken.
    """
    asyncio.run(_serve(make_app(corpus), port))


async def _serve(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror or error}; another one is needed") from None
        address = f"http://127.0.0.1:{runner.addresses[0][1]}/?token={app[TOKEN]}"
        print(f"explore: {address}", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def make_app(corpus: Corpus) -> web.Application:
    """The application: routes of this module, and those of the others by their `add_routes`."""
    app = web.Application(middlewares=[_guard], client_max_size=_MAX_BODY)
    app[CORPUS], app[TOKEN] = corpus, secrets.token_urlsafe(24)
    app.on_response_prepare.append(_add_headers)
    app.add_routes(
        [
            web.get("/", _static),
            web.get("/static/{name}", _static),
            web.get("/api/library", _library),
            web.get(r"/api/videos/{number:\d{1,9}}", _video),
            web.get(r"/media/{number:\d{1,9}}", _media),
        ]
    )
    return app


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
    """Refuse strangers; answer every error as JSON."""
    try:
        _check(request)
        response = await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _error(error.status, error.text or error.reason, error.headers)
    except UserError as error:
        return _error(400, str(error))
    except RunError as error:
        return _error(502, str(error))
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
    response.headers.setdefault("Cache-Control", "no-store")


async def _static(request: web.Request) -> web.StreamResponse:
    """A file of the page; a name that is not in its folder is no file."""
    folder = Path(str(files("carl_ray.explore"))) / "static"
    found = {path.name: path for path in folder.glob("*") if path.suffix in _TYPES}
    path = found.get(request.match_info.get("name", "index.html"))
    if path is None:
        raise web.HTTPNotFound(text="no such file of the page")
    return web.FileResponse(
        path, headers={"Content-Type": f"{_TYPES[path.suffix]}; charset=utf-8", "Cache-Control": "no-cache"}
    )


async def _library(request: web.Request) -> web.StreamResponse:
    corpus = request.app[CORPUS]
    videos = await asyncio.to_thread(lambda: [_summary(video) for video in corpus.videos])
    actions = [{"label": label, "phases": phases} for label, phases in corpus.actions.items()]
    answer = {
        "title": corpus.title,
        "writable": True,
        "actions": actions,
        "columns": ["split"],
        "videos": videos,
    }
    return web.json_response(answer, dumps=_dumps)


def _summary(video: Video) -> dict[str, Any]:
    return {
        "number": video.number,
        "id": video.video_id,
        "label": video.label,
        "fields": {"split": video.split},
        "frames": len(video),
        "fps": video.fps,
        "seconds": video.seconds,
        "labelled": bool(video.intervals),
        "available": video.is_available,
    }


async def _video(request: web.Request) -> web.StreamResponse:
    video = video_of(request)
    answer = {
        "number": video.number,
        "id": video.video_id,
        "times": video.times.tolist(),
        "intervals": video.intervals,
        "plays": "as is",
        "error": None,
    }
    return web.json_response(answer, dumps=_dumps)


async def _media(request: web.Request) -> web.StreamResponse:
    video = video_of(request)
    return await media.answer_file(request, video.uri, "video/mp4", video.key)


def _dumps(answer: Any) -> str:
    return json.dumps(answer, allow_nan=False)
