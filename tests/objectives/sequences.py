"""Pairs of frame sequences for the tests of objectives."""

from __future__ import annotations

import torch

from carl_ray.objectives.pairs import FramePairs


def mask(*lengths: int, time: int) -> torch.Tensor:
    """True for so many frames of each sequence."""
    return torch.arange(time)[None, :] < torch.tensor(lengths)[:, None]


def random_pairs(
    seed: int = 0, pairs: int = 3, first: int = 6, second: int = 5, width: int = 4, dtype=torch.float64
) -> FramePairs:
    """Random pairs, of which the second is padded on both sides and the third has one frame on the second."""
    rng = torch.Generator().manual_seed(seed)
    z = [torch.randn(pairs, t, width, generator=rng, dtype=torch.float64).to(dtype) for t in (first, second)]
    s = [
        torch.rand(pairs, t, generator=rng, dtype=torch.float64).mul(30).sort(1).values
        for t in (first, second)
    ]
    more = [second] * (pairs - 3)
    masks = mask(first, 4, first, *[first] * (pairs - 3), time=first), mask(second, 3, 1, *more, time=second)
    return FramePairs(*z, *s, *masks)


def whole_pairs(*videos: torch.Tensor) -> FramePairs:
    """Pairs of whole videos, one a second."""
    times = [torch.arange(v.shape[1], dtype=torch.float64).expand(v.shape[:2]) for v in videos]
    return FramePairs(*videos, *times, *(torch.ones(v.shape[:2], dtype=torch.bool) for v in videos))
