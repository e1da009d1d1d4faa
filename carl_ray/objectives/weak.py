"""Weakly supervised CARL: sequence contrast between videos of the same label, paired by dynamic time warping.

Source: Chen et al., "Self-supervised and Weakly Supervised Contrastive Learning for Frame-wise Action
Representations", which "builds more sample pairs among videos using video-level labels by dynamic time warping";
the loss is that of CARL (section 3.4, equations 1 and 2) with a pseudo-time in the place of the timestamp.

Legend: P pairs of videos (a, b), N frames of a, M frames of b, D width of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from carl_ray.objectives.dtw import dynamic_time_warping
from carl_ray.objectives.scl import gaussian_cross_entropy, unit_vectors


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Where the frames of P pairs of videos are in the other video of their pair, without gradient."""

    time_of_a: Float64[Tensor, "P N"]
    """Pseudo-time of each frame of a in b: the mean timestamp of its partners; 0 where it has none."""
    time_of_b: Float64[Tensor, "P M"]
    """Pseudo-time of each frame of b in a, likewise."""
    path_cost: Float[Tensor, " P"]
    """Mean cosine distance (0 to 2) over the cells of the path; 0 in a pair in which a video has no real frame."""


@torch.no_grad()
def correspondence(
    unit_a: Float[Tensor, "P N D"],
    unit_b: Float[Tensor, "P M D"],
    sa: Float[Tensor, "P N"],
    sb: Float[Tensor, "P M"],
    mask_a: Bool[Tensor, "P N"],
    mask_b: Bool[Tensor, "P M"],
) -> Correspondence:
    """Partners of the frames of paired videos: dynamic time warping with the cosine distance as cost.

    One path serves both directions. Every real frame has at least one partner, the first frames of the two
    videos are partners, and so are the last. What masked frames hold does not matter.

    Args:
        unit_a: Unit vectors of the frames of the first videos, float32 or better; finite where masked.
        unit_b: Unit vectors of the second videos.
        sa: Timestamps of the first videos, in frames of the raw video.
        sb: Timestamps of the second videos.
        mask_a: True where a frame of a first video is real: the real frames come first.
        mask_b: True where a frame of a second video is real, likewise.
    """
    # Rounding must not make a detour through a negative cost worth while where frames are alike.
    path = dynamic_time_warping((1 - unit_a @ unit_b.mT).clamp(0, 2), mask_a, mask_b)
    # Exact: timestamps may lie in the millions, and differences of single frames matter.
    cells = path.cells.double()
    time_b = sb.double().where(mask_b, 0)[:, :, None]
    time_a = sa.double().where(mask_a, 0)[:, :, None]
    partners_of_a, partners_of_b = cells.sum(2), cells.sum(1)
    return Correspondence(
        time_of_a=(cells @ time_b)[:, :, 0] / partners_of_a.clamp(min=1),
        time_of_b=(cells.mT @ time_a)[:, :, 0] / partners_of_b.clamp(min=1),
        path_cost=path.cost / partners_of_a.sum(1).clamp(min=1).to(path.cost.dtype),
    )


def weak_contrastive_terms(
    za: Float[Tensor, "P N D"],
    zb: Float[Tensor, "P M D"],
    sa: Float[Tensor, "P N"],
    sb: Float[Tensor, "P M"],
    mask_a: Bool[Tensor, "P N"],
    mask_b: Bool[Tensor, "P M"],
    *,
    temperature: float,
    variance: float,
    max_path_cost: float | None,
) -> tuple[Float[Tensor, " 2"], Int[Tensor, " 2"]]:
    """For each direction of the pairs, the sum of the anchors' losses and the number of valid anchors.

    The loss of frame i of a is the cross-entropy of softmax_j(cos(za_i, zb_j) / tau) over the real frames j of
    b, with a Gaussian around the pseudo-time of i in b as its target, normalised over these frames; and the
    same with a and b exchanged. No gradient flows through the pseudo-times.

    The pair of a view with itself gives the terms of `sequence_contrastive_terms` exactly, as long as no two
    of its frames are alike. For two views of one video the pseudo-times are estimates of the timestamps, and
    the terms near those, where the views share more than about half of their frames: within the overlap they
    are timestamps of sampled frames, a sampling interval or so away; outside it the target is the nearest
    frame of the other view, as there; but the outermost frame of a view, partner of all that the other has
    beyond it, has its target in the middle of these. Where the views share less, the straight path through
    frames that are not alike is shorter than the way around to the true one, and so it is cheaper: the
    pseudo-times are wrong, which the path's cost shows.

    Frames that a mask leaves out are neither anchors nor candidates, whatever they hold. Computed in float32
    or better whatever the type of `z` or the autocast.

    Args:
        za: Embeddings or projections of the frames of the first videos; normalised here.
        zb: Those of the second videos, each of the same label as the first of its pair.
        sa: Timestamps of the first videos, in frames of the raw video.
        sb: Timestamps of the second videos.
        mask_a: True where a frame of a first video is real: the real frames come first.
        mask_b: True where a frame of a second video is real, likewise.
        temperature: tau.
        variance: sigma squared, in frames squared.
        max_path_cost: Pairs whose mean cosine distance along the path (0 to 2) is larger are left out: videos
            whose sub-actions come in another order, or crops that share too little, have no good path. None
            keeps all.

    Returns:
        Sums of losses, with gradient, and counts (int64): first anchors of a, then of b.
    """
    dtype = torch.promote_types(torch.promote_types(za.dtype, zb.dtype), torch.float32)
    with torch.autocast(za.device.type, enabled=False):
        unit_a = unit_vectors(za.to(dtype), mask_a)
        unit_b = unit_vectors(zb.to(dtype), mask_b)
        found = correspondence(unit_a, unit_b, sa, sb, mask_a, mask_b)
        if max_path_cost is not None:
            # A cost of NaN is not left out: the loss must show it.
            bad = (found.path_cost > max_path_cost)[:, None]
            mask_a, mask_b = mask_a & ~bad, mask_b & ~bad
        in_b = (found.time_of_a[:, :, None] - sb.double()[:, None, :]).abs().to(dtype)
        in_a = (found.time_of_b[:, :, None] - sa.double()[:, None, :]).abs().to(dtype)
        loss = partial(gaussian_cross_entropy, temperature=temperature, variance=variance)
        of_a = loss(unit_a, unit_b, in_b, mask_a, mask_b)
        of_b = loss(unit_b, unit_a, in_a, mask_b, mask_a)
    return torch.stack([of_a[0], of_b[0]]), torch.stack([of_a[1], of_b[1]])
