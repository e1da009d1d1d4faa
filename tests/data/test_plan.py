"""`carl_ray.data.plan`: row n of a run is a pure function of (seed, n)."""

from __future__ import annotations

import itertools
import math
import pickle
from collections import Counter

import numpy as np
import pytest

from carl_ray.data.plan import (
    ABSENT,
    UNLABELLED,
    VALIDATION_EPOCH,
    Plan,
    PlanRow,
    training_plan,
    validation_plan,
)


@pytest.mark.parametrize(("num_videos", "batch_size", "epochs"), [(5, 3, 4), (5, 7, 3), (1, 1, 2), (8, 4, 1)])
def test_every_epoch_is_a_permutation_and_the_run_their_concatenation(
    num_videos: int, batch_size: int, epochs: int
) -> None:
    plan = training_plan(1, num_videos, batch_size, epochs)
    rows = list(plan.rows(0, plan.num_rows))
    assert [row.row for row in rows] == list(range(plan.num_rows))
    assert [row.epoch for row in rows] == [n // num_videos for n in range(plan.num_rows)]
    assert [row.step for row in rows] == [n // batch_size for n in range(plan.num_rows)]
    for epoch in range(epochs):
        videos = [row.video_index for row in rows if row.epoch == epoch]
        assert sorted(videos) == list(range(num_videos))
    assert plan.epoch_rows == num_videos
    # Whole steps: all that was asked for, and less than a step more.
    assert plan.num_rows == plan.num_steps * batch_size
    assert 0 <= plan.num_rows - epochs * num_videos < batch_size
    assert all(plan.rows_of_step(step) == batch_size for step in range(plan.num_steps))


def test_orders_differ_between_epochs_and_seeds() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        plan = training_plan(seed, 20, 4, 10)
        return tuple(row.video_index for row in plan.rows(20 * epoch, 20 * (epoch + 1)))

    orders = {(seed, epoch): order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(set(orders.values())) == 16
    # Every video comes first somewhere: a shift of one order would pass the line above.
    starts = {orders[key][0] for key in orders}
    assert len(starts) > 8
    assert tuple(range(20)) not in orders.values()


def test_the_order_is_the_one_of_earlier_versions() -> None:
    # A change here breaks the resumption of every run that was begun before it.
    plan = training_plan(0, 6, 2, 2)
    assert [row.video_index for row in plan.rows(0, 12)] == [3, 2, 5, 4, 0, 1, 1, 4, 3, 0, 2, 5]


@pytest.mark.parametrize(("num_videos", "batch_size"), [(10, 4), (3, 8), (8, 4)])
def test_a_validation_pass_takes_every_video_once_in_order(num_videos: int, batch_size: int) -> None:
    plan = validation_plan(3, num_videos, batch_size)
    rows = list(plan.rows(0, plan.num_rows))
    assert [row.video_index for row in rows] == list(range(num_videos))
    assert {row.epoch for row in rows} == {VALIDATION_EPOCH}
    assert plan.num_steps == math.ceil(num_videos / batch_size)
    sizes = [plan.rows_of_step(step) for step in range(plan.num_steps)]
    assert sum(sizes) == num_videos
    assert sizes[:-1] == [batch_size] * (plan.num_steps - 1)
    assert [[row.step for row in rows].count(step) for step in range(plan.num_steps)] == sizes


# Labels of 5, 4, 1, 2 and 3 videos, out of order, and two videos without one.
CODES = np.array([0, 7, 0, 7, -1, 0, 2, 3, 7, 0, 3, 9, -1, 9, 7, 0, 9])


def paired_training_plan(seed: int, codes: np.ndarray, batch_size: int, epochs: int) -> Plan:
    return training_plan(seed, len(codes), batch_size, epochs, codes)


def pairs_of_epoch(plan: Plan, epoch: int) -> list[tuple[int, int]]:
    rows = list(plan.rows(epoch * plan.epoch_rows, (epoch + 1) * plan.epoch_rows))
    assert {row.epoch for row in rows} == {epoch}
    return [(a.video_index, b.video_index) for a, b in zip(rows[::2], rows[1::2], strict=True)]


@pytest.mark.parametrize("codes", [None, CODES])
def test_a_row_depends_on_nothing_but_seed_and_number(codes: np.ndarray | None) -> None:
    plan = training_plan(5, len(CODES), 4, 6, codes)
    in_order = list(plan.rows(0, plan.num_rows))
    copied = pickle.loads(pickle.dumps(plan))
    # Read backwards, and from a plan of the same run that is longer and has other batches.
    longer = training_plan(5, len(CODES), 6, 500, codes)
    for row in reversed(in_order):
        assert plan.at(row.row) == copied.at(row.row) == row
        found = longer.at(row.row)
        assert (found.epoch, found.video_index) == (row.epoch, row.video_index)
    for start in range(0, plan.num_rows, 13):
        assert list(plan.rows(start, plan.num_rows)) == in_order[start:]


@pytest.mark.parametrize("codes", [None, np.arange(10**5) % 399])
def test_an_endless_run_costs_little_ahead(codes: np.ndarray | None) -> None:
    plan = training_plan(0, 10**5, 4, 10**9, codes)
    row = plan.at(plan.num_rows - 1)
    assert (row.step, row.epoch) == (plan.num_steps - 1, 10**9 - 1)
    assert 0 <= row.video_index < 10**5
    assert len(pickle.dumps(plan)) < 5 * 10**5


@pytest.mark.parametrize("codes", [None, CODES])
def test_rows_past_the_end_hold_no_video(codes: np.ndarray | None) -> None:
    for plan in (training_plan(0, len(CODES), 4, 1, codes), validation_plan(0, len(CODES), 4, codes)):
        end = plan.num_rows
        beyond = list(plan.rows(end - 1, end + 3))
        assert [row.video_index == ABSENT for row in beyond] == [False, True, True, True]
        assert beyond[1] == PlanRow(end, end // 4, VALIDATION_EPOCH, ABSENT)


@pytest.mark.parametrize("codes", [CODES, CODES[:1], CODES[4:5], np.zeros(6, int), np.full(3, UNLABELLED)])
@pytest.mark.parametrize("batch_size", [2, 6])
def test_every_epoch_pairs_every_video_with_one_of_its_label(codes: np.ndarray, batch_size: int) -> None:
    plan = paired_training_plan(3, codes, batch_size, epochs=4)
    sizes = Counter(codes.tolist())
    alone = {v for v, code in enumerate(codes) if code == UNLABELLED or sizes[code] == 1}
    odd = {code for code, size in sizes.items() if size % 2 and size > 1 and code != UNLABELLED}
    assert plan.num_videos == len(codes)
    assert plan.epoch_rows == len(codes) + len(alone) + len(odd)
    for epoch in range(4):
        pairs = pairs_of_epoch(plan, epoch)
        for a, b in pairs:
            assert codes[a] == codes[b]
            assert (a == b) == (a in alone)
        seen = Counter(itertools.chain(*pairs))
        assert set(seen) == set(range(len(codes)))
        twice = [v for v in seen if v not in alone and seen[v] > 1]
        assert max(seen.values()) <= 2
        # One of each label of which one was left over.
        assert sorted(codes[v] for v in twice) == sorted(odd)


@pytest.mark.parametrize(("batch_size", "epochs"), [(2, 1), (4, 3), (20, 2), (64, 1)])
def test_a_paired_run_is_whole_steps_of_whole_pairs(batch_size: int, epochs: int) -> None:
    plan = paired_training_plan(0, CODES, batch_size, epochs)
    rows = list(plan.rows(0, plan.num_rows))
    assert [row.row for row in rows] == list(range(plan.num_rows))
    assert [row.step for row in rows] == [n // batch_size for n in range(plan.num_rows)]
    assert [row.epoch for row in rows] == [n // plan.epoch_rows for n in range(plan.num_rows)]
    assert plan.num_rows == plan.num_steps * batch_size
    assert 0 <= plan.num_rows - epochs * plan.epoch_rows < batch_size
    assert all(plan.rows_of_step(step) == batch_size for step in range(plan.num_steps))
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first.step, first.epoch) == (second.step, second.epoch)
        assert CODES[first.video_index] == CODES[second.video_index]


def test_partners_and_the_order_of_the_pairs_are_drawn_anew() -> None:
    plan = paired_training_plan(0, CODES, 2, 300)
    epochs = [pairs_of_epoch(plan, epoch) for epoch in range(300)]
    assert len({tuple(pairs) for pairs in epochs}) == 300
    # Every two videos of a label meet, and as often as others of it: within 5 deviations of a fair draw.
    for code in (0, 7, 9):
        videos = np.flatnonzero(code == CODES).tolist()
        couples = list(itertools.combinations(videos, 2))
        met = Counter(tuple(sorted(pair)) for pairs in epochs for pair in pairs if CODES[pair[0]] == code)
        assert set(met) == set(couples)
        expected = 300 * math.ceil(len(videos) / 2) / len(couples)
        assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in met.values())
    # Any video may come first.
    assert {pairs[0][0] for pairs in epochs} == set(range(len(CODES)))
    other = paired_training_plan(1, CODES, 2, 300)
    assert pairs_of_epoch(other, 0) not in epochs


def test_plans_of_other_labels_do_not_share_their_pairs() -> None:
    plans = [paired_training_plan(0, codes, 2, 1) for codes in (np.zeros(4, int), np.array([0, 0, 1, 1]))]
    ordered = [pairs_of_epoch(plan, 0) for plan in plans for _ in range(2)]
    assert ordered[0] == ordered[1]
    assert sorted(tuple(sorted(pair)) for pair in ordered[2]) == [(0, 1), (2, 3)]


def test_the_pairs_are_those_of_earlier_versions() -> None:
    # A change here breaks the resumption of every run that was begun before it.
    plan = paired_training_plan(0, np.array([0, 1, 0, -1, 1, 0]), 2, 1)
    assert pairs_of_epoch(plan, 0) == [(2, 5), (0, 2), (3, 3), (4, 1)]


def test_the_callers_codes_are_copied() -> None:
    codes = np.zeros(4, np.int32)
    plan = paired_training_plan(0, codes, 2, 1)
    codes[:] = UNLABELLED
    assert plan.label_codes is not None and plan.label_codes.tolist() == [0, 0, 0, 0]


def test_validation_pairs_are_the_same_each_time() -> None:
    plan = validation_plan(3, len(CODES), 4, CODES)
    rows = list(plan.rows(0, plan.num_rows))
    assert {row.epoch for row in rows} == {VALIDATION_EPOCH}
    assert {row.video_index for row in rows} == set(range(len(CODES)))
    assert sum(plan.rows_of_step(step) for step in range(plan.num_steps)) == plan.num_rows == plan.epoch_rows
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first.step == second.step
        assert CODES[first.video_index] == CODES[second.video_index]
    assert rows == list(validation_plan(3, len(CODES), 4, CODES).rows(0, plan.num_rows))
