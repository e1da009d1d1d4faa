"""Batch normalisation over one worker, over all workers, or with stored statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

Mode = Literal["synchronized", "local", "frozen"]

_PART_VALUES = 2**16
"""Values that a CPU computes at once: 256 KiB of float32."""


class BatchNorm(_BatchNorm):
    """Batch normalisation with a choice of statistics; its state is torch's.

    - `synchronized`: statistics of the frames of all workers, of which each may have any number. Unlike
      `torch.nn.SyncBatchNorm` it works on CPUs, with gloo. A collective call; running statistics stay bit-equal.
    - `local`: statistics of the frames of this worker, as `torch.nn.BatchNorm2d`.
    - `frozen`: always the stored statistics.

    In evaluation mode all three use the stored statistics. So does a batch with fewer than two values per channel: it
    has no variance, and leaves the running statistics unchanged. Statistics are float32 or better.

    Args:
        num_features: Channels C.
        mode: See above.
        activation: Applied to the output; timm's layers of batch norm have one.

    Shape:
        input: (N, C) or (N, C, *space), N >= 0; output: the same.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, mode: Mode = "synchronized", activation: nn.Module | None = None
    ) -> None:
        super().__init__(num_features)
        self.mode: Mode = mode
        self.activation = activation
        self.update_rate = 0.1

    def forward(
        self, input: Float[Tensor, "frames channels *space"]
    ) -> Float[Tensor, "frames channels *space"]:
        """Normalise, scale and shift the input; in training mode, update the running statistics."""
        output = self._normalise(input)
        return output if self.activation is None else self.activation(output)

    def _normalise(self, input: Tensor) -> Tensor:
        # On a CPU also for a single worker: torch's float32 sums are off by up to 1e-5 there, which training
        # amplifies, so that one worker and two would soon have different losses.
        if (
            self.training
            and self.mode == "synchronized"
            and (_world_size() > 1 or input.device.type == "cpu")
        ):
            output, mean, variance, count = _SynchronizedBatchNorm.apply(
                input, self.weight, self.bias, self.running_mean, self.running_var, self.eps
            )
            self._update_running(mean, variance, count)
            return output
        from_batch = self.training and self.mode != "frozen" and input.numel() >= 2 * self.num_features
        if from_batch:
            self.num_batches_tracked.add_(1)
        return functional.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=from_batch,
            momentum=self.update_rate,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """Features and mode, for `print(module)`."""
        return f"{self.num_features}, mode={self.mode!r}"

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        # `rate` is 0 for a batch without a variance; a tensor, since reading the count would synchronise the GPU.
        enough = count >= 2
        rate = enough * self.update_rate
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate.to(self.running_mean.dtype))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate.to(self.running_var.dtype))
        self.num_batches_tracked.add_(enough.to(self.num_batches_tracked.dtype))


def own_batch_norm(module: nn.Module, mode: Mode) -> None:
    """Replace every batch norm inside a module, and timm's with an activation, by `BatchNorm`, in place."""
    for name, child in module.named_children():
        if isinstance(child, BatchNorm) or not (
            isinstance(child, _BatchNorm) and child.affine and child.track_running_stats
        ):
            own_batch_norm(child, mode)
            continue
        after = [part for part in child.children() if not isinstance(part, nn.Identity)]
        own = BatchNorm(child.num_features, mode, nn.Sequential(*after) if after else None)
        own.load_state_dict(child.state_dict())
        own.eps = child.eps
        own.update_rate = own.update_rate if child.momentum is None else child.momentum
        setattr(module, name, own)


class _SynchronizedBatchNorm(torch.autograd.Function):
    """Batch norm over all workers: one collective call forward, one backward.

    Each frame is summed in float32, and frames are added in float64: the result hardly depends on the distribution of
    the frames over the workers. Means and sums of squared deviations are combined as by Chan et al., which keeps its
    precision where the mean is large against the deviation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        stored_mean: Tensor,
        stored_variance: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        dtype = torch.promote_types(x.dtype, torch.float32)
        x = x if _has_channels_last(x) else x.contiguous()
        own = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
        if x.numel():
            parts = _Parts(x, dtype)
            own[-1] = x.numel() // channels
            own[:channels] = sum(parts.sum(parts.convert(part)) for part in parts.of(x)) / own[-1]
            center = own[:channels].to(dtype)
            centers = parts.spread(center)
            own[channels:-1] = sum(parts.sum(parts.minus(part, centers).square_()) for part in parts.of(x))
            # The centre was rounded; squares about another point than the mean are larger by that distance squared.
            own[channels:-1] -= own[-1] * (own[:channels] - center.double()).square()
        table = _gather(own)
        means, deviations_of_all, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
        total = counts.sum()
        mean = (means * counts).sum(0) / total.clamp(min=1)
        variance = (deviations_of_all + counts * (means - mean).square()).sum(0) / total.clamp(min=1)
        enough = total >= 2
        mean = torch.where(enough, mean.to(dtype), stored_mean.to(dtype))
        variance = torch.where(enough, variance.to(dtype), stored_variance.to(dtype))
        output = functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        # Gradient share through the statistics; 0 where the stored ones were used.
        share = torch.where(enough, 1 / total.clamp(min=1), 0)
        ctx.save_for_backward(x, weight, mean, variance, share)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, total)
        return output, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, share = ctx.saved_tensors
        channels, scale = x.shape[1], torch.rsqrt(variance + ctx.eps)
        output_gradient, through_output = gradients[0], torch.empty_like(x)
        if output_gradient.stride() != x.stride():
            output_gradient = torch.empty_like(x).copy_(output_gradient)
        parts = _Parts(x, mean.dtype)
        centers = parts.spread(mean)
        own = torch.zeros(2 * channels, dtype=torch.float64, device=x.device)
        for part, of_output in zip(parts.of(x), parts.of(output_gradient), strict=True):
            gradient = parts.convert(of_output)
            own[channels:] += parts.sum(gradient)
            own[:channels] += parts.sum(parts.minus(part, centers).mul_(gradient))
        own[:channels] *= scale
        sums = _gather(own).sum(0)
        through_deviation, through_mean = (sums * share).to(mean.dtype).split(channels)
        slope = weight * scale
        slopes = parts.spread(slope)
        offsets, falls = parts.spread(-slope * through_mean), parts.spread(-slope * scale * through_deviation)
        for part, of_output, result in zip(
            parts.of(x), parts.of(output_gradient), parts.of(through_output), strict=True
        ):
            size, centered = len(part), parts.minus(part, centers)
            torch.addcmul(offsets[:size], centered, falls[:size], out=centered)
            result.copy_(centered.addcmul_(parts.convert(of_output), slopes[:size]))
        return (
            through_output,
            own[:channels].to(weight.dtype),
            own[channels:].to(weight.dtype),
            None,
            None,
            None,
        )


class _Parts:
    """Runs of frames of tensors that are laid out alike, as matrices in the order of their memory.

    On a CPU the runs are short, so that intermediate results stay in its cache; on other devices long, which bounds
    the memory of intermediate results. These overwrite those of the part before.

    Args:
        like: (N, C) or (N, C, *space), contiguous in this order or with the channels last.
        dtype: Of the results.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self._is_on_cpu = like.device.type == "cpu"
        self._channels_last = _has_channels_last(like)
        num_channels, num_places = like.shape[1], math.prod(like.shape[2:])
        values = _PART_VALUES if self._is_on_cpu else 256 * _PART_VALUES
        num_frames = max(1, min(len(like), values // max(1, num_channels * num_places)))
        matrix = (num_places, num_channels) if self._channels_last else (num_channels, num_places)
        self._shape = num_frames, *matrix
        self._converted, self._centered = like.new_empty((2, *self._shape), dtype=dtype)

    def of(self, x: Tensor) -> Sequence[Tensor]:
        """Views (frames, places, C) or (frames, C, places) of a tensor."""
        stored = x.movedim(1, -1) if self._channels_last else x
        return stored.reshape(-1, *self._shape[1:]).split(self._shape[0]) if x.numel() else ()

    def spread(self, values: Float[Tensor, " C"]) -> Tensor:
        """The values of the channels at every place of a part.

        In memory on a CPU: a loop for each place, over its channels, would take twice as long.
        """
        spread = (values if self._channels_last else values[:, None]).expand(self._shape)
        return spread.contiguous() if self._is_on_cpu else spread

    def convert(self, part: Tensor) -> Tensor:
        """A part in the type of the results."""
        same = part.dtype == self._converted.dtype
        return part if same else self._converted[: len(part)].copy_(part)

    def minus(self, part: Tensor, centers: Tensor) -> Tensor:
        """A part without the means of its channels."""
        centered = self._centered[: len(part)]
        if part.dtype == centered.dtype:
            return torch.sub(part, centers[: len(part)], out=centered)
        return centered.copy_(part).sub_(centers[: len(part)])

    def sum(self, part: Tensor) -> Float[Tensor, " C"]:
        """Sum of every channel, float64; that of a frame in the part's own type."""
        return part.sum(1 if self._channels_last else 2).double().sum(0)


def _has_channels_last(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous()


def _gather(own: Tensor) -> Tensor:
    """The vectors of all workers, by rank."""
    if _world_size() == 1:
        return own[None]
    gathered = [torch.empty_like(own) for _ in range(_world_size())]
    dist.all_gather(gathered, own)
    return torch.stack(gathered)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
