import math

import pytest
import torch
from scipy.special import softmax

from carl_ray.objectives import tcc
from carl_ray.objectives.pairs import FramePairs
from tests.objectives.sequences import random_pairs

LOSSES = ["regression", "classification"]


def cycle_consistency_terms(u, v, mask_u, mask_v, **options):
    times = [torch.full(mask.shape, torch.nan) for mask in (mask_u, mask_v)]
    return tcc.cycle_consistency_terms(FramePairs(u, v, *times, mask_u, mask_v), **options)


def slow_direction(u, v, mask_u, mask_v, loss, temperature, variance_weight):
    """Sum of the losses of the frames of u and their number, one frame at a time."""
    total, count = 0.0, 0
    for p in range(len(u)):
        frames = [frame.tolist() for frame, real in zip(u[p], mask_u[p], strict=True) if real]
        others = [frame.tolist() for frame, real in zip(v[p], mask_v[p], strict=True) if real]
        if not others:
            continue
        n, width = len(frames), u.shape[2]

        def similarity(a, b, width=width):
            return -sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / width / temperature

        for i, frame in enumerate(frames):
            alpha = softmax([similarity(frame, other) for other in others])
            columns = zip(*others, strict=True)
            neighbour = [sum(a * x for a, x in zip(alpha, column, strict=True)) for column in columns]
            beta = softmax([similarity(neighbour, back) for back in frames])
            if loss == "classification":
                total -= math.log(beta[i])
            else:
                mean = sum(b * k / n for k, b in enumerate(beta))
                variance = sum(b * (k / n - mean) ** 2 for k, b in enumerate(beta))
                variance = max(variance, 1 / (12 * n**2))
                total += (i / n - mean) ** 2 / variance + variance_weight * math.log(math.sqrt(variance))
            count += 1
    return total, count


def slow_terms(u, v, mask_u, mask_v, loss, temperature=0.1, variance_weight=0.001):
    first = slow_direction(u, v, mask_u, mask_v, loss, temperature, variance_weight)
    second = slow_direction(v, u, mask_v, mask_u, loss, temperature, variance_weight)
    return [first[0], second[0]], [first[1], second[1]]


def batch():
    u, v, _, _, mask_u, mask_v = random_pairs()
    mask_v[2] = torch.tensor([True, False, True, True, True])
    return u, v, mask_u, mask_v


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("temperature", "variance_weight"), [(0.1, 0.001), (1.0, 0.5), (0.02, 0.0)])
def test_equals_the_equations(loss, temperature, variance_weight):
    arguments = batch()
    sums, counts = cycle_consistency_terms(
        *arguments, loss=loss, temperature=temperature, variance_weight=variance_weight
    )
    expected, numbers = slow_terms(*arguments, loss, temperature, variance_weight)
    assert (sums.dtype, counts.dtype) == (torch.float64, torch.int64)
    assert counts.tolist() == numbers == [16, 12]
    assert sums.tolist() == pytest.approx(expected, rel=1e-10)


def test_videos_that_cycle_back_perfectly_have_the_least_loss():
    u = 20 * torch.eye(8).double()[None]
    mask = torch.ones(1, 8, dtype=torch.bool)
    slowly, long = u.repeat_interleave(2, 1), torch.ones(1, 16, dtype=torch.bool)
    for v, mask_v in ((u, mask), (slowly, long)):
        sums, _ = cycle_consistency_terms(u, v, mask, mask_v, loss="classification")
        assert sums[0].item() == pytest.approx(0, abs=1e-9)
        sums, _ = cycle_consistency_terms(u, v, mask, mask_v, loss="regression")
        assert (sums[0] / 8).item() == pytest.approx(0.0005 * math.log(1 / (12 * 8**2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_cycles_have_finite_losses_right_or_wrong(dtype):
    # The second video knows one moment alone: all frames come back to the third, without any doubt.
    u = 1e3 * torch.eye(8, dtype=dtype)[None]
    v = u[:, 2:3].expand(1, 4, 8).clone()
    u.requires_grad_()
    masks = torch.ones(1, 8, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    sums, _ = cycle_consistency_terms(u, v, *masks, loss="regression", variance_weight=0.0)
    sums.sum().backward()
    assert sums[0].item() == pytest.approx(12 * sum((i - 2) ** 2 for i in range(8)), rel=1e-5)
    assert u.grad.isfinite().all()


def test_one_frame_cycles_back_to_itself():
    masks = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool)
    u, v, *_ = batch()
    sums, counts = cycle_consistency_terms(u[:1, :1], v[:1], *masks, loss="regression")
    assert counts.tolist() == [1, 5]
    assert sums[0].item() == pytest.approx(0.0005 * math.log(1 / 12))


@pytest.mark.parametrize("loss", LOSSES)
def test_an_encoder_that_only_counts_frames_solves_it(loss):
    time, rng = 12, torch.Generator().manual_seed(0)
    seen_u, seen_v = torch.randn(2, 4, time, 16, generator=rng, dtype=torch.float64)
    counted = 6 * torch.eye(time, 16, dtype=torch.float64).expand(4, time, 16)
    mask = torch.ones(4, time, dtype=torch.bool)
    by_sight, _ = cycle_consistency_terms(seen_u, seen_v, mask, mask, loss=loss)
    by_counting, _ = cycle_consistency_terms(counted, counted, mask, mask, loss=loss)
    assert (by_counting / (4 * time) < 1e-3).all()
    assert (by_sight / (4 * time) > 0.1).all()


def test_unknown_loss():
    with pytest.raises((ValueError, TypeError), match="huber"):  # a TypeError where annotations are checked
        cycle_consistency_terms(*batch(), loss="huber")
