"""Weakly supervised CARL: contrast of videos of one label, paired by DTW.

Source: Chen et al., "Self-supervised and Weakly Supervised Contrastive Learning for Frame-wise Action
Representations", which "builds more sample pairs among videos using video-level labels by dynamic time warping";
the loss is that of CARL (section 3.4, equations 1 and 2) with a pseudo-time in the place of the timestamp.

Legend: P pairs of videos (a, b), N frames of a, M frames of b, D width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from carl_ray.objectives.base import Batch, Encoding, Objective, ObjectiveOptions, Terms, crops, options
from carl_ray.objectives.pairs import FramePairs, video_pairs, view_pairs
from carl_ray.objectives.scl import gaussian_cross_entropy, sequence_contrastive_terms

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64
    from torch import Tensor


class WeakSequenceContrast(Objective):
    """SCL of the two crops, and of pairs of videos of one label that DTW aligns."""

    @options
    class Options(ObjectiveOptions):
        pairs_videos = True
        name: Literal["weak_scl"] = "weak_scl"
        temperature: float = Field(default=0.1, gt=0)
        """tau. Divides the similarities in every softmax over them."""
        variance: float = Field(default=10.0, gt=0)
        """sigma squared, in frames squared."""
        weak_weight: float = Field(default=1.0, ge=0)
        """Weight of the pairs of videos beside the pairs of views."""
        weak_warmup: float = Field(default=1.0, ge=0, le=1)
        """That weight grows linearly from 0 during this share of the run."""
        max_match_cost: float | None = Field(default=None, gt=0)
        """Frames whose partners in the other video are less alike than this cosine distance (0 to 2), on average, are
        no anchors; none leaves that to the alignment, which knows how alike the frames of the two videos are."""

    def __init__(self, options: Options, width: int, batch_norm: Any) -> None:
        super().__init__(options, width, batch_norm)
        from carl_ray.layers.heads import ProjectionHead

        self.projection = ProjectionHead(width, batch_norm)

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        encoding, view = crops(encodings, batch)
        options, projections = self.options, self.projection(encoding.frames, encoding.mask)
        loss = {"temperature": options.temperature, "variance": options.variance}
        sums, counts = sequence_contrastive_terms(view_pairs(projections, view), **loss)
        weak_sums, weak_counts = weak_contrastive_terms(
            *video_pairs(projections, batch), **loss, max_match_cost=options.max_match_cost
        )
        import torch

        weighted = self.weight(progress) * weak_sums
        return Terms(torch.cat([sums, weighted]), torch.cat([counts, weak_counts]))

    def weight(self, progress: float) -> float:
        """Weight of the pairs of videos: a linear warm-up."""
        warmup = self.options.weak_warmup
        return self.options.weak_weight * (min(1.0, progress / warmup) if warmup else 1.0)


class Partners(NamedTuple):
    """Pseudo-times and match costs of the frames of one video of each pair; no gradient."""

    time: Float64[Tensor, "P N"]
    """Pseudo-time of each frame in the other video: the mean timestamp of its partners; 0 where it has none."""
    cost: Float[Tensor, "P N"]
    """Mean cosine distance (0 to 2) of each frame from its partners; infinite where it has none."""


def correspondence(pairs: FramePairs) -> tuple[Partners, Partners]:
    """Partners of the frames of paired videos a and b, by DTW with open ends and the cosine distance.

    One path serves both directions, and frames before and after it have no partners: crops may share a part of
    the action, or nothing of it. Neither have frames on the path that differ more from their partners, on average, than
    a step at an end may cost. What masked frames hold does not matter. A pair whose embeddings are not all numbers has
    partners that mean nothing.

    Args:
        pairs: Unit vectors of the frames, float32 or better, finite where masked.
    """
    from carl_ray.objectives.dtw import open_ended_dtw, relative_gap

    unit_a, unit_b, sa, sb, mask_a, mask_b = (part.detach() for part in pairs)
    # Rounding must not make a detour through a negative cost worth while where frames are alike.
    cost = (1 - unit_a @ unit_b.mT).clamp(0, 2)
    gap = relative_gap(cost, mask_a, mask_b)
    cells = open_ended_dtw(cost, mask_a, mask_b, gap).cells

    def side(cells: Tensor, cost: Tensor, times: Tensor) -> Partners:
        partners = cells.sum(2)
        # Exact: timestamps may lie in the millions, and differences of single frames matter.
        time = (cells.double() @ times[:, :, None])[:, :, 0] / partners.clamp(min=1)
        mean = cost.where(cells, 0).sum(2) / partners.clamp(min=1).to(cost.dtype)
        none = ((partners == 0) | (mean > 2 * gap[:, None])) & ~gap.isnan()[:, None]
        return Partners(time.where(~none, 0), mean.masked_fill(none, math.inf))

    of_a = side(cells, cost, sb.double().where(mask_b, 0))
    return of_a, side(cells.mT, cost.mT, sa.double().where(mask_a, 0))


def weak_contrastive_terms(
    pairs: FramePairs,
    same_video: Bool[Tensor, " P"],
    *,
    temperature: float,
    variance: float,
    max_match_cost: float | None,
) -> Terms:
    """Sums of anchor losses and numbers of anchors, for each direction of the pairs.

    The loss of frame i of a is the cross-entropy of softmax_j(cos(za_i, zb_j) / tau) over the real frames j of
    b, with a Gaussian around the pseudo-time of i in b as its target, normalised over these frames; and the
    same with a and b exchanged. No gradient flows through the pseudo-times.

    A pair of two views of one video has true times, which stand in the place of the pseudo-times: such a pair gives
    the terms of `sequence_contrastive_terms` exactly.

    Frames without partners, because the other crop does not show that part of the action or shows sub-actions in
    another order, are no anchors; they stay candidates. To an encoder that has learnt nothing, partners are as like as
    other frames, and partners mean nothing: the weak term wants a warm-up.

    Frames that a mask leaves out are neither anchors nor candidates, whatever they hold. Computed in float32
    or better whatever the type of `z` or the autocast.

    Args:
        pairs: Embeddings or projections of pairs (a, b) of videos of the same label; normalised here.
        same_video: True for pairs of two views of one video.
        temperature: tau.
        variance: sigma squared, in frames squared.
        max_match_cost: Frames whose mean cosine distance from their partners (0 to 2) is larger are no anchors. None
            keeps all that have partners.

    Returns:
        Sums of losses, with gradient, and counts: first anchors of a, then of b.
    """
    import torch

    with torch.autocast(pairs.z1.device.type, enabled=False):
        pairs = pairs.unit()
        found, same = correspondence(pairs), same_video[:, None]
        limit = 2 if max_match_cost is None else max_match_cost  # no cosine distance is larger than 2
        loss = partial(gaussian_cross_entropy, temperature=temperature, variance=variance)
        of_a, of_b = (
            loss(
                *(side.z1, side.z2, _distances(time.where(~same, side.s1.double()), side.s2).to(pairs.dtype)),
                # A cost of NaN is not left out: the loss must show it.
                side.mask1 & (same | ~(cost > limit)),
                side.mask2,
            )
            for side, (time, cost) in zip((pairs, pairs.exchanged()), found, strict=True)
        )
    return Terms(torch.stack([of_a[0], of_b[0]]), torch.stack([of_a[1], of_b[1]]))


def _distances(anchors: Float64[Tensor, "P N"], candidates: Float[Tensor, "P M"]) -> Float64[Tensor, "P N M"]:
    return (anchors[:, :, None] - candidates.double()[:, None, :]).abs()
