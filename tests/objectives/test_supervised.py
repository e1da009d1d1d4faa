import math

import pytest
import torch

from carl_ray.objectives.supervised import frame_classification_terms


def slow_terms(logits, frame_labels, mask):
    total, count = 0.0, 0
    for scores, labels, real in zip(logits.tolist(), frame_labels.tolist(), mask.tolist(), strict=True):
        for frame, label in enumerate(labels):
            if real[frame] and label >= 0:
                total += math.log(sum(math.exp(score) for score in scores[frame])) - scores[frame][label]
                count += 1
    return total, count


def batch(dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 5, 4, generator=rng, dtype=dtype)
    frame_labels = torch.tensor([[0, 1, 1, 2, 3], [-1, 2, 0, 0, 1], [3, -1, -1, 3, 2]])
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    mask[2, 0] = False  # padding in front
    return logits, frame_labels, mask


def test_equals_the_loop():
    sums, counts = frame_classification_terms(*batch())
    total, count = slow_terms(*batch())
    assert sums.shape == counts.shape == (1,)
    assert sums.dtype == torch.float64
    assert counts.dtype == torch.int64
    assert counts.item() == count == 9
    assert sums.item() == pytest.approx(total, rel=1e-12)


def test_equal_scores_cost_the_logarithm_of_the_number_of_classes():
    _, frame_labels, mask = batch()
    sums, counts = frame_classification_terms(torch.full((3, 5, 4), 7.0), frame_labels, mask)
    assert (sums / counts).item() == pytest.approx(math.log(4))


def test_order_of_views_and_frames_and_a_shift_of_the_scores_change_nothing():
    logits, frame_labels, mask = batch()
    expected = frame_classification_terms(logits, frame_labels, mask)
    views, frames = torch.tensor([2, 0, 1]), torch.tensor([3, 0, 1, 4, 2])
    shuffled = [part[views][:, frames] for part in (logits, frame_labels, mask)]
    torch.testing.assert_close(frame_classification_terms(*shuffled), expected)
    shift = torch.arange(15, dtype=torch.float64).view(3, 5, 1)
    torch.testing.assert_close(frame_classification_terms(logits + shift, frame_labels, mask), expected)


@pytest.mark.parametrize("garbage", [1e30, math.inf, math.nan])
def test_masked_and_unlabelled_frames_have_no_influence(garbage):
    logits, frame_labels, mask = batch()
    clean = logits.clone().requires_grad_()
    expected, counts = frame_classification_terms(clean, frame_labels, mask)
    expected.sum().backward()
    unused = ~mask | (frame_labels < 0)
    filled = logits.masked_fill(unused[:, :, None], garbage).requires_grad_()
    # Padding may even name a class that does not exist.
    labels = frame_labels.masked_fill(~mask, 99)
    got, got_counts = frame_classification_terms(filled, labels, mask)
    got.sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert torch.equal(got_counts, counts)
    torch.testing.assert_close(filled.grad, clean.grad)
    assert not filled.grad[unused].any()


@pytest.mark.parametrize("missing", ["frames", "labels"])
def test_a_batch_without_labelled_frames_is_zero_with_zero_gradient(missing):
    logits, frame_labels, mask = batch()
    logits = torch.full_like(logits, math.nan).requires_grad_()
    if missing == "frames":
        mask = torch.zeros_like(mask)
    else:
        frame_labels = torch.full_like(frame_labels, -1)
    sums, counts = frame_classification_terms(logits, frame_labels, mask)
    sums.sum().backward()
    assert sums.item() == 0
    assert counts.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_unknown_class():
    logits, frame_labels, mask = batch()
    frame_labels[0, 0] = 4
    with pytest.raises(ValueError, match="4 classes, got 4"):
        frame_classification_terms(logits, frame_labels, mask)
