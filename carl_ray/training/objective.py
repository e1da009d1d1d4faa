"""Terms of a step's loss: a config's objective on the model's output. Free of Ray.

    model output of this worker's views ─ (gather the partners) ▶ objective ▶ sums and counts

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
from carl_ray.objectives.pairs import FramePairs, Terms
from carl_ray.objectives.scl import sequence_contrastive_terms
from carl_ray.objectives.shuffle_and_learn import OrderHead, shuffle_and_learn_terms
from carl_ray.objectives.supervised import frame_classification_terms
from carl_ray.objectives.tcc import cycle_consistency_terms
from carl_ray.objectives.tcn import time_contrastive_terms
from carl_ray.objectives.weak import weak_contrastive_terms

PROJECTED = frozenset({"scl", "contrastive", "weak_scl"})
"""Objectives on the projections Z; the others use the embeddings H, as evaluation does."""


@dataclass(frozen=True)
class ObjectiveInputs:
    """Model output for this worker's part of a batch, and the batch's columns."""

    frames: Float[Tensor, "B 2 T width"]
    """Z, H, or the logits of the frame classes, as the objective requires."""
    timestamps: Float[Tensor, "B 2 T"]
    mask: Bool[Tensor, "B 2 T"]
    frame_labels: Int64[Tensor, "B 2 T"]
    rows: Int64[Tensor, " B"]
    seeds: Int64[Tensor, "B 2"]


def objective_terms(
    objective: ObjectiveConfig, views: ObjectiveInputs, order_head: OrderHead | None, weak_weight: float
) -> Terms:
    """Compute the terms of the objective.

    Args:
        objective: The objective and its options.
        views: Its inputs.
        order_head: Classifier of Shuffle-and-Learn.
        weak_weight: Weight of the pairs of videos (weak_scl) at this step.
    """
    each = tuple(part.flatten(0, 1) for part in (views.frames, views.timestamps, views.mask))
    match objective.name:
        case "scl":
            return _scl(objective, _view_pairs(views))
        case "contrastive":
            return contrastive_terms(_view_pairs(views), temperature=objective.temperature)
        case "tcn":
            return time_contrastive_terms(*each, window=objective.window, temperature=objective.temperature)
        case "shuffle_and_learn":
            assert order_head is not None
            return shuffle_and_learn_terms(each[0], each[2], views.seeds.flatten(), order_head)
        case "supervised":
            return frame_classification_terms(each[0], views.frame_labels.flatten(0, 1), each[2])
        case "tcc":
            return cycle_consistency_terms(
                _video_pairs(views)[0], loss=objective.cycle, temperature=objective.temperature
            )
        case "lav":
            return lav_terms(
                _video_pairs(views)[0],
                smoothing=objective.smoothing,
                regularization=objective.regularization,
            )
        case "gta":
            return gta_terms(
                _video_pairs(views)[0],
                temperature=objective.temperature,
                smoothing=objective.smoothing,
                cycle_weight=objective.cycle_weight,
            )
        case "weak_scl":
            sums, counts = _scl(objective, _view_pairs(views))
            weak_sums, weak_counts = weak_contrastive_terms(
                *_video_pairs(views),
                temperature=objective.temperature,
                variance=objective.variance,
                max_match_cost=objective.max_match_cost,
            )
            return torch.cat([sums, weak_weight * weak_sums]), torch.cat([counts, weak_counts])


def _scl(objective: ObjectiveConfig, pairs: FramePairs) -> Terms:
    return sequence_contrastive_terms(
        pairs,
        temperature=objective.temperature,
        variance=objective.variance,
        negatives=objective.negatives,
    )


def _view_pairs(views: ObjectiveInputs) -> FramePairs:
    """The two views of each video."""
    (z1, z2), (s1, s2), (mask1, mask2) = (
        part.unbind(1) for part in (views.frames, views.timestamps, views.mask)
    )
    return FramePairs(z1, z2, s1, s2, mask1, mask2)


def _video_pairs(views: ObjectiveInputs) -> tuple[FramePairs, Bool[Tensor, " P"]]:
    """Pairs of videos of the plan whose first video is this worker's; collective.

    The first view of either video is paired with the second of the other, so each pair of videos gives two. A video
    whose partner could not be read has none; its rows are fully masked.

    Returns:
        The pairs, and True for those of a video with itself, whose label no other video has.
    """
    # Padding has row 0 here.
    frames, timestamps, mask, numbers, seeds = gather_rows(
        views.frames, views.timestamps, views.mask, views.rows + 1, views.seeds
    )
    # Row 2 k + 1 is the partner of row 2 k.
    matches = (numbers[None, :] == views.rows[:, None] + 2) & (views.rows % 2 == 0)[:, None]
    found, place = matches.any(1), matches.int().argmax(1)
    same = found & (seeds[place] == views.seeds).all(1)

    def own(part: Tensor) -> Tensor:
        return part.transpose(0, 1).flatten(0, 1)

    def partner(part: Tensor) -> Tensor:
        return own(part[place].flip(1))

    real = found[:, None, None]
    pairs = FramePairs(
        *(own(views.frames), partner(frames), own(views.timestamps), partner(timestamps)),
        *(own(views.mask & real), own(mask[place].flip(1) & real)),
    )
    return pairs, same.repeat(2)
