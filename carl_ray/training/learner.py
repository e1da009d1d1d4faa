"""The module that is trained: an encoder and an objective with its heads. Free of Ray.

Legend: B videos of this worker, n clips of a view, T frames of a clip, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from carl_ray.config import Config
from carl_ray.model.clips import ClipEncoder
from carl_ray.model.encoder import FrameLevelVideoEncoder
from carl_ray.model.features import normalize
from carl_ray.objectives.base import Batch, Encoding, Objective, Terms
from carl_ray.objectives.choice import find_objective
from carl_ray.objectives.views import ViewSpec

_EARLIER_HEADS = ("projection.", "order_head.", "classifier.")


VideoNetwork = FrameLevelVideoEncoder | ClipEncoder
"""The encoder that a config describes."""


class Learner(nn.Module):
    """Encoder and objective, which are trained and checkpointed together.

    Args:
        encoder: Of frames or clips.
        objective: With its heads.
        views: Those of a sample.
    """

    def __init__(self, encoder: VideoNetwork, objective: Objective, views: Iterable[ViewSpec]) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective
        self._seen_by = {view.name: view.encoder for view in views}

    def forward(
        self,
        batch: Batch,
        progress: float,
        phase: str,
        encodings: Mapping[str, Encoding] | None = None,
    ) -> Terms:
        """Terms of a phase of the objective.

        Args:
            batch: On the device of the weights, with pixels as RGB.
            progress: Share of the run that is done.
            phase: Name of the phase.
            encodings: Of the batch, where they are known.
        """
        if encodings is None:
            encodings = self.encode(batch)
        terms = self.objective.phase_terms(phase, encodings, batch, progress)
        return Terms.checked(terms, self.objective.options.name)

    def encode(self, batch: Batch) -> dict[str, Encoding]:
        """Embeddings of the views that the encoder sees."""
        encodings, backbone = {}, self.encoder.backbone
        for name, view in batch.views.items():
            if self._seen_by[name] == "none":
                continue
            if view.features is not None:
                seen = view.features.flatten(0, 1).float()
            else:
                assert view.pixels is not None
                seen = normalize(view.pixels.flatten(0, 1), backbone.mean, backbone.std)
            if isinstance(self.encoder, ClipEncoder):
                static_alone = self._seen_by[name] == "static"
                made = self.encoder(seen, view.mask.flatten(0, 1), static_alone=static_alone)
                maps, clip = (part.unflatten(0, view.mask.shape[:2]) for part in made)
                encodings[name] = Encoding(maps.mean((-2, -1)).mT, view.mask, maps, clip)
                continue
            frames = self.encoder(
                seen,
                view.mask.flatten(0, 1),
                sample_seeds=batch.seeds[name].flatten(),
            )
            encodings[name] = Encoding(frames.unflatten(0, view.mask.shape[:2]), view.mask)
        return encodings


def initial_learner(config: Config) -> Learner:
    """Build the learner with random weights that depend on the config's seed alone."""
    kind = find_objective(config.objective.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        encoder = build_encoder(config)
        objective = kind(config.objective, encoder.width, config.model.batch_norm)
        return Learner(encoder, objective, config.view_specs)


def initial_encoder(config: Config) -> VideoNetwork:
    """Build the encoder of `initial_learner` alone, without the code of the objective."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return build_encoder(config)


def build_encoder(config: Config) -> VideoNetwork:
    """The encoder of a config, with random weights of torch's generator."""
    if config.model.temporal_encoder == "clip":
        return ClipEncoder(config)
    return FrameLevelVideoEncoder(config.model)


def present_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint of any version by their names in `Learner`."""

    def present(name: str) -> str:
        if not name.startswith(_EARLIER_HEADS):
            return name
        return f"objective.{name.replace('order_head.layers.', 'order_head.')}"

    return {present(name): value for name, value in tensors.items()}
