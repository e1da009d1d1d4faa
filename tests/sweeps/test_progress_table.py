"""The live table reads the folder and survives a store that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from carl_ray import storage
from carl_ray.errors import RunError
from carl_ray.presets import demo
from carl_ray.sweeps import progress_table
from carl_ray.sweeps.definition import Sweep, trial_id
from carl_ray.sweeps.progress_table import ProgressTable
from carl_ray.sweeps.space import LogRange, Space
from carl_ray.sweeps.trial_records import run_dir, write_outcome, write_point

SPACE = Space("test", {"objective.temperature": LogRange(0.03, 1.0, (0.1,))})
SWEEP = Sweep(SPACE, demo(), 1, (2, 6), "phase_classification", labelled=True)


def begin(folder: Path, temperature: float, *scores: float, status: Any = None) -> str:
    point = {"objective.temperature": temperature}
    trial = trial_id(SWEEP, point)
    write_point(str(folder), SWEEP, point)
    run = run_dir(str(folder), trial, 0)
    for epoch, score in zip(SWEEP.rungs, scores, strict=False):
        document = {"origin": {"step": epoch}, "trained": {SWEEP.metric: {"value": score}}}
        uri = storage.join(run, "measured", f"epoch-{epoch:08d}.json")
        storage.write_bytes(uri, json.dumps(document).encode())
        storage.write_bytes(storage.join(run, "metrics.jsonl"), json.dumps({"epoch": epoch}).encode())
    if status is not None:
        write_outcome(str(folder), trial, status, "a reason", "1")
    return trial


def test_what_the_table_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path, 0.1, 0.7, 0.8, status="done")
    begin(tmp_path, 0.2, 0.5)
    begin(tmp_path, 0.3, status="failed")
    ProgressTable(SWEEP, str(tmp_path), 4).show()
    shown = capsys.readouterr().out
    assert "0.8000 at 6" in shown and "0.5000 at 2" in shown and "6.0/6" in shown and "2.0/6" in shown
    assert "running" in shown and "failed: a reason" in shown and "2 of 4 trials ended" in shown


def test_ended_trials_are_read_once_and_a_failing_store_costs_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = begin(tmp_path, 0.1, 0.7, 0.8, status="done")
    running = begin(tmp_path, 0.2, 0.5)
    table = ProgressTable(SWEEP, str(tmp_path), 2)
    read: list[str] = []

    def read_outcome(folder: str, trial: str) -> dict[str, Any]:
        read.append(trial)
        if len(read) == 2:
            raise RunError("the store is away")
        return {"status": "unfinished", "reason": None}

    monkeypatch.setattr(progress_table, "read_outcome", read_outcome)
    table.show()
    table.show()
    assert "no table this time: the store is away" in capsys.readouterr().err
    table.show()
    assert set(read) == {running} and done[:8] in capsys.readouterr().out
