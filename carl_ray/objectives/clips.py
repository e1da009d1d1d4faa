"""Objectives on vectors of clips: the contrastive baseline of `regions`, and classification.

Legend: B videos of this worker, A videos of all workers, n clips, D width of a projection, K classes.
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
    from jaxtyping import Bool, Float
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
        real = encoding.mask.any(-1)
        projected = self.projection(encoding.clip[real])
        z = projected.new_zeros(*real.shape, projected.shape[-1]).index_put(
            real.nonzero(as_tuple=True), projected
        )
        return clip_contrast_terms(z, real, temperature=self.options.temperature)


def clip_contrast_terms(z: Float[Tensor, "B 2 D"], real: Bool[Tensor, "B 2"], *, temperature: float) -> Terms:
    """Sums and counts of each direction: softmax cross-entropy of cosines over the other clips of all videos.

    A collective call: candidates are those of all workers.

    Args:
        z: Projections of the two clips of each video; normalised here.
        real: Which have frames.
        temperature: tau.
    """
    import torch
    from torch.nn import functional

    from carl_ray.objectives.gather import gather_rows, own_rows

    with torch.autocast(z.device.type, enabled=False):
        unit = functional.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)
        others, there = gather_rows(unit, real)
        target = own_rows(torch.arange(len(z), device=z.device), len(others))
        sums, counts = [], []
        for own, other in ((0, 1), (1, 0)):
            valid = real.all(1)
            logits = unit[:, own] @ others[:, other].T / temperature
            logits = logits.masked_fill(~there[:, other], -torch.inf).where(valid[:, None], 0)
            losses = functional.cross_entropy(logits, target, reduction="none")
            sums.append(losses.where(valid, 0).sum())
            counts.append(valid.sum())
    return Terms(torch.stack(sums), torch.stack(counts))


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
