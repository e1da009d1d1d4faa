"""The actions of the choreographed videos, and the random timing of a performance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32

from carl_ray.datasets.figure import Pose, both_sides


@dataclass(frozen=True)
class Action:
    """Key poses and the phases between them: phase k leads from key pose k to key pose k + 1."""

    phases: tuple[str, ...]
    poses: tuple[Pose, ...]
    has_bar: bool = False
    """A bar lies on the floor until the first phase is over, and is in the hands from then on."""


_STAND = Pose()
_GUARD = both_sides(50, 110, hip=14, knee=-8)
_CHAMBER = replace(_GUARD, right_hip=85, right_knee=-105, lean=-6)
_KICK = replace(
    _CHAMBER, left_shoulder=60, left_elbow=60, right_shoulder=25, right_hip=105, right_knee=-5, lean=-22
)

ACTIONS: dict[str, Action] = {
    "lift": Action(
        ("reach down", "pull", "rack", "press"),
        (
            _STAND,
            both_sides(22, -8, hip=62, knee=-95, bow=0.45),
            both_sides(22, -8, hip=12, knee=-6),
            both_sides(42, 118, hip=26, knee=-34),
            both_sides(155, 18, hip=14, knee=-8),
        ),
        has_bar=True,
    ),
    "jump": Action(
        ("sink", "leap", "land", "rise"),
        (
            _STAND,
            both_sides(38, -25, hip=58, knee=-100, bow=0.25),
            both_sides(140, 8, hip=42, knee=-2, rise=0.17),
            both_sides(88, 0, hip=50, knee=-85, bow=0.1),
            both_sides(58, -112, hip=16, knee=-8),
        ),
    ),
    "kick": Action(
        ("guard", "chamber", "strike", "recoil", "settle"),
        (
            _STAND,
            _GUARD,
            _CHAMBER,
            _KICK,
            replace(_CHAMBER, right_hip=70),
            both_sides(30, 125, hip=30, knee=-18),
        ),
    ),
    "greet": Action(
        ("spread", "raise", "bow", "fold"),
        (
            _STAND,
            both_sides(92, 0),
            both_sides(168, 8, hip=3, knee=-1),
            both_sides(75, -20, hip=10, knee=-14, bow=0.62),
            both_sides(30, -125),
        ),
    ),
}


class Timeline(NamedTuple):
    """Truth of a video: values of each frame."""

    frame_labels: Int32[np.ndarray, " frames"]
    """Phase; -1 in idle frames."""
    progress: Float64[np.ndarray, " frames"]
    """(phase + part of it) / number of phases, which names the pose; 0 before the action and 1 after it."""


def sample_timeline(num_phases: int, rng: np.random.Generator) -> Timeline:
    """Draw a random timing: 60 to 160 frames.

    Idle frames are many and uneven, phases differ in length, and the speed varies within each phase: the
    position of a frame in the video says little about its phase.

    Args:
        num_phases: Of the action.
        rng: Source of all draws.
    """
    num_frames = int(rng.integers(48, 89))
    idle_before, idle_after = rng.integers(0, 37, size=2).tolist()
    idle_after += max(0, 60 - num_frames - idle_before - idle_after)
    shares = np.exp(rng.uniform(-0.7, 0.7, num_phases))
    ends = np.round(np.cumsum(shares) / shares.sum() * num_frames).astype(int)
    lengths = np.diff(ends, prepend=0)
    parts = [np.zeros(idle_before)]
    for phase, length in enumerate(lengths):
        part = (np.arange(length) + 0.5) / length
        # Speed 1 + a cos(2 pi u) + b cos(4 pi u) stays positive because |a| + |b| < 1.
        a, b = rng.uniform(-0.55, 0.55), rng.uniform(-0.35, 0.35)
        part = part + a * np.sin(2 * np.pi * part) / (2 * np.pi) + b * np.sin(4 * np.pi * part) / (4 * np.pi)
        parts.append((phase + part) / num_phases)
    labels = np.repeat([-1, *range(num_phases), -1], [idle_before, *lengths, idle_after])
    return Timeline(labels.astype(np.int32), np.concatenate([*parts, np.ones(idle_after)]))
