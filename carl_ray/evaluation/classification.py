"""Phase classification: a logistic regression on frozen embeddings (paper, section 4)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from carl_ray.evaluation.bootstrap import Result
from carl_ray.evaluation.frames import unit_frames
from carl_ray.evaluation.probes import (
    Embeddings,
    Labels,
    ProbeFrames,
    accuracy_metrics,
    by_fraction,
    select,
)
from carl_ray.evaluation.task import Task, Videos

_MOST_ITERATIONS = 10_000
_TOLERANCE = 1e-8


def phase_classification(
    train_embeddings: Embeddings,
    train_labels: Labels,
    test_embeddings: Embeddings,
    test_labels: Labels,
    *,
    fraction: float = 1.0,
    seed: int = 0,
) -> Result:
    """Accuracy over the test frames of a multinomial logistic regression.

    Embeddings are normalised here; frames with a negative label are left out. Where the training frames have
    a single class, it is predicted.

    Args:
        train_embeddings: One array a training video.
        train_labels: Phase of each of their frames.
        test_embeddings: One array a test video.
        test_labels: Phase of each of their frames.
        fraction: Share of the training videos with labels that is used, whole and rounded up: the first ones
            of a seeded order, so that a smaller share is part of a larger one.
        seed: Of that order.

    Returns:
        Correct frames and frames by test video (`ratio_of_sums`); NaN without labelled frames on both sides.
        `left_out`: `train_videos_without_labels`, `test_videos_without_labels`, `test_frames_of_unseen_phases`
        (phases that no training frame has; these frames count as wrong), and `not_converged` fits.

    Raises:
        ValueError: as `select`.
    """
    data = select(train_embeddings, train_labels, test_embeddings, test_labels, fraction, seed)
    data.left_out |= {"test_frames_of_unseen_phases": data.num_unseen(), "not_converged": 0}
    return data.accuracy(_fitted(data) if data.train else None)


def predicted_phases(videos: Videos) -> list[Int[np.ndarray, " frames"]]:
    """The phase that the classifier predicts for every frame of each test video, labelled or not.

    Some training video must have labels.
    """
    predict = _fitted(select(*videos.arrays))
    return [predict(frames) for frames in unit_frames(videos.test_arrays[0])]


def _fitted(data: ProbeFrames) -> Callable[[np.ndarray], np.ndarray]:
    """The prediction of a regression fitted to the training frames, of which there must be some."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    frames, classes = np.concatenate(data.train), np.concatenate(data.train_classes)
    if (classes == classes[0]).all():
        return lambda video: np.full(len(video), classes[0])
    # For two classes scikit-learn fits one weight vector: half the squared difference of a softmax's two, whose
    # penalty with C = 1 is that of a single one with C = 2.
    penalty = 2.0 if len(np.unique(classes)) == 2 else 1.0
    model = LogisticRegression(C=penalty, tol=_TOLERANCE, max_iter=_MOST_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(frames, classes)
    data.left_out["not_converged"] = int(any(issubclass(w.category, ConvergenceWarning) for w in caught))
    return lambda video: model.predict(video) if len(video) else classes[:0]


def _run(videos: Videos) -> dict[str, Result]:
    return by_fraction("phase_classification", phase_classification, videos)


TASK = Task(
    name="phase_classification",
    needs=("frame labels", "labelled training videos"),
    metrics=accuracy_metrics(
        "phase_classification",
        "share of the test frames whose phase a linear classifier reads from the embedding, having seen the labels of "
        "training videos",
    ),
    run=_run,
)
