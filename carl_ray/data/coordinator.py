"""Care for the process that runs a stream: Ray Data's scheduling loop, in Ray Train's split coordinator.

Ray Data is made for data sets that end. A stream does not, and its loop would

- spin while everything that is ready may not be taken yet, which is how a stream waits for its trainer: `ray.wait`
  returns at once then, and the loop takes up to a whole core beside those that decode;
- remember every block that ever was, for a summary at the end: kilobytes a video, hundreds of GB over 300 epochs of
  Kinetics-400;
- plan ahead without end: limits are of bytes, and planned rows have hardly any, but kilobytes of bookkeeping each.

What is asked of Ray here is not public (2.60). Where there is no such thing a stream works, and its coordinator spins
and grows again, which a test shows.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ray.data import DataContext

if TYPE_CHECKING:

    class BackpressurePolicy:
        """Ray's, which has no types."""

    class ExecutionCallback:
        """Ray's, which has no types."""
else:
    try:
        from ray.data._internal.execution.backpressure_policy import BackpressurePolicy
        from ray.data._internal.execution.execution_callback import ExecutionCallback
    except ImportError:
        BackpressurePolicy = ExecutionCallback = object

PLANNING = "plan_segment"
"""In the name of the operator whose blocks are planned rows."""

_STEP_SECONDS = 0.02
_MOST_PLANNED = 64
"""Rows that wait to be loaded, beside two for each task that loads."""


def expect_no_end(context: DataContext) -> None:
    """Has the coordinators of this context's data sets cared for, where Ray has what it takes."""
    callbacks = getattr(context, "custom_execution_callback_classes", None)
    if callbacks is not None and ExecutionCallback is not object:
        context.custom_execution_callback_classes = [*callbacks, EndlessExecution]  # type: ignore[list-item, unused-ignore]


class EndlessExecution(ExecutionCallback):
    """One of Ray Data's execution callbacks: its loop remembers no blocks, and steps without one take a while."""

    def __init__(self) -> None:
        self._step_began = time.monotonic()

    def before_execution_starts(self, executor: Any) -> None:
        """Called once, when the executor knows its operators."""
        with suppress(AttributeError):
            executor._backpressure_policies.append(FewPlannedRows(executor._topology))

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


class FewPlannedRows(BackpressurePolicy):
    """One of Ray Data's policies of backpressure: no planned row is taken while enough wait to be loaded.

    Args:
        topology: State of each operator.
    """

    def __init__(self, topology: Any) -> None:
        self._topology = topology

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """How many bytes of an operator's output may be taken now; None: this policy does not mind."""
        with suppress(AttributeError, KeyError):
            if PLANNING in op.name:
                for loading in op.output_dependencies:
                    waiting = self._topology[loading].total_enqueued_input_blocks()
                    if waiting >= _MOST_PLANNED + 2 * loading.num_active_tasks():
                        return 0
        return None
