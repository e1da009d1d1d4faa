"""The live table of a sweep: every trial with its status, its epoch, its score; rate and time left."""

from __future__ import annotations

import sys
import time
from typing import Any

from carl_ray.errors import RunError
from carl_ray.sweeps.results import begun_points, last_score, read_outcome, trial_values
from carl_ray.sweeps.space import Point
from carl_ray.sweeps.trial import Sweep, run_dir
from carl_ray.training.run_log import read_log

_SECONDS_BETWEEN_TABLES = 30.0


class ProgressTable:
    """Prints where the trials of a sweep are; on a terminal, over what it printed before.

    Args:
        sweep: The sweep.
        folder: URI of its folder, which everything is read from.
        num_trials: Trials that there will be.
    """

    def __init__(self, sweep: Sweep, folder: str, num_trials: int) -> None:
        self._sweep, self._folder, self._num_trials = sweep, folder, num_trials
        self._started, self._shown_at = time.monotonic(), time.monotonic()
        self._ended: dict[str, dict[str, Any]] = {}
        self._epochs_before = sum(row["epochs"] for row in self._rows())
        self._lines_shown = 0

    def tick(self) -> None:
        """Shows the table where some time has passed since the last."""
        if time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_TABLES:
            self.show()

    def show(self) -> None:
        """Shows the table; not where the store fails for the moment: a table more or less is no reason to end."""
        self._shown_at = time.monotonic()
        try:
            rows = self._rows()
        except RunError as error:
            print(f"no table this time: {error}", file=sys.stderr, flush=True)
            return
        text = self._text(rows)
        if sys.stdout.isatty() and self._lines_shown:
            print(f"\x1b[{self._lines_shown}A\x1b[J", end="")
        print(text, flush=True)
        self._lines_shown = text.count("\n") + 1

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for trial, point in begun_points(self._folder).items():
            row = self._ended.get(trial) or self._row(trial, point)
            if row["status"] in ("done", "stopped"):
                self._ended[trial] = row
            rows.append(row)
        return rows

    def _row(self, trial: str, point: Point) -> dict[str, Any]:
        """A trial: its status, its epochs over all seeds together, its score at the last rung all seeds reached."""
        outcome = read_outcome(self._folder, trial)
        epochs = 0.0
        for seed in self._sweep.training_seeds:
            lines = read_log(run_dir(self._folder, trial, seed))
            epochs += max((line["epoch"] for line in lines if "epoch" in line), default=0.0)
        return {
            "trial": trial,
            "status": outcome["status"],
            "reason": outcome["reason"],
            "values": trial_values(self._sweep, point),
            "epochs": epochs,
            "score": last_score(self._sweep, self._folder, trial),
        }

    def _text(self, rows: list[dict[str, Any]]) -> str:
        sweep = self._sweep
        names = list(sweep.space.parameters)
        header = ["trial", *(name.rpartition(".")[2] for name in names), "epoch", sweep.metric, "status"]
        lines = [header]
        for row in rows:
            score = "" if row["score"] is None else f"{row['score'][1]:.4f} at {row['score'][0]}"
            status = "running" if row["status"] == "unfinished" else row["status"]
            if row["status"] == "failed":
                status += f": {row['reason']}"
            epoch = f"{row['epochs'] / sweep.seeds:.1f}/{sweep.rungs[-1]}"
            values = (str(row["values"][name]) for name in names)
            lines.append([row["trial"][:8], *values, epoch, score, status])
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, self._time_left(rows)])

    def _time_left(self, rows: list[dict[str, Any]]) -> str:
        """Trials that ended, the rate, and how long the rest takes if none of it is stopped early."""
        ended = [row for row in rows if row["status"] != "unfinished"]
        whole = self._sweep.rungs[-1] * self._sweep.seeds
        epochs = sum(row["epochs"] for row in rows)
        left = max(0.0, whole * (self._num_trials - len(ended)) - (epochs - sum(r["epochs"] for r in ended)))
        rate = (epochs - self._epochs_before) / (time.monotonic() - self._started)
        said = f"{len(ended)} of {self._num_trials} trials ended"
        if rate <= 0:
            return said
        seconds = int(left / rate)
        return (
            f"{said}, {rate * 3600:.0f} epochs an hour, at most "
            f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
        )
