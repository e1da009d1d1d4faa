"""The actions of the choreographed videos, and the random timing of a performance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from carl_ray.datasets.figure import Movement, Pose, both_sides


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
    """Phase; -1 in frames of none: idle ones, and transitions to another pose."""
    movement: Movement
    """The pose. Its `progress`, (phase + part of it) / number of phases, is the truth: it names the pose.

    An idle figure rests in a key pose and has its progress. A figure in transition from one key pose to
    another has the progress of the nearer one.
    """
    repetition: Int32[np.ndarray, " frames"]
    """Number of the repetition, from 0; -1 in frames outside of all."""


_Part = tuple[int, Movement, int]
"""Consecutive frames with one phase and repetition: phase, poses, repetition."""


def sample_timeline(
    num_phases: int, rng: np.random.Generator, *, max_repetitions: int = 1, varying_order: bool = False
) -> Timeline:
    """Draw a random timing: 60 to 160 frames, and more with the options.

    Idle frames are many and uneven, phases differ in length, and the speed varies within each phase: the
    position of a frame in the video says little about its phase. If the next phase does not start in the
    pose that the figure is in, a transition of 6 to 12 frames leads to that pose.

    Args:
        num_phases: Of the action.
        rng: Source of all draws. What the options add comes from generators spawned from it: the first
            repetition has the same timing, and the draws after this call are the same, with and without them.
        max_repetitions: The action is done at most so often, with 0 to 24 idle frames in between.
        varying_order: The phases come in a random order, the same in each repetition. The figure is idle in
            the pose where the first of them starts, and in that where the last one ends.
    """
    for_repetitions, for_order = rng.spawn(2)
    order = for_order.permutation(num_phases) if varying_order else np.arange(num_phases)
    start, end = order[0] / num_phases, (order[-1] + 1) / num_phases
    num_frames = int(rng.integers(48, 89))
    idle_before, idle_after = rng.integers(0, 37, size=2).tolist()
    idle_after += max(0, 60 - num_frames - idle_before - idle_after)
    parts = [_rest(idle_before, start), *_repetition(0, order, num_frames, rng, for_order)]
    for number in range(1, for_repetitions.integers(1, max_repetitions + 1)):
        parts.append(_rest(int(for_repetitions.integers(0, 25)), end))
        parts.append((-1, _transition(int(for_repetitions.integers(6, 13)), end, start), -1))
        num_frames = int(for_repetitions.integers(48, 89))
        parts += _repetition(number, order, num_frames, for_repetitions, for_order)
    labels, movements, repetitions = zip(*parts, _rest(idle_after, end), strict=True)
    lengths = [len(movement.progress) for movement in movements]
    return Timeline(
        np.repeat(np.array(labels, np.int32), lengths),
        Movement(*map(np.concatenate, zip(*movements, strict=True))),
        np.repeat(np.array(repetitions, np.int32), lengths),
    )


def _repetition(
    number: int,
    order: Int64[np.ndarray, " phases"],
    num_frames: int,
    rng: np.random.Generator,
    for_order: np.random.Generator,
) -> list[_Part]:
    """The phases in their order, in `num_frames` frames, and the transitions needed between them."""
    num_phases = len(order)
    shares = np.exp(rng.uniform(-0.7, 0.7, num_phases))
    ends = np.round(np.cumsum(shares) / shares.sum() * num_frames).astype(int)
    parts: list[_Part] = []
    for place, (phase, length) in enumerate(zip(order, np.diff(ends, prepend=0), strict=True)):
        if place and order[place - 1] + 1 != phase:
            left, reached = (order[place - 1] + 1) / num_phases, phase / num_phases
            parts.append((-1, _transition(int(for_order.integers(6, 13)), left, reached), number))
        part = (np.arange(length) + 0.5) / length
        # Speed 1 + a cos(2 pi u) + b cos(4 pi u) stays positive because |a| + |b| < 1.
        a, b = rng.uniform(-0.55, 0.55), rng.uniform(-0.35, 0.35)
        part = part + a * np.sin(2 * np.pi * part) / (2 * np.pi) + b * np.sin(4 * np.pi * part) / (4 * np.pi)
        parts.append((phase, Movement.along((phase + part) / num_phases), number))
    return parts


def _rest(num_frames: int, progress: float) -> _Part:
    """Idle frames in one pose."""
    return -1, Movement.along(np.full(num_frames, progress)), -1


def _transition(num_frames: int, left: float, reached: float) -> Movement:
    """Frames from the pose of one progress to that of another; none if these are equal."""
    part = (np.arange(num_frames if left != reached else 0) + 0.5) / num_frames
    blend = part * part * (3 - 2 * part)
    is_first_half = blend < 0.5
    progress, other = np.where(is_first_half, left, reached), np.where(is_first_half, reached, left)
    return Movement(progress, other, np.where(is_first_half, blend, 1 - blend))
