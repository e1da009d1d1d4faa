"""What a sweep varies: parameters with their values and ranges, and the points that are tried."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from carl_ray import options
from carl_ray.config import Config
from carl_ray.errors import UserError
from carl_ray.sweeps.paper_tables import Table

Value = float | int | str
Point = Mapping[str, Value]
"""A value for each field that differs from the base config, by `section.field`."""

BATCH_SIZE = "training.global_batch_size"
"""The field that follows from T where a space has `frames_per_step`."""
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
    """A positive number, drawn uniformly in its logarithm."""

    low: float
    high: float
    grid: tuple[float, ...]
    """Its values in a grid."""

    def draw(self, rng: np.random.Generator) -> Value:
        """A number of the range, with three significant digits."""
        return float(f"{math.exp(rng.uniform(math.log(self.low), math.log(self.high))):.3g}")


@dataclass(frozen=True)
class Space:
    """What one sweep varies."""

    name: str
    parameters: Mapping[str, Choices | LogRange]
    """By `section.field` of the config."""
    points: tuple[Point, ...] = ()
    """The points of its grid, where that is not the product of the parameters' grids."""
    tables: Mapping[str, Table] = field(default_factory=dict)
    """Tables of the paper, by number, that its points are the rows of."""
    frames_per_step: int | None = None
    """Views of T frames are taken so many at a time that a step has at most this many frames: memory stays the same."""

    @property
    def num_points(self) -> int | None:
        """How many points there are; none where a parameter is a range."""
        if any(isinstance(parameter, LogRange) for parameter in self.parameters.values()):
            return None
        return math.prod(len(parameter.grid) for parameter in self.parameters.values())

    def grid(self) -> list[Point]:
        """All points of the grid, each once."""
        if self.points:
            return list({tuple(sorted(point.items())): point for point in self.points}.values())
        names = list(self.parameters)
        values = product(*(self.parameters[name].grid for name in names))
        return [dict(zip(names, chosen, strict=True)) for chosen in values]

    def draws(self, seed: int, known: Point) -> Iterator[Point]:
        """Random points without end, each a function of the seed and its place, none twice and none the known one.

        Raises:
            UserError: the space has so few points that no new one was found.
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
    """The base config's own values of the parameters of a space."""
    return {name: field_value(base, name) for name in space.parameters}


def changed_values(space: Space, base: Config, point: Point) -> dict[str, Value]:
    """What a run of the point has otherwise than the base config, by field in order of the names.

    Two ways to say the same point give the same; the batch that follows from T is among the values.

    Raises:
        UserError: as `point_config`.
    """
    config = point_config(space, base, point, base.training.seed)
    names = sorted({*space.parameters, *point, BATCH_SIZE})
    return {
        name: field_value(config, name)
        for name in names
        if field_value(config, name) != field_value(base, name)
    }


def field_value(config: Config, name: str) -> Value:
    """The value of a config's `section.field`."""
    section, _, field_name = name.partition(".")
    return getattr(getattr(config, section), field_name)


def point_config(space: Space, base: Config, point: Point, seed: int) -> Config:
    """The config of a point with a training seed.

    Raises:
        UserError: a field that the config does not have, or a value out of its range.
    """
    config = options.overridden(base, {name: str(value) for name, value in point.items()})
    if space.frames_per_step is not None and _NUM_FRAMES in point and BATCH_SIZE not in point:
        # Pairs of videos, where the objective wants them.
        unit = 2 if config.objective.paired else 1
        videos = space.frames_per_step // (2 * config.model.num_frames) // unit * unit
        config = options.overridden(config, {BATCH_SIZE: str(max(unit, videos))})
    return replace(config, training=replace(config.training, seed=seed))
