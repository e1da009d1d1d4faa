"""Evaluation of embeddings: every task on the trained encoder and on every control.

The videos of each action (`label` of the manifest) are evaluated separately, and the metrics averaged over actions
(paper, section 4); pooled tasks see all videos at once. Intervals are percentile bootstraps over the test videos of
each action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np

from carl_ray.errors import UserError
from carl_ray.evaluation.bootstrap import Result, bootstrap, ratio_of_sums
from carl_ray.evaluation.controls import VARIANTS, embedded_by
from carl_ray.evaluation.embedded_video import EmbeddedVideo, phase_names
from carl_ray.evaluation.embeddings import Origin
from carl_ray.evaluation.probes import LABEL_FRACTIONS, num_fitted
from carl_ray.evaluation.task import Metric, MetricEntry, Task, Videos
from carl_ray.evaluation.tasks import TASKS
from carl_ray.machine import single_threaded

Groups = dict[str, tuple[list[EmbeddedVideo], list[EmbeddedVideo]]]
"""Training and test videos by the name of their group."""

_NUM_DRAWS = 1000
_LEVEL = 0.95
_ALL = "all classes"
"""The group of pooled tasks."""
NO_LABEL = "no label"
"""The action of videos without a label."""


def evaluate(
    train: Sequence[EmbeddedVideo],
    test: Sequence[EmbeddedVideo],
    origin: Origin,
    *,
    tasks: Sequence[str | Task],
    stride: int = 1,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """The document of metrics.json.

    `document[variant][metric]` is {"value", "low", "high", "left_out"}: the interval, None where undefined, and counts
    of what was left out; `document["untrained"]` is None where the embeddings lack that control. `metrics` describes
    the metrics (`Metric`); tasks that did not run are in `not_run`, with the `Need` that all videos lack.
    `document["actions"][label]` holds the same for each action. `fitted_videos` counts the training videos of each
    label fraction, by the suffix of the metrics' names: equal counts mean equal videos.
    `videos_with_returning_phases` counts the test videos in which a phase returns: if there are any, metrics that need
    one order of phases are not meaningful.

    Args:
        train: Videos that probes are fitted to; may be empty.
        test: Videos that are measured.
        origin: Origin of the embeddings.
        tasks: Tasks, those of `carl_ray.evaluation.tasks` also by name.
        stride: Tau, AP@K and the alignment error use every `stride`-th frame.
        seed: Of label fractions, chance, the linear probe's order and the bootstrap.
        on_progress: Called with (current step, number of steps done, number of steps).

    Raises:
        UserError: fewer than two test videos, a video in both, or widths that differ.
    """
    _check(train, test)
    wanted = [TASKS[task] if isinstance(task, str) else task for task in tasks]
    not_run = {task.name: need for task in wanted if (need := task.missing(train, test)) is not None}
    parts = [
        ([task for task in wanted if task.name not in not_run and task.pooled == pooled], groups)
        for pooled, groups in ((False, by_action(train, test)), (True, {_ALL: (list(train), list(test))}))
    ]
    parts = [(chosen, groups) for chosen, groups in parts if chosen] or parts[:1]
    shown = parts[0][1]
    results = _results(parts, origin, stride, seed, on_progress)

    def summaries(names: Iterable[str]) -> dict[str, dict[str, MetricEntry] | None]:
        return {variant: _summary([results.get((n, variant)) for n in names], seed) for variant in VARIANTS}

    return {
        "stride": stride,
        "seed": seed,
        "bootstrap": {"draws": _NUM_DRAWS, "level": _LEVEL, "unit": "test video"},
        "origin": asdict(origin),
        "train": _extent(train),
        "test": _extent(test),
        "videos_with_returning_phases": sum(map(has_returning_phase, test)),
        "metrics": {
            metric.name: asdict(metric) for chosen, _ in parts for task in chosen for metric in task.metrics
        },
        "not_run": not_run,
        "fitted_videos": {
            suffix: sum(
                num_fitted([video.phases for video in fitted], fraction) for fitted, _ in shown.values()
            )
            for suffix, fraction in LABEL_FRACTIONS.items()
        },
        **summaries([name for _, groups in parts for name in groups]),
        "actions": {
            name: {
                "train_videos": len(fitted),
                "test_videos": len(held),
                "videos_with_returning_phases": sum(map(has_returning_phase, held)),
                "num_phases": Videos(fitted, held).num_classes,
                "phase_names": phase_names([*fitted, *held], Videos(fitted, held).num_classes),
                **summaries([name]),
            }
            for name, (fitted, held) in shown.items()
        },
    }


def add_results(
    document: dict[str, Any], metrics: Iterable[Metric], results: Mapping[str, Result], seed: int
) -> None:
    """Add results of the trained encoder alone, by metric, to a document of metrics.json."""
    document["metrics"] |= {metric.name: asdict(metric) for metric in metrics if metric.name in results}
    document["trained"] |= {name: _entry([result], seed) for name, result in results.items()}


def _check(train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo]) -> None:
    if len(test) < 2:
        raise UserError(
            f"expected at least 2 test videos, got {len(test)}: tau, retrieval and alignment compare videos"
        )
    # By URI as well: two folders that were indexed separately may use the same id for two files.
    both = {(v.video_id, v.uri) for v in train} & {(v.video_id, v.uri) for v in test}
    if both:
        raise UserError(
            f"{len(both)} of the videos are in the training and in the test embeddings, {min(both)[0]!r} among them: "
            "evaluation needs disjoint sets"
        )
    first = test[0]
    for video in [*train, *test]:
        vectors = {
            "embeddings": video.embeddings,
            "untrained embeddings": video.untrained,
            "embeddings of clips played backwards": video.backwards,
            "untrained embeddings of clips played backwards": video.untrained_backwards,
        }
        for name, array in vectors.items():
            width = first.embeddings.shape[1]
            if array is not None and array.shape[1] != width:
                raise UserError(
                    f"{name} of different widths: {array.shape[1]} of {video.video_id!r}, "
                    f"{width} of {first.video_id!r}; they must come from one encoder"
                )
            if array is not None and not np.isfinite(array).all():
                raise UserError(f"{name} of {video.video_id!r} are not finite: was the encoder's training?")


def by_action(train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo]) -> Groups:
    """Training and test videos by action, sorted by name; those without a label form one action."""
    names = sorted({video.label or NO_LABEL for video in test})
    return {
        name: (
            [video for video in train if (video.label or NO_LABEL) == name],
            [video for video in test if (video.label or NO_LABEL) == name],
        )
        for name in names
    }


def _results(
    parts: Sequence[tuple[list[Task], Groups]],
    origin: Origin,
    stride: int,
    seed: int,
    on_progress: Callable[[str, int, int], None],
) -> dict[tuple[str, str], dict[str, Result]]:
    """Results by group and variant; a variant whose embeddings were not computed is missing."""
    videos = [video for fitted, held in parts[0][1].values() for video in (*fitted, *held)]
    variants = [variant for variant in VARIANTS if embedded_by(variant, videos, origin, seed) is not None]
    steps = [(name, variant, *part) for part in parts for name in part[1] for variant in variants]
    results: dict[tuple[str, str], dict[str, Result]] = {}
    for done, (name, variant, chosen, groups) in enumerate(steps):
        on_progress(f"{name}, {variant}", done, len(steps))
        fitted, held = (embedded_by(variant, side, origin, seed) for side in groups[name])
        if fitted is not None and held is not None:
            # Tasks on whole videos have large matrices, which threads help; those of an action have many small ones.
            with nullcontext() if any(task.pooled for task in chosen) else single_threaded():
                results[name, variant] = _measure(chosen, Videos(fitted, held, stride, seed))
    return results


def _measure(tasks: Sequence[Task], videos: Videos) -> dict[str, Result]:
    """Results of the tasks; undefined where an action lacks the training videos that others have."""
    nothing = np.zeros(len(videos.test))
    unfitted = ratio_of_sums(nothing, nothing, {"actions_without_training_videos": 1})
    measured: dict[str, Result] = {}
    for task in tasks:
        if "labelled training videos" in task.needs and not videos.train:
            measured |= {metric.name: unfitted for metric in task.metrics}
        else:
            measured |= task.run(videos)
    return measured


def has_returning_phase(video: EmbeddedVideo) -> bool:
    """Whether a phase ends and begins again, ignoring frames without a label."""
    phases = video.phases[video.phases >= 0]
    begun = phases[np.flatnonzero(np.diff(phases, prepend=-1))]
    return len(begun) > len(np.unique(begun))


def _summary(results: Sequence[dict[str, Result] | None], seed: int) -> dict[str, MetricEntry] | None:
    """The entry of each metric, its mean over the groups that have it; None where a group was not measured."""
    found = [result for result in results if result is not None]
    if len(found) < len(results):
        return None
    names = dict.fromkeys(name for result in found for name in result)
    return {name: _entry([result[name] for result in found if name in result], seed) for name in names}


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


def _extent(videos: Sequence[EmbeddedVideo]) -> dict[str, Any]:
    return {
        "videos": len(videos),
        "splits": sorted({video.split for video in videos}, key=str),
        "frames": sum(len(video) for video in videos),
        # With labels of frames or, where no video has these, of their own.
        "labelled_videos": sum(bool((video.phases >= 0).any()) for video in videos)
        or sum(video.label is not None for video in videos),
        "labelled_frames": sum(int((video.phases >= 0).sum()) for video in videos),
    }
