"""Shuffle and Learn: is the middle one of three frames between the others in time?

Source: Misra, Zitnick, Hebert, "Shuffle and Learn: Unsupervised Learning using Temporal Order Verification"
(ECCV 2016).

Legend: V views of this worker, T frames of a view, N tuples of a view, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from carl_ray.objectives.base import Batch, Encoding, Objective, ObjectiveOptions, Terms, crops, options
from carl_ray.objectives.draws import draw_frames
from carl_ray.objectives.views import CROPS

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64
    from torch import Tensor, nn

# Places in a tuple a < b < c < d < e: first both directions of (b, c, d), then of (b, a, d) and (b, e, d).
_TRIPLETS = ((1, 2, 3), (3, 2, 1), (1, 0, 3), (3, 0, 1), (1, 4, 3), (3, 4, 1))
_IN_ORDER = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
_WEIGHTS = (1 / 8, 1 / 8, 3 / 16, 3 / 16, 3 / 16, 3 / 16)
_TUPLE = 5
# Keeps the tuples apart from whatever else is drawn from the seed of a view.
_STREAM = 0x5A4C


class ShuffleAndLearn(Objective):
    """Classification whether three frames are in order."""

    @options
    class Options(ObjectiveOptions):
        name: Literal["shuffle_and_learn"] = "shuffle_and_learn"

    def __init__(self, options: Options, width: int, batch_norm: Any) -> None:
        super().__init__(options, width, batch_norm)
        self.order_head = order_head(width)

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        encoding, view = crops(encodings, batch)
        seeds = batch.seeds[CROPS].flatten()
        frames, mask = encoding.frames.flatten(0, 1), view.mask.flatten(0, 1)
        return shuffle_and_learn_terms(frames, mask, seeds, self.order_head)


def order_head(width: int) -> nn.Module:
    """Logit (…, 1) that three frames are in order, from their concatenated embeddings (…, 3 D).

    The original classifies concatenated features of a deep network of each frame; on frame embeddings a
    linear layer could not compare the frames with each other, so there are two hidden layers, of 128 and 64
    units, as TCC's authors have in their comparison with Shuffle and Learn.

    Args:
        width: D.
    """
    from torch import nn

    return nn.Sequential(
        nn.Linear(3 * width, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
    )


def shuffle_and_learn_terms(
    embeddings: Float[Tensor, "V T D"],
    mask: Bool[Tensor, "V T"],
    seeds: Int64[Tensor, " V"],
    head: nn.Module,
    *,
    num_tuples: int = 8,
) -> Terms:
    """Sum of the losses of the tuples, and their number (Misra et al., section 3).

    Of each view with at least 5 real frames, N tuples of 5 different real frames a < b < c < d < e are drawn,
    each set of 5 equally likely. (b, c, d) is in order; (b, a, d) and (b, e, d), with the same outer frames,
    are not. Reversed in time, all three keep their labels and count as much again, as in the paper. The loss
    of a tuple is a weighted mean of the binary cross-entropies of these six triplets: 1/4 on the triplets in
    order, 3/8 on each of the two kinds that are not. That is the expectation, given the five frames, of
    drawing one triplet of the tuple, shuffled with probability 3/4, by either frame and in either direction
    alike, as TCC's authors (Dwibedi et al., CVPR 2019) do in their comparison. A head that learns nothing
    but these shares has a loss of 0.562, one that always answers 0 has log 2.

    The paper draws its tuples from short windows with much motion; here, as in the code of TCC's authors,
    they come from the whole view. Frames that the mask leaves out change nothing, whatever they hold.
    Computed in float32 or better whatever the type of the embeddings or the autocast.

    Gradients reach the embeddings and the head. All parameters of the head get one, zero where no view has 5
    real frames, so that DistributedDataParallel does not wait for it.

    Args:
        embeddings: Of the frames of each view; not normalised.
        mask: True where a frame is real; frames stand in time order.
        seeds: Of each view. The tuples depend on the seed and the number of real frames alone.
        head: As of `order_head`; its parameters are float32, or float64 with such embeddings.
        num_tuples: N, as many as TCC's authors draw.

    Returns:
        The sum, with gradient, and the count.
    """
    import torch
    from torch.nn import functional

    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    tuples = draw_frames(mask, seeds, num_tuples, _TUPLE, _STREAM)
    triplets = tuples[:, :, torch.tensor(_TRIPLETS, device=mask.device)]
    views = torch.arange(len(mask), device=mask.device)[:, None, None, None]
    with torch.autocast(embeddings.device.type, enabled=False):
        # Views that are not counted look up frames that may be padding.
        frames = embeddings.to(dtype).where(mask[:, :, None], 0)
        logits = head(frames[views, triplets].flatten(-2)).squeeze(-1)
        losses = functional.binary_cross_entropy_with_logits(
            logits,
            logits.new_tensor(_IN_ORDER).expand_as(logits),
            weight=logits.new_tensor(_WEIGHTS),
            reduction="none",
        ).sum(-1)
    valid = (mask.sum(1) >= _TUPLE)[:, None].expand_as(losses)
    return Terms(losses.where(valid, 0).sum()[None], valid.sum()[None])
