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
        self.ended = threading.Event()
        self.latest = SimpleNamespace(remote=lambda shown: (self.status, *self.monitor.latest(shown)[1:]))
        self.request_stop = SimpleNamespace(remote=self.asked.set)


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


def later(seconds: float, act: Callable[[], object]) -> None:
    threading.Timer(seconds, act).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_ends_the_wait(handle: Handle, number: signal.Signals) -> None:
    later(0.3, lambda: os.kill(os.getpid(), number))
    ending = wait(handle)
    assert (ending.signal, ending.status, ending.error) == (number, None, None)


def test_a_signal_asks_for_a_checkpoint_which_is_waited_for(handle: Handle, capsys: Any) -> None:
    handle.status = status(3)

    def checkpoint() -> None:
        handle.asked.wait()
        handle.status = status(4, saved_step=4, ended=True)

    # `timeout` sends its signal twice at once.
    later(0.3, lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)])
    ending = wait(handle, checkpoint)
    assert ending == Ending(status(4, saved_step=4, ended=True), signal=signal.SIGTERM)
    assert "step 3/40" in (printed := capsys.readouterr().out)
    assert "stopping at the next step, after a checkpoint" in printed


def test_a_checkpoint_that_takes_too_long_is_left_behind(handle: Handle) -> None:
    handle.status = status(3, saved_step=2)
    later(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    started = time.monotonic()
    assert wait(handle, grace=3.0) == Ending(status(3, saved_step=2), signal=signal.SIGTERM)
    assert time.monotonic() - started > 2


def test_a_second_ctrl_c_does_not_wait(handle: Handle) -> None:
    handle.status = status(3)
    for seconds in (0.3, 1.8):
        later(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert wait(handle).signal == signal.SIGINT


def test_workers_that_have_ended_are_enough(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_SHUTDOWN_SECONDS", 0.5)
    handle.status = status(3, saved_step=3, ended=True)
    later(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert wait(handle).signal == signal.SIGTERM


def test_a_stop_without_a_signal_waits_for_the_workers(handle: Handle) -> None:
    stop = threading.Event()
    stop.set()
    later(1.5, handle.ended.set)
    assert wait(handle, stop=stop) == Ending()
    assert handle.asked.is_set()


def test_a_lost_folder_ends_the_wait(handle: Handle) -> None:
    lost = threading.Event()
    later(0.3, lost.set)
    assert wait(handle, lost=lost) == Ending()


def test_servers_that_are_gone_end_the_wait(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_REFUSED_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(monitor, "_servers", lambda: [server.getsockname()])
        later(1.5, server.close)
        started = time.monotonic()
        assert wait(handle).head_gone
    assert time.monotonic() - started > 2


def test_what_ray_train_raises_is_kept_and_a_failure_is_no_progress(handle: Handle, capsys: Any) -> None:
    error = RuntimeError("no")
    handle.status = status(0, failure="the store is down")
    handle.monitor.warn("worker 0: the store is down; trying again")

    def fit() -> None:
        time.sleep(0.7)
        raise error

    assert wait(handle, fit) == Ending(handle.status, error)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "warning: worker 0: the store is down; trying again\n"


def test_a_monitor_that_was_started_anew_has_all_its_warnings_shown(handle: Handle, capsys: Any) -> None:
    handle.monitor.warn("one")
    handle.monitor.warn("two")

    def fit() -> None:
        time.sleep(0.9)
        handle.monitor = type(handle.monitor)()
        for warning in ("three", "four", "five"):
            handle.monitor.warn(warning)

    wait(handle, fit)
    wanted = [f"warning: {warning}" for warning in ("one", "two", "three", "four", "five")]
    assert capsys.readouterr().err.splitlines() == wanted
