import pytest
import torch

from carl_ray.objectives.lav import lav_terms
from tests.objectives.sequences import random_pairs, whole_pairs
from tests.objectives.test_soft_dtw import slow_table


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
    # As of 20 frames.
    return total * 20 / max(len(x), 1)


def slow_terms(pairs, smoothing=0.1, regularization=1.0, margin=2.0, window=15.0):
    sums, counts = [0.0, 0.0, 0.0], [0, 0, 0]
    for u, v, s_u, s_v, mask_u, mask_v in zip(*pairs, strict=True):
        x, y = u[mask_u], v[mask_v]
        if len(x) and len(y):
            cost = torch.tensor([[distance(a, b) for b in y] for a in x], dtype=torch.float64)
            sums[0] += 2 * float(slow_table(cost, smoothing, "soft")[-1, -1])
            counts[0] += len(x) + len(y)
        sums[1] += regularization * slow_contrast(x, s_u[mask_u], margin, window)
        sums[2] += regularization * slow_contrast(y, s_v[mask_v], margin, window)
        counts[1] += len(x)
        counts[2] += len(y)
    return sums, counts


def batch():
    """Times of 0 to 60, on clocks of their own."""
    pairs = random_pairs()
    return pairs._replace(s1=2 * pairs.s1 + 7, s2=2 * pairs.s2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"smoothing": 1.0, "regularization": 0.5, "margin": 1.0, "window": 25.0},
        {"smoothing": 0.01, "regularization": 2.0, "margin": 3.0, "window": 0.0},
    ],
)
def test_equals_the_equations(options):
    sums, counts = lav_terms(batch(), **options)
    expected, numbers = slow_terms(batch(), **options)
    assert (sums.dtype, counts.dtype) == (torch.float64, torch.int64)
    assert counts.tolist() == numbers == [25, 16, 9]
    assert sums.tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("start", [0, 36_000])
@pytest.mark.parametrize("frame_step", [0.1, 0.04, 1 / 30])
def test_the_unit_of_the_timestamps_changes_nothing(frame_step, start):
    pairs = random_pairs(first=40, second=30, dtype=torch.float32)
    # Many frames are 15 apart.
    s1, s2 = (start + torch.arange(n, dtype=torch.float64).repeat(3, 1) for n in (40, 30))
    whole = pairs._replace(s1=s1, s2=s2)
    other = whole._replace(s1=whole.s1 * frame_step, s2=whole.s2 * frame_step)
    torch.testing.assert_close(lav_terms(other, window=15 * frame_step), lav_terms(whole))


def test_equal_videos_align_for_nothing_and_separate_frames_need_no_contrast():
    u = torch.eye(6, dtype=torch.float64)[None]
    pairs = whole_pairs(u, u.repeat_interleave(2, 1))
    sums, _ = lav_terms(pairs._replace(s1=20 * pairs.s1, s2=10 * pairs.s2), smoothing=1e-3, window=10.0)
    assert sums[0].item() == pytest.approx(0, abs=0.05)
    assert sums[1].item() == pytest.approx(0, abs=1e-9)
    # All frames in one point align for nothing as well: that is what the contrast is for.
    pairs = whole_pairs(torch.ones_like(u), torch.ones_like(u))
    sums, _ = lav_terms(pairs._replace(s1=20 * pairs.s1), smoothing=1e-3, window=10.0)
    assert sums[0].item() < 0
    far = sum(2 * (1 + ((i - j) / 5) ** 2) for i in range(6) for j in range(6) if i != j)
    assert sums[1].item() == pytest.approx(far * 20 / 6)


def test_a_pair_of_which_one_video_is_empty_has_the_regulariser_of_the_other():
    pairs = batch()
    pairs.mask2[0] = False
    pairs.z1.requires_grad_()
    sums, counts = lav_terms(pairs)
    sums.sum().backward()
    expected, numbers = slow_terms(pairs._replace(z1=pairs.z1.detach()))
    assert sums.tolist() == pytest.approx(expected, rel=1e-10)
    assert counts.tolist() == numbers == [14, 16, 4]
    assert pairs.z1.grad.isfinite().all()
