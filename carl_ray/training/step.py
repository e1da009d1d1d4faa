"""Training step: update the weights with a batch of views. Free of Ray.

    Batch (uint8) ─ to device ▶ for each phase: normalise ▶ FVE ▶ objective ─ backward ▶ clip ▶ all finite? ▶ optimiser

Losses are means over the *global* batch: sums and counts are added over the workers before the division, so the number
of workers and the distribution of the videos over them change only rounding.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from carl_ray.config import Config
from carl_ray.data.batch import batch_on_device
from carl_ray.machine import has_native_bf16
from carl_ray.objectives.base import Batch, Encoding, Phase, Terms
from carl_ray.training.learner import initial_learner


def computes_bf16(config: Config, device_type: str) -> bool:
    """Whether a device computes a model in bf16 in hardware, and rightly.

    On CPUs, encoders of clips are not: oneDNN's gradient of a 3-D convolution over two frames is not finite, or any
    number (torch 2.14), for its weights.
    """
    is_wrong = device_type == "cpu" and config.model.temporal_encoder == "clip"
    return has_native_bf16(device_type) and not is_wrong


def with_precision(config: Config, *, native_bf16: bool) -> Config:
    """Replace a `training.precision` of `auto` by bf16 or fp32."""
    if config.training.precision != "auto":
        return config
    return replace(config, training=replace(config.training, precision="bf16" if native_bf16 else "fp32"))


@dataclass(frozen=True)
class StepReport:
    """Result of a step, the same on every worker."""

    loss: float
    """Of the last phase: mean over all valid anchors of the global batch, the terms summed."""
    gradient_norm: float
    """Of the last phase on the global batch, before clipping."""
    learning_rate: float
    applied: bool
    """False if the loss or a gradient of a phase was not finite on some worker: then no worker changed its weights in
    this phase, or batch-norm statistics in this step, and the phases after it were left out."""
    num_videos: int
    """Videos of the global batch that had frames."""
    num_frames: int
    """Real frames of the global batch, all views."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the objective reports besides, of the last phase on the global batch."""
    warnings: tuple[str, ...] = ()
    """Of the objective."""


class TrainingStep:
    """Learner and optimisers of one worker.

    Args:
        config: The run. A precision of `auto` is resolved for this machine.
        device: Device of the worker.
        num_steps: Steps of the run, for the learning rate.
    """

    def __init__(self, config: Config, device: torch.device, num_steps: int) -> None:
        self.config = config = with_precision(config, native_bf16=computes_bf16(config, device.type))
        self.device = device
        self.num_steps = num_steps
        self.model = initial_learner(config).to(device)
        self.phases = self.model.objective.phases(self.model.encoder, self._adam)
        self._rates = [[group["lr"] for group in phase.optimizer.param_groups] for phase in self.phases]
        self.num_workers = dist.get_world_size() if dist.is_initialized() else 1
        self._forward: nn.Module = self.model
        if self.num_workers > 1:
            # Batch-norm layers synchronise their statistics themselves, or not at all.
            # torch 2.14 deprecates `broadcast_buffers`; both names leave the buffers alone in the forward pass.
            parameters = inspect.signature(DistributedDataParallel).parameters
            name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
            # A phase of several reaches only some of the weights, an objective on streams perhaps one of them.
            reaches_some = len(self.phases) > 1 or config.objective.reads_streams
            options: dict[str, Any] = {name: False, "find_unused_parameters": reaches_some}
            self._forward = DistributedDataParallel(self.model, **options)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step: one cosine decay to zero over the run (section 4.2), after the warm-up."""
        return self._decayed(self.config.optimizer.learning_rate, step)

    def train(self, batch: Batch, step: int) -> StepReport:
        """Train on this worker's part of one global batch; a collective call."""
        self._forward.train()
        batch = batch_on_device(batch, self.config, self.device)
        statistics = [b for m in self.model.modules() if m.training for b in m.buffers(recurse=False)]
        before = [buffer.clone() for buffer in statistics]
        encodings = detached = None
        *earlier, last = self.phases
        if earlier and not any(phase.trains_encoder for phase in earlier):
            # Once for all phases.
            with self._autocast(), torch.set_grad_enabled(last.trains_encoder):
                encodings = self.model.encode(batch)
            detached = {name: encoding.map(Tensor.detach) for name, encoding in encodings.items()}
        for phase, rates in zip(self.phases, self._rates, strict=True):
            for group, rate in zip(phase.optimizer.param_groups, rates, strict=True):
                group["lr"] = self._decayed(rate, step)
            report = self._update(phase, batch, step, encodings if phase.trains_encoder else detached)
            if not report.applied:
                # The forward pass has updated them, and a NaN there would stay.
                for buffer, value in zip(statistics, before, strict=True):
                    buffer.copy_(value)
                break
        return report

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums of anchor losses and numbers of anchors, of this worker's videos, float64."""
        self.model.eval()
        sums, counts = self._terms(batch_on_device(batch, self.config, self.device), self.model, 1.0)
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
        objective, phase = self.model.objective, self.phases[-1].name
        batch = batch_on_device(batch, self.config, self.device)
        with self._autocast():
            encodings = self.model.encode(batch)
        size = 2 if self.config.objective.pairs_videos else 1
        broken = torch.zeros(len(step_rows), dtype=torch.int64, device=self.device)
        # On all workers in the same order: objectives on pairs call collectives.
        for start in range(0, len(step_rows), size):
            first = step_rows.start + start
            chosen = (batch.rows >= first) & (batch.rows < first + size)
            own = partial(_rows, chosen=chosen)
            videos = batch.map(own)
            if not bool(chosen.any()):
                videos = replace(videos, rows=videos.rows - 1)
            seen = {name: encoding.map(own) for name, encoding in encodings.items()}
            with self._autocast():
                sums, _ = objective.phase_terms(phase, seen, videos, 1.0)
            broken[start : start + size] = int(not bool(sums.isfinite().all()))
        if self.num_workers > 1:
            dist.all_reduce(broken)
        return [row for row, count in zip(step_rows, broken.tolist(), strict=True) if count]

    def _update(
        self, phase: Phase, batch: Batch, step: int, encodings: Mapping[str, Encoding] | None
    ) -> StepReport:
        """Compute a phase of a step and apply it if everything is finite on all workers."""
        # The gradients of a phase also reach weights of others.
        self.model.zero_grad(set_to_none=True)
        own = [parameter for group in phase.optimizer.param_groups for parameter in group["params"]]
        # DDP would send the gradients of the whole encoder, which are none here.
        model = self._forward if phase.trains_encoder else self.model
        sums, counts = self._terms(batch, model, step / self.num_steps, phase, encodings)
        if self.num_workers > 1:
            dist.all_reduce(counts)
        loss = (sums / counts.clamp(min=1)).sum()
        if model is self._forward:
            # DDP averages the workers' gradients; the loss is a sum over them.
            (loss * self.num_workers).backward()
        else:
            loss.backward()
            self._add_gradients(own)
        norm = nn.utils.clip_grad_norm_(own, self.config.optimizer.max_gradient_norm)
        num_frames = sum(view.mask.sum() for view in batch.views.values())
        totals = (loss.detach(), batch.is_real.sum(), num_frames, norm.isfinite())
        report = torch.stack([torch.as_tensor(total).double() for total in totals])
        if self.num_workers > 1:
            dist.all_reduce(report)
        values = report.tolist()
        # All workers must decide alike, or their models would diverge.
        applied = math.isfinite(values[0]) and values[3] == self.num_workers
        if applied:
            phase.optimizer.step()
        rate = self.learning_rate(step)
        found = (self.figures(), self.model.objective.warnings) if phase is self.phases[-1] else ({}, ())
        return StepReport(values[0], norm.item(), rate, applied, int(values[1]), int(values[2]), *found)

    def _add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over the workers; a collective call."""
        for parameter in parameters if self.num_workers > 1 else ():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def figures(self) -> dict[str, float]:
        """Means of the objective's figures over the global batch; a collective call where there are any."""
        figures = self.model.objective.figures
        if not figures:
            return {}
        stacked = torch.stack([torch.as_tensor(figure).double() for figure in figures.values()])
        if self.num_workers > 1:
            dist.all_reduce(stacked)
        return {
            name: total / count if count else 0.0
            for name, (total, count) in zip(figures, stacked.tolist(), strict=True)
        }

    def _terms(
        self,
        batch: Batch,
        model: nn.Module,
        progress: float,
        phase: Phase | None = None,
        encodings: Mapping[str, Encoding] | None = None,
    ) -> Terms:
        """Terms of a phase, by default of the last one, with counts as floating-point numbers."""
        phase = phase or self.phases[-1]
        with self._autocast():
            if encodings is None and not phase.trains_encoder:
                with torch.no_grad():
                    encodings = self.model.encode(batch)
            sums, counts = model(batch, progress, phase.name, encodings)
        return Terms(sums, counts.to(sums.dtype))

    def _autocast(self) -> torch.autocast:
        enabled = self.config.training.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _adam(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        options = self.config.optimizer
        encoder = {id(p) for p in self.model.encoder.parameters()} if options.encoder_scale != 1 else set()
        # By whether they are the encoder's, and whether they are biases or of normalisation.
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for p in parameters:
            groups.setdefault((id(p) in encoder, options.name == "adamw" and p.ndim <= 1), []).append(p)
        rate, decay = options.learning_rate, options.weight_decay
        given = [
            {
                "params": groups[kind],
                "lr": rate * (options.encoder_scale if kind[0] else 1),
                "weight_decay": 0.0 if kind[1] else decay,
            }
            for kind in sorted(groups)
        ]
        return (torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam)(given)

    def _decayed(self, rate: float, step: int) -> float:
        warmup = self.config.optimizer.warmup * self.num_steps
        if step < warmup:
            return rate * (step + 1) / (warmup + 1)
        return 0.5 * rate * (1 + math.cos(math.pi * (step - warmup) / (self.num_steps - warmup)))


def _rows(part: Tensor, chosen: Tensor) -> Tensor:
    """Rows of a tensor of a batch, or one of zeros, which is fully masked, where none is chosen."""
    return part[chosen] if bool(chosen.any()) else torch.zeros_like(part[:1])
