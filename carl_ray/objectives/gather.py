"""What the workers of a run hold, gathered on every one of them, with gradients that flow back.

Legend: own rows of this worker, L the largest number of rows of a worker, W workers, B videos of this worker,
T frames of a view, D width of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional

ABSENT_ROW = -1
"""The row that `gather_videos` gives where it pads: a video that is not there."""


def gather_rows(*tensors: Shaped[Tensor, "own ..."]) -> tuple[Shaped[Tensor, "all ..."], ...]:
    """The rows of all workers, by rank, each worker's padded with zeros to the largest number of one.

    A row of a floating-point tensor gets the sum of the gradients that all workers have for it. Every worker
    must call this at the same time, with as many tensors of the same types and shapes but for the number of
    rows, which may be 0; and where one back-propagates through a result, all must.

    Args:
        *tensors: Tensors of this worker, with the same number of rows.

    Returns:
        Tensors with W * L rows; without `torch.distributed` the arguments themselves.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return tensors
    own = torch.tensor([len(tensors[0])], device=tensors[0].device)
    missing = int(torch.cat(_all_gather(own)).max()) - len(tensors[0])
    gathered = []
    for tensor in tensors:
        padded = functional.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, missing))
        if padded.is_floating_point():
            gathered.append(_AllGather.apply(padded))
        elif padded.dtype == torch.bool:  # not every backend has these
            gathered.append(torch.cat(_all_gather(padded.to(torch.uint8))).bool())
        else:
            gathered.append(torch.cat(_all_gather(padded)))
    return tuple(gathered)


def gather_videos(
    z: Float[Tensor, "B T D"],
    s: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    rows: Int64[Tensor, " B"],
) -> tuple[Float[Tensor, "all T D"], Float[Tensor, "all T"], Bool[Tensor, "all T"], Int64[Tensor, " all"]]:
    """The videos of all workers, so that any two can be compared wherever they fell; as `gather_rows`.

    Args:
        z: Embeddings or projections, whose gradients flow back to the worker that a video came from.
        s: Timestamps, in frames of the raw video.
        mask: True where a frame is real.
        rows: Rows of the plan, 0 or more, by which a video is found again.

    Returns:
        The same of all workers. A worker with fewer videos than another is padded with videos without frames,
        whose row is `ABSENT_ROW`.
    """
    # Zero stands for the padding on the way.
    every_z, every_s, every_mask, numbers = gather_rows(z, s, mask, rows - ABSENT_ROW)
    return every_z, every_s, every_mask, numbers + ABSENT_ROW


def _all_gather(tensor: Tensor) -> list[Tensor]:
    own = tensor.contiguous()
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return gathered


class _AllGather(torch.autograd.Function):
    """Rows of all workers, by rank; the gradient of a row is the sum of what all workers have for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.own = slice(dist.get_rank() * len(rows), (dist.get_rank() + 1) * len(rows))
        return torch.cat(_all_gather(rows))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.own]
