import pytest
import torch

from carl_ray.objectives.draws import draw_frames
from carl_ray.objectives.vsp import _STREAM, brownian_bridge_terms


def batch():
    """Views with 9, 6 (padded) and 2 real frames."""
    rng = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 9, 4, generator=rng, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([9, 6, 2])[:, None]
    s = torch.rand(3, 9, generator=rng, dtype=torch.float64).mul(60).sort(1).values
    return embeddings, s, mask, torch.tensor([3, 2**63 - 1, 5])


def slow_loss(embeddings, s, mask, triplets, scale):
    """The formula of the paper, one triplet at a time."""
    total, count = 0.0, 0
    for x, times, real, drawn in zip(embeddings, s, mask, triplets.tolist(), strict=True):
        frames = [n for n in range(len(x)) if real[n]]
        x = [scale * frame / frame.norm() for frame in x]
        times = ((times - times[frames[0]]) / (times[frames[-1]] - times[frames[0]])).tolist()
        for h, p, t in drawn:
            negatives = [n for n in frames if n < h or n > t]
            if not negatives or not h < p < t:
                continue
            a = (times[p] - times[h]) / (times[t] - times[h])
            sigma = a * (times[t] - times[p])

            def d(n, h=h, t=t, x=x, a=a, sigma=sigma):
                return -float((x[n] - (1 - a) * x[h] - a * x[t]).square().sum()) / (2 * sigma**2)

            # As a difference of logarithms: exp d alone underflows near the ends of a bridge.
            total += torch.tensor([d(n) for n in [p, *negatives]], dtype=torch.float64).logsumexp(
                0
            ).item() - d(p)
            count += 1
    return total, count


@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_is_the_formula_of_the_paper(scale):
    embeddings, s, mask, seeds = batch()
    sums, counts = brownian_bridge_terms(embeddings, s, mask, seeds, scale=scale)
    triplets = draw_frames(mask, seeds, 8, 3, _STREAM)
    assert all(h < p < t for h, p, t in triplets[:2].flatten(0, 1).tolist())
    total, count = slow_loss(embeddings, s, mask, triplets, scale)
    assert (sums.item(), counts.item()) == (pytest.approx(total, rel=1e-9), count) and 8 < count <= 16


def test_a_bridge_itself_costs_least():
    """Frames on a straight line in time: the middle lies on the bridge, everything else does not."""
    s = torch.arange(9.0)[None]
    angles = torch.linspace(0, 1, 9)
    line = torch.stack([angles.cos(), angles.sin()], -1)[None]
    mask, seeds = torch.ones(1, 9, dtype=torch.bool), torch.tensor([1])
    ordered = brownian_bridge_terms(line, s, mask, seeds)
    shuffled = brownian_bridge_terms(line[:, [4, 0, 7, 2, 8, 5, 1, 3, 6]], s, mask, seeds)
    assert ordered[0] < 0.5 * shuffled[0] and ordered[1] == shuffled[1]
