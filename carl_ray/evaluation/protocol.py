"""Evaluation protocols: all metrics for the trained encoder and three controls.

    trained     H of the trained encoder
    untrained   H of the same encoder before its training
    positions   the sine-cosine positional encoding alone, without frame content
    chance      an independent random vector for every frame

The videos of each action (`label` of the manifest) are evaluated separately, and the metrics averaged over actions
(paper, section 4). Intervals are percentile bootstraps over the test videos of each action.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from carl_ray.errors import UserError
from carl_ray.evaluation.alignment import alignment_error
from carl_ray.evaluation.bootstrap import Result, bootstrap, pair_mean, ratio_of_sums
from carl_ray.evaluation.controls import chance_embeddings, position_embeddings
from carl_ray.evaluation.embeddings import EmbeddedVideo, Origin
from carl_ray.evaluation.kendall import kendalls_tau
from carl_ray.evaluation.metrics import (
    FINEGYM_METRICS,
    LABEL_FRACTIONS,
    PHASE_METRICS,
    VARIANTS,
    MetricEntry,
    Protocol,
)
from carl_ray.evaluation.probes import linear_probe, num_fitted, phase_classification, phase_progression
from carl_ray.evaluation.retrieval import average_precisions

_NUM_DRAWS = 1000
_LEVEL = 0.95
_NEIGHBOURS = (5, 10, 15)


def evaluate(
    train: Sequence[EmbeddedVideo],
    test: Sequence[EmbeddedVideo],
    origin: Origin,
    *,
    protocol: Protocol,
    stride: int,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """The document of metrics.json.

    `document[variant][metric]` is {"value", "low", "high", "left_out"}: the interval, None where undefined, and counts
    of what was left out; `document["untrained"]` is None where the embeddings lack that control.
    `document["actions"][label]` holds the same for each action. `fitted_videos` counts the training videos of each
    label fraction, by the suffix of the metrics' names: equal counts mean equal videos.
    `videos_with_returning_phases` counts the test videos in which a phase returns: if there are any, the metrics of
    `NEEDS_ONE_ORDER` are not meaningful.

    Args:
        train: Videos that probes are fitted to; may be empty if no test video has labels.
        test: Videos that are measured.
        origin: Origin of the embeddings.
        protocol: Which metrics.
        stride: Tau, AP@K and the alignment error use every `stride`-th frame.
        seed: Of label fractions, chance, the linear probe's order and the bootstrap.
        on_progress: Called with (current step, number of steps done, number of steps).

    Raises:
        UserError: fewer than two test videos, no training video, a video in both, or widths that differ.
    """
    _check(train, test)
    actions = _group(train, test, by_label=protocol == "phases")
    has_untrained = all(video.untrained is not None for video in [*train, *test])
    variants = [name for name in VARIANTS if name != "untrained" or has_untrained]
    results: dict[tuple[str, str], dict[str, Result]] = {}
    for action, variant in (steps := list(itertools.product(actions, variants))):
        on_progress(f"{action}, {variant}", len(results), len(steps))
        fitted, held = (_embedded_by(variant, part, origin, seed) for part in actions[action])
        results[action, variant] = (
            _measure_phases(fitted, held, stride, seed)
            if protocol == "phases"
            else _measure_finegym(fitted, held, seed)
        )

    def summaries(names: Iterable[str]) -> dict[str, dict[str, MetricEntry] | None]:
        return {
            variant: _summary([results[name, variant] for name in names], seed)
            if variant in variants
            else None
            for variant in VARIANTS
        }

    return _conditions(train, test, origin, protocol, stride, seed) | {
        "fitted_videos": {
            suffix: sum(
                num_fitted([video.phases for video in videos], fraction) for videos, _ in actions.values()
            )
            for suffix, fraction in LABEL_FRACTIONS.items()
        },
        **summaries(actions),
        "actions": {
            action: {
                "train_videos": len(fitted),
                "test_videos": len(held),
                "videos_with_returning_phases": sum(map(_has_returning_phase, held)),
                "num_phases": _num_classes([*fitted, *held]),
                **summaries([action]),
            }
            for action, (fitted, held) in actions.items()
        },
    }


def _conditions(
    train: Sequence[EmbeddedVideo],
    test: Sequence[EmbeddedVideo],
    origin: Origin,
    protocol: Protocol,
    stride: int,
    seed: int,
) -> dict[str, Any]:
    """The entries of metrics.json that say what was measured, and how."""
    return {
        "protocol": protocol,
        "stride": stride,
        "seed": seed,
        "bootstrap": {"draws": _NUM_DRAWS, "level": _LEVEL, "unit": "test video"},
        "origin": asdict(origin),
        "train": _extent(train),
        "test": _extent(test),
        "videos_with_returning_phases": sum(map(_has_returning_phase, test)),
    }


def _check(train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo]) -> None:
    if not train and any((video.phases >= 0).any() for video in test):
        raise UserError("expected at least one training video to fit probes to, got none")
    if len(test) < 2:
        raise UserError(
            f"expected at least 2 test videos, got {len(test)}: tau, retrieval and alignment compare videos"
        )
    # By URI as well: two folders that were indexed separately may use the same id for two files.
    both = {(v.video_id, v.uri) for v in train} & {(v.video_id, v.uri) for v in test}
    if both:
        raise UserError(
            f"{len(both)} videos are in the training and in the test embeddings, {min(both)[0]!r} among them: "
            "evaluation needs disjoint sets"
        )
    first = test[0]
    for video in [*train, *test]:
        for name, array in (("embeddings", video.embeddings), ("untrained embeddings", video.untrained)):
            width = first.embeddings.shape[1]
            if array is not None and array.shape[1] != width:
                raise UserError(
                    f"{name} of different widths: {array.shape[1]} of {video.video_id!r}, "
                    f"{width} of {first.video_id!r}; they must come from one encoder"
                )
            if array is not None and not np.isfinite(array).all():
                raise UserError(f"{name} of {video.video_id!r} are not finite: was the encoder's training?")


def _group(
    train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo], *, by_label: bool
) -> dict[str, tuple[list[EmbeddedVideo], list[EmbeddedVideo]]]:
    """Training and test videos by action, sorted by name.

    Videos without a label form one action.
    """

    def name(video: EmbeddedVideo) -> str:
        return (video.label or "no label") if by_label else "all classes"

    return {
        action: ([v for v in train if name(v) == action], [v for v in test if name(v) == action])
        for action in sorted({name(video) for video in test})
    }


def _embedded_by(
    variant: str, videos: Sequence[EmbeddedVideo], origin: Origin, seed: int
) -> list[EmbeddedVideo]:
    """The videos with the embeddings of a variant."""
    lengths = [len(video) for video in videos]
    match variant:
        case "trained":
            return list(videos)
        case "untrained":
            embeddings = [video.untrained for video in videos if video.untrained is not None]
        case "positions":
            embeddings = position_embeddings(
                lengths, num_frames=origin.num_frames, width=origin.position_width
            )
        case _:
            width = videos[0].embeddings.shape[1] if videos else 1
            embeddings = chance_embeddings(lengths, [v.video_id for v in videos], width=width, seed=seed)
    return [replace(video, embeddings=array) for video, array in zip(videos, embeddings, strict=True)]


def _arrays(videos: Sequence[EmbeddedVideo]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Embeddings and labels of each video."""
    return [video.embeddings for video in videos], [video.phases for video in videos]


def _measure_phases(
    train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo], stride: int, seed: int
) -> dict[str, Result]:
    measured: dict[str, Result] = dict.fromkeys(PHASE_METRICS[:4], _unfitted(test))
    embeddings, labels = _arrays(test)
    if train:
        labelled = (*_arrays(train), embeddings, labels)
        for suffix, fraction in LABEL_FRACTIONS.items():
            measured[f"phase_classification{suffix}"] = phase_classification(
                *labelled, fraction=fraction, seed=seed
            )
        classes = max(_num_classes([*train, *test]), 2)
        measured["phase_progression"] = phase_progression(*labelled, num_phases=classes)
    # Only labelled frames, but all frames of a video without any label.
    kept = [x[y >= 0] if (y >= 0).any() else x for x, y in zip(embeddings, labels, strict=True)]
    measured["kendalls_tau"] = kendalls_tau(kept, stride=stride)
    precisions = average_precisions(embeddings, labels, _NEIGHBOURS, stride=stride)
    measured |= {f"average_precision_at_{k}": precisions[k] for k in _NEIGHBOURS}
    measured["alignment_error"] = _alignment_error(test, stride)
    return measured


def _measure_finegym(
    train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo], seed: int
) -> dict[str, Result]:
    if not train:
        return dict.fromkeys(FINEGYM_METRICS, _unfitted(test))
    labelled = (*_arrays(train), *_arrays(test))
    classes = _num_classes([*train, *test])
    return {
        f"linear_probe{suffix}": linear_probe(*labelled, num_classes=classes, fraction=fraction, seed=seed)
        for suffix, fraction in LABEL_FRACTIONS.items()
    }


def _unfitted(test: Sequence[EmbeddedVideo]) -> Result:
    """The undefined result of a probe without training videos."""
    nothing = np.zeros(len(test))
    return ratio_of_sums(nothing, nothing, {"actions_without_training_videos": 1})


def _alignment_error(test: Sequence[EmbeddedVideo], stride: int) -> Result:
    """The alignment error of the videos whose true progress is known."""
    known = [(video.embeddings, video.progress) for video in test if video.progress is not None]
    unknown = {"videos_without_progress": len(test) - len(known)}
    if not known:
        return pair_mean(np.full((len(test), len(test)), np.nan), unknown)
    embeddings, progress = zip(*known, strict=True)
    result = alignment_error(embeddings, progress, stride=stride)
    return replace(result, left_out=result.left_out | unknown)


def _has_returning_phase(video: EmbeddedVideo) -> bool:
    """Whether a phase ends and begins again, ignoring frames without a label."""
    phases = video.phases[video.phases >= 0]
    begun = phases[np.flatnonzero(np.diff(phases, prepend=-1))]
    return len(begun) > len(np.unique(begun))


def _num_classes(videos: Sequence[EmbeddedVideo]) -> int:
    return 1 + max((int(video.phases.max(initial=-1)) for video in videos), default=-1)


def _summary(results: Sequence[dict[str, Result]], seed: int) -> dict[str, MetricEntry]:
    """The entry of each metric: its mean over the actions."""
    return {metric: _entry([result[metric] for result in results], seed) for metric in results[0]}


def _entry(results: Sequence[Result], seed: int) -> MetricEntry:
    left_out: dict[str, int] = {}
    for result in results:
        for name, count in result.left_out.items():
            left_out[name] = left_out.get(name, 0) + count
    if len(results) > 1:
        # The mean is over the defined actions; one with too few videos to vary leaves it without an interval.
        defined = [result for result in results if not math.isnan(result.value)]
        left_out["undefined_actions"] = len(results) - len(defined)
        left_out["actions_without_interval"] = sum(not result.can_vary for result in defined)
    interval = bootstrap(results, num_draws=_NUM_DRAWS, level=_LEVEL, seed=seed)
    # JSON has no NaN.
    value, low, high = (None if math.isnan(x) else x for x in (interval.value, interval.low, interval.high))
    return {"value": value, "low": low, "high": high, "left_out": left_out}


def _extent(videos: Sequence[EmbeddedVideo]) -> dict[str, int]:
    return {
        "videos": len(videos),
        "frames": sum(len(video) for video in videos),
        "labelled_frames": sum(int((video.phases >= 0).sum()) for video in videos),
    }
