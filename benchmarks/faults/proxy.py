"""A proxy before an S3 server that fails on demand: what `carl_ray.storage` and runs over it have to survive.

    with FaultProxy("127.0.0.1:9000") as proxy:
        proxy.inject(Fault("slow_down", method="GET", probability=0.1, times=None))
        …  # s3://bucket/key?endpoint_override=PROXY.ENDPOINT&scheme=http

Requests pass as they come, the Host header included, which is signed: the server must not check signatures, or
must know the proxy's address as its own.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

FaultKind = Literal["error", "slow_down", "deny", "reset", "lose_answer", "hang", "truncate"]

_REFUSALS = {
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "deny": (403, "AccessDenied", "Access Denied"),
}
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "expect")
_TARGET_SECONDS = 60.0


@dataclass(frozen=True)
class Fault:
    """One way to fail, and which requests it meets."""

    kind: FaultKind
    """What the client gets.

    error: 500. slow_down: 503. deny: 403.
    reset: the connection is reset before the request reaches the server.
    lose_answer: the same after it did, so that what it asked for is done.
    hang: no answer while the connection stays open, then its end.
    truncate: the right Content-Length, but half of the body (of the answer to a GET) and the end of the connection.
    """
    method: str | None = None
    """Only requests of this method; None: of any."""
    key: str = ""
    """Regular expression that must be found in the path and query of a request (`/bucket/key?uploadId=…`)."""
    times: int | None = 1
    """Requests that it spoils; None: all until `FaultProxy.clear`."""
    probability: float = 1.0
    """Share of the matching requests that it spoils, drawn with the proxy's seed."""
    seconds: float = 600.0
    """How long a hanging connection is held, at most."""


class FaultProxy:
    """An HTTP server, in threads of this process, that passes requests on to another or spoils them.

    Args:
        target: host:port of the S3 server.
        seed: Of the draws for faults with a probability.
    """

    def __init__(self, target: str, seed: int = 0) -> None:
        self._target = target
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._faults: list[tuple[Fault, int | None]] = []
        self._counts: Counter[str] = Counter()
        self._released = threading.Event()
        self._connections: set[socket.socket] = set()
        proxy = self

        class Handler(_Handler):
            def setup(self) -> None:
                self.proxy = proxy
                super().setup()

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _shut(connection)

    @property
    def endpoint(self) -> str:
        """host:port that it listens on: the `endpoint_override` of an S3 URI."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    @property
    def counts(self) -> dict[str, int]:
        """Requests so far by what became of them: the kinds of faults, and "passed"."""
        with self._lock:
            return dict(self._counts)

    def inject(self, fault: Fault) -> None:
        """Adds a fault; of those that a request meets, the one added first spoils it."""
        with self._lock:
            self._faults.append((fault, fault.times))

    def clear(self) -> None:
        """Forgets all faults and lets go of the connections that hang."""
        with self._lock:
            self._faults.clear()
            released, self._released = self._released, threading.Event()
        released.set()

    def _take(self, method: str, path: str) -> Fault | None:
        """The fault that spoils a request, if any."""
        with self._lock:
            for place, (fault, left) in enumerate(self._faults):
                if fault.method not in (None, method) or (fault.kind == "truncate" and method != "GET"):
                    continue
                if not re.search(fault.key, path) or self._random.random() >= fault.probability:
                    continue
                if left == 1:
                    del self._faults[place]
                elif left is not None:
                    self._faults[place] = (fault, left - 1)
                self._counts[fault.kind] += 1
                return fault
            self._counts["passed"] += 1
            return None

    def _hang(self, seconds: float) -> None:
        with self._lock:
            released = self._released
        released.wait(seconds)


class _Server(ThreadingHTTPServer):
    """Ends connections as its handlers left them."""

    daemon_threads = True

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection; a shutdown before would be the orderly end that a reset must not have."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that are gone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    proxy: FaultProxy
    protocol_version = "HTTP/1.1"
    # An answer in two packets would wait for the client's acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        with self.proxy._lock:
            self.proxy._connections.add(self.connection)

    def finish(self) -> None:
        with self.proxy._lock:
            self.proxy._connections.discard(self.connection)
        with suppress(OSError):  # The client is gone.
            super().finish()
        self.rfile.close()

    def handle_expect_100(self) -> bool:
        """Tells a client at once to send its body; it would wait a second for that."""
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: `FaultProxy.counts` does."""

    def _answer(self) -> None:
        body = self._body()
        fault = self.proxy._take(self.command, self.path)
        kind = fault.kind if fault is not None else None
        if fault is not None and kind == "hang":
            self.proxy._hang(fault.seconds)
            self._end(reset=False)
        elif kind == "reset":
            self._end(reset=True)
        elif kind in _REFUSALS:
            status, code, message = _REFUSALS[kind]
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self._send(status, [("Content-Type", "application/xml")], text, len(text))
        else:
            self._pass_on(body, kind)

    def _pass_on(self, body: bytes, kind: FaultKind | None) -> None:
        server = http.client.HTTPConnection(self.proxy._target, timeout=_TARGET_SECONDS)
        try:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in (*_HOP_BY_HOP, "content-length"):
                    server.putheader(name, value)
            server.putheader("Content-Length", str(len(body)))
            server.endheaders(body)
            answer = server.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self._end(reset=True)
            return
        finally:
            server.close()
        if kind == "lose_answer":
            self._end(reset=True)
            return
        length = int(answer.getheader("Content-Length", len(content)))
        headers = [
            (name, value)
            for name, value in answer.getheaders()
            if name.lower() not in (*_HOP_BY_HOP, "content-length")
        ]
        if kind == "truncate":
            content = content[: len(content) // 2]
        self._send(answer.status, headers, content, length)
        if kind == "truncate":
            self._end(reset=False)

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or "").lower():
            return self._exactly(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self._line().split(b";")[0], 16):
            parts.append(self._exactly(size))
            self._line()
        while self._line().strip():
            pass  # Trailers.
        return b"".join(parts)

    def _exactly(self, size: int) -> bytes:
        content = self.rfile.read(size)
        # Passed on, what a killed client has begun to send would become a whole file.
        if len(content) < size:
            raise ConnectionError("the client is gone")
        return content

    def _line(self) -> bytes:
        line = self.rfile.readline()
        if not line:
            raise ConnectionError("the client is gone")
        return line

    def _end(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            # With nothing to linger for, closing sends a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


for _method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler._answer)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # It is closed already.
        connection.shutdown(socket.SHUT_RDWR)
