"""Batch normalisation over one worker, over all workers, or with stored statistics."""

from __future__ import annotations

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
        own = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
        if x.numel():
            own[-1] = x.numel() // channels
            own[:channels] = sum(_sum_frames(part.to(dtype)) for part in _parts(x)) / own[-1]
            center = _per_channel(own[:channels].to(dtype), x)
            deviations = (part.to(dtype).sub(center) for part in _parts(x))
            own[channels:-1] = sum(_sum_frames(deviation.square_()) for deviation in deviations)
            # The centre was rounded; squares about another point than the mean are larger by that distance squared.
            own[channels:-1] -= own[-1] * (own[:channels] - center.flatten().double()).square()
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
        channels, dtype = x.shape[1], mean.dtype
        center, scale = _per_channel(mean, x), torch.rsqrt(variance + ctx.eps)
        own = torch.zeros(2 * channels, dtype=torch.float64, device=x.device)
        for part, gradient in zip(_parts(x), _parts(gradients[0]), strict=True):
            gradient = gradient.to(dtype)
            own[:channels] += _sum_frames(part.to(dtype).sub(center).mul_(gradient))
            own[channels:] += _sum_frames(gradient)
        own[:channels] *= scale
        sums = _gather(own).sum(0)
        through_deviation, through_mean = (sums * share).to(dtype).split(channels)
        through_deviation = _per_channel(through_deviation * scale, x)
        through_mean, scale = _per_channel(through_mean, x), _per_channel(weight * scale, x)
        through_output = torch.empty_like(x)
        for part, gradient, result in zip(
            _parts(x), _parts(gradients[0]), _parts(through_output), strict=True
        ):
            centered = part.to(dtype).sub(center).mul_(through_deviation)
            torch.mul(centered.add_(through_mean).neg_().add_(gradient), scale, out=centered)
            result.copy_(centered)
        return (
            through_output,
            own[:channels].to(weight.dtype),
            own[channels:].to(weight.dtype),
            None,
            None,
            None,
        )


def _parts(x: Tensor) -> Sequence[Tensor]:
    """Runs of frames: on a CPU small ones, whose intermediate results stay in its cache."""
    if not x.numel():
        return (x,)
    # On other devices large ones, which bound the memory of intermediate results.
    values = _PART_VALUES if x.device.type == "cpu" else 256 * _PART_VALUES
    return x.split(max(1, values // x[0].numel()))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values of the channels in a shape that broadcasts over frames."""
    return values.view(-1, *[1] * (x.dim() - 2))


def _sum_frames(x: Tensor) -> Tensor:
    """Sum of every channel, float64."""
    return (x if x.dim() == 2 else x.sum(list(range(2, x.dim())))).double().sum(0)


def _gather(own: Tensor) -> Tensor:
    """The vectors of all workers, by rank."""
    if _world_size() == 1:
        return own[None]
    gathered = [torch.empty_like(own) for _ in range(_world_size())]
    dist.all_gather(gathered, own)
    return torch.stack(gathered)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
