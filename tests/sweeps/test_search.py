"""Which points come next, and which trials end early: from the folder alone, without Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carl_ray import storage
from carl_ray.errors import RunError
from carl_ray.presets import demo
from carl_ray.sweeps import search
from carl_ray.sweeps.results import write_outcome, write_point
from carl_ray.sweeps.search import chosen_points, driver_resources, is_behind, waiting_points
from carl_ray.sweeps.space import Choices, LogRange, Space
from carl_ray.sweeps.trial import Sweep, run_dir, trial_id

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


def test_a_trial_ends_where_it_is_not_among_the_best_third(tmp_path: Path) -> None:
    of, folder = sweep(), str(tmp_path)
    first = measure(tmp_path, of, 0.1, 0.5)
    assert not is_behind(of, folder, first, 2)  # nothing to be behind of
    second = measure(tmp_path, of, 0.2, 0.4)
    assert is_behind(of, folder, second, 2) and not is_behind(of, folder, first, 2)
    # Of 0.4, 0.5, 0.7 the best third begins at 0.567.
    measure(tmp_path, of, 0.3, 0.7)
    third = measure(tmp_path, of, 0.4, 0.56)
    assert is_behind(of, folder, third, 2)
    assert not is_behind(of, folder, measure(tmp_path, of, 0.5, 0.66), 2)


@pytest.mark.parametrize("num_rungs", [2, 3])
def test_every_rung_but_the_last_decides(tmp_path: Path, num_rungs: int) -> None:
    of, folder = sweep(rungs=RUNGS[-num_rungs:]), str(tmp_path)
    measure(tmp_path, of, 0.1, *(0.9,) * num_rungs)
    for place, epoch in enumerate(of.rungs):
        behind = measure(tmp_path, of, 0.2, *(0.5,) * (place + 1))
        assert is_behind(of, folder, behind, epoch) == (epoch != of.rungs[-1])


def test_lower_may_be_better(tmp_path: Path) -> None:
    of, folder = sweep(metric="alignment_error"), str(tmp_path)
    low, high = measure(tmp_path, of, 0.1, 0.02), measure(tmp_path, of, 0.2, 0.05)
    assert is_behind(of, folder, high, 2) and not is_behind(of, folder, low, 2)


def test_what_went_on_once_is_not_stopped_when_it_is_told_again(tmp_path: Path) -> None:
    """A trial was promoted when few were there; since then better ones came, and the sweep was killed."""
    of, folder = sweep(), str(tmp_path)
    promoted = measure(tmp_path, of, 0.1, 0.5)
    for temperature in (0.2, 0.3, 0.4):
        measure(tmp_path, of, temperature, 0.9)
    assert is_behind(of, folder, promoted, 2)
    # One more checkpoint, of the way to the second rung, is what a kill leaves.
    uri = storage.join(run_dir(folder, promoted, 0), "checkpoints", "step-00000036", "state.json")
    storage.write_bytes(uri, b"{}")
    assert not is_behind(of, folder, promoted, 2)


def test_scores_of_earlier_calls_count(tmp_path: Path) -> None:
    of, folder = sweep(), str(tmp_path)
    for temperature, score in ((0.1, 0.8), (0.2, 0.9)):
        trial = measure(tmp_path, of, temperature, score)
        write_outcome(folder, trial, "stopped", "behind", "an earlier call")
    assert is_behind(of, folder, measure(tmp_path, of, 0.3, 0.5), 2)


def test_seeds_count_together(tmp_path: Path) -> None:
    of, folder = sweep(seeds=2), str(tmp_path)
    for seed, (mine, others) in enumerate(((0.9, 0.6), (0.1, 0.6))):
        trial = measure(tmp_path, of, 0.1, mine, seed=seed)
        assert not is_behind(of, folder, trial, 2)  # not all seeds of both are there
        measure(tmp_path, of, 0.2, others, seed=seed)
    assert is_behind(of, folder, trial, 2)


def test_a_store_that_fails_stops_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of = sweep()
    measure(tmp_path, of, 0.1, 0.9)
    behind = measure(tmp_path, of, 0.2, 0.5)
    scheduler = search.Halving(of, str(tmp_path))
    assert scheduler.on_trial_result(None, None, {"trial": behind, "epoch": 2}) == "STOP"

    def fail(*arguments: Any) -> bool:
        raise RunError("the store is away")

    monkeypatch.setattr(search, "is_behind", fail)
    assert scheduler.on_trial_result(None, None, {"trial": behind, "epoch": 2}) == "CONTINUE"
    assert "goes on unjudged: the store is away" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("gibibytes", "trials", "expected"),
    [(64, 8, {"memory": 2**30}), (5, 4, {"memory": 2**29}), (2.5, 2, {"node:__internal_head__": 0.001})],
)
def test_trials_leave_the_memory_that_embedding_needs(
    gibibytes: float, trials: int, expected: dict[str, float]
) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "memory": gibibytes * 2**30}},
        {"Alive": False, "Resources": {"memory": 2.0**50}},
    ]
    assert driver_resources(nodes, trials) == expected
