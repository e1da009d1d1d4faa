"""Supervised training by cross-entropy on frame labels (table 11).

Legend: V views of this worker, T frames of a view, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from carl_ray.objectives.base import Batch, Encoding, Objective, ObjectiveOptions, Terms, crops, options

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64
    from torch import Tensor, nn


@options
class ClassOptions(ObjectiveOptions):
    """Options of an objective on classes, which are counted at the start of a run."""

    # Not a docstring: pydantic reads those of the class itself alone, not of what it inherits.
    num_classes: int | None = Field(
        default=None, ge=1, description="Classes of the training videos; counted at the start of a run."
    )

    def with_num_classes(self, num_classes: int) -> Self:
        """The options for so many classes."""
        return replace(self, num_classes=num_classes)


def linear_classifier(options: ClassOptions, width: int) -> nn.Linear:
    """The layer that scores the classes.

    Raises:
        ValueError: they have not been counted.
    """
    from torch import nn

    if options.num_classes is None:
        raise ValueError(f"objective {options.name} needs num_classes, which the start of a run counts")
    return nn.Linear(width, options.num_classes)


class FrameClassification(Objective):
    """Cross-entropy on frame labels, with a linear classifier."""

    @options
    class Options(ClassOptions):
        columns = ("frame_labels",)
        name: Literal["supervised"] = "supervised"

    def __init__(self, options: Options, width: int, batch_norm: Any) -> None:
        super().__init__(options, width, batch_norm)
        self.classifier = linear_classifier(options, width)

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        encoding, view = crops(encodings, batch)
        logits = self.classifier(encoding.frames).flatten(0, 1)
        return frame_classification_terms(
            logits, view.columns["frame_labels"].flatten(0, 1), view.mask.flatten(0, 1)
        )


def frame_classification_terms(
    logits: Float[Tensor, "V T K"],
    frame_labels: Int64[Tensor, "V T"],
    mask: Bool[Tensor, "V T"],
) -> Terms:
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
        ValueError: a labelled real frame has a class that `logits` has no score for; of labels on the CPU.
    """
    import torch
    from torch.nn import functional

    labelled = mask & (frame_labels >= 0)
    labels = frame_labels.where(labelled, 0)
    # A run counts its classes on the driver. To look at labels on a GPU, the CPU would wait for it at every step.
    num_classes = logits.shape[2]
    if labels.is_cpu and labels.numel() and labels.max() >= num_classes:
        raise ValueError(f"frame_labels must be less than the {num_classes} classes, got {labels.max()}")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    with torch.autocast(logits.device.type, enabled=False):
        scores = logits.to(dtype).where(labelled[:, :, None], 0)
        losses = functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
    return Terms(losses.unflatten(0, labels.shape).where(labelled, 0).sum()[None], labelled.sum()[None])
