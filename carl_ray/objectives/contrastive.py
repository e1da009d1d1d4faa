"""Contrastive baseline of SCL: one positive frame in the other view (table 13).

The legend is that of `pairs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from carl_ray.objectives.base import Batch, Encoding, Objective, ObjectiveOptions, Terms, crops, options
from carl_ray.objectives.pairs import FramePairs, both_directions, rounding, view_pairs
from carl_ray.objectives.scl import gaussian_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


class FrameContrast(Objective):
    """Contrastive baseline with one positive frame in the other crop (table 13)."""

    @options
    class Options(ObjectiveOptions):
        name: Literal["contrastive"] = "contrastive"
        temperature: float = Field(default=0.1, gt=0)
        """tau. Divides the similarities."""

    def __init__(self, options: Options, width: int, batch_norm: Any) -> None:
        super().__init__(options, width, batch_norm)
        from carl_ray.layers.heads import ProjectionHead

        self.projection = ProjectionHead(width, batch_norm)

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        encoding, view = crops(encodings, batch)
        pairs = view_pairs(self.projection(encoding.frames, encoding.mask), view)
        return contrastive_terms(pairs, temperature=self.options.temperature)


def contrastive_terms(pairs: FramePairs, *, temperature: float) -> Terms:
    """Sums of anchor losses and numbers of anchors, for each direction (appendix A.4).

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
    in float32 or better whatever the type of the projections or the autocast.

    Args:
        pairs: Projections of the two views of each video; normalised here.
        temperature: tau.

    Returns:
        Sums, with gradient, and counts: first anchors of view 1, then of view 2.
    """

    def direction(pairs: FramePairs) -> tuple[Tensor, Tensor]:
        s1, s2 = pairs.s1.double()[:, :, None], pairs.s2.double()[:, None, :]
        distances = (s1 - s2).abs().masked_fill(~pairs.mask2[:, None, :], math.inf)
        farther = distances > distances.amin(-1, keepdim=True) + rounding(s1, s2)
        # SCL with distances of 0 and 1: exp(-1 / (2 variance)) is 0.
        return gaussian_cross_entropy(
            *(pairs.z1, pairs.z2, farther.to(pairs.dtype), pairs.mask1, pairs.mask2),
            temperature=temperature,
            variance=1e-4,
        )

    import torch

    with torch.autocast(pairs.z1.device.type, enabled=False):
        return both_directions(direction, pairs.unit())
