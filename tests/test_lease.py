"""`carl_ray.lease`: one writer a folder, on the local disk and in an object store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pyarrow import fs

from carl_ray import lease, storage
from carl_ray.errors import UserError
from carl_ray.lease import LostError, hold, refuse_if_held

HOLD = """
import sys, time
from carl_ray.errors import UserError
from carl_ray.lease import hold
try:
    with hold(sys.argv[1]):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
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


def start(folder: str, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, str(seconds)], stdout=subprocess.PIPE, text=True, env=os.environ
    )


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
            UserError, match=rf"process {os.getpid()} on .*, which holds it for 0:00:0"
        ) as refused:
            refuse_if_held(folder)
        assert "last heard of 0:00:0" in str(refused.value)
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
    processes = [start(folder, 5) for _ in range(3)]
    said = sorted(process.communicate(timeout=60)[0].split(":")[0].strip() for process in processes)
    assert said == ["held", "refused", "refused"]


def test_take_over_from_a_killed_process_is_immediate(folder: str) -> None:
    process = start(folder, 60)
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


def test_another_machine_is_waited_for_until_it_is_stale(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(folder, "00000001-a.json")
    with pytest.raises(UserError, match="process 7 on elsewhere"), hold(folder):
        pass
    # One that is late may be gone: it is waited for, and found again.
    claim(folder, "00000001-a.json", heartbeat=time.time() - lease.STALE_SECONDS + 2)
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.2)
    started = time.monotonic()
    with hold(folder) as (held, _):
        assert claims(folder) == [held.name]
    assert time.monotonic() - started > 1


def test_a_holder_that_was_taken_over_stops(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)
    with hold(folder) as (held, lost):
        before = json.loads(storage.read_bytes(storage.join(folder, ".writers", held.name)))["heartbeat"]
        assert not lost.wait(1)
        after = json.loads(storage.read_bytes(storage.join(folder, ".writers", held.name)))["heartbeat"]
        assert after > before
        claim(folder, "00000099-a.json")
        assert lost.wait(10)
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

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and refused[0] > 0
