"""A config's objective becomes the terms of a step's loss. Free of Ray.

    what the model made of this worker's views ─ (gather the partners) ▶ objective ▶ sums and counts

Losses are sums over the terms of (sum over anchors) / (anchors of all workers): the objectives return sums and
counts, the step divides.

Legend: B videos of this worker, 2 views, T frames of a view, D width, P pairs of videos, K frame classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from carl_ray.config import ObjectiveConfig
from carl_ray.objectives.contrastive import contrastive_terms
from carl_ray.objectives.gather import gather_videos
from carl_ray.objectives.gta import gta_terms
from carl_ray.objectives.lav import lav_terms
from carl_ray.objectives.scl import sequence_contrastive_terms
from carl_ray.objectives.shuffle_and_learn import OrderHead, shuffle_and_learn_terms
from carl_ray.objectives.supervised import frame_classification_terms
from carl_ray.objectives.tcc import cycle_consistency_terms
from carl_ray.objectives.tcn import time_contrastive_terms
from carl_ray.objectives.weak import weak_contrastive_terms

PROJECTED = frozenset({"scl", "contrastive", "weak_scl"})
"""Objectives that see the projections Z; the others see the embeddings H, which are what evaluation sees."""

Terms = tuple[Float[Tensor, " terms"], Int64[Tensor, " terms"]]
"""Of each term of a loss: the sum over this worker's anchors, with gradient, and their number."""


@dataclass(frozen=True)
class Views:
    """What the model made of this worker's part of a batch, and what is known of it."""

    frames: Float[Tensor, "B 2 T width"]
    """Z, H, or the logits of the frame classes, as the objective wants."""
    timestamps: Float[Tensor, "B 2 T"]
    mask: Bool[Tensor, "B 2 T"]
    frame_labels: Int64[Tensor, "B 2 T"]
    rows: Int64[Tensor, " B"]
    seeds: Int64[Tensor, "B 2"]


def objective_terms(
    objective: ObjectiveConfig, views: Views, order_head: OrderHead | None, weak_weight: float
) -> Terms:
    """The terms of the objective.

    Args:
        objective: Which, and its parameters.
        views: What it sees.
        order_head: The classifier of Shuffle-and-Learn.
        weak_weight: Weight of the pairs of weakly supervised CARL at this step.
    """
    z, s, mask = views.frames, views.timestamps, views.mask
    both = (z[:, 0], z[:, 1], s[:, 0], s[:, 1], mask[:, 0], mask[:, 1])
    each = (z.flatten(0, 1), s.flatten(0, 1), mask.flatten(0, 1))
    match objective.name:
        case "scl":
            return _scl(objective, both)
        case "contrastive":
            return contrastive_terms(*both, temperature=objective.temperature)
        case "tcn":
            return time_contrastive_terms(*each, window=objective.window, temperature=objective.temperature)
        case "shuffle_and_learn":
            assert order_head is not None
            return shuffle_and_learn_terms(each[0], each[2], views.seeds.flatten(), order_head)
        case "supervised":
            return frame_classification_terms(each[0], views.frame_labels.flatten(0, 1), each[2])
        case "tcc":
            u, v, _, _, mask_u, mask_v = _pairs(views)
            return cycle_consistency_terms(
                u, v, mask_u, mask_v, loss=objective.cycle, temperature=objective.temperature
            )
        case "lav":
            return lav_terms(*_pairs(views), smoothing=objective.smoothing)
        case "gta":
            u, v, _, _, mask_u, mask_v = _pairs(views)
            return gta_terms(
                u, v, mask_u, mask_v, temperature=objective.temperature, smoothing=objective.smoothing
            )
        case "weak_scl":
            sums, counts = _scl(objective, both)
            weak_sums, weak_counts = weak_contrastive_terms(
                *_pairs(views),
                temperature=objective.temperature,
                variance=objective.variance,
                max_path_cost=objective.max_path_cost,
            )
            return torch.cat([sums, weak_weight * weak_sums]), torch.cat([counts, weak_counts])


def _scl(objective: ObjectiveConfig, both: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]) -> Terms:
    return sequence_contrastive_terms(
        *both,
        temperature=objective.temperature,
        variance=objective.variance,
        negatives=objective.negatives,
    )


def _pairs(views: Views) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Both halves of every pair whose first video is this worker's: frames, timestamps and masks, P each.

    The first view of either video goes with the second of the other, so each pair of videos gives two. A video
    whose partner could not be read has none; where no pair is left, a fully masked one stands in.
    """
    partner_frames, partner_timestamps, partner_mask = [], [], []
    found: Tensor | None = None
    first = views.rows % 2 == 0
    for view in (1, 0):
        frames, timestamps, mask, rows = gather_videos(
            views.frames[:, view], views.timestamps[:, view], views.mask[:, view], views.rows
        )
        # Row 2 k + 1 is the partner of row 2 k.
        matches = (rows[None, :] == views.rows[:, None] + 1) & first[:, None]
        found = matches.any(1)
        place = matches.int().argmax(1)
        partner_frames.append(frames[place])
        partner_timestamps.append(timestamps[place])
        partner_mask.append(mask[place] & found[:, None])
    assert found is not None
    own_mask = views.mask & found[:, None, None]
    return (
        torch.cat([views.frames[:, 0], views.frames[:, 1]]),
        torch.cat(partner_frames),
        torch.cat([views.timestamps[:, 0], views.timestamps[:, 1]]),
        torch.cat(partner_timestamps),
        torch.cat([own_mask[:, 0], own_mask[:, 1]]),
        torch.cat(partner_mask),
    )
