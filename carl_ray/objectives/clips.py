"""Objectives on vectors of clips: the contrastive baseline of `regions`, and classification.

Legend: B videos of this worker, n clips, D width of a projection, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from carl_ray.objectives.base import Batch, Encoding, Objective, ObjectiveOptions, Terms, options
from carl_ray.objectives.supervised import ClassOptions, frame_classification_terms, linear_classifier
from carl_ray.objectives.views import ViewSpec, Whole, clips_view

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

_VIEW = "clips"


class ClipContrast(Objective):
    """InfoNCE of the two clips of a video against the clips of the other videos."""

    @options
    class Options(ObjectiveOptions):
        reads_clips = contrasts_videos = True
        name: Literal["clip_contrast"] = "clip_contrast"
        temperature: float = Field(default=0.1, gt=0)
        """tau. Divides the similarities."""
        hidden_width: int = Field(default=512, ge=1)
        """Of the projection of clips."""
        projection_width: int = Field(default=128, ge=1)
        """D."""

        def views(self, default: ViewSpec) -> tuple[ViewSpec, ...]:
            """Two clips."""
            return (clips_view(default, _VIEW, 2),)

    options: Options

    def __init__(self, options: Options, width: int, batch_norm: Any) -> None:
        super().__init__(options, width, batch_norm)
        from carl_ray.layers.heads import projection

        self.projection = projection(width, options.hidden_width, options.projection_width, batch_norm)

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        encoding = encodings[_VIEW]
        assert encoding.clip is not None
        real = encoding.mask.any(-1).all(-1)
        first, second = self.projection(encoding.clip[real].flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        return clip_contrast_terms(first, second, batch.rows[real], temperature=self.options.temperature)


def clip_contrast_terms(
    first: Float[Tensor, "B D"],
    second: Float[Tensor, "B D"],
    content: Int64[Tensor, " B"],
    *,
    temperature: float,
) -> Terms:
    """Sums and counts of both directions: softmax cross-entropy of cosines, own partner against those of others.

    A collective call: candidates are those of all workers, without other rows of the same content.

    Args:
        first: Projections of a clip of each video; normalised here.
        second: Those of another clip of the same videos, or of a key frame.
        content: Numbers that are equal for videos of equal content.
        temperature: tau.
    """
    import torch
    from torch.nn import functional

    from carl_ray.objectives.gather import gather_rows, own_rows

    with torch.autocast(first.device.type, enabled=False):
        wide = torch.promote_types(first.dtype, torch.float32)
        sides = [functional.normalize(side.to(wide), dim=-1) for side in (first, second)]
        real = torch.ones(len(first), dtype=torch.bool, device=first.device)
        *others, every, there = gather_rows(*sides, content, real)
        target = own_rows(torch.arange(len(first), device=first.device), len(every))
        left_out = ~there | (content[:, None] == every)
        left_out[torch.arange(len(target), device=target.device), target] = False
        sums = []
        for side, other in zip(sides, reversed(others), strict=True):
            logits = (side @ other.T / temperature).masked_fill(left_out, -torch.inf)
            sums.append(functional.cross_entropy(logits, target, reduction="sum"))
    return Terms(torch.stack(sums), real.sum().expand(2))


class ClipClassification(Objective):
    """Cross-entropy on the labels of videos: fine-tuning, and the supervised control."""

    @options
    class Options(ClassOptions):
        reads_clips = True
        columns = ("label",)
        name: Literal["clip_classes"] = "clip_classes"
        dropout: float = Field(default=0.5, ge=0, lt=1)
        """Before the linear layer."""
        span: Literal["stride", "video"] = "stride"
        """Of a clip: frames at `views.stride`, or one of each of T equal parts of the video. Training and predictions
        have it; embeddings are of clips at `views.stride`."""

        def views(self, default: ViewSpec) -> tuple[ViewSpec, ...]:
            """One clip."""
            view = clips_view(default, _VIEW, 1)
            return (view if self.span == "stride" else replace(view, span=Whole()),)

    options: Options

    def __init__(self, options: Options, width: int, batch_norm: Any) -> None:
        super().__init__(options, width, batch_norm)
        self.classifier = linear_classifier(options, width)

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        import torch

        from carl_ray.layers.dropout import dropout_mask

        encoding, view = encodings[_VIEW], batch.views[_VIEW]
        assert encoding.clip is not None
        clip = encoding.clip.flatten(0, 1)
        if self.training and self.options.dropout:
            seeds = batch.seeds[_VIEW].flatten()
            kept = dropout_mask(seeds, 0, torch.zeros_like(seeds), clip.shape[1], self.options.dropout)
            clip = clip * kept / (1 - self.options.dropout)
        classes = view.columns["label"].where(view.mask, -1).flatten(0, 1).amax(-1)
        logits = self.classifier(clip)
        labelled = classes >= 0
        right = ((logits.argmax(-1) == classes) & labelled).sum()
        self.figures = {"accuracy": torch.stack([right, labelled.sum()]).double()}
        return frame_classification_terms(logits[:, None], classes[:, None], labelled[:, None])
