"""Progress of long work: done, total, rate and time left, on one line."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TextIO

_SECONDS_ON_A_TERMINAL = 0.2
_SECONDS_IN_A_LOG = 10.0


class StatusLine:
    """A line of text that is replaced on a terminal and repeated every ten seconds elsewhere.

    Args:
        file: Standard error by default.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file
        self._shown = ""
        self._shown_at: float | None = None
        self._open = False

    @property
    def is_due(self) -> bool:
        """Whether `show` would print now."""
        interval = _SECONDS_ON_A_TERMINAL if self._stream.isatty() else _SECONDS_IN_A_LOG
        return self._shown_at is None or time.monotonic() - self._shown_at >= interval

    def show(self, text: str, *, last: bool = False) -> None:
        """Print the text if it is another one and the one before is old enough, or if it is the last."""
        if not (last or (self.is_due and text != self._shown)):
            return
        self._shown, self._shown_at = text, time.monotonic()
        if not self._stream.isatty():
            print(text, file=self._stream, flush=True)
            return
        print(f"\r\x1b[K{text}", end="\n" if last else "", file=self._stream, flush=True)
        self._open = not last

    def close(self) -> None:
        """End the line on a terminal, so that other output begins on a new one."""
        if self._open:
            print(file=self._stream, flush=True)
            self._open = False

    def say(self, text: str, file: TextIO | None = None) -> None:
        """Print a line of its own, to the same file by default."""
        self.close()
        print(text, file=file or self._stream, flush=True)

    @property
    def _stream(self) -> TextIO:
        return self._file or sys.stderr


class ProgressLine:
    """Callback that prints "embedded 12/40 videos, 3.1/s, 0:00:09 left" now and then.

    Args:
        verb: In the past tense, "embedded".
        unit: Plural noun of the items.
        file: Standard error by default.
    """

    def __init__(self, verb: str, unit: str = "videos", file: TextIO | None = None) -> None:
        self._verb, self._unit = verb, unit
        self._line = StatusLine(file)
        self._started = time.monotonic()
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int = 0, note: str = "") -> None:
        """Show how many items are done, if the line is due.

        Args:
            done: Items finished so far.
            total: All items; 0 if unknown.
            note: Inserted before the rate.
        """
        last = done == total
        if not (last or self._line.is_due):
            return
        now = time.monotonic()
        # Until the end the rate is that since the first line: what comes before is mostly the start of processes.
        self._first = self._first or (done, now)
        begun_done, begun = (0, self._started) if last else self._first
        rate = (done - begun_done) / max(now - begun, 1e-9)
        parts = [f"{self._verb} {done:,}{f'/{total:,}' if total else ''} {self._unit}"]
        parts += [note] if note else []
        if rate:
            parts.append(f"{rate:.1f}/s")
        if total and rate and not last:
            parts.append(f"{duration((total - done) / rate)} left")
        self._line.show(", ".join(parts), last=last)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, "0:01:30"."""
    return str(timedelta(seconds=round(seconds)))
