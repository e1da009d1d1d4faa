"""The video files for the page: byte ranges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from aiohttp import web

from carl_ray import storage
from carl_ray.errors import UserError

_CHUNK = 1 << 20  # bytes
Read = Callable[[int, int], Awaitable[bytes]]
"""The bytes from a start to a stop."""


async def answer_ranges(
    request: web.Request, size: int, read: Read, content_type: str, etag: str
) -> web.StreamResponse:
    """Answer a request for a file, or for a range of its bytes, a chunk at a time."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": content_type, "ETag": f'"{etag}"'}
    start, stop, status = 0, size, 200
    if "Range" in request.headers and request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
        try:
            wanted = request.http_range
            start, stop, _ = wanted.indices(size)
        except ValueError:
            start = stop = 0
        if start >= stop:
            raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"})
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = stop - start
    await response.prepare(request)
    if request.method != "HEAD":
        for at in range(start, stop, _CHUNK):
            await response.write(await read(at, min(at + _CHUNK, stop)))
    await response.write_eof()
    return response


async def answer_file(request: web.Request, uri: str, content_type: str, etag: str) -> web.StreamResponse:
    """Answer a request for a file of a disk or an object store; only what is asked for is read."""
    with ExitStack() as opened:

        def open_file() -> storage.NativeFile:
            filesystem, path = storage.resolve(uri)
            return filesystem.open_input_file(path)

        def read(start: int, stop: int) -> bytes:
            content = storage.persistently(uri, "read", lambda: file.read_at(stop - start, start))
            if len(content) < stop - start:
                raise UserError(f"{storage.public_uri(uri)}: it has become shorter")
            return bytes(content)

        try:
            file = await asyncio.to_thread(storage.persistently, uri, "read", open_file)
            opened.callback(file.close)
            size = await asyncio.to_thread(file.size)
        except FileNotFoundError:
            raise web.HTTPNotFound(text=f"{storage.public_uri(uri)}: no such file") from None
        except OSError as error:
            raise storage.storage_error(error, uri, "read") from None
        return await answer_ranges(
            request, size, lambda start, stop: asyncio.to_thread(read, start, stop), content_type, etag
        )
