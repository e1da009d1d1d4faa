"""Which video when: row n of a run is a pure function of (seed, n).

A run is the concatenation of its epochs, one endless stream; each epoch is a seeded permutation of the
manifest. A position in it is a number, so a checkpoint stores one integer and a run resumes there on any
number of workers.
Step k trains on rows [k * batch_size, (k + 1) * batch_size), whoever of the workers gets which.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

VALIDATION_EPOCH = -1
"""The epoch of every validation draw: the same views each time."""

ABSENT = -1
"""`video_index` of a row that holds no video: it only fills the last step for an even split."""


@dataclass(frozen=True)
class PlanRow:
    """One video at one step."""

    row: int
    step: int
    epoch: int
    video_index: int


@dataclass(frozen=True)
class Plan:
    """An order of videos.

    Attributes:
        seed: Seed of the run.
        num_videos: Rows of the manifest's split, at least 1.
        batch_size: Videos of a step over all workers.
        num_rows: Length of the run, in videos.
        shuffled: Permute every epoch; otherwise manifest order, and every row counts as `VALIDATION_EPOCH`.
    """

    seed: int
    num_videos: int
    batch_size: int
    num_rows: int
    shuffled: bool

    def __post_init__(self) -> None:
        if min(self.num_videos, self.batch_size, self.num_rows) < 1:
            raise ValueError(f"a plan needs at least one video, batch and row, got {self}")

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return math.ceil(self.num_rows / self.batch_size)

    def rows_of_step(self, step: int) -> int:
        """Videos of one step: `batch_size`, fewer in the last step of a validation pass."""
        return min(self.batch_size, self.num_rows - step * self.batch_size)

    def at(self, row: int) -> PlanRow:
        """Row n of the run; past its end, rows without a video."""
        step = row // self.batch_size
        if row >= self.num_rows:
            return PlanRow(row, step, VALIDATION_EPOCH, ABSENT)
        if not self.shuffled:
            return PlanRow(row, step, VALIDATION_EPOCH, row % self.num_videos)
        epoch, position = divmod(row, self.num_videos)
        return PlanRow(row, step, epoch, int(_permutation(self.seed, epoch, self.num_videos)[position]))

    def rows(self, start: int, stop: int) -> Iterator[PlanRow]:
        """Rows [start, stop), in order."""
        return (self.at(row) for row in range(start, stop))


def training_plan(seed: int, num_videos: int, batch_size: int, epochs: int) -> Plan:
    """The plan of a training run: whole steps, so its last one may reach into one epoch more."""
    num_steps = math.ceil(epochs * num_videos / batch_size)
    return Plan(seed, num_videos, batch_size, num_steps * batch_size, shuffled=True)


def validation_plan(seed: int, num_videos: int, batch_size: int) -> Plan:
    """The plan of one validation pass: every video once, in manifest order, with the same views each time."""
    return Plan(seed, num_videos, batch_size, num_videos, shuffled=False)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_videos: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_videos)
