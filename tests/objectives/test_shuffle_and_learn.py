import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from carl_ray.objectives.shuffle_and_learn import order_head, shuffle_and_learn_terms


def head(width=4, dtype=torch.float64, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return order_head(width).to(dtype)


def batch(dtype=torch.float64):
    """Views with 9, 5 (padding in front and behind), 4 (too few) and 6 real frames."""
    rng = torch.Generator().manual_seed(0)
    embeddings = torch.randn(4, 9, 4, generator=rng, dtype=dtype)
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[1, [0, 1, 7, 8]] = False
    mask[2, 4:] = False
    mask[3, 6:] = False
    seeds = torch.tensor([3, 2**63 - 1, 5, 3])
    return embeddings, mask, seeds


class Recorder(torch.nn.Linear):
    """Answers 0 and keeps the triplets that it is asked about."""

    def forward(self, triplets):
        self.triplets = triplets.detach()
        return super().forward(triplets) * 0


def drawn(mask, seeds, num_tuples=8):
    """Frame numbers (V, N, 6, 3) of the triplets that the head sees."""
    views, time = mask.shape
    numbers = torch.arange(time, dtype=torch.float64).expand(views, time)
    recorder = Recorder(3, 1).double()
    shuffle_and_learn_terms(numbers[:, :, None], mask, seeds, recorder, num_tuples=num_tuples)
    return recorder.triplets.long()


def slow_loss(embeddings, triplets, model):
    """Cross-entropies one triplet at a time: the number of the middle frame says whether it is in order."""
    total, count = 0.0, 0
    for view, tuples in enumerate(triplets.tolist()):
        for tuple_triplets in tuples:
            parts = {"in order": [], "before": [], "after": []}
            for first, middle, last in tuple_triplets:
                h = torch.cat([embeddings[view, frame] for frame in (first, middle, last)])
                for layer in model:
                    if isinstance(layer, torch.nn.Linear):
                        h = layer.weight.double() @ h + layer.bias.double()
                    else:
                        h = torch.stack([max(value, torch.zeros_like(value)) for value in h])
                probability = 1 / (1 + math.exp(-h.item()))
                low, high = sorted((first, last))
                if low < middle < high:
                    parts["in order"].append(-math.log(probability))
                else:
                    parts["before" if middle < low else "after"].append(-math.log(1 - probability))
            assert [len(losses) for losses in parts.values()] == [2, 2, 2]
            shares = {"in order": 1 / 4, "before": 3 / 8, "after": 3 / 8}
            total += sum(shares[kind] * sum(losses) / 2 for kind, losses in parts.items())
            count += 1
    return total, count


def test_equals_the_loop():
    embeddings, mask, seeds = batch()
    counted = torch.tensor([0, 1, 3])
    sums, counts = shuffle_and_learn_terms(embeddings, mask, seeds, head(), num_tuples=3)
    with torch.no_grad():
        total, count = slow_loss(embeddings[counted], drawn(mask, seeds, 3)[counted], head())
    assert sums.shape == counts.shape == (1,)
    assert sums.dtype == torch.float64
    assert counts.dtype == torch.int64
    assert counts.item() == count == 9
    assert sums.item() == pytest.approx(total, rel=1e-10)


def test_triplets_of_real_frames_in_both_directions():
    _, mask, seeds = batch()
    triplets = drawn(mask, seeds, 20)
    for view in (0, 1, 3):
        for six in triplets[view].tolist():
            (b, c, d), reverse, (b1, a, d1), before, (b2, e, d2), after = six
            assert (b, d) == (b1, d1) == (b2, d2), "only the middle frame changes"
            assert all(first < second for first, second in pairwise((a, b, c, d, e)))
            assert mask[view, [a, b, c, d, e]].all()
            assert (reverse, before, after) == ([d, c, b], [d, a, b], [d, e, b])
    # The view with 5 frames has one possible tuple.
    assert triplets[1, :, 0].unique(dim=0).tolist() == [[3, 4, 5]]


def test_every_set_of_five_frames_is_equally_likely():
    mask, seeds = torch.ones(1, 7, dtype=torch.bool), torch.tensor([11])
    six = drawn(mask, seeds, 21_000)[0]
    sets = torch.stack([six[:, 2, 1], *six[:, 0].unbind(1), six[:, 4, 1]], dim=1)
    found, times = sets.unique(dim=0, return_counts=True)
    assert len(found) == 21
    # 1,000 expected each, with a deviation of 31.
    assert times.min() > 840
    assert times.max() < 1160


def test_tuples_depend_on_seed_and_real_frames_alone():
    _, mask, seeds = batch()
    triplets = drawn(mask, seeds)
    order = torch.tensor([3, 1, 0, 2])
    assert torch.equal(drawn(mask[order], seeds[order]), triplets[order])
    assert torch.equal(drawn(mask[:1], seeds[:1])[0], triplets[0])
    # Views of as many frames draw the same places, wherever padding lies.
    shifted = torch.zeros(1, 12, dtype=torch.bool)
    shifted[0, 3:] = True
    assert torch.equal(drawn(shifted, seeds[:1]), triplets[:1] + 3)
    other = drawn(mask[:1], seeds[:1] + 1)
    assert not torch.equal(other, triplets[:1])
    assert not torch.equal(drawn(mask[:1], seeds[:1] + 2**40), triplets[:1])
    assert not torch.equal(drawn(mask, -seeds), triplets)


def test_global_generators_are_left_alone():
    embeddings, mask, seeds = batch()
    model = head()
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, _ = shuffle_and_learn_terms(embeddings, mask, seeds, model)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert torch.equal(shuffle_and_learn_terms(embeddings, mask, seeds, model)[0], first)


def test_answers_of_a_head_that_learns_nothing():
    embeddings, mask, seeds = batch()
    model = head()
    with torch.no_grad():
        model[-1].weight.zero_()
        for bias, loss in ((0.0, math.log(2)), (-math.log(3), 0.562335)):
            model[-1].bias.fill_(bias)
            sums, counts = shuffle_and_learn_terms(embeddings, mask, seeds, model)
            assert (sums / counts).item() == pytest.approx(loss, rel=1e-6)


def test_views_with_too_few_frames_are_zero_with_zero_gradients():
    embeddings, mask, seeds = batch()
    mask = mask & (torch.arange(9) < 4)
    embeddings = embeddings.masked_fill(~mask[:, :, None], math.nan).requires_grad_()
    model = head()
    sums, counts = shuffle_and_learn_terms(embeddings, mask, seeds, model)
    sums.sum().backward()
    assert sums.item() == 0
    assert counts.item() == 0
    assert not embeddings.grad.any()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
