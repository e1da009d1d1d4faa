"""Sequence contrastive loss between two views (section 3.4, equations 1 to 3).

Legend: B videos of this worker, T frames of a view, D width of a projection, M candidate frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from carl_ray.objectives.base import Batch, Encoding, Objective, ObjectiveOptions, Terms, crops, options
from carl_ray.objectives.pairs import FramePairs, both_directions, excluded, view_pairs

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Negatives = Literal["video", "batch", "global"]


class SequenceContrast(Objective):
    """Sequence contrastive loss of two crops (paper, section 3.4)."""

    @options
    class Options(ObjectiveOptions):
        name: Literal["scl"] = "scl"
        temperature: float = Field(default=0.1, gt=0)
        """tau. Divides the similarities in every softmax over them."""
        variance: float = Field(default=10.0, gt=0)
        """sigma squared of the Gaussian over time, in squared units of the timestamps: frames of the raw video (paper,
        section 4.2), unless the manifest's `frame_step` scales them."""
        negatives: Negatives = "video"
        """Candidates besides the other view: none, the worker's other videos, or the videos of all workers."""

    def __init__(self, options: Options, width: int, batch_norm: Any) -> None:
        super().__init__(options, width, batch_norm)
        from carl_ray.layers.heads import ProjectionHead

        self.projection = ProjectionHead(width, batch_norm)

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        encoding, view = crops(encodings, batch)
        return sequence_contrastive_terms(
            view_pairs(self.projection(encoding.frames, encoding.mask), view),
            temperature=self.options.temperature,
            variance=self.options.variance,
            negatives=self.options.negatives,
        )


def sequence_contrastive_loss(
    z1: Float[Tensor, "B T1 D"],
    z2: Float[Tensor, "B T2 D"],
    s1: Float[Tensor, "B T1"],
    s2: Float[Tensor, "B T2"],
    mask1: Bool[Tensor, "B T1"],
    mask2: Bool[Tensor, "B T2"],
    *,
    temperature: float = 0.1,
    variance: float = 10.0,
    negatives: Negatives = "video",
) -> Float[Tensor, ""]:
    """SCL = L1 + L2: each the mean over the valid anchors of the batch, 0 without any.

    Arguments are the fields of `FramePairs` and the options of `sequence_contrastive_terms`.
    """
    pairs = FramePairs(z1, z2, s1, s2, mask1, mask2)
    sums, counts = sequence_contrastive_terms(
        pairs, temperature=temperature, variance=variance, negatives=negatives
    )
    return (sums / counts.clamp(min=1)).sum()


def sequence_contrastive_terms(
    pairs: FramePairs, *, temperature: float = 0.1, variance: float = 10.0, negatives: Negatives = "video"
) -> Terms:
    """Sums of anchor losses (equation 1) and numbers of anchors, for each direction.

    Frames that a mask leaves out are neither anchors nor candidates, whatever they hold. Every other frame is an
    anchor, however far the nearest frame of the other view is, unless the other view of its video has no real frame.
    Computed in float32 or better whatever the type of the projections or the autocast.

    Args:
        pairs: Projections of the two views of each video; normalised here.
        temperature: tau of equation 1.
        variance: sigma squared of equation 2, in frames squared.
        negatives: Candidates: `video`, the other view of the same video; `batch`, the other views of all
            videos of this worker, with weight 0 outside the anchor's own; `global`, those of all workers
            (each calls this at the same time, with any number of videos, and gradients flow back to the
            worker that a candidate came from).

    Returns:
        Sums, with gradient, and counts: first anchors of view 1, then of view 2.
    """

    def direction(pairs: FramePairs) -> tuple[Tensor, Tensor]:
        distances = (pairs.s1.double()[:, :, None] - pairs.s2.double()[:, None, :]).abs().to(pairs.dtype)
        return gaussian_cross_entropy(
            *(pairs.z1, pairs.z2, distances, pairs.mask1, pairs.mask2),
            temperature=temperature,
            variance=variance,
            negatives=negatives,
        )

    import torch

    with torch.autocast(pairs.z1.device.type, enabled=False):
        return both_directions(direction, pairs.unit())


def gaussian_cross_entropy(
    anchors: Float[Tensor, "B Ta D"],
    candidates: Float[Tensor, "B Tc D"],
    distances: Float[Tensor, "B Ta Tc"],
    anchor_mask: Bool[Tensor, "B Ta"],
    candidate_mask: Bool[Tensor, "B Tc"],
    *,
    temperature: float,
    variance: float,
    negatives: Negatives = "video",
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum of -sum_j w_ij log softmax_j(cos / tau) over the anchors, and their number.

    Equations 1 and 2 of the paper. To be called outside of autocast, with float32 or better.

    Args:
        anchors: Unit vectors of the frames that are compared with candidates, finite throughout.
        candidates: Unit vectors of the frames to be recognised, one video for each of the anchors'.
        distances: Between anchors and candidates in time, in frames of the raw video; where a mask leaves
            out either, they may hold anything.
        anchor_mask: True where an anchor counts.
        candidate_mask: True where a candidate is real.
        temperature: tau.
        variance: sigma squared, in frames squared.
        negatives: As in `sequence_contrastive_terms`.

    Returns:
        The sum, with gradient, and the number of anchors that count and have a real candidate (int64).
    """
    valid = anchor_mask & candidate_mask.any(1, keepdim=True)
    weights = _target_weights(distances.where(valid[:, :, None], 0), candidate_mask, variance)
    own = anchors @ candidates.mT / temperature
    match negatives:
        case "video":
            logits, real = own, candidate_mask[:, None, :]
        case "batch":
            logits = anchors @ candidates.flatten(0, 1).T / temperature
            real = candidate_mask.flatten()
        case "global":
            from carl_ray.objectives.gather import gather_rows

            everyone, real = gather_rows(candidates.flatten(0, 1), candidate_mask.flatten())
            logits = anchors @ everyone.T / temperature
        case _:
            raise ValueError(f"negatives: expected video, batch or global, got {negatives!r}")
    normalizer = logits.masked_fill(excluded(real), -math.inf).logsumexp(-1)
    # The weights sum to 1: the cross-entropy with its logarithm resolved.
    losses = normalizer - (weights * own).sum(-1)
    return losses.where(valid, 0).sum(), valid.sum()


def _target_weights(
    distances: Float[Tensor, "B Ta Tc"], candidate_mask: Bool[Tensor, "B Tc"], variance: float
) -> Float[Tensor, "B Ta Tc"]:
    """Equation 2: weights w_ij, zero for masked candidates; each row sums to 1."""
    left_out = excluded(candidate_mask[:, None, :])
    # Relative to the nearest candidate, and as a product instead of a difference of squares: no row is 0/0,
    # none overflows, and float32 keeps the digits of distances in the thousands.
    nearest = distances.masked_fill(left_out, math.inf).amin(-1, keepdim=True)
    exponents = -(distances - nearest) * (distances + nearest) / (2 * variance)
    return exponents.masked_fill(left_out, -math.inf).log_softmax(-1).exp()
