"""Linear models on frozen embeddings (paper, section 4).

Phase classification, phase progression, and FineGym's linear probe.

All take lists with one array for each video, and normalise the embeddings themselves.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch.nn import functional

from carl_ray.evaluation.bootstrap import Result, mean_r_squared, r_squared_by_boundary, ratio_of_sums
from carl_ray.evaluation.frames import labelled_frames

_MOST_ITERATIONS = 10_000

# FineGym's protocol, as `linear_probe` describes it.
_LEARNING_RATE = 50.0
_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-6
_EPOCHS = 100
_BATCH_VIDEOS = 10
_TOLERANCE = 1e-8

_Embeddings = Sequence[Float[np.ndarray, "_ width"]]
_Labels = Sequence[Int[np.ndarray, " _"]]


def phase_classification(
    train_embeddings: _Embeddings,
    train_labels: _Labels,
    test_embeddings: _Embeddings,
    test_labels: _Labels,
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
        ValueError: as `labelled_frames`, widths of training and test that differ, or a fraction outside
            (0, 1].
    """
    data = _select(train_embeddings, train_labels, test_embeddings, test_labels, fraction, seed)
    data.left_out |= {"test_frames_of_unseen_phases": data.num_unseen(), "not_converged": 0}
    if not data.train:
        return data.accuracy(None)
    frames, classes = np.concatenate(data.train), np.concatenate(data.train_classes)
    if (classes == classes[0]).all():
        return data.accuracy([np.full(len(video), classes[0]) for video in data.test])
    # For two classes scikit-learn fits one weight vector: half the squared difference of a softmax's two, whose
    # penalty with C = 1 is that of a single one with C = 2.
    penalty = 2.0 if len(np.unique(classes)) == 2 else 1.0
    model = LogisticRegression(C=penalty, tol=_TOLERANCE, max_iter=_MOST_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(frames, classes)
    data.left_out["not_converged"] = int(any(issubclass(w.category, ConvergenceWarning) for w in caught))
    return data.accuracy([model.predict(video) if len(video) else classes[:0] for video in data.test])


def phase_progression(
    train_embeddings: _Embeddings,
    train_labels: _Labels,
    test_embeddings: _Embeddings,
    test_labels: _Labels,
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
        ValueError: as `labelled_frames`, widths of training and test that differ, fewer than two phases, or
            a label of `num_phases` or more.
    """
    if num_phases < 2:
        raise ValueError(f"num_phases must be at least 2 for a boundary, got {num_phases}")
    train, train_classes = labelled_frames(train_embeddings, train_labels)
    test, test_classes = labelled_frames(test_embeddings, test_labels)
    _check_widths(train_embeddings, test_embeddings)
    _check_range("training", train_classes, num_phases)
    _check_range("test", test_classes, num_phases)
    statistics = np.zeros((4, num_phases - 1, len(test)))
    left_out = {"train_videos_without_phase": 0, "test_videos_without_phase": 0}
    for boundary in range(num_phases - 1):
        fitted = [
            (frames, _time_since(classes, boundary))
            for frames, classes in zip(train, train_classes, strict=True)
            if (classes == boundary).any()
        ]
        tested = [number for number, classes in enumerate(test_classes) if (classes == boundary).any()]
        left_out["train_videos_without_phase"] += len(train) - len(fitted)
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


def linear_probe(
    train_embeddings: _Embeddings,
    train_labels: _Labels,
    test_embeddings: _Embeddings,
    test_labels: _Labels,
    *,
    num_classes: int,
    fraction: float = 1.0,
    seed: int = 0,
) -> Result:
    """Accuracy over the test frames of a linear layer: FineGym's protocol.

    SGD with learning rate 50, momentum .9 and weight decay 1e-6, cosine decay by epoch over 100 epochs,
    batches of 10 videos in a seeded order, cross-entropy averaged over the labelled frames of a batch. The
    layer is initialised with zeros: its loss is convex, so no initialisation is better.

    Arguments, result and errors are those of `phase_classification`, except: labels are classes from 0 to
    `num_classes` - 1, and a larger one is a ValueError; `seed` is also that of the order of the videos; `left_out` has
    `test_frames_of_unseen_classes` instead of the last two.
    """
    data = _select(train_embeddings, train_labels, test_embeddings, test_labels, fraction, seed)
    _check_range("training", data.train_classes, num_classes)
    _check_range("test", data.test_classes, num_classes)
    data.left_out["test_frames_of_unseen_classes"] = data.num_unseen()
    if not data.train:
        return data.accuracy(None)
    weight, bias = _linear_layer(data.train, data.train_classes, num_classes, seed)
    return data.accuracy([(video @ weight.T + bias).argmax(1) for video in data.test])


def _linear_layer(
    videos: list[Float64[np.ndarray, "_ width"]],
    classes: list[Int[np.ndarray, " _"]],
    num_classes: int,
    seed: int,
) -> tuple[Float64[np.ndarray, "classes width"], Float64[np.ndarray, " classes"]]:
    """Weight and bias after the last epoch."""
    # In float64: at this learning rate the rounding of float32 grows into other weights on other machines.
    frames = [torch.from_numpy(video) for video in videos]
    targets = [torch.from_numpy(video.astype(np.int64)) for video in classes]
    weight = torch.zeros(num_classes, frames[0].shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD(
        [weight, bias], lr=_LEARNING_RATE, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
    rng = np.random.default_rng(seed)
    for _ in range(_EPOCHS):
        order = rng.permutation(len(videos))
        for start in range(0, len(order), _BATCH_VIDEOS):
            batch = order[start : start + _BATCH_VIDEOS]
            logits = functional.linear(torch.cat([frames[video] for video in batch]), weight, bias)
            loss = functional.cross_entropy(logits, torch.cat([targets[video] for video in batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return weight.detach().numpy(), bias.detach().numpy()


@dataclass
class _Selection:
    """Labelled, normalised frames of the selected training and all test videos."""

    train: list[Float64[np.ndarray, "_ width"]]
    train_classes: list[Int[np.ndarray, " _"]]
    test: list[Float64[np.ndarray, "_ width"]]
    test_classes: list[Int[np.ndarray, " _"]]
    left_out: dict[str, int]

    def num_unseen(self) -> int:
        """Test frames whose class no training frame has."""
        seen = np.unique(np.concatenate([*self.train_classes, np.empty(0, dtype=np.int64)]))
        return sum(int((~np.isin(classes, seen)).sum()) for classes in self.test_classes)

    def accuracy(self, predictions: Sequence[Int[np.ndarray, " _"]] | None) -> Result:
        """Correct frames by all frames of each test video; undefined without predictions."""
        if predictions is None:
            nothing = np.zeros(len(self.test_classes))
            return ratio_of_sums(nothing, nothing, self.left_out)
        pairs = zip(predictions, self.test_classes, strict=True)
        correct = np.array([(found == truth).sum() for found, truth in pairs], dtype=np.float64)
        frames = np.array([len(truth) for truth in self.test_classes], dtype=np.float64)
        return ratio_of_sums(correct, frames, self.left_out)


def _select(
    train_embeddings: _Embeddings,
    train_labels: _Labels,
    test_embeddings: _Embeddings,
    test_labels: _Labels,
    fraction: float,
    seed: int,
) -> _Selection:
    """The seeded fraction of the labelled training videos, and the test videos."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction:g}")
    units, classes = labelled_frames(train_embeddings, train_labels)
    test, test_classes = labelled_frames(test_embeddings, test_labels)
    _check_widths(train_embeddings, test_embeddings)
    labelled = [number for number, video in enumerate(classes) if len(video)]
    count = num_fitted(classes, fraction)
    chosen = np.sort(np.random.default_rng(seed).permutation(labelled)[:count])
    left_out = {
        "train_videos_without_labels": len(units) - len(labelled),
        "test_videos_without_labels": sum(len(video) == 0 for video in test_classes),
    }
    return _Selection([units[n] for n in chosen], [classes[n] for n in chosen], test, test_classes, left_out)


def num_fitted(labels: _Labels, fraction: float) -> int:
    """Number of training videos in a fraction of those with labels, rounded up."""
    labelled = sum(bool((video >= 0).any()) for video in labels)
    # 0.07 x 100 is a little more than 7 in floating point, and must not select an eighth video.
    return math.ceil(fraction * labelled - 1e-9)


def _time_since(classes: Int[np.ndarray, " frames"], phase: int) -> Float64[np.ndarray, " frames"]:
    """Frames since the last frame of a phase, over the length of the video."""
    return (np.arange(len(classes)) - np.flatnonzero(classes == phase)[-1]) / len(classes)


def _check_widths(train_embeddings: _Embeddings, test_embeddings: _Embeddings) -> None:
    trained, tested = train_embeddings[0].shape[1], test_embeddings[0].shape[1]
    if trained != tested:
        raise ValueError(f"test embeddings: expected width {trained} as in training, got {tested}")


def _check_range(name: str, videos: list[Int[np.ndarray, " _"]], count: int) -> None:
    for number, classes in enumerate(videos):
        if len(classes) and classes.max() >= count:
            raise ValueError(
                f"{name} labels of video {number}: expected less than {count}, got {classes.max()}"
            )
