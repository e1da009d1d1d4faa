"""All evaluation tasks by name. To add one: a file with a `Task`, and its line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carl_ray.evaluation import (
    alignment,
    classification,
    classifier,
    clip_probe,
    direction,
    frame_classes,
    kendall,
    label_free,
    progression,
    propagation,
    recognition,
    repetitions,
    retrieval,
)
from carl_ray.evaluation.task import Metric, Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        classification.TASK,
        progression.TASK,
        kendall.TASK,
        retrieval.TASK,
        propagation.TASK,
        repetitions.TASK,
        alignment.TASK,
        frame_classes.TASK,
        recognition.TASK,
        clip_probe.TASK,
        classifier.TASK,
        direction.TASK,
        label_free.TASK,
    )
}
"""In the order of tables."""

METRICS: dict[str, Metric] = {metric.name: metric for task in TASKS.values() for metric in task.metrics}
"""All metrics by name, in the order of tables."""


def metric_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """Names of the metrics of some tasks."""
    return tuple(metric.name for task in tasks for metric in TASKS[task].metrics)


def metric_of(name: str, document: Mapping[str, Any] | None = None) -> Metric:
    """The metric of a name, as a document of metrics.json describes it, or as it is known here.

    Metrics of earlier versions and of tasks of one's own, where the document lacks them, show their name.
    """
    described = (document or {}).get("metrics", {}).get(name)
    if described is not None:
        return Metric(**described)
    return METRICS.get(name) or Metric(name=name, title=name.replace("_", " "), meaning="")
