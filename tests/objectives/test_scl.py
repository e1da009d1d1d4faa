import math

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from carl_ray.objectives.scl import sequence_contrastive_loss, sequence_contrastive_terms

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


def batch(seed=0, videos=3, time1=6, time2=5, width=4, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    z1 = torch.randn(videos, time1, width, generator=rng, dtype=dtype)
    z2 = torch.randn(videos, time2, width, generator=rng, dtype=dtype)
    s1 = torch.rand(videos, time1, generator=rng, dtype=torch.float64).mul(30).sort(dim=1).values
    s2 = torch.rand(videos, time2, generator=rng, dtype=torch.float64).mul(30).sort(dim=1).values
    mask1 = torch.ones(videos, time1, dtype=torch.bool)
    mask2 = torch.ones(videos, time2, dtype=torch.bool)
    mask1[1, 4:] = False
    mask2[1, 3:] = False
    mask2[2, 0] = False
    return z1, z2, s1, s2, mask1, mask2


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


def test_candidates_of_other_videos_change_the_loss():
    arguments = batch()
    own = sequence_contrastive_loss(*arguments)
    assert sequence_contrastive_loss(*arguments, negatives="batch") > own + 0.1


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_gradient(negatives):
    z1, z2, *rest = batch(videos=3)
    z1.requires_grad_()
    z2.requires_grad_()

    def loss(a, b):
        return sequence_contrastive_loss(a, b, *rest, temperature=0.5, negatives=negatives)

    assert torch.autograd.gradcheck(loss, (z1, z2))


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_exchanging_the_views_changes_nothing(negatives):
    z1, z2, s1, s2, mask1, mask2 = batch()
    forward = sequence_contrastive_loss(z1, z2, s1, s2, mask1, mask2, negatives=negatives)
    backward = sequence_contrastive_loss(z2, z1, s2, s1, mask2, mask1, negatives=negatives)
    torch.testing.assert_close(forward, backward)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_order_of_the_videos_changes_nothing(negatives):
    arguments = batch()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        sequence_contrastive_loss(*arguments, negatives=negatives),
        sequence_contrastive_loss(*(part[order] for part in arguments), negatives=negatives),
    )


def test_scale_of_the_projections_changes_nothing():
    z1, z2, *rest = batch()
    torch.testing.assert_close(
        sequence_contrastive_loss(z1, z2, *rest), sequence_contrastive_loss(3 * z1, 0.1 * z2, *rest)
    )


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("garbage", [1e30, math.inf, math.nan])
def test_masked_frames_have_no_influence(negatives, garbage):
    z1, z2, s1, s2, mask1, mask2 = batch()
    expected = sequence_contrastive_loss(z1, z2, s1, s2, mask1, mask2, negatives=negatives)
    filled1 = z1.masked_fill(~mask1[:, :, None], garbage).requires_grad_()
    filled2 = z2.masked_fill(~mask2[:, :, None], garbage).requires_grad_()
    moved = s2.masked_fill(~mask2, 7e5)
    got = sequence_contrastive_loss(filled1, filled2, s1, moved, mask1, mask2, negatives=negatives)
    got.backward()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert not filled1.grad[~mask1].any()
    assert filled1.grad.isfinite().all()
    assert filled2.grad.isfinite().all()


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_distant_timestamps_in_bf16(negatives):
    z1, z2, s1, s2, mask1, mask2 = batch(time1=8, time2=8, dtype=torch.bfloat16)
    z1.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sequence_contrastive_loss(
            z1, z2, s1.float(), s2.float() + 5000, mask1, mask2, negatives=negatives
        )
        sums, counts = sequence_contrastive_terms(z1, z2, s1, s2 + 5000, mask1, mask2, negatives=negatives)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert z1.grad.isfinite().all()
    assert z1.grad.any()
    # No anchor is dropped although no frame is near.
    assert counts.tolist() == [int(mask1.sum()), int(mask2.sum())]
    exact = slow_loss(
        z1.detach().double(), z2.double(), s1, s2 + 5000, mask1, mask2, 0.1, 10.0, negatives != "video"
    )
    torch.testing.assert_close((sums / counts).sum().double(), exact, rtol=1e-4, atol=0)


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


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_a_video_without_frames_contributes_nothing(negatives):
    z1, z2, s1, s2, mask1, mask2 = batch()
    mask1[0] = False
    mask2[0] = False
    z1.requires_grad_()
    loss = sequence_contrastive_loss(z1, z2, s1, s2, mask1, mask2, negatives=negatives)
    loss.backward()
    rest = [part[1:] for part in (z1, z2, s1, s2, mask1, mask2)]
    torch.testing.assert_close(loss, sequence_contrastive_loss(*rest, negatives=negatives))
    assert not z1.grad[0].any()
    assert z1.grad.isfinite().all()


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_anchors_whose_other_view_is_empty_are_left_out(negatives):
    z1, z2, s1, s2, mask1, mask2 = batch()
    mask2[0] = False
    z1.requires_grad_()
    sums, counts = sequence_contrastive_terms(z1, z2, s1, s2, mask1, mask2, negatives=negatives)
    assert counts.tolist() == [int(mask1[1:].sum()), int(mask2[1:].sum())]
    sums.sum().backward()
    assert z1.grad.isfinite().all()


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_a_batch_without_frames_is_zero_with_zero_gradient(negatives):
    z1, z2, s1, s2, mask1, mask2 = batch()
    z1.requires_grad_()
    nothing1, nothing2 = torch.zeros_like(mask1), torch.zeros_like(mask2)
    loss = sequence_contrastive_loss(z1, z2, s1, s2, nothing1, nothing2, negatives=negatives)
    loss.backward()
    assert loss == 0
    assert z1.grad is not None
    assert not z1.grad.any()


def test_zero_projections_give_a_finite_gradient():
    z1, z2, *rest = batch()
    z1 = torch.zeros_like(z1).requires_grad_()
    loss = sequence_contrastive_loss(z1, z2, *rest)
    loss.backward()
    assert loss.isfinite()
    assert z1.grad.isfinite().all()


def test_unknown_negatives():
    with pytest.raises((ValueError, TypeError), match="clip"):  # a TypeError where annotations are checked
        sequence_contrastive_loss(*batch(), negatives="clip")


SHARES = {"two and one": [(0, 2), (2, 3)], "all and none": [(0, 3), (3, 3)]}


def _global_worker(rank, rendezvous, shares, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    answers = {}
    for name, bounds in shares.items():
        start, stop = bounds[rank]
        z1, z2, *rest = (part[start:stop] for part in batch())
        z1, z2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
        sums, counts = sequence_contrastive_terms(z1, z2, *rest, negatives="global")
        total_counts = counts.clone()
        dist.all_reduce(total_counts)
        loss = (sums / total_counts).sum()
        loss.backward()
        answers[name] = (loss.item(), z1.grad, z2.grad)
    torch.save(answers, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_global_negatives_over_two_workers_equal_batch_over_the_union(tmp_path):
    multiprocessing.spawn(
        _global_worker, args=(f"file://{tmp_path}/rendezvous", SHARES, str(tmp_path)), nprocs=2
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    z1, z2, *rest = batch()
    z1.requires_grad_()
    z2.requires_grad_()
    expected = sequence_contrastive_loss(z1, z2, *rest, negatives="batch")
    expected.backward()
    for name in SHARES:
        assert first[name][0] + second[name][0] == pytest.approx(expected.item(), rel=1e-12)
        torch.testing.assert_close(torch.cat([first[name][1], second[name][1]]), z1.grad)
        torch.testing.assert_close(torch.cat([first[name][2], second[name][2]]), z2.grad)
