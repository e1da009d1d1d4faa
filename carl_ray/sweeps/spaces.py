"""The built-in spaces: functions from the base config to a `Space`.

Every grid contains the base's value. Ranges and grids cover about those of the paper's tables 9 to 11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from carl_ray.config import Config
from carl_ray.errors import UserError
from carl_ray.options import overridden
from carl_ray.sweeps.paper_tables import TABLE_9, TABLE_10, Row, Table, frames_table
from carl_ray.sweeps.space import Choices, LogRange, Space, Value, field_value


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


def paper(base: Config) -> Space:
    """The rows of the paper's tables 9, 10 and 11."""
    frames = frames_table(base.model.num_frames)
    note = f"{frames.note} All rows have the same batch size, as in the paper; memory grows with T."
    tables = {"9": TABLE_9, "10": _crops_table(base), "11": replace(frames, note=note)}
    points = []
    for row in (row for table in tables.values() for row in table.rows):
        config = overridden(base, dict(row.options))
        points.append({name: field_value(config, name) for name in row.options})
    names = dict.fromkeys(name for point in points for name in point)
    parameters = {
        name: Choices(_with(field_value(base, name), *(point[name] for point in points if name in point)))
        for name in names
    }
    return Space("paper", parameters, points=tuple(points), tables=tables)


def all(base: Config) -> Space:
    """The parameters of `loss`, `temporal` and `frames` together."""
    parts = [temporal(base), frames(base)]
    others = {name: parameter for part in parts for name, parameter in part.parameters.items()}
    return Space("all", _loss_parameters(base) | others, frames_per_step=parts[-1].frames_per_step)


SPACES: dict[str, Callable[[Config], Space]] = {
    function.__name__: function for function in (loss, temporal, frames, paper, all)
}
"""The spaces by name."""


def _crops_table(base: Config) -> Table:
    """Table 10 with all three settings in each row, and a row for the base where the paper has none."""
    table = TABLE_10
    (reference,) = [row for row in table.rows if row.name == table.reference]
    papers = {"views.min_overlap": "0.2", "views.sampling": "random", **reference.options}
    rows = [replace(row, options=papers | dict(row.options)) for row in table.rows if row.options]
    views = base.views
    if not any(overridden(base, dict(row.options)).views == views for row in rows):
        name = (
            f"alpha {views.max_crop_ratio:g}, beta {100 * views.min_overlap:g} %, {views.sampling} (the base)"
        )
        rows.append(Row(name))
    return replace(table, rows=tuple(rows), note=table.note if base.preset == "demo" else "")


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
