"""Heads on frame embeddings, and the real frames of padded batches.

Legend: B videos, T positions of the padded batch, N real frames of the whole batch, D width of an embedding.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from carl_ray.layers.normalization import BatchNorm, Mode


def real_frame_index(frame_mask: Bool[Tensor, "B T"]) -> Int[Tensor, " N"]:
    """Indices of the real frames into the flattened (B * T) frames, ascending."""
    return frame_mask.flatten().nonzero().squeeze(1)


def gather_real(padded: Tensor, index: Int[Tensor, " N"]) -> Tensor:
    """The real frames (N, ...) of a padded batch (B, T, ...), in the order of `index`."""
    flat = padded.flatten(0, 1)
    # The usual case of whole views needs no copy.
    # Not len(), which would fix the length in an exported graph.
    return flat if index.shape[0] == flat.shape[0] else flat.index_select(0, index)


def scatter_real(real: Tensor, index: Int[Tensor, " N"], batch: int, time: int) -> Tensor:
    """Padded batch (B, T, ...) of real frames (N, ...), with zeros elsewhere."""
    flat = real.new_zeros(batch * time, *real.shape[1:])
    return flat.index_copy(0, index, real).unflatten(0, (batch, time))


def real_cells(mask: Bool[Tensor, "*clips T"], cells: int) -> Bool[Tensor, "*clips t"]:
    """Which of the cells in time have at least half of their frames."""
    frames = mask.unflatten(-1, (cells, -1))
    return 2 * frames.sum(-1) >= frames.shape[-1]


def projection(width: int, hidden_width: int, projection_width: int, batch_norm: Mode) -> nn.Sequential:
    """A projection of vectors (N, width), for a contrastive loss: one hidden layer with batch norm."""
    return nn.Sequential(
        nn.Linear(width, hidden_width, bias=False),
        BatchNorm(hidden_width, batch_norm),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_width, projection_width),
    )


class ProjectionHead(nn.Module):
    """Projection Z of embeddings, for the loss (section 3.4).

    Args:
        width: D.
        batch_norm: Statistics of its batch norm.
    """

    def __init__(self, width: int, batch_norm: Mode) -> None:
        super().__init__()
        self.layers = projection(width, width, width, batch_norm)

    def forward(
        self, embeddings: Float[Tensor, "*views T D"], frame_mask: Bool[Tensor, "*views T"]
    ) -> Float[Tensor, "*views T D"]:
        """Projections of the real frames, float32 or better; zeros where the mask is False."""
        index, shape = real_frame_index(frame_mask), frame_mask.shape
        projected = self.layers(gather_real(embeddings.flatten(0, -3), index))
        projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
        return scatter_real(projected, index, math.prod(shape[:-1]), shape[-1]).unflatten(0, shape[:-1])
