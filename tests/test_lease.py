"""`carl_ray.lease`: one writer a folder, on the local disk and in an object store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import fs

from carl_ray import lease, storage
from carl_ray.errors import UserError
from carl_ray.lease import LostError, hold, refuse_if_held

HOLD = """
import sys
from carl_ray.errors import UserError
from carl_ray.lease import hold
try:
    with hold(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
except UserError as error:
    print(f"refused: {error}", flush=True)
"""


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "run")
    endpoint = request.getfixturevalue("s3_endpoint")
    fs.S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True).create_dir(
        "leases"
    )
    return f"s3://leases/{tmp_path.name}?endpoint_override={endpoint}&scheme=http"


def start(folder: str) -> subprocess.Popen[str]:
    """A process that says whether it holds the folder; if so, until its input ends."""
    command = [sys.executable, "-c", HOLD, folder]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)


def claims(folder: str) -> list[str]:
    return [name for name in storage.list_folder(storage.join(folder, ".writers")) if name[0].isdigit()]


def claim(folder: str, name: str, **changes: object) -> None:
    """Writes a claim of a process on another machine."""
    now = time.time()
    owner = {
        "host": "elsewhere",
        "machine": "another",
        "pid": 7,
        "pid_started": "1",
        "since": now,
        "heartbeat": now,
    }
    storage.write_bytes(storage.join(folder, ".writers", name), json.dumps(owner | changes).encode())


def test_a_second_writer_is_refused_and_told_whose_it_is(folder: str) -> None:
    with hold(folder) as (held, _):
        there = claims(folder)
        with pytest.raises(
            UserError,
            match=rf"process {os.getpid()} on .*, which holds it for 0:0\d:\d\d, last heartbeat 0:0\d:\d\d ago",
        ):
            refuse_if_held(folder)
        with pytest.raises(UserError, match="another process writes there"), hold(folder):
            pass
        assert claims(folder) == there == [held.name]
        held.check()
    assert claims(folder) == []
    refuse_if_held(folder)
    with pytest.raises(LostError):
        held.check()


def test_nothing_stays_where_nothing_was_written(tmp_path: Path) -> None:
    with hold(str(tmp_path / "run")):
        assert (tmp_path / "run").is_dir()
    assert not list(tmp_path.iterdir())
    (tmp_path / "made before").mkdir()
    with hold(str(tmp_path / "made before")):
        pass
    assert not list((tmp_path / "made before").iterdir())


def test_of_many_that_start_together_one_gets_it(folder: str) -> None:
    processes = [start(folder) for _ in range(3)]
    said = []
    for process in processes:  # The one that holds it does so until all have said what they got.
        assert process.stdout is not None
        said.append(process.stdout.readline().split(":")[0].strip())
    assert sorted(said) == ["held", "refused", "refused"]
    for process in processes:
        assert process.communicate()[0] == "" and process.returncode == 0


def test_take_over_from_a_killed_process_is_immediate(folder: str) -> None:
    process = start(folder)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {process.pid} on "):
        refuse_if_held(folder)
    process.send_signal(signal.SIGKILL)
    # Not reaped, as by the first process of some containers.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with hold(folder):
        assert len(claims(folder)) == 1
    process.wait()


def test_a_process_with_the_same_id_is_another(folder: str) -> None:
    claim(folder, "00000004-a.json", machine=lease._machine(), pid=os.getpid(), pid_started="1")
    with hold(folder) as (held, _):
        assert held.name.startswith("00000005-") and claims(folder) == [held.name]


def test_a_process_of_this_machine_that_runs_is_never_stale(folder: str) -> None:
    pid = os.getpid()
    own = {"machine": lease._machine(), "pid": pid, "pid_started": lease._started(pid)}
    # As after an outage of the store, in which no heartbeat could be written.
    claim(folder, "00000001-a.json", heartbeat=time.time() - 1000, **own)
    with pytest.raises(UserError, match=f"process {pid} on elsewhere"):
        refuse_if_held(folder)
    with pytest.raises(UserError, match=f"process {pid} on elsewhere"), hold(folder):
        pass
    assert claims(folder) == ["00000001-a.json"]


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.2)


@pytest.mark.parametrize("ahead", [-100.0, 100.0])
def test_another_machine_is_stale_once_it_was_watched_in_vain(
    *, ahead: float, folder: str, short_waits: None
) -> None:
    claim(folder, "00000001-a.json")
    with pytest.raises(UserError, match="process 7 on elsewhere"), hold(folder):
        pass
    # One that is late, or whose clock is wrong, may be gone: the wait is left to the holding.
    claim(folder, "00000001-a.json", heartbeat=time.time() + ahead)
    refuse_if_held(folder)
    started = time.monotonic()
    with hold(folder) as (held, _):
        assert time.monotonic() - started > 1.4
        assert claims(folder) == [held.name]


@pytest.mark.parametrize("ahead", [-100.0, 100.0])
def test_another_machine_whose_clock_is_wrong_keeps_its_folder(
    *, ahead: float, folder: str, short_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(folder, "00000001-a.json", heartbeat=time.time() + ahead)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:  # of the eight after which it counts as gone
            claim(folder, "00000001-a.json", heartbeat=time.time() + ahead + 5)

    monkeypatch.setattr(lease, "time", SimpleNamespace(time=time.time, sleep=sleep))
    with pytest.raises(UserError, match="process 7 on elsewhere"), hold(folder):
        pass
    assert claims(folder) == ["00000001-a.json"] and len(waits) == 4


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b"[]", b"7", b"\xff", b'{"host": "later", "sequence": 3}'),
        *(b'{"host":"a","machine":"b","pid":"7","pid_started":"1","since":1,"heartbeat":1}',),
        *(b'{"host":"a","machine":"b","pid":7,"pid_started":"1","since":NaN,"heartbeat":1e300}',),
    ],
)
def test_a_claim_that_is_none_of_ours_goes_stale(
    content: bytes, tmp_path: Path, short_waits: None, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".writers").mkdir()
    (tmp_path / ".writers" / "00000003-a.json").write_bytes(content)
    (tmp_path / ".writers" / "3rd.txt").write_bytes(content)
    refuse_if_held(str(tmp_path))
    with hold(str(tmp_path)) as (held, _):
        assert sorted(claims(str(tmp_path))) == [held.name, "3rd.txt"]
        assert held.name.startswith("00000004-")
    assert "00000003-a.json" in caplog.text


def test_the_end_does_not_wait_for_a_store_that_is_down(
    tmp_path: Path, short_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_WITHDRAWAL_SECONDS", 0.5)
    folder, up, asked = str(tmp_path / "run"), threading.Event(), threading.Event()
    check, delete = lease.Lease.check, storage.delete

    def slow_check(held: lease.Lease) -> None:
        asked.set()
        up.wait()
        check(held)

    monkeypatch.setattr(lease.Lease, "check", slow_check)
    monkeypatch.setattr(storage, "delete", lambda uri: (up.wait(60), delete(uri)))
    with hold(folder):
        assert asked.wait(60)
        ended = time.monotonic()
    assert time.monotonic() - ended < 30  # The store is down for longer.
    assert len(claims(folder)) == 1
    up.set()
    until = time.monotonic() + 60
    while claims(folder) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    assert claims(folder) == []  # No heartbeat comes after the withdrawal.


def test_a_holder_that_was_taken_over_stops(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)
    with hold(folder) as (held, lost):

        def heartbeat() -> float:
            content = storage.read_bytes(storage.join(folder, ".writers", held.name))
            return float(json.loads(content)["heartbeat"])

        before, until = heartbeat(), time.monotonic() + 60
        while heartbeat() == before:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert heartbeat() > before and not lost.wait(1)
        claim(folder, "00000099-a.json")
        assert lost.wait(60)
        with pytest.raises(LostError, match="taken over by process 7 on elsewhere"):
            held.check()
    assert claims(folder) == ["00000099-a.json"]


def test_threads_that_race_for_a_folder_never_both_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_LONGEST_PAUSE", 0.02)
    holders, most, refused = [0], [0], [0]
    guard = threading.Lock()

    def race() -> None:
        for _ in range(20):
            try:
                with hold(str(tmp_path / "run")):
                    with guard:
                        holders[0] += 1
                        most[0] = max(most[0], holders[0])
                    time.sleep(0.005)
                    with guard:
                        holders[0] -= 1
            except UserError:
                refused[0] += 1

    with ThreadPoolExecutor(4) as pool:
        for raced in [pool.submit(race) for _ in range(4)]:
            raced.result()  # Raises what the thread raised.
    assert most[0] == 1 and refused[0] > 0
