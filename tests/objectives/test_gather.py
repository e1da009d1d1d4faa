import pytest
import torch

from carl_ray.objectives.gather import gather_rows
from tests.samples import run_workers

SHARES = {"two and one": [(0, 2), (2, 3)], "all and none": [(0, 3), (3, 3)], "none": [(0, 0), (0, 0)]}


def videos():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, 2, generator=rng, dtype=torch.float64)
    s = torch.arange(12.0).reshape(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    return z, s, mask, torch.tensor([6, 1, 7])


def union_loss(z, rank):
    """Products of all frames with all frames, unlike on every worker."""
    return (rank + 1) * torch.einsum("atd,bud->atbu", z, z).square().sum()


def test_one_process_keeps_its_own():
    tensors = videos()
    for part, expected in zip(gather_rows(*tensors), tensors, strict=True):
        assert torch.equal(part, expected)
    z = tensors[0].requires_grad_()
    gather_rows(z, *tensors[1:])[0].sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def _worker(rank, _):
    answers = {}
    for name, bounds in SHARES.items():
        start, stop = bounds[rank]
        z, s, mask, rows = (part[start:stop] for part in videos())
        z = z.mT.contiguous().mT.requires_grad_()  # in whatever order it lies in memory
        gathered = gather_rows(z, s, mask, rows)
        union_loss(gathered[0], rank).backward()
        counted = gather_rows(rows.to(torch.int32), s[:, 0] > 0)
        answers[name] = (z.grad, [part.detach() for part in gathered], counted)
    return answers


@pytest.fixture(scope="module")
def answers():
    return run_workers(_worker, 2)


@pytest.mark.parametrize("name", SHARES)
def test_all_workers_hold_the_videos_of_all(answers, name):
    z, s, mask, rows = (part[SHARES[name][0][0] : SHARES[name][1][1]] for part in videos())
    largest = max(stop - start for start, stop in SHARES[name])
    for _, (every_z, every_s, every_mask, every_row), (numbers, flags) in (part[name] for part in answers):
        real = every_row != 0
        assert len(every_row) == 2 * largest
        assert torch.equal(every_row[real], rows)
        assert torch.equal(every_z[real], z)
        assert torch.equal(every_s[real], s)
        assert torch.equal(every_mask[real], mask)
        assert not every_mask[~real].any()
        assert not every_z[~real].any()
        assert [part.dtype for part in (every_z, every_s, every_mask, every_row)] == [
            part.dtype for part in (z, s, mask, rows)
        ]
        # Padded with zeros, of any type.
        assert numbers.dtype == torch.int32
        assert torch.equal(numbers[real].long(), rows)
        assert not numbers[~real].any()
        assert torch.equal(flags[real], s[:, 0] > 0)
        assert not flags[~real].any()


@pytest.mark.parametrize("name", SHARES)
def test_gradients_of_all_workers_flow_back_to_where_a_video_came_from(answers, name):
    z = videos()[0][SHARES[name][0][0] : SHARES[name][1][1]].requires_grad_()
    sum(union_loss(z, rank) for rank in range(2)).backward()
    torch.testing.assert_close(torch.cat([part[name][0] for part in answers]), z.grad)
