"""Which video when: row n of a run is a pure function of (seed, n).

A run is the concatenation of its epochs, one endless stream; each epoch is a seeded permutation of the
manifest (`Plan`), or of pairs of videos of the same label (`PairedPlan`). A position in it is a number, so a
checkpoint stores one integer and a run resumes there on any number of workers.
Step k trains on rows [k * batch_size, (k + 1) * batch_size), whoever of the workers gets which.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Int, Int32

VALIDATION_EPOCH = -1
"""The epoch of every validation draw: the same views each time."""

ABSENT = -1
"""`video_index` of a row that holds no video: it only fills the last step for an even split."""

UNLABELLED = -1
"""Label code of a video without a label."""


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

    @property
    def epoch_rows(self) -> int:
        """Rows of an epoch: every video once."""
        return self.num_videos

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


# Compared by identity, as arrays are, so that an epoch's pairs are found again quickly.
@dataclass(frozen=True, eq=False)
class PairedPlan:
    """An order of pairs of videos of the same label: rows 2k and 2k + 1 are a pair, and belong to one step.

    In every epoch the videos of each label are permuted and paired, and the order of the pairs is permuted.
    Where the number of videos of a label is odd, the last one is paired with another of them, drawn, which
    then occurs twice. A video that is alone with its label, or has none, is paired with itself.
    Within an epoch every row of a video has the same views.

    Attributes:
        seed: Seed of the run.
        label_codes: Label of each video of the manifest's split as a number, at least one video; `UNLABELLED`
            where it has none.
        batch_size: Videos of a step over all workers, an even number.
        num_rows: Length of the run, in rows, an even number.
        shuffled: New pairs every epoch; otherwise the same ones, and every row counts as `VALIDATION_EPOCH`.
    """

    seed: int
    label_codes: Int32[np.ndarray, " num_videos"]
    batch_size: int
    num_rows: int
    shuffled: bool

    def __post_init__(self) -> None:
        if self.batch_size % 2:
            raise ValueError(f"pairs need a batch size that is even, got {self.batch_size}")
        if min(self.num_videos, self.batch_size, self.num_rows) < 1 or self.num_rows % 2:
            raise ValueError(
                "a paired plan needs at least one video, batch and row, and whole pairs, got "
                f"num_videos={self.num_videos}, batch_size={self.batch_size}, num_rows={self.num_rows}"
            )
        if self.label_codes.min() < UNLABELLED:
            raise ValueError(f"label codes: expected {UNLABELLED} or more, got {self.label_codes.min()}")

    @property
    def num_videos(self) -> int:
        """Rows of the manifest's split."""
        return len(self.label_codes)

    @cached_property
    def epoch_rows(self) -> int:
        """Rows of an epoch, the same for each: every video once, and partners for those that are left over."""
        labelled = self.label_codes[self.label_codes != UNLABELLED]
        _, sizes = np.unique(labelled, return_counts=True)
        alone = self.num_videos - len(labelled)
        return int(self.num_videos + (sizes % 2).sum() + alone)

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
        epoch, position = divmod(row, self.epoch_rows)
        if not self.shuffled:
            return PlanRow(row, step, VALIDATION_EPOCH, int(_pairs(self, 0)[position]))
        return PlanRow(row, step, epoch, int(_pairs(self, epoch)[position]))

    def rows(self, start: int, stop: int) -> Iterator[PlanRow]:
        """Rows [start, stop), in order."""
        return (self.at(row) for row in range(start, stop))


def training_plan(seed: int, num_videos: int, batch_size: int, epochs: int) -> Plan:
    """The plan of a training run: whole steps, so its last one may reach into one epoch more."""
    num_steps = math.ceil(epochs * num_videos / batch_size)
    return Plan(seed, num_videos, batch_size, num_steps * batch_size, shuffled=True)


def paired_training_plan(
    seed: int, label_codes: Int[np.ndarray, " num_videos"], batch_size: int, epochs: int
) -> PairedPlan:
    """The plan of a training run on pairs: whole steps, so its last one may reach into one epoch more.

    Args:
        seed: Seed of the run.
        label_codes: Label of each video as a number, `UNLABELLED` where it has none. Which number stands for
            which label changes the pairs.
        batch_size: Videos of a step over all workers: two for each pair.
        epochs: Passes over the videos.

    Raises:
        ValueError: an odd batch size, no video, batch or epoch, or a code below `UNLABELLED`.
    """
    one_step = PairedPlan(seed, label_codes.astype(np.int32), batch_size, batch_size, shuffled=True)
    num_steps = math.ceil(epochs * one_step.epoch_rows / batch_size)
    return replace(one_step, num_rows=num_steps * batch_size)


def validation_plan(seed: int, num_videos: int, batch_size: int) -> Plan:
    """The plan of one validation pass: every video once, in manifest order, with the same views each time."""
    return Plan(seed, num_videos, batch_size, num_videos, shuffled=False)


def paired_validation_plan(
    seed: int, label_codes: Int[np.ndarray, " num_videos"], batch_size: int
) -> PairedPlan:
    """The plan of one validation pass on pairs: every video at least once, the same pairs and views each time.

    Errors as `paired_training_plan`.
    """
    one_step = PairedPlan(seed, label_codes.astype(np.int32), batch_size, batch_size, shuffled=False)
    return replace(one_step, num_rows=one_step.epoch_rows)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_videos: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_videos)


@lru_cache(maxsize=2)
def _pairs(plan: PairedPlan, epoch: int) -> np.ndarray:
    """The videos of an epoch, partners side by side."""
    rng = np.random.default_rng([plan.seed, epoch])
    order = rng.permutation(plan.num_videos)
    # A group is what may be paired: the videos of a label, or one video without a label.
    order = order[np.argsort(plan.label_codes[order], kind="stable")]
    codes = plan.label_codes[order]
    is_start = np.concatenate([[True], (codes[1:] != codes[:-1]) | (codes[1:] == UNLABELLED)])
    starts = np.flatnonzero(is_start)
    sizes = np.diff(starts, append=plan.num_videos)
    ranks = np.arange(plan.num_videos) - np.repeat(starts, sizes)
    firsts = np.flatnonzero(ranks % 2 == 0)
    seconds = firsts + 1
    # The last of an odd number: another one of its group, or itself where there is no other.
    ends = starts + sizes
    odd = sizes % 2 == 1
    drawn = starts + rng.integers(0, np.maximum(sizes - 1, 1))
    left_over = np.searchsorted(firsts, ends[odd] - 1)
    seconds[left_over] = drawn[odd]
    pairs = np.stack([order[firsts], order[seconds]], axis=1)
    return rng.permutation(pairs).reshape(-1)
