"""`carl_ray.training.monitor`: how long the driver waits, for what, and what it shows; without Ray."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from carl_ray.training import monitor
from carl_ray.training.monitor import Ending, Status, wait_for_run


def status(step: int, **fields: Any) -> Status:
    return Status(step, 40, 1.0, None, 2.0, **fields)


class Handle:
    """Stands for the handle of a run's monitor, and for the run."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self.monitor = monitor.RunMonitor.__ray_metadata__.modified_class()
        self.asked = threading.Event()
        self.shown = threading.Event()
        self.ended = threading.Event()
        self.latest = SimpleNamespace(remote=self._latest)
        self.request_stop = SimpleNamespace(remote=self.asked.set)

    def _latest(self, shown: tuple[str, int]) -> Any:
        answer = (self.status, *self.monitor.latest(shown)[1:])
        self.shown.set()
        return answer


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Handle]:
    monkeypatch.setattr(monitor, "_servers", lambda: [])
    monkeypatch.setattr(monitor.ray, "get", lambda answer, timeout: answer)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield (made := Handle())
    made.ended.set()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def wait(
    handle: Handle, fit: Callable[[], object] | None = None, grace: float = 600.0, **events: Any
) -> Ending:
    events = {"stop": threading.Event(), "lost": threading.Event()} | events
    return wait_for_run(fit or handle.ended.wait, handle, grace_seconds=grace, **events)


def test_of_the_warnings_of_many_tasks_some_are_shown_and_all_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, now = monitor.RunMonitor.__ray_metadata__.modified_class(), [0.0]
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now[0])
    for moment in (0, 1, 29, 31, 32, 70):
        now[0] = moment
        made.warn_of_task(f"down at {moment}")
    now[0] = 140
    made.warn_of_task("down at 31")  # shown before
    _, shown, _ = made.latest()
    expected = [
        "down at 0",
        "down at 31 (2 more since the last one)",
        "down at 70 (1 more since the last one)",
    ]
    assert shown == [f"loading videos: {line}" for line in expected]


def signalled(handle: Handle, number: signal.Signals) -> Callable[[], object]:
    """A run that signals this process, and ends after the wait: when it begins, signals are caught."""
    return lambda: (os.kill(os.getpid(), number), handle.ended.wait())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_ends_the_wait(handle: Handle, number: signal.Signals) -> None:
    ending = wait(handle, signalled(handle, number))
    assert (ending.signal, ending.status, ending.error) == (number, None, None)


def test_a_signal_asks_for_a_checkpoint_which_is_waited_for(handle: Handle, capsys: Any) -> None:
    handle.status = status(3)

    def checkpoint() -> None:
        # `timeout` sends its signal twice at once.
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        handle.asked.wait()
        handle.status = status(4, saved_step=4, ended=True)

    ending = wait(handle, checkpoint)
    assert ending == Ending(status(4, saved_step=4, ended=True), signal=signal.SIGTERM)
    assert "step 3/40" in (printed := capsys.readouterr().out)
    assert "stopping at the next step, after a checkpoint" in printed


def test_a_checkpoint_that_takes_too_long_is_left_behind(handle: Handle) -> None:
    handle.status = status(3, saved_step=2)
    run = signalled(handle, signal.SIGTERM)
    started = time.monotonic()
    assert wait(handle, run, grace=3.0) == Ending(status(3, saved_step=2), signal=signal.SIGTERM)
    assert time.monotonic() - started > 2


def test_a_second_ctrl_c_does_not_wait(handle: Handle) -> None:
    handle.status = status(3)

    def interrupt_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        handle.asked.wait()  # The first has been noted.
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGINT)
        handle.ended.wait()

    started = time.monotonic()
    assert wait(handle, interrupt_twice).signal == signal.SIGINT
    assert time.monotonic() - started < 300  # Of the grace period, 420 s are for the checkpoint.


def test_workers_that_have_ended_are_enough(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_SHUTDOWN_SECONDS", 0.5)
    handle.status = status(3, saved_step=3, ended=True)
    assert wait(handle, signalled(handle, signal.SIGTERM)).signal == signal.SIGTERM


def test_a_stop_without_a_signal_waits_for_the_workers(handle: Handle) -> None:
    stop, left = threading.Event(), threading.Event()
    stop.set()

    def run() -> None:
        handle.asked.wait()
        if not left.wait(1.5):
            handle.ended.set()

    assert wait(handle, run, stop=stop) == Ending()
    left.set()
    assert handle.ended.is_set()


def test_a_lost_folder_ends_the_wait(handle: Handle) -> None:
    lost = threading.Event()
    assert wait(handle, lambda: (lost.set(), handle.ended.wait()), lost=lost) == Ending()


def test_servers_that_are_gone_end_the_wait(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_REFUSED_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(monitor, "_servers", lambda: [server.getsockname()])
        threading.Timer(1.5, server.close).start()
        started = time.monotonic()
        assert wait(handle).head_gone
    assert time.monotonic() - started > 2


def test_what_ray_train_raises_is_kept_and_a_failure_is_no_progress(handle: Handle, capsys: Any) -> None:
    error = RuntimeError("no")
    handle.status = status(0, failure="the store is down")
    handle.monitor.warn("worker 0: the store is down; trying again")

    def fit() -> None:
        handle.shown.wait()
        raise error

    assert wait(handle, fit) == Ending(handle.status, error)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "warning: worker 0: the store is down; trying again\n"


def test_a_monitor_that_was_started_anew_has_all_its_warnings_shown(handle: Handle, capsys: Any) -> None:
    handle.monitor.warn("one")
    handle.monitor.warn("two")

    def fit() -> None:
        handle.shown.wait()
        handle.monitor = type(handle.monitor)()
        for warning in ("three", "four", "five"):
            handle.monitor.warn(warning)

    wait(handle, fit)
    wanted = [f"warning: {warning}" for warning in ("one", "two", "three", "four", "five")]
    assert capsys.readouterr().err.splitlines() == wanted
