"""Repetitions: found in periodic embeddings of varying speed, and nowhere else; their errors against labels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from carl_ray.evaluation import repetitions
from carl_ray.evaluation.embeddings import EmbeddedVideo
from carl_ray.evaluation.protocol import evaluate
from carl_ray.evaluation.repetitions import (
    TASK,
    Repetition,
    autocorrelation_count,
    find_repetitions,
    labelled_starts,
)
from carl_ray.evaluation.task import Videos
from carl_ray.evaluation.warping import align_repetitions
from tests.embedded import embedded
from tests.evaluation.test_embeddings import ORIGIN

WIDTH = 32
CURVE = np.random.default_rng(3).standard_normal((6, WIDTH))


def cycles(
    lengths: list[int], *, idle: int = 0, noise: float = 0.3, seed: int = 0, pose: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of repetitions of so many frames, their starts with the end of the last, and the phase (0 to 1)."""
    phase = np.concatenate([np.full(idle, 0.0), *(np.arange(n) / n for n in lengths), np.full(idle, 0.0)])
    turn = 2 * np.pi * (phase + pose)
    curve = np.stack(
        [np.cos(turn), np.sin(turn), np.cos(2 * turn), np.sin(2 * turn), turn * 0, turn * 0 + 2], 1
    )
    rng = np.random.default_rng(seed)
    starts = idle + np.cumsum([0, *lengths])
    return curve @ CURVE + noise * rng.standard_normal((len(phase), WIDTH)), starts, phase


VARIED = [40, 55, 33, 70, 48, 62]


@pytest.mark.parametrize("idle", [0, 60])
@pytest.mark.parametrize("noise", [0.1, 1.0])
@pytest.mark.parametrize("lengths", [VARIED, [30] * 12, [20, 24, 30, 36, 45, 55, 66, 80], [90, 100]])
def test_all_repetitions_are_found(lengths: list[int], noise: float, idle: int) -> None:
    embeddings, starts, _ = cycles(lengths, idle=idle, noise=noise)
    found = find_repetitions(embeddings)
    # Without idle ends a cycle may be cut in another pose, and one less fits in.
    assert len(lengths) - (not idle) <= len(found) <= len(lengths)
    middles = [(one.start + one.end) / 2 for one in found]
    offset = np.mean([one.start for one in found]) - np.mean(starts[: len(found)])
    assert np.abs(np.array(middles) - offset - (starts[:-1] + starts[1:])[: len(found)] / 2).max() < 12
    assert all(one.confidence > 0.5 for one in found)
    assert all(one.end <= after.start for one, after in pairwise(found))
    if idle:
        assert found[0].start >= idle - 8 and found[-1].end <= starts[-1] + 8


NOISE = np.random.default_rng(5).standard_normal((300, 64))


@pytest.mark.parametrize(
    "embeddings",
    [
        NOISE,
        np.cumsum(NOISE, axis=0),
        np.linspace(-1, 1, 200)[:, None] * CURVE[0] + 0.1 * NOISE[:200, :WIDTH],
        np.ones((100, 8), np.float32) * 0.1,
        np.zeros((50, 4)),
        np.ones((1, 4)),
        np.full((9, 3), 1e30),
    ],
    ids=["noise", "walk", "line", "equal", "zeros", "one frame", "short and huge"],
)
def test_a_video_without_repetition_is_one_interval(embeddings: np.ndarray) -> None:
    (only,) = find_repetitions(embeddings)
    assert only[:2] == (0, len(embeddings)) and 0 <= only.confidence < 0.3
    assert autocorrelation_count(embeddings) >= 1


def test_one_cycle_is_one_interval() -> None:
    embeddings, starts, _ = cycles([80], idle=30, noise=0.1)
    (only,) = find_repetitions(embeddings)
    assert abs(only.start - starts[0]) < 15 and abs(only.end - starts[1]) < 15 and only.confidence > 0.5


def test_hostile_inputs() -> None:
    assert find_repetitions(np.zeros((0, 4))) == []
    for wrong in (np.full((20, 4), np.nan), np.zeros(20)):
        with pytest.raises(ValueError, match=r"finite|expected"):
            find_repetitions(wrong)


def test_scale_and_rotation_do_not_matter() -> None:
    embeddings, *_ = cycles(VARIED, idle=20)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))[0]
    found = find_repetitions(embeddings)
    for same in (embeddings * 1e30, embeddings * 1e-30, embeddings @ rotation):
        assert [one[:2] for one in find_repetitions(same)] == [one[:2] for one in found]


def test_the_chain_is_the_best_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repetitions, "_SHORTEST", 2)
    rng = np.random.default_rng(2)
    worth = rng.standard_normal((5, 9)).astype(np.float32)
    # Slow: every choice of an interval, or none, that ends at each frame.
    best = 0.0
    for chosen in product(*([0, *range(2, min(end, 4) + 1)] for end in range(9))):
        spans = [(end - lag, end) for end, lag in enumerate(chosen) if lag]
        if all(end <= start for (_, end), (start, _) in pairwise(spans)):
            best = max(best, sum(float(worth[end - start, start]) for start, end in spans))
    found = repetitions._best_chain(worth)
    assert sum(float(worth[end - start, start]) for start, end in found) == pytest.approx(best)
    assert all(end <= start for (_, end), (start, _) in pairwise(found))


def test_long_videos_have_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, *_ = cycles([30] * 20)
    monkeypatch.setattr(repetitions, "_MOST_CELLS", 50 * len(embeddings))
    assert 19 <= len(find_repetitions(embeddings)) <= 20
    monkeypatch.setattr(repetitions, "_MOST_CELLS", 20 * len(embeddings))
    assert max(one.end - one.start for one in find_repetitions(embeddings)) in (*range(21), len(embeddings))


def test_the_plain_count() -> None:
    turn = np.arange(240) * 2 * np.pi / 30
    assert autocorrelation_count(np.stack([np.cos(turn), np.sin(turn)], 1) + 0.1 * NOISE[:240, :2]) == 8


def test_starts_are_where_the_first_phase_begins_again() -> None:
    phases = np.array([-1, 2, 2, 0, 2, -1, 2, 0, 0, -1])
    starts, end = labelled_starts(phases)
    assert starts.tolist() == [1, 4, 6] and end == 9


def video(name: str, lengths: list[int], seed: int, **options: float) -> EmbeddedVideo:
    embeddings, starts, phase = cycles(lengths, idle=20, seed=seed, **options)
    labels = np.where(np.arange(len(phase)) < 20, -1, (phase * 3).astype(int)).astype(np.int32)
    labels[starts[-1] :] = -1
    chance = np.random.default_rng(seed).standard_normal(embeddings.shape)
    return embedded(name, embeddings, untrained=chance, frame_labels=labels, label="x", fps=25.0)


def test_errors_against_labels() -> None:
    test = [video(str(k), VARIED[k:], seed=k) for k in range(3)]
    document = evaluate([], test, ORIGIN, tasks=["repetitions"])
    trained, untrained = document["trained"], document["untrained"]
    assert trained["repetition_count_error"]["value"] == 0
    assert trained["repetition_start_error"]["value"] < 0.05
    assert untrained["repetition_count_error"]["value"] > 0.2
    assert untrained["repetition_start_error"]["value"] > 0.2
    unlabelled = replace(test[0], frame_labels=None)
    left = TASK.run(Videos([], [unlabelled, test[1]]))["repetition_count_error"]
    assert left.value == 0 and left.left_out == {"videos_without_labels": 1}


def test_start_errors_by_hand() -> None:
    starts = np.array([10, 30, 50])
    # Cuts in another pose are as good; a missing one costs half a repetition.
    for cuts in ([10, 30, 50, 70], [16, 36, 56, 76]):
        assert repetitions._start_error(cuts, starts, 70) == pytest.approx(0)
    assert repetitions._start_error([10, 30, 70], starts, 70) == pytest.approx(0.5 / 4, abs=0.13)
    assert repetitions._start_error([500], starts, 70) == 0.5
    off = repetitions._start_error([10, 32, 50, 70], starts, 70)
    assert 0.1 / 4 < off < 0.1


def test_repetitions_are_aligned_one_by_one() -> None:
    first, _, phase1 = cycles(VARIED, idle=15, seed=1, noise=0.2)
    # The other one is cut in another pose, has fewer repetitions, and no idle ends.
    second, _, phase2 = cycles([64, 38, 50, 44], seed=2, noise=0.2, pose=0.35)
    found = find_repetitions(first), find_repetitions(second)
    path = align_repetitions(first, second, found)
    difference = np.abs(phase1[path[:, 0]] - (phase2[path[:, 1]] + 0.35) % 1)
    assert np.median(np.minimum(difference, 1 - difference)) < 0.03
    assert (np.diff(path, axis=0) >= 0).all()
    assert path[0, 0] == found[0][0].start and path[-1, 1] < len(second)
    moved = align_repetitions(first, second, (found[0], [Repetition(len(second) - 1, len(second), 0.0)]))
    assert path.shape[1] == moved.shape[1] == 2
