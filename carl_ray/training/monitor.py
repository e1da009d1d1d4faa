"""A run's news on their way to the driver, and its wish to stop on the way back."""

from __future__ import annotations

from dataclasses import dataclass

import ray


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    step: int
    num_steps: int
    loss: float | None
    validation_loss: float | None
    steps_per_second: float
    stopped: bool = False
    """The run wrote a checkpoint and ended because it was asked to."""
    finished: bool = False
    """The run did its last step."""
    failure: str | None = None
    """Why the run ended early, where trying again would not help."""
    failure_is_users: bool = False
    """The user can mend that failure."""


@ray.remote(num_cpus=0)
class RunMonitor:
    """Holds the latest status of a run; one small actor between the first worker and the driver."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._stop = False

    def update(self, status: Status) -> bool:
        """Takes a new status; returns whether the run should write a checkpoint and stop."""
        self._status = status
        return self._stop

    def latest(self) -> Status | None:
        """The last status, or none before the first."""
        return self._status

    def request_stop(self) -> None:
        """Asks the run to stop at its next step."""
        self._stop = True
