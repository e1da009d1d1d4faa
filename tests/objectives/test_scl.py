import math

import pytest
import torch

from carl_ray.objectives.scl import sequence_contrastive_loss, sequence_contrastive_terms
from tests.objectives.sequences import random_pairs

NEGATIVES = ["video", "batch", "global"]


def slow_loss(z1, z2, s1, s2, mask1, mask2, temperature, variance, across_videos):
    """Equations 1 to 3, one frame at a time."""

    def direction(za, zb, sa, sb, ma, mb):
        losses = []
        for b in range(len(za)):
            own = [j for j in range(zb.shape[1]) if mb[b, j]]
            videos = range(len(zb)) if across_videos else [b]
            everyone = [(v, j) for v in videos for j in range(zb.shape[1]) if mb[v, j]]
            for i in range(za.shape[1]):
                if not ma[b, i] or not own:
                    continue

                def logit(v, j, b=b, i=i):
                    cosine = (za[b, i] * zb[v, j]).sum() / (za[b, i].norm() * zb[v, j].norm())
                    return cosine / temperature

                squares = [float(sa[b, i] - sb[b, j]) ** 2 for j in own]
                gaussians = [math.exp(-(square - min(squares)) / (2 * variance)) for square in squares]
                total = sum(torch.exp(logit(v, j)) for v, j in everyone)
                loss = 0
                for j, gaussian in zip(own, gaussians, strict=True):
                    loss = loss - gaussian / sum(gaussians) * (logit(b, j) - torch.log(total))
                losses.append(loss)
        return sum(losses) / len(losses)

    return direction(z1, z2, s1, s2, mask1, mask2) + direction(z2, z1, s2, s1, mask2, mask1)


def batch():
    pairs = random_pairs()
    pairs.mask2[2] = torch.arange(5) > 0
    return pairs


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize(("temperature", "variance"), [(0.1, 10.0), (1.0, 1.0), (0.3, 25.0)])
def test_equals_the_equations(negatives, temperature, variance):
    arguments = batch()
    expected = slow_loss(*arguments, temperature, variance, across_videos=negatives != "video")
    got = sequence_contrastive_loss(
        *arguments, temperature=temperature, variance=variance, negatives=negatives
    )
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("start", [0.0, 1e6])
def test_float32_weights_keep_the_digits_of_late_timestamps(start):
    z1, z2, s1, s2, mask1, mask2 = batch()
    exact = slow_loss(z1, z2, s1 + start, s2 + start, mask1, mask2, 0.1, 10.0, False)
    got = sequence_contrastive_loss(z1.float(), z2.float(), s1 + start, s2 + start, mask1, mask2)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=0)


def test_tiny_variance_means_the_nearest_frame_alone():
    z1, z2, s1, *_ = (part[:1] for part in batch())
    z2, s2 = torch.cat([z2, z2[:, :1]], 1), s1 + 0.25
    unit1, unit2 = (torch.nn.functional.normalize(z, dim=-1) for z in (z1, z2))
    logits = unit1[0] @ unit2[0].T / 0.1
    diagonal = torch.arange(6)
    assert s1.diff().min() > 0.5, "the nearest frame must be the one of the same number"
    expected = torch.nn.functional.cross_entropy(logits, diagonal)
    expected = expected + torch.nn.functional.cross_entropy(logits.T, diagonal)
    mask = torch.ones(1, 6, dtype=torch.bool)
    for variance in (1e-4, 1e-20):
        got = sequence_contrastive_loss(z1, z2, s1, s2, mask, mask, variance=variance)
        torch.testing.assert_close(got, expected)


def test_huge_variance_means_all_frames_alike():
    z1, z2, s1, s2, mask1, mask2 = (part[:1] for part in batch())
    logits = (
        torch.nn.functional.normalize(z1[0], dim=-1) @ torch.nn.functional.normalize(z2[0], dim=-1).T / 0.1
    )
    expected = -logits.log_softmax(1).mean() - logits.log_softmax(0).mean()
    got = sequence_contrastive_loss(z1, z2, s1, s2, mask1, mask2, variance=1e12)
    torch.testing.assert_close(got, expected)


def test_no_anchor_is_dropped_where_no_frame_is_near():
    pairs = batch()
    _, counts = sequence_contrastive_terms(pairs._replace(s2=pairs.s2 + 5000))
    assert counts.tolist() == [int(pairs.mask1.sum()), int(pairs.mask2.sum())]


def test_unknown_negatives():
    with pytest.raises((ValueError, TypeError), match="clip"):  # a TypeError where annotations are checked
        sequence_contrastive_loss(*batch(), negatives="clip")
