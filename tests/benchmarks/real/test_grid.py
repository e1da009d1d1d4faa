"""`benchmarks.real.grid`: every point, the best ones with all seeds, and their differences."""

from benchmarks.real.grid import best_points, markdown
from benchmarks.real.recipes import GRID, RECIPES
from carl_ray.objectives.contrastive import FrameContrast
from carl_ray.objectives.scl import SequenceContrast
from tests.benchmarks.real.test_report import scores

ERRORS = {name: 0.15 + 0.001 * number for number, name in enumerate(GRID)}


def measured(error):
    return scores(error) | {"joined": scores(error - 0.05)["centred"]}


def test_the_points_are_of_the_presets_objectives():
    assert len(GRID) == 15 and not GRID.keys() & RECIPES.keys()
    options = GRID["scl-36-at-0.07"].config().objective
    assert isinstance(options, SequenceContrast.Options) and (options.variance, options.temperature) == (
        36,
        0.07,
    )
    options = GRID["contrastive-at-0.3"].config().objective
    assert isinstance(options, FrameContrast.Options) and options.temperature == 0.3


def test_what_is_not_measured_is_neither_best_nor_compared():
    found = {f"scl-9-at-0.3|{fold}|0": measured(0.2) for fold in (0, 1)}
    assert best_points(found) == [["scl-9-at-0.3"], []]
    assert "nan" in markdown(found, 2)


def test_the_best_are_shown_with_all_seeds_and_compared():
    found = {f"{name}|{fold}|0": measured(error) for name, error in ERRORS.items() for fold in (0, 1)}
    assert best_points(found) == [
        ["scl-9-at-0.07", "scl-9-at-0.1"],
        ["contrastive-at-0.07", "contrastive-at-0.1"],
    ]
    assert " of 4" not in markdown(found, 2)
    for names in best_points(found):
        for name in names:
            found |= {f"{name}|{fold}|{s}": measured(ERRORS[name] + 0.01) for fold in (0, 1) for s in (1, 2)}
    lines = markdown(found, 2).splitlines()
    assert "| SCL, variance 225 | .162 / .112 | .163 / .113 | .164 / .114 |" in lines
    assert "| SCL, variance 9, temperature 0.07 | .163 / .113 |" in lines
    differences = [line for line in lines if " of 4 | " in line]
    assert len(differences) == 8
    title = "| SCL, variance 9, temperature 0.1 against contrastive baseline, temperature 0.07, joined"
    (line,) = [line for line in differences if line.startswith(title)]
    assert line.endswith("| +0.004 | 0 of 4 | [+0.004, +0.004] | does not hold |")
