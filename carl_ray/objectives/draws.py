"""Reproducible draws of frames within views."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64
    from torch import Tensor


def draw_frames(
    mask: Bool[Tensor, "V T"], seeds: Int64[Tensor, " V"], num_draws: int, size: int, stream: int
) -> Int64[Tensor, "V num_draws size"]:
    """Draw sets of different real frames of each view, each set equally likely.

    A view's draws depend on its seed and its number of real frames alone: not on the device, the worker or the other
    views.

    Args:
        mask: True where a frame is real; frames stand in time order.
        seeds: Of each view: `batch.seeds[name].flatten()`.
        num_draws: Sets of a view.
        size: Frames of a set.
        stream: A number of the objective's own, which keeps its draws apart from others of the same seed.

    Returns:
        Ascending positions; zeros in views with fewer than `size` real frames.
    """
    import numpy as np
    import torch

    drawn = torch.zeros(len(mask), num_draws, size, dtype=torch.int64)
    for view, (real, seed) in enumerate(zip(mask.cpu(), seeds.tolist(), strict=True)):
        frames = real.nonzero().flatten()
        if len(frames) >= size:
            rng = np.random.Generator(np.random.PCG64([seed % 2**64, stream]))
            order = rng.random((num_draws, len(frames))).argsort(axis=1)
            drawn[view] = frames[torch.from_numpy(np.sort(order[:, :size], axis=1))]
    return drawn.to(mask.device)
