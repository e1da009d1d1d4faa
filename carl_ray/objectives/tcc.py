"""Temporal cycle-consistency of pairs of videos (Dwibedi et al., CVPR 2019).

A frame u_i of one video is sent to its soft nearest neighbour in the other, and this back to the first:

    v~_i = sum_j alpha_ij v_j,   alpha_i = softmax_j(-|u_i - v_j|^2 / (D temperature))
    beta_i = softmax_k(-|v~_i - u_k|^2 / (D temperature))

The loss is small where beta_i is concentrated at i.

Legend: P pairs, N and M frames of their videos, D width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from carl_ray.objectives.base import Batch, Encoding, Objective, ObjectiveOptions, Terms, crops, options
from carl_ray.objectives.pairs import FramePairs, both_directions, excluded, video_pairs

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

CycleLoss = Literal["regression", "classification"]


class CycleConsistency(Objective):
    """Temporal cycle-consistency of pairs of videos."""

    @options
    class Options(ObjectiveOptions):
        pairs_videos = True
        name: Literal["tcc"] = "tcc"
        temperature: float = Field(default=0.1, gt=0)
        """Divides the similarities in both softmaxes."""
        cycle: CycleLoss = "regression"
        """How cycling back is scored."""

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        pairs, _ = video_pairs(crops(encodings, batch)[0].frames, batch)
        return cycle_consistency_terms(pairs, loss=self.options.cycle, temperature=self.options.temperature)


def cycle_consistency_terms(
    pairs: FramePairs, *, loss: CycleLoss, temperature: float = 0.1, variance_weight: float = 0.001
) -> Terms:
    """Sums of the frames' losses and numbers of these frames, for each direction.

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
        pairs: Embeddings of pairs of videos, u and v; their timestamps are not used.
        loss: `regression` or `classification`.
        temperature: Of both softmaxes.
        variance_weight: lambda of the regression.

    Returns:
        Sums of losses, with gradient, and counts: first the frames of u, by way of v, then those of v.
        A frame counts where the other video has a real frame at all.
    """

    def direction(pairs: FramePairs) -> tuple[Tensor, Tensor]:
        u, v, mask_u, mask_v = pairs.z1, pairs.z2, pairs.mask1, pairs.mask2
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

    import torch

    with torch.autocast(pairs.z1.device.type, enabled=False):
        u, v = (
            z.to(pairs.dtype).where(mask[:, :, None], 0)
            for z, mask in ((pairs.z1, pairs.mask1), (pairs.z2, pairs.mask2))
        )
        return both_directions(direction, pairs._replace(z1=u, z2=v))


def _similarities(
    anchors: Float[Tensor, "P A D"],
    candidates: Float[Tensor, "P C D"],
    mask: Bool[Tensor, "P C"],
    temperature: float,
) -> Float[Tensor, "P A C"]:
    """Scaled negative squared distances up to a constant; -inf for masked candidates."""
    # The square of the anchor cancels in the softmax: without it, near frames keep more digits.
    products = 2 * anchors @ candidates.mT - candidates.square().sum(-1)[:, None]
    return (products / (anchors.shape[2] * temperature)).masked_fill(excluded(mask)[:, None], -math.inf)
