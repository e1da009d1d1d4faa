"""Commands that are interrupted: at any moment one line and the status of convention, and no checkpoint less."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from carl_ray.errors import InterruptedRunError, RunError, Terminated, UserError, one_line_errors
from carl_ray.training.checkpoint import latest_checkpoint
from carl_ray.training.run_log import read_log

COMMANDS = {
    "train": ["-m", "carl_ray.train"],
    "embed": ["-m", "carl_ray.embed", "--checkpoint", "/nowhere"],
    "sweep": [str(Path(__file__).parents[1] / "tuning" / "sweep.py")],
    "sweep.py": ["sweep.py"],
    "converter": ["-m", "carl_ray.datasets.pouring", "/nowhere", "--out", "/nowhere"],
}
OPTIONS = {
    "data.short_side": 32,
    "augment.image_size": 24,
    "model.num_frames": 8,
    "model.hidden_width": 32,
    "model.width": 32,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.feedforward_width": 32,
    "model.embedding_width": 16,
    "training.epochs": 20_000,
    "training.global_batch_size": 2,
    "training.precision": "fp32",
    "training.log_every_steps": 1,
    "training.checkpoint_every_steps": 5_000,
    "training.validate_every_steps": 50_000,
    "cluster.max_decode_tasks": 1,
}
# What an import does: it is slow, and swallows exceptions.
SLOW_IMPORT = """
import os, sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("pydantic", "pyarrow"):
            print("importing", flush=True)
            try:
                time.sleep(60)
            except BaseException:
                raise ImportError(name) from None

sys.meta_path.insert(0, Finder())
"""


def outcome(raised: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as left, one_line_errors():
        raise raised
    return left.value.code, capsys.readouterr().err


def test_each_way_to_end_has_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(UserError("a mistake"), capsys) == (2, "carl_ray: a mistake\n")
    assert outcome(RunError("a failure"), capsys) == (1, "carl_ray: a failure\n")
    assert outcome(KeyboardInterrupt(), capsys) == (130, "carl_ray: interrupted\n")
    assert outcome(Terminated(), capsys) == (143, "carl_ray: terminated (SIGTERM)\n")
    stopped = InterruptedRunError("stopped at step 3", signal.SIGTERM)
    assert outcome(stopped, capsys) == (143, "carl_ray: stopped at step 3\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupted_import_is_one_line(command: str, number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORT)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, *COMMANDS[command]], env=os.environ | {"PYTHONPATH": path},
        cwd=Path(__file__).parents[1] / "tuning",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=180)
    finally:
        process.kill()
    line = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated (SIGTERM)"}[number]
    assert (process.returncode, errors) == (128 + number, f"carl_ray: {line}\n")


# The command without what it would do on a cluster.
INDEX = """
import contextlib, os, runpy, signal, sys, time
from carl_ray import errors, session
from carl_ray.data import scan

def index_folder(*arguments, **options):
    print("indexing", flush=True)
    time.sleep(60)

session.connect, scan.index_folder = contextlib.nullcontext, index_folder
errors.handle_signals()
from carl_ray.index import main
main([sys.argv[1], "--out", sys.argv[1] + "/manifest.parquet"])
"""
# Its clock is told what time it is: between two signals a busy machine may stop whoever sends them.
KEPT = """
import sys, time
from types import SimpleNamespace
from carl_ray import errors

now = 0.0
errors.time = SimpleNamespace(monotonic=lambda: now)
errors.handle_signals()
with errors.one_line_errors():
    try:
        print("working", flush=True)
        time.sleep(600)
    finally:
        for now, word in ((0.9, "ending"), (1.1, "kept"), (1.1, "left")):
            print(word, flush=True)
            sys.stdin.readline()
"""


def test_an_index_that_is_terminated_says_so(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INDEX, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "indexing\n"
    process.terminate()
    _, errors = process.communicate(timeout=180)
    assert (process.returncode, errors) == (143, "carl_ray: terminated (SIGTERM)\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_wait_of_rays_that_a_signal_ends(number: signal.Signals) -> None:
    """Ray raises a plain KeyboardInterrupt then, whichever signal it was."""
    waiting = """
import time
from carl_ray.errors import handle_signals, one_line_errors
handle_signals()
with one_line_errors():
    try:
        print("waiting", flush=True)
        time.sleep(60)
    except BaseException:
        raise KeyboardInterrupt from None
"""
    process = subprocess.Popen(
        [sys.executable, "-c", waiting], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=180)
    expected = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated (SIGTERM)"}[number]
    assert (process.returncode, errors) == (128 + number, f"carl_ray: {expected}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_twice_at_once_is_one(number: signal.Signals) -> None:
    """`timeout` signals its child, then its group: the second must not end what the first began."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", KEPT], **pipes, text=True)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    assert process.stdout.readline() == "ending\n"
    for _ in range(3):
        process.send_signal(number)
    print("go on", file=process.stdin, flush=True)
    assert process.stdout.readline() == "kept\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=180)
    assert (process.returncode, output) == (128 + number, "")
    assert errors.startswith("carl_ray: ") and errors.count("\n") == 1


@contextmanager
def training(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A training command on a cluster of its own, in a process group of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            env=environment | {"TMPDIR": "/tmp"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes], log: Path) -> None:
    while not any(line["step"] >= step for line in read_log(str(run))):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)


def group(process: subprocess.Popen[bytes]) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, text=True, check=True)
    rows = (line.split() for line in listed.stdout.splitlines()[1:])
    return [int(pid) for pid, pgid, stat in rows if int(pgid) == process.pid and not stat.startswith("Z")]


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


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


def check_nothing_is_open(driver: int) -> Path:
    """A command's own cluster: no port for others, no priority below the driver's; the folder of its private files."""
    addresses = outer_addresses()
    assert addresses, "this test needs an address that is not of the loopback interface"
    parts, until = ("gcs_server", "raylet", "DashboardAgent", "RayTrainWorker"), time.monotonic() + 60
    while True:
        names = processes(driver)
        ports = listeners(names)
        told = "\n".join(f"{port} {sorted(who)}" for port, who in ports.items())
        if all(any(part in name for who in ports.values() for name in who) for part in parts):
            break
        assert time.monotonic() < until, told
        time.sleep(0.5)
    for part in ("dashboard.py", "log_monitor.py", "monitor.py"):
        assert not any(part in name for name in names.values()), names
    for port, who in ports.items():
        for family, address in addresses:
            with socket.socket(family) as client:
                client.settimeout(5)
                assert client.connect_ex((address, port)) != 0, f"{address} takes port {port} of {who}"
    workers = [process for process, name in names.items() if "RayTrainWorker" in name]
    assert {os.getpriority(os.PRIO_PROCESS, worker) for worker in workers} == {
        os.getpriority(os.PRIO_PROCESS, driver)
    }
    given = re.search(r"--temp-dir=(\S+)", " ".join(names.values()))
    assert given is not None
    private = Path(given[1]).parent
    assert private.stat().st_mode & 0o777 == 0o700
    return private


@pytest.mark.slow
def test_a_run_on_a_cluster_of_its_own(
    tmp_path: Path, make_video: Callable[..., Path], ray_session: None
) -> None:
    """Open ports, two writers, SIGTERM to the group, the printed command, a head that dies."""
    from carl_ray.data.scan import index_folder

    for number in range(4):
        make_video(tmp_path / "videos" / f"{number}.mp4", 30, 64, 48)
    index_folder(str(tmp_path / "videos"), str(tmp_path / "m.parquet"))
    run, log = tmp_path / "it's a run", tmp_path / "log"
    train = [sys.executable, "-m", "carl_ray.train"]
    begin = [*train, "demo", "--run-dir", str(run), "--data.manifest", str(tmp_path / "m.parquet")]
    begin += [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]

    with training(begin, log) as process:
        wait_for_step(run, 5, process, log)
        records = files(run / "ray").keys()
        second = subprocess.run([*train, "--run-dir", str(run), "--resume"], capture_output=True, text=True)
        assert second.returncode == 2 and second.stdout == ""
        assert re.fullmatch(
            rf"carl_ray: .*: another process writes there: process {process.pid} on \S+, which holds it for 0:.*\n",
            second.stderr,
        )
        assert files(run / "ray").keys() == records
        private = check_nothing_is_open(process.pid)
        # As `timeout`, systemd and Slurm do.
        asked = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=180) == 143, log.read_text()
        assert time.monotonic() - asked < 120  # Starved cores; 30 s are asked for.
    assert not private.exists(), "the session's files are left"
    lines = log.read_text().splitlines()
    last = re.fullmatch(
        r"carl_ray: stopped at step (\d+) of 40000 by SIGTERM; go on from step \1 with: python (.*)",
        lines[-1],
    )
    assert last is not None, lines
    checkpoint = latest_checkpoint(str(run))
    assert checkpoint is not None and checkpoint.progress.step == int(last[1]) >= 5
    steps = [line["step"] for line in read_log(str(run)) if "loss" in line]
    assert steps == list(range(1, checkpoint.progress.step + 1))
    assert not any("Traceback" in line for line in lines)
    assert not (run / ".writers").exists()
    assert group(process) == []

    resume = [sys.executable, *shlex.split(last[2])]
    assert resume == [*train, "--run-dir", str(run), "--resume"]
    with training(resume, log) as process:
        wait_for_step(run, checkpoint.progress.step + 5, process, log)
        head = next(pid for pid in group(process) if "gcs_server" in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(head, signal.SIGKILL)
        assert process.wait(timeout=180) == 1, log.read_text()
    lines = log.read_text().splitlines()
    assert lines[-1].startswith("carl_ray: Ray's servers are gone")
    assert lines[-1].endswith(f"go on from step {checkpoint.progress.step} with: python {last[2]}")
    assert not any("Traceback" in line or "Check failed" in line for line in lines), lines
