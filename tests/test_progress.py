"""Lines of progress, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest

from carl_ray import progress
from carl_ray.progress import ProgressLine, StatusLine, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_time_left(clock: list[float]) -> None:
    file = io.StringIO()
    line = ProgressLine("embedded", file=file)
    for done in range(1, 11):
        clock[0] += 2.5
        line(done, 10, "310 frames/s")
    assert file.getvalue().splitlines() == [
        "embedded 1/10 videos, 310 frames/s",
        "embedded 5/10 videos, 310 frames/s, 0.4/s, 0:00:12 left",
        "embedded 9/10 videos, 310 frames/s, 0.4/s, 0:00:02 left",
        "embedded 10/10 videos, 310 frames/s, 0.4/s",
    ]


def test_an_unknown_total(clock: list[float]) -> None:
    file = io.StringIO()
    line = ProgressLine("cut", "events", file)
    for done in (2_000, 7_000):
        clock[0] += 10
        line(done)
    assert file.getvalue() == "cut 2,000 events\ncut 7,000 events, 500.0/s\n"


def test_a_terminal_has_one_line(clock: list[float]) -> None:
    file = Terminal()
    line = StatusLine(file)
    line.show("one")
    line.show("too soon")
    clock[0] += 1
    line.show("two")
    line.close()
    line.close()
    line.show("three", last=True)
    line.close()
    assert file.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\n\r\x1b[Kthree\n"


def test_duration() -> None:
    assert duration(90.4) == "0:01:30"
