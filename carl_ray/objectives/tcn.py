"""Time-Contrastive Networks on single views: n-pairs loss within a time window.

Sources: Sermanet et al., "Time-Contrastive Networks" (ICRA 2018), single-view; Sohn, "Improved Deep Metric
Learning with Multi-class N-pair Loss Objective" (NIPS 2016).

Legend: V views of this worker, T frames of a view, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from carl_ray.objectives.base import Batch, Encoding, Objective, ObjectiveOptions, Terms, crops, options
from carl_ray.objectives.pairs import rounding, unit_vectors

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class TimeContrast(Objective):
    """Time-Contrastive Networks on single views."""

    @options
    class Options(ObjectiveOptions):
        name: Literal["tcn"] = "tcn"
        temperature: float = Field(default=0.1, gt=0)
        """tau. Divides the similarities."""
        window: float = Field(default=5.0, gt=0)
        """Frames at most this far apart in the raw video are positives."""

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        encoding, view = crops(encodings, batch)
        return time_contrastive_terms(
            *(part.flatten(0, 1) for part in (encoding.frames, view.timestamps, view.mask)),
            window=self.options.window,
            temperature=self.options.temperature,
        )


def time_contrastive_terms(
    embeddings: Float[Tensor, "V T D"],
    s: Float[Tensor, "V T"],
    mask: Bool[Tensor, "V T"],
    *,
    window: float,
    temperature: float,
) -> Terms:
    """Sum of the mean n-pairs losses of the anchors of each view, and their number.

    With f_ij = cos(h_i, h_j) / tau, positives P_i the frames with 0 < |s_i - s_j| <= window and negatives N_i
    those with |s_i - s_j| > window, an anchor's loss is the mean over its positives of Sohn's equation 6:

        1 / |P_i| * sum_{j in P_i} log( 1 + sum_{n in N_i} exp(f_in - f_ij) )

    Real frames with at least one positive and one negative are anchors. The paper samples one positive within
    the window for an anchor; the mean over all of them is the expectation of that loss over a uniform draw,
    without its noise. Where the sources differ or leave something open:

    - Negatives begin where the window ends; the authors' code has a second, larger radius for them, and
      triplets in place of n-pairs.
    - In the n-pairs code by which TCC's authors compare with TCN, an anchor's positive is one of the 5 frames
      before it, and its negatives are the positives of all other anchors, however near. Here positives lie
      on both sides, and no negative lies within the window.
    - Cosines over a temperature, as in SCL, take the place of Sohn's inner products, whose scale only a
      penalty on the norms holds back. So the scale of the embeddings changes nothing.

    Frames that the mask leaves out change nothing, whatever they hold; two frames of one time are neither
    positive nor negative to each other. Computed in float32 or better whatever the type of the embeddings
    or the autocast.

    Args:
        embeddings: Of the frames of each view; normalised here.
        s: Timestamps, in frames of the raw video.
        mask: True where a frame is real.
        window: Greatest distance in time of a positive, in frames of the raw video.
        temperature: tau.

    Returns:
        The sum, with gradient, and the count.

    Raises:
        ValueError: `window` is not positive.
    """
    if not window > 0:
        raise ValueError(f"window must be positive, got {window}")
    import torch
    from torch.nn import functional

    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = unit_vectors(embeddings.to(dtype), mask)
        logits = unit @ unit.mT / temperature

        s1, s2 = s.double()[:, :, None], s.double()[:, None, :]
        distances = (s1 - s2).abs()
        real = mask[:, :, None] & mask[:, None, :]
        far = distances > window + rounding(s1, s2)
        positive = real & (distances > 0) & ~far
        negative = real & far
        valid = positive.any(-1) & negative.any(-1)

        # A row without negatives is not counted, but from -inf alone would come a gradient of NaN.
        against = negative | ~negative.any(-1, keepdim=True)
        rivals = logits.masked_fill(~against, -torch.inf).logsumexp(-1, keepdim=True)
        losses = -functional.logsigmoid(logits - rivals)
        means = losses.where(positive, 0).sum(-1) / positive.sum(-1).clamp(min=1)
    return Terms(means.where(valid, 0).sum()[None], valid.sum()[None])
