"""The live table of a sweep: each trial's status, epoch and score; the rate and the time left."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from ray import tune

from carl_ray.errors import RunError
from carl_ray.sweeps.definition import Sweep
from carl_ray.sweeps.space import Point, Value, default_point
from carl_ray.sweeps.trial_records import begun_points, last_score, read_outcome, run_dir
from carl_ray.training.run_log import read_log

_SECONDS_BETWEEN_TABLES = 30.0


@dataclass(frozen=True)
class _Row:
    trial: str
    status: str
    reason: str | None
    values: dict[str, Value]
    epochs: float
    """Over all seeds."""
    score: tuple[int, float] | None
    """At the last rung that all seeds reached, with its epoch."""


class ProgressTable(tune.Callback):
    """Print the state of a sweep's trials from its folder; on a terminal over the previous table.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        num_trials: Trials in total.
    """

    def __init__(self, sweep: Sweep, folder: str, num_trials: int) -> None:
        self._sweep, self._folder, self._num_trials = sweep, folder, num_trials
        self._started = self._shown_at = time.monotonic()
        self._ended: dict[str, _Row] = {}
        self._epochs_before = sum(row.epochs for row in self._rows())
        self._lines_shown = self._events = 0

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Show the table after each report and end of a trial, and every 30 s."""
        events = sum(trial.is_finished() + (trial.last_result or {}).get("epoch", 0) for trial in trials)
        if events != self._events or time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_TABLES:
            self._events = events
            self.show()

    def show(self) -> None:
        """Show the table, or one line where the storage fails for the moment."""
        self._shown_at = time.monotonic()
        try:
            lines = self._lines(self._rows())
        except RunError as error:
            print(f"no table this time: {error}", file=sys.stderr, flush=True)
            return
        if sys.stdout.isatty() and self._lines_shown:
            print(f"\x1b[{self._lines_shown}A\x1b[J", end="")
        print("\n".join(lines), flush=True)
        self._lines_shown = len(lines)

    def _rows(self) -> list[_Row]:
        rows = []
        for trial, point in begun_points(self._folder).items():
            row = self._ended.get(trial) or self._row(trial, point)
            if row.status in ("done", "stopped"):
                self._ended[trial] = row
            rows.append(row)
        return rows

    def _row(self, trial: str, point: Point) -> _Row:
        sweep, outcome = self._sweep, read_outcome(self._folder, trial)
        epochs = 0.0
        for seed in sweep.training_seeds:
            lines = read_log(run_dir(self._folder, trial, seed))
            epochs += max((line["epoch"] for line in lines if "epoch" in line), default=0.0)
        values = {**default_point(sweep.space, sweep.base), **point}
        score = last_score(sweep, self._folder, trial)
        return _Row(trial, outcome["status"], outcome["reason"], values, epochs, score)

    def _lines(self, rows: list[_Row]) -> list[str]:
        sweep, names = self._sweep, list(self._sweep.space.parameters)
        cells = [["trial", *(name.rpartition(".")[2] for name in names), "epoch", sweep.metric, "status"]]
        for row in rows:
            status = {"unfinished": "running", "failed": f"failed: {row.reason}"}.get(row.status, row.status)
            epoch = f"{row.epochs / sweep.seeds:.1f}/{sweep.rungs[-1]}"
            score = "" if row.score is None else f"{row.score[1]:.4f} at {row.score[0]}"
            cells.append([row.trial[:8], *(str(row.values[name]) for name in names), epoch, score, status])
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        return [
            *("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells),
            self._time_left(rows),
        ]

    def _time_left(self, rows: list[_Row]) -> str:
        """Ended trials, the rate, and the time left if no further trial is stopped early."""
        ended = [row for row in rows if row.status != "unfinished"]
        said = f"{len(ended)} of {self._num_trials} trials ended"
        epochs = sum(row.epochs for row in rows)
        rate = (epochs - self._epochs_before) / (time.monotonic() - self._started)
        if rate <= 0:
            return said
        waiting = self._sweep.rungs[-1] * self._sweep.seeds * (self._num_trials - len(ended))
        seconds = int(max(0.0, waiting - (epochs - sum(row.epochs for row in ended))) / rate)
        time_left = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return f"{said}, {rate * 3600:.0f} epochs an hour, at most {time_left} left"
