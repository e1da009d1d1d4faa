"""All-gather of rows over the workers, with gradients.

Legend: own rows of this worker, L the largest number of rows of a worker, W workers, B videos of this worker,
T frames of a view, D width of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.nn import functional


def gather_rows(*tensors: Shaped[Tensor, "own ..."]) -> tuple[Shaped[Tensor, "all ..."], ...]:
    """Gather the rows of all workers, by rank, padded with zeros.

    A row of a floating-point tensor gets the sum of its gradients on all workers. A collective call, forward and
    backward: tensors must have the same types and shapes on all workers, except for the number of rows, which may be 0.

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
        elif padded.dtype == torch.bool:  # Not supported by every backend.
            gathered.append(torch.cat(_all_gather(padded.to(torch.uint8))).bool())
        else:
            gathered.append(torch.cat(_all_gather(padded)))
    return tuple(gathered)


def own_rows(rows: Int64[Tensor, " own"], total: int) -> Int64[Tensor, " own"]:
    """Where rows of this worker are among the `total` rows of `gather_rows`."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    return rows + dist.get_rank() * (total // dist.get_world_size())


def sum_over_workers(tensor: Tensor) -> Tensor:
    """The sum over the workers, without gradient; a collective call."""
    total = tensor.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total


def _all_gather(tensor: Tensor) -> list[Tensor]:
    own = tensor.contiguous()
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return gathered


class _AllGather(torch.autograd.Function):
    """All-gather by rank; the gradient of a row is summed over the workers."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.own = slice(dist.get_rank() * len(rows), (dist.get_rank() + 1) * len(rows))
        return torch.cat(_all_gather(rows))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.own]
