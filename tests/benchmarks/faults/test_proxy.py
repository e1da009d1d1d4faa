"""`benchmarks.faults.proxy`: what passes is whole, what is spoilt is spoilt as asked."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.faults.proxy import Fault, FaultProxy

CONTENT = b"0123456789"


class Echo(BaseHTTPRequestHandler):
    """Notes requests, and answers all of them alike."""

    protocol_version = "HTTP/1.1"
    requests: list[tuple[str, str, str | None, bytes]] = []  # noqa: RUF012

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.requests.append((self.command, self.path, self.headers["Host"], body))
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("ETag", '"tag"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(CONTENT)

    do_GET = do_HEAD = do_PUT = do_POST = answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def shared(target: str) -> Iterator[FaultProxy]:
    with FaultProxy(target) as proxy:
        yield proxy


@pytest.fixture
def proxy(shared: FaultProxy) -> FaultProxy:
    shared.clear()
    Echo.requests.clear()
    return shared


def ask(
    proxy: FaultProxy, method: str = "GET", path: str = "/b/k", body: bytes = b""
) -> tuple[int, str | None, bytes]:
    """Status, ETag and body of an answer, over a connection of its own."""
    connection = http.client.HTTPConnection(proxy.endpoint, timeout=30)
    try:
        connection.request(method, path, body, {"Host": "signed.example"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("ETag"), answer.read()
    finally:
        connection.close()


def statuses(proxy: FaultProxy, number: int, method: str = "GET", path: str = "/b/k") -> list[int]:
    return [ask(proxy, method, path)[0] for _ in range(number)]


def counted(proxy: FaultProxy, before: dict[str, int]) -> dict[str, int]:
    after = proxy.counts
    return {kind: after[kind] - before.get(kind, 0) for kind in after if after[kind] != before.get(kind, 0)}


def test_requests_pass_as_they_come(proxy: FaultProxy) -> None:
    before = proxy.counts
    assert ask(proxy, "PUT", "/b/a%20b?partNumber=2", b"body") == (200, '"tag"', CONTENT)
    assert ask(proxy, "HEAD") == (200, '"tag"', b"")
    assert Echo.requests == [
        ("PUT", "/b/a%20b?partNumber=2", "signed.example", b"body"),
        ("HEAD", "/b/k", "signed.example", b""),
    ]
    assert counted(proxy, before) == {"passed": 2}


def test_a_connection_is_used_again_and_a_body_may_come_in_chunks(proxy: FaultProxy) -> None:
    connection = http.client.HTTPConnection(proxy.endpoint, timeout=30)
    for _ in range(2):
        connection.request("PUT", "/b/k", iter([b"one ", b"two"]), encode_chunked=True)
        assert connection.getresponse().read() == CONTENT
    connection.close()
    assert [body for *_, body in Echo.requests] == [b"one two"] * 2


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [("error", 500, b"Internal"), ("slow_down", 503, b"SlowDown"), ("deny", 403, b"Acc")],
)
def test_refusals(proxy: FaultProxy, kind: str, status: int, code: bytes) -> None:
    before = proxy.counts
    proxy.inject(Fault(kind, times=2))  # type: ignore[arg-type]
    found, _, body = ask(proxy, "PUT")
    assert (found, code in body) == (status, True)
    assert ask(proxy, "HEAD")[2] == b""
    assert Echo.requests == []
    assert statuses(proxy, 1) == [200]
    assert counted(proxy, before) == {kind: 2, "passed": 1}


def test_which_requests_are_met(proxy: FaultProxy) -> None:
    proxy.inject(Fault("error", method="PUT", key=r"^/b/model\.pt\?", times=None))
    proxy.inject(Fault("deny", method="HEAD"))
    assert statuses(proxy, 2, "PUT", "/b/model.pt?uploadId=1") == [500, 500]
    assert statuses(proxy, 1, "PUT", "/b/model_pt?uploadId=1") == [200]
    assert statuses(proxy, 1, "GET", "/b/model.pt?uploadId=1") == [200]
    assert statuses(proxy, 2, "HEAD") == [403, 200]
    proxy.clear()
    assert statuses(proxy, 1, "PUT", "/b/model.pt?uploadId=1") == [200]


def test_the_first_fault_that_fits_goes_first(proxy: FaultProxy) -> None:
    for kind in ("error", "slow_down", "deny"):
        proxy.inject(Fault(kind))
    assert statuses(proxy, 4) == [500, 503, 403, 200]


def test_a_share_of_the_requests_by_a_seed(target: str) -> None:
    found = []
    for seed in (1, 1, 2):
        with FaultProxy(target, seed) as proxy:
            proxy.inject(Fault("error", probability=0.5, times=None))
            found.append(statuses(proxy, 24))
    assert found[0] == found[1] != found[2]
    assert set(found[0]) == {200, 500}


def test_a_body_that_ends_early(proxy: FaultProxy) -> None:
    before = proxy.counts
    proxy.inject(Fault("truncate"))
    assert statuses(proxy, 1, "PUT") == [200]
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(proxy)
    assert caught.value.partial == CONTENT[:5]
    assert caught.value.expected == 5
    assert ask(proxy)[2] == CONTENT
    assert counted(proxy, before) == {"truncate": 1, "passed": 2}


def test_a_reset_before_the_request_arrived_and_after(proxy: FaultProxy) -> None:
    proxy.inject(Fault("reset"))
    with pytest.raises(ConnectionResetError):
        ask(proxy, "PUT", body=b"lost")
    assert Echo.requests == []
    proxy.inject(Fault("lose_answer"))
    with pytest.raises(ConnectionResetError):
        ask(proxy, "PUT", body=b"done")
    assert [body for *_, body in Echo.requests] == [b"done"]


@pytest.mark.parametrize("seconds", [0.1, 600.0])
def test_no_answer_until_it_is_let_go(proxy: FaultProxy, seconds: float) -> None:
    before = proxy.counts
    proxy.inject(Fault("hang", seconds=seconds))

    def let_go() -> None:
        while not counted(proxy, before):
            time.sleep(0.01)
        proxy.clear()

    if seconds > 1:
        threading.Thread(target=let_go, daemon=True).start()
    with pytest.raises(http.client.RemoteDisconnected):
        ask(proxy)
    assert Echo.requests == []
    assert statuses(proxy, 1) == [200]


@pytest.mark.parametrize(
    "head", ["Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
)
def test_half_an_upload_is_none(proxy: FaultProxy, head: str) -> None:
    host, _, port = proxy.endpoint.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(f"PUT /b/k HTTP/1.1\r\nHost: x\r\n{head}".encode())
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    assert Echo.requests == []


def test_a_server_that_is_gone_is_a_reset(free_port: object) -> None:
    with FaultProxy(f"127.0.0.1:{free_port()}") as proxy, pytest.raises(ConnectionResetError):  # type: ignore[operator]
        ask(proxy)


def test_the_end_lets_go_of_what_is_open(target: str) -> None:
    with FaultProxy(target) as proxy:
        endpoint = proxy.endpoint
        idle = http.client.HTTPConnection(endpoint, timeout=30)
        idle.request("GET", "/b/k")
        assert idle.getresponse().read() == CONTENT
    assert idle.sock.recv(1) == b""
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(endpoint, timeout=30).request("GET", "/")
