"""What the probes share: a seeded share of the labelled training videos, and accuracy over test frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from carl_ray.evaluation.bootstrap import Result, ratio_of_sums
from carl_ray.evaluation.frames import labelled_frames
from carl_ray.evaluation.task import Metric, Videos

Embeddings = Sequence[Float[np.ndarray, "_ width"]]
Labels = Sequence[Int[np.ndarray, " _"]]

LABEL_FRACTIONS = {"_10": 0.1, "_50": 0.5, "": 1.0}
"""Fractions of the labelled training videos that probes are fitted to, by the suffix of the metric's name."""


@dataclass
class ProbeFrames:
    """Labelled, normalised frames of the selected training videos and of all test videos."""

    train: list[Float64[np.ndarray, "_ width"]]
    train_classes: list[Int[np.ndarray, " _"]]
    test: list[Float64[np.ndarray, "_ width"]]
    test_classes: list[Int[np.ndarray, " _"]]
    left_out: dict[str, int]

    def num_unseen(self) -> int:
        """Test frames whose class no training frame has."""
        seen = np.unique(np.concatenate([*self.train_classes, np.empty(0, dtype=np.int64)]))
        return sum(int((~np.isin(classes, seen)).sum()) for classes in self.test_classes)

    def check_classes(self, count: int) -> None:
        """Raise ValueError where a label is not below `count`."""
        for name, videos in (("training", self.train_classes), ("test", self.test_classes)):
            for number, classes in enumerate(videos):
                if len(classes) and classes.max() >= count:
                    raise ValueError(
                        f"{name} labels of video {number}: expected less than {count}, got {classes.max()}"
                    )

    def accuracy(
        self, predict: Callable[[Float64[np.ndarray, "_ width"]], Int[np.ndarray, " _"]] | None
    ) -> Result:
        """Correct frames by all frames of each test video; undefined without a prediction."""
        correct, frames = np.zeros(len(self.test)), np.zeros(len(self.test))
        if predict is not None:
            for number, (video, truth) in enumerate(zip(self.test, self.test_classes, strict=True)):
                frames[number] = len(truth)
                correct[number] = (predict(video) == truth).sum() if len(truth) else 0
        return ratio_of_sums(correct, frames, self.left_out)


def select(
    train_embeddings: Embeddings,
    train_labels: Labels,
    test_embeddings: Embeddings,
    test_labels: Labels,
    fraction: float = 1.0,
    seed: int = 0,
) -> ProbeFrames:
    """The seeded fraction of the labelled training videos, and the test videos.

    Raises:
        ValueError: as `labelled_frames`, widths of training and test that differ, or a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction:g}")
    units, classes = labelled_frames(train_embeddings, train_labels)
    test, test_classes = labelled_frames(test_embeddings, test_labels)
    if units[0].shape[1] != test[0].shape[1]:
        raise ValueError(
            f"test embeddings: expected width {units[0].shape[1]} as in training, got {test[0].shape[1]}"
        )
    labelled = [number for number, video in enumerate(classes) if len(video)]
    count = num_fitted(classes, fraction)
    chosen = np.sort(np.random.default_rng(seed).permutation(labelled)[:count])
    left_out = {
        "train_videos_without_labels": len(units) - len(labelled),
        "test_videos_without_labels": sum(len(video) == 0 for video in test_classes),
    }
    return ProbeFrames([units[n] for n in chosen], [classes[n] for n in chosen], test, test_classes, left_out)


def num_fitted(labels: Labels, fraction: float) -> int:
    """Number of training videos in a fraction of those with labels, rounded up."""
    labelled = sum(bool((video >= 0).any()) for video in labels)
    # 0.07 x 100 is a little more than 7 in floating point, and must not select an eighth video.
    return math.ceil(fraction * labelled - 1e-9)


def by_fraction(
    name: str, measure: Callable[..., Result], videos: Videos, **options: int
) -> dict[str, Result]:
    """What a probe measures with each fraction of the labels, by the names of `accuracy_metrics`."""
    return {
        f"{name}{suffix}": measure(*videos.arrays, fraction=fraction, seed=videos.seed, **options)
        for suffix, fraction in LABEL_FRACTIONS.items()
    }


def accuracy_metrics(name: str, meaning: str) -> tuple[Metric, ...]:
    """The accuracy of a probe with all labels, and with each fraction of them."""
    words = name.replace("_", " ")
    return tuple(
        Metric(
            name=f"{name}{suffix}",
            title=f"{words}, {100 * fraction:g} % of the labels (%)" if suffix else f"{words} (%)",
            meaning=meaning,
            decides=not suffix,
            by_action=not suffix,
        )
        for suffix, fraction in reversed(LABEL_FRACTIONS.items())
    )
