"""`carl_ray.datasets.figure`: poses between key poses, and the frames that they give."""

from __future__ import annotations

import numpy as np
import pytest

from carl_ray.data.randomness import sample_generator
from carl_ray.datasets import figure
from carl_ray.datasets.figure import Difficulty
from carl_ray.datasets.timeline import ACTIONS


@pytest.mark.parametrize("name", ACTIONS)
def test_pose_is_a_smooth_function_of_progress_through_the_key_poses(name: str) -> None:
    key_poses = np.stack([pose.vector() for pose in ACTIONS[name].poses])
    last = len(key_poses) - 1
    for number, key_pose in enumerate(key_poses):
        np.testing.assert_allclose(figure.interpolate(key_poses, number / last), key_pose, atol=1e-9)
    steps = np.stack([figure.interpolate(key_poses, p) for p in np.linspace(0, 1, 1001)])
    assert np.abs(np.diff(steps, axis=0)).max() < 1.5
    assert np.abs(np.diff(steps, n=2, axis=0)).max() < 0.05


def _perform(
    name: str, progress: np.ndarray, seed: int, size: int = 48, difficulty: Difficulty = "easy"
) -> np.ndarray:
    action = ACTIONS[name]
    frames = figure.perform(
        action.poses,
        progress,
        has_bar=action.has_bar,
        size=size,
        frames_per_second=25,
        rng=sample_generator(seed, 0, "video", 0),
        difficulty=difficulty,
    )
    return np.stack([np.asarray(frame, dtype=float) for frame in frames])


@pytest.mark.parametrize("name", ACTIONS)
def test_neighbouring_frames_resemble_each_other_and_key_poses_differ(name: str) -> None:
    frames = _perform(name, np.linspace(0, 1, 61), seed=3)
    assert frames.shape == (61, 48, 48, 3)
    neighbours = np.abs(np.diff(frames, axis=0)).mean()
    key_frames = frames[:: 60 // len(ACTIONS[name].phases)]
    assert neighbours * 2 < np.abs(np.diff(key_frames, axis=0)).mean(axis=(1, 2, 3)).min()


def test_an_idle_figure_only_sways() -> None:
    idle = _perform("lift", np.zeros(20), seed=3)
    acting = _perform("lift", np.linspace(0, 1, 20), seed=3)
    moved = np.abs(np.diff(idle, axis=0)).mean()
    assert 0 < moved < np.abs(np.diff(acting, axis=0)).mean() / 2


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
def test_equal_progress_is_an_equal_picture_whatever_comes_before_and_after(difficulty: Difficulty) -> None:
    forth, back = np.linspace(0, 1, 11), np.linspace(1, 0, 11)
    for name in ACTIONS:
        first, second = (_perform(name, p, seed=2, difficulty=difficulty) for p in (forth, back))
        assert np.array_equal(first[5], second[5])
        assert not np.array_equal(first[4], second[4])


def test_bar_is_held_from_the_second_key_pose_on(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    monkeypatch.setattr(figure.Body, "draw", lambda body, brush, pose, has_bar, is_held: held.append(is_held))
    _perform("lift", np.array([0, 0.24, 0.25, 1]), seed=5)
    assert held == [False, False, True, True]


@pytest.mark.parametrize("name", ACTIONS)
def test_hard_figure_is_a_smaller_part_of_what_moves(name: str) -> None:
    acting, idle = np.linspace(0, 1, 30), np.zeros(30)

    def changes(difficulty: Difficulty) -> float:
        """How often as much happens in the picture when the figure acts as when it is idle."""
        return float(
            np.mean(
                [
                    np.abs(np.diff(_perform(name, acting, seed, difficulty=difficulty), axis=0)).mean()
                    / np.abs(np.diff(_perform(name, idle, seed, difficulty=difficulty), axis=0)).mean()
                    for seed in range(3)
                ]
            )
        )

    assert 1 < changes("hard") < changes("easy") / 3
