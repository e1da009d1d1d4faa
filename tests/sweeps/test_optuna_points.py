"""Optuna's sampler as Tune's searcher: no point twice, and everything that ended is told."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from ray import tune

from carl_ray.presets import demo
from carl_ray.sweeps.definition import Sweep, trial_id
from carl_ray.sweeps.optuna_points import OptunaPoints
from carl_ray.sweeps.space import Choices, LogRange, Space, default_point

SMALL = Space(
    "small",
    {"views.max_crop_ratio": Choices((1.5, 2.0, 3.0)), "views.sampling": Choices(("random", "even"))},
)
METRIC = "phase_classification"
WIDE = Space("wide", {"objective.temperature": LogRange(0.03, 1.0, (0.1,))})


def sweep(space: Space, metric: str = "phase_classification") -> Sweep:
    return Sweep(space, demo(), 1, (6, 17), metric, labelled=True)


def ids(of: Sweep, suggested: list[Any]) -> list[str]:
    return [trial_id(of, found["point"]) for found in suggested]


def test_all_points_of_a_small_space_each_once() -> None:
    of = sweep(SMALL)
    default = default_point(SMALL, of.base)
    ended: list[Any] = [({"views.max_crop_ratio": 2.0, "views.sampling": "even"}, (17, 0.9))]
    searcher = OptunaPoints(of, [default], ended, seed=0)
    suggested: list[Any] = []
    for place in range(5):
        suggested.append(searcher.suggest(str(place)))
        # One is always running: it is not suggested again either.
        if place:
            searcher.on_trial_complete(str(place - 1), {"epoch": 17, METRIC: 0.5 + place / 10})
    assert suggested[0]["point"] == default
    assert len({*ids(of, suggested), trial_id(of, ended[0][0])}) == 6


def test_a_stopped_trial_is_told_as_stopped_in_this_call_and_in_the_next() -> None:
    of = sweep(WIDE)
    searcher = OptunaPoints(of, [], [], seed=0)
    points = [searcher.suggest(name)["point"] for name in "abc"]  # type: ignore[index]
    searcher.on_trial_complete("a", {"epoch": 17, METRIC: 0.8})
    searcher.on_trial_complete("b", {"epoch": 6, METRIC: 0.9})
    searcher.on_trial_complete("c", error=True)
    again = OptunaPoints(of, [], zip(points[:2], [(17, 0.8), (6, 0.9)], strict=True), seed=1)
    for trials, states in (
        (searcher._ot_study.trials, ["COMPLETE", "PRUNED", "FAIL"]),
        (again._ot_study.trials, ["COMPLETE", "PRUNED"]),
    ):
        assert [trial.state.name for trial in trials] == states
        assert [trial.intermediate_values.get(6) for trial in trials[:2]] == [None, 0.9]
        assert [trial.params for trial in trials] == points[: len(states)]
    assert again._ot_study.best_value == 0.8


def test_the_sampler_looks_where_it_is_good() -> None:
    for metric, sign in (("phase_classification", -1), ("alignment_error", 1)):
        of = sweep(WIDE, metric)
        ended = [
            ({"objective.temperature": 0.03 * 1.26**n}, (17, 0.8 + sign * abs(n - 2) / 20)) for n in range(15)
        ]
        searcher = OptunaPoints(of, [], ended, seed=0)
        drawn = [searcher.suggest(str(n))["point"]["objective.temperature"] for n in range(9)]  # type: ignore[index]
        assert sorted(drawn)[4] < 0.1  # a plain draw: 0.17


def test_tune_can_write_it_down() -> None:
    of = sweep(WIDE)
    searcher = pickle.loads(pickle.dumps(OptunaPoints(of, [], [], seed=0)))
    assert searcher.suggest("a")["point"].keys() == WIDE.parameters.keys()


def _worth(config: dict[str, Any]) -> None:
    """A trial that takes no time; one of its points fails."""
    point = config["point"]
    if point == {"views.max_crop_ratio": 1.5, "views.sampling": "even"}:
        raise RuntimeError("this point fails")
    tune.report({"epoch": 17, METRIC: 1 / point["views.max_crop_ratio"], "trial": ""})


@pytest.mark.slow
def test_tune_takes_its_points_and_tells_it_what_came_of_them(ray_session: None, tmp_path: Path) -> None:
    of = sweep(SMALL)
    searcher = OptunaPoints(of, [default_point(SMALL, of.base)], [], seed=0)
    results = tune.Tuner(
        tune.with_resources(_worth, {"CPU": 0.5}),
        tune_config=tune.TuneConfig(num_samples=6, max_concurrent_trials=2, search_alg=searcher),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    tried = [result.config or {} for result in results]
    assert tried[0]["point"] == default_point(SMALL, of.base) and len(set(ids(of, tried))) == 6
    assert len(results.errors) == 1
    done = [trial.params for trial in searcher._ot_study.trials if trial.state.name == "COMPLETE"]
    assert {trial_id(of, point) for point in done} == {
        trial_id(of, found["point"])
        for found in tried
        if found["point"] != {"views.max_crop_ratio": 1.5, "views.sampling": "even"}
    }
