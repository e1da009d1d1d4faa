"""Pairs of frame sequences, and functions that objectives share.

Legend: P pairs, N and M frames of their sequences, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

Terms = tuple[Float[Tensor, " terms"], Int[Tensor, " terms"]]
"""Of each term of a loss: the sum over this worker's anchors, with gradient, and their number (int64)."""


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
        return torch.promote_types(torch.promote_types(self.z1.dtype, self.z2.dtype), torch.float32)


def both_directions(
    direction: Callable[[FramePairs], tuple[Float[Tensor, ""], Int[Tensor, ""]]], pairs: FramePairs
) -> Terms:
    """Terms with the first sequences' frames as anchors, then the second sequences'."""
    (sum1, count1), (sum2, count2) = direction(pairs), direction(pairs.exchanged())
    return torch.stack([sum1, sum2]), torch.stack([count1, count2])


def unit_vectors(z: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """Frames scaled to length 1; zeros where the mask is False and for zero frames."""
    return functional.normalize(z.where(mask[:, :, None], 0), dim=-1)


def excluded(real: Bool[Tensor, "*rows M"]) -> Bool[Tensor, "*rows M"]:
    """Candidates that a softmax leaves out; none in a row without a real candidate."""
    return ~real & real.any(-1, keepdim=True)
