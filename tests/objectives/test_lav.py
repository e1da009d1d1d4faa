import math

import pytest
import torch

from carl_ray.objectives import lav
from carl_ray.objectives.pairs import FramePairs


def lav_terms(*arguments, **options):
    return lav.lav_terms(FramePairs(*arguments), **options)


def slow_soft_dtw(cost, smoothing):
    n, m = len(cost), len(cost[0])
    table = {(-1, -1): 0.0}
    for i in range(n):
        for j in range(m):
            cells = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
            before = [table[cell] for cell in cells if cell in table]
            least = min(before)
            total = sum(math.exp(-(value - least) / smoothing) for value in before)
            table[i, j] = cost[i][j] + least - smoothing * math.log(total)
    return table[n - 1, m - 1]


def distance(a, b):
    return float(((a / a.norm() - b / b.norm()) ** 2).sum())


def slow_contrast(x, s, margin, window):
    total, span = 0.0, float(max(s) - min(s)) if len(s) else 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            elapsed = abs(float(s[i] - s[j]))
            weight = 1 + (elapsed / (span or 1)) ** 2
            apart = distance(x[i], x[j])
            total += weight * max(0.0, margin - apart) if elapsed > window else apart / weight
    return total


def slow_terms(u, v, s_u, s_v, mask_u, mask_v, smoothing=0.1, regularization=1.0, margin=2.0, window=15.0):
    sums, counts = [0.0, 0.0, 0.0], [0, 0, 0]
    for p in range(len(u)):
        x, y = u[p][mask_u[p]], v[p][mask_v[p]]
        if len(x) and len(y):
            sums[0] += 2 * slow_soft_dtw([[distance(a, b) for b in y] for a in x], smoothing)
            counts[0] += len(x) + len(y)
        of_x = slow_contrast(x, s_u[p][mask_u[p]], margin, window)
        of_y = slow_contrast(y, s_v[p][mask_v[p]], margin, window)
        # As of 20 frames.
        sums[1] += regularization * of_x * 20 / max(len(x), 1)
        sums[2] += regularization * of_y * 20 / max(len(y), 1)
        counts[1] += len(x)
        counts[2] += len(y)
    return sums, counts


def batch(seed=0, pairs=3, first=6, second=5, width=4, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    u = torch.randn(pairs, first, width, generator=rng, dtype=dtype)
    v = torch.randn(pairs, second, width, generator=rng, dtype=dtype)
    s_u = torch.rand(pairs, first, generator=rng, dtype=torch.float64).mul(60).sort(dim=1).values + 7
    s_v = torch.rand(pairs, second, generator=rng, dtype=torch.float64).mul(60).sort(dim=1).values
    mask_u = torch.ones(pairs, first, dtype=torch.bool)
    mask_v = torch.ones(pairs, second, dtype=torch.bool)
    mask_u[1, 4:] = False
    mask_v[1, 3:] = False
    mask_v[2, 1:] = False
    return u, v, s_u, s_v, mask_u, mask_v


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"smoothing": 1.0, "regularization": 0.5, "margin": 1.0, "window": 25.0},
        {"smoothing": 0.01, "regularization": 2.0, "margin": 3.0, "window": 0.0},
    ],
)
def test_equals_the_equations(options):
    arguments = batch()
    sums, counts = lav_terms(*arguments, **options)
    expected, numbers = slow_terms(*arguments, **options)
    assert sums.dtype == torch.float64
    assert counts.dtype == torch.int64
    assert counts.tolist() == numbers == [25, 16, 9]
    assert sums.tolist() == pytest.approx(expected, rel=1e-10)


def test_start_and_unit_of_the_timestamps_change_nothing():
    u, v, s_u, s_v, *masks = batch()
    expected = lav_terms(u, v, s_u, s_v, *masks)
    torch.testing.assert_close(lav_terms(u, v, s_u + 1e4, s_v - 300, *masks), expected)
    torch.testing.assert_close(lav_terms(u, v, s_u / 30, s_v / 30, *masks, window=0.5), expected)


def test_window_and_weights_are_of_time_not_of_positions():
    u, v, s_u, s_v, *masks = batch()
    evenly = torch.linspace(0, 60, 6, dtype=torch.float64).expand(3, 6)
    assert lav_terms(u, v, s_u, s_v, *masks)[0][1] != lav_terms(u, v, evenly, s_v, *masks)[0][1]


def test_regularization_is_a_weight():
    arguments = batch()
    once, five = (lav_terms(*arguments, regularization=weight)[0] for weight in (1.0, 5.0))
    torch.testing.assert_close(five, once * torch.tensor([1.0, 5.0, 5.0], dtype=torch.float64))


def test_equal_videos_align_for_nothing_and_separate_frames_need_no_contrast():
    u = torch.eye(6, dtype=torch.float64)[None]
    s = 20 * torch.arange(6, dtype=torch.float64)[None]
    slowly, s_slowly = u.repeat_interleave(2, 1), 10 * torch.arange(12, dtype=torch.float64)[None]
    masks = torch.ones(1, 6, dtype=torch.bool), torch.ones(1, 12, dtype=torch.bool)
    sums, _ = lav_terms(u, slowly, s, s_slowly, *masks, smoothing=1e-3, window=10.0)
    assert sums[0].item() == pytest.approx(0, abs=0.05)
    assert sums[1].item() == pytest.approx(0, abs=1e-9)
    # All frames in one point align for nothing as well: that is what the contrast is for.
    same = torch.ones_like(u)
    sums, _ = lav_terms(same, same, s, s, masks[0], masks[0], smoothing=1e-3, window=10.0)
    assert sums[0].item() < 0
    far = sum(2 * (1 + ((i - j) / 5) ** 2) for i in range(6) for j in range(6) if i != j)
    assert sums[1].item() == pytest.approx(far * 20 / 6)


def test_a_pair_of_which_one_video_is_empty_has_the_regulariser_of_the_other():
    u, v, s_u, s_v, mask_u, mask_v = batch()
    mask_v[0] = False
    u.requires_grad_()
    sums, counts = lav_terms(u, v, s_u, s_v, mask_u, mask_v)
    sums.sum().backward()
    expected, numbers = slow_terms(u.detach(), v, s_u, s_v, mask_u, mask_v)
    assert sums.tolist() == pytest.approx(expected, rel=1e-10)
    assert counts.tolist() == numbers == [14, 16, 4]
    assert u.grad.isfinite().all()


def test_smoothing_must_be_positive():
    with pytest.raises(ValueError, match="smoothing"):
        lav_terms(*batch(), smoothing=0.0)
