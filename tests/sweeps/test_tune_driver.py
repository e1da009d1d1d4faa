"""Which points come next, and which trials end early: from the folder alone, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from carl_ray import storage
from carl_ray.presets import demo
from carl_ray.sweeps.definition import Sweep, trial_id
from carl_ray.sweeps.space import Choices, LogRange, Space
from carl_ray.sweeps.trial import run_trial
from carl_ray.sweeps.trial_records import run_dir, write_outcome, write_point
from carl_ray.sweeps.tune_driver import asha_scheduler, chosen_points, rung_result, waiting_points

SPACE = Space("test", {"objective.temperature": LogRange(0.03, 1.0, (0.05, 0.1, 0.3))})
RUNGS = (2, 6, 17)


def sweep(**changes: Any) -> Sweep:
    return replace(Sweep(SPACE, demo(), 1, RUNGS, "phase_classification", labelled=True), **changes)


def point(temperature: float) -> dict[str, float]:
    return {"objective.temperature": temperature}


def measure(folder: Path, of: Sweep, temperature: float, *scores: float, seed: int = 0) -> str:
    """A trial that was begun, measured at so many rungs; its newest checkpoint is that of the last of them."""
    trial = trial_id(of, point(temperature))
    write_point(str(folder), of, point(temperature))
    run = run_dir(str(folder), trial, seed)
    for epoch, score in zip(of.rungs, scores, strict=False):
        document = {"origin": {"step": 12 * epoch}, "trained": {of.metric: {"value": score}}}
        uri = storage.join(run, "measured", f"epoch-{epoch:08d}.json")
        storage.write_bytes(uri, json.dumps(document).encode())
        storage.write_bytes(storage.join(run, "checkpoints", f"step-{12 * epoch:08d}", "state.json"), b"{}")
    return trial


def decisions(
    of: Sweep, folder: Path, *scores: tuple[int, float], waiting: Container[str] = ()
) -> list[bool]:
    """Whether new trials are stopped that report one after another (epoch, score)."""
    scheduler = asha_scheduler(of, str(folder), waiting)
    stopped = []
    for number, (epoch, score) in enumerate(scores):
        trial: Any = SimpleNamespace(trial_id=str(number))
        scheduler.on_trial_add(None, trial)
        stopped.append(scheduler.on_trial_result(None, trial, rung_result(of, "", epoch, score)) == "STOP")
    return stopped


def test_a_trial_ends_where_it_is_not_among_the_best_third(tmp_path: Path) -> None:
    # Of 0.4, 0.5, 0.7 the best third begins at 0.567.
    scores = [(2, score) for score in (0.5, 0.4, 0.7, 0.56, 0.66)]
    assert decisions(sweep(), tmp_path, *scores) == [False, True, False, True, False]
    errors = [(2, error) for error in (0.02, 0.05, 0.01)]
    assert decisions(sweep(metric="alignment_error"), tmp_path, *errors) == [False, True, False]


@pytest.mark.parametrize("epochs", [17, 40, 70, 100])
@pytest.mark.parametrize("num_rungs", [2, 3, 4])
def test_every_rung_but_the_last_decides(tmp_path: Path, epochs: int, num_rungs: int) -> None:
    """Whatever the rounding of epochs: Tune takes rungs for exact powers of the reduction factor."""
    rungs = tuple(max(1, round(epochs / 3**power)) for power in reversed(range(num_rungs)))
    of = sweep(rungs=rungs)
    for epoch in rungs[:-1]:
        assert decisions(of, tmp_path, (epoch, 0.9), (epoch, 0.5), (epoch, 0.95)) == [False, True, False]
        assert decisions(of, tmp_path, (rungs[-1], 0.9), (epoch, 0.5)) == [True, False]


def test_scores_of_earlier_calls_count(tmp_path: Path) -> None:
    """`Tuner.restore` would start with an empty scheduler."""
    of = sweep()
    for temperature, score in ((0.1, 0.8), (0.2, 0.9)):
        write_outcome(str(tmp_path), measure(tmp_path, of, temperature, score), "stopped", "behind", "1")
    assert decisions(of, tmp_path, (2, 0.5), (2, 0.88)) == [True, False]


def test_a_trial_is_not_compared_with_itself_and_a_promoted_one_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep was killed while a trial was between two rungs, or just measured at one."""
    of, folder = sweep(), str(tmp_path)
    trial = measure(tmp_path, of, 0.1, 0.5)
    assert decisions(of, tmp_path, (2, 0.5), waiting=[trial]) == [False]
    uri = storage.join(run_dir(folder, trial, 0), "checkpoints", "step-00000036", "state.json")
    storage.write_bytes(uri, b"{}")
    assert decisions(of, tmp_path, (2, 0.4), waiting=[trial]) == [True]
    measure(tmp_path, of, 0.1, 0.5, 0.6, 0.7)
    reported: list[int] = []
    run_trial(of, folder, point(0.1), lambda epoch, score: reported.append(epoch))
    assert reported == [17]


def test_seeds_count_together(tmp_path: Path) -> None:
    of = sweep(seeds=2)
    for seed, score in enumerate((0.9, 0.1)):
        assert decisions(of, tmp_path, (2, 0.2)) == [False]  # not all seeds are measured
        measure(tmp_path, of, 0.1, score, seed=seed)
    assert decisions(of, tmp_path, (2, 0.45), (2, 0.55)) == [True, False]


def test_begun_points_come_first_and_ended_ones_not_again(tmp_path: Path) -> None:
    of, folder = sweep(rungs=(17,)), str(tmp_path)
    chosen = chosen_points(of, "random", 4, 0)
    base, second, third, fourth = chosen
    assert list(waiting_points(of, folder, chosen, 4)) == list(chosen)
    assert list(waiting_points(of, folder, chosen, 2)) == [base, second]
    write_point(folder, of, chosen[third])
    write_point(folder, of, point(0.77))  # of another choice
    other = trial_id(of, point(0.77))
    waiting = list(waiting_points(of, folder, chosen, 4))
    assert set(waiting[:2]) == {third, other} and waiting[2:] == [base, second]
    # Begun is begun, though fewer are asked for now.
    assert set(waiting_points(of, folder, chosen, 1)) == {third, other}
    measure(tmp_path, of, 0.77, 0.5)
    write_outcome(folder, other, "done", None, "1")
    write_outcome(folder, third, "failed", "a reason", "1")
    assert list(waiting_points(of, folder, chosen, 4)) == [third, base, second]
    assert fourth not in waiting_points(of, folder, chosen, 4)


def test_what_is_done_and_lost_its_measurement_is_done_again(tmp_path: Path) -> None:
    of, folder = sweep(rungs=(17,)), str(tmp_path)
    write_point(folder, of, {})
    write_outcome(folder, trial_id(of, {}), "done", None, "1")
    assert list(waiting_points(of, folder, chosen_points(of, "random", 1, 0), 1)) == [trial_id(of, {})]


def test_more_trials_leave_the_first_ones_as_they_are() -> None:
    few, many = (list(chosen_points(sweep(), "random", count, 3)) for count in (3, 9))
    assert many[:3] == few and len(set(many)) == 9
    assert list(chosen_points(sweep(), "random", 3, 4)) != few


def test_points_begin_with_the_base_config() -> None:
    of = sweep(space=Space("heads", {"model.num_heads": Choices((1, 2, 4))}))
    assert list(chosen_points(of, "grid", 2, 0).values()) == [{"model.num_heads": 4}, {"model.num_heads": 1}]
    assert list(chosen_points(of, "optuna", 3, 0).values()) == [{"model.num_heads": 4}]
    assert len(chosen_points(of, "random", 3, 0)) == 3
