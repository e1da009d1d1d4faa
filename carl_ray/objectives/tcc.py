"""Temporal cycle-consistency between pairs of videos of one action (Dwibedi et al., CVPR 2019).

A frame u_i of one video is sent to its soft nearest neighbour in the other, and this back to the first:

    v~_i = sum_j alpha_ij v_j,   alpha_i = softmax_j(-|u_i - v_j|^2 / (D temperature))
    beta_i = softmax_k(-|v~_i - u_k|^2 / (D temperature))

The loss asks that beta_i is at i. Legend: P pairs, N and M frames of their videos, D width of an embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CycleLoss = Literal["regression", "classification"]


def cycle_consistency_terms(
    u: Float[Tensor, "P N D"],
    v: Float[Tensor, "P M D"],
    mask_u: Bool[Tensor, "P N"],
    mask_v: Bool[Tensor, "P M"],
    *,
    loss: CycleLoss,
    temperature: float = 0.1,
    variance_weight: float = 0.001,
) -> tuple[Float[Tensor, " 2"], Int[Tensor, " 2"]]:
    """For each direction, the sum of the losses of its frames and the number of these frames.

    Cycle-back regression, the authors' default: with positions t_k = k / n of the n real frames,
    mu_i and sigma_i^2 the mean and variance of the positions under beta_i,

        L_i = (t_i - mu_i)^2 / sigma_i^2 + variance_weight * log(sigma_i).

    Cycle-back classification: L_i = -log beta_ii.

    The similarity (negative squared distance over D and the temperature, of embeddings that are *not*
    normalised) and the defaults are those of the authors' code. Differences to it: it penalises log(sigma^2),
    twice the paper's term; it smooths the classes of the classification by 0.1; its positions are frame
    numbers over the length of the video (the scale cancels in the first term, and adds a constant to the
    second). And it lets sigma go to 0, where its loss is not a number: here sigma^2 is at least 1 / (12 n^2),
    the variance within the time that one frame stands for.

    **A trivial solution.** The authors warn that an encoder that knows the position of a frame needs not look
    at it: embed position i of every video alike, and every frame cycles back perfectly. Our encoder's
    Transformer is given positions. Random crops and random sampling do not prevent this, for the loss knows
    positions within the view alone; nor does it show in the loss, which goes down all the same. So a falling
    loss means nothing here: judge such a run by measures that counting frames cannot win (alignment error on
    videos with idle time at their ends), beside the control of positions alone, or train it on an encoder
    without positions (no temporal encoder, or convolutions).

    Frames that a mask leaves out are neither anchors nor candidates, whatever they hold; those in between are
    skipped in the positions. Computed in float32 or better whatever the type of the embeddings or the
    autocast.

    Args:
        u: Embeddings of the first videos.
        v: Embeddings of the second videos.
        mask_u: True where a frame of the first video is real.
        mask_v: True where a frame of the second video is real.
        loss: `regression` or `classification`.
        temperature: Of both softmaxes.
        variance_weight: lambda of the regression.

    Returns:
        Sums of losses, with gradient, and counts (int64): first the frames of u, by way of v, then those of v.
        A frame counts where the other video has a real frame at all.
    """
    dtype = torch.promote_types(torch.promote_types(u.dtype, v.dtype), torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        clean_u = u.to(dtype).where(mask_u[:, :, None], 0)
        clean_v = v.to(dtype).where(mask_v[:, :, None], 0)
        first = _direction(clean_u, clean_v, mask_u, mask_v, loss, temperature, variance_weight)
        second = _direction(clean_v, clean_u, mask_v, mask_u, loss, temperature, variance_weight)
    return torch.stack([first[0], second[0]]), torch.stack([first[1], second[1]])


def _direction(
    u: Float[Tensor, "P N D"],
    v: Float[Tensor, "P M D"],
    mask_u: Bool[Tensor, "P N"],
    mask_v: Bool[Tensor, "P M"],
    loss: CycleLoss,
    temperature: float,
    variance_weight: float,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum of the losses of the frames of u, and their number."""
    neighbours = _similarities(u, v, mask_v, temperature).softmax(-1) @ v
    log_beta = _similarities(neighbours, u, mask_u, temperature).log_softmax(-1)
    match loss:
        case "classification":
            losses = -log_beta.diagonal(dim1=1, dim2=2)
        case "regression":
            length = mask_u.sum(1, keepdim=True).clamp(min=1).to(u.dtype)
            position = (mask_u.cumsum(1) - 1) / length
            beta = log_beta.exp()
            mean = (beta * position[:, None]).sum(-1)
            variance = (beta * (position[:, None] - mean[:, :, None]).square()).sum(-1)
            variance = variance.maximum(1 / (12 * length.square()))
            losses = (position - mean).square() / variance + variance_weight / 2 * variance.log()
        case _:
            raise ValueError(f"loss: expected regression or classification, got {loss!r}")
    valid = mask_u & mask_v.any(1, keepdim=True)
    return losses.where(valid, 0).sum(), valid.sum()


def _similarities(
    anchors: Float[Tensor, "P A D"],
    candidates: Float[Tensor, "P C D"],
    mask: Bool[Tensor, "P C"],
    temperature: float,
) -> Float[Tensor, "P A C"]:
    """Scaled negative squared distances, up to what is the same for all candidates; -inf for masked ones."""
    # The square of the anchor cancels in the softmax: without it, near frames keep more digits.
    products = 2 * anchors @ candidates.mT - candidates.square().sum(-1)[:, None]
    # A row without candidates belongs to no valid anchor, but must not become NaN on the way back.
    excluded = ~mask & mask.any(1, keepdim=True)
    return (products / (anchors.shape[2] * temperature)).masked_fill(excluded[:, None], -torch.inf)
