"""Propagation of labels: alignment where phases come once, a path of phases where they return, and its metric."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from carl_ray.evaluation.embeddings import EmbeddedVideo
from carl_ray.evaluation.propagation import TASK, _likeliest_path, propagate
from carl_ray.evaluation.protocol import evaluate
from carl_ray.evaluation.task import Videos
from tests.embedded import embedded
from tests.evaluation.test_embeddings import ORIGIN

WIDTH = 8
PHASES = np.random.default_rng(7).standard_normal((5, WIDTH))


def sequence(*parts: tuple[int, int], seed: int, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Noisy embeddings and labels of (phase, frames) in turn; phase -1 looks like the last of `PHASES`."""
    labels = np.concatenate([np.full(frames, phase) for phase, frames in parts])
    rng = np.random.default_rng(seed)
    return PHASES[labels] + noise * rng.standard_normal((len(labels), WIDTH)), labels


ONCE = [(-1, 4), (0, 10), (1, 6), (2, 9), (-1, 5)]
AGAIN = [(0, 6), (1, 5), (0, 7), (1, 6), (-1, 4), (0, 5), (1, 8)]


@pytest.mark.parametrize(
    ("source", "target"), [(ONCE, [(-1, 9), (0, 4), (1, 12), (2, 3), (-1, 2)]), (AGAIN, AGAIN[2:])]
)
@pytest.mark.parametrize("num_sources", [1, 3])
def test_labels_of_others_are_found(source: list, target: list, num_sources: int) -> None:
    sources = [sequence(*source, seed=seed) for seed in range(num_sources)]
    embeddings, truth = sequence(*target, seed=9)
    found = propagate(*map(list, zip(*sources, strict=True)), embeddings)
    assert (found.phases == truth).mean() > 0.9
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    right = found.phases == truth
    assert right.all() or found.confidence[right].mean() > found.confidence[~right].mean()
    # One run a phase, as in the labelled videos, although single frames are noisy.
    assert np.count_nonzero(np.diff(found.phases)) == len(target) - 1


def test_only_changes_that_were_seen() -> None:
    sources = [sequence(*AGAIN, seed=1)]
    embeddings, _ = sequence((1, 5), (-1, 5), (1, 5), seed=2)
    found = propagate(*map(list, zip(*sources, strict=True)), embeddings).phases
    # From none to phase 1 there is a way through phase 0 alone.
    assert {*pairwise(found.tolist())} <= {(0, 0), (1, 1), (-1, -1), (0, 1), (1, 0), (1, -1), (-1, 0)}


def test_the_path_is_the_best_of_all() -> None:
    rng = np.random.default_rng(3)
    similarities = rng.random((6, 3))
    seen = [np.array([0, 1, 1, 2]), np.array([2, 0])]
    changes = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], bool)
    paths = np.stack(np.meshgrid(*[range(3)] * 6, indexing="ij"), -1).reshape(-1, 6)
    allowed = changes[paths[:, :-1], paths[:, 1:]].all(1)
    gains = similarities[np.arange(6), paths].sum(1) - 0.2 * np.count_nonzero(np.diff(paths, axis=1), axis=1)
    best = paths[np.where(allowed, gains, -np.inf).argmax()]
    assert _likeliest_path(similarities, seen, 0.2).tolist() == best.tolist()


def test_long_videos_are_strided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carl_ray.evaluation.propagation._MOST_FRAMES", 15)
    sources = [sequence(*ONCE, seed=1)]
    embeddings, truth = sequence(*ONCE, seed=2)
    found = propagate(*map(list, zip(*sources, strict=True)), embeddings)
    assert found.phases.shape == found.confidence.shape == truth.shape
    assert (found.phases == truth).mean() > 0.8


def test_without_a_labelled_frame() -> None:
    embeddings, _ = sequence(*ONCE, seed=1)
    with pytest.raises(ValueError, match="at least one labelled frame"):
        propagate([embeddings], [np.full(len(embeddings), -1)], embeddings)


def videos(count: int, split: str, noise: float) -> list[EmbeddedVideo]:
    found = []
    for k in range(count):
        embeddings, labels = sequence(*ONCE, seed=k + 100 * (split == "test"), noise=noise)
        other = np.random.default_rng(k).standard_normal(embeddings.shape)
        known = {"split": split, "label": "x", "fps": 25.0, "untrained": other}
        found.append(embedded(f"{split}/{k}", embeddings, frame_labels=labels.astype(np.int32), **known))
    return found


def test_the_task_in_an_evaluation() -> None:
    train, test = videos(4, "train", 0.8), videos(3, "test", 0.8)
    document = evaluate(train, test, ORIGIN, tasks=["propagation"])
    trained, chance = document["trained"], document["chance"]
    assert (
        trained["propagation_3"]["value"]
        >= trained["propagation_1"]["value"]
        > chance["propagation_1"]["value"]
    )
    assert trained["propagation_10"]["value"] is None
    assert trained["propagation_10"]["left_out"]["labelled_training_videos_too_few"] == 6
    assert document["metrics"]["propagation_1"]["title"] == "propagation, from 1 video (%)"
    again = evaluate(train, test, ORIGIN, tasks=["propagation"])
    assert again["trained"] == trained
    # With one video to draw, the mean over draws is what the function finds.
    one = TASK.run(Videos(train[:1], test))["propagation_1"].value
    found = [propagate([train[0].embeddings], [train[0].phases], v.embeddings).phases for v in test]
    right = [(phases == v.phases)[v.phases >= 0] for phases, v in zip(found, test, strict=True)]
    assert one == pytest.approx(np.concatenate(right).mean())
