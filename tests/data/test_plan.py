"""`carl_ray.data.plan`: row n of a run is a pure function of (seed, n)."""

from __future__ import annotations

import itertools
import math

import pytest

from carl_ray.data.plan import ABSENT, VALIDATION_EPOCH, Plan, PlanRow, training_plan, validation_plan


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


def test_a_row_depends_on_nothing_but_seed_and_number() -> None:
    plan = training_plan(5, 7, 3, 30)
    in_order = list(plan.rows(0, plan.num_rows))
    # Asked for backwards, from another plan of the same run that is longer and has other batches.
    other = training_plan(5, 7, 2, 300)
    for row in reversed(in_order):
        assert plan.at(row.row) == row
        found = other.at(row.row)
        assert (found.epoch, found.video_index) == (row.epoch, row.video_index)
    for cuts in itertools.combinations(range(0, plan.num_rows, 17), 3):
        edges = [0, *cuts, plan.num_rows]
        parts = [list(plan.rows(start, stop)) for start, stop in itertools.pairwise(edges)]
        assert list(itertools.chain(*parts)) == in_order


def test_the_order_is_the_one_of_earlier_versions() -> None:
    # A change here breaks the resumption of every run that was begun before it.
    plan = training_plan(0, 6, 2, 2)
    assert [row.video_index for row in plan.rows(0, 12)] == [3, 2, 5, 4, 0, 1, 1, 4, 3, 0, 2, 5]


def test_an_endless_run_costs_nothing_ahead() -> None:
    plan = training_plan(0, 1000, 4, 10**9)
    assert plan.num_steps == 250 * 10**9
    row = plan.at(10**12 - 1)
    assert (row.step, row.epoch) == (250 * 10**9 - 1, 10**9 - 1)
    assert 0 <= row.video_index < 1000


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


def test_rows_past_the_end_hold_no_video() -> None:
    for plan in (training_plan(0, 5, 3, 1), validation_plan(0, 5, 3)):
        beyond = list(plan.rows(plan.num_rows - 1, plan.num_rows + 3))
        assert [row.video_index == ABSENT for row in beyond] == [False, True, True, True]
        assert beyond[1] == PlanRow(plan.num_rows, plan.num_rows // 3, VALIDATION_EPOCH, ABSENT)


@pytest.mark.parametrize("values", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_an_empty_plan_is_refused(values: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least one video, batch and row"):
        Plan(0, *values, shuffled=True)
