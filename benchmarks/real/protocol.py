"""What is measured on embeddings of repeated actions, and the split of the videos by scene.

A frame of a test video finds its nearest one in a training video of the same action from another scene. Frames without
a phase (NaN) neither search nor are found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from carl_ray.evaluation.frames import unit_frames

NUM_QUARTERS = 4
_SCENE_DISTANCE = 0.15
_JITTER = 1e-9

Arrays = Mapping[str, np.ndarray]
"""An array of every video, by its id."""


@dataclass(frozen=True)
class Scores:
    """What an embedding is worth on one action."""

    phase_error: float
    """Mean circular distance of the phases of a frame and of its nearest one; .25 by chance."""
    one_shot: float
    """Share of frames whose nearest one is in the same quarter of its repetition."""
    probe: float
    """Accuracy of a logistic regression on quarters."""


def scenes(
    means: Float[np.ndarray, "videos width"], same: Sequence[Sequence[int]] = ()
) -> Int64[np.ndarray, " videos"]:
    """Cluster videos by their mean features: cosine distance, average linkage, cut at .15.

    Args:
        means: Mean features of each video.
        same: Groups of videos known to show one place from different sides, whose clusters are merged.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    found = fcluster(linkage(means, "average", metric="cosine"), _SCENE_DISTANCE, "distance").astype(np.int64)
    for group in same:
        found[np.isin(found, found[list(group)])] = found[group[0]]
    return found


def folds(scene_of: Sequence[int] | np.ndarray, actions: Sequence[str]) -> Int64[np.ndarray, " videos"]:
    """Distribute scenes over two folds, each action as evenly as its scenes allow; largest scenes first."""
    scene_of, chosen = np.asarray(scene_of), np.zeros(len(actions), np.int64)
    held: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    found, sizes = np.unique(scene_of, return_counts=True)
    for scene in found[np.lexsort((found, -sizes))]:
        members = np.flatnonzero(scene_of == scene)
        own = Counter(actions[member] for member in members.tolist())
        excess = [sum(count * fold[action] for action, count in own.items()) for fold in held]
        fold = int(excess[1] < excess[0])
        held[fold].update(own)
        chosen[members] = fold
    return chosen


def circular_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distance of phases on a circle of length 1, at most .5."""
    apart = np.abs(first - second) % 1.0
    return np.minimum(apart, 1.0 - apart)


def centered(embeddings: Arrays) -> dict[str, np.ndarray]:
    """Embeddings minus the mean of their video."""
    return {name: array - array.mean(axis=0) for name, array in embeddings.items()}


def joined(*parts: Arrays, weights: Sequence[float] = ()) -> dict[str, np.ndarray]:
    """Several embeddings side by side, each L2-normalised, then weighted."""
    scaled = [
        {name: weight * unit_frames([array])[0] for name, array in part.items()}
        for part, weight in zip(parts, weights or (1.0,) * len(parts), strict=True)
    ]
    return {name: np.concatenate([part[name] for part in scaled], axis=1) for name in scaled[0]}


def score(
    embeddings: Arrays, phases: Arrays, test: Sequence[str], train: Sequence[str], *, probe: bool = True
) -> Scores:
    """Scores of one action.

    Args:
        embeddings: Frames of each video.
        phases: Of the same frames, in [0, 1); NaN: none.
        test: Ids of the videos that are searched with.
        train: Ids of those that are searched, of other scenes.
        probe: False leaves the regression out, whose accuracy is NaN then.
    """
    units = {name: unit_frames([embeddings[name]])[0] for name in (*test, *train)}
    known = {name: ~np.isnan(phases[name]) for name in units}
    errors, hits = [], []
    for query in test:
        for reference in train:
            likeness = units[query][known[query]] @ units[reference][known[reference]].T
            found = phases[reference][known[reference]][likeness.argmax(axis=1)]
            wanted = phases[query][known[query]]
            errors.append(circular_distance(found, wanted).mean())
            hits.append((_quarters(found) == _quarters(wanted)).mean())
    accuracy = _probe(units, phases, test, train) if probe else np.nan
    return Scores(float(np.mean(errors)), float(np.mean(hits)), float(accuracy))


def _probe(units: Arrays, phases: Arrays, test: Sequence[str], train: Sequence[str]) -> float:
    from carl_ray.evaluation.classification import phase_classification

    units = _narrowed({name: units[name] for name in (*train, *test)})
    labels = {name: _quarters(phases[name]) for name in units}
    arrays = [[held[name] for name in names] for names in (train, test) for held in (units, labels)]
    return phase_classification(*arrays).value


def _narrowed(units: Arrays) -> Arrays:
    """Frames with the same inner products in fewer dimensions, where they have more than there are frames.

    A regression with an L2 penalty depends on nothing else.
    """
    frames = np.concatenate(list(units.values()))
    if frames.shape[1] <= len(frames):
        return units
    narrow = np.linalg.cholesky(frames @ frames.T + _JITTER * np.eye(len(frames)))
    ends = np.cumsum([len(array) for array in units.values()])
    return dict(zip(units, np.split(narrow, ends[:-1]), strict=True))


def _quarters(phases: np.ndarray) -> Int64[np.ndarray, " frames"]:
    """Quarter of each phase; -1 without one."""
    return np.where(np.isnan(phases), -1, np.nan_to_num(phases) * NUM_QUARTERS).astype(np.int64)
