"""What `python tuning/sweep.py SPACE` varies: one function a space, from the base config to its parameters.

Every grid has the base's own value, so that a sweep always shows where it stands. Ranges and grids reach about
as far as the paper's tables 9 to 11.
"""

from __future__ import annotations

from collections.abc import Callable

from carl_ray.config import Config
from carl_ray.studies.tables import TABLES, frames_table
from carl_ray.sweeps.space import Choices, LogRange, Space


def loss(base: Config) -> Space:
    """Tau and sigma squared of the sequence contrastive loss (table 9)."""
    objective = base.objective
    return Space(
        "loss",
        {
            "objective.temperature": LogRange(0.03, 1.0, _with(objective.temperature, 0.03, 0.1, 0.3, 1.0)),
            "objective.variance": LogRange(1.0, 100.0, _with(objective.variance, 1.0, 10.0, 25.0, 100.0)),
        },
    )


def temporal(base: Config) -> Space:
    """How two crops are cut and sampled: alpha, beta, random or even (table 10)."""
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
    """T, from a third to twice the base's (table 11); the batch shrinks and grows so that memory does not."""
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


def paper(base: Config) -> Space:
    """The rows of the paper's tables 9, 10 and 11 themselves."""
    tables = {"9": TABLES["9"], "10": TABLES["10"], "11": frames_table(base.model.num_frames)}
    points = tuple(dict(row.options) for table in tables.values() for row in table.rows)
    names = dict.fromkeys(name for point in points for name in point)
    parameters = {
        name: Choices(tuple(dict.fromkeys(point[name] for point in points if name in point)))
        for name in names
    }
    return Space("paper", parameters, points=points, tables=tables)


def all(base: Config) -> Space:
    """Everything that `loss`, `temporal` and `frames` vary, together."""
    parts = [part(base) for part in (loss, temporal, frames)]
    return Space(
        "all",
        {name: parameter for part in parts for name, parameter in part.parameters.items()},
        frames_per_step=parts[-1].frames_per_step,
    )


SPACES: dict[str, Callable[[Config], Space]] = {
    function.__name__: function for function in (loss, temporal, frames, paper, all)
}
"""Every space by its name."""


def _with(own: float, *others: float) -> tuple[float, ...]:
    """The values with the base's own among them, in order."""
    return tuple(sorted({own, *others}))
