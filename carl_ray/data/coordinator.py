"""Care for the process that runs a stream: Ray Data's scheduling loop, in Ray Train's split coordinator.

Ray Data is made for data sets that end. A stream does not, and its loop would

- look for tasks that have ended ten times a second, and leave the cores that they had idle until then;
- spin while everything that is ready may not be taken yet, which is how a stream waits for its trainer: up to a whole
  core beside those that decode;
- remember every block that ever was, for a summary at the end: kilobytes a video, hundreds of GB over 300 epochs of
  Kinetics-400;
- plan ahead without end: limits are of bytes, and planned rows have hardly any, but kilobytes of bookkeeping each.

What is asked of Ray here is not public (2.60). Where there is no such thing a stream works, and its coordinator spins
and grows again, which a test shows. Only an actor, as coordinators are, is cared for: a script may leave its cluster
while the loop goes on in it, and whoever waits for tasks then ends the script.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.data import DataContext

if TYPE_CHECKING:

    class BackpressurePolicy:
        """Ray's, which has no types."""

    class ExecutionCallback:
        """Ray's, which has no types."""

    scheduling: Any
else:
    try:
        from ray.data._internal.execution import streaming_executor_state as scheduling
        from ray.data._internal.execution.backpressure_policy import BackpressurePolicy
        from ray.data._internal.execution.execution_callback import ExecutionCallback
    except ImportError:
        BackpressurePolicy = ExecutionCallback = object
        scheduling = None

PLANNING = "plan_segment"
"""In the name of the operator whose blocks are planned rows."""

_QUIET_SECONDS = 0.1
"""The loop waits at most so long for tasks that are at work."""
_FULL_SECONDS = 0.05
"""… so long where what they have may not be taken, or none is at work."""
_SHORTEST_SECONDS = 0.002
"""… and at least so long where one has something."""
_MOST_PLANNED = 64
"""Rows that wait to be loaded, beside two for each task that loads."""
_PLANNED_BYTES = 32
"""Of a planned row: four 64-bit numbers."""


def expect_no_end(context: DataContext) -> None:
    """Has the coordinators of this context's data sets cared for, where Ray has what it takes."""
    callbacks = getattr(context, "custom_execution_callback_classes", None)
    if callbacks is not None and ExecutionCallback is not object:
        context.custom_execution_callback_classes = [*callbacks, EndlessExecution]  # type: ignore[list-item, unused-ignore]


class EndlessExecution(ExecutionCallback):
    """One of Ray Data's execution callbacks: its loop waits for what can go on, and remembers no blocks."""

    def __init__(self) -> None:
        self._loops_wait: float | None = None

    def before_execution_starts(self, executor: Any) -> None:
        """Called once, when the executor knows its operators."""
        if ray.get_runtime_context().get_actor_id() is None:
            return
        with suppress(AttributeError):
            # Its own wait is for all tasks together, and so takes its whole time while one of them is at work.
            self._loops_wait = scheduling.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S
            scheduling.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = 0.0
            executor._backpressure_policies.append(FewPlannedRows(executor._topology))

    def on_execution_step(self, executor: Any) -> None:
        """Called after each step of the loop, in its thread: only there are the lists appended to."""
        if self._loops_wait is None:
            return
        num_blocks = 0
        tasks: list[Any] = []
        seconds = _QUIET_SECONDS
        with suppress(AttributeError, TypeError):
            for operator in executor._topology:
                num_blocks += _forget_blocks(operator)
                if not operator._in_task_output_backpressure:
                    tasks += [task.get_waitable() for task in operator.get_active_tasks()]
                elif PLANNING not in operator.name:
                    # Until a consumer makes room, of which nobody tells the loop.
                    seconds = _FULL_SECONDS
        # A step that took a block may have more to take.
        if not num_blocks:
            _wait_for_one(tasks, seconds)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Called once, at the end."""
        if self._loops_wait is not None:
            scheduling.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = self._loops_wait

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Called instead where the execution fails."""
        self.after_execution_succeeds(executor)


def _forget_blocks(operator: Any) -> int:
    """How many blocks an operator has made since the last call; they are dropped from its records."""
    num_blocks = 0
    for blocks in operator.get_stats().values():
        num_blocks += len(blocks)
        blocks.clear()
    # Of a queue that restores the order: what it keeps of tasks whose blocks have all gone.
    queue: Any = getattr(operator, "_output_queue", None)
    if hasattr(queue, "_current_key"):
        for key in [key for key in queue._inner if key < queue._current_key]:
            del queue._inner[key]
        queue._finalized_keys = {key for key in queue._finalized_keys if key >= queue._current_key}
    return num_blocks


def _wait_for_one(tasks: list[Any], seconds: float) -> None:
    """Waits until one of the tasks has something to be taken, or has ended, at most so many seconds."""
    if not tasks:
        time.sleep(_FULL_SECONDS)
        return
    begin = time.monotonic()
    ray.wait(tasks, num_returns=1, timeout=seconds, fetch_local=False)
    # What was taken of a task is looked at elsewhere before the next is taken, however ready that is.
    time.sleep(max(0.0, begin + _SHORTEST_SECONDS - time.monotonic()))


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
                    room = _MOST_PLANNED + 2 * loading.num_active_tasks() - waiting
                    return max(0, room) * _PLANNED_BYTES
        return None
