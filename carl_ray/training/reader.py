"""Group a stream of rows by step, and prefetch in a thread. Free of Ray.

A worker takes all rows of its shard that belong to a step, possibly none: together the workers have the rows of the
plan, whatever their number.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def rows_by_step(
    rows: Iterable[T],
    step_of: Callable[[T], int],
    first_step: int,
    num_steps: int,
    rows_of_step: Callable[[int], int],
) -> Iterator[list[T]]:
    """Yield the rows of every step of [first_step, num_steps), in order; possibly none.

    Args:
        rows: In ascending order of their steps; rows past `num_steps` are padding of the stream.
        step_of: The step of a row.
        first_step: First step.
        num_steps: End of the run.
        rows_of_step: Rows of a step over all workers; after that many a step is yielded at once.
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
            del row  # No reference here: the consumer decides how long rows live.
        yield found


class Prefetch(Generic[T]):
    """Iterator that is run ahead in a thread; its errors are raised in the consumer.

    Args:
        items: The iterator.
        depth: Items that are prefetched.
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
        """End the thread and drop its items."""
        self._stopped.set()

    def _fill(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if not self._put(item, None):
                    return
            self._put(None, None)
        except BaseException as error:  # Raised in the consumer.
            self._put(None, error)

    def _put(self, item: T | None, error: BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put((item, error), timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
