"""Video as stochastic process: frames between two others lie on a Brownian bridge (Zhang et al., CVPR 2023).

Legend: V views of this worker, T frames of a view, D width of an embedding, N triplets of a view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from carl_ray.objectives.base import Batch, Encoding, Objective, ObjectiveOptions, Terms, crops, options
from carl_ray.objectives.draws import draw_frames
from carl_ray.objectives.pairs import unit_vectors
from carl_ray.objectives.views import CROPS

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64
    from torch import Tensor

# Keeps the triplets apart from whatever else is drawn from the seed of a view.
_STREAM = 0xB71D


class BrownianBridge(Objective):
    """Contrast of a frame between two others with the bridge between them."""

    @options
    class Options(ObjectiveOptions):
        name: Literal["vsp"] = "vsp"
        num_triplets: int = Field(default=8, ge=1)
        """Triplets of frames that are drawn from a view."""
        scale: float = Field(default=0.3, gt=0)
        """Length that embeddings are normalised to, which the deviation of the bridge is compared with."""

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        encoding, view = crops(encodings, batch)
        frames, times, mask = (part.flatten(0, 1) for part in (encoding.frames, view.timestamps, view.mask))
        num_triplets, scale = self.options.num_triplets, self.options.scale
        seeds = batch.seeds[CROPS].flatten()
        return brownian_bridge_terms(frames, times, mask, seeds, num_triplets=num_triplets, scale=scale)


def brownian_bridge_terms(
    embeddings: Float[Tensor, "V T D"],
    s: Float[Tensor, "V T"],
    mask: Bool[Tensor, "V T"],
    seeds: Int64[Tensor, " V"],
    *,
    num_triplets: int = 8,
    scale: float = 0.3,
) -> Terms:
    """Sum of the losses of the triplets, and their number.

    Of each view with at least 3 real frames of different times, N triplets h < p < t are drawn. With times of the raw
    video, a = (p - h) / (t - h), sigma = a (t - p) and the distance of a frame from the bridge

        d(x) = -|x - (1 - a) x_h - a x_t|^2 / (2 sigma^2),

    the loss is -log( exp d(x_p) / (exp d(x_p) + sum_n exp d(x_n)) ). The negatives x_n are the real frames of the view
    before h and after t, so that a view's loss does not depend on the other videos of the worker; a triplet without
    one does not count. Times are divided by the time between the first and the last real frame of the view, and the
    embeddings have length `scale`: with sigma in hundreds of frames all distances would be alike.

    Frames that the mask leaves out change nothing, whatever they hold. Computed in float32 or better whatever the type
    of the embeddings or the autocast.

    Args:
        embeddings: Of the frames of each view; normalised here.
        s: Timestamps, in frames of the raw video.
        mask: True where a frame is real; frames stand in time order.
        seeds: Of each view. The triplets depend on the seed and the number of real frames alone.
        num_triplets: N.
        scale: Length of the normalised embeddings.

    Returns:
        The sum, with gradient, and the count.
    """
    import torch

    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    h, p, t = draw_frames(mask, seeds, num_triplets, 3, _STREAM).unbind(-1)
    with torch.autocast(embeddings.device.type, enabled=False):
        frames = scale * unit_vectors(embeddings.to(dtype), mask)
        times = s.double().where(mask, 0)
        span = times.amax(1, keepdim=True) - times.masked_fill(~mask, math.inf).amin(1, keepdim=True)
        time_h, time_p, time_t = (times.gather(1, place) for place in (h, p, t))
        valid = (time_h < time_p) & (time_p < time_t)
        part = ((time_p - time_h) / (time_t - time_h).where(valid, 1)).to(dtype)
        sigma = (part * ((time_t - time_p) / span.where(span > 0, 1)).to(dtype)).where(valid, 1)
        views = torch.arange(len(mask), device=mask.device)[:, None]
        bridge = torch.lerp(frames[views, h], frames[views, t], part[..., None].where(valid[..., None], 0))
        # (V, N, T): of every frame of the view from every bridge.
        away = (bridge[:, :, None] - frames[:, None]).square().sum(-1) / (2 * sigma[..., None].square())
        inside = (times[:, None] >= time_h[..., None]) & (times[:, None] <= time_t[..., None])
        negative = mask[:, None] & ~inside
        valid = valid & negative.any(-1)
        own = -away.gather(2, p[..., None])[..., 0]
        seen = negative | torch.zeros_like(negative).scatter(2, p[..., None], True)
        losses = (-away).masked_fill(~seen, -math.inf).logsumexp(-1) - own
    return Terms(losses.where(valid, 0).sum()[None], valid.sum()[None])
