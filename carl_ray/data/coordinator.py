"""Care for the process that runs a stream: Ray Data's scheduling loop, in Ray Train's split coordinator.

Ray Data is made for data sets that end. A stream does not, and its loop would

- spin while everything that is ready may not be taken yet, which is how a stream waits for its trainer: `ray.wait`
  returns at once then, and the loop takes up to a whole core beside those that decode;
- remember every block that ever was, for a summary at the end: kilobytes a video, hundreds of GB over 300 epochs of
  Kinetics-400.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class ExecutionCallback:
        """Ray's, which has no types."""
else:
    try:
        from ray.data._internal.execution.execution_callback import ExecutionCallback
    except ImportError:  # It is not public (Ray 2.60).
        ExecutionCallback = object

_STEP_SECONDS = 0.02


class EndlessExecution(ExecutionCallback):
    """One of Ray Data's execution callbacks: its loop remembers no blocks, and steps without one take a while.

    For `DataContext.custom_execution_callback_classes`. What it asks an executor for is not public (Ray 2.60): where
    there is no such thing, a stream works, and its coordinator spins and grows again, which a test shows.
    """

    def __init__(self) -> None:
        self._step_began = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        """Called after each step of the loop, in its thread: only there are the lists appended to."""
        num_blocks = 0
        with suppress(AttributeError, TypeError):
            for operator in executor._topology:
                for blocks in operator.get_stats().values():
                    num_blocks += len(blocks)
                    blocks.clear()
        # A step that took a block may have more to take, and one that has waited has not been idle.
        if not num_blocks:
            time.sleep(max(0.0, self._step_began + _STEP_SECONDS - time.monotonic()))
        self._step_began = time.monotonic()
