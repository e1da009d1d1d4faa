"""Training that is disturbed on purpose, round after round, and what may not change because of it.

A round is a whole run of fixed length through the real command, submitted as a Ray job by a shell, while processes
are killed at random moments and storage fails. Whenever the command ends early, the same command goes on with
--resume. Its metrics.jsonl must then equal that of the undisturbed reference run, bit for bit.

Growth is measured on processes that live on: Ray's own (GCS, raylets, dashboard) the whole time; those of a run
(driver, training worker, coordinator, decoders) in the last quarter of the time, in a run that nobody disturbs.
"""

from __future__ import annotations

import os
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

from benchmarks.faults.growth import Growth, Watch
from benchmarks.faults.kills import (
    KINDS,
    Strike,
    Tally,
    adopt_orphans,
    kill,
    kill_family,
    run_to_the_end,
    strikes,
)
from benchmarks.faults.proxy import Fault, FaultKind, FaultProxy
from carl_ray import storage
from carl_ray.datasets.choreography import ChoreographyConfig, render
from carl_ray.errors import RunError
from carl_ray.training.run_log import BAD_VIDEOS, read_log

NUM_STEPS = 240
CHECKPOINT_EVERY = 10
MOST_MEBIBYTES = 32.0
"""A process may grow by so much, as its slope says, over its life in the soak."""
MOST_MEBIBYTES_PER_HOUR = 32.0
"""And by so much an hour, where it was watched for `LEAST_SECONDS_FOR_A_RATE`."""
LEAST_SECONDS_FOR_A_RATE = 1800.0
"""In less, the few MiB by which memory goes up and down are tens of MiB an hour."""
LEAST_MINUTES = 15.0
"""A soak of so many minutes must have shown everything: each kind of strike, of fault and of process."""
MOST_DESCRIPTORS = 16
"""And have so many more files open in the last quarter of its life than in the first."""
MOST_OBJECT_STORE = 16.0
"""So many MiB more may lie in the object store at the end, when nothing runs, than at the beginning."""
CIRCUMSTANCES = frozenset(
    (
        "frames_per_second",
        "data_wait_seconds",
        "step_seconds",
        "checkpoint_seconds",
        "num_workers",
    )
)
"""Fields of a line of metrics.jsonl that say how a run went, not what it computed."""

_NO_VIDEO = b"not a video any more"
_STORAGE_FAULT = "storage fault"
_BATCH_SIZE, _NUM_VIDEOS = 4, 8
_CALM_SHARE = 0.25
_MOST_STEPS = 40
_SHARE_AT_ONCE = 0.25
_OPTIONS = {
    "data.short_side": 40,
    "data.max_bad_fraction": 0.5,
    "data.max_validation_videos": 0,
    "augment.image_size": 40,
    "model.num_frames": 16,  # a pair has 154 kB: below 100 kB, blocks would not go to the object store
    "model.hidden_width": 32,
    "model.width": 32,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.feedforward_width": 32,
    "model.embedding_width": 16,
    "training.global_batch_size": _BATCH_SIZE,
    "training.precision": "fp32",
    "training.log_every_steps": 1,
    "training.checkpoint_every_steps": CHECKPOINT_EVERY,
    "cluster.max_decode_tasks": 2,
    "cluster.max_failures": -1,
}
_PROGRESS_SECONDS = 10.0
_READY_SECONDS = 120.0
_LEAST_CALM_SECONDS = 60.0
_END_SECONDS = 60.0
_POLL_SECONDS = 0.5
_IDLE_SECONDS = 5.0
_MEBIBYTE = 2.0**20
_RAY = (sys.executable, "-m", "ray.scripts.scripts")
_OF_THE_CLUSTER = {
    "GCS": r"\S*/gcs_server ",
    "raylet": r"\S*/raylet/raylet ",
    "dashboard": r"ray-dashboard|\S*python\S* \S*dashboard/dashboard\.py ",
}
_OF_A_RUN = {
    "driver": KINDS["driver"].title,
    "training worker": KINDS["training worker"].title,
    "data coordinator": KINDS["data coordinator"].title,
    "decoding task": KINDS["decoding task"].title,
    "decoder": KINDS["decoder"].title,
}


@dataclass(frozen=True)
class Figures:
    """What a soak found."""

    minutes: float
    seed: int
    rounds: int
    differences: list[str]
    """How rounds differed from the reference; empty: no bit of them did."""
    tally: Tally
    """Over all rounds."""
    worker_starts: int
    """Of the training workers, over all rounds."""
    storage_faults: Mapping[str, int] | None
    """Requests that the object store spoilt, by kind; none where they were left out."""
    quarantined: int
    """Rows of the rounds whose video could not be read: in every epoch the one that is damaged on purpose."""
    growth: list[Growth]
    object_store: tuple[float, float]
    """MiB in use at the beginning and at the end, when nothing runs."""
    spilled: float
    """MiB, in all."""
    notes: list[str]
    """What was left out."""

    def line(self) -> str:
        """All figures in one line."""
        struck = ", ".join(f"{kind} {number}" for kind, number in sorted(self.tally.strikes.items()))
        faults = ", ".join(f"{kind} {number}" for kind, number in sorted((self.storage_faults or {}).items()))
        rise = ", ".join(
            f"{g.kind} {g.mebibytes_per_hour:+.1f} in {g.seconds / 60:.0f} min" for g in self.growth
        )
        files = ", ".join(f"{g.kind} {g.descriptors[0]:.0f} to {g.descriptors[1]:.0f}" for g in self.growth)
        return "; ".join(
            (
                f"soak of {self.minutes:.1f} min, seed {self.seed}",
                f"{self.rounds} rounds of {NUM_STEPS} steps, {len(self.differences)} differences from the reference",
                f"survived {self.tally.strikes.total()}: {struck or 'nothing'}",
                f"retries: workers started {self.worker_starts} times, command {self.tally.commands} times, "
                f"{self.tally.repeated.total()} steps done again, at most {self.tally.most_repeated} after one fault",
                f"storage faults: {'left out' if self.storage_faults is None else faults or 'none'}",
                f"quarantined: {self.quarantined}",
                f"RSS slope, MiB/h: {rise or 'not measured'}",
                f"open files: {files or 'not measured'}",
                f"object store, MiB: {self.object_store[0]:.1f} to {self.object_store[1]:.1f}, spilled "
                f"{self.spilled:.1f}",
            )
        )

    def failures(self) -> list[str]:
        """What should not have been, a sentence each; empty: the soak is passed."""
        wrong = self._not_shown() if self.minutes >= LEAST_MINUTES else []
        if self.differences:
            wrong.append(
                f"{len(self.differences)} differences from the reference, first {self.differences[0]}"
            )
        if self.tally.most_repeated > CHECKPOINT_EVERY:
            wrong.append(
                f"{self.tally.most_repeated} steps were done again after one fault, with a checkpoint every "
                f"{CHECKPOINT_EVERY}"
            )
        for g in self.growth:
            if g.mebibytes > MOST_MEBIBYTES:
                wrong.append(f"{g.kind} grew by {g.mebibytes:.1f} MiB, more than {MOST_MEBIBYTES:.0f}")
            if g.seconds >= LEAST_SECONDS_FOR_A_RATE and g.mebibytes_per_hour > MOST_MEBIBYTES_PER_HOUR:
                wrong.append(
                    f"{g.kind} grew by {g.mebibytes_per_hour:.1f} MiB an hour, more than "
                    f"{MOST_MEBIBYTES_PER_HOUR:.0f}"
                )
            if g.descriptors[1] - g.descriptors[0] > MOST_DESCRIPTORS:
                wrong.append(
                    f"{g.kind} had {g.descriptors[0]:.0f} files open, then {g.descriptors[1]:.0f}: more than "
                    f"{MOST_DESCRIPTORS} more"
                )
        if self.object_store[1] - self.object_store[0] > MOST_OBJECT_STORE:
            wrong.append(
                f"the object store held {self.object_store[0]:.1f} MiB, then {self.object_store[1]:.1f}: more than "
                f"{MOST_OBJECT_STORE:.0f} more"
            )
        if self.spilled:
            wrong.append(f"{self.spilled:.1f} MiB were spilled")
        return wrong

    def _not_shown(self) -> list[str]:
        """What a soak of this length should have met and did not."""
        wrong = []
        missed = sorted(KINDS.keys() - (+self.tally.strikes).keys())
        if missed:
            wrong.append(f"no victim was met of: {', '.join(missed)}")
        if self.storage_faults is not None and not sum(self.storage_faults.values()):
            wrong.append("no request met a storage fault")
        if not self.quarantined:
            wrong.append("the video that is damaged on purpose was not quarantined")
        if unseen := _unmeasured(self.growth):
            wrong.append(f"the growth was not measured of: {', '.join(unseen)}")
        return wrong


def _unmeasured(risen: Sequence[Growth]) -> list[str]:
    return sorted((_OF_THE_CLUSTER | _OF_A_RUN).keys() - {g.kind for g in risen})


def differences(reference: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the lines of one metrics.jsonl differ from those of another, `CIRCUMSTANCES` aside; empty: not at all.

    Equal means equal bits: JSON holds every float exactly.
    """
    wrong = []
    if len(found) != len(reference):
        wrong.append(f"expected {len(reference)} lines, got {len(found)}")
    for number, (expected, got) in enumerate(zip(reference, found, strict=False), 1):
        wrong += [
            f"line {number}, step {expected.get('step')}: {name}: expected {expected.get(name)!r}, "
            f"got {got.get(name)!r}"
            for name in sorted((expected.keys() | got.keys()) - CIRCUMSTANCES)
            if expected.get(name) != got.get(name)
        ]
    return wrong


def soak(minutes: float, seed: int, folder: Path, report: Callable[[str], None]) -> Figures:
    """Trains under kills and storage faults for a while; all processes below this one are killed at the end.

    Ray's servers listen on all interfaces: so that they want a token, RAY_AUTH_MODE and RAY_AUTH_TOKEN must have been
    in the environment when Ray was imported, for this process, too, asks the head.

    Args:
        minutes: How long, all in all; the round that is under way then is finished.
        seed: Of all random choices.
        folder: For videos, runs and logs; rounds that equalled the reference are deleted.
        report: Called with a line of progress every ten seconds.

    Raises:
        RunError: the cluster does not start, or a run does not go on.
    """
    started = time.monotonic()
    calm_from = started + 60 * minutes * (1 - _CALM_SHARE)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        store = S3Store(seed) if find_spec("moto") is not None else None
        if store is not None:
            stack.enter_context(store)
        cluster = stack.enter_context(
            _cluster(folder / "soak.log", {} if store is None else store.environment)
        )
        manifest = _make_videos(folder, cluster, store)
        daemons = Watch(_OF_THE_CLUSTER)
        progress = _Progress(report, started, 60 * minutes)

        def on_poll(step: int, tally: Tally) -> None:
            cluster.keep_node()
            daemons.look()
            progress.tell(step, tally)

        def run(name: str, coming: Iterator[Strike], *, remote: bool) -> tuple[str, Tally]:
            progress.doing = name
            seen = sent = str(folder / name)
            if remote and store is not None:
                seen, sent = store.uri(name), store.uri(name, faulty=True)
            tally = run_to_the_end(
                lambda resume: cluster.submit(manifest, sent, resume=resume),
                seen,
                coming,
                log=cluster.log,
                strike=lambda strike: _carry_out(strike, store),
                goes_on=cluster.has_job,
                on_poll=on_poll,
            )
            return seen, tally

        reference_dir, _ = run("reference", iter(()), remote=False)
        reference = read_log(reference_dir)
        reference_seconds = time.monotonic() - started
        time.sleep(_IDLE_SECONDS)
        used_before, _ = _object_store(cluster.address)
        kinds = [*KINDS, *([] if store is None else [_STORAGE_FAULT])]
        coming = strikes(seed, kinds, _MOST_STEPS, _SHARE_AT_ONCE)
        found: list[str] = []
        total = Tally()
        rounds = worker_starts = quarantined = 0
        while not rounds or time.monotonic() + reference_seconds < calm_from:
            rounds += 1
            in_time = takewhile(lambda strike: time.monotonic() < calm_from, coming)
            run_dir, tally = run(f"round-{rounds}", in_time, remote=rounds % 2 == 0)
            if store is not None:
                store.proxy.clear()
            wrong = [f"round {rounds}, {text}" for text in differences(reference, read_log(run_dir))]
            total = total.plus(tally)
            # Each start of the workers opens a file of its own.
            worker_starts += len(storage.list_folder(storage.join(run_dir, "events")))
            quarantined += len(read_log(run_dir, BAD_VIDEOS))
            if wrong:
                found += wrong
                report(f"round {rounds} differs from the reference: {wrong[0]}; see {run_dir}")
            else:
                storage.delete(run_dir)
            progress.steps_before += NUM_STEPS
        watched = _calm_run(cluster, manifest, folder, started + 60 * minutes, report, daemons)
        time.sleep(_IDLE_SECONDS)
        used_after, spilled = _object_store(cluster.address)
        risen = [*daemons.growth(), *watched.growth()]
        unseen = _unmeasured(risen)
        notes = []
        if store is None:
            notes.append("no storage faults: moto is not installed (pip install 'moto[server]')")
        if unseen:
            notes.append(f"too short to measure the growth of: {', '.join(unseen)}")
        return Figures(
            minutes=(time.monotonic() - started) / 60,
            seed=seed,
            rounds=rounds,
            differences=found,
            tally=total,
            worker_starts=worker_starts,
            storage_faults=None if store is None else store.faults(),
            quarantined=quarantined,
            growth=risen,
            object_store=(used_before, used_after),
            spilled=spilled,
            notes=notes,
        )


class _Progress:
    """One line every few seconds: what is done, how fast, how much time is left."""

    def __init__(self, report: Callable[[str], None], started: float, seconds: float) -> None:
        self.doing = ""
        self.steps_before = 0
        self._report = report
        self._started = started
        self._seconds = seconds
        self._strikes = 0
        self._tally: Tally | None = None
        self._due = started

    def tell(self, step: int, tally: Tally) -> None:
        """Reports where a line is due."""
        now = time.monotonic()
        if tally is not self._tally:
            self._strikes += 0 if self._tally is None else self._tally.strikes.total()
            self._tally = tally
        if now < self._due:
            return
        self._due = now + _PROGRESS_SECONDS
        elapsed = now - self._started
        left = max(0, int(self._seconds - elapsed))
        struck = self._strikes + tally.strikes.total()
        self._report(
            f"{self.doing}: step {step}/{NUM_STEPS}  {struck} survived  "
            f"{(self.steps_before + step) / elapsed:.1f} steps/s  {left // 60}:{left % 60:02} left"
        )


@dataclass
class _Cluster:
    """A head of our own, which has room for a whole run, and a second node, which may be killed."""

    address: str
    dashboard: str
    environment: dict[str, str]
    log: Path
    _node: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def keep_node(self) -> None:
        """Starts the second node where there is none, or none any more."""
        if self._node is None or self._node.poll() is not None:
            self._node = self._start(
                [
                    *(*_RAY, "start", "--block", f"--address={self.address}"),
                    *("--node-ip-address=127.0.0.1", "--num-cpus=2", "--object-store-memory=200000000"),
                    "--disable-usage-stats",
                ],
                subprocess.DEVNULL,
            )

    def submit(
        self, manifest: str, run_dir: str, *, resume: bool, epochs: int = 0
    ) -> subprocess.Popen[bytes]:
        """A shell that submits the training command as a Ray job and ends with its status.

        Args:
            manifest: Of the videos.
            run_dir: URI of the run folder.
            resume: With --resume.
            epochs: Passes over the videos; 0: those of `NUM_STEPS`.
        """
        options = _OPTIONS | {
            "data.manifest": manifest,
            "training.epochs": epochs or NUM_STEPS * _BATCH_SIZE // _NUM_VIDEOS,
        }
        train = [sys.executable, "-m", "carl_ray.train", "demo", "--run-dir", run_dir]
        train += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        train += ["--resume"] if resume else []
        submit = [*_RAY, "job", "submit", f"--address={self.dashboard}", "--"]
        # Once, for this shell: Ray quotes what it passes on to the job's.
        command = shlex.join([*submit, *train])
        with self.log.open("ab") as output:
            # A second command keeps the shell from becoming the first.
            return self._start(["/bin/sh", "-c", f"{command}; exit $?"], output)

    def has_job(self) -> bool:
        """Whether a submitted job has yet to end; true where the head does not say."""
        from ray.job_submission import JobSubmissionClient

        try:
            jobs = JobSubmissionClient(self.dashboard).list_jobs()
        except (RuntimeError, OSError):
            return True
        return not all(job.status.is_terminal() for job in jobs if job.submission_id is not None)

    def run(self, *arguments: str) -> None:
        """Runs one of carl_ray's commands to its end.

        Raises:
            RunError: it ends with another status than 0.
        """
        with self.log.open("ab") as output:
            process = self._start([sys.executable, "-m", *arguments], output)
        if process.wait() != 0:
            raise RunError(f"{arguments[0]} ended with status {process.returncode}; see {self.log}")

    def _start(self, command: list[str], output: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


@contextmanager
def _cluster(log: Path, variables: Mapping[str, str]) -> Iterator[_Cluster]:
    """A cluster until the context ends; then all processes below this one are killed."""
    adopt_orphans()
    port, dashboard_port = _free_port(), _free_port()
    repository = str(Path(__file__).parents[2])
    kept = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    environment = {
        name: value for name, value in os.environ.items() if name in kept or not name.startswith("RAY_")
    }
    environment |= {
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # Of 100,000, Ray's default, it would fill up for hours, and what grows without end would not show.
        "RAY_task_events_max_num_task_in_gcs": "1000",
        "PYTHONPATH": os.pathsep.join(filter(None, (repository, os.environ.get("PYTHONPATH", "")))),
        **variables,
    }
    cluster = _Cluster(environment["RAY_ADDRESS"], f"http://127.0.0.1:{dashboard_port}", environment, log)
    # A short name: those of Ray's sockets below it have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary:
        try:
            head = cluster._start(
                [
                    *(*_RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"),
                    *(f"--dashboard-port={dashboard_port}", "--dashboard-host=127.0.0.1"),
                    *("--dashboard-agent-listen-port=0", "--num-cpus=3", "--object-store-memory=300000000"),
                    *(f"--temp-dir={temporary}", "--disable-usage-stats"),
                ],
                subprocess.DEVNULL,
            )
            for number in (port, dashboard_port):
                _wait_for(number, head, "the head of the cluster")
            cluster.keep_node()
            yield cluster
        finally:
            kill_family()


def _wait_for(port: int, process: subprocess.Popen[bytes], what: str) -> None:
    """Until somebody listens on a port of this machine."""
    until = time.monotonic() + _READY_SECONDS
    while time.monotonic() < until:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise RunError(f"{what} ended with status {process.returncode} before it was there")
        time.sleep(0.1)
    raise RunError(f"{what} was not there within {_READY_SECONDS:.0f} s")


class S3Store:
    """An S3 server of our own, and a proxy before it that fails on demand."""

    def __init__(self, seed: int) -> None:
        self.environment = {
            "AWS_ACCESS_KEY_ID": "soak",
            "AWS_SECRET_ACCESS_KEY": "soak",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._port = _free_port()
        self._random = random.Random(seed)
        self.proxy = FaultProxy(f"127.0.0.1:{self._port}", seed)

    def __enter__(self) -> S3Store:
        # This process reads the logs of the runs.
        os.environ |= self.environment
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        with ExitStack() as stack:
            server = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(server.kill)
            _wait_for(self._port, server, "the S3 server")
            filesystem, path = storage.resolve(f"s3://soak?{self._query(f'127.0.0.1:{self._port}')}")
            filesystem.create_dir(path)
            stack.enter_context(self.proxy)
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.close()

    def uri(self, name: str, *, faulty: bool = False) -> str:
        """Where something lies in the store; `faulty`: as seen through the proxy."""
        endpoint = self.proxy.endpoint if faulty else f"127.0.0.1:{self._port}"
        return f"s3://soak/{name}?{self._query(endpoint)}"

    def fail(self) -> None:
        """Spoils a few of the next requests in one way, drawn at random, that a retry can mend."""
        self.proxy.clear()
        kinds: list[FaultKind] = [kind for kind in get_args(FaultKind) if kind != "deny"]
        self.proxy.inject(Fault(self._random.choice(kinds), times=3, probability=0.5, seconds=2.0))

    def faults(self) -> dict[str, int]:
        """Requests spoilt so far, by kind."""
        return {kind: number for kind, number in self.proxy.counts.items() if kind != "passed"}

    @staticmethod
    def _query(endpoint: str) -> str:
        return f"endpoint_override={endpoint}&scheme=http&allow_bucket_creation=true"


def _carry_out(strike: Strike, store: S3Store | None) -> bool:
    if strike.kind == _STORAGE_FAULT:
        assert store is not None
        store.fail()
        return True
    return kill(strike.kind, strike.choice) is not None


def _make_videos(folder: Path, cluster: _Cluster, store: S3Store | None) -> str:
    """URI of the manifest of a few rendered videos, which lie in the store where there is one; one is damaged."""
    videos, manifest = folder / "videos", folder / "manifest.parquet"
    render(videos, ChoreographyConfig(num_train=_NUM_VIDEOS, num_validation=2, num_test=0, size=48))
    files = sorted(videos.rglob("*.mp4"))
    damaged = next(file for file in files if file.parent.name == "train")
    if store is None:
        cluster.run("carl_ray.index", str(videos), "--out", str(manifest))
        damaged.write_bytes(_NO_VIDEO)
        return str(manifest)
    for file in files:
        storage.write_bytes(store.uri(f"videos/{file.relative_to(videos)}"), file.read_bytes())
    cluster.run("carl_ray.index", store.uri("videos", faulty=True), "--out", str(manifest))
    storage.write_bytes(store.uri(f"videos/{damaged.relative_to(videos)}"), _NO_VIDEO)
    return str(manifest)


def _calm_run(
    cluster: _Cluster,
    manifest: str,
    folder: Path,
    until: float,
    report: Callable[[str], None],
    daemons: Watch,
) -> Watch:
    """What was seen of the processes of a run that nobody disturbs, until it is time to end it."""
    report("calm run: growth is measured")
    watched = Watch(_OF_A_RUN)
    process = cluster.submit(manifest, str(folder / "calm"), resume=False, epochs=1_000_000)
    until = max(until, time.monotonic() + _LEAST_CALM_SECONDS)
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RunError(f"the calm run ended with status {process.returncode}; see {cluster.log}")
        watched.look()
        daemons.look()
        cluster.keep_node()
        time.sleep(_POLL_SECONDS)
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline and (process.poll() is None or cluster.has_job()):
        kill("warned driver", 0.0)
        time.sleep(1.0)
    return watched


def _object_store(address: str) -> tuple[float, float]:
    """MiB in use and MiB ever spilled, over all nodes of a cluster."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(address)
    try:
        stats = get_memory_info_reply(state).store_stats
    finally:
        state.disconnect()
    return stats.object_store_bytes_used / _MEBIBYTE, stats.spilled_bytes_total / _MEBIBYTE


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
