"""Training step: update the weights with a batch of view pairs. Free of Ray.

    Batch (uint8) ─ to device, normalise ▶ FVE ▶ head ▶ objective ─ backward ▶ clip ▶ all finite? ▶ Adam

Losses are means over the *global* batch: sums and counts are added over the workers before the division, so the number
of workers and the distribution of the videos over them change only rounding.

Legend: B videos of this worker, T frames of a view, S pixels, D embedding width, W workers.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from carl_ray.config import Config
from carl_ray.data.sample import Batch, frames_on_device
from carl_ray.machine import has_native_bf16
from carl_ray.model.encoder import FrameLevelVideoEncoder, ProjectionHead
from carl_ray.model.features import normalize
from carl_ray.objectives.shuffle_and_learn import OrderHead
from carl_ray.training.objective import PROJECTED, ObjectiveInputs, objective_terms


class TrainedModel(nn.Module):
    """Encoder and head of the loss, which are trained and checkpointed together.

    The head is the projection, the classifier of frames, the classifier of orders, or none, depending on the objective.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        objective, width = config.objective, config.model.embedding_width
        self.encoder = FrameLevelVideoEncoder(config.model)
        self.projection = ProjectionHead(config.model) if objective.name in PROJECTED else None
        self.order_head = OrderHead(width) if objective.name == "shuffle_and_learn" else None
        self.classifier: nn.Linear | None = None
        if objective.name == "supervised":
            if objective.num_classes is None:
                raise ValueError("objective supervised needs num_classes, which the start of a run counts")
            self.classifier = nn.Linear(width, objective.num_classes)

    def forward(
        self,
        frames: Float[Tensor, "views T 3 S S"],
        frame_mask: Bool[Tensor, "views T"],
        sample_seeds: Int64[Tensor, " views"],
    ) -> Float[Tensor, "views T width"]:
        """Projections Z, embeddings H, or logits of the frame classes, of all views."""
        embeddings: Tensor = self.encoder(frames, frame_mask, sample_seeds=sample_seeds)
        if self.projection is not None:
            projections: Tensor = self.projection(embeddings, frame_mask)
            return projections
        if self.classifier is not None:
            logits: Tensor = self.classifier(embeddings)
            return logits
        return embeddings


def initial_model(config: Config) -> TrainedModel:
    """Build the model with random weights that depend on the config's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return TrainedModel(config)


def with_precision(config: Config, *, native_bf16: bool) -> Config:
    """Replace a `training.precision` of `auto` by bf16 or fp32."""
    if config.training.precision != "auto":
        return config
    return replace(config, training=replace(config.training, precision="bf16" if native_bf16 else "fp32"))


@dataclass(frozen=True)
class StepReport:
    """Result of a step, the same on every worker."""

    loss: float
    """Mean over all valid anchors of the global batch, both directions summed."""
    gradient_norm: float
    """Of the global batch, before clipping."""
    learning_rate: float
    applied: bool
    """False if the loss or a gradient was not finite on some worker: then no worker changed its weights or
    batch-norm statistics."""
    num_videos: int
    """Videos of the global batch that had frames."""
    num_frames: int
    """Real frames of the global batch, both views."""


class TrainingStep:
    """Model, optimiser and objective of one worker.

    Args:
        config: The run. A precision of `auto` is resolved for this machine.
        device: Device of the worker.
        num_steps: Steps of the run, for the learning rate.
    """

    def __init__(self, config: Config, device: torch.device, num_steps: int) -> None:
        self.config = config = with_precision(config, native_bf16=has_native_bf16(device.type))
        self.device = device
        self.num_steps = num_steps
        self.model = initial_model(config).to(device)
        self.model.encoder.backbone.to(memory_format=torch.channels_last)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=config.optimizer.learning_rate, weight_decay=config.optimizer.weight_decay
        )
        self.num_workers = dist.get_world_size() if dist.is_initialized() else 1
        self._forward: nn.Module = self.model
        if self.num_workers > 1:
            # Batch-norm layers synchronise their statistics themselves, or not at all.
            # torch 2.14 deprecates `broadcast_buffers`; both names leave the buffers alone in the forward pass.
            parameters = inspect.signature(DistributedDataParallel).parameters
            name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
            options: dict[str, Any] = {name: False}
            self._forward = DistributedDataParallel(self.model, **options)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step: one cosine decay to zero over the run (section 4.2)."""
        return 0.5 * self.config.optimizer.learning_rate * (1 + math.cos(math.pi * step / self.num_steps))

    def train(self, batch: Batch, step: int) -> StepReport:
        """Train on this worker's part of one global batch; a collective call."""
        self._forward.train()
        learning_rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        statistics = [b for m in self.model.modules() if m.training for b in m.buffers(recurse=False)]
        before = [buffer.clone() for buffer in statistics]
        loss, totals = self._global_loss(batch, self._forward, step)
        # DDP averages the workers' gradients; the loss is a sum over them.
        (loss * self.num_workers).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.max_gradient_norm)
        report = torch.stack([loss.detach().double(), *totals.double(), norm.isfinite().double()])
        if self.num_workers > 1:
            dist.all_reduce(report)
        values = report.tolist()
        # All workers must decide alike, or their models would diverge.
        applied = math.isfinite(values[0]) and values[3] == self.num_workers
        if applied:
            self.optimizer.step()
        else:
            # The forward pass has updated them, and a NaN there would stay.
            for buffer, value in zip(statistics, before, strict=True):
                buffer.copy_(value)
        return StepReport(values[0], norm.item(), learning_rate, applied, int(values[1]), int(values[2]))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums of anchor losses and numbers of anchors, of this worker's videos, float64."""
        self.model.eval()
        sums, counts = self._terms(batch, self.model, self.config.objective.weak_weight)
        return sums.double(), counts.double()

    @torch.no_grad()
    def rows_not_finite(self, batch: Batch, step_rows: range) -> list[int]:
        """Find the rows of the global batch whose own loss is not finite; collective.

        The loss is computed for each row, or for each pair where the objective compares pairs, in evaluation mode: with
        stored statistics, videos do not affect each other. A step can be skipped without any such row: where a
        gradient or the batch's own statistics overflowed.

        Args:
            batch: This worker's part.
            step_rows: Plan rows of the global batch.
        """
        self.model.eval()
        views = self._views(batch, self.model)
        objective = self.config.objective
        nothing = replace(
            views, **{f.name: torch.zeros_like(getattr(views, f.name)[:1]) for f in fields(views)}
        )
        nothing = replace(nothing, rows=nothing.rows - 1, frame_labels=nothing.frame_labels - 1)
        size = 2 if objective.paired else 1
        broken = torch.zeros(len(step_rows), dtype=torch.int64, device=self.device)
        # On all workers in the same order: objectives on pairs call collectives.
        for start in range(0, len(step_rows), size):
            mine = (views.rows >= step_rows.start + start) & (views.rows < step_rows.start + start + size)
            own = replace(views, **{f.name: getattr(views, f.name)[mine] for f in fields(views)})
            seen = own if bool(mine.any()) else nothing
            sums, _ = objective_terms(objective, seen, self.model.order_head, objective.weak_weight)
            broken[start : start + size] = int(not bool(sums.isfinite().all()))
        if self.num_workers > 1:
            dist.all_reduce(broken)
        return [row for row, count in zip(step_rows, broken.tolist(), strict=True) if count]

    def weak_weight(self, step: int) -> float:
        """Weight of the pairs of videos (weak_scl) at a step: a linear warm-up."""
        objective = self.config.objective
        warmup = objective.weak_warmup * self.num_steps
        return objective.weak_weight * (min(1.0, step / warmup) if warmup else 1.0)

    def _global_loss(self, batch: Batch, model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        sums, counts = self._terms(batch, model, self.weak_weight(step))
        if self.num_workers > 1:
            dist.all_reduce(counts)
        loss = (sums / counts.clamp(min=1)).sum()
        mask = batch.frame_mask
        totals = torch.stack([mask.flatten(1).any(dim=1).sum(), mask.sum()]).to(self.device)
        return loss, totals

    def _terms(self, batch: Batch, model: nn.Module, weak_weight: float) -> tuple[Tensor, Tensor]:
        views = self._views(batch, model)
        sums, counts = objective_terms(self.config.objective, views, self.model.order_head, weak_weight)
        return sums, counts.to(sums.dtype)

    def _views(self, batch: Batch, model: nn.Module) -> ObjectiveInputs:
        frames, mask = self._prepare(batch)
        seeds = batch.sample_seeds.flatten().to(self.device)
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.config.training.precision == "bf16"
        ):
            made = model(frames, mask, seeds)
        return ObjectiveInputs(
            frames=made.unflatten(0, (-1, 2)).to(torch.promote_types(made.dtype, torch.float32)),
            timestamps=batch.timestamps.to(self.device),
            mask=batch.frame_mask.to(self.device),
            frame_labels=batch.frame_labels.to(self.device),
            rows=batch.rows.to(self.device),
            seeds=batch.sample_seeds.to(self.device),
        )

    def _prepare(self, batch: Batch) -> tuple[Float[Tensor, "views T 3 S S"], Bool[Tensor, "views T"]]:
        frames = frames_on_device(batch, self.config, self.device)
        mask = batch.frame_mask.to(self.device)
        backbone = self.model.encoder.backbone
        return normalize(frames.flatten(0, 1), backbone.mean, backbone.std), mask.flatten(0, 1)
