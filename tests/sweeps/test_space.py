"""Spaces: grids, random points, the configs that points become."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from carl_ray.config import objective_options
from carl_ray.errors import UserError
from carl_ray.presets import demo
from carl_ray.sweeps.space import Choices, LogRange, Space, default_point, point_config

SPACE = Space(
    "both",
    {"objective.temperature": LogRange(0.01, 1.0, (0.1, 0.3)), "views.sampling": Choices(("random", "even"))},
)


def test_a_grid_is_the_product_or_its_points_each_once() -> None:
    assert [tuple(point.values()) for point in SPACE.grid()] == [
        (0.1, "random"), (0.1, "even"), (0.3, "random"), (0.3, "even"),
    ]  # fmt: skip
    listed = Space("listed", SPACE.parameters, points=({}, {"views.sampling": "even"}, {}))
    assert listed.grid() == [{}, {"views.sampling": "even"}]


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
