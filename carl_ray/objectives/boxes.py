"""Where the cells of a clip's map lie in its video, and how far two of them overlap.

Legend: R = t h w cells of a map (in time, down, across). A box is (x0, y0, t0, x1, y1, t1), half-open: x and y as parts
of the displayed frame, t in the units of the timestamps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from carl_ray.objectives.pairs import rounding

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from carl_ray.objectives.base import ViewTensors


class Overlap(NamedTuple):
    """Of the regions of one view with those of another."""

    iou: Float[Tensor, "*batch R Q"]
    """Volume of the intersection, as a part of that of the union."""
    coverage: Float[Tensor, "*batch R Q"]
    """The same as a part of the first region's volume."""
    in_space: Bool[Tensor, "*batch R Q"]
    """Whether they overlap in the frame, at whatever time."""
    in_time: Bool[Tensor, "*batch R Q"]
    """Whether they overlap in time, wherever."""


def cell_boxes(view: ViewTensors[Tensor], cells: tuple[int, int, int]) -> Float[Tensor, "*clips R 6"]:
    """Boxes of the cells of each clip's map in the source, float64, time outermost.

    This is the cell's nominal extent, not its receptive field: strided convolutions keep it centred where the stride
    divides the size of the clip.

    Args:
        view: Crops, flips and spans of the clips.
        cells: (t, h, w).
    """
    import torch

    edges = [torch.linspace(0, 1, n + 1, dtype=torch.float64, device=view.boxes.device) for n in cells]
    low, high = (
        torch.stack(torch.meshgrid(*ends, indexing="ij"), -1).flatten(0, 2)
        for ends in ([edge[:-1] for edge in edges], [edge[1:] for edge in edges])
    )
    low, high = (
        part.flip(-1).expand(*view.flips.shape, -1, -1) for part in (low, high)
    )  # across, down, time
    # A flip exchanges the two ends of an interval across.
    across = torch.tensor([True, False, False], device=low.device) & view.flips[..., None, None]
    low, high = torch.where(across, 1 - high, low), torch.where(across, 1 - low, high)
    corners = torch.cat([view.boxes.double(), view.spans.double()], -1)[..., None, :]
    begin, end = corners[..., [0, 1, 4]], corners[..., [2, 3, 5]]
    return torch.cat([begin + part * (end - begin) for part in (low, high)], -1)


def overlap(first: Float[Tensor, "*batch R 6"], second: Float[Tensor, "*batch Q 6"]) -> Overlap:
    """Overlaps of all pairs of boxes."""
    import torch

    a, b = first[..., :, None, :], second[..., None, :, :]
    sides = torch.minimum(a[..., 3:], b[..., 3:]) - torch.maximum(a[..., :3], b[..., :3])
    sides = sides.clamp(min=0)
    shared = sides.prod(-1)
    volumes = [(box[..., 3:] - box[..., :3]).prod(-1) for box in (a, b)]
    iou = shared / (volumes[0] + volumes[1] - shared).clamp(min=1e-12)
    in_space = (sides[..., :2] > 0).all(-1)
    in_time = sides[..., 2] > rounding(a[..., 5], b[..., 5])
    return Overlap(iou, shared / volumes[0].clamp(min=1e-12), in_space, in_time)


Measure = Literal["iou", "coverage"]
"""Names of the measures of `Overlap`."""
