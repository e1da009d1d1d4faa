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
from carl_ray.objectives.gather import gather_rows
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
class ObjectiveInputs:
    """What the model made of this worker's part of a batch, and what is known of it."""

    frames: Float[Tensor, "B 2 T width"]
    """Z, H, or the logits of the frame classes, as the objective wants."""
    timestamps: Float[Tensor, "B 2 T"]
    mask: Bool[Tensor, "B 2 T"]
    frame_labels: Int64[Tensor, "B 2 T"]
    rows: Int64[Tensor, " B"]
    seeds: Int64[Tensor, "B 2"]


def objective_terms(
    objective: ObjectiveConfig, views: ObjectiveInputs, order_head: OrderHead | None, weak_weight: float
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
            u, v, _, _, mask_u, mask_v, _ = _pairs(views)
            return cycle_consistency_terms(
                u, v, mask_u, mask_v, loss=objective.cycle, temperature=objective.temperature
            )
        case "lav":
            *pairs, _ = _pairs(views)
            return lav_terms(*pairs, smoothing=objective.smoothing, regularization=objective.regularization)
        case "gta":
            u, v, _, _, mask_u, mask_v, _ = _pairs(views)
            return gta_terms(
                *(u, v, mask_u, mask_v),
                temperature=objective.temperature,
                smoothing=objective.smoothing,
                cycle_weight=objective.cycle_weight,
            )
        case "weak_scl":
            sums, counts = _scl(objective, both)
            weak_sums, weak_counts = weak_contrastive_terms(
                *_pairs(views),
                temperature=objective.temperature,
                variance=objective.variance,
                max_match_cost=objective.max_match_cost,
            )
            return torch.cat([sums, weak_weight * weak_sums]), torch.cat([counts, weak_counts])


def _scl(objective: ObjectiveConfig, both: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]) -> Terms:
    return sequence_contrastive_terms(
        *both,
        temperature=objective.temperature,
        variance=objective.variance,
        negatives=objective.negatives,
    )


def _pairs(views: ObjectiveInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Both halves of every pair whose first video is this worker's: frames, timestamps, masks; P each.

    The last tensor says of each pair whether a video alone with its label is paired with itself.

    The first view of either video goes with the second of the other, so each pair of videos gives two. A video
    whose partner could not be read has none; where no pair is left, a fully masked one stands in.
    """
    # Padding stands in rows of 0.
    frames, timestamps, mask, numbers, seeds = gather_rows(
        views.frames, views.timestamps, views.mask, views.rows + 1, views.seeds
    )
    # Row 2 k + 1 is the partner of row 2 k.
    matches = (numbers[None, :] == views.rows[:, None] + 2) & (views.rows % 2 == 0)[:, None]
    found, place = matches.any(1), matches.int().argmax(1)
    own_mask = views.mask & found[:, None, None]
    partner_mask = mask[place].flip(1) & found[:, None, None]
    same = found & (seeds[place] == views.seeds).all(1)
    return (
        views.frames.transpose(0, 1).flatten(0, 1),
        frames[place].flip(1).transpose(0, 1).flatten(0, 1),
        views.timestamps.transpose(0, 1).flatten(0, 1),
        timestamps[place].flip(1).transpose(0, 1).flatten(0, 1),
        own_mask.transpose(0, 1).flatten(0, 1),
        partner_mask.transpose(0, 1).flatten(0, 1),
        same.repeat(2),
    )
