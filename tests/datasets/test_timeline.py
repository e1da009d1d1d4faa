"""`carl_ray.datasets.timeline`: phases, repetitions and progress of random timings agree with each other."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from carl_ray.data.randomness import sample_generator
from carl_ray.datasets import figure
from carl_ray.datasets.timeline import ACTIONS, Timeline, sample_timeline


@pytest.mark.parametrize("name", ACTIONS)
def test_timeline_is_consistent(name: str) -> None:
    num_phases = len(ACTIONS[name].phases)
    assert num_phases >= 4
    for video in range(50):
        timeline = sample_timeline(num_phases, sample_generator(0, 0, f"{name}-{video}", 0))
        labels, progress = timeline.frame_labels, timeline.movement.progress
        assert 60 <= len(labels) == len(progress) <= 160
        acting = np.flatnonzero(labels >= 0)
        assert np.array_equal(acting, np.arange(acting[0], acting[-1] + 1))
        assert np.all(progress[: acting[0]] == 0)
        assert np.all(progress[acting[-1] + 1 :] == 1)
        assert np.all(np.diff(progress[acting]) > 0)
        assert np.array_equal(np.floor(progress[acting] * num_phases), labels[acting])
        assert set(labels[acting]) == set(range(num_phases))


def _timeline(number: int, num_phases: int = 4, **options: Any) -> Timeline:
    return sample_timeline(num_phases, sample_generator(0, 0, f"{number}", 0), **options)


def _runs(timeline: Timeline) -> list[tuple[int, int, int]]:
    """(label, repetition, frames) of each run of equal labels and repetitions."""
    frames = zip(timeline.frame_labels.tolist(), timeline.repetition.tolist(), strict=True)
    return [(label, number, len(list(run))) for (label, number), run in itertools.groupby(frames)]


def _best_guess_from_position(timelines: list[Timeline]) -> float:
    """Accuracy of the most frequent phase of each tenth of a video."""
    places = [np.linspace(0, 1, len(timeline.frame_labels)) for timeline in timelines]
    tenths = np.concatenate([np.minimum((place * 10).astype(int), 9) for place in places])
    labels = np.concatenate([timeline.frame_labels for timeline in timelines])
    tenths, labels = tenths[labels >= 0], labels[labels >= 0]
    best = sum(np.bincount(labels[tenths == tenth]).max() for tenth in range(10) if (tenths == tenth).any())
    return float(best / len(labels))


def test_position_in_the_video_says_little_about_the_phase_and_with_the_options_nothing() -> None:
    assert _best_guess_from_position([_timeline(i) for i in range(200)]) < 0.7
    assert _best_guess_from_position([_timeline(i, max_repetitions=3) for i in range(200)]) < 0.5
    options: dict[str, Any] = {"max_repetitions": 3, "varying_order": True}
    assert _best_guess_from_position([_timeline(i, **options) for i in range(400)]) < 0.32  # chance is 0.25


def test_repetitions_follow_the_same_first_one() -> None:
    numbers = set()
    for i in range(60):
        once, often = _timeline(i), _timeline(i, max_repetitions=3)
        end = int(np.flatnonzero(once.repetition == 0)[-1]) + 1
        for name in ("frame_labels", "repetition"):
            assert np.array_equal(getattr(often, name)[:end], getattr(once, name)[:end])
        assert np.array_equal(often.movement.progress[:end], once.movement.progress[:end])
        number = int(often.repetition.max()) + 1
        numbers.add(number)
        assert [run[:2] for run in _runs(often) if run[0] >= 0] == [
            (phase, repetition) for repetition in range(number) for phase in range(4)
        ]
        for repetition in range(number):
            inside = often.repetition == repetition
            assert np.all(often.frame_labels[inside] >= 0)
            assert np.all(np.diff(often.movement.progress[inside]) > 0)
        idle_after = len(once.frame_labels) - end
        assert np.all(often.movement.progress[len(often.frame_labels) - idle_after :] == 1)
    assert numbers == {1, 2, 3}


def test_varying_order_moves_whole_phases_and_nothing_else() -> None:
    orders = set()
    for i in range(200):
        usual, varied = _timeline(i), _timeline(i, varying_order=True)
        assert set(varied.repetition[varied.frame_labels >= 0]) == {0}
        phases = [run for run in _runs(varied) if run[0] >= 0]
        orders.add(tuple(run[0] for run in phases))
        assert [run[2] for run in phases] == [run[2] for run in _runs(usual) if run[0] >= 0]
        acting = np.flatnonzero(varied.repetition == 0)
        before, after = np.flatnonzero(usual.repetition == 0)[[0, -1]]
        assert acting[0] == before
        assert len(varied.repetition) - acting[-1] == len(usual.repetition) - after
        progress = varied.movement.progress
        assert np.all(progress[: acting[0]] == phases[0][0] / 4)
        assert np.all(progress[acting[-1] + 1 :] == (phases[-1][0] + 1) / 4)
        changes = [run[2] for run in _runs(varied) if run[:2] == (-1, 0)]
        assert len(changes) == sum(a[0] + 1 != b[0] for a, b in itertools.pairwise(phases))
        assert all(6 <= frames <= 12 for frames in changes)
    assert len(orders) == 24


@pytest.mark.parametrize("name", ACTIONS)
def test_progress_tells_the_pose_in_any_order_and_no_pose_jumps(name: str) -> None:
    key_poses = np.stack([pose.vector() for pose in ACTIONS[name].poses])
    num_phases = len(ACTIONS[name].phases)
    for i in range(30):
        timeline = _timeline(i, num_phases, max_repetitions=3, varying_order=True)
        labels, movement = timeline.frame_labels, timeline.movement
        poses = np.stack([movement.pose(key_poses, frame) for frame in range(len(labels))])
        here = np.stack([figure.interpolate(key_poses, p) for p in movement.progress.tolist()])
        there = np.stack([figure.interpolate(key_poses, p) for p in movement.other.tolist()])
        unblended = movement.blend == 0
        assert np.array_equal(poses[unblended], here[unblended])
        assert np.all(unblended[labels >= 0])
        assert np.array_equal(
            np.floor(movement.progress[labels >= 0] * num_phases + 1e-9), labels[labels >= 0]
        )
        # While changing over, progress is that of the nearer pose.
        assert np.all(movement.blend <= 0.5)
        assert np.all(np.linalg.norm(poses - here, axis=1) <= np.linalg.norm(poses - there, axis=1) + 1e-9)
        assert np.abs(np.diff(poses[:, :8], axis=0)).max() < 60  # degrees; without blending up to 150


def test_options_leave_the_draws_of_body_and_scene_alone() -> None:
    states = []
    for options in ({}, {"max_repetitions": 5}, {"varying_order": True}):
        rng = sample_generator(0, 0, "video", 0)
        sample_timeline(4, rng, **options)
        states.append(rng.random())
    assert len(set(states)) == 1
