import itertools
import math

import pytest
import torch

from carl_ray.objectives.dtw import dynamic_time_warping, open_ended_dtw
from tests.objectives.sequences import mask


def slow_dtw(cost):
    """Path and cost of one pair, a cell at a time; ties: (1, 1), then (1, 0), then (0, 1)."""
    n, m = cost.shape
    best = {}
    for i in range(n):
        for j in range(m):
            ways = [best[cell][0] for cell in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if cell in best]
            before = [cell for cell in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if cell in best]
            if not ways:
                best[i, j] = (float(cost[i, j]), None)
                continue
            least = min(ways)
            best[i, j] = (least + float(cost[i, j]), before[ways.index(least)])
    path, cell = [], (n - 1, m - 1)
    while cell is not None:
        path.append(cell)
        cell = best[cell][1]
    return path[::-1], best[n - 1, m - 1][0]


def all_paths(n, m):
    """Every warping path of an n x m matrix, by brute force."""
    if (n, m) == (1, 1):
        return [[(0, 0)]]
    shorter = [(n - di, m - dj) for di, dj in ((1, 1), (1, 0), (0, 1)) if n - di > 0 and m - dj > 0]
    return [[*path, (n - 1, m - 1)] for size in shorter for path in all_paths(*size)]


def cells_of(path, n, m):
    cells = torch.zeros(n, m, dtype=torch.bool)
    for i, j in path:
        cells[i, j] = True
    return cells


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (7, 1), (5, 5), (4, 9), (70, 31), (40, 130)])
def test_paths_and_costs_equal_a_slow_dtw(n, m):
    cost = torch.rand(3, n, m, generator=torch.Generator().manual_seed(n * m), dtype=torch.float64)
    found = dynamic_time_warping(cost, mask(n, n, n, time=n), mask(m, m, m, time=m))
    for b in range(3):
        path, total = slow_dtw(cost[b])
        assert torch.equal(found.cells[b], cells_of(path, n, m))
        assert found.cost[b].item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(3, 4), (4, 4)])
def test_no_path_is_cheaper(n, m):
    cost = torch.rand(1, n, m, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.3
    least = min(sum(cost[0, i, j].item() for i, j in path) for path in all_paths(n, m))
    found = dynamic_time_warping(cost, mask(n, time=n), mask(m, time=m))
    assert found.cost.item() == pytest.approx(least)
    assert cost[found.cells].sum().item() == pytest.approx(least)


@pytest.mark.parametrize("seed", range(5))
def test_ties_are_broken_in_the_documented_order(seed):
    cost = torch.randint(0, 3, (1, 9, 12), generator=torch.Generator().manual_seed(seed)).float()
    path, total = slow_dtw(cost[0])
    found = dynamic_time_warping(cost, mask(9, time=9), mask(12, time=12))
    assert torch.equal(found.cells[0], cells_of(path, 9, 12))
    assert found.cost.item() == total


def test_padding_does_not_matter_whatever_it_holds():
    generator = torch.Generator().manual_seed(0)
    lengths = [(20, 13), (3, 17), (1, 1), (8, 1), (20, 17)]
    cost = torch.rand(len(lengths), 20, 17, generator=generator, dtype=torch.float64)
    mask1 = mask(*(n for n, _ in lengths), time=20)
    mask2 = mask(*(m for _, m in lengths), time=17)
    for filling in (0, -100, math.inf, math.nan):
        cost[~(mask1[:, :, None] & mask2[:, None, :])] = filling
        found = dynamic_time_warping(cost, mask1, mask2)
        for b, (n, m) in enumerate(lengths):
            path, total = slow_dtw(cost[b, :n, :m])
            assert torch.equal(found.cells[b], cells_of(path, 20, 17))
            assert found.cost[b].item() == pytest.approx(total)


def test_a_video_without_frames_has_no_path_and_costs_nothing():
    found = dynamic_time_warping(torch.rand(3, 4, 5), mask(0, 4, 0, time=4), mask(5, 0, 0, time=5))
    assert not found.cells.any()
    assert found.cost.tolist() == [0, 0, 0]
    assert dynamic_time_warping(torch.rand(2, 0, 5), mask(0, 0, time=0), mask(5, 5, time=5)).cost.shape == (
        2,
    )


def test_costs_that_are_not_numbers_still_give_a_path():
    found = dynamic_time_warping(torch.full((1, 5, 6), math.nan), mask(5, time=5), mask(6, time=6))
    steps = found.cells[0].nonzero().diff(dim=0).tolist()
    assert all(step in ([1, 0], [0, 1], [1, 1]) for step in steps)
    assert found.cells[0, 0, 0]
    assert found.cells[0, 4, 5]


def test_half_precision_is_accumulated_in_float32():
    cost = torch.full((1, 600, 600), 1.0, dtype=torch.bfloat16)
    found = dynamic_time_warping(cost, mask(600, time=600), mask(600, time=600))
    assert found.cost.dtype == torch.float32
    assert found.cost.item() == 600


def test_views_of_other_tensors_are_read_right():
    wide = torch.rand(2, 30, 40, generator=torch.Generator().manual_seed(3))
    parts = (wide[:, 3:21, 5:31], wide.mT, wide[1:, 2:].requires_grad_())
    for cost in parts:
        masks = [torch.ones(cost.shape[0], size, dtype=torch.bool) for size in cost.shape[1:]]
        found, copied = dynamic_time_warping(cost, *masks), dynamic_time_warping(cost.clone(), *masks)
        assert torch.equal(found.cells, copied.cells)
        assert torch.equal(found.cost, copied.cost)
        assert not found.cost.requires_grad


@pytest.mark.parametrize("gap", [0.05, 0.2, 1.0])
def test_no_path_with_open_ends_is_cheaper(gap):
    lengths = [(3, 4), (4, 4), (1, 4), (4, 1)]
    cost = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mask1, mask2 = (mask(*sizes, time=4) for sizes in zip(*lengths, strict=True))
    cost[~(mask1[:, :, None] & mask2[:, None, :])] = math.nan
    found = open_ended_dtw(cost, mask1, mask2, torch.full((4,), gap, dtype=torch.float64))
    for b, (n, m) in enumerate(lengths):
        ways = {(): gap * (n + m)}
        for i, j, last1, last2 in itertools.product(range(n), range(m), range(n), range(m)):
            if 0 in (i, j) and (last1 == n - 1 or last2 == m - 1) and i <= last1 and j <= last2:
                left_out = i + j + n - 1 - last1 + m - 1 - last2
                for path in all_paths(last1 - i + 1, last2 - j + 1):
                    cells = tuple((i + x, j + y) for x, y in path)
                    ways[cells] = sum(cost[b, x, y].item() for x, y in cells) + gap * left_out
        best = min(ways, key=ways.get)
        assert torch.equal(found.cells[b], cells_of(best, 4, 4))
        assert found.cost[b].item() == pytest.approx(ways[best])


def test_open_ends_of_a_video_without_frames():
    gap = torch.ones(3)
    found = open_ended_dtw(torch.rand(3, 4, 5), mask(0, 4, 0, time=4), mask(5, 0, 0, time=5), gap)
    assert not found.cells.any() and found.cost.tolist() == [0, 0, 0]
    assert open_ended_dtw(torch.rand(1, 0, 5), mask(0, time=0), mask(5, time=5), gap[:1]).cells.shape == (
        1,
        0,
        5,
    )
