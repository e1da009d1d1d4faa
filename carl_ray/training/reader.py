"""From the stream of rows to one batch a step, made ahead of time in a thread. Free of Ray.

A worker takes every row of its shard that belongs to a step, however many: on any number of workers the rows
of a step are those that the plan says, and a worker may have none.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class StepRows(Generic[T]):
    """The rows of one step that fell on this worker."""

    step: int
    rows: list[T]


def rows_by_step(
    rows: Iterable[T],
    step_of: Callable[[T], int],
    first_step: int,
    num_steps: int,
    rows_of_step: Callable[[int], int],
) -> Iterator[StepRows[T]]:
    """Every step of [first_step, num_steps) once, in order, with its rows; a step may have none.

    Args:
        rows: In ascending order of their steps; rows past `num_steps` only fill the stream's end.
        step_of: The step of a row.
        first_step: First step.
        num_steps: End of the run.
        rows_of_step: Rows of a step over all workers: once that many have come, none is waited for.
    """
    iterator = iter(rows)
    pending: T | None = None
    for step in range(first_step, num_steps):
        found: list[T] = []
        while len(found) < rows_of_step(step):
            row = pending if pending is not None else next(iterator, None)
            pending = None
            if row is None:
                break
            if step_of(row) != step:
                pending = row
                break
            found.append(row)
            del row  # whoever has taken the rows decides how long they are kept
        yield StepRows(step, found)


class Prefetch(Generic[T]):
    """Iterates over something in a thread, a few items ahead; an error there is raised here.

    Args:
        items: What to iterate over.
        depth: Items held ready.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._queue.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def stop(self) -> None:
        """Lets the thread end; what it holds is dropped."""
        self._stopped.set()

    def _fill(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if not self._put(item, None):
                    return
            self._put(None, None)
        except BaseException as error:  # The thread's errors belong to the one who iterates.
            self._put(None, error)

    def _put(self, item: T | None, error: BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put((item, error), timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
