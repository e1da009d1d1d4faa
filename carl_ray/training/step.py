"""The training step: a batch of view pairs becomes one update of the weights. Free of Ray.

    Batch (uint8) ─ to device, normalise ▶ FVE ▶ head ▶ objective ─ backward ▶ clip ▶ all finite? ▶ Adam

Losses are means over the *global* batch: every worker adds sums, counts are summed over the workers before
the division, so the number of workers and how the videos fall on them change nothing but rounding.

Legend: B videos of this worker, T frames of a view, S pixels, D embedding width, W workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from carl_ray.config import Config
from carl_ray.data.augment import normalize
from carl_ray.data.sample import Batch, frames_on_device
from carl_ray.machine import has_native_bf16
from carl_ray.model.encoder import FrameLevelVideoEncoder, ProjectionHead
from carl_ray.objectives.shuffle_and_learn import OrderHead
from carl_ray.training.objective import PROJECTED, ObjectiveInputs, objective_terms


class TrainedModel(nn.Module):
    """The encoder and the head that only the loss sees; the unit that is trained and checkpointed.

    The head is the projection, the classifier of frames, the classifier of orders, or none, as the objective wants.
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
        """What the objective sees of all views: projections Z, embeddings H, or logits of the frame classes."""
        embeddings: Tensor = self.encoder(frames, frame_mask, sample_seeds=sample_seeds)
        if self.projection is not None:
            projections: Tensor = self.projection(embeddings, frame_mask)
            return projections
        if self.classifier is not None:
            logits: Tensor = self.classifier(embeddings)
            return logits
        return embeddings


def initial_model(config: Config) -> TrainedModel:
    """The model as a run of this config begins, but for pretrained weights of the backbone: the same everywhere.

    It depends on the config's seed alone, not on what the process drew earlier.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return TrainedModel(config)


def with_precision(config: Config, *, native_bf16: bool) -> Config:
    """The config with a `training.precision` of `auto` decided."""
    if config.training.precision != "auto":
        return config
    return replace(config, training=replace(config.training, precision="bf16" if native_bf16 else "fp32"))


@dataclass(frozen=True)
class StepReport:
    """What a step did, the same on every worker."""

    loss: float
    """Mean over all valid anchors of the global batch, both directions summed."""
    gradient_norm: float
    """Of the global batch, before clipping."""
    learning_rate: float
    applied: bool
    """False where the loss or a gradient was not finite on some worker: then no worker changed its weights or
    batch-norm statistics."""
    num_videos: int
    """Videos of the global batch that had frames."""
    num_frames: int
    """Real frames of the global batch, both views."""


class TrainingStep:
    """Model, optimiser and objective of one worker.

    Args:
        config: The run. A precision of `auto` is decided by this machine alone.
        device: Where the worker computes.
        num_steps: Length of the run, for the learning rate.
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
            # Buffers stay apart: batch norm's statistics are synchronised by its layers, or not at all.
            self._forward = DistributedDataParallel(self.model, broadcast_buffers=False)

    def learning_rate(self, step: int) -> float:
        """Of a step: cosine decay to zero over the whole run, without restarts (paper, section 4.2)."""
        return 0.5 * self.config.optimizer.learning_rate * (1 + math.cos(math.pi * step / self.num_steps))

    def train(self, batch: Batch, step: int) -> StepReport:
        """Trains on this worker's part of one global batch; all workers must call it for the same step."""
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
        # Agreed on: a worker that alone stepped, or alone did not, would train another model from here on.
        applied = math.isfinite(values[0]) and values[3] == self.num_workers
        if applied:
            self.optimizer.step()
        else:
            # Batch norm took the statistics in on the way forward, and a NaN there would stay for ever.
            for buffer, value in zip(statistics, before, strict=True):
                buffer.copy_(value)
        return StepReport(values[0], norm.item(), learning_rate, applied, int(values[1]), int(values[2]))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums of anchor losses and numbers of anchors of each term, float64, of this worker's videos alone."""
        self.model.eval()
        sums, counts = self._terms(batch, self.model, self.config.objective.weak_weight)
        return sums.double(), counts.double()

    @torch.no_grad()
    def rows_not_finite(self, batch: Batch, step_rows: range) -> list[int]:
        """Rows of the global batch whose own loss is not finite: the same list on every worker.

        The loss of each row by itself, or of each pair where the objective compares pairs, as validation computes it:
        with stored statistics, so that one video does not spoil the others. A step can be skipped without any such
        row: where a gradient overflowed, or the batch's own statistics. A collective call.

        Args:
            batch: This worker's part.
            step_rows: Rows of the plan that the global batch has.
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
        # One after the other on all workers alike: objectives that gather call collectives, for a pair may lie on two.
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
        """Weight of the pairs of videos (weak_scl) at a step: grows linearly over the first part of the run."""
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
        return normalize(frames.flatten(0, 1)), mask.flatten(0, 1)
