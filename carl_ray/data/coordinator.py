"""Care for the process that runs a stream: Ray Data's scheduling loop, in Ray Train's split coordinator.

Ray Data is made for data sets that end. A stream does not, and its loop would

- spin while everything that is ready may not be taken yet, which is how a stream waits for its trainer: `ray.wait`
  returns at once then, and the loop takes up to a whole core beside those that decode;
- remember every block that ever was, for a summary at the end: some kB a video, hundreds of GB over 300 epochs of
  Kinetics-400.
"""

from __future__ import annotations

import time
from typing import Any

_STEP_SECONDS = 0.02


class EndlessExecution:
    """One of Ray Data's execution callbacks: steps of its loop take a while at least, and there is no summary.

    `DataContext.custom_execution_callback_classes` takes it; it has the methods of Ray's `ExecutionCallback`, which
    no public module has. What it asks an executor for is not public either (Ray 2.60): with a Ray that has no such
    thing a stream works, and its coordinator grows again, which a test shows.
    """

    def __init__(self) -> None:
        self._step_began = 0.0

    def before_execution_starts(self, executor: Any) -> None:
        """Called once."""

    def on_execution_step(self, executor: Any) -> None:
        """Called after each step of the loop, in its thread."""
        for operator in getattr(executor, "_topology", ()):
            for blocks in operator.get_stats().values():
                if isinstance(blocks, list):
                    blocks.clear()
        # Not after a step that has waited: what is ready by then should not wait again.
        time.sleep(max(0.0, self._step_began + _STEP_SECONDS - time.monotonic()))
        self._step_began = time.monotonic()

    def after_execution_succeeds(self, executor: Any) -> None:
        """Called once, at the end."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Called once instead, where there was an error."""
