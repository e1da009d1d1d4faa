"""The order of videos in a run: row n is a pure function of (seed, n).

A run is the concatenation of its epochs, one endless stream. Each epoch is a seeded permutation of the manifest, or
of pairs of videos of the same label. A checkpoint stores the next row as one integer, and a run resumes there on any
number of workers. Step k trains on rows [k * batch_size, (k + 1) * batch_size), however the workers share them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Int, Int32

VALIDATION_EPOCH = -1
"""Epoch of every validation row, so that each pass has the same views."""

ABSENT = -1
"""`video_index` of a row without a video, which fills the last step for an even split."""

UNLABELLED = -1
"""Label code of a video without a label."""


@dataclass(frozen=True)
class PlanRow:
    """One video at one step."""

    row: int
    step: int
    epoch: int
    video_index: int


# Compared by identity, as arrays are, so that the order of an epoch can be cached.
@dataclass(frozen=True, eq=False)
class Plan:
    """An order of videos, or of pairs of videos of the same label.

    Pairs: rows 2k and 2k + 1 are a pair and belong to the same step. In every epoch the videos of each label are
    permuted and paired, and the order of the pairs is permuted. Where a label has an odd number of videos, the last
    one is paired with another of them, drawn at random, which then occurs twice. A video without a label, or the only
    one with its label, is paired with itself. Within an epoch every row of a video has the same views.
    """

    seed: int
    num_videos: int
    """Rows of the manifest's split, at least 1."""
    batch_size: int
    """Videos of a step over all workers; even for pairs."""
    num_rows: int
    """Length of the run in videos; even for pairs."""
    shuffled: bool
    """A new order every epoch; otherwise the same one, and every row has the epoch `VALIDATION_EPOCH`."""
    label_codes: Int32[np.ndarray, " num_videos"] | None = None
    """Label of each video as a number, or `UNLABELLED`; None: single videos instead of pairs."""

    @cached_property
    def epoch_rows(self) -> int:
        """Rows of an epoch: every video once, and partners of those left over."""
        if self.label_codes is None:
            return self.num_videos
        labelled = self.label_codes[self.label_codes != UNLABELLED]
        _, sizes = np.unique(labelled, return_counts=True)
        return int(2 * self.num_videos - len(labelled) + (sizes % 2).sum())

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return math.ceil(self.num_rows / self.batch_size)

    def rows_of_step(self, step: int) -> int:
        """Videos of one step: `batch_size`, fewer in the last step of a validation pass."""
        return min(self.batch_size, self.num_rows - step * self.batch_size)

    def at(self, row: int) -> PlanRow:
        """Row n of the run; past its end, a row without a video."""
        step = row // self.batch_size
        if row >= self.num_rows:
            return PlanRow(row, step, VALIDATION_EPOCH, ABSENT)
        epoch, position = divmod(row, self.epoch_rows)
        if not self.shuffled:
            epoch = VALIDATION_EPOCH
        return PlanRow(row, step, epoch, int(_order(self, epoch)[position]))

    def rows(self, start: int, stop: int) -> Iterator[PlanRow]:
        """Rows [start, stop), in order."""
        return (self.at(row) for row in range(start, stop))


def training_plan(
    seed: int,
    num_videos: int,
    batch_size: int,
    epochs: int,
    label_codes: Int[np.ndarray, " num_videos"] | None = None,
) -> Plan:
    """The plan of a training run: whole steps, into one epoch more if necessary.

    Args:
        seed: Seed of the run.
        num_videos: Rows of the manifest's split, at least 1.
        batch_size: Videos of a step over all workers; even for pairs.
        epochs: Passes over the videos.
        label_codes: For pairs: label of each video as a number, `UNLABELLED` where it has none. Another numbering
            of the labels gives other pairs.
    """
    plan = _one_step(seed, num_videos, batch_size, label_codes, shuffled=True)
    return replace(plan, num_rows=math.ceil(epochs * plan.epoch_rows / batch_size) * batch_size)


def validation_plan(
    seed: int, num_videos: int, batch_size: int, label_codes: Int[np.ndarray, " num_videos"] | None = None
) -> Plan:
    """The plan of a validation pass: manifest order, or pairs, the same each time.

    Every video occurs at least once, with the same views in each pass.

    Arguments are those of `training_plan`.
    """
    plan = _one_step(seed, num_videos, batch_size, label_codes, shuffled=False)
    return replace(plan, num_rows=plan.epoch_rows)


def _one_step(
    seed: int, num_videos: int, batch_size: int, label_codes: np.ndarray | None, *, shuffled: bool
) -> Plan:
    codes = None if label_codes is None else label_codes.astype(np.int32)
    return Plan(seed, num_videos, batch_size, batch_size, shuffled, codes)


@lru_cache(maxsize=2)
def _order(plan: Plan, epoch: int) -> Int[np.ndarray, " epoch_rows"]:
    """Videos of an epoch in order; partners of a pair are neighbours."""
    if plan.label_codes is None and not plan.shuffled:
        return np.arange(plan.num_videos)
    rng = np.random.default_rng([plan.seed, max(epoch, 0)])
    order = rng.permutation(plan.num_videos)
    if plan.label_codes is None:
        return order
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
