"""The live table of a sweep: every trial with its status, its epoch, its score; rate and time left."""

from __future__ import annotations

import sys
import time
from typing import Any

from carl_ray.sweeps.results import read_outcome, read_point, trial_values
from carl_ray.sweeps.trial import Sweep, measured, run_dir, trial_ids
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
        self._epochs_before = sum(row["epochs"] for row in self._rows())
        self._lines_shown = 0

    def tick(self) -> None:
        """Shows the table where some time has passed since the last."""
        if time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_TABLES:
            self.show()

    def show(self) -> None:
        """Shows the table."""
        self._shown_at = time.monotonic()
        rows = self._rows()
        text = self._text(rows)
        if sys.stdout.isatty() and self._lines_shown:
            print(f"\x1b[{self._lines_shown}A\x1b[J", end="")
        print(text, flush=True)
        self._lines_shown = text.count("\n") + 1

    def _rows(self) -> list[dict[str, Any]]:
        return [
            self._row(trial, point)
            for trial in trial_ids(self._folder)
            if (point := read_point(self._folder, trial)) is not None
        ]

    def _row(self, trial: str, point: dict[str, Any]) -> dict[str, Any]:
        """A trial: its status, its epochs over all seeds together, its score at the last rung all seeds reached."""
        sweep = self._sweep
        outcome = read_outcome(self._folder, trial)
        epochs, score = 0.0, None
        for seed in range(sweep.seeds):
            lines = read_log(run_dir(self._folder, trial, seed))
            epochs += max((line["epoch"] for line in lines if "epoch" in line), default=0.0)
        for rung in sweep.rungs:
            found = [measured(run_dir(self._folder, trial, seed), rung) for seed in range(sweep.seeds)]
            values = [document["trained"][sweep.metric]["value"] for document in found if document]
            if len(values) == sweep.seeds:
                score = (sum(values) / len(values), rung)
        return {
            "trial": trial,
            "status": outcome["status"],
            "reason": outcome["reason"],
            "values": trial_values(sweep, point),
            "epochs": epochs,
            "score": score,
        }

    def _text(self, rows: list[dict[str, Any]]) -> str:
        sweep = self._sweep
        names = list(sweep.space.parameters)
        header = ["trial", *(name.rpartition(".")[2] for name in names), "epoch", sweep.metric, "status"]
        lines = [header]
        for row in rows:
            score = "" if row["score"] is None else f"{row['score'][0]:.4f} at {row['score'][1]}"
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
