"""The frame-level video encoder (section 3.3, figure 3).

Legend: B videos, T positions of the padded batch, N real frames of the whole batch, D width of an embedding.

Only real frames pass the convolutions, the fully connected layers and their batch norms; only the Transformer has
padding, which its attention masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from carl_ray.config import MOTIONS, ModelConfig
from carl_ray.errors import UserError
from carl_ray.layers.dropout import dropout_mask
from carl_ray.layers.heads import gather_real, real_frame_index, scatter_real
from carl_ray.layers.normalization import BatchNorm
from carl_ray.model.backbone import build_backbone
from carl_ray.model.temporal import (
    C3D_CHANNELS,
    TemporalConvolutions,
    TransformerEncoder,
    frame_positions,
    sine_cosine_code,
)


class FrameLevelVideoEncoder(nn.Module):
    """Frame-level video encoder (FVE): an embedding of each frame in its context.

    Backbone for each frame, spatial pooling, two times (dropout, linear, batch norm, ReLU), linear, plus
    sine-cosine positions, pre-norm Transformer, linear. Weights are random;
    `carl_ray.model.weights.load_backbone_weights(encoder.backbone, model)` loads pretrained ones.

    Args:
        model: Sizes and variants.
    """

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.num_frames, self.width = model.num_frames, model.embedding_width
        self.dropout = model.dropout
        self.positions = model.positions
        self.backbone = build_backbone(model)
        if self.backbone.kind != "frame":
            raise UserError(
                f"model.backbone: {model.backbone} sees clips, and this encoder single frames: "
                "carl_ray.model.features.frozen_features embeds clips"
            )
        channels = self.backbone.pooled_channels
        self.input_norm: BatchNorm | None = None
        if model.centered or model.motion != "none":
            channels *= MOTIONS[model.motion]
            # A difference is smaller than the features that it is joined with.
            self.input_norm = BatchNorm(channels, model.batch_norm)
        self.convolutions: TemporalConvolutions | None = None
        if model.temporal_encoder == "c3d":
            self.convolutions = TemporalConvolutions(self.backbone.channels, model.batch_norm)
            channels = C3D_CHANNELS * channels // self.backbone.channels
        self.input_channels = channels
        self.hidden = nn.ModuleList(
            # No bias: the batch norm has one.
            nn.Sequential(
                nn.Linear(before, model.hidden_width, bias=False),
                BatchNorm(model.hidden_width, model.batch_norm),
                nn.ReLU(inplace=True),
            )
            for before in (channels, model.hidden_width)
        )
        self.to_width = nn.Linear(model.hidden_width, model.width)
        self.transformer: TransformerEncoder | None = None
        if model.temporal_encoder == "transformer":
            self.transformer = TransformerEncoder(
                model.num_layers, model.width, model.num_heads, model.feedforward_width
            )
        self.to_embedding = nn.Linear(model.width, model.embedding_width)

    def forward(
        self,
        frames: Float[Tensor, "B T 3 height width"] | Float[Tensor, "B T C"],
        frame_mask: Bool[Tensor, "B T"],
        *,
        sample_seeds: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Compute embeddings H of all frames, float32 or better, zeros where the mask is False.

        A batch without any real frame, of a worker without videos in a step, yields zeros, and zero gradients for every
        learnable parameter.

        Args:
            frames: Frames normalised by the backbone's mean and deviation; padded ones may hold anything. Or
                pooled features, as `carl_ray.data.features.model_input` makes them.
            frame_mask: True where a frame is real, in any pattern.
            sample_seeds: In training mode, dropout of a video is a pure function of its seed, independent of batch and
                worker; without seeds it is drawn from torch's generator.
        """
        batch, time = frame_mask.shape
        index = real_frame_index(frame_mask)
        if frames.ndim == 3:
            # A batch without real frames does not know how many channels they have.
            features = gather_real(frames, index) if len(index) else frames.new_zeros(0, self.input_channels)
        elif self.input_norm is not None:
            raise ValueError(
                "model.centered and model.motion are of whole videos: expected features, got frames"
            )
        else:
            features = self._frame_features(gather_real(frames, index), index, batch, time)
        return self._embed(features, index, frame_mask, sample_seeds)

    @torch.no_grad()
    def frame_features(
        self, chunks: Iterable[Float[Tensor, "chunk 3 height width"]]
    ) -> Iterator[Float[Tensor, "chunk C"]]:
        """Pooled features of one video in chunks of frames; see `embed_features`.

        Memory is that of a chunk, and of the features, whatever the length of the video.

        Args:
            chunks: The normalised frames, in order. Chunk sizes change only rounding.

        Raises:
            ValueError: the encoder is in training mode, where batch norm ties the frames together.
        """
        if self.training:
            raise ValueError(
                "frame_features expects an encoder in evaluation mode: call encoder.eval() first"
            )
        parts = itertools.chain.from_iterable(self.backbone.chunks(chunk) for chunk in chunks)
        if self.convolutions is None:
            for part in parts:
                yield self.backbone.pool(self.backbone(part))
            return
        # Each chunk is convolved with its halo: the frames just before and after it.
        halo = self.convolutions.halo
        before: Tensor | None = None
        waiting: Tensor | None = None
        for part in parts:
            maps = self.backbone(part)
            if waiting is None:
                waiting = maps
            elif len(maps) < halo:
                waiting = torch.cat([waiting, maps])
            else:
                yield self._convolved(before, waiting, maps[:halo])
                before = waiting[-halo:] if before is None else torch.cat([before, waiting])[-halo:]
                waiting = maps
        if waiting is not None:
            yield self._convolved(before, waiting, waiting[:0])

    @torch.no_grad()
    def embed_features(self, features: Float[Tensor, "T C"]) -> Float[Tensor, "T D"]:
        """Compute embeddings H of all frames of one video, in one pass, for evaluation.

        Args:
            features: All features from `frame_features`, as `carl_ray.data.features.model_input` makes them.
        """
        time = features.shape[0]  # Not len(), which would fix the length in an exported graph.
        mask = torch.ones(1, time, dtype=torch.bool, device=features.device)
        return self._embed(features, torch.arange(time, device=features.device), mask, None)[0]

    def _convolved(self, before: Tensor | None, maps: Tensor, after: Tensor) -> Float[Tensor, "chunk C"]:
        assert self.convolutions is not None
        context = torch.cat([maps, after] if before is None else [before, maps, after])
        start = 0 if before is None else len(before)
        index = torch.arange(len(context), device=context.device)
        mixed = self.convolutions(context, index, 1, len(context))
        return self.backbone.pool(mixed[start : start + len(maps)])

    def _embed(
        self,
        features: Float[Tensor, "N C"],
        index: Int[Tensor, " N"],
        frame_mask: Bool[Tensor, "B T"],
        sample_seeds: Int[Tensor, " B"] | None,
    ) -> Float[Tensor, "B T D"]:
        """Layers after the pooling."""
        batch, time = frame_mask.shape
        if self.input_norm is not None:
            features = self.input_norm(features)
        for number, layer in enumerate(self.hidden):
            features = layer(self._drop(features, number, index, time, sample_seeds))
        features = self.to_width(features)
        if self.transformer is not None:
            if self.positions == "sine_cosine":
                positions = gather_real(frame_positions(frame_mask, self.num_frames), index)
                features = features + sine_cosine_code(positions, features.shape[1])
            mixed = self.transformer(scatter_real(features, index, batch, time), frame_mask)
            features = gather_real(mixed, index)
        embeddings = self.to_embedding(features)
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return scatter_real(embeddings, index, batch, time)

    def _frame_features(
        self, frames: Float[Tensor, "N 3 height width"], index: Int[Tensor, " N"], batch: int, time: int
    ) -> Float[Tensor, "N C"]:
        """Pooled features of the real frames."""
        if self.convolutions is not None:
            return self.backbone.pool(self.convolutions(self.backbone(frames), index, batch, time))
        if torch.is_grad_enabled() or self.training:
            return self.backbone.pool(self.backbone(frames))
        # In evaluation frames are independent: chunks bound the memory of whole videos.
        chunks = self.backbone.chunks(frames)
        return torch.cat([self.backbone.pool(self.backbone(chunk)) for chunk in chunks])

    def _drop(
        self,
        features: Float[Tensor, "N C"],
        layer: int,
        index: Int[Tensor, " N"],
        time: int,
        sample_seeds: Int[Tensor, " B"] | None,
    ) -> Float[Tensor, "N C"]:
        if not self.training or self.dropout == 0:
            return features
        if sample_seeds is None:
            return functional.dropout(features, self.dropout)
        kept = dropout_mask(sample_seeds[index // time], layer, index % time, features.shape[1], self.dropout)
        return features * kept.to(features.dtype) / (1 - self.dropout)
