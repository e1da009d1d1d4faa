"""Phase progression: linear regressions of the time since each phase boundary (paper, section 4)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int

from carl_ray.evaluation.bootstrap import Result, mean_r_squared, r_squared_by_boundary
from carl_ray.evaluation.probes import Embeddings, Labels, select
from carl_ray.evaluation.task import Metric, Task, Videos


def phase_progression(
    train_embeddings: Embeddings,
    train_labels: Labels,
    test_embeddings: Embeddings,
    test_labels: Labels,
    *,
    num_phases: int,
) -> Result:
    """Mean R^2 over the boundaries of regressions of the time since each.

    At boundary k < K - 1 the target of frame t is (t - last frame of phase k) / length, with t and length
    counting the labelled frames of the video. One ordinary least-squares regression a boundary is fitted to
    the frames of all training videos that have phase k; R^2 is over the frames of all such test videos.
    Embeddings are normalised here; frames with a negative label are left out.

    Args:
        train_embeddings: One array a training video.
        train_labels: Phase of each of their frames.
        test_embeddings: One array a test video.
        test_labels: Phase of each of their frames.
        num_phases: K.

    Returns:
        Sums by boundary and test video (`mean_r_squared`). `left_out`: `train_videos_without_phase` and
        `test_videos_without_phase`, left out of a boundary (a video counts once for each of them), and
        `undefined_boundaries`: no training or test video has the phase, or the targets have no spread.

    Raises:
        ValueError: as `select`, fewer than two phases, or a label of `num_phases` or more.
    """
    from sklearn.linear_model import LinearRegression

    if num_phases < 2:
        raise ValueError(f"num_phases must be at least 2 for a boundary, got {num_phases}")
    data = select(train_embeddings, train_labels, test_embeddings, test_labels)
    data.check_classes(num_phases)
    test, test_classes = data.test, data.test_classes
    statistics = np.zeros((4, num_phases - 1, len(test)))
    left_out = {"train_videos_without_phase": 0, "test_videos_without_phase": 0}
    for boundary in range(num_phases - 1):
        fitted = [
            (frames, _time_since(classes, boundary))
            for frames, classes in zip(data.train, data.train_classes, strict=True)
            if (classes == boundary).any()
        ]
        tested = [number for number, classes in enumerate(test_classes) if (classes == boundary).any()]
        left_out["train_videos_without_phase"] += len(train_embeddings) - len(fitted)
        left_out["test_videos_without_phase"] += len(test) - len(tested)
        if not fitted:
            continue
        features, targets = zip(*fitted, strict=True)
        model = LinearRegression().fit(np.concatenate(features), np.concatenate(targets))
        for number in tested:
            target = _time_since(test_classes[number], boundary)
            residual = target - model.predict(test[number])
            statistics[:, boundary, number] = len(target), target.sum(), target @ target, residual @ residual
    defined = ~np.isnan(r_squared_by_boundary(statistics, np.ones((1, len(test)), dtype=int)))
    left_out["undefined_boundaries"] = int((~defined).sum())
    return mean_r_squared(statistics, left_out)


def _time_since(classes: Int[np.ndarray, " frames"], phase: int) -> Float64[np.ndarray, " frames"]:
    """Frames since the last frame of a phase, over the length of the video."""
    return (np.arange(len(classes)) - np.flatnonzero(classes == phase)[-1]) / len(classes)


def _run(videos: Videos) -> dict[str, Result]:
    return {"phase_progression": phase_progression(*videos.arrays, num_phases=max(videos.num_classes, 2))}


TASK = Task(
    name="phase_progression",
    needs=("frame labels", "labelled training videos"),
    metrics=(
        Metric(
            name="phase_progression",
            title="phase progression (R²)",
            meaning="how well a linear regression reads the time since the phases' ends from the embedding; 1 is "
            "perfect, 0 no better than their mean",
            needs_one_order=True,
            by_action=True,
            no_skill=0.0,
            least_shown=-1.0,
        ),
    ),
    run=_run,
)
