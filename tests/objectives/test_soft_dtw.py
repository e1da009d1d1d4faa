import math

import pytest
import torch

from carl_ray.objectives.dtw import dynamic_time_warping
from carl_ray.objectives.soft_dtw import accumulated_costs, path_costs, soft_dtw
from tests.objectives.sequences import mask
from tests.objectives.test_dtw import all_paths

MINIMA = ["soft", "expected"]


def full(cost):
    pairs, n, m = cost.shape
    return torch.ones(pairs, n, dtype=torch.bool), torch.ones(pairs, m, dtype=torch.bool)


def random_costs(pairs, n, m, seed=0, dtype=torch.float64):
    return torch.rand(pairs, n, m, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_minimum(values, smoothing, minimum):
    least = min(values)
    weights = [math.exp(-(value - least) / smoothing) for value in values]
    if minimum == "soft":
        return least - smoothing * math.log(sum(weights))
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def slow_table(cost, smoothing, minimum):
    """The recursion of one pair, a cell at a time."""
    n, m = cost.shape
    table = torch.zeros(n, m, dtype=torch.float64)
    for i in range(n):
        for j in range(m):
            cells = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
            before = [float(table[cell]) for cell in cells if min(cell) >= 0]
            table[i, j] = float(cost[i, j]) + (slow_minimum(before, smoothing, minimum) if before else 0)
    return table


@pytest.mark.parametrize("minimum", MINIMA)
@pytest.mark.parametrize("smoothing", [0.01, 0.1, 3.0])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 6), (6, 1), (5, 5), (4, 9), (13, 3)])
def test_tables_equal_a_slow_recursion(n, m, smoothing, minimum):
    cost = random_costs(2, n, m) - 0.2
    table = accumulated_costs(cost, *full(cost), smoothing=smoothing, minimum=minimum)
    assert table.dtype == torch.float64
    for p in range(2):
        torch.testing.assert_close(table[p], slow_table(cost[p], smoothing, minimum), rtol=0, atol=1e-12)
    torch.testing.assert_close(path_costs(table, *full(cost)), table[:, -1, -1])


@pytest.mark.parametrize(("n", "m"), [(3, 4), (5, 4)])
def test_the_soft_minimum_over_all_paths_and_its_gradient_the_probability_of_a_cell(n, m):
    cost = random_costs(1, n, m, seed=1).requires_grad_()
    value = soft_dtw(cost, *full(cost), smoothing=0.3)
    value.sum().backward()
    paths = all_paths(n, m)
    weights = [math.exp(-sum(cost[0, i, j].item() for i, j in path) / 0.3) for path in paths]
    assert value.item() == pytest.approx(-0.3 * math.log(sum(weights)), abs=1e-12)
    expected = torch.zeros(n, m, dtype=torch.float64)
    for path, weight in zip(paths, weights, strict=True):
        for cell in path:
            expected[cell] += weight / sum(weights)
    torch.testing.assert_close(cost.grad[0], expected)


@pytest.mark.parametrize("minimum", MINIMA)
@pytest.mark.parametrize("smoothing", [0.05, 1.0])
def test_gradient(minimum, smoothing):
    cost = random_costs(3, 4, 5).requires_grad_()
    masks = mask(4, 2, 1, time=4), mask(5, 3, 4, time=5)
    weights = random_costs(3, 4, 5, seed=2)

    def everything(cost):
        return weights * accumulated_costs(cost, *masks, smoothing=smoothing, minimum=minimum)

    assert torch.autograd.gradcheck(everything, cost)
    assert torch.autograd.gradcheck(lambda cost: soft_dtw(cost, *masks, smoothing=smoothing), cost)


@pytest.mark.parametrize("minimum", MINIMA)
def test_without_smoothing_the_cost_of_dynamic_time_warping(minimum):
    cost = random_costs(4, 9, 12) - 0.3
    masks = mask(9, 5, 1, 8, time=9), mask(12, 12, 3, 2, time=12)
    hard = dynamic_time_warping(cost, *masks)
    cost.requires_grad_()
    table = accumulated_costs(cost, *masks, smoothing=1e-6, minimum=minimum)
    total = path_costs(table, *masks)
    torch.testing.assert_close(total, hard.cost, rtol=0, atol=1e-4)
    total.sum().backward()
    torch.testing.assert_close(cost.grad, hard.cells.double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.02, 0.1, 1.0])
def test_one_minimum_lies_below_the_cheapest_path_the_other_above(smoothing):
    cost = random_costs(5, 8, 7)
    hard = dynamic_time_warping(cost, *full(cost)).cost
    assert (soft_dtw(cost, *full(cost), smoothing=smoothing) < hard).all()
    table = accumulated_costs(cost, *full(cost), smoothing=smoothing, minimum="expected")
    assert (path_costs(table, *full(cost)) > hard).all()


@pytest.mark.parametrize("minimum", MINIMA)
@pytest.mark.parametrize("filling", [0.0, -100.0, math.inf, math.nan])
def test_padding_does_not_matter_whatever_it_holds(filling, minimum):
    lengths = [(7, 5), (3, 6), (1, 1), (4, 1), (7, 6)]
    cost = random_costs(len(lengths), 7, 6)
    masks = mask(*(n for n, _ in lengths), time=7), mask(*(m for _, m in lengths), time=6)
    padded = ~(masks[0][:, :, None] & masks[1][:, None, :])
    filled = cost.masked_fill(padded, filling).requires_grad_()
    table = accumulated_costs(filled, *masks, smoothing=0.1, minimum=minimum)
    for p, (n, m) in enumerate(lengths):
        torch.testing.assert_close(table[p, :n, :m], slow_table(cost[p, :n, :m], 0.1, minimum))
    assert not table[padded].any()
    table.sum().backward()
    assert not filled.grad[padded].any()
    assert filled.grad.isfinite().all()
    alone = cost[1:2, :3].clone().requires_grad_()
    accumulated_costs(alone, *full(alone), smoothing=0.1, minimum=minimum).sum().backward()
    torch.testing.assert_close(filled.grad[1, :3], alone.grad[0])


def test_a_video_without_frames_costs_nothing_and_has_no_gradient():
    cost = torch.full((3, 4, 5), math.nan).requires_grad_()
    value = soft_dtw(cost, mask(0, 4, 0, time=4), mask(5, 0, 0, time=5), smoothing=0.1)
    value.sum().backward()
    assert value.tolist() == [0, 0, 0]
    assert not cost.grad.any()
    for shape in ((2, 0, 5), (2, 4, 0), (0, 4, 5)):
        nothing = torch.zeros(shape)
        assert soft_dtw(nothing, *full(nothing), smoothing=0.1).tolist() == [0] * shape[0]


@pytest.mark.parametrize("minimum", MINIMA)
def test_long_videos_in_float32(minimum):
    exact = random_costs(2, 240, 240).requires_grad_()
    single = exact.detach().float().requires_grad_()
    values = []
    for cost in (exact, single):
        table = accumulated_costs(cost, *full(cost), smoothing=0.1, minimum=minimum)
        values.append(path_costs(table, *full(cost)))
        values[-1].sum().backward()
    assert values[1].dtype == torch.float32
    torch.testing.assert_close(values[1].double(), values[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(single.grad.double(), exact.grad, rtol=0, atol=5e-3)
    assert single.grad[:, 0, 0].tolist() == pytest.approx([1, 1], abs=1e-3)
    assert single.grad[:, -1, -1].tolist() == [1, 1]


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_costs_far_from_the_smoothing_are_stable(scale):
    cost = (scale * random_costs(1, 50, 60, dtype=torch.float32)).requires_grad_()
    value = soft_dtw(cost, *full(cost), smoothing=0.1)
    value.sum().backward()
    exact = slow_table(cost[0].detach(), 0.1, "soft")[-1, -1].item()
    assert value.item() == pytest.approx(exact, rel=1e-5)
    assert cost.grad.isfinite().all()


def test_half_precision_is_accumulated_in_float32():
    cost = torch.full((1, 300, 300), 1.0, dtype=torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = soft_dtw(cost, *full(cost), smoothing=1e-3)
        value.sum().backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(300, rel=1e-5)
    assert cost.grad.dtype == torch.bfloat16
    assert cost.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, -0.1, math.nan])
def test_smoothing_must_be_positive(smoothing):
    with pytest.raises(ValueError, match="smoothing: expected a positive number"):
        soft_dtw(torch.zeros(1, 2, 2), *full(torch.zeros(1, 2, 2)), smoothing=smoothing)


def test_unknown_minimum():
    with pytest.raises((ValueError, TypeError), match="hard"):  # a TypeError where annotations are checked
        accumulated_costs(torch.zeros(1, 2, 2), *full(torch.zeros(1, 2, 2)), smoothing=1.0, minimum="hard")
