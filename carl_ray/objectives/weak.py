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
    cost_of_a: Float[Tensor, "P N"]
    """Mean cosine distance (0 to 2) of each frame of a from its partners; 0 where it has none."""
    cost_of_b: Float[Tensor, "P M"]
    """Mean cosine distance of each frame of b from its partners, likewise."""


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
    cost = (1 - unit_a @ unit_b.mT).clamp(0, 2)
    path = dynamic_time_warping(cost, mask_a, mask_b)
    # Exact: timestamps may lie in the millions, and differences of single frames matter.
    cells = path.cells.double()
    time_b = sb.double().where(mask_b, 0)[:, :, None]
    time_a = sa.double().where(mask_a, 0)[:, :, None]
    partners_of_a, partners_of_b = cells.sum(2).clamp(min=1), cells.sum(1).clamp(min=1)
    on_path = cost.where(path.cells, 0)
    return Correspondence(
        time_of_a=(cells @ time_b)[:, :, 0] / partners_of_a,
        time_of_b=(cells.mT @ time_a)[:, :, 0] / partners_of_b,
        cost_of_a=on_path.sum(2) / partners_of_a.to(cost.dtype),
        cost_of_b=on_path.sum(1) / partners_of_b.to(cost.dtype),
    )


def weak_contrastive_terms(
    za: Float[Tensor, "P N D"],
    zb: Float[Tensor, "P M D"],
    sa: Float[Tensor, "P N"],
    sb: Float[Tensor, "P M"],
    mask_a: Bool[Tensor, "P N"],
    mask_b: Bool[Tensor, "P M"],
    same_video: Bool[Tensor, " P"],
    *,
    temperature: float,
    variance: float,
    max_match_cost: float | None,
) -> tuple[Float[Tensor, " 2"], Int[Tensor, " 2"]]:
    """For each direction of the pairs, the sum of the anchors' losses and the number of valid anchors.

    The loss of frame i of a is the cross-entropy of softmax_j(cos(za_i, zb_j) / tau) over the real frames j of
    b, with a Gaussian around the pseudo-time of i in b as its target, normalised over these frames; and the
    same with a and b exchanged. No gradient flows through the pseudo-times.

    A pair of two views of one video has true times, which stand in the place of the pseudo-times: such a pair gives
    the terms of `sequence_contrastive_terms` exactly.

    A path ties the ends of two crops together, whatever they show, and runs through frames that are not alike where
    that is the shorter way: with crops of which a third has no true partner, three of ten pseudo-times are off by more
    than a tenth of the action, and they are the ones whose partners are not like them. Such frames are no anchors
    (`max_match_cost`); they stay candidates. The same leaves out sub-actions that come in another order. It is no help
    to an encoder that has learnt nothing, to which all frames are alike: its weak term wants a warm-up.

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
        same_video: True for pairs of two views of one video.
        max_match_cost: Frames whose mean cosine distance from their partners (0 to 2) is larger are no anchors. None
            keeps all.

    Returns:
        Sums of losses, with gradient, and counts (int64): first anchors of a, then of b.
    """
    dtype = torch.promote_types(torch.promote_types(za.dtype, zb.dtype), torch.float32)
    with torch.autocast(za.device.type, enabled=False):
        unit_a = unit_vectors(za.to(dtype), mask_a)
        unit_b = unit_vectors(zb.to(dtype), mask_b)
        found = correspondence(unit_a, unit_b, sa, sb, mask_a, mask_b)
        same = same_video[:, None]
        in_b = (
            (sa.double().where(same, found.time_of_a)[:, :, None] - sb.double()[:, None, :]).abs().to(dtype)
        )
        in_a = (
            (sb.double().where(same, found.time_of_b)[:, :, None] - sa.double()[:, None, :]).abs().to(dtype)
        )
        anchors_a, anchors_b = mask_a, mask_b
        if max_match_cost is not None:
            # A cost of NaN is not left out: the loss must show it.
            anchors_a = mask_a & (same | ~(found.cost_of_a > max_match_cost))
            anchors_b = mask_b & (same | ~(found.cost_of_b > max_match_cost))
        loss = partial(gaussian_cross_entropy, temperature=temperature, variance=variance)
        of_a = loss(unit_a, unit_b, in_b, anchors_a, mask_b)
        of_b = loss(unit_b, unit_a, in_a, anchors_b, mask_a)
    return torch.stack([of_a[0], of_b[0]]), torch.stack([of_a[1], of_b[1]])
