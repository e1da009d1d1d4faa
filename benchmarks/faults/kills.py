"""The processes of a run that can die, their killing at random moments, and running on until the end all the same.

Victims are found among the processes that this one started, by name: Ray calls its processes after what they do,
as in `ray::RayTrainWorker` or `ray::MapBatches(load)`. Nothing outside this process's family is ever looked at; who
wants its orphans in the family too calls `adopt_orphans` first.
"""

from __future__ import annotations

import ctypes
import math
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import ray  # noqa: F401 - its wheel brings psutil along, on a path that importing Ray adds

# isort: split
import psutil  # type: ignore[import-untyped, unused-ignore]

from carl_ray import storage
from carl_ray.errors import RunError
from carl_ray.training.run_log import read_log

_PR_SET_CHILD_SUBREAPER = 36
_STALLED_SECONDS = 300.0
_SEARCH_SECONDS = 5.0
_POLL_SECONDS = 0.1
_REMOTE_POLL_SECONDS = 1.0
_MOST_SECONDS_AT_ONCE = 10.0


@dataclass(frozen=True)
class Kind:
    """One kind of victim."""

    title: str
    """Regular expression for the beginning of its command line, or of the name that Ray gave it."""
    signal: signal.Signals
    with_family: bool = False
    """All processes below it get the signal too, as when a machine dies or a terminal is closed."""
    restarts: bool = False
    """The training workers are started anew after it."""


KINDS: dict[str, Kind] = {
    "decoding task": Kind(r"ray::MapBatches\(load\)", signal.SIGKILL),
    "decoder": Kind(r"\S*python\S* -c from carl_ray\.data\.guard import answer_views", signal.SIGKILL),
    "planning task": Kind(r"ray::MapBatches\(plan_segment\)", signal.SIGKILL),
    "data coordinator": Kind(r"ray::SplitCoordinator", signal.SIGKILL, restarts=True),
    "training worker": Kind(r"ray::RayTrainWorker", signal.SIGKILL, restarts=True),
    "warned training worker": Kind(r"ray::RayTrainWorker", signal.SIGTERM, restarts=True),
    "training controller": Kind(r"ray::TrainController", signal.SIGKILL, restarts=True),
    "monitor": Kind(r"ray::RunMonitor", signal.SIGKILL),
    "driver": Kind(r"\S*python\S* -m carl_ray\.train ", signal.SIGKILL, restarts=True),
    "warned driver": Kind(r"\S*python\S* -m carl_ray\.train ", signal.SIGTERM, restarts=True),
    "node": Kind(
        r"\S*python\S* -m ray\.scripts\.scripts start --block --address=", signal.SIGKILL, with_family=True
    ),
    "shell": Kind(
        r"\S*sh -c \S*python\S* -m ray\.scripts\.scripts job submit ", signal.SIGKILL, with_family=True
    ),
}
"""Every kind by its name. "Warned" ones get SIGTERM, as a spot node's processes do, the others SIGKILL."""


@dataclass(frozen=True)
class Process:
    """One process, as it was when it was looked at."""

    pid: int
    parent: int
    title: str
    """Its command line, in one line, or the name that Ray gave it."""
    handle: psutil.Process | None = field(default=None, repr=False)
    """Which also knows when it began: a number alone may be another process's by now."""


def family() -> list[Process]:
    """The processes below this one, at any depth, in ascending order of their ids."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                title = " ".join(process.cmdline()).strip()
                found.append(Process(process.pid, process.ppid(), title, process))
    return sorted(found, key=lambda process: process.pid)


def victims(kind: str, processes: Sequence[Process]) -> list[Process]:
    """Those of the processes that are of a kind (a key of `KINDS`)."""
    return [process for process in processes if re.match(KINDS[kind].title, process.title)]


def below(pid: int, processes: Sequence[Process]) -> list[Process]:
    """The processes that a process has below itself, at any depth."""
    found: list[Process] = []
    parents = {pid}
    while True:
        children = [p for p in processes if p.parent in parents and p not in found]
        if not children:
            return found
        found += children
        parents = {child.pid for child in children}


def kill(kind: str, choice: float, spare: Collection[Process] = ()) -> Process | None:
    """Sends the kind's signal to one process of that kind; which, or None where there is none.

    Args:
        kind: A key of `KINDS`.
        choice: From [0, 1): which of several.
        spare: These are not meant: processes of something else than the run.
    """
    processes = family()
    spared = {process.handle for process in spare}
    found = [process for process in victims(kind, processes) if process.handle not in spared]
    if not found:
        return None
    victim = found[int(choice * len(found))]
    doomed = [victim, *(below(victim.pid, processes) if KINDS[kind].with_family else [])]
    survived = True
    for process in doomed:
        assert process.handle is not None
        with suppress(psutil.NoSuchProcess):
            process.handle.send_signal(KINDS[kind].signal)
            survived = survived and process is not victim
    return None if survived else victim


def adopt_orphans() -> None:
    """From now on, processes below this one whose parent dies become its children (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_family() -> None:
    """SIGKILL to all processes below this one, until there is none."""
    while processes := psutil.Process().children(recursive=True):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        # Waits for children only as their parent: those of others are this one's a moment later.
        psutil.wait_procs(processes, timeout=1)


@dataclass(frozen=True)
class Strike:
    """One disturbance: what, and when after the one before."""

    kind: str
    """A key of `KINDS`, or what the caller knows to carry out."""
    steps: int
    """Once the run has done so many steps more than at the strike before, which it thus survived; where that one
    restarts the workers, after such a restart."""
    seconds: float
    """Or so long after it, recovered or not; infinite: only by steps."""
    choice: float
    """From [0, 1): which of several victims."""


def strikes(seed: int, kinds: Sequence[str], most_steps: int, share_at_once: float) -> Iterator[Strike]:
    """Strikes without end; each kind comes once before any comes again.

    Args:
        seed: Of all draws.
        kinds: What may be struck.
        most_steps: At most so many steps from one strike to the next.
        share_at_once: Share of the strikes that may come before the run has recovered from the one before.
    """
    drawn = random.Random(seed)
    while True:
        for kind in drawn.sample(list(kinds), len(kinds)):
            at_once = drawn.random() < share_at_once
            yield Strike(
                kind,
                steps=drawn.randint(1, most_steps),
                seconds=drawn.uniform(0.0, _MOST_SECONDS_AT_ONCE) if at_once else math.inf,
                choice=drawn.random(),
            )


@dataclass
class Tally:
    """What happened to one run on its way to the end."""

    strikes: Counter[str] = field(default_factory=Counter)
    """Strikes that met a victim, by kind."""
    commands: int = 0
    """Starts of the command; all but the first with --resume."""
    repeated: Counter[str] = field(default_factory=Counter)
    """Steps done again, from a checkpoint on, by the kind of the strike before."""
    most_repeated: int = 0
    """The most of them after one strike."""

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(
            self.strikes + other.strikes,
            self.commands + other.commands,
            self.repeated + other.repeated,
            max(self.most_repeated, other.most_repeated),
        )


def run_to_the_end(
    start: Callable[[bool], subprocess.Popen[bytes]],
    run_dir: str,
    coming: Iterator[Strike],
    *,
    log: Path,
    strike: Callable[[Strike], bool] = lambda strike: kill(strike.kind, strike.choice) is not None,
    goes_on: Callable[[], bool] = lambda: bool(victims("driver", family())),
    search_seconds: float = _SEARCH_SECONDS,
    on_poll: Callable[[int, Tally], None] = lambda step, tally: None,
) -> Tally:
    """Runs a training command under strikes, again with --resume whenever it ends early, until it ends with status 0.

    Args:
        start: Starts the command, with --resume if true.
        run_dir: URI of the run folder, to read how far it is.
        coming: The strikes.
        log: What the command prints, for messages.
        strike: Carries one out; false where there was no victim.
        goes_on: Whether the run may go on though the command that was started has ended.
        search_seconds: So long a strike that finds no victim is tried; then the next one's turn comes.
        on_poll: Called many times a second with the steps done and the tally so far.

    Raises:
        RunError: the command was refused (status 2), or no step was done for minutes.
    """
    tally = Tally()
    process: subprocess.Popen[bytes] | None = None
    pending = next(coming, None)
    step = starts = struck_at = starts_before = 0
    struck_time = searched_since = math.inf
    last = "no strike"
    read_time = -math.inf
    moved = time.monotonic()
    while True:
        if process is None or (process.poll() is not None and not goes_on()):
            status = None if process is None else process.returncode
            if status == 0:
                return tally
            if status == 2:
                raise RunError(f"the command was refused: {_last_line(log)}")
            process = start(tally.commands > 0)
            tally.commands += 1
        now = time.monotonic()
        before = step
        if now - read_time >= (_REMOTE_POLL_SECONDS if storage.is_remote(run_dir) else 0.0):
            read_time = now
            step, starts = _steps_and_starts(run_dir)
        if step != before:
            moved = now
        elif now - moved > _STALLED_SECONDS:
            raise RunError(
                f"{storage.public_uri(run_dir)}: no step in {_STALLED_SECONDS:.0f} s, at step {step}, after "
                f"{dict(tally.strikes)}; {log} ends with: {_last_line(log)}"
            )
        if step < before:
            tally.repeated[last] += before - step
            tally.most_repeated = max(tally.most_repeated, before - step)
        on_poll(step, tally)
        recovered = starts > starts_before or last not in KINDS or not KINDS[last].restarts
        if pending is not None and (
            (recovered and step >= struck_at + pending.steps) or now - struck_time >= pending.seconds
        ):
            searched_since = min(searched_since, now)
            met = strike(pending)
            if met:
                last = pending.kind
                tally.strikes[last] += 1
                struck_time = time.monotonic()
                # Not what was read before it: it may have done some more steps until then.
                struck_at, starts_before = _steps_and_starts(run_dir)
                step = max(step, struck_at)
            if met or now - searched_since > search_seconds:
                pending, searched_since = next(coming, None), math.inf
        time.sleep(_POLL_SECONDS)


def _steps_and_starts(run_dir: str) -> tuple[int, int]:
    """How many steps a run has logged, and how often its workers were started: each start opens a file of its own."""
    lines = read_log(run_dir)
    return lines[-1]["step"] if lines else 0, len(storage.list_folder(storage.join(run_dir, "events")))


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
