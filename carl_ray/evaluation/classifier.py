"""Accuracy of the classifier that a run of `clip_classes` trained, on whole videos (`predictions.py`)."""

from __future__ import annotations

import numpy as np

from carl_ray.evaluation.bootstrap import Result, ratio_of_sums
from carl_ray.evaluation.task import Metric, Task, Videos

_KS = (1, 5)


def _run(videos: Videos) -> dict[str, Result]:
    predicted = [video.predicted if video.label else None for video in videos.test]
    counts = np.array([names is not None for names in predicted], np.float64)
    if not counts.any():  # Controls have no classifier.
        return {}
    left_out = {"test_videos_without_prediction_or_label": int((counts == 0).sum())}
    found = {}
    for k in _KS:
        right = [v.label in (names or [])[:k] for v, names in zip(videos.test, predicted, strict=True)]
        found[f"classifier_top_{k}"] = ratio_of_sums(np.array(right, np.float64), counts, left_out)
    return found


TASK = Task(
    name="classifier",
    needs=("predictions of a classifier",),
    pooled=True,
    metrics=tuple(
        Metric(
            name=f"classifier_top_{k}",
            title=f"fine-tuned classifier, top {k} (%)",
            meaning=f"share of the test videos whose label is {which} that the run's classifier predicts, by the mean "
            "of its probabilities over even clips of the video and three crops of each",
        )
        for k, which in zip(_KS, ("the one", "among the five"), strict=True)
    ),
    run=_run,
)
