"""What a sweep varies: parameters with their values and ranges, the points that are tried, and the built-in spaces.

Every grid of a built-in space contains the base's value. Ranges and grids cover about those of the paper's tables 9 to
11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from carl_ray import options
from carl_ray.config import Config
from carl_ray.errors import UserError

Value = float | int | str
Point = Mapping[str, Value]
"""Config values that differ from the base, by `section.field`."""

_BATCH_SIZE = "training.global_batch_size"
_NUM_FRAMES = "model.num_frames"


@dataclass(frozen=True)
class Choices:
    """A parameter with a few values."""

    grid: tuple[Value, ...]

    def draw(self, rng: np.random.Generator) -> Value:
        """One of the values, all equally likely."""
        return self.grid[int(rng.integers(len(self.grid)))]


@dataclass(frozen=True)
class LogRange:
    """A positive number with a log-uniform distribution."""

    low: float
    high: float
    grid: tuple[float, ...]
    """Its values in a grid."""

    def draw(self, rng: np.random.Generator) -> Value:
        """A number of the range with three significant digits."""
        return float(f"{math.exp(rng.uniform(math.log(self.low), math.log(self.high))):.3g}")


@dataclass(frozen=True)
class Space:
    """What one sweep varies."""

    name: str
    parameters: Mapping[str, Choices | LogRange]
    """By `section.field` of the config."""
    frames_per_step: int | None = None
    """Upper bound of the frames of a step: the batch size follows from T, so that memory stays constant."""

    @property
    def num_points(self) -> int | None:
        """How many points there are; none where a parameter is a range."""
        if any(isinstance(parameter, LogRange) for parameter in self.parameters.values()):
            return None
        return math.prod(len(parameter.grid) for parameter in self.parameters.values())

    def grid(self) -> list[Point]:
        """All points of the grid."""
        values = product(*(parameter.grid for parameter in self.parameters.values()))
        return [dict(zip(self.parameters, chosen, strict=True)) for chosen in values]

    def draws(self, seed: int, known: Point) -> Iterator[Point]:
        """Random points, each a function of the seed and its index, without repetitions and without `known`.

        Raises:
            UserError: no new point was found in a small space.
        """
        seen = {tuple(sorted(known.items()))}
        for place in range(2**63):
            for attempt in range(1000):
                rng = np.random.default_rng([seed, place, attempt])
                point = {name: parameter.draw(rng) for name, parameter in self.parameters.items()}
                key = tuple(sorted(point.items()))
                if key not in seen:
                    break
            else:
                raise UserError(
                    f"space {self.name}: no more than {len(seen)} different points were found; lower --num-trials, "
                    "or use --search grid"
                )
            seen.add(key)
            yield point


def default_point(space: Space, base: Config) -> Point:
    """The base config's values of the parameters of a space."""
    return {name: field_value(base, name) for name in space.parameters}


def changed_values(space: Space, base: Config, point: Point) -> dict[str, Value]:
    """The values in which a run of the point differs from the base config, with the batch size that follows from T.

    Raises:
        UserError: as `point_config`.
    """
    config = point_config(space, base, point, base.training.seed)
    values = {name: field_value(config, name) for name in sorted({*space.parameters, *point, _BATCH_SIZE})}
    return {name: value for name, value in values.items() if value != field_value(base, name)}


def field_value(config: Config, name: str) -> Value:
    """The value of a config's `section.field`."""
    section, _, field_name = name.partition(".")
    return getattr(getattr(config, section), field_name)


def point_config(space: Space, base: Config, point: Point, seed: int) -> Config:
    """The config of a point with a training seed.

    Raises:
        UserError: an unknown field, or a value out of its range.
    """
    config = options.overridden(base, {name: str(value) for name, value in point.items()})
    if space.frames_per_step is not None and _NUM_FRAMES in point and _BATCH_SIZE not in point:
        # Objectives on pairs need an even number of videos.
        unit = 2 if config.objective.pairs_videos else 1
        videos = space.frames_per_step // (2 * config.model.num_frames) // unit * unit
        config = options.overridden(config, {_BATCH_SIZE: str(max(unit, videos))})
    return replace(config, training=replace(config.training, seed=seed))


def loss(base: Config) -> Space:
    """Tau and sigma squared of the sequence contrastive loss (table 9), or what another objective has of them."""
    space = Space("loss", _loss_parameters(base))
    if not space.parameters:
        raise UserError(f"space loss: objective {base.objective.name} has neither temperature nor variance")
    return space


def temporal(base: Config) -> Space:
    """Crops and frame sampling of the views: alpha, beta, random or even (table 10)."""
    views = base.views
    return Space(
        "temporal",
        {
            "views.max_crop_ratio": Choices(_with(views.max_crop_ratio, 1.0, 1.5, 2.0, 3.0)),
            "views.min_overlap": Choices(_with(views.min_overlap, 0.0, 0.2, 0.5, 0.8, 1.0)),
            "views.sampling": Choices(("random", "even")),
        },
    )


def frames(base: Config) -> Space:
    """T, from a third to twice the base's (table 11), at constant memory: the batch size follows from T."""
    num_frames = base.model.num_frames
    return Space(
        "frames",
        {
            "model.num_frames": Choices(
                _with(num_frames, *(max(2, round(num_frames * ratio)) for ratio in (1 / 3, 2 / 3, 1.5, 2)))
            )
        },
        frames_per_step=2 * num_frames * base.training.global_batch_size,
    )


def all(base: Config) -> Space:
    """The parameters of `loss`, `temporal` and `frames` together."""
    parts = [temporal(base), frames(base)]
    others = {name: parameter for part in parts for name, parameter in part.parameters.items()}
    return Space("all", _loss_parameters(base) | others, frames_per_step=parts[-1].frames_per_step)


SPACES: dict[str, Callable[[Config], Space]] = {
    function.__name__: function for function in (loss, temporal, frames, all)
}
"""The spaces by name."""


def _loss_parameters(base: Config) -> dict[str, LogRange]:
    grids = {"temperature": (0.03, 0.1, 0.3, 1.0), "variance": (1.0, 10.0, 25.0, 100.0)}
    return {
        f"objective.{name}": _range(_with(getattr(base.objective, name), *grid))
        for name, grid in grids.items()
        if hasattr(base.objective, name)
    }


def _range(grid: tuple[float, ...]) -> LogRange:
    return LogRange(min(grid), max(grid), grid)


def _with(own: Value, *others: Value) -> tuple[Any, ...]:
    """The sorted values with the base's own."""
    return tuple(sorted({own, *others}, key=lambda value: (isinstance(value, str), value)))
