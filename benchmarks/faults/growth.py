"""Whether processes grow: resident memory and open files over time, by kind of process.

Every process has an intercept of its own, because some are killed and begin anew. The slope of a kind is

    sum (t - mean t)(y - mean y) / sum (t - mean t)^2

with sums over all samples of its processes and means over each process. y is resident memory that is not shared:
pages of the object store do not count.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.faults.kills import family, psutil

WARM_UP_SECONDS = 60.0
"""The beginning of each process that does not count."""

_SAMPLE_SECONDS = 2.0
_LEAST_SAMPLES = 4
_MEBIBYTE = 2.0**20


@dataclass(frozen=True)
class Sample:
    """What one process held at one moment."""

    seconds: float
    mebibytes: float
    """Resident and not shared."""
    descriptors: int


def slope(series: Iterable[Sequence[tuple[float, float]]]) -> float | None:
    """The common slope of several series of (x, y) by least squares, each with an intercept of its own.

    None where no series has two different x.
    """
    above = below = 0.0
    for points in series:
        if not points:
            continue
        mean_x = statistics.fmean(x for x, _ in points)
        mean_y = statistics.fmean(y for _, y in points)
        above += sum((x - mean_x) * (y - mean_y) for x, y in points)
        below += sum((x - mean_x) ** 2 for x, _ in points)
    return above / below if below else None


@dataclass(frozen=True)
class Growth:
    """How the processes of one kind grew."""

    kind: str
    mebibytes_per_hour: float
    seconds: float
    """The longest life that was watched, without its warm-up."""
    mebibytes: float
    """The slope times that life."""
    descriptors: tuple[float, float]
    """Of one process, on average, open in the first and in the last quarter of its life."""


def growth(samples: Mapping[str, Sequence[Sequence[Sample]]]) -> list[Growth]:
    """The growth of each kind of process; kinds without a process that outlived `WARM_UP_SECONDS` are left out.

    Args:
        samples: By kind, a list for each process, in order of time.
    """
    found = []
    for kind, processes in samples.items():
        warm = [[s for s in life if s.seconds >= life[0].seconds + WARM_UP_SECONDS] for life in processes]
        warm = [life for life in warm if len(life) >= _LEAST_SAMPLES]
        rise = slope([(sample.seconds, sample.mebibytes) for sample in life] for life in warm)
        if rise is None:
            continue
        longest = max(life[-1].seconds - life[0].seconds for life in warm)
        first = statistics.fmean(_descriptors(life[: len(life) // 4]) for life in warm)
        last = statistics.fmean(_descriptors(life[-(len(life) // 4) :]) for life in warm)
        found.append(Growth(kind, 3600 * rise, longest, rise * longest, (first, last)))
    return found


def _descriptors(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.descriptors for sample in samples)


class Watch:
    """Samples of the processes of this one's family whose titles match.

    Args:
        titles: Regular expression of each kind. A process stays of the kind that it first was: between two tasks, a
            decoder is `ray::IDLE`.
    """

    def __init__(self, titles: Mapping[str, str]) -> None:
        self._titles = titles
        self._kinds: dict[psutil.Process, str] = {}
        self._samples: dict[psutil.Process, list[Sample]] = {}
        self._due = 0.0

    def look(self) -> None:
        """Takes a sample of each process, where the last one is some seconds old."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _SAMPLE_SECONDS
        for process in family():
            handle = process.handle
            assert handle is not None
            for kind, title in self._titles.items():
                if handle not in self._kinds and re.match(title, process.title):
                    self._kinds[handle] = kind
            if handle in self._kinds:
                with suppress(psutil.Error):
                    memory = handle.memory_info()
                    private = memory.rss - getattr(memory, "shared", 0)
                    sample = Sample(time.monotonic(), private / _MEBIBYTE, handle.num_fds())
                    self._samples.setdefault(handle, []).append(sample)

    def growth(self) -> list[Growth]:
        """What `growth` says of the samples so far."""
        samples: dict[str, list[list[Sample]]] = {kind: [] for kind in self._titles}
        for process, life in self._samples.items():
            samples[self._kinds[process]].append(life)
        return growth(samples)
