"""`carl_ray.datasets.timeline`: phases and progress of random timings agree with each other."""

from __future__ import annotations

import numpy as np
import pytest

from carl_ray.data.randomness import sample_generator
from carl_ray.datasets.timeline import ACTIONS, Timeline, sample_timeline


@pytest.mark.parametrize("name", ACTIONS)
def test_timeline_is_consistent(name: str) -> None:
    num_phases = len(ACTIONS[name].phases)
    assert num_phases >= 4
    for video in range(50):
        timeline = sample_timeline(num_phases, sample_generator(0, 0, f"{name}-{video}", 0))
        labels, progress = timeline
        assert 60 <= len(labels) == len(progress) <= 160
        acting = np.flatnonzero(labels >= 0)
        assert np.array_equal(acting, np.arange(acting[0], acting[-1] + 1))
        assert np.all(progress[: acting[0]] == 0)
        assert np.all(progress[acting[-1] + 1 :] == 1)
        assert np.all(np.diff(progress[acting]) > 0)
        assert np.array_equal(np.floor(progress[acting] * num_phases), labels[acting])
        assert set(labels[acting]) == set(range(num_phases))


def _best_guess_from_position(timelines: list[Timeline]) -> float:
    """Accuracy of the most frequent phase of each tenth of a video."""
    places = [np.linspace(0, 1, len(timeline.frame_labels)) for timeline in timelines]
    tenths = np.concatenate([np.minimum((place * 10).astype(int), 9) for place in places])
    labels = np.concatenate([timeline.frame_labels for timeline in timelines])
    tenths, labels = tenths[labels >= 0], labels[labels >= 0]
    best = sum(np.bincount(labels[tenths == tenth]).max() for tenth in range(10) if (tenths == tenth).any())
    return float(best / len(labels))


def test_position_in_the_video_says_little_about_the_phase() -> None:
    timelines = [sample_timeline(4, sample_generator(0, 0, f"{number}", 0)) for number in range(200)]
    assert _best_guess_from_position(timelines) < 0.7
