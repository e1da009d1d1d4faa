"""Batches of a step from Ray Data's rows, checked against the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from ray.data import DataIterator

from carl_ray.config import Config
from carl_ray.data.batch import collate
from carl_ray.data.plan import VALIDATION_EPOCH, Plan
from carl_ray.data.sample import sample_spec
from carl_ray.data.stream import read_samples
from carl_ray.errors import RunError
from carl_ray.objectives.base import Batch
from carl_ray.training.reader import rows_by_step

FINGERPRINTS = 2**48
"""Number of row fingerprints: sums over all workers fit into 64 bits."""


@dataclass(frozen=True)
class StepBatch:
    """Data of one step on this worker."""

    step: int
    batch: Batch
    videos: dict[int, str]
    """Video id of each plan row of the batch."""
    num_rows: int
    fingerprint: int
    """`row_fingerprint` of the rows, including those whose video could not be read."""
    bad_videos: list[tuple[str, str]]
    """(video id, reason) of the videos that could not be read."""


class AgreedError(RunError):
    """A failure that all workers raise in the same step; a restart would not help."""


def step_batches(
    shard: DataIterator, plan: Plan, config: Config, first_step: int, device: torch.device
) -> Iterator[StepBatch]:
    """Yield one batch for each step, from rows that Ray prefetches."""
    spec = sample_spec(config)
    rows = (
        row
        for table in shard.iter_batches(
            batch_size=None,  # type: ignore[arg-type]  # Whole blocks.
            batch_format="pyarrow",
            prefetch_batches=config.cluster.prefetch_steps,
        )
        for row in read_samples(table, spec)
    )
    steps = rows_by_step(rows, lambda row: row.step, first_step, plan.num_steps, plan.rows_of_step)
    for step, samples in enumerate(steps, first_step):
        batch = collate(samples, spec, device)
        bad = [(sample.video_id or "", sample.error) for sample in samples if sample.error is not None]
        videos = {sample.row: sample.video_id or "" for sample in samples if sample.views is not None}
        fingerprint = row_fingerprint((s.row, s.epoch) for s in samples if s.row < plan.num_rows)
        received = StepBatch(step, batch, videos, len(samples), fingerprint, bad)
        # Frees the frames in the object store, except of the last block, while this generator waits.
        samples.clear()
        yield received


def row_fingerprint(rows: Iterable[tuple[int, int]]) -> int:
    """Order-independent hash of plan rows, given as (row, epoch).

    Fingerprints of disjoint sets add up to that of their union, modulo 2**48. Sums of row numbers would not do: 0, 4, 5
    and 1, 2, 6 have the same sum, and the same sum of squares.
    """
    digests = (hashlib.blake2b(f"{row}:{epoch}".encode(), digest_size=6).digest() for row, epoch in rows)
    return sum(int.from_bytes(digest) for digest in digests) % FINGERPRINTS


def check_rows(plan: Plan, step: int, num_rows: int, fingerprint: int) -> None:
    """Raise `AgreedError` where the rows received for a step are not the plan's.

    Args:
        plan: Plan of the training videos.
        step: The step.
        num_rows: Rows received, over all workers.
        fingerprint: Sum of the `row_fingerprint` of each worker.
    """
    expected = planned_rows(plan, step)
    if num_rows != len(expected):
        raise AgreedError(
            f"step {step}: expected {len(expected)} videos over all workers, got {num_rows}: the stream lost or "
            "doubled some"
        )
    if fingerprint % FINGERPRINTS != planned_fingerprint(plan, expected):
        raise AgreedError(
            f"step {step}: expected rows {expected.start} to {expected.stop - 1} of the plan over all workers, got "
            f"{num_rows} others: the stream mixed some up"
        )


def planned_rows(plan: Plan, step: int) -> range:
    """Plan rows of a step."""
    first = step * plan.batch_size
    return range(first, first + plan.rows_of_step(step))


def planned_fingerprint(plan: Plan, rows: range) -> int:
    """The `row_fingerprint` of rows as the plan has them."""
    return row_fingerprint((row, planned_epoch(plan, row)) for row in rows)


def planned_epoch(plan: Plan, row: int) -> int:
    """Epoch of a row: as `plan.at(row).epoch`, without the permutation that it draws."""
    return row // plan.epoch_rows if plan.shuffled else VALIDATION_EPOCH
