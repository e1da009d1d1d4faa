"""Which points come next, and which trials end early: from the folder alone, without a cluster."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.execution import class_cache

from carl_ray import storage
from carl_ray.errors import RunError
from carl_ray.presets import demo
from carl_ray.sweeps import trials, tune_driver
from carl_ray.sweeps.definition import Sweep, trial_id
from carl_ray.sweeps.space import Choices, LogRange, Space
from carl_ray.sweeps.trials import begin_trial, is_behind, read_outcome, run_dir, run_trial, write_outcome
from carl_ray.sweeps.tune_driver import TrialRecords, chosen_points, waiting_points

SPACE = Space("test", {"objective.temperature": LogRange(0.03, 1.0, (0.05, 0.1, 0.3))})
RUNGS = (2, 6, 17)


def sweep(**changes: Any) -> Sweep:
    return replace(Sweep(SPACE, demo(), 1, RUNGS, "phase_classification", labelled=True), **changes)


def point(temperature: float) -> dict[str, float]:
    return {"objective.temperature": temperature}


def measure(folder: Path, of: Sweep, temperature: float, *scores: float, seed: int = 0) -> str:
    """A trial that was begun, measured at so many rungs; its newest checkpoint is that of the last of them."""
    trial = trial_id(of, point(temperature))
    begin_trial(str(folder), of, point(temperature))
    run = run_dir(str(folder), trial, seed)
    for epoch, score in zip(of.rungs, scores, strict=False):
        document = {"origin": {"step": 12 * epoch}, "trained": {of.metric: {"value": score}}}
        uri = storage.join(run, "measured", f"epoch-{epoch:08d}.json")
        storage.write_bytes(uri, json.dumps(document).encode())
        storage.write_bytes(storage.join(run, "checkpoints", f"step-{12 * epoch:08d}", "state.json"), b"{}")
    return trial


def decisions(of: Sweep, folder: Path, epoch: int, *scores: float) -> list[bool]:
    """Whether new trials are stopped that are measured one after another at a rung."""
    stopped = []
    for number, score in enumerate(scores):
        trial = measure(folder, of, 100.0 + number, *([0.0] * of.rungs.index(epoch)), score)
        stopped.append(is_behind(of, str(folder), trial, epoch))
    return stopped


def test_credentials_are_not_handed_to_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray logs the environment of a trial's process as plain text."""
    names = set(class_cache.ENV_VARS_TO_PROPAGATE)
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", names | {"AWS_SECRET_ACCESS_KEY", "OTHER"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hushhush")
    monkeypatch.setenv("OTHER", "1")

    class Trainable:
        pass

    tune_driver._keep_credentials()
    made = class_cache._ActorClassCache().get(Trainable)
    variables = made._default_options["runtime_env"]["env_vars"]
    assert variables["OTHER"] == "1"
    assert not [name for name in variables if name.startswith("AWS_")]


def test_where_ray_hands_them_otherwise_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(class_cache, "ENV_VARS_TO_PROPAGATE")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    tune_driver._keep_credentials()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hushhush")
    tune_driver._keep_credentials()
    assert "may write the AWS credentials" in (said := capsys.readouterr().err) and "hushhush" not in said


def test_a_trial_ends_where_it_is_not_among_the_best_third(tmp_path: Path) -> None:
    # Of 0.4, 0.5, 0.7 the best third begins at 0.567.
    stopped = [False, True, False, True, False]
    assert decisions(sweep(), tmp_path / "a", 2, 0.5, 0.4, 0.7, 0.56, 0.66) == stopped
    assert decisions(sweep(), tmp_path / "b", 6, 0.5, 0.4, 0.7, 0.56, 0.66) == stopped
    errors = sweep(metric="alignment_error")
    assert decisions(errors, tmp_path / "c", 2, 0.02, 0.05, 0.01) == [False, True, False]


def test_scores_of_earlier_calls_count(tmp_path: Path) -> None:
    """`Tuner.restore` would start with an empty scheduler."""
    for temperature, score in ((0.1, 0.8), (0.2, 0.9)):
        write_outcome(str(tmp_path), measure(tmp_path, sweep(), temperature, score), "stopped", "behind")
    assert decisions(sweep(), tmp_path, 2, 0.5, 0.88) == [True, False]


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Epochs that a trial would train to; it ends there."""
    epochs: list[int] = []

    def measure_nothing(of: Sweep, point: Any, seed: int, run: str, epoch: int) -> None:
        epochs.append(epoch)
        raise RunError("trains on")

    monkeypatch.setattr(trials, "_measure", measure_nothing)
    return epochs


def test_a_stopped_trial_says_so_and_a_promoted_one_is_not_judged_again(
    tmp_path: Path, untrained: list[int]
) -> None:
    """A sweep was killed while a trial was between two rungs, or just measured at one."""
    of, folder = sweep(), str(tmp_path)
    behind = measure(tmp_path, of, 0.1, 0.5)
    measure(tmp_path, of, 0.2, 0.9)
    reported: list[tuple[int, float]] = []
    run_trial(of, folder, point(0.1), lambda *result: reported.append(result))
    assert (reported, untrained) == ([(2, 0.5)], [])
    assert read_outcome(of, folder, behind) == ("stopped", "behind the others at epoch 2")
    uri = storage.join(run_dir(folder, behind, 0), "checkpoints", "step-00000036", "state.json")
    storage.write_bytes(uri, b"{}")
    with pytest.raises(RunError, match="trains on"):
        run_trial(of, folder, point(0.1), lambda *result: reported.append(result))
    assert untrained == [6]


def test_seeds_count_together(tmp_path: Path) -> None:
    of = sweep(seeds=2)
    for seed, score in enumerate((0.9, 0.1)):
        trial = measure(tmp_path, of, 0.3, 0.2, seed=0)
        assert not is_behind(of, str(tmp_path), trial, 2)  # not all seeds are measured
        measure(tmp_path, of, 0.1, score, seed=seed)
    for score, expected in ((0.45, True), (0.55, False)):
        for seed in range(2):
            trial = measure(tmp_path, of, 0.3, score, seed=seed)
        assert is_behind(of, str(tmp_path), trial, 2) == expected


def test_begun_points_come_first_and_ended_ones_not_again(tmp_path: Path) -> None:
    of, folder = sweep(rungs=(17,)), str(tmp_path)
    chosen = chosen_points(of, "random", 4, 0)
    base, second, third, fourth = chosen
    assert list(waiting_points(of, folder, chosen, 4)) == list(chosen)
    assert list(waiting_points(of, folder, chosen, 2)) == [base, second]
    begin_trial(folder, of, chosen[third])
    begin_trial(folder, of, point(0.77))  # of another choice
    other = trial_id(of, point(0.77))
    waiting = list(waiting_points(of, folder, chosen, 4))
    assert set(waiting[:2]) == {third, other} and waiting[2:] == [base, second]
    # Begun is begun, though fewer are asked for now.
    assert set(waiting_points(of, folder, chosen, 1)) == {third, other}
    measure(tmp_path, of, 0.77, 0.5)
    write_outcome(folder, third, "failed", "a reason")
    assert list(waiting_points(of, folder, chosen, 4)) == [third, base, second]
    assert fourth not in waiting_points(of, folder, chosen, 4)


def test_more_trials_leave_the_first_ones_as_they_are() -> None:
    few, many = (list(chosen_points(sweep(), "random", count, 3)) for count in (3, 9))
    assert many[:3] == few and len(set(many)) == 9
    assert list(chosen_points(sweep(), "random", 3, 4)) != few


def test_points_begin_with_the_base_config() -> None:
    of = sweep(space=Space("heads", {"model.num_heads": Choices((1, 2, 4))}))
    assert list(chosen_points(of, "grid", 2, 0).values()) == [{"model.num_heads": 4}, {"model.num_heads": 1}]
    assert list(chosen_points(of, "optuna", 3, 0).values()) == [{"model.num_heads": 4}]
    assert len(chosen_points(of, "random", 3, 0)) == 3


def test_ends_are_recorded_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of = sweep()
    records = TrialRecords(of, str(tmp_path), 1, 5)
    ending = [
        SimpleNamespace(config={"point": point(t)}, get_error=lambda: "Traceback\n  died\n")
        for t in (1, 2, 3)
    ]
    measure(tmp_path, of, 1, 0.5)
    records.on_trial_result(0, [], ending[0], {"epoch": 2, of.metric: 0.5})
    write_outcome(str(tmp_path), trial_id(of, point(1)), "stopped", "behind the others at epoch 2")
    records.on_trial_complete(0, [], ending[0])
    measure(tmp_path, of, 2, 0.5, 0.6, 0.7)
    records.on_trial_complete(0, [], ending[1])
    records.on_trial_error(0, [], ending[2])
    write_outcome(str(tmp_path), trial_id(of, point(3)), "failed", "its own reason")
    records.on_trial_complete(0, [], ending[2])
    assert [line.partition(" (temperature ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "1): phase_classification 0.5000 at epoch 2",
        "1): stopped: behind the others at epoch 2; 2 of 5 trials ended",
        "2): done; 3 of 5 trials ended",
        "3): failed: died; 4 of 5 trials ended",
        "3): failed: its own reason; 5 of 5 trials ended",
    ]

    def fail(*arguments: Any) -> None:
        raise RunError("the store is away")

    monkeypatch.setattr(tune_driver, "read_outcome", fail)
    records.on_trial_complete(0, [], ending[0])
    assert "could not be recorded: the store is away" in capsys.readouterr().err
