"""Tables of variance and temperature: SCL and the contrastive baseline at each point, the two best with more seeds.

A point counts by the mean phase error of its centred embeddings over actions and folds. The best are chosen on the
clips that they are compared on, which favours SCL: its two are of twelve points, the baseline's of three.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.real.recipes import GRID, TEMPERATURES, VARIANCES, grid_name
from benchmarks.real.report import Found, Rows, mean_error, paired, rows_of

_BEST = 2
_SHOWN = ("centred", "joined")


def best_points(found: Found) -> list[list[str]]:
    """Names of the two best points of SCL and of the contrastive baseline by their first seed, the best first."""
    rows = rows_of(found)
    of_kind = ([name for name in GRID if name.startswith(kind)] for kind in ("scl", "contrastive"))
    return [
        sorted(names, key=lambda name: mean_error(rows, name, _SHOWN[0], [0]))[:_BEST] for names in of_kind
    ]


def markdown(found: Found, num_seeds: int) -> str:
    """All points with one seed, the best ones with all, and their differences by seed."""
    rows, seeds = rows_of(found), range(num_seeds)
    scl, contrastive = best_points(found)
    lines = [
        f"| {' / '.join(_SHOWN)}, one seed | {' | '.join(f'temperature {at:g}' for at in TEMPERATURES)} |",
        "|---" * (1 + len(TEMPERATURES)) + "|",
    ]
    for variance in (None, *VARIANCES):
        title = f"SCL, variance {variance:g}" if variance else "contrastive baseline"
        cells = (_cell(rows, grid_name(variance, at), [0]) for at in TEMPERATURES)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", f"| the two best of each | {' / '.join(_SHOWN)}, {num_seeds} seeds |", "|---|---|"]
    lines += [f"| {GRID[name].meaning} | {_cell(rows, name, seeds)} |" for name in (*scl, *contrastive)]
    pairs = [(name, other, variant) for name in scl for other in contrastive for variant in _SHOWN]
    return "\n".join([*lines, "", *paired(rows, pairs)])


def _cell(rows: Rows, name: str, seeds: Sequence[int]) -> str:
    errors = (f"{mean_error(rows, name, variant, seeds):.3f}" for variant in _SHOWN)
    return " / ".join(error.removeprefix("0") for error in errors)
