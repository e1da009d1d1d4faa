import functools
import math
from functools import partial

import pytest
import torch

from carl_ray.objectives.pairs import FramePairs, unit_vectors
from carl_ray.objectives.scl import sequence_contrastive_terms
from carl_ray.objectives.weak import correspondence, weak_contrastive_terms
from tests.objectives.sequences import random_pairs

SETTINGS = {"temperature": 0.1, "variance": 10.0, "max_match_cost": None}


def terms(za, zb, sa, sb, mask_a, mask_b, *, same_video=False, **settings):
    same = torch.full((len(za),), same_video)
    return weak_contrastive_terms(FramePairs(za, zb, sa, sb, mask_a, mask_b), same, **settings)


def slow_path(cost, gap):
    """The cheapest path from one border to another, by its definition: a frame before or after it costs `gap`."""
    n, m = len(cost), len(cost[0])

    @functools.cache
    def best(i, j):
        before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        ways = [best(*cell) for cell in before if min(cell) >= 0]
        ways += [(gap * (i + j), [])] if 0 in (i, j) else []
        total, path = min(ways, key=lambda way: way[0])
        return total + cost[i][j], [*path, (i, j)]

    ways = [(gap * (n + m), [])]
    for i, j in {*((i, m - 1) for i in range(n)), *((n - 1, j) for j in range(m))}:
        ways.append((best(i, j)[0] + gap * (n - 1 - i + m - 1 - j), best(i, j)[1]))
    return min(ways, key=lambda way: way[0])


def slow_terms(za, zb, sa, sb, mask_a, mask_b, temperature, variance, max_match_cost):
    """Sums and counts of both directions, one frame at a time; also the pseudo-times and costs of their frames."""
    sums, counts = [torch.zeros((), dtype=torch.float64)] * 2, [0, 0]
    times, costs = [{}, {}], [{}, {}]
    for p in range(len(za)):
        own_a = [i for i in range(za.shape[1]) if mask_a[p, i]]
        own_b = [j for j in range(zb.shape[1]) if mask_b[p, j]]
        if not own_a or not own_b:
            continue

        def cosine(i, j, p=p):
            return (za[p, i] * zb[p, j]).sum() / (za[p, i].norm() * zb[p, j].norm())

        table = [[1 - cosine(i, j).item() for j in own_b] for i in own_a]
        gap = 0.35 * sum(map(sum, table)) / (len(own_a) * len(own_b))
        _, path = slow_path(table, gap)
        for side, (own, other, stamps) in enumerate(((own_a, own_b, sb), (own_b, own_a, sa))):
            for i, frame in enumerate(own):
                cells = [cell for cell in path if cell[side] == i]
                partners = [stamps[p, other[cell[1 - side]]].item() for cell in cells]
                cost = sum(table[k][j] for k, j in cells) / max(len(cells), 1)
                if partners and cost <= 2 * gap:
                    times[side][p, frame] = sum(partners) / len(partners)
                    costs[side][p, frame] = cost
                else:
                    times[side][p, frame], costs[side][p, frame] = 0, math.inf
        directions = [
            (own_a, own_b, sb, lambda i, j: cosine(i, j)),
            (own_b, own_a, sa, lambda j, i: cosine(i, j)),
        ]
        for direction, (anchors, candidates, stamps, similarity) in enumerate(directions):
            for i in anchors:
                if costs[direction][p, i] > (2 if max_match_cost is None else max_match_cost):
                    continue
                time = times[direction][p, i]
                gaussians = [
                    math.exp(-((time - stamps[p, j].item()) ** 2) / (2 * variance)) for j in candidates
                ]
                logits = torch.stack([similarity(i, j) / temperature for j in candidates])
                log_softmax = logits - torch.log(torch.exp(logits).sum())
                for gaussian, value in zip(gaussians, log_softmax, strict=True):
                    sums[direction] = sums[direction] - gaussian / sum(gaussians) * value
                counts[direction] += 1
    return torch.stack(sums), torch.tensor(counts), times, costs


batch = partial(random_pairs, pairs=4)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("temperature", "variance"), [(0.1, 10.0), (1.0, 25.0), (0.3, 4.0)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_loop(seed, temperature, variance, gated):
    arguments = batch(seed, second=5 + 2 * seed)
    found = correspondence(arguments.unit())
    matched = torch.cat([found[0].cost[arguments.mask1], found[1].cost[arguments.mask2]])
    gate = matched[matched.isfinite()].median().item() + 1e-9 if gated else None
    sums, counts, times, costs = slow_terms(*arguments, temperature, variance, gate)
    got = terms(*arguments, temperature=temperature, variance=variance, max_match_cost=gate)
    assert (got[0].dtype, got[1].dtype) == (torch.float64, torch.int64)
    assert 0 < counts[0] < arguments[4].sum(), "some frames have no partner"
    assert gated == (counts.sum() < matched.isfinite().sum())
    assert torch.equal(got[1], counts)
    torch.testing.assert_close(got[0], sums, rtol=1e-9, atol=1e-12)
    for values, expected in zip(
        (found[0].time, found[1].time, found[0].cost, found[1].cost), [*times, *costs], strict=True
    ):
        assert expected
        for place, value in expected.items():
            assert values[place].item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_view_and_itself_give_the_sequence_contrastive_terms(dtype):
    z, _, s, _, mask, _ = batch(first=40, width=8, dtype=dtype)
    mask[1, 30:] = False
    mask[2, 1:] = False
    mask[3] = False
    za, zb = (z.clone().requires_grad_() for _ in range(2))
    z1, z2 = (z.clone().requires_grad_() for _ in range(2))
    weak, weak_counts = terms(za, zb, s, s, mask, mask, **SETTINGS)
    scl, scl_counts = sequence_contrastive_terms(
        FramePairs(z1, z2, s, s, mask, mask), temperature=0.1, variance=10.0
    )
    assert torch.equal(weak, scl)
    assert torch.equal(weak_counts, scl_counts)
    weak.sum().backward()
    scl.sum().backward()
    assert torch.equal(za.grad, z1.grad)
    assert torch.equal(zb.grad, z2.grad)


def test_two_views_of_one_video_give_the_sequence_contrastive_terms():
    za, zb, sa, sb, mask_a, mask_b = batch()
    mask_b[3] = False
    settings = SETTINGS | {"max_match_cost": 1e-3}  # which would leave nothing of another pair
    weak, weak_counts = terms(za, zb, sa, sb, mask_a, mask_b, same_video=True, **settings)
    scl, scl_counts = sequence_contrastive_terms(FramePairs(za, zb, sa, sb, mask_a, mask_b))
    assert torch.equal(weak, scl)
    assert torch.equal(weak_counts, scl_counts)
    assert terms(za, zb, sa, sb, mask_a, mask_b, **settings)[1].tolist() == [0, 0]


def random_curve(width=32, scale=12.0, seed=0):
    """A smooth curve of unit vectors: frames `scale` apart are hardly alike any more."""
    rng = torch.Generator().manual_seed(seed)
    frequencies = torch.randn(width, generator=rng, dtype=torch.float64) / scale
    phases = torch.rand(width, generator=rng, dtype=torch.float64) * 2 * math.pi

    def embed(time):
        return torch.nn.functional.normalize(torch.cos(time[..., None] * frequencies + phases), dim=-1)

    return embed


def test_pseudo_times_of_two_views_of_one_video_are_near_their_timestamps():
    embed, rng = random_curve(), torch.Generator().manual_seed(0)
    # Crops [0, 120) and [30, 150), of which 80 frames each.
    sa = torch.randperm(120, generator=rng)[:80].sort().values.double()[None]
    sb = torch.randperm(120, generator=rng)[:80].sort().values.double()[None] + 30
    mask = torch.ones(1, 80, dtype=torch.bool)
    found = correspondence(FramePairs(embed(sa), embed(sb), sa, sb, mask, mask))
    gap = torch.cat([sa.diff(), sb.diff()]).max()
    # In the overlap the pseudo-times are the timestamps up to the distance of sampled frames ...
    inside_a, inside_b = (sa > sb.min() + gap) & (sa < sa.max()), (sb < sa.max() - gap) & (sb > sb.min())
    assert (found[0].time - sa)[inside_a].abs().max() <= gap
    assert (found[1].time - sb)[inside_b].abs().max() <= gap
    assert (found[0].time - sa)[inside_a].abs().mean() < 1
    # ... and frames far outside have no partner and are no anchors.
    assert found[0].cost[sa < sb.min() - 12].isinf().all()
    assert found[1].cost[sb > sa.max() + 12].isinf().all()
    _, counts = terms(embed(sa), embed(sb), sa, sb, mask, mask, **SETTINGS)
    assert counts.tolist() == [found[0].cost.isfinite().sum(), found[1].cost.isfinite().sum()]


def test_views_that_share_a_fifth_are_paired_there_alone():
    embed = random_curve()
    sa = torch.arange(100, dtype=torch.float64).repeat(3, 1)
    sb = sa + torch.tensor([[20.0], [80.0], [300.0]])  # sharing four fifths, one fifth, nothing
    mask = torch.ones(3, 100, dtype=torch.bool)
    found = correspondence(FramePairs(embed(sa), embed(sb), sa, sb, mask, mask))
    for shared, time, cost, s in (
        (sa[1] >= 80, found[0].time, found[0].cost, sa),
        (sb[1] < 100, found[1].time, found[1].cost, sb),
    ):
        paired = cost.isfinite()
        assert paired[1][shared].all() and paired[1].sum() <= 20 + 12
        assert (time - s)[1][shared].abs().mean() < 0.5
        assert (time - s)[paired].abs().max() <= 12  # frames of the curve are alike up to 12 apart
        assert not paired[2].any()


def warped_pair():
    """A video of 59 frames, and the same at two tempos: half as fast, then twice as fast."""
    sb = torch.arange(59, dtype=torch.float64)[None]
    sa = torch.arange(60, dtype=torch.float64)[None]
    # Frame of b that frame of a shows.
    truth = torch.where(sa < 40, sa / 2, 20 + 2 * (sa - 40))
    return sa, sb, truth


def test_a_time_warped_copy_is_recovered():
    sa, sb, truth = warped_pair()
    embed = random_curve()
    rng = torch.Generator().manual_seed(1)
    noise = [0.02 * torch.randn(1, time, 32, generator=rng, dtype=torch.float64) for time in (60, 59)]
    ones_a, ones_b = torch.ones_like(sa, dtype=torch.bool), torch.ones_like(sb, dtype=torch.bool)
    unit_a = unit_vectors(embed(truth) + noise[0], ones_a)
    unit_b = unit_vectors(embed(sb) + noise[1], ones_b)
    # The clocks of the videos have nothing to do with each other.
    found = correspondence(FramePairs(unit_a, unit_b, 3 * sa + 1000, sb + 5e6, ones_a, ones_b))
    assert (found[0].time - 5e6 - truth).abs().max() <= 1.5
    assert (found[0].time - 5e6 - truth).abs().mean() < 0.5
    back = torch.where(sb < 20, 2 * sb, 40 + (sb - 20) / 2)
    assert ((found[1].time - 1000) / 3 - back).abs().max() <= 1.5
    assert found[0].cost.mean().item() < 0.05


def test_frames_in_another_order_are_left_out_by_the_gate():
    sa, sb, truth = warped_pair()
    embed = random_curve()
    mask_a, mask_b = torch.ones(2, 60, dtype=torch.bool), torch.ones(2, 59, dtype=torch.bool)
    za = embed(truth).repeat(2, 1, 1).requires_grad_()
    zb = torch.stack([embed(sb[0]), embed(sb[0].roll(30))])
    arguments = (za, zb, sa.repeat(2, 1), sb.repeat(2, 1), mask_a, mask_b)
    found = correspondence(FramePairs(za.detach(), zb.detach(), *arguments[2:]).unit())
    assert found[0].cost[0].max() < 0.05
    # Of the second pair a path can follow one of the two parts; frames of the other have partners unlike them.
    kept = found[0].cost[1] <= 0.05
    assert 10 < kept.sum() < 50
    shown_at = (truth[0] + 30) % 59
    right = (found[0].time[1] - shown_at).abs() <= 1.5
    assert right[kept].sum() >= kept.sum() - 1, "but for the frame at the seam"
    assert not right[~kept].any()
    settings = SETTINGS | {"max_match_cost": 0.05}
    sums, counts = terms(*arguments, **settings)
    assert counts.tolist() == [60 + kept.sum(), 59 + (found[1].cost[1] <= 0.05).sum()]
    sums.sum().backward()
    assert za.grad[0].any()
    # A cost at the limit is not beyond it.
    exactly = SETTINGS | {"max_match_cost": found[0].cost[0].max().item()}
    assert terms(*(part[:1] for part in arguments), **exactly)[1][0] == 60


def test_the_gate_does_not_hide_embeddings_that_are_not_numbers():
    za, *rest = batch()
    za[0, 0] = math.nan
    sums, _ = terms(za, *rest, **(SETTINGS | {"max_match_cost": 0.5}))
    assert sums.isnan().any()
