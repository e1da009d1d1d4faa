"""`carl_ray.datasets.figure`: poses between key poses, and the frames that they give."""

from __future__ import annotations

import numpy as np
import pytest

from carl_ray.data.randomness import sample_generator
from carl_ray.datasets import figure
from carl_ray.datasets.choreography import ACTIONS


@pytest.mark.parametrize("name", ACTIONS)
def test_pose_is_a_smooth_function_of_progress_through_the_key_poses(name: str) -> None:
    key_poses = np.stack([pose.vector() for pose in ACTIONS[name].poses])
    last = len(key_poses) - 1
    for number, key_pose in enumerate(key_poses):
        np.testing.assert_allclose(figure.interpolate(key_poses, number / last), key_pose, atol=1e-9)
    steps = np.stack([figure.interpolate(key_poses, p) for p in np.linspace(0, 1, 1001)])
    assert np.abs(np.diff(steps, axis=0)).max() < 1.5
    assert np.abs(np.diff(steps, n=2, axis=0)).max() < 0.05


def _perform(name: str, progress: np.ndarray, seed: int, size: int = 48) -> np.ndarray:
    action = ACTIONS[name]
    frames = figure.perform(
        action.poses,
        progress,
        has_bar=action.has_bar,
        size=size,
        frames_per_second=25,
        rng=sample_generator(seed, 0, "video", 0),
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


def test_another_generator_gives_another_body_and_scene() -> None:
    progress = np.zeros(1)
    assert np.array_equal(_perform("jump", progress, seed=1), _perform("jump", progress, seed=1))
    assert np.abs(_perform("jump", progress, seed=1) - _perform("jump", progress, seed=2)).mean() > 10
