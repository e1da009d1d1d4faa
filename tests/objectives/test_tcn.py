import math

import pytest
import torch

from carl_ray.objectives.tcn import time_contrastive_terms


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def slow_terms(embeddings, s, mask, window, temperature):
    """Sohn's equation 6 for every anchor and positive, one at a time."""
    total, count = 0.0, 0
    for h, times, real in zip(embeddings, s.tolist(), mask.tolist(), strict=True):
        frames = [i for i, kept in enumerate(real) if kept]
        for i in frames:
            positives = [j for j in frames if 0 < abs(times[i] - times[j]) <= window]
            negatives = [j for j in frames if abs(times[i] - times[j]) > window]
            if not positives or not negatives:
                continue
            count += 1
            for j in positives:
                own = cosine(h[i], h[j]) / temperature
                rivals = sum(math.exp(cosine(h[i], h[n]) / temperature - own) for n in negatives)
                total += math.log(1 + rivals) / len(positives)
    return total, count


def batch(dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 7, 4, generator=rng, dtype=dtype)
    s = torch.tensor(
        [[0, 1, 3, 4, 9, 10, 20], [0, 2, 4, 6, 8, 8, 8], [5, 7, 8, 11, 12, 14, 15]], dtype=torch.float64
    )
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 5:] = False
    mask[2, 0] = False  # padding in front
    return embeddings, s, mask


@pytest.mark.parametrize("window", [1.0, 2.0, 4.0, 9.5])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_loop(window, temperature):
    arguments = batch()
    sums, counts = time_contrastive_terms(*arguments, window=window, temperature=temperature)
    total, count = slow_terms(*arguments, window, temperature)
    assert sums.shape == counts.shape == (1,)
    assert sums.dtype == torch.float64
    assert counts.dtype == torch.int64
    assert counts.item() == count > 0
    assert sums.item() == pytest.approx(total, rel=1e-10)


def test_frames_of_one_time_are_neither_positive_nor_negative():
    embeddings, _, mask = (part[:1, :4] for part in batch())
    s = torch.tensor([[0.0, 0.0, 1.0, 9.0]], dtype=torch.float64)
    sums, counts = time_contrastive_terms(embeddings, s, mask, window=2.0, temperature=0.5)
    assert counts.item() == 3
    assert sums.item() == pytest.approx(slow_terms(embeddings, s, mask, 2.0, 0.5)[0])
    # Without the frame at 1 the two at 0 have no positive.
    without = mask & (s != 1)
    assert time_contrastive_terms(embeddings, s, without, window=2.0, temperature=0.5)[1].item() == 0


@pytest.mark.parametrize("start", [0, 36_000])
def test_the_unit_of_the_timestamps_changes_nothing(start):
    embeddings, s, mask = batch()
    found = [
        time_contrastive_terms(embeddings, (s + start) * step, mask, window=4 * step, temperature=0.1)
        for step in (1.0, 0.1)
    ]
    assert torch.equal(found[1].sums, found[0].sums)


def test_a_view_without_negatives_has_zero_gradient():
    embeddings, s, mask = (part[:1] for part in batch())
    embeddings.requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way back either
        sums, _ = time_contrastive_terms(embeddings, s, mask, window=20.0, temperature=0.1)
        sums.sum().backward()
    assert sums.item() == 0
    assert not embeddings.grad.any()


@pytest.mark.parametrize("window", [0.0, -1.0, math.nan])
def test_window_must_be_positive(window):
    with pytest.raises(ValueError, match="window"):
        time_contrastive_terms(*batch(), window=window, temperature=0.1)
