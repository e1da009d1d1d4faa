"""What a command's own cluster opens to others: no port, no file, and no priority above its workers'.

It runs in the test process that has the Ray part of the suite (`ray_session`), but the cluster is its own.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

_SCRIPT = """
import sys
from carl_ray.data.scan import index_folder
from carl_ray.session import connect
from carl_ray.train import main
folder = sys.argv[1]
with connect(num_cpus=4):
    index_folder(folder + "/videos", folder + "/manifest.parquet")
    main(["demo", "--data.manifest", folder + "/manifest.parquet", "--run-dir", folder + "/run", *sys.argv[2:]])
"""
_OPTIONS = {
    "data.short_side": 32,
    "augment.image_size": 24,
    "model.num_frames": 8,
    "model.hidden_width": 32,
    "model.width": 32,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.feedforward_width": 32,
    "training.epochs": 100_000,
    "training.global_batch_size": 2,
    "training.precision": "fp32",
    "training.log_every_steps": 1,
    "cluster.num_workers": 2,
    "cluster.worker_cpus": 1,
    "cluster.max_decode_tasks": 1,
}


def processes(ancestor: int) -> dict[int, str]:
    """Command lines, by id, of a process and all that descend from it."""
    parents, found = {}, {ancestor: ""}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    while more := {child: "" for child, parent in parents.items() if parent in found and child not in found}:
        found |= more
    for process in found:
        with suppress(OSError):
            found[process] = (
                Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            )
    return found


def listeners(names: dict[int, str]) -> dict[int, set[str]]:
    """Ports that the processes listen on, each with the names of who does."""
    owners: dict[str, str] = {}
    for process, name in names.items():
        for descriptor in Path(f"/proc/{process}/fd").glob("*"):
            with suppress(OSError):
                owners[str(descriptor.readlink())] = name
    ports: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and (name := owners.get(f"socket:[{fields[9]}]")):
                ports.setdefault(int(fields[1].rpartition(":")[2], 16), set()).add(name)
    return ports


def outer_addresses() -> list[tuple[socket.AddressFamily, str]]:
    """Addresses of this machine by which others reach it."""
    found = []
    for line in Path("/proc/net/fib_trie").read_text().split("Local:")[-1].splitlines():
        if line.strip().startswith("|--") or line.strip().startswith("+--"):
            address = line.split()[1].partition("/")[0]
        elif "host LOCAL" in line and not address.startswith("127."):
            found.append((socket.AF_INET, address))
    found += [
        (socket.AF_INET6, socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])))
        for line in Path("/proc/net/if_inet6").read_text().splitlines()
        if line.split()[3] == "00"  # global: no loopback, no link
    ]
    return sorted(set(found))


@pytest.mark.slow
def test_nobody_outside_reaches_a_cluster_of_our_own(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    addresses = outer_addresses()
    assert addresses, "this test needs an address that is not of the loopback interface"
    for number in range(2):
        make_video(tmp_path / "videos" / f"{number}.mp4", 20, 48, 32)
    log = tmp_path / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    options = [part for name, value in _OPTIONS.items() for part in (f"--{name}", str(value))]
    with log.open("wb") as output:
        command = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(tmp_path), *options],
            env=environment | {"TMPDIR": "/tmp"},
            stdout=output,
            stderr=output,
        )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            assert command.poll() is None, log.read_text()
            time.sleep(0.2)
        names = processes(command.pid)
        ports = listeners(names)
        told = "\n".join(f"{port} {sorted(who)}" for port, who in ports.items())
        for part in ("gcs_server", "raylet", "dashboard.py", "DashboardAgent", "RayTrainWorker"):
            assert any(part in name for who in ports.values() for name in who), told
        for port, who in ports.items():
            for family, address in addresses:
                with socket.socket(family) as client:
                    client.settimeout(5)
                    assert client.connect_ex((address, port)) != 0, f"{address} takes port {port} of {who}"
        workers = [process for process, name in names.items() if "RayTrainWorker" in name]
        assert len(workers) == 2
        assert {os.getpriority(os.PRIO_PROCESS, worker) for worker in workers} == {
            os.getpriority(os.PRIO_PROCESS, command.pid)
        }
        given = re.search(r"--temp-dir=(\S+)", " ".join(names.values()))
        assert given is not None
        private = Path(given[1]).parent
        assert private.stat().st_mode & 0o777 == 0o700
    finally:
        command.send_signal(signal.SIGTERM)
        command.wait(120)
    assert not private.exists(), "the session's files are left"
