import math

import pytest
import torch

from carl_ray.objectives import contrastive
from carl_ray.objectives.pairs import FramePairs
from carl_ray.objectives.scl import sequence_contrastive_terms


def contrastive_terms(*arguments, **options):
    return contrastive.contrastive_terms(FramePairs(*arguments), **options)


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def slow_terms(z1, z2, s1, s2, mask1, mask2, temperature):
    """One anchor at a time: -log softmax of the corresponding frame, or its mean over equally near ones."""

    def direction(za, zb, sa, sb, ma, mb):
        total, count = 0.0, 0
        for b in range(len(za)):
            own = [j for j in range(zb.shape[1]) if mb[b, j]]
            for i in range(za.shape[1]):
                if not ma[b, i] or not own:
                    continue
                times = {j: float(sb[b, j]) for j in own}
                time = float(sa[b, i])
                nearest = min(abs(time - other) for other in times.values())
                positives = [j for j in own if abs(time - times[j]) == nearest]
                logits = {j: cosine(za[b, i], zb[b, j]) / temperature for j in own}
                normalizer = math.log(sum(math.exp(logit) for logit in logits.values()))
                total += sum(normalizer - logits[j] for j in positives) / len(positives)
                count += 1
        return total, count

    first = direction(z1, z2, s1, s2, mask1, mask2)
    second = direction(z2, z1, s2, s1, mask2, mask1)
    return [first[0], second[0]], [first[1], second[1]]


def batch(dtype=torch.float64):
    """Whole timestamps, so that frames are shared, nearest or equally near; both views stick out."""
    rng = torch.Generator().manual_seed(0)
    z1 = torch.randn(3, 7, 4, generator=rng, dtype=dtype)
    z2 = torch.randn(3, 6, 4, generator=rng, dtype=dtype)
    s1 = torch.tensor(
        [[0, 2, 3, 5, 8, 9, 11], [4, 6, 7, 8, 9, 9, 9], [1, 2, 3, 4, 5, 6, 7]], dtype=torch.float64
    )
    s2 = torch.tensor([[2, 4, 6, 7, 10, 14], [5, 6, 8, 9, 9, 9], [0, 2, 4, 5, 8, 30]], dtype=torch.float64)
    mask1 = torch.ones(3, 7, dtype=torch.bool)
    mask2 = torch.ones(3, 6, dtype=torch.bool)
    mask1[1, 5:] = False
    mask2[1, 3:] = False
    mask2[2, 0] = False  # padding in front
    return z1, z2, s1, s2, mask1, mask2


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_loop(temperature):
    arguments = batch()
    sums, counts = contrastive_terms(*arguments, temperature=temperature)
    slow_sums, slow_counts = slow_terms(*arguments, temperature)
    assert counts.tolist() == slow_counts
    assert counts.dtype == torch.int64
    # Also the anchors before the first and after the last frame of the other view.
    assert slow_counts == [int(arguments[4].sum()), int(arguments[5].sum())]
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, torch.tensor(slow_sums, dtype=torch.float64), rtol=1e-10, atol=0)


def test_scl_with_vanishing_variance():
    z1, z2, s1, s2, mask1, mask2 = batch()
    sums, counts = contrastive_terms(z1, z2, s1, s2, mask1, mask2, temperature=0.1)
    assert counts.tolist() == [int(mask1.sum()), int(mask2.sum())]
    distances = []
    for variance in (10.0, 1.0, 1e-2, 1e-4):
        pairs = FramePairs(z1, z2, s1, s2, mask1, mask2)
        scl, scl_counts = sequence_contrastive_terms(pairs, temperature=0.1, variance=variance)
        assert torch.equal(counts, scl_counts)
        distances.append((scl - sums).abs().max().item())
    assert min(distances[:2]) > 0.1
    assert distances[2] < 1e-9
    assert distances[3] < 1e-9


@pytest.mark.parametrize("start", [0, 36_000, 1_000_000])
@pytest.mark.parametrize("frame_step", [0.1, 0.04, 1 / 30, 0.0333, 1e-6])
def test_the_unit_of_the_timestamps_changes_nothing(frame_step, start):
    z1, z2, s1, s2, mask1, mask2 = batch()
    found = [
        contrastive_terms(z1, z2, (s1 + start) * step, (s2 + start) * step, mask1, mask2, temperature=0.1)
        for step in (1.0, frame_step)
    ]
    assert torch.equal(found[1].sums, found[0].sums)
