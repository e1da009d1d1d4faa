import math

import pytest
import torch

from carl_ray.objectives.gta import gta_terms


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


def test_gradient():
    u, v, *masks = batch()
    u.requires_grad_()
    v.requires_grad_()
    options = {"temperature": 0.5, "smoothing": 0.3}
    assert torch.autograd.gradcheck(lambda u, v: gta_terms(u, v, *masks, **options)[0], (u, v))


def test_exchanging_the_videos_exchanges_the_alignments_and_keeps_the_cycles():
    u, v, mask_u, mask_v = batch()
    sums, counts = gta_terms(u, v, mask_u, mask_v)
    back, back_counts = gta_terms(v, u, mask_v, mask_u)
    torch.testing.assert_close(back, sums[torch.tensor([1, 0, 2])])
    assert back_counts.tolist() == counts.tolist()
    assert abs(sums[0] - sums[1]) > 0.1, "the two alignments must not be the same"


def test_order_of_the_pairs_changes_nothing():
    arguments = batch()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(gta_terms(*(part[order] for part in arguments)), gta_terms(*arguments))


def test_scale_of_the_embeddings_changes_nothing():
    u, v, *masks = batch()
    torch.testing.assert_close(gta_terms(3 * u, 0.1 * v, *masks), gta_terms(u, v, *masks))


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


@pytest.mark.parametrize("garbage", [1e30, math.inf, math.nan])
def test_masked_frames_have_no_influence(garbage):
    u, v, mask_u, mask_v = batch()
    expected, counts = gta_terms(u, v, mask_u, mask_v)
    filled_u = u.masked_fill(~mask_u[:, :, None], garbage).requires_grad_()
    filled_v = v.masked_fill(~mask_v[:, :, None], garbage).requires_grad_()
    got, got_counts = gta_terms(filled_u, filled_v, mask_u, mask_v)
    got.sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert got_counts.tolist() == counts.tolist()
    for filled, mask in ((filled_u, mask_u), (filled_v, mask_v)):
        assert not filled.grad[~mask].any()
        assert filled.grad.isfinite().all()


def test_computed_in_float32_in_bf16():
    u, v, *masks = batch(dtype=torch.bfloat16)
    u.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums, _ = gta_terms(u, v, *masks)
    sums.sum().backward()
    assert sums.dtype == torch.float32
    assert u.grad.isfinite().all()
    assert u.grad.any()
    expected, _ = slow_terms(u.detach().double(), v.double(), *masks)
    assert sums.tolist() == pytest.approx(expected, rel=1e-4)


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


@pytest.mark.parametrize("empty", ["first", "second"])
def test_a_pair_of_which_one_video_is_empty_does_not_count(empty):
    u, v, mask_u, mask_v = batch()
    rest, counts = gta_terms(u[1:], v[1:], mask_u[1:], mask_v[1:])
    (mask_u if empty == "first" else mask_v)[0] = False
    u.requires_grad_()
    v.requires_grad_()
    sums, got_counts = gta_terms(u, v, mask_u, mask_v)
    sums.sum().backward()
    torch.testing.assert_close(sums, rest)
    assert got_counts.tolist() == counts.tolist()
    for embeddings in (u, v):
        assert not embeddings.grad[0].any()
        assert embeddings.grad.isfinite().all()


def test_a_batch_without_frames_is_zero_with_zero_gradient():
    u, v, mask_u, mask_v = batch()
    u.requires_grad_()
    sums, counts = gta_terms(u, v, torch.zeros_like(mask_u), torch.zeros_like(mask_v))
    sums.sum().backward()
    assert sums.tolist() == [0, 0, 0]
    assert counts.tolist() == [0, 0, 0]
    assert not u.grad.any()


def test_zero_embeddings_give_a_finite_gradient():
    u, v, *masks = batch()
    u = torch.zeros_like(u).requires_grad_()
    sums, _ = gta_terms(u, v, *masks)
    sums.sum().backward()
    assert sums.isfinite().all()
    assert u.grad.isfinite().all()


def test_smoothing_must_be_positive():
    with pytest.raises(ValueError, match="smoothing"):
        gta_terms(*batch(), smoothing=0.0)
