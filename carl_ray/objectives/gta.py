"""Global temporal alignment and cycle-consistency (Hadji et al., CVPR 2021).

Legend: P pairs of videos of one action, N and M frames of their videos, D width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from carl_ray.objectives.base import Batch, Encoding, Objective, ObjectiveOptions, Terms, crops, options
from carl_ray.objectives.lav import REFERENCE_FRAMES
from carl_ray.objectives.pairs import FramePairs, excluded, video_pairs

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class GlobalAlignment(Objective):
    """Global temporal alignment and cycle-consistency of pairs of videos."""

    @options
    class Options(ObjectiveOptions):
        pairs_videos = True
        name: Literal["gta"] = "gta"
        temperature: float = Field(default=0.1, gt=0)
        """Divides the similarities of the matches."""
        smoothing: float = Field(default=0.1, gt=0)
        """gamma of the soft minimum of dynamic time warping."""
        cycle_weight: float = Field(default=0.5, ge=0)
        """Weight of the cycles beside the two alignments, as of views of 20 frames."""

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        pairs, _ = video_pairs(crops(encodings, batch)[0].frames, batch)
        return gta_terms(
            pairs,
            temperature=self.options.temperature,
            smoothing=self.options.smoothing,
            cycle_weight=self.options.cycle_weight,
        )


def gta_terms(
    pairs: FramePairs, *, temperature: float = 0.1, smoothing: float = 0.1, cycle_weight: float = 0.5
) -> Terms:
    """Sums and numbers of frames of two alignments and of the cycles.

    With the cosines of the frames over the temperature as logits, a frame v_j is matched with the frames of u
    by probability, and the cost of a match is its negative logarithm (the paper's equation 8):

        cost_ij = -log softmax_i(cos(u_i, v_j) / temperature).

    So the frames of u compete with each other; the alignment with u and v exchanged is another one.
    smoothDTW(u, v) is the last entry of the table r that these costs accumulate to with the `expected` minimum
    (see `soft_dtw.accumulated_costs`). Along the table, v_j is globally matched with u_i with probability
    A_ij = softmax_i(-r_ij); with B_jk the same of the exchanged alignment, (A B)_ik is the probability that
    u_k, sent to v and back, comes to u_i. This product is compared with the identity:

        smoothDTW(u, v) + smoothDTW(v, u) + cycle_weight * cross-entropy of the cycles.

    So the paper (its figure 2) and the authors' code. What they leave open, and what we do otherwise:

    - Alignments here are per frame, or long videos would drown short ones and the cycles: two videos of n
      frames have smoothDTW / n; of n and m frames, 2 smoothDTW and n + m frames. The authors' code does not
      divide; it adds 0.1 of each alignment, of 20 frames a video, to the cycles. At that length this is
      cycle_weight = 0.5, up to a factor of the whole.
    - The authors' code takes the cycles of the first video alone, we take both videos', so that the order of
      a pair means nothing: (B A)_jl needs no other tables.
    - The cross-entropy is -log (A B)_kk, for A B is a probability already. The authors' code puts it through
      another softmax, with labels smoothed by 0.1: its loss moves by one at most, and has hardly a gradient
      where frames are far from coming back. Ours has one, and weighs about seven times as much at 20 frames.
    - r accumulates, and with it the loss of the cycles of unaligned videos grows with the square of their length: at
      240 frames it would be all there is. So the cycles of videos of n and m frames are multiplied by 400 / (n m).

    As for all losses on pairs alone, an encoder that knows the position of a frame can lower this one without
    looking at it; `tcc.cycle_consistency_terms` says more.

    Frames that a mask leaves out have no influence, whatever they hold. Computed in float32 or better
    whatever the type of the embeddings or the autocast.

    Args:
        pairs: Embeddings of pairs of videos, u and v; normalised here. Their timestamps are not used.
        temperature: Of the matches.
        smoothing: gamma of the minimum, in nats.
        cycle_weight: Weight of the cycles beside the two alignments, as of views of 20 frames.

    Returns:
        Sums, with gradient, and counts: smoothDTW(u, v), smoothDTW(v, u), cycles. The frames are
        those of both videos, in each of the three. A pair of which one video has no real frame does not count.

    Raises:
        ValueError: `smoothing` is not positive.
    """
    import torch

    from carl_ray.objectives.soft_dtw import accumulated_costs, path_costs

    with torch.autocast(pairs.z1.device.type, enabled=False):
        u, v, _, _, mask_u, mask_v = pairs.unit()
        logits = u @ v.mT / temperature
        # The recursion treats both videos alike: both directions run as one batch, in the layout of the first.
        costs = torch.cat([-_log_softmax(logits, mask_u), -_log_softmax(logits.mT, mask_v).mT])
        twice_u, twice_v = mask_u.repeat(2, 1), mask_v.repeat(2, 1)
        tables = accumulated_costs(costs, twice_u, twice_v, smoothing=smoothing, minimum="expected")
        alignment_u, alignment_v = path_costs(tables, twice_u, twice_v).chunk(2)
        table_u, table_v = tables.chunk(2)
        # Of "v_j is sent to u_i" and "u_i is sent to v_j": summed over the way it is a cycle from either video.
        joint = _log_softmax(-table_u, mask_u) + _log_softmax(-table_v.mT, mask_v).mT
        # No sum of padded cells alone may be of -inf: its gradient would be NaN.
        joint = joint.where(mask_u[:, :, None] & mask_v[:, None], 0)
        back_u = joint.masked_fill(excluded(mask_v)[:, None], -math.inf).logsumexp(2)
        back_v = joint.masked_fill(excluded(mask_u)[:, :, None], -math.inf).logsumexp(1)
    paired = mask_u.any(1, keepdim=True) & mask_v.any(1, keepdim=True)
    cycles = -back_u.where(mask_u & paired, 0).sum(1) - back_v.where(mask_v & paired, 0).sum(1)
    lengths = (mask_u.sum(1) * mask_v.sum(1)).clamp(min=1)
    cycle = (cycles * REFERENCE_FRAMES**2 / lengths).sum()
    frames = (paired * (mask_u.sum(1, keepdim=True) + mask_v.sum(1, keepdim=True))).sum()
    sums = torch.stack([2 * alignment_u.sum(), 2 * alignment_v.sum(), cycle_weight * cycle])
    return Terms(sums, torch.stack([frames, frames, frames]))


def _log_softmax(scores: Float[Tensor, "P A B"], mask: Bool[Tensor, "P A"]) -> Float[Tensor, "P A B"]:
    """Log-probabilities of the first axis' real frames, for each of the second axis."""
    return scores.masked_fill(excluded(mask)[:, :, None], -math.inf).log_softmax(1)
