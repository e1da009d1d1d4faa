"""Scheduling of an endless stream: Ray Data's loop, in Ray Train's split coordinator.

Ray Data is made for data sets that end. A stream does not, and its loop would

- look for tasks that have ended ten times a second, and leave the cores that they had idle until then;
- spin while everything that is ready may not be taken yet, which is how a stream waits for its trainer: up to a whole
  core beside those that decode;
- remember every block that ever was, for a summary at the end: kilobytes a video, hundreds of GB over 300 epochs of
  Kinetics-400;
- plan ahead without end: limits are of bytes, and planned rows have hardly any, but kilobytes of bookkeeping each.

Ray has no options for this, so its private classes are used (2.60). What is used of them is listed in `_SIGNATURES`
and `_STATE`, and compared once with the installed Ray before anything is changed: where something differs, a warning
says so and the stream runs on plain Ray Data. Only an actor, as coordinators are, is changed: a script may leave its
cluster while the loop goes on in it, and whoever waits for tasks then ends the script.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import time
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import ray
from ray.data import DataContext

from carl_ray.errors import RunError

if TYPE_CHECKING:

    class BackpressurePolicy:
        """Ray's, which has no types."""

        _topology: Any

        def __init__(self, data_context: Any, topology: Any, resource_manager: Any) -> None: ...

    class ExecutionCallback:
        """Ray's, which has no types."""

    scheduling: Any
    ReorderingBundleQueue: Any
else:
    try:
        from ray.data._internal.execution import streaming_executor_state as scheduling
        from ray.data._internal.execution.backpressure_policy import BackpressurePolicy
        from ray.data._internal.execution.bundle_queue import ReorderingBundleQueue
        from ray.data._internal.execution.execution_callback import ExecutionCallback
    except ImportError:  # `_difference` finds the same.
        BackpressurePolicy = ExecutionCallback = object
        scheduling = ReorderingBundleQueue = None

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
_LOOPS_WAIT = getattr(scheduling, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S", None)
"""Ray's own value; read once, for two executions may overlap in a process."""

_MAX_TASK_RETRIES = 3
"""Retries of a task whose process or node died."""

_INTERNALS = "ray.data._internal.execution."
_SIGNATURES = {
    "backpressure_policy:BackpressurePolicy.__init__": "self data_context topology resource_manager",
    "backpressure_policy:BackpressurePolicy.max_task_output_bytes_to_read": "self op",
    "execution_callback:ExecutionCallback.__init__": "self args kwargs",  # object's own
    "execution_callback:ExecutionCallback.before_execution_starts": "self executor",
    "execution_callback:ExecutionCallback.on_execution_step": "self executor",
    "execution_callback:ExecutionCallback.after_execution_succeeds": "self executor",
    "execution_callback:ExecutionCallback.after_execution_fails": "self executor error",
    "interfaces.physical_operator:PhysicalOperator.get_active_tasks": "self",
    "interfaces.physical_operator:PhysicalOperator.get_stats": "self",
    "interfaces.physical_operator:PhysicalOperator.name.fget": "self",
    "interfaces.physical_operator:PhysicalOperator.num_active_tasks": "self",
    "interfaces.physical_operator:PhysicalOperator.output_dependencies.fget": "self",
    "interfaces.physical_operator:OpTask.get_waitable": "self",
    "streaming_executor_state:OpState.total_enqueued_input_blocks": "self",
}
"""Parameters of each function of Ray's that is called or overridden, by module and name."""
_STATE = {
    "bundle_queue:ReorderingBundleQueue.__init__": "_inner _current_key _finalized_keys",
    "interfaces.physical_operator:PhysicalOperator.__init__": "_in_task_output_backpressure",
    "operators.map_operator:MapOperator.__init__": "_output_queue",
    "streaming_executor:StreamingExecutor.__init__": "_backpressure_policies _data_context",
    "streaming_executor:StreamingExecutor.execute": "_backpressure_policies _resource_manager _topology",
    "streaming_executor_state:process_completed_tasks": "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S",
}
"""Attributes and globals that these functions of Ray's set or read, and this module too."""
_POLICY_STATE = {"_data_context", "_topology", "_resource_manager"}
"""All that the constructor of a backpressure policy sets."""


def install_endless_stream_scheduling(context: DataContext) -> None:
    """Install `EndlessExecution` on this context's datasets if this Ray version supports it."""
    if supports_endless_streams():
        callbacks = context.custom_execution_callback_classes
        context.custom_execution_callback_classes = [*callbacks, EndlessExecution]  # type: ignore[list-item, unused-ignore]


def supports_endless_streams() -> bool:
    """Whether the installed Ray has the private interfaces that this module uses; warns once if not."""
    difference = _difference()
    if difference is not None:
        _warn(
            difference,
            "its scheduling loop stays as it is: videos stream all the same, but the process that feeds the trainer "
            "keeps a core busy, plans far ahead, and grows by kilobytes a video",
        )
    return difference is None


@cache
def _warn(difference: str, consequence: str) -> None:
    print(
        f"warning: Ray {ray.__version__} is not as this version of carl_ray knows it ({difference}), so {consequence}; "
        "install the Ray of pyproject.toml for long runs",
        file=sys.stderr,
        flush=True,
    )


def limit_retries(task: str) -> None:
    """Raise `RunError` in a Ray task that was retried too often; Ray Data itself retries without end.

    Args:
        task: What the task works on, for the message.
    """
    # Private: the public runtime context does not have the number (Ray 2.60).
    worker = getattr(ray.get_runtime_context(), "worker", None)
    attempt_number = getattr(getattr(worker, "core_worker", None), "get_current_task_attempt_number", None)
    if attempt_number is None:
        _warn("it does not number the attempts of a task", "a task whose process dies is retried without end")
    elif (attempt := attempt_number()) > _MAX_TASK_RETRIES:
        raise RunError(
            f"the process that decodes died {attempt} times at {task}: too little memory on its node, or nodes that "
            "go too often"
        )


def _difference() -> str | None:
    """The first private interface of Ray's that is not as expected, or None."""
    try:
        for name, parameters in _SIGNATURES.items():
            if list(inspect.signature(_internal(name)).parameters) != parameters.split():
                return f"{name} takes other arguments"
        for name, attributes in _STATE.items():
            missing = set(attributes.split()) - set(_internal(name).__code__.co_names)
            if missing:
                return f"{name} has no {min(missing)}"
        for base in (BackpressurePolicy, ExecutionCallback):
            if abstract := getattr(base, "__abstractmethods__", None):
                return f"{base.__name__} wants {min(abstract)}"
        if vars(BackpressurePolicy(None, None, None)).keys() != _POLICY_STATE:
            return "BackpressurePolicy has another state"
        if not hasattr(DataContext.get_current(), "custom_execution_callback_classes"):
            return "DataContext has no custom_execution_callback_classes"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _internal(name: str) -> Any:
    module, _, attributes = name.partition(":")
    return attrgetter(attributes)(importlib.import_module(_INTERNALS + module))


class EndlessExecution(ExecutionCallback):
    """Execution callback of Ray Data: its loop waits for what can go on, and keeps no statistics of blocks."""

    _is_installed = False

    def before_execution_starts(self, executor: Any) -> None:
        """Called once, when the executor knows its operators."""
        if ray.get_runtime_context().get_actor_id() is None or not supports_endless_streams():
            return
        policy = PlannedRowsBackpressure(
            executor._data_context, executor._topology, executor._resource_manager
        )
        executor._backpressure_policies.append(policy)
        # Its own wait is for all tasks together, and so takes its whole time while one of them is at work.
        self._is_installed = True
        scheduling.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Called after each step of the loop, in its thread: only there are the lists appended to."""
        if not self._is_installed:
            return
        num_blocks = 0
        tasks: list[Any] = []
        seconds = _QUIET_SECONDS
        for operator in executor._topology:
            num_blocks += _drop_block_stats(operator)
            if not operator._in_task_output_backpressure:
                tasks += [task.get_waitable() for task in operator.get_active_tasks()]
            elif PLANNING not in operator.name:
                # Until a consumer makes room, which raises no event in the loop.
                seconds = _FULL_SECONDS
        # A step that took a block may have more to take.
        if not num_blocks:
            _wait_for_one(tasks, seconds)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Called once, at the end."""
        if self._is_installed:
            scheduling.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = _LOOPS_WAIT

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Called instead where the execution fails."""
        self.after_execution_succeeds(executor)


def _drop_block_stats(operator: Any) -> int:
    """Drop an operator's records of its blocks; return how many it has made since the last call."""
    num_blocks = 0
    for blocks in operator.get_stats().values():
        num_blocks += len(blocks)
        blocks.clear()
    # Of a queue that restores the order: what it keeps of tasks whose blocks have all gone.
    queue: Any = getattr(operator, "_output_queue", None)
    if isinstance(queue, ReorderingBundleQueue):
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


class PlannedRowsBackpressure(BackpressurePolicy):
    """Backpressure policy of Ray Data: no planned row is taken while enough wait to be loaded."""

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """Bytes of an operator's output that may be taken now; None: no limit of this policy."""
        if PLANNING not in op.name or not op.output_dependencies:
            return None
        loading = op.output_dependencies[0]
        waiting = self._topology[loading].total_enqueued_input_blocks()
        return max(0, _MOST_PLANNED + 2 * loading.num_active_tasks() - waiting) * _PLANNED_BYTES
