"""Tables of variance and temperature: SCL and the contrastive baseline at each point, the two best with more seeds.

A point counts by the mean phase error of its centred embeddings over actions and folds. The two best are chosen with
seed 0 and compared with other seeds, but on the clips that they were chosen on, which favours SCL: its two are of
twelve points, the baseline's of three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.real.recipes import GRID, TEMPERATURES, VARIANCES, grid_name
from benchmarks.real.report import Found, Rows, mean_error, paired, rows_of

_BEST = 2
_SHOWN = ("centred", "joined")


def best_points(found: Found) -> list[list[str]]:
    """Names of the two best points of SCL and of the contrastive baseline by their first seed, the best first."""
    rows = rows_of(found)
    errors = {name: mean_error(rows, name, _SHOWN[0], [0]) for name in GRID}
    measured = sorted((n for n in GRID if not math.isnan(errors[n])), key=lambda name: errors[name])
    return [[name for name in measured if name.startswith(kind)][:_BEST] for kind in ("scl", "contrastive")]


def markdown(found: Found, num_seeds: int) -> str:
    """All points with seed 0, the best ones with as many others, and their differences by seed."""
    rows, seeds = rows_of(found), range(1, num_seeds + 1)
    scl, contrastive = best_points(found)
    lines = [
        f"| {' / '.join(_SHOWN)}, one seed | {' | '.join(f'temperature {at:g}' for at in TEMPERATURES)} |",
        "|---" * (1 + len(TEMPERATURES)) + "|",
    ]
    for variance in (None, *VARIANCES):
        title = f"SCL, variance {variance:g}" if variance else "contrastive baseline"
        cells = (_cell(rows, grid_name(variance, at), [0]) for at in TEMPERATURES)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", f"| the two best of each | {' / '.join(_SHOWN)}, {num_seeds} other seeds |", "|---|---|"]
    lines += [f"| {GRID[name].meaning} | {_cell(rows, name, seeds)} |" for name in (*scl, *contrastive)]
    pairs = [(name, other, variant) for name in scl for other in contrastive for variant in _SHOWN]
    return "\n".join([*lines, "", *paired(rows, pairs, seeds)])


def _cell(rows: Rows, name: str, seeds: Sequence[int]) -> str:
    errors = (f"{mean_error(rows, name, variant, seeds):.3f}" for variant in _SHOWN)
    return " / ".join(error.removeprefix("0") for error in errors)
