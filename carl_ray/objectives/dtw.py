"""Dynamic time warping of pairs, batched and vectorised over anti-diagonals.

Legend: B pairs, N frames of the first video, M frames of the second, D = N + M - 1 anti-diagonals.

Cell (i, j) lies on anti-diagonal d = i + j and depends on the two anti-diagonals before it alone, so a whole
anti-diagonal of all pairs is computed at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor
from torch.nn import functional

# Steps by which a path reaches a cell: (1, 1), (1, 0), (0, 1), or none at the first cell.
_DIAGONAL, _FIRST, _SECOND, _START = range(4)
# Anti-diagonals whose accumulated costs are held at a time. The choice of steps is computed a block at a time:
# few kernels for short videos, and memory of one byte a cell beside the costs for long ones.
_BLOCK = 64
_GAP = 0.35
# So that rounding does not leave out frames of videos in which all frames are alike.
_LEAST_GAP = 1e-4


@dataclass(frozen=True, eq=False)
class DtwPath:
    """Cheapest warping paths of B pairs of videos."""

    cells: Bool[Tensor, "B N M"]
    """True where frame i of the first and frame j of the second video are partners."""
    cost: Float[Tensor, " B"]
    """Sum of the costs over the cells of the path."""


@torch.no_grad()
def dynamic_time_warping(
    cost: Float[Tensor, "B N M"], mask1: Bool[Tensor, "B N"], mask2: Bool[Tensor, "B M"]
) -> DtwPath:
    """Path of least cost from the first to the last real frames of each pair.

    Paths have the steps (1, 0), (0, 1) and (1, 1). Of equally cheap ways to reach a cell,
    (1, 1) is taken first, then (1, 0), then (0, 1).
    Computed without gradient, in float32 or better, on the device of `cost`; what padded cells hold does
    not matter. A cost of NaN gives a path of single steps that means nothing, but is one.

    Args:
        cost: Costs of partnership, of any sign.
        mask1: True where a frame of the first video is real: the real frames come first.
        mask2: True where a frame of the second video is real, likewise.

    Returns:
        Path cells, none in a pair in which a video has no real frame, and total costs, there 0.
    """
    batch, first, second = cost.shape
    length1, length2 = mask1.sum(1), mask2.sum(1)
    if cost.numel() == 0:
        return DtwPath(torch.zeros_like(cost, dtype=torch.bool), cost.new_zeros(batch))
    steps, total = _accumulate(cost, length1, length2)

    # A cell's place in the flattened (D, B, N) steps, and how far back each step leads.
    pair = torch.arange(batch, device=cost.device)
    row = batch * first
    back = torch.tensor([2 * row + 1, row + 1, row, 0], device=cost.device)
    end1, end2 = (length1 - 1).clamp(min=0), (length2 - 1).clamp(min=0)
    place = ((end1 + end2) * batch + pair) * first + end1
    flat = steps.flatten()
    places = [place]
    for _ in range(first + second - 2):
        place = place - back[flat[place].long()]
        places.append(place)
    visited = torch.stack(places)
    index1 = visited % first
    index2 = visited // row - index1
    cells = torch.zeros_like(cost, dtype=torch.bool)
    real = (length1 > 0) & (length2 > 0)
    cells[pair.expand_as(visited), index1, index2] = real.expand_as(visited)
    return DtwPath(cells, total.where(real, 0))


def relative_gap(
    cost: Float[Tensor, "B N M"], mask1: Bool[Tensor, "B N"], mask2: Bool[Tensor, "B M"]
) -> Float[Tensor, " B"]:
    """Cost of a frame without a partner, relative to the mean cost of all real cells.

    So it suits whatever an encoder has learnt and however noisy the frames are. Measured: docs/results.md.
    """
    real = mask1[:, :, None] & mask2[:, None, :]
    mean = cost.where(real, 0).sum((1, 2)) / real.sum((1, 2)).clamp(min=1)
    return (_GAP * mean).clamp(min=_LEAST_GAP)


def open_ended_dtw(
    cost: Float[Tensor, "B N M"],
    mask1: Bool[Tensor, "B N"],
    mask2: Bool[Tensor, "B M"],
    gap: Float[Tensor, " B"],
) -> DtwPath:
    """Path of least cost that leaves out frames at either end of either video.

    It begins at the first real frame of one of the videos and ends at the last one of one of them; each frame before
    and after it costs `gap`. So a step (1, 1) at an end is worth its cell up to a cost of twice the gap. Where nothing
    is worth it, no frame has a partner.

    Args:
        cost: As in `dynamic_time_warping`.
        mask1: As there.
        mask2: As there.
        gap: Cost of a frame that is left out, of each pair; positive, for only then some path is better than none.

    Returns:
        Path cells, and the sum of their costs and the gaps.
    """
    batch, first, second = cost.shape
    gaps = gap[:, None, None]
    real = mask1[:, :, None] & mask2[:, None, :]
    # A border of gaps around the real cells, with corners for nothing: its paths are those with tied ends.
    bordered = gaps.repeat(1, first + 2, second + 2)
    bordered[:, 1:-1, 1:-1] = cost.where(real, gaps)
    bordered[:, 0, 0] = 0
    bordered[torch.arange(batch, device=cost.device), mask1.sum(1) + 1, mask2.sum(1) + 1] = 0
    some = real.flatten(1).any(1, keepdim=True)
    path = dynamic_time_warping(
        bordered, *(functional.pad(mask, (2, 0), value=True) & some for mask in (mask1, mask2))
    )
    return DtwPath(path.cells[:, 1:-1, 1:-1] & real, path.cost)


def _accumulate(
    cost: Float[Tensor, "B N M"], length1: Tensor, length2: Tensor
) -> tuple[Int8[Tensor, "D B N"], Float[Tensor, " B"]]:
    """Step of the best path to each cell (i, d - i), and cost of the whole path."""
    batch, first, second = cost.shape
    device = cost.device
    dtype = torch.promote_types(cost.dtype, torch.float32)
    diagonals = first + second - 1
    # Cell (i, d - i) lies i * (M - 1) + d elements into its matrix; inside it for every i and d.
    packed = cost.contiguous()
    skewed = packed.as_strided(
        (diagonals, batch, first), (1, first * second, second - 1), packed.storage_offset()
    )
    steps = torch.empty(diagonals, batch, first, dtype=torch.int8, device=device)
    last = length1 + length2 - 2
    column = (length1.clamp(min=1))[None, :, None]
    total = torch.zeros(batch, dtype=dtype, device=device)
    # Rows are anti-diagonals, the first two those before the block; column 0 stands for i = -1.
    sums = torch.full((min(_BLOCK, diagonals) + 2, batch, first + 1), torch.inf, dtype=dtype, device=device)
    sums[0, :, 0] = 0  # so that the first cell is reached for nothing
    before, same = sums[:, :, :-1].unbind(0), sums[:, :, 1:].unbind(0)  # frame i - 1 at i, and frame i
    costs = torch.empty_like(sums[2:, :, 1:], memory_format=torch.contiguous_format)
    index1 = torch.arange(first, device=device)
    for start in range(0, diagonals, _BLOCK):
        size = min(_BLOCK, diagonals - start)
        index2 = torch.arange(start, start + size, device=device)[:, None] - index1
        outside = (index2 < 0) | (index2 >= second)
        block = costs[:size].copy_(skewed[start : start + size]).masked_fill_(outside[:, None], torch.inf)
        for number, row in enumerate(block.unbind(0)):
            best = torch.minimum(before[number + 1], same[number + 1])
            torch.add(torch.minimum(best, before[number], out=best), row, out=same[number + 2])
        along1, along2 = sums[1 : size + 1, :, :-1], sums[1 : size + 1, :, 1:]
        step = torch.sub(_SECOND, (along1 <= along2).view(torch.int8), out=steps[start : start + size])
        step *= ~(sums[:size, :, :-1] <= torch.minimum(along1, along2))  # _DIAGONAL is 0
        ends = sums[2:].gather(2, column.expand(sums.shape[0] - 2, -1, -1))[:size, :, 0]
        here = torch.arange(start, start + size, device=device)[:, None] == last
        total += ends.where(here, 0).sum(0)
        sums[:2] = sums[size : size + 2].clone()
    # At the edges there is no choice, whatever the costs are.
    steps.diagonal(dim1=0, dim2=2).fill_(_FIRST)
    steps[:, :, 0] = _SECOND
    steps[0, :, 0] = _START
    return steps, total
