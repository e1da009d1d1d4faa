"""Order of local clips and parts of the whole video, told from content alone (`regions.py`).

Legend: B videos of this worker, n local clips of a video, t cells in time of the whole one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from carl_ray.objectives.base import Batch, Encoding, Terms
from carl_ray.objectives.pairs import rounding

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor, nn

LOCAL, WHOLE = "local", "whole"
"""Names of the views."""
_LEAST_CELLS = 4
"""In time, for distances: of two cells, which of them is asked says most."""
_BETA = 0.1
"""Distance below which the loss is squared, as a part of the video."""


def order_terms(
    head: nn.Module, local: Encoding, whole: Encoding, batch: Batch
) -> tuple[Terms, dict[str, Tensor]]:
    """Cross-entropy of whether a local clip's middle lies before, inside or after a cell of the whole video.

    The head sees the clip's vector f, the cell's mean over space g and f * g: no positions, so that only content can
    answer. A head of one number instead of three tells how far the clip lies after the cell's middle, as a part of the
    video (smooth L1).

    Returns:
        Sum over clips and cells, and their number; figures: loss, accuracy, and that of the best guess for each cell;
        for distances loss and R² beside the mean of each cell.

    Raises:
        ValueError: distances from fewer than four cells.
    """
    import torch
    from torch.nn import functional

    from carl_ray.layers.heads import real_cells
    from carl_ray.objectives.gather import sum_over_workers

    assert local.clip is not None
    cells = whole.frames.shape[2]
    f = local.clip[:, :, None].expand(-1, -1, cells, -1).to(whole.frames.dtype)
    g = whole.frames[:, 0, None].expand_as(f)
    with torch.autocast(f.device.type, enabled=False):
        wide = torch.promote_types(f.dtype, torch.float32)
        logits = head(torch.cat([f, g, f * g], -1).to(wide))
    views = batch.views
    start, stop = views[WHOLE].spans[:, 0].double().unbind(-1)
    middles = views[LOCAL].spans.double().mean(-1)[..., None]
    places = torch.arange(cells + 1, device=f.device, dtype=torch.float64)
    edges = (start[:, None] + places / cells * (stop - start)[:, None])[:, None]
    real = views[LOCAL].mask.any(-1)[..., None] & real_cells(views[WHOLE].mask[:, 0], cells)[:, None]
    if logits.shape[-1] == 1:
        centres = (edges[..., :-1] + edges[..., 1:]) / 2
        distances = (middles - centres) / (stop - start)[:, None, None]
        return distance_terms(logits[..., 0], distances.to(logits.dtype), real)
    passed = (middles >= edges - rounding(middles, edges)).long()
    classes = passed[..., :-1] + passed[..., 1:]
    losses = functional.cross_entropy(logits.flatten(0, 2), classes.flatten(), reduction="none")
    losses = losses.unflatten(0, classes.shape).where(real, 0)
    with torch.no_grad():
        right = ((logits.argmax(-1) == classes) & real).sum().double()
        count = real.sum()
        counts = torch.stack([((classes == k) & real).sum((0, 1)) for k in range(3)])
        # Of all workers; each reports its share.
        every = sum_over_workers(counts)
        best = every.amax(0).sum() * count.double() / every.sum().clamp(min=1)
        figures = {
            "order_loss": torch.stack([losses.sum().double(), count]),
            "order_accuracy": torch.stack([right, count]),
            "order_best_guess": torch.stack([best, count]),
        }
    return Terms(losses.sum()[None], count[None]), figures


def distance_terms(
    found: Float[Tensor, "B n t"], distances: Float[Tensor, "B n t"], real: Bool[Tensor, "B n t"]
) -> tuple[Terms, dict[str, Tensor]]:
    """Smooth L1 of predicted distances, and figures as `order_terms`, which calls it."""
    import torch
    from torch.nn import functional

    from carl_ray.objectives.gather import sum_over_workers

    if distances.shape[-1] < _LEAST_CELLS:
        raise ValueError(
            f"order_targets distance needs {_LEAST_CELLS} cells in time of the whole video, got {distances.shape[-1]}: "
            "raise objective.whole_ratio"
        )
    # The loss itself must be finite: of a video without frames, the distance is not.
    distances = distances.where(real, 0)
    losses = functional.smooth_l1_loss(found, distances, reduction="none", beta=_BETA).where(real, 0)
    count = real.sum()
    with torch.no_grad():
        wide = distances.double()
        sums, numbers = sum_over_workers(torch.stack([wide.sum((0, 1)), real.sum((0, 1)).double()]))
        spread = (wide - sums / numbers.clamp(min=1)).square().where(real, 0).sum()
        error = (wide - found.double()).square().where(real, 0).sum()
    figures = {
        "order_loss": torch.stack([losses.detach().sum().double(), count]),
        "order_r2": torch.stack([spread - error, spread]),
    }
    return Terms(losses.sum()[None], count[None]), figures
