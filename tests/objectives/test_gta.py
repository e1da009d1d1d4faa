import math

import pytest
import torch
from torch.nn import functional

from carl_ray.objectives import gta
from tests.objectives.sequences import random_pairs, whole_pairs
from tests.objectives.test_soft_dtw import slow_table


def gta_terms(pairs, **options):
    unused = pairs._replace(s1=pairs.s1 * math.nan, s2=pairs.s2 * math.nan)
    return gta.gta_terms(unused, **options)


def slow_smooth_dtw(x, y, temperature, smoothing):
    """The accumulated table of smoothDTW(x, y), a cell at a time."""
    cosines = functional.normalize(x, dim=1) @ functional.normalize(y, dim=1).T
    return slow_table(-(cosines / temperature).log_softmax(0), smoothing, "expected")


def slow_terms(pairs, temperature=0.1, smoothing=0.1, cycle_weight=0.5):
    sums, frames = [0.0, 0.0, 0.0], 0
    for u, v, _, _, mask_u, mask_v in zip(*pairs, strict=True):
        x, y = u[mask_u], v[mask_v]
        forth = slow_smooth_dtw(x, y, temperature, smoothing)
        back = slow_smooth_dtw(y, x, temperature, smoothing)
        a, b = (-forth).softmax(0), (-back).softmax(0)
        cycles = [*torch.diagonal(a @ b).tolist(), *torch.diagonal(b @ a).tolist()]
        sums[0] += 2 * float(forth[-1, -1])
        sums[1] += 2 * float(back[-1, -1])
        # As of 20 frames.
        sums[2] -= cycle_weight * sum(map(math.log, cycles)) * 400 / (len(x) * len(y))
        frames += len(x) + len(y)
    return sums, [frames] * 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "smoothing": 0.5, "cycle_weight": 2.0},
        {"temperature": 0.3, "smoothing": 0.01, "cycle_weight": 0.0},
    ],
)
def test_equals_the_equations(options):
    sums, counts = gta_terms(random_pairs(), **options)
    expected, numbers = slow_terms(random_pairs(), **options)
    assert (sums.dtype, counts.dtype) == (torch.float64, torch.int64)
    assert counts.tolist() == numbers == [25, 25, 25]
    assert sums.tolist() == pytest.approx(expected, rel=1e-10)


def test_equal_videos_cost_nothing_and_reversed_ones_do():
    u = torch.eye(8, dtype=torch.float64)[None]
    equal, _ = gta_terms(whole_pairs(u, u), temperature=0.02)
    assert equal.tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    reverse, _ = gta_terms(whole_pairs(u, u.flip(1)), temperature=0.02)
    assert (reverse > 10).all()


def test_frames_that_all_look_alike_are_matched_by_chance():
    alike = torch.ones(1, 6, 4)
    sums, counts = gta_terms(whole_pairs(alike, alike), smoothing=0.01)
    # Each of the six matches of the shortest path costs log 6.
    assert (sums[:2] / counts[:2]).tolist() == pytest.approx([math.log(6)] * 2)


def test_long_videos_in_float32():
    u, v, *_ = random_pairs(first=120, second=100, width=16)
    gradients, sums = [], []
    for dtype in (torch.float64, torch.float32):
        x = u.detach().to(dtype).requires_grad_()
        found, counts = gta_terms(whole_pairs(x, v.to(dtype)))
        (found / counts).sum().backward()
        gradients.append(x.grad)
        sums.append(found.double())
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-4, atol=0)
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()
