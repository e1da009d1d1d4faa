"""The table of the real benchmark, and its bars."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.real.recipes import GRID, RECIPES
from benchmarks.real.videos import ACTIONS, TESTED, Video
from benchmarks.studies.results import mean_interval, verdict_of

Scores = Mapping[str, Mapping[str, float]]
"""Measures by action."""
Found = Mapping[str, Mapping[str, Scores]]
"""Scores by `NAME|fold|seed` and variant; of a control without training the variant is empty."""
_MEASURES = ("phase_error", "one_shot", "probe")
_MARGIN, _FLOOR = 0.01, 0.008
_INPUTS = ("plain", "global")
"""Ends of the names of recipes that see something else, as the baseline that they are compared with does."""


Rows = Mapping[tuple[str, str], Sequence[Mapping[int, Scores]]]
"""Scores of each fold by seed, by name and variant."""


def markdown(found: Found, videos: Sequence[Video], fold: np.ndarray) -> str:
    """All tables: the videos, the scores, bars and SCL beside the contrastive baseline."""
    rows = {key: folds for key, folds in rows_of(found).items() if key[0] not in GRID}
    pairs = [
        (
            name,
            f"contrastive-{kind}" if (kind := name.rpartition("-")[2]) in _INPUTS else "contrastive",
            variant,
        )
        for name, variant in rows
        if name.startswith("scl")
    ]
    return "\n".join([*_videos(videos, fold), "", *_scores(rows), "", *_bars(rows), "", *paired(rows, pairs)])


def rows_of(found: Found) -> Rows:
    """What both folds have."""
    rows: dict[tuple[str, str], list[dict[int, Scores]]] = defaultdict(lambda: [{}, {}])
    for key, variants in found.items():
        name, number, seed = key.split("|")
        for variant, scores in variants.items():
            rows[name, variant][int(number)][int(seed)] = scores
    return {key: folds for key, folds in rows.items() if all(folds)}


def _videos(videos: Sequence[Video], fold: np.ndarray) -> list[str]:
    lines = ["| videos (repetitions) | fold 0 | fold 1 |", "|---|---|---|"]
    for action in ACTIONS:
        held = [
            [v for v, own in zip(videos, fold, strict=True) if v.action == action and own == k]
            for k in (0, 1)
        ]
        cells = [f"{len(part)} ({sum(max(0, len(v.starts) - 1) for v in part)})" for part in held]
        lines.append(f"| {action} | {' | '.join(cells)} |")
    return lines


def _scores(rows: Rows) -> list[str]:
    titles = [*ACTIONS, "mean", "one-shot", "probe"]
    lines = [f"| folds 0 / 1 | {' | '.join(titles)} | seeds |", "|---" * (len(titles) + 2) + "|"]
    for (name, variant), folds in rows.items():
        cells = [_cell([_values(fold, action) for fold in folds]) for action in ACTIONS]
        cells += [
            _cell([_means(fold, measure) for fold in folds], deviation=not at)
            for at, measure in enumerate(_MEASURES)
        ]
        title = f"{RECIPES[name].meaning}, {variant}" if name in RECIPES else name
        seeds = sorted({len(fold) for fold in folds}) if name in RECIPES else ["–"]
        lines.append(f"| {title} | {' | '.join(cells)} | {' / '.join(map(str, seeds))} |")
    return lines


def _bars(rows: Rows) -> list[str]:
    """Each trained embedding against the best control without training of each action, and the untrained net."""
    controls = [folds for (name, _), folds in rows.items() if name not in RECIPES]
    lines = [
        "| below the best control of an action by .01 | "
        + " | ".join(f"{action}, fold {k}" for action in TESTED for k in (0, 1))
        + " | |",
        "|---" * (2 * len(TESTED) + 2) + "|",
    ]
    bars = {
        (a, k): min(np.mean(_values(c[k], a)) for c in controls) - _MARGIN for a in TESTED for k in (0, 1)
    }
    lines.append("| bar | " + " | ".join(f"{bar:.3f}" for bar in bars.values()) + " | |")
    for (name, variant), folds in rows.items():
        if name in RECIPES and name != "untrained":
            over = [float(np.mean(_values(folds[k], a))) - bar for (a, k), bar in bars.items()]
            verdict = "met" if max(over) <= 0 else f"{sum(value > 0 for value in over)} missed"
            lines.append(
                f"| {RECIPES[name].meaning}, {variant} | "
                + " | ".join(f"{v:+.3f}" for v in over)
                + f" | {verdict} |"
            )
    untrained = rows.get(("untrained", "centred"))
    for name in ("scl", "scl-36"):
        own = rows.get((name, "centred"))
        if untrained and own:
            gains = [
                np.mean(_means(untrained[k], _MEASURES[0])) - np.mean(_means(own[k], _MEASURES[0]))
                for k in (0, 1)
            ]
            verdict = "met" if min(gains) >= _FLOOR else "missed"
            lines += [
                "",
                f"Floor: {RECIPES[name].meaning}, centred, is below the untrained net by {gains[0]:.3f} / "
                f"{gains[1]:.3f} (.008 wanted: {verdict}).",
            ]
    return lines


def paired(rows: Rows, pairs: Sequence[tuple[str, str, str]], seeds: Sequence[int] = ()) -> list[str]:
    """SCL minus the contrastive baseline on the same seeds and folds; the interval is over seeds, folds averaged.

    Args:
        rows: The scores.
        pairs: Names of both and the variant; what was not measured is left out.
        seeds: To compare; none: all that both have.
    """
    lines = [
        "| phase error minus that of the contrastive baseline, paired by seed and fold | mean | lower in | 95 % over "
        "seeds | the paper's order |",
        "|---|---|---|---|---|",
    ]
    for name, reference, variant in pairs:
        folds, other = rows.get((name, variant)), rows.get((reference, variant))
        if folds is None or other is None:
            continue
        common = set.intersection(*(set(f[k]) for f in (folds, other) for k in (0, 1)))
        found = [
            [
                _means({s: folds[k][s]}, _MEASURES[0])[0] - _means({s: other[k][s]}, _MEASURES[0])[0]
                for k in (0, 1)
            ]
            for s in sorted(common & set(seeds or common))
        ]
        if found:
            interval = mean_interval([float(np.mean(both)) for both in found])
            shown = "[{:+.3f}, {:+.3f}]".format(*interval) if interval else "–"
            verdict = verdict_of([-end for end in interval]) if interval else "–"
            than = f" against {GRID[reference].meaning}" if reference in GRID else ""
            lines.append(
                f"| {(RECIPES | GRID)[name].meaning}{than}, {variant} | {np.mean(found):+.3f} | "
                f"{int((np.array(found) < 0).sum())} of {2 * len(found)} | {shown} | {verdict} |"
            )
    return lines


def mean_error(rows: Rows, name: str, variant: str, seeds: Sequence[int]) -> float:
    """Mean phase error over actions, folds and seeds; NaN where a seed was not measured."""
    folds = rows.get((name, variant), ({}, {}))
    if any(seed not in fold for fold in folds for seed in seeds):
        return float("nan")
    return float(np.mean([_means({s: fold[s] for s in seeds}, _MEASURES[0]) for fold in folds]))


def _values(seeds: Mapping[int, Scores], action: str, measure: str = _MEASURES[0]) -> list[float]:
    return [scores[action][measure] for scores in seeds.values()]


def _means(seeds: Mapping[int, Scores], measure: str) -> list[float]:
    """The mean over all actions, of each seed."""
    return [float(np.mean([scores[action][measure] for action in ACTIONS])) for scores in seeds.values()]


def _cell(folds: Sequence[Sequence[float]], *, deviation: bool = False) -> str:
    texts = []
    for values in folds:
        text = f"{np.mean(values):.3f}".removeprefix("0")
        spread = f"{np.std(values, ddof=1):.3f}".removeprefix("0") if deviation and len(values) > 1 else ""
        texts.append(f"{text} ± {spread}" if spread else text)
    return " / ".join(texts)
