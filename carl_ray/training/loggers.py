"""Copies of metrics.jsonl at Weights & Biases and MLflow (`training.loggers`).

A service gets the run's config and the numbers of every line, also those written before it was chosen or while it was
unreachable: what it lacks is sent at the next start. Each has a thread, so that training never waits for it, and one
warning, whatever happens. Servers and credentials come from the services' own environment variables; without
$MLFLOW_TRACKING_URI, and with WANDB_MODE=offline, files go to `loggers/` of a run folder on disk.
"""

from __future__ import annotations

import logging
import os
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from carl_ray import storage
from carl_ray.config import Config, Logger, to_document

_FOLDER = "loggers"
_RETRY_SECONDS = 60.0
_CLOSE_SECONDS = 30.0
_LOGGER = logging.getLogger(__name__)
Line = dict[str, Any]


class _Service(Protocol):
    """A run at a service."""

    def write(self, line: Line) -> None:
        """Send the numbers of a line that the service does not have yet."""

    def close(self) -> None:
        """Send what is buffered and end the run."""


class LoggerThread(threading.Thread):
    """Thread that copies the lines of a run to a service; errors become one warning.

    Args:
        name: The service.
        run_dir: URI of the run folder, which keeps the id of the service's run for the next start.
        config: Of the run.
        lines: metrics.jsonl so far.
    """

    def __init__(self, name: Logger, run_dir: str, config: Config, lines: Sequence[Line]) -> None:
        super().__init__(name=f"logger-{name}", daemon=True)
        self._service_name, self._run_dir, self._config = name, run_dir, config
        self._pending = deque(lines)
        self._queue: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._service: _Service | None = None
        self._retry_at = 0.0
        self._has_warned = False
        self.start()

    def write(self, line: Line) -> None:
        """Queue a line."""
        self._queue.put(line)

    def finish(self) -> None:
        """Queue the end: what is left is sent, then the service's run is closed."""
        self._queue.put(None)

    def wait(self, until: float) -> None:
        """Wait for the end until this time of `time.monotonic`; warn if it has not come."""
        self.join(max(0.0, until - time.monotonic()))
        if self.is_alive():
            self._warn(f"no answer within {_CLOSE_SECONDS:.0f} s")

    def run(self) -> None:
        """Send lines as they come; after a failure, again with a later line and at the end."""
        is_open = True
        while is_open:
            if (line := self._queue.get()) is None:
                is_open = False
            else:
                self._pending.append(line)
            if is_open and time.monotonic() < self._retry_at:
                continue
            try:
                self._send()
                if not is_open and self._service is not None:
                    self._service.close()
            except Exception as error:  # Whatever a service does, the run goes on.
                self._retry_at = time.monotonic() + _RETRY_SECONDS
                words = (storage.public_uri(word) for word in str(error).split())
                self._warn(f"{type(error).__name__}: {' '.join(words)}"[:300])

    def _send(self) -> None:
        if self._service is None:
            uri = storage.join(self._run_dir, _FOLDER, f"{self._service_name}.id")
            known = storage.read_bytes(uri).decode() if storage.exists(uri) else None
            opened = _WandbRun if self._service_name == "wandb" else _MlflowRun

            def keep(run_id: str) -> None:
                """At once, so that a later failure of the service does not leave a second run there."""
                storage.write_bytes(uri, run_id.encode())

            self._service = opened(self._run_dir, _flat(self._config), known, keep)
        while self._pending:
            self._service.write(self._pending[0])
            self._pending.popleft()

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _LOGGER.warning(
                "training.loggers: %s: %s; the run goes on, and its next start sends what is missing",
                *(self._service_name, reason),
            )


def end_loggers(loggers: Sequence[LoggerThread]) -> None:
    """Send the rest of all lines, for at most half a minute."""
    for logger in loggers:
        logger.finish()
    until = time.monotonic() + _CLOSE_SECONDS
    for logger in loggers:
        logger.wait(until)


class _WandbRun:
    """A run of Weights & Biases; rows are steps, of which it takes each once."""

    def __init__(
        self, run_dir: str, config: dict[str, Any], known: str | None, keep: Callable[[str], None]
    ) -> None:
        import wandb

        silent = {"silent": True, "console": "off", "x_disable_meta": True, "x_disable_stats": True}
        unread = {"disable_git": True, "disable_code": True, "x_disable_machine_info": True}
        is_remote = storage.is_remote(run_dir)
        self._temporary = tempfile.TemporaryDirectory(prefix="carl_ray-wandb-", ignore_cleanup_errors=True)
        folder = Path(self._temporary.name) if is_remote else _on_disk(run_dir)
        (folder / "wandb").mkdir(
            parents=True, exist_ok=True
        )  # Elsewhere wandb writes to the temporary folder.
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "carl_ray"),
            name=os.environ.get("WANDB_NAME", _name(run_dir)),
            id=known,
            resume="allow",
            config=config,
            dir=folder,
            settings=wandb.Settings(**silent, **unread, finish_timeout=_CLOSE_SECONDS),
        )
        if known is None:
            keep(self._run.id)
        # What an earlier start has sent; offline files hold all lines again.
        self._first_step = self._run.starting_step
        if self._run.offline and is_remote:
            _refuse("WANDB_MODE=offline")

    def write(self, line: Line) -> None:
        if line["step"] >= self._first_step:
            self._run.log(_numbers(line), step=line["step"])

    def close(self) -> None:
        self._run.finish()


class _MlflowRun:
    """A run of MLflow, in the experiment `carl_ray` or $MLFLOW_EXPERIMENT_NAME."""

    def __init__(
        self, run_dir: str, config: dict[str, Any], known: str | None, keep: Callable[[str], None]
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            if storage.is_remote(run_dir):
                _refuse("MLflow without MLFLOW_TRACKING_URI")
            uri = (_on_disk(run_dir) / "mlflow").as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(uri)
        self._sent: dict[str, int] = {}
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "carl_ray")
            experiment = self._client.get_experiment_by_name(name)
            experiment_id = (
                self._client.create_experiment(name) if experiment is None else experiment.experiment_id
            )
            self._run_id: str = self._client.create_run(experiment_id, run_name=_name(run_dir)).info.run_id
            keep(self._run_id)
        else:
            self._run_id = known
            self._client.update_run(known, status="RUNNING")
            for key in self._client.get_run(known).data.metrics:
                history = self._client.get_metric_history(known, key)
                self._sent[key] = max(metric.step for metric in history)
        there = self._client.get_run(self._run_id).data.params
        params = [Param(key, str(value)) for key, value in config.items() if key not in there]
        for start in range(0, len(params), 100):  # More at a time are refused.
            self._client.log_batch(self._run_id, params=params[start : start + 100])

    def write(self, line: Line) -> None:
        from mlflow.entities import Metric

        step, now = line["step"], int(time.time() * 1000)
        new = {key: value for key, value in _numbers(line).items() if step > self._sent.get(key, -1)}
        self._client.log_batch(self._run_id, metrics=[Metric(key, new[key], now, step) for key in new])

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _refuse(what: str) -> None:
    raise ValueError(f"{what} needs a run folder on disk")


def _on_disk(run_dir: str) -> Path:
    return Path(storage.resolve(run_dir)[1]) / _FOLDER


def _name(run_dir: str) -> str:
    return storage.public_uri(run_dir).partition("?")[0].rstrip("/").rpartition("/")[2]


def _numbers(line: Line) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, without those that were not finite."""
    return {key: value for key, value in line.items() if key != "step" and isinstance(value, int | float)}


def _flat(config: Config) -> dict[str, Any]:
    """Values of a config by dotted name, without credentials."""
    flat: dict[str, Any] = {}
    for section, values in to_document(config).items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            key = f"{section}.{name}".rstrip(".")
            flat[key] = storage.public_uri(value) if isinstance(value, str) else value
    return flat
