"""What pixels alone say of regions, and how much of it vectors tell.

Legend: B videos of this worker, n clips of a view, N regions of this worker, R of a clip, D width of a vector, K
numbers of a region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64
    from torch import Tensor, nn

Statistics = Literal["color", "color+edges"]
NUM_STATISTICS: dict[Statistics, int] = {"color": 6, "color+edges": 14}
"""K: mean and deviation of three colours, and a histogram of edges."""
_BINS = 8


def low_level_statistics(
    pixels: Tensor, mask: Bool[Tensor, "B n T"], cells: Sequence[int], which: Statistics = "color"
) -> Float[Tensor, "B n R K"]:
    """Mean and deviation of the three colours over the real pixels of each cell, float32; 0 where there are none.

    Args:
        pixels: (B, n, T, S, S, 3) uint8.
        mask: True where a frame is real.
        cells: (t, h, w), which divide T and S.
        which: `color+edges`: also the shares of eight orientations in the grey levels' gradients, by their size.
    """
    import torch

    t, h, w = cells
    weights = mask.float().unflatten(2, (t, -1))
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)

    def cell_means(values: Float[Tensor, "B n T S S k"]) -> Float[Tensor, "B n R k"]:
        # Over the pixels of a frame, (B, n, T, h, w, k), then over the real frames of a cell.
        of_frames = values.unflatten(4, (w, -1)).unflatten(3, (h, -1)).mean((4, 6))
        return torch.einsum("bntfhwk,bntf->bnthwk", of_frames.unflatten(2, (t, -1)), weights).flatten(2, 4)

    colors = pixels.float()
    mean, square = cell_means(colors), cell_means(colors.square())
    found = [mean, (square - mean.square()).clamp(min=0).sqrt()]
    if which == "color+edges":
        down, across = torch.gradient(colors.mean(-1), dim=(3, 4))
        # Level and upright edges are the middles of bins.
        bins = (torch.atan2(down, across) * (_BINS / math.pi)).round().long() % _BINS
        sizes = torch.zeros(*bins.shape, _BINS, device=bins.device)
        edges = cell_means(sizes.scatter(-1, bins[..., None], torch.hypot(down, across)[..., None]))
        found.append(edges / edges.sum(-1, keepdim=True).clamp(min=1e-6))
    return torch.cat(found, -1)


class LowLevel(NamedTuple):
    """Regions of this worker, and what pixels alone say of them."""

    z: Float[Tensor, "N D"]
    """Float32 or better."""
    statistics: Float[Tensor, "N K"]
    videos: Int64[Tensor, " N"]
    """Number of each region's video."""
    num_videos: int
    """B."""


class Reading(NamedTuple):
    """What a reader makes of low-level statistics; sums over the regions of this worker."""

    own_loss: Tensor
    """Of the reader: negative log-likelihood."""
    information: Tensor
    """Upper bound of the information in nats: how much likelier the own statistics are than other videos'."""
    number: Tensor
    """Of regions, int64; 0 where there is no other video."""
    explained: Float[Tensor, " 2"]
    """Variance that the reader explains, and all of it: their ratio is R²."""


def read_terms(
    reader: nn.Module,
    z: Float[Tensor, "N D"],
    statistics: Float[Tensor, "N K"],
    videos: Int64[Tensor, " N"],
    num_videos: int,
) -> Reading:
    """Variational upper bound of the information that regions have of their statistics (vCLUB).

    q(u | z) is a Gaussian with diagonal variance. The expectation over the statistics of other videos is exact, by
    their moments over all workers; a collective call.

    Args:
        reader: z to mean and log deviation of q.
        z: Regions of this worker.
        statistics: u, standardised.
        videos: Of each region, its video's number.
        num_videos: B.
    """
    import torch

    from carl_ray.objectives.gather import sum_over_workers

    with torch.autocast(z.device.type, enabled=False):
        mean, log_deviation = reader(z).chunk(2, -1)
    # A sharper q makes the bound grow without limit.
    log_deviation = log_deviation.clamp(-1, 1)
    own_loss = (0.5 * ((statistics - mean) / log_deviation.exp()).square() + log_deviation).sum()
    fixed = log_deviation.detach()
    with torch.no_grad():
        moments = torch.stack([torch.ones_like(statistics), statistics, statistics.square()]).double()
        own = moments.new_zeros(3, num_videos, statistics.shape[1]).index_add(1, videos, moments)
        count, first, second = sum_over_workers(own.sum(1))[:, None] - own
        count = count.where(count > 0.5, 0)
        other_mean = (first / count.clamp(min=1))[videos].to(z.dtype)
        other_square = (second / count.clamp(min=1))[videos].to(z.dtype)
        alone = count[videos][:, 0] == 0
    # Both log-likelihoods have the same deviation, which cancels.
    own_square = (statistics - mean).square()
    others = mean.square() - 2 * mean * other_mean + other_square
    nats = (0.5 * (others - own_square) * (-2 * fixed).exp()).sum(-1).where(~alone, 0).sum()
    with torch.no_grad():
        total, read = statistics.square().sum(), own_square.sum()
        # The mean over all workers is at least 0.
        above = sum_over_workers(nats.detach()) > 0
    explained = torch.stack([total - read, total]).double()
    return Reading(own_loss.where(~alone.any(), 0), nats * above, (~alone).sum(), explained.detach())
