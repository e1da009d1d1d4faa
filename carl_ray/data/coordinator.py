"""Scheduling of an endless stream in Ray Data's loop (split coordinator of Train).

Ray Data is designed for datasets that end. With an endless stream its loop would

- poll for finished tasks ten times a second, and leave their cores idle until then;
- spin while backpressure blocks all ready output, which is how a stream waits for its trainer: up to a whole core;
- keep statistics of every block for a summary at the end: kilobytes a video, hundreds of GB over 300 epochs of
  Kinetics-400;
- plan ahead without end: limits are in bytes, and planned rows have hardly any, but kilobytes of bookkeeping each.

Ray has no options for this, so its private classes are used (2.60). `_SIGNATURES` and `_STATE` list what is used of
them, and are compared once with the installed Ray before anything is changed: if something differs, one warning is
printed and the stream runs on plain Ray Data. Only actors, as coordinators are, are changed: a script may disconnect
from its cluster while the loop runs in it, and waiting for tasks then would end the script.
"""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable
from functools import cache, partial
from operator import attrgetter
from typing import Any

import ray
from ray.data import DataContext

from carl_ray.errors import RunError, note

try:
    from ray.data._internal.execution import streaming_executor_state as scheduling
    from ray.data._internal.execution.backpressure_policy import BackpressurePolicy
    from ray.data._internal.execution.bundle_queue import ReorderingBundleQueue
    from ray.data._internal.execution.execution_callback import ExecutionCallback
except ImportError:  # `_difference` finds the same.
    BackpressurePolicy = ExecutionCallback = object  # type: ignore[assignment, misc, unused-ignore]
    scheduling = ReorderingBundleQueue = None  # type: ignore[assignment, misc, unused-ignore]

PLANNING = "plan_segment"
"""Part of the name of the operator whose blocks are planned rows."""

_QUIET_SECONDS = 0.1
"""Longest wait for running tasks in a step of the loop."""
_FULL_SECONDS = 0.05
"""Longest wait while backpressure blocks their output, or no task runs."""
_SHORTEST_SECONDS = 0.002
"""Shortest wait while a task has output."""
_MOST_PLANNED = 64
"""Planned blocks in the queue, beside two for each task that loads."""
_PLANNED_BYTES = 48
"""Size of a block of one planned row: four lists of a 64-bit number; larger ones are taken in several steps."""
_LOOPS_WAIT: Any = getattr(scheduling, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S", None)
"""Ray's own value; read once, for two executions may overlap in a process."""

MAX_TASK_RETRIES = 3
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
    "streaming_executor_state:OutputBackpressureGuard.should_unblock": "self op",
}
"""Parameters of Ray's functions that are called or overridden, by module and name."""
_STATE = {
    "bundle_queue:ReorderingBundleQueue.__init__": "_inner _current_key _finalized_keys",
    "interfaces.physical_operator:PhysicalOperator.__init__": "_in_task_output_backpressure",
    "operators.map_operator:MapOperator.__init__": "_output_queue",
    "streaming_executor:StreamingExecutor.__init__": "_backpressure_policies _data_context",
    "streaming_executor:StreamingExecutor.execute": (
        "_backpressure_policies _output_backpressure_guard _resource_manager _topology"
    ),
    "streaming_executor_state:process_completed_tasks": "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S",
}
"""Attributes and globals of Ray's that this module uses, by a function of Ray's that uses them."""
_POLICY_STATE = {"_data_context", "_topology", "_resource_manager"}
"""Attributes that the constructor of a backpressure policy sets."""


def install_endless_stream_scheduling(context: DataContext) -> None:
    """Install `EndlessExecution` on a context if this Ray version supports it."""
    if supports_endless_streams():
        callbacks = context.custom_execution_callback_classes
        context.custom_execution_callback_classes = [*callbacks, EndlessExecution]  # type: ignore[list-item, unused-ignore]


def supports_endless_streams() -> bool:
    """Whether Ray has the private interfaces that this module uses; warn once if not."""
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
    note(
        f"warning: Ray {ray.__version__} is not as this version of carl_ray knows it ({difference}), so {consequence}; "
        "install the Ray of pyproject.toml for long runs",
    )


def limit_retries(task: str) -> None:
    """Raise `RunError` in a task that was retried too often; Ray Data has no limit.

    Args:
        task: What the task works on, for the message.
    """
    # Private: the public runtime context does not have the number (Ray 2.60).
    worker = getattr(ray.get_runtime_context(), "worker", None)
    attempt_number = getattr(getattr(worker, "core_worker", None), "get_current_task_attempt_number", None)
    if attempt_number is None:
        _warn(
            "it does not number the attempts of a task", "Ray retries a task whose process dies without end"
        )
    elif (attempt := attempt_number()) > MAX_TASK_RETRIES:
        raise RunError(
            f"the process that decodes {task} died {attempt} times: too little memory on its node, or nodes that go "
            "too often"
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
        policy: Any = BackpressurePolicy
        if vars(policy(None, None, None)).keys() != _POLICY_STATE:
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
    """Execution callback: waits for tasks with output, drops block statistics."""

    _is_installed = False

    def before_execution_starts(self, executor: Any) -> None:
        """Install the policy; called once, when the executor has its operators."""
        if ray.get_runtime_context().get_actor_id() is None or not supports_endless_streams():
            return
        policy = PlannedRowsBackpressure(
            executor._data_context, executor._topology, executor._resource_manager
        )
        executor._backpressure_policies.append(policy)
        guard = executor._output_backpressure_guard
        guard.should_unblock = partial(_should_unblock, policy, guard.should_unblock)
        # Ray's own wait is for all tasks together, and so takes its whole time while one of them runs.
        self._is_installed = True
        scheduling.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Drop statistics and wait; called after each step, in the thread of the loop."""
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
                # A consumer that makes room raises no event in the loop.
                seconds = _FULL_SECONDS
        # A step that took a block may have more to take.
        if not num_blocks:
            _wait_for_one(tasks, seconds)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Restore Ray's wait; called once, at the end."""
        if self._is_installed:
            scheduling.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = _LOOPS_WAIT

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Restore Ray's wait; called instead if the execution fails."""
        self.after_execution_succeeds(executor)


def _drop_block_stats(operator: Any) -> int:
    """Drop an operator's block records; return the number of new ones."""
    num_blocks = 0
    for blocks in operator.get_stats().values():
        num_blocks += len(blocks)
        blocks.clear()
    # Entries of a reordering queue for tasks whose blocks have all been taken.
    queue: Any = getattr(operator, "_output_queue", None)
    if isinstance(queue, ReorderingBundleQueue):
        for key in [key for key in queue._inner if key < queue._current_key]:
            del queue._inner[key]
        queue._finalized_keys = {key for key in queue._finalized_keys if key >= queue._current_key}
    return num_blocks


def _wait_for_one(tasks: list[Any], seconds: float) -> None:
    """Wait until one of the tasks has output or has ended, at most `seconds`."""
    if not tasks:
        time.sleep(_FULL_SECONDS)
        return
    begin = time.monotonic()
    ray.wait(tasks, num_returns=1, timeout=seconds, fetch_local=False)
    # Let other threads process what was taken before the next is taken, however ready that is.
    time.sleep(max(0.0, begin + _SHORTEST_SECONDS - time.monotonic()))


class PlannedRowsBackpressure(BackpressurePolicy):
    """Backpressure policy that limits the number of planned blocks in the queue."""

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """Bytes of an operator's output that may be taken now; None: no limit."""
        if PLANNING not in op.name or not op.output_dependencies:
            return None
        loading = op.output_dependencies[0]
        waiting = self._topology[loading].total_enqueued_input_blocks()
        return max(0, _MOST_PLANNED + 2 * loading.num_active_tasks() - waiting) * _PLANNED_BYTES


def _should_unblock(policy: PlannedRowsBackpressure, ray_would: Callable[[Any], bool], op: Any) -> bool:
    """Whether Ray may take a block that backpressure forbids, so that the operators behind it do not starve.

    Ray would take one in each step while loading waits for its consumer: planned rows without end.
    """
    unblocks = ray_would(op)  # Asked always: it notes how long the operator has been idle.
    return unblocks and policy.max_task_output_bytes_to_read(op) != 0
