import math

import pytest
import torch

from carl_ray.objectives.tcc import cycle_consistency_terms

LOSSES = ["regression", "classification"]


def softmax(values):
    largest = max(values)
    weights = [math.exp(value - largest) for value in values]
    return [weight / sum(weights) for weight in weights]


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


def batch(seed=0, pairs=3, first=6, second=5, width=4, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    u = torch.randn(pairs, first, width, generator=rng, dtype=dtype)
    v = torch.randn(pairs, second, width, generator=rng, dtype=dtype)
    mask_u = torch.ones(pairs, first, dtype=torch.bool)
    mask_v = torch.ones(pairs, second, dtype=torch.bool)
    mask_u[1, 4:] = False
    mask_v[1, 3:] = False
    mask_v[2, 1] = False
    return u, v, mask_u, mask_v


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("temperature", "variance_weight"), [(0.1, 0.001), (1.0, 0.5), (0.02, 0.0)])
def test_equals_the_equations(loss, temperature, variance_weight):
    arguments = batch()
    sums, counts = cycle_consistency_terms(
        *arguments, loss=loss, temperature=temperature, variance_weight=variance_weight
    )
    expected, numbers = slow_terms(*arguments, loss, temperature, variance_weight)
    assert sums.dtype == torch.float64
    assert counts.dtype == torch.int64
    assert counts.tolist() == numbers == [16, 12]
    assert sums.tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient(loss):
    u, v, *masks = batch()
    u.requires_grad_()
    v.requires_grad_()

    def sums(u, v):
        return cycle_consistency_terms(u, v, *masks, loss=loss, temperature=0.5, variance_weight=0.3)[0]

    assert torch.autograd.gradcheck(sums, (u, v))


@pytest.mark.parametrize("loss", LOSSES)
def test_exchanging_the_videos_exchanges_the_terms(loss):
    u, v, mask_u, mask_v = batch()
    sums, counts = cycle_consistency_terms(u, v, mask_u, mask_v, loss=loss)
    back, back_counts = cycle_consistency_terms(v, u, mask_v, mask_u, loss=loss)
    torch.testing.assert_close(back, sums.flip(0))
    assert back_counts.tolist() == counts.flip(0).tolist()


@pytest.mark.parametrize("loss", LOSSES)
def test_order_of_the_pairs_changes_nothing(loss):
    arguments = batch()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        cycle_consistency_terms(*(part[order] for part in arguments), loss=loss),
        cycle_consistency_terms(*arguments, loss=loss),
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_distances_alone_matter_over_width_and_temperature(loss):
    u, v, *masks = batch()
    expected = cycle_consistency_terms(u, v, *masks, loss=loss)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double())[0]
    shift = torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    moved = cycle_consistency_terms(u @ rotation + shift, v @ rotation + shift, *masks, loss=loss)
    torch.testing.assert_close(moved, expected)
    scaled = cycle_consistency_terms(3 * u, 3 * v, *masks, loss=loss, temperature=0.9)
    torch.testing.assert_close(scaled, expected)
    repeated = cycle_consistency_terms(u.repeat(1, 1, 2), v.repeat(1, 1, 2), *masks, loss=loss)
    torch.testing.assert_close(repeated, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_the_frames_cycled_through_does_not_matter(loss):
    u, v, mask_u, mask_v = batch()
    shuffle = torch.tensor([3, 0, 4, 1, 2])
    sums, _ = cycle_consistency_terms(u, v, mask_u, mask_v, loss=loss)
    got, _ = cycle_consistency_terms(u, v[:, shuffle], mask_u, mask_v[:, shuffle], loss=loss)
    torch.testing.assert_close(got[0], sums[0])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("garbage", [1e30, math.inf, math.nan])
def test_masked_frames_have_no_influence(loss, garbage):
    u, v, mask_u, mask_v = batch()
    expected, counts = cycle_consistency_terms(u, v, mask_u, mask_v, loss=loss)
    filled_u = u.masked_fill(~mask_u[:, :, None], garbage).requires_grad_()
    filled_v = v.masked_fill(~mask_v[:, :, None], garbage).requires_grad_()
    got, got_counts = cycle_consistency_terms(filled_u, filled_v, mask_u, mask_v, loss=loss)
    got.sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert got_counts.tolist() == counts.tolist()
    for filled, mask in ((filled_u, mask_u), (filled_v, mask_v)):
        assert not filled.grad[~mask].any()
        assert filled.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_computed_in_float32_in_bf16(loss):
    u, v, *masks = batch(dtype=torch.bfloat16)
    u.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums, _ = cycle_consistency_terms(u, v, *masks, loss=loss)
    sums.sum().backward()
    assert sums.dtype == torch.float32
    assert u.grad.isfinite().all()
    assert u.grad.any()
    expected, _ = slow_terms(u.detach().double(), v.double(), *masks, loss)
    assert sums.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_pair_of_which_one_video_is_empty_does_not_count(loss):
    u, v, mask_u, mask_v = batch()
    rest, counts = cycle_consistency_terms(u[1:], v[1:], mask_u[1:], mask_v[1:], loss=loss)
    for empty in (mask_u, mask_v):
        masks = [mask.clone() for mask in (mask_u, mask_v)]
        masks[0 if empty is mask_u else 1][0] = False
        a, b = u.clone().requires_grad_(), v.clone().requires_grad_()
        sums, got_counts = cycle_consistency_terms(a, b, *masks, loss=loss)
        sums.sum().backward()
        torch.testing.assert_close(sums, rest)
        assert got_counts.tolist() == counts.tolist()
        assert not a.grad[0].any()
        assert not b.grad[0].any()
        assert a.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_frames_is_zero_with_zero_gradient(loss):
    u, v, mask_u, mask_v = batch()
    u.requires_grad_()
    nothing = torch.zeros_like(mask_u), torch.zeros_like(mask_v)
    sums, counts = cycle_consistency_terms(u, v, *nothing, loss=loss)
    sums.sum().backward()
    assert sums.tolist() == [0, 0]
    assert counts.tolist() == [0, 0]
    assert not u.grad.any()


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
    u, v, *_ = batch(pairs=3)
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
