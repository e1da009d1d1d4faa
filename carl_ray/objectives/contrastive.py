"""The contrastive baseline of SCL: the corresponding frame of the other view alone is positive (table 13).

Legend: B videos of this worker, T frames of a view, D width of a projection.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from carl_ray.objectives.scl import unit_vectors, weighted_cross_entropy


def contrastive_terms(
    z1: Float[Tensor, "B T1 D"],
    z2: Float[Tensor, "B T2 D"],
    s1: Float[Tensor, "B T1"],
    s2: Float[Tensor, "B T2"],
    mask1: Bool[Tensor, "B T1"],
    mask2: Bool[Tensor, "B T2"],
    *,
    temperature: float,
) -> tuple[Float[Tensor, " 2"], Int64[Tensor, " 2"]]:
    """For each direction, the sum of the anchors' losses and the number of anchors (CARL, appendix A.4).

    The loss of frame i of one view is the softmax cross-entropy of equation 1 with the whole weight on its
    corresponding frame; every other frame of the other view of the same video is a negative:

        -log( exp(cos(z_i, z_c) / tau) / sum_k exp(cos(z_i, z_k) / tau) )

    The paper does not say which frame corresponds where the views hold no frame in common. Here it is the nearest in
    time, as in the index that the authors' code prepares for it, and equally near ones share the weight. Every real
    frame is an anchor, as in SCL, also one before the first or after the last frame of the other view: so this is the
    limit of SCL as its variance goes to 0, and the two differ in their targets alone. With the crops of section 3.2
    (T = 80 or 240, alpha = 1.5, beta = 0.2, videos much longer than T) 4 of 10 anchors lie outside the other view,
    their nearest frame 20 to 70 frames away at the median; for the other 6 it is at most 4 frames away.

    Frames that a mask leaves out are neither anchors nor candidates, whatever they hold. Computed
    in float32 or better whatever the type of `z` or the autocast.

    Args:
        z1: Projections of the frames of the first view; normalised here.
        z2: Projections of the second view.
        s1: Timestamps of the frames of the first view, in frames of the raw video.
        s2: Timestamps of the second view.
        mask1: True where a frame of the first view is real.
        mask2: True where a frame of the second view is real.
        temperature: tau.

    Returns:
        Sums of losses, with gradient, and counts: first anchors of view 1, then of view 2.
    """
    dtype = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
    with torch.autocast(z1.device.type, enabled=False):
        logits = unit_vectors(z1.to(dtype), mask1) @ unit_vectors(z2.to(dtype), mask2).mT / temperature
        distances = (s2.double()[:, None, :] - s1.double()[:, :, None]).abs()
        first = _direction(logits, distances, mask1, mask2)
        second = _direction(logits.mT, distances.mT, mask2, mask1)
    return torch.stack([first[0], second[0]]), torch.stack([first[1], second[1]])


def _direction(
    logits: Float[Tensor, "B Ta Tc"],
    distances: Float[Tensor, "B Ta Tc"],
    anchor_mask: Bool[Tensor, "B Ta"],
    candidate_mask: Bool[Tensor, "B Tc"],
) -> tuple[Float[Tensor, ""], Int64[Tensor, ""]]:
    """Sum of the losses of the anchors, and their number.

    `distances` is how far a candidate is from the anchor, in frames.
    """
    real = candidate_mask[:, None, :]
    valid = anchor_mask & real.any(-1)

    distances = distances.masked_fill(~real, torch.inf)
    nearest = (distances == distances.amin(-1, keepdim=True)) & real
    weights = nearest.to(logits.dtype) / nearest.sum(-1, keepdim=True).clamp(min=1)
    return weighted_cross_entropy(logits, weights, logits, real, valid), valid.sum()
