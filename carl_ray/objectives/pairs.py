"""Pairs of frame sequences, and functions that objectives share.

Legend: P pairs, N and M frames of their sequences, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from carl_ray.objectives.base import Batch, Terms, ViewTensors
from carl_ray.objectives.views import CROPS

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class FramePairs(NamedTuple):
    """Two frame sequences a pair: views of one video, or of two of the same label."""

    z1: Float[Tensor, "P N D"]
    """Embeddings or projections of the frames of the first sequences."""
    z2: Float[Tensor, "P M D"]
    """Those of the second sequences."""
    s1: Float[Tensor, "P N"]
    """Timestamps of the first sequences, in frames of the raw video."""
    s2: Float[Tensor, "P M"]
    """Timestamps of the second sequences."""
    mask1: Bool[Tensor, "P N"]
    """True where a frame of a first sequence is real: the real frames come first."""
    mask2: Bool[Tensor, "P M"]
    """True where a frame of a second sequence is real, likewise."""

    def exchanged(self) -> FramePairs:
        """The pairs with first and second sequences exchanged."""
        return FramePairs(self.z2, self.z1, self.s2, self.s1, self.mask2, self.mask1)

    def unit(self) -> FramePairs:
        """The pairs with unit vectors (`unit_vectors`) in float32 or better."""
        z1, z2 = (z.to(self.dtype) for z in (self.z1, self.z2))
        return self._replace(z1=unit_vectors(z1, self.mask1), z2=unit_vectors(z2, self.mask2))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the losses: float32 or better."""
        import torch

        return torch.promote_types(torch.promote_types(self.z1.dtype, self.z2.dtype), torch.float32)


def view_pairs(frames: Float[Tensor, "B 2 T D"], view: ViewTensors[Tensor]) -> FramePairs:
    """The two crops of each video."""
    (z1, z2), (s1, s2), (mask1, mask2) = (part.unbind(1) for part in (frames, view.timestamps, view.mask))
    return FramePairs(z1, z2, s1, s2, mask1, mask2)


def video_pairs(frames: Float[Tensor, "B 2 T D"], batch: Batch) -> tuple[FramePairs, Bool[Tensor, " P"]]:
    """Pairs of videos of the plan whose first video is this worker's; collective.

    The first crop of either video is paired with the second of the other, so each pair of videos gives two. A video
    whose partner could not be read has none; its rows are fully masked.

    Returns:
        The pairs, and True for those of a video with itself, whose label no other video has.
    """
    from carl_ray.objectives.gather import gather_rows

    view, rows, own_seeds = batch.views[CROPS], batch.rows, batch.seeds[CROPS]
    # Padding has row 0 here.
    others, timestamps, mask, numbers, seeds = gather_rows(
        frames, view.timestamps, view.mask, rows + 1, own_seeds
    )
    # Row 2 k + 1 is the partner of row 2 k.
    matches = (numbers[None, :] == rows[:, None] + 2) & (rows % 2 == 0)[:, None]
    found, place = matches.any(1), matches.int().argmax(1)
    same = found & (seeds[place] == own_seeds).all(1)

    def own(part: Tensor) -> Tensor:
        return part.transpose(0, 1).flatten(0, 1)

    def partner(part: Tensor) -> Tensor:
        return own(part[place].flip(1))

    real = found[:, None, None]
    pairs = FramePairs(
        *(own(frames), partner(others), own(view.timestamps), partner(timestamps)),
        *(own(view.mask & real), own(mask[place].flip(1) & real)),
    )
    return pairs, same.repeat(2)


def both_directions(
    direction: Callable[[FramePairs], tuple[Float[Tensor, ""], Int[Tensor, ""]]], pairs: FramePairs
) -> Terms:
    """Terms with the first sequences' frames as anchors, then the second sequences'."""
    import torch

    (sum1, count1), (sum2, count2) = direction(pairs), direction(pairs.exchanged())
    return Terms(torch.stack([sum1, sum2]), torch.stack([count1, count2]))


def rounding(a: Tensor, b: Tensor) -> Tensor:
    """Most that distances or ends of times a and b may differ by where they are equal on paper, far below a frame.

    Times are whole numbers times `frame_step`: what is computed of them is exact to some 1e-16 of their size.
    """
    return 1e-12 * (a.abs() + b.abs())


def unit_vectors(z: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """Frames scaled to length 1; zeros where the mask is False and for zero frames."""
    from torch.nn import functional

    return functional.normalize(z.where(mask[:, :, None], 0), dim=-1)


def excluded(real: Bool[Tensor, "*rows M"]) -> Bool[Tensor, "*rows M"]:
    """Candidates that a softmax leaves out; none in a row without a real candidate."""
    return ~real & real.any(-1, keepdim=True)
