"""Differentiable dynamic time warping, batched and vectorised.

    r_ij = cost_ij + minimum(r_(i-1)(j-1), r_(i-1)j, r_i(j-1))

with one of two smooth minima of three numbers a, both the minimum itself in the limit of no smoothing:

    soft      -smoothing * log sum_k exp(-a_k / smoothing)         Cuturi and Blondel, ICML 2017, equation 1
    expected  sum_k a_k softmax_k(-a / smoothing)                  Hadji, Derpanis and Jepson, CVPR 2021

The first makes r at the last cell the soft minimum over all warping paths, and so smaller than any of them;
the second is a mean under local choices of the step, and never smaller than the cheapest path.

Legend: P pairs, N frames of the first video, M frames of the second, D = N + M - 1 anti-diagonals.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Minimum = Literal["soft", "expected"]

# Score of a cell that no path reaches. Not infinite: differences of two of them must be numbers.
_UNREACHABLE = -1e30


def soft_dtw(
    cost: Float[Tensor, "P N M"],
    mask1: Bool[Tensor, "P N"],
    mask2: Bool[Tensor, "P M"],
    *,
    smoothing: float,
) -> Float[Tensor, " P"]:
    """Soft-DTW: the soft minimum of the costs of all warping paths.

    A path leads from the first to the last real frames by steps (1, 0), (0, 1), (1, 1). The gradient with
    respect to a cost is the probability that a path goes through its cell, where a path has a probability in
    proportion to exp(-its cost / smoothing). Costs of 0 give less than 0: `smoothing` times the logarithm of
    the number of paths less.

    Args:
        cost: Costs of partnership, of any sign.
        mask1: True where a frame of the first video is real: the real frames come first.
        mask2: True where a frame of the second video is real, likewise.
        smoothing: gamma, in units of the costs.

    Returns:
        In float32 or better, 0 without gradient where a video has no real frame. What padded cells hold
        changes neither value nor gradient.

    Raises:
        ValueError: `smoothing` is not positive.
    """
    table = accumulated_costs(cost, mask1, mask2, smoothing=smoothing, minimum="soft")
    return path_costs(table, mask1, mask2)


def accumulated_costs(
    cost: Float[Tensor, "P N M"],
    mask1: Bool[Tensor, "P N"],
    mask2: Bool[Tensor, "P M"],
    *,
    smoothing: float,
    minimum: Minimum,
) -> Float[Tensor, "P N M"]:
    """Table r of the recursion: smoothed costs of the paths to each cell.

    Args:
        cost: Costs of partnership, of any sign.
        mask1: True where a frame of the first video is real: the real frames come first.
        mask2: True where a frame of the second video is real, likewise.
        smoothing: In units of the costs.
        minimum: Which of the two smooth minima.

    Returns:
        In float32 or better, 0 without gradient in padded cells. It can be differentiated once.

    Raises:
        ValueError: `smoothing` is not positive.
    """
    if not smoothing > 0:
        raise ValueError(f"smoothing: expected a positive number, got {smoothing}")
    real = _first(mask1)[:, :, None] & _first(mask2)[:, None, :]
    clean = cost.to(torch.promote_types(cost.dtype, torch.float32)).where(real, 0)
    if clean.numel() == 0:
        return clean
    return _Accumulation.apply(clean, smoothing, minimum).where(real, 0)


def path_costs(
    table: Float[Tensor, "P N M"], mask1: Bool[Tensor, "P N"], mask2: Bool[Tensor, "P M"]
) -> Float[Tensor, " P"]:
    """Accumulated cost at the last real frames of each pair; 0 without frames."""
    length1, length2 = mask1.sum(1), mask2.sum(1)
    if table.numel() == 0:
        return table.sum((1, 2))
    pair = torch.arange(len(table), device=table.device)
    # Without real frames this is a padded cell, which is 0.
    return table[pair, (length1 - 1).clamp(min=0), (length2 - 1).clamp(min=0)]


def _first(mask: Bool[Tensor, "P N"]) -> Bool[Tensor, "P N"]:
    """As many frames as are real, from the first on."""
    return torch.arange(mask.shape[1], device=mask.device) < mask.sum(1, keepdim=True)


class _Accumulation(torch.autograd.Function):
    """Table of the recursion, computed on scores -r / smoothing.

    Row d + 2 of the table of scores is anti-diagonal d and column i + 1 is frame i: the first two rows and
    the first column lie outside and cannot be reached, but for (-1, -1), where all paths start.
    """

    @staticmethod
    def forward(ctx: Any, cost: Tensor, smoothing: float, minimum: Minimum) -> Tensor:
        scores = _to_diagonals(cost / -smoothing, _UNREACHABLE)
        diagonals, pairs, first = scores.shape
        table = scores.new_full((diagonals + 2, pairs, first + 1), _UNREACHABLE)
        table[0, :, 0] = 0
        rows = table.unbind(0)
        for number, row in enumerate(scores.unbind(0)):
            before = rows[number][:, :-1], rows[number + 1][:, :-1], rows[number + 1][:, 1:]
            match minimum:
                case "soft":
                    best = torch.logaddexp(torch.logaddexp(before[0], before[1]), before[2])
                case "expected":
                    ways = torch.stack(before)
                    best = (ways.softmax(0) * ways).sum(0)
                case _:
                    raise ValueError(f"minimum: expected soft or expected, got {minimum!r}")
            torch.add(best, row, out=rows[number + 2][:, 1:])
        ctx.save_for_backward(table)
        ctx.minimum = minimum
        return -smoothing * _to_matrix(table[2:, :, 1:], cost.shape[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (table,) = ctx.saved_tensors
        # Derivatives of each cell with respect to the three cells before it: known at once, for all cells.
        before = torch.stack([table[:-2, :, :-1], table[1:-1, :, :-1], table[1:-1, :, 1:]])
        slopes = before.softmax(0)
        if ctx.minimum == "expected":
            slopes = slopes * (1 + before - (slopes * before).sum(0))
        both, first, second = (slope.unbind(0) for slope in slopes)
        flow = _to_diagonals(gradient, 0.0).contiguous()
        rows = flow.unbind(0)
        for number in range(len(rows) - 2, -1, -1):
            row, after = rows[number], rows[number + 1]
            row.addcmul_(second[number + 1], after)
            row[:, :-1].addcmul_(first[number + 1][:, 1:], after[:, 1:])
            if number + 2 < len(rows):
                row[:, :-1].addcmul_(both[number + 2][:, 1:], rows[number + 2][:, 1:])
        return _to_matrix(flow, gradient.shape[2]), None, None


def _to_diagonals(matrix: Float[Tensor, "P N M"], outside: float) -> Float[Tensor, "D P N"]:
    """Cell (i, d - i) at [d, :, i], and `outside` where there is none."""
    _, first, second = matrix.shape
    index1 = torch.arange(first, device=matrix.device)
    index2 = torch.arange(first + second - 1, device=matrix.device)[:, None] - index1
    inside = (index2 >= 0) & (index2 < second)
    cells = matrix[:, index1, index2.clamp(0, second - 1)]
    return cells.transpose(0, 1).masked_fill(~inside[:, None], outside)


def _to_matrix(diagonals: Float[Tensor, "D P N"], second: int) -> Float[Tensor, "P N M"]:
    """The cells that `_to_diagonals` laid out, M = `second` frames wide."""
    index1 = torch.arange(diagonals.shape[2], device=diagonals.device)[:, None]
    index2 = torch.arange(second, device=diagonals.device)
    return diagonals[index1 + index2, :, index1].permute(2, 0, 1)
