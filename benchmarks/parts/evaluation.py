"""How much faster Kendall's tau and AP@K are than plain loops, at PennAction's size, and whether they are equal.

The loops are what a reader of the definitions writes first: `scipy.spatial.distance.cdist` and
`scipy.stats.kendalltau` for each ordered pair of videos; `cdist` and `numpy.argpartition` for each query video
against all others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int
from scipy.spatial.distance import cdist
from scipy.stats import kendalltau

from benchmarks.parts.table import Table
from carl_ray.evaluation.kendall import kendalls_tau
from carl_ray.evaluation.retrieval import average_precisions

NEIGHBORS = (5, 10, 15)
STRIDE = 2
_WIDTH = 128
_PHASES = 4


@dataclass(frozen=True, eq=False)
class Action:
    """Test videos of one action."""

    embeddings: list[Float64[np.ndarray, "_ width"]]
    """Frames of each video."""
    labels: list[Int[np.ndarray, " _"]]
    """Phase of each frame."""


@dataclass(frozen=True)
class Timing:
    """One metric, both ways."""

    metric: str
    """Its name."""
    seconds: float
    """Of wall time, vectorised."""
    loop_seconds: float
    """Of wall time, by plain loops."""
    difference: float
    """Greatest absolute difference: of any ordered pair's tau, of any video's AP@K."""


def measure(on_progress: Callable[[str], None]) -> Table:
    """Both metrics, both ways, over `synthetic_actions`."""
    on_progress("evaluation: tau and AP@K, then plain loops")
    actions = synthetic_actions()
    num_videos = sum(len(action.embeddings) for action in actions)
    title = (
        f"evaluation: {num_videos} videos in {len(actions)} actions, width {_WIDTH}, stride {STRIDE}, wall time; "
        "the loops are plain SciPy"
    )
    return comparison_table(compare(actions), title)


def synthetic_actions(num_videos: int = 966, num_actions: int = 13, seed: int = 0) -> list[Action]:
    """Random embeddings of PennAction's test set: its videos, actions and about its lengths (18 to 160 frames).

    Each action is a smooth random curve through the space of embeddings; each video runs along it at a tempo
    of its own, with an offset and noise of its own, so that nearest neighbours mean something.
    """
    rng = np.random.default_rng(seed)
    actions = []
    for videos in np.array_split(np.arange(num_videos), num_actions):
        waves = rng.standard_normal((8, 2, _WIDTH)) / np.arange(1, 9)[:, None, None]
        lengths = np.clip(rng.lognormal(np.log(65), 0.45, len(videos)), 18, 160).astype(int)
        embeddings, labels = [], []
        for length in lengths:
            progress = np.linspace(0, 1, length) ** rng.uniform(0.6, 1.6)
            phases = np.pi * progress[:, None] * np.arange(1, 9)
            curve = np.cos(phases) @ waves[:, 0] + np.sin(phases) @ waves[:, 1]
            noise = 0.3 * rng.standard_normal((length, _WIDTH))
            embeddings.append(curve + 0.3 * rng.standard_normal(_WIDTH) + noise)
            labels.append(np.minimum((progress * _PHASES).astype(int), _PHASES - 1))
        actions.append(Action(embeddings, labels))
    return actions


def compare(actions: list[Action]) -> list[Timing]:
    """Times and differences of both metrics over some actions."""
    taus, tau_seconds = _timed(
        lambda: [kendalls_tau(a.embeddings, stride=STRIDE).statistics for a in actions]
    )
    loop_taus, tau_loop_seconds = _timed(lambda: [loop_taus_of(a) for a in actions])
    precisions, seconds = _timed(lambda: [precisions_of(a) for a in actions])
    loop_precisions, loop_seconds = _timed(lambda: [loop_precisions_of(a) for a in actions])
    return [
        Timing("Kendall's tau", tau_seconds, tau_loop_seconds, _difference(taus, loop_taus)),
        Timing("AP@5/10/15", seconds, loop_seconds, _difference(precisions, loop_precisions)),
    ]


def precisions_of(action: Action) -> Float64[np.ndarray, "ks videos"]:
    """AP@K of each video."""
    results = average_precisions(action.embeddings, action.labels, NEIGHBORS, stride=STRIDE)
    return np.stack([results[k].statistics[0] for k in NEIGHBORS])


def loop_taus_of(action: Action) -> Float64[np.ndarray, "videos videos"]:
    """Tau-b of each ordered pair, pair by pair; NaN where undefined."""
    units = [_units(video) for video in action.embeddings]
    taus = np.full((len(units), len(units)), np.nan)
    for a, first in enumerate(units):
        for b, second in enumerate(units):
            if a != b:
                nearest = cdist(first, second, "sqeuclidean").argmin(1)
                taus[a, b] = kendalltau(np.arange(len(first)), nearest).statistic
    return taus


def loop_precisions_of(action: Action) -> Float64[np.ndarray, "ks videos"]:
    """AP@K of each video, video by video."""
    units = [_units(video) for video in action.embeddings]
    labels = [classes[::STRIDE] for classes in action.labels]
    precisions = np.zeros((len(NEIGHBORS), len(units)))
    for a, (queries, classes) in enumerate(zip(units, labels, strict=True)):
        distances = cdist(queries, np.concatenate(units[:a] + units[a + 1 :]), "sqeuclidean")
        candidates = np.concatenate(labels[:a] + labels[a + 1 :])
        for number, k in enumerate(NEIGHBORS):
            nearest = np.argpartition(distances, k - 1, axis=1)[:, :k]
            precisions[number, a] = (candidates[nearest] == classes[:, None]).mean()
    return precisions


def comparison_table(timings: list[Timing], title: str) -> Table:
    """A row a metric, and both together in the last one."""
    together = Timing(
        "together",
        sum(timing.seconds for timing in timings),
        sum(timing.loop_seconds for timing in timings),
        max(timing.difference for timing in timings),
    )
    return Table(
        title,
        ("metric", "seconds", "loop", "ratio", "difference"),
        [
            (
                timing.metric,
                f"{timing.seconds:.2f}",
                f"{timing.loop_seconds:.2f}",
                f"{timing.loop_seconds / timing.seconds:.1f}",
                f"{timing.difference:.1e}",
            )
            for timing in [*timings, together]
        ],
    )


def _timed(work: Callable[[], list[np.ndarray]]) -> tuple[list[np.ndarray], float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def _units(video: np.ndarray) -> Float64[np.ndarray, "_ width"]:
    frames = video[::STRIDE]
    return frames / np.linalg.norm(frames, axis=1, keepdims=True)


def _difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Infinite where one of the two is defined and the other is not."""
    pairs = list(zip(found, expected, strict=True))
    if any((np.isnan(a) != np.isnan(b)).any() for a, b in pairs):
        return np.inf
    return max(float(np.nanmax(np.abs(a - b))) for a, b in pairs)
