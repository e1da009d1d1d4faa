import math

import pytest
import torch

from carl_ray.objectives import gta
from carl_ray.objectives.pairs import FramePairs


def gta_terms(u, v, mask_u, mask_v, **options):
    times = [torch.full(mask.shape, torch.nan) for mask in (mask_u, mask_v)]
    return gta.gta_terms(FramePairs(u, v, *times, mask_u, mask_v), **options)


def softmax(values):
    largest = max(values)
    weights = [math.exp(value - largest) for value in values]
    return [weight / sum(weights) for weight in weights]


def slow_smooth_dtw(x, y, temperature, smoothing):
    """The accumulated table of smoothDTW(x, y), a cell at a time."""
    n, m = len(x), len(y)
    cosines = [[float(a @ b / a.norm() / b.norm()) for b in y] for a in x]
    matches = [softmax([cosines[i][j] / temperature for i in range(n)]) for j in range(m)]
    table = {}
    for i in range(n):
        for j in range(m):
            cells = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
            before = [table[cell] for cell in cells if cell in table] or [0.0]
            weights = softmax([-value / smoothing for value in before])
            least = sum(w * value for w, value in zip(weights, before, strict=True))
            table[i, j] = least - math.log(matches[j][i])
    return [[table[i, j] for j in range(m)] for i in range(n)]


def columns(table):
    """[j][i]: softmax over the rows i of the negative table, for each column j."""
    return [softmax([-row[j] for row in table]) for j in range(len(table[0]))]


def slow_terms(u, v, mask_u, mask_v, temperature=0.1, smoothing=0.1, cycle_weight=0.5):
    sums, frames = [0.0, 0.0, 0.0], 0
    for p in range(len(u)):
        x, y = u[p][mask_u[p]], v[p][mask_v[p]]
        if not (len(x) and len(y)):
            continue
        forth = slow_smooth_dtw(x, y, temperature, smoothing)
        back = slow_smooth_dtw(y, x, temperature, smoothing)
        a = torch.tensor(columns(forth), dtype=torch.float64).T
        b = torch.tensor(columns(back), dtype=torch.float64).T
        cycles = [*torch.diagonal(a @ b).tolist(), *torch.diagonal(b @ a).tolist()]
        sums[0] += 2 * forth[-1][-1]
        sums[1] += 2 * back[-1][-1]
        # As of 20 frames.
        sums[2] -= cycle_weight * sum(math.log(cycle) for cycle in cycles) * 400 / (len(x) * len(y))
        frames += len(x) + len(y)
    return sums, [frames] * 3


def batch(seed=0, pairs=3, first=6, second=5, width=4, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    u = torch.randn(pairs, first, width, generator=rng, dtype=dtype)
    v = torch.randn(pairs, second, width, generator=rng, dtype=dtype)
    mask_u = torch.ones(pairs, first, dtype=torch.bool)
    mask_v = torch.ones(pairs, second, dtype=torch.bool)
    mask_u[1, 4:] = False
    mask_v[1, 3:] = False
    mask_v[2, 1:] = False
    return u, v, mask_u, mask_v


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "smoothing": 0.5, "cycle_weight": 2.0},
        {"temperature": 0.3, "smoothing": 0.01, "cycle_weight": 0.0},
    ],
)
def test_equals_the_equations(options):
    arguments = batch()
    sums, counts = gta_terms(*arguments, **options)
    expected, numbers = slow_terms(*arguments, **options)
    assert sums.dtype == torch.float64
    assert counts.dtype == torch.int64
    assert counts.tolist() == numbers == [25, 25, 25]
    assert sums.tolist() == pytest.approx(expected, rel=1e-10)


def test_cycle_weight_is_a_weight():
    arguments = batch()
    once, five = (gta_terms(*arguments, cycle_weight=weight)[0] for weight in (1.0, 5.0))
    torch.testing.assert_close(five, once * torch.tensor([1.0, 1.0, 5.0], dtype=torch.float64))


def test_equal_videos_cost_nothing_and_reversed_ones_do():
    u = torch.eye(8, dtype=torch.float64)[None]
    mask = torch.ones(1, 8, dtype=torch.bool)
    equal, _ = gta_terms(u, u, mask, mask, temperature=0.02)
    assert equal.tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    reverse, _ = gta_terms(u, u.flip(1), mask, mask, temperature=0.02)
    assert (reverse > 10).all()


def test_frames_that_all_look_alike_are_matched_by_chance():
    alike = torch.ones(1, 6, 4)
    mask = torch.ones(1, 6, dtype=torch.bool)
    sums, counts = gta_terms(alike, alike, mask, mask, smoothing=0.01)
    # Each of the six matches of the shortest path costs log 6.
    assert (sums[:2] / counts[:2]).tolist() == pytest.approx([math.log(6)] * 2)


def test_long_videos_in_float32():
    u, v, *_ = batch(pairs=3, first=120, second=100, width=16)
    masks = torch.ones(3, 120, dtype=torch.bool), torch.ones(3, 100, dtype=torch.bool)
    u.requires_grad_()
    exact, counts = gta_terms(u, v, *masks)
    (exact / counts).sum().backward()
    single = u.detach().float().requires_grad_()
    sums, _ = gta_terms(single, v.float(), *masks)
    (sums / counts).sum().backward()
    torch.testing.assert_close(sums.double(), exact, rtol=1e-4, atol=0)
    assert (single.grad - u.grad).norm() < 0.02 * u.grad.norm()


def test_smoothing_must_be_positive():
    with pytest.raises(ValueError, match="smoothing"):
        gta_terms(*batch(), smoothing=0.0)
