"""Lease of a folder for one writer, with a heartbeat.

pyarrow has no conditional write (S3's If-None-Match, Google Cloud's generation match), so each writer has a claim file
of its own in `FOLDER/.writers/`: it lists the claims, writes its own, lists them again, and withdraws it if it now sees
another live one. Of two concurrent writers the later one sees the other's claim, so never both hold the folder; if both
withdraw, each retries after a random pause. This requires listings that are consistent with earlier writes, as those of
S3, Google Cloud Storage, Azure and local disks are; where a network file system caches listings, the loser stops at its
next heartbeat.

A claim ends when it is withdrawn, or when its process on this machine has ended; while that process runs, it never
does. The claim of another machine ends when the process that wants the folder has watched it for `STALE_SECONDS`
without a heartbeat: clocks of two machines are not compared. The new holder deletes it; a holder that was only slow
finds it missing at its next heartbeat and stops.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from carl_ray import storage
from carl_ray.errors import RunError, UserError

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 45.0
"""Time without a heartbeat after which a holder on another machine counts as gone."""

_CLAIMS = ".writers"
_LATE_SECONDS = 3 * HEARTBEAT_SECONDS
_LONGEST_PAUSE = 2.0
_WITHDRAWAL_SECONDS = 5.0
"""Timeout of the withdrawal of a claim; if the store is down, the claim stays behind."""
_CLAIM_NAME = re.compile(r"[0-9]+-\w+\.json")
_Time = Annotated[float, Field(ge=0, lt=2**33)]
_LOGGER = logging.getLogger(__name__)


class LostError(RunError):
    """Another process has taken over the folder."""


@dataclass(frozen=True)
class _Owner:
    """Content of a claim."""

    host: str
    machine: str
    """Boot id and process namespace of the process id; empty where the system has none."""
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    pid_started: str
    """Start time of the process, which tells it from a later one with the same id."""
    since: _Time
    heartbeat: _Time

    @property
    def is_running(self) -> bool | None:
        """Whether its process runs on this machine; None if that is unknown."""
        if not self.machine or self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # Another user's process, which /proc may hide.
        found = _started(self.pid)
        return None if found is None else found == self.pid_started

    def __str__(self) -> str:
        if not self.pid:
            return "an unknown process"
        age, silent = (timedelta(seconds=round(time.time() - t)) for t in (self.since, self.heartbeat))
        return f"process {self.pid} on {self.host}, which holds it for {age}, last heartbeat {silent} ago"


@dataclass(frozen=True)
class Lease:
    """Exclusive right to write in a folder; can be sent to other processes."""

    folder: str
    name: str
    """File name of the claim; begins with a number higher than those of earlier holders."""

    def check(self) -> None:
        """Raise `LostError` if the lease was taken over or released."""
        names = _names(self.folder)
        if self.name not in names or _number(names[-1]) > _number(self.name):
            owners = [owner for name, owner in _claims(self.folder).items() if name != self.name]
            raise LostError(
                f"{storage.public_uri(self.folder)} was taken over by {owners[-1] if owners else 'another process'}; "
                "this one stops without writing there"
            )


def refuse_if_held(folder: str, seen: Mapping[str, _Owner] | None = None) -> dict[str, _Owner]:
    """Refuse a folder that another process holds; without writing or waiting.

    Args:
        folder: URI of the folder.
        seen: Claims of an earlier call: an owner that has changed its claim since then is alive.

    Returns:
        The claims by name, all of owners that may be gone.

    Raises:
        UserError: another process holds the folder; the message names it.
    """
    claims = _claims(folder)
    for name, owner in claims.items():
        # Compares two clocks, but decides only between an immediate refusal and a wait.
        is_recent = abs(time.time() - owner.heartbeat) < _LATE_SECONDS
        is_running = is_recent if owner.is_running is None else owner.is_running
        if is_running or (seen or {}).get(name, owner) != owner:
            raise UserError(
                f"{storage.public_uri(folder)}: another process writes there: {owner}; wait for it, stop it, or name "
                "another folder"
            )
    return claims


@contextmanager
def hold(folder: str) -> Iterator[tuple[Lease, threading.Event]]:
    """Hold a folder as its only writer; yield the lease, and an event for its loss.

    Raises:
        UserError: another process holds the folder.
        RunError: the store refuses or fails.
    """
    is_new = not storage.is_remote(folder) and not storage.exists(folder)
    released, lost = threading.Event(), threading.Event()
    try:
        lease = _claim(folder)
        thread = threading.Thread(target=_beat, args=(lease, released, lost), name="lease", daemon=True)
        thread.start()
        try:
            yield lease, lost
        finally:
            released.set()
            thread.join(_WITHDRAWAL_SECONDS)
    finally:
        if is_new:
            with suppress(OSError):  # Something was written.
                Path(storage.resolve(folder)[1]).rmdir()


def _claim(folder: str) -> Lease:
    seen: dict[str, _Owner] = {}
    # Counts reads, not time: while the store is down, which may stop heartbeats too, nothing is counted.
    watched: Counter[str] = Counter()
    while True:
        claims = refuse_if_held(folder, seen)
        seen = claims | seen
        late = [
            name
            for name, owner in claims.items()
            if owner.is_running is None and watched[name] * HEARTBEAT_SECONDS < STALE_SECONDS
        ]
        if late:
            # Waits instead of refusing: the owner's machine may be gone.
            if not watched:
                _LOGGER.warning(
                    "%s: held by %s; it is taken over if %s does not change within %.0f s",
                    *(storage.public_uri(folder), claims[late[0]], f"{_CLAIMS}/{late[0]}", STALE_SECONDS),
                )
            watched.update(late)
            time.sleep(HEARTBEAT_SECONDS)
            continue
        lease = Lease(folder, f"{1 + max(map(_number, claims), default=0):08d}-{uuid.uuid4().hex[:12]}.json")
        try:
            _write(lease, time.time())
            others = {name: owner for name, owner in _claims(folder).items() if name != lease.name}
            if others.items() <= claims.items():
                for name in others:
                    storage.delete(storage.join(folder, _CLAIMS, name))
                return lease
        except BaseException:
            _withdraw(lease)
            raise
        _withdraw(lease)
        time.sleep(random.SystemRandom().uniform(0, _LONGEST_PAUSE))


def _beat(lease: Lease, released: threading.Event, lost: threading.Event) -> None:
    since = time.time()
    while not released.wait(HEARTBEAT_SECONDS):
        try:
            lease.check()
            if not released.is_set():
                _write(lease, since)
        except LostError:
            lost.set()
            break
        except RunError as error:  # The store fails, for other writes as well.
            _LOGGER.warning("no heartbeat: %s", error)
    _withdraw(lease)  # In this thread, so that no heartbeat follows it.


def _withdraw(lease: Lease) -> None:
    with suppress(RunError):
        storage.delete(storage.join(lease.folder, _CLAIMS, lease.name))
    if not storage.is_remote(lease.folder):
        with suppress(OSError):  # Another's claim is there.
            Path(storage.resolve(storage.join(lease.folder, _CLAIMS))[1]).rmdir()


def _names(folder: str) -> list[str]:
    """File names of the claims, oldest first."""
    return [n for n in storage.list_folder(storage.join(folder, _CLAIMS)) if _CLAIM_NAME.fullmatch(n)]


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _claims(folder: str) -> dict[str, _Owner]:
    claims = {}
    for name in _names(folder):
        with suppress(UserError):  # Withdrawn meanwhile.
            content = storage.read_bytes(storage.join(folder, _CLAIMS, name))
            try:
                claims[name] = TypeAdapter(_Owner).validate_json(content)
            except ValidationError:  # Of another version: treated as another machine's.
                claims[name] = _Owner("", "", 0, content.hex(), 0.0, 0.0)
    return claims


def _write(lease: Lease, since: float) -> None:
    pid = os.getpid()
    owner = _Owner(socket.gethostname(), _machine(), pid, _started(pid) or "", since, time.time())
    storage.write_bytes(storage.join(lease.folder, _CLAIMS, lease.name), json.dumps(asdict(owner)).encode())


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Containers of one machine do not see each other's processes.
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Start time of a process in kernel ticks, "dead" for a zombie, None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "dead" if fields[0] in "ZX" else fields[19]
