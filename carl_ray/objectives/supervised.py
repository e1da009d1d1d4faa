"""Supervised training by cross-entropy on frame labels (table 11).

Legend: V views of this worker, T frames of a view, K classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional


def frame_classification_terms(
    logits: Float[Tensor, "V T K"],
    frame_labels: Int64[Tensor, "V T"],
    mask: Bool[Tensor, "V T"],
) -> tuple[Float[Tensor, " 1"], Int64[Tensor, " 1"]]:
    """Sum of the cross-entropies of labelled real frames, and their number (table 11).

    Every labelled frame counts alike, whatever its class. Frames without label and frames that the mask
    leaves out change nothing, whatever they hold. Computed in float32 or better whatever the type of the
    logits or the autocast.

    Args:
        logits: Scores of the classes.
        frame_labels: Class of each frame, from 0 to K - 1; negative (-1) where there is none.
        mask: True where a frame is real.

    Returns:
        The sum, with gradient, and the count.

    Raises:
        ValueError: a labelled real frame has a class that `logits` has no score for.
    """
    labelled = mask & (frame_labels >= 0)
    labels = frame_labels.where(labelled, 0)
    # On a GPU, cross-entropy itself would end the process without saying why.
    highest, num_classes = int(labels.max()) if labels.numel() else 0, logits.shape[2]
    if highest >= num_classes:
        raise ValueError(f"frame_labels must be less than the {num_classes} classes, got {highest}")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    with torch.autocast(logits.device.type, enabled=False):
        scores = logits.to(dtype).where(labelled[:, :, None], 0)
        losses = functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.unflatten(0, labels.shape).where(labelled, 0).sum()[None], labelled.sum()[None]
