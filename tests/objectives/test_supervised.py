import math
from contextlib import nullcontext

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


def test_unlabelled_frames_have_no_influence():
    logits, frame_labels, mask = batch()
    expected, counts = frame_classification_terms(logits, frame_labels, mask)
    filled = logits.masked_fill((frame_labels < 0)[:, :, None], math.nan).requires_grad_()
    got, got_counts = frame_classification_terms(filled, frame_labels, mask)
    got.sum().backward()
    assert (got.item(), got_counts) == (expected.item(), counts)
    assert not filled.grad[frame_labels < 0].any() and filled.grad.isfinite().all()
    none, _ = frame_classification_terms(filled, torch.full_like(frame_labels, -1), mask)
    assert none.item() == 0 and none.requires_grad


def test_labels_on_a_device_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    on_device = [part.to("meta") for part in batch()]  # whose values nobody can read
    assert [part.shape for part in frame_classification_terms(*on_device)] == [(1,), (1,)]


def test_unknown_class():
    logits, frame_labels, mask = batch()
    frame_labels[0, 0] = 4
    with pytest.raises(ValueError, match="4 classes, got 4"):
        frame_classification_terms(logits, frame_labels, mask)
