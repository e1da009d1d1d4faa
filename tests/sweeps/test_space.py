"""Spaces: grids, random points, the configs that points become; the built-in ones for every preset."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from carl_ray.config import Config, objective_options
from carl_ray.errors import UserError
from carl_ray.options import overridden
from carl_ray.presets import PRESETS, demo
from carl_ray.sweeps.definition import Sweep, trial_id
from carl_ray.sweeps.space import SPACES, Choices, LogRange, Space, default_point, point_config
from carl_ray.sweeps.tune_driver import Search, chosen_points

SPACE = Space(
    "both",
    {"objective.temperature": LogRange(0.01, 1.0, (0.1, 0.3)), "views.sampling": Choices(("random", "even"))},
)


def test_a_grid_is_the_product() -> None:
    assert [tuple(point.values()) for point in SPACE.grid()] == [
        (0.1, "random"), (0.1, "even"), (0.3, "random"), (0.3, "even"),
    ]  # fmt: skip


def test_draws_are_functions_of_the_seed_and_their_place() -> None:
    few, many = (list(islice(SPACE.draws(3, {}), count)) for count in (4, 40))
    assert many[:4] == few
    assert list(islice(SPACE.draws(4, {}), 4)) != few
    logs = [math.log10(float(point["objective.temperature"])) for point in many]
    assert min(logs) >= -2 and max(logs) <= 0
    # Uniform in the logarithm: half of them below its middle, where one in eleven of a plain draw would be.
    assert 10 <= sum(value < -1 for value in logs) <= 30
    assert {point["views.sampling"] for point in many} == {"random", "even"}


def test_no_point_is_drawn_twice() -> None:
    small = Space("small", {"views.sampling": Choices(("random", "even"))})
    assert sorted(point["views.sampling"] for point in islice(small.draws(0, {}), 2)) == ["even", "random"]
    (other,) = islice(small.draws(0, {"views.sampling": "even"}), 1)
    assert other["views.sampling"] == "random"
    with pytest.raises(UserError, match="no more than 2 different points"):
        list(islice(small.draws(0, {"views.sampling": "even"}), 2))


def test_the_default_point_is_the_base_config() -> None:
    base = demo()
    point = default_point(SPACE, base)
    assert point == {"objective.temperature": 0.1, "views.sampling": "random"}
    assert point_config(SPACE, base, point, base.training.seed) == base
    config = point_config(SPACE, base, {"objective.temperature": 0.25}, 7)
    assert (config.objective.temperature, config.training.seed) == (0.25, 7)


def test_a_point_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="width must be a multiple"):
        point_config(SPACE, demo(), {"model.num_heads": 3}, 0)


@pytest.mark.parametrize(("num_frames", "expected"), [(16, 16), (32, 8), (48, 5), (64, 4), (600, 1)])
def test_the_batch_follows_from_the_frames_of_a_view(num_frames: int, expected: int) -> None:
    base = demo()
    budget = 2 * base.model.num_frames * base.training.global_batch_size
    space = Space("frames", {"model.num_frames": Choices((num_frames,))}, frames_per_step=budget)
    config = point_config(space, base, {"model.num_frames": num_frames}, 0)
    assert config.training.global_batch_size == expected
    assert expected == 1 or 2 * num_frames * expected <= budget
    paired = replace(base, objective=objective_options("weak_scl"))
    assert point_config(space, paired, {"model.num_frames": num_frames}, 0).training.global_batch_size == max(
        2, expected // 2 * 2
    )


def test_a_log_range_draws_three_digits() -> None:
    value = LogRange(0.03, 1.0, ()).draw(np.random.default_rng(0))
    assert float(f"{value:.3g}") == value


def sweep_of(space: str, base: Config) -> Sweep:
    return Sweep(SPACES[space](base), base, 1, (1,), "phase_classification", labelled=True)


ON_FRAMES = [name for name, make in PRESETS.items() if not make().objective.reads_clips]
"""Presets of the paper's kind of encoder, to which all spaces apply."""


@pytest.mark.parametrize("preset", ["demo", "penn_action", "finegym99"])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("search", ["grid", "random"])
def test_no_run_has_two_trials(search: Search, space: str, preset: str) -> None:
    sweep = sweep_of(space, PRESETS[preset]())
    num_trials = None if search == "grid" and space != "all" else min(20, sweep.space.num_points or 20)
    chosen = chosen_points(sweep, search, num_trials, 0)
    runs = {str(replace(sweep.run_config(point, 0), preset="")) for point in chosen.values()}
    assert len(runs) == len(chosen) == (num_trials or len(chosen))
    assert list(chosen) == [trial_id(sweep, point) for point in chosen.values()]
    # The base first, whatever the order of the grid.
    assert (
        next(iter(chosen)) == trial_id(sweep, {}) == trial_id(sweep, default_point(sweep.space, sweep.base))
    )


def test_a_small_space_has_no_more_trials_than_points() -> None:
    sweep = sweep_of("frames", demo())
    assert sweep.space.num_points == 5
    assert len(chosen_points(sweep, "random", 5, 0)) == 5
    for search in ("random", "optuna"):
        with pytest.raises(
            UserError, match="space frames has no more than 5 points, 6 trials were asked for"
        ):
            chosen_points(sweep, search, 6, 0)  # type: ignore[arg-type]
    assert sweep_of("loss", demo()).space.num_points is None


def test_ranges_and_grids_reach_the_base() -> None:
    base = overridden(demo(), {"objective.temperature": "0.01", "objective.variance": "200"})
    space = SPACES["loss"](base)
    for name, value in default_point(space, base).items():
        parameter = space.parameters[name]
        assert parameter.low <= value <= parameter.high and value in parameter.grid  # type: ignore[union-attr,operator]
