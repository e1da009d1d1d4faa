"""`carl_ray.training.reader`: every step once, with the rows that are there."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pytest

from carl_ray.data.plan import Plan, training_plan, validation_plan
from carl_ray.training.reader import Prefetch, rows_by_step

Row = tuple[int, int]  # row, step


def read(rows: Iterable[Row], plan: Plan, first_step: int = 0) -> list[list[Row]]:
    return list(rows_by_step(rows, lambda row: row[1], first_step, plan.num_steps, plan.rows_of_step))


def rows_of(plan: Plan, start: int = 0, stop: int | None = None) -> list[Row]:
    return [(row.row, row.step) for row in plan.rows(start, plan.num_rows if stop is None else stop)]


def exact(rows: list[Row]) -> Iterator[Row]:
    """An iterator that must not be asked for more than it has: Ray would wait for a row that may be long in coming."""
    yield from rows
    raise AssertionError("asked for a row more than the steps need")


PLANS = [training_plan(0, 5, 4, 3), validation_plan(0, 10, 4), training_plan(0, 3, 1, 3)]


@pytest.mark.parametrize("plan", PLANS)
def test_one_worker_gets_every_row_at_its_step(plan: Plan) -> None:
    steps = read(rows_of(plan), plan)
    assert [len(found) for found in steps] == [plan.rows_of_step(step) for step in range(plan.num_steps)]
    assert [row for found in steps for row in found] == rows_of(plan)
    assert all(row[1] == step for step, found in enumerate(steps) for row in found)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("num_workers", [2, 3, 5])
def test_workers_together_get_every_row_once(plan: Plan, num_workers: int) -> None:
    rows = rows_of(plan, stop=plan.num_rows + num_workers - 1)  # with what fills an even split
    shards = [read(rows[rank::num_workers], plan) for rank in range(num_workers)]
    for number, steps in enumerate(zip(*shards, strict=True)):
        # What fills the split may still count to an uneven last step; it holds no video.
        together = sorted(row for found in steps for row in found if row[0] < plan.num_rows)
        assert together == [row for row in rows_of(plan) if row[1] == number]


def test_steps_may_have_no_rows_or_uneven_ones() -> None:
    plan = training_plan(0, 12, 3, 1)
    rows = [(3, 1), (4, 1), (5, 1), (11, 3)]
    assert read(rows, plan) == [
        [],
        [(3, 1), (4, 1), (5, 1)],
        [],
        [(11, 3)],
    ]
    assert read([], plan) == [[]] * 4


def test_rows_past_the_end_are_left() -> None:
    plan = training_plan(0, 4, 2, 1)
    assert read([(0, 0), (4, 2), (5, 2)], plan) == [[(0, 0)], []]


@pytest.mark.parametrize("first_step", [0, 1, 2])
def test_begins_at_any_step(first_step: int) -> None:
    plan = PLANS[0]
    whole = read(rows_of(plan), plan)
    assert read(rows_of(plan, first_step * plan.batch_size), plan, first_step) == whole[first_step:]
    assert read([], plan, plan.num_steps) == []


@pytest.mark.parametrize("plan", PLANS)
def test_waits_for_no_row_once_all_of_a_step_came(plan: Plan) -> None:
    for step in range(plan.num_steps):
        there = [row for row in rows_of(plan) if row[1] <= step]
        steps = rows_by_step(exact(there), lambda row: row[1], 0, plan.num_steps, plan.rows_of_step)
        for expected in range(step + 1):
            assert {row[1] for row in next(steps)} == {expected}
    with pytest.raises(AssertionError, match="asked for a row more"):
        list(rows_by_step(exact([(0, 0)]), lambda row: row[1], 0, plan.num_steps, lambda step: 2))


def test_prefetch_gives_everything_in_order() -> None:
    assert list(Prefetch(iter(range(100)), depth=3)) == list(range(100))
    assert list(Prefetch(iter([]), depth=1)) == []


def test_prefetch_runs_ahead_by_its_depth_and_no_further() -> None:
    made: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    prefetch = Prefetch(items(), depth=2)
    # Two are held ready, a third waits for its place.
    assert third.wait(60)
    iterator = iter(prefetch)
    assert next(iterator) == 0
    assert len(made) <= 4
    prefetch.stop()


def test_prefetch_raises_the_threads_error_after_what_came_before() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise RuntimeError("no more")

    seen = []
    with pytest.raises(RuntimeError, match="no more"):
        for item in Prefetch(items(), depth=5):
            seen.append(item)  # noqa: PERF402
    assert seen == [1, 2]


def test_prefetch_stops_its_thread_while_that_waits_for_a_place() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed.set()

    before = threading.active_count()
    prefetch = Prefetch(items(), depth=1)
    assert next(iter(prefetch)) == 0
    prefetch.stop()
    # The thread ends and lets go of the stream: generous, as the machine may be slow.
    assert closed.wait(60)
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join(60)
    assert threading.active_count() <= before
