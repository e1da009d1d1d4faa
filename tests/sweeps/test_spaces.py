"""The built-in spaces for every preset."""

from __future__ import annotations

from dataclasses import replace

import pytest

from carl_ray.config import Config
from carl_ray.errors import UserError
from carl_ray.options import overridden
from carl_ray.presets import PRESETS, demo, finegym99
from carl_ray.sweeps.definition import Sweep, trial_id
from carl_ray.sweeps.paper_tables import TABLE_9, TABLE_10
from carl_ray.sweeps.space import default_point
from carl_ray.sweeps.spaces import SPACES
from carl_ray.sweeps.tune_driver import Search, chosen_points


def sweep_of(space: str, base: Config) -> Sweep:
    return Sweep(SPACES[space](base), base, 1, (1,), "phase_classification", labelled=True)


@pytest.mark.parametrize("preset", PRESETS)
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


def test_the_papers_rows_are_as_many_runs_as_they_differ() -> None:
    """Beside the base, whose row three tables have: table 10 says alpha 1.5 where the preset does not."""
    sweep = sweep_of("paper", PRESETS["penn_action"]())
    rows = [row for table in sweep.space.tables.values() for row in table.rows]
    assert (len(rows), len(chosen_points(sweep, "grid", None, 0))) == (17, 15)
    first = chosen_points(sweep_of("paper", demo()), "grid", 5, 0)
    assert set(first) == {trial_id(sweep_of("paper", demo()), row.options) for row in TABLE_9.rows}


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


def test_rows_of_table_10_are_what_they_say() -> None:
    names = {
        preset: [row.name for row in SPACES["paper"](PRESETS[preset]()).tables["10"].rows]
        for preset in PRESETS
    }
    papers = [row.name for row in TABLE_10.rows if row.options]
    assert names["penn_action"] == names["finegym99"] == papers
    assert names["demo"] == [*papers, "alpha 3, beta 20 %, random (the base)"]
    base = overridden(finegym99(), {"views.min_overlap": "0.5", "views.sampling": "even"})
    table = SPACES["paper"](base).tables["10"]
    assert "demo" not in table.note and "alpha 1.5, beta 50 %, even (the base)" in [
        r.name for r in table.rows
    ]
    (reference,) = [row for row in table.rows if row.name == table.reference]
    views = overridden(base, dict(reference.options)).views
    assert (views.max_crop_ratio, views.min_overlap, views.sampling) == (1.5, 0.2, "random")


def test_ranges_and_grids_reach_the_base() -> None:
    base = overridden(demo(), {"objective.temperature": "0.01", "objective.variance": "200"})
    space = SPACES["loss"](base)
    for name, value in default_point(space, base).items():
        parameter = space.parameters[name]
        assert parameter.low <= value <= parameter.high and value in parameter.grid  # type: ignore[union-attr,operator]


def test_the_batch_stays_in_the_papers_table_of_frames() -> None:
    space = SPACES["paper"](demo())
    sweep = sweep_of("paper", demo())
    batches = {sweep.run_config(point, 0).training.global_batch_size for point in space.points}
    assert batches == {8} and "same batch size" in space.tables["11"].note
