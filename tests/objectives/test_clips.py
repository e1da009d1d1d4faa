"""InfoNCE of two vectors of each video."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from carl_ray.objectives.clips import clip_contrast_terms


@pytest.mark.parametrize("content", [[0, 1, 2, 3], [5, 7, 5, 9], [0, 0, 0, 0]])
def test_contrast_is_infonce_in_both_directions_without_duplicates(content: list[int]):
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 6, dtype=torch.float64)
    numbers = torch.tensor(content)
    terms = clip_contrast_terms(first, second, numbers, temperature=0.1)
    logits = functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T / 0.1
    left_out = (numbers[:, None] == numbers) & ~torch.eye(4, dtype=torch.bool)
    sides = (side.masked_fill(left_out, -torch.inf) for side in (logits, logits.T))
    expected = [functional.cross_entropy(side, torch.arange(4), reduction="sum") for side in sides]
    torch.testing.assert_close(terms.sums, torch.stack(expected))
    assert terms.counts.tolist() == [4, 4]
