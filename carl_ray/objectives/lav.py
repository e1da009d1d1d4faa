"""Learning by aligning videos: soft-DTW, regulariser (Haresh et al., CVPR 2021).

Legend: P pairs of videos of one action, N and M frames of their videos, D width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from carl_ray.objectives.base import Batch, Encoding, Objective, ObjectiveOptions, Terms, crops, options
from carl_ray.objectives.pairs import FramePairs, rounding, video_pairs

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

REFERENCE_FRAMES = 20
"""Frames of a view in the authors' settings, which weights are named for (also GTA's)."""


class AlignVideos(Objective):
    """Learning by aligning videos: soft-DTW of pairs of videos and a regulariser."""

    @options
    class Options(ObjectiveOptions):
        pairs_videos = True
        name: Literal["lav"] = "lav"
        smoothing: float = Field(default=0.1, gt=0)
        """gamma of the soft minimum of dynamic time warping."""
        regularization: float = Field(default=1.0, ge=0)
        """Weight of the regulariser beside the alignment, as of views of 20 frames."""

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        pairs, _ = video_pairs(crops(encodings, batch)[0].frames, batch)
        smoothing, regularization = self.options.smoothing, self.options.regularization
        return lav_terms(pairs, smoothing=smoothing, regularization=regularization)


def lav_terms(
    pairs: FramePairs,
    *,
    smoothing: float = 0.1,
    regularization: float = 1.0,
    margin: float = 2.0,
    window: float = 15.0,
) -> Terms:
    """Sums and numbers of frames of the alignment and of the two regularisers.

    The paper's loss of a pair is softDTW(u, v) + regularization * (C(u) + C(v)), with squared Euclidean
    distances d of unit embeddings, and with the contrastive inverse difference moment of a video

        C(x) = sum_ij  (1 + t_ij^2) max(0, margin - d(x_i, x_j))   where frames i and j are far apart,
                       d(x_i, x_j) / (1 + t_ij^2)                  where they are at most `window` apart:

    frames near in time are drawn together, the others pushed apart, or all frames of all videos would end in
    one point. As in the authors' code the loss is per frame. Two videos of n frames each have
    softDTW / n and C / n; of n and m frames, the alignment has 2 softDTW and n + m frames.

    What "far apart" and t_ij are: the paper writes positions i - j, the authors' code takes times. We take
    times, for our frames are sampled at random: positions would call frames near that are not. The window is
    in frames of the raw video; t_ij is the time between the frames over the time between the first and the
    last real frame of the view (the authors: over the length of the video), in [0, 1]. With differences in
    frames instead, squares up to 10^5 would leave nothing of the alignment. The authors' code has weight 1
    where ours, after the paper, divides by 1 + t_ij^2: nearly the same within a short window. Its published
    configuration has window 10 and regularization 0.5.

    C sums over the square of the frames and soft-DTW over a path: at n frames a view the regulariser would weigh
    n / 20 times what it weighs at the authors' 20 frames, and at 240 be all there is. So C is multiplied by 20 / n.

    Frames that a mask leaves out have no influence, whatever they hold. Computed in float32 or better
    whatever the type of the embeddings or the autocast.

    Args:
        pairs: Embeddings of pairs of videos, u and v; normalised here.
        smoothing: gamma of soft-DTW, in squared distances.
        regularization: alpha, the weight of the regulariser, as of views of 20 frames.
        margin: lambda: squared distance beyond which frames far apart in time are left alone. 2 means a
            cosine of 0.
        window: sigma: frames at most so far apart, in frames of the raw video, are drawn together.

    Returns:
        Sums, with gradient, and counts. A pair of which one video has no real frame has no alignment;
        the other video still has its regulariser.

    Raises:
        ValueError: `smoothing` is not positive.
    """
    import torch

    from carl_ray.objectives.soft_dtw import soft_dtw

    with torch.autocast(pairs.z1.device.type, enabled=False):
        u, v, s_u, s_v, mask_u, mask_v = pairs.unit()
        alignment = 2 * soft_dtw(_squared_distances(u, v), mask_u, mask_v, smoothing=smoothing).sum()
        contrast_u = _contrast(u, s_u, mask_u, margin, window)
        contrast_v = _contrast(v, s_v, mask_v, margin, window)
    paired = mask_u.any(1) & mask_v.any(1)
    frames = ((mask_u.sum(1) + mask_v.sum(1)) * paired).sum()
    sums = torch.stack([alignment, regularization * contrast_u, regularization * contrast_v])
    return Terms(sums, torch.stack([frames, mask_u.sum(), mask_v.sum()]))


def _contrast(
    unit: Float[Tensor, "P N D"],
    s: Float[Tensor, "P N"],
    mask: Bool[Tensor, "P N"],
    margin: float,
    window: float,
) -> Float[Tensor, ""]:
    """Contrastive inverse difference moment, as of 20 frames, summed over the videos."""
    import torch

    earliest = s.double().masked_fill(~mask, math.inf).amin(1, keepdim=True)
    since = (s.double() - earliest).where(mask, 0)
    elapsed = (since[:, :, None] - since[:, None, :]).abs()
    far = elapsed > window + rounding(s.double()[:, :, None], s.double()[:, None, :])
    elapsed, span = elapsed.to(unit.dtype), since.amax(1)[:, None, None].to(unit.dtype)
    weights = 1 + (elapsed / span.where(span > 0, 1)).square()
    distances = _squared_distances(unit, unit)
    moments = torch.where(far, weights * (margin - distances).relu(), distances / weights)
    per_video = moments.where(mask[:, :, None] & mask[:, None, :], 0).sum((1, 2))
    return (per_video * REFERENCE_FRAMES / mask.sum(1).clamp(min=1)).sum()


def _squared_distances(a: Float[Tensor, "P N D"], b: Float[Tensor, "P M D"]) -> Float[Tensor, "P N M"]:
    return a.square().sum(-1)[:, :, None] + b.square().sum(-1)[:, None] - 2 * a @ b.mT
