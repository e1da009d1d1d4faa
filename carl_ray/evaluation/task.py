"""Evaluation tasks and the metrics that they compute; imports nothing heavy.

A task is one file of this package: its metric, a function of arrays, and a `Task` that names what the metric needs and
says to people what it means. `carl_ray.evaluation.tasks` lists them. torch, SciPy and scikit-learn are imported where a
task runs, because commands and sweeps list the metrics before they load these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np

from carl_ray.evaluation.bootstrap import Result
from carl_ray.evaluation.embedded_video import EmbeddedVideo

Need = Literal[
    "labelled training videos",
    "frame labels",
    "progress",
    "two labels of two videos each",
    "predictions of a classifier",
    "clips played backwards",
]
"""What a task cannot do without: frame labels of a training or a test video, true progress of a test video, two labels
(of videos) that at least two training and two test videos have, the predicted label of a labelled test video, or
clips of a training and a test video played backwards."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that a task computes, and how people should read it."""

    name: str
    """Its key in metrics.json."""
    title: str
    """Display name; ends in "(%)" where the value is a share."""
    meaning: str
    """What it measures, as a sentence for people."""
    higher_is_better: bool = True
    needs_one_order: bool = False
    """Whether it is meaningful only if no phase of a video returns."""
    decides: bool = False
    """Whether the report's verdict on training may rest on it: positions alone do not win it by construction."""
    by_action: bool = False
    """Whether the report's table by action has it."""
    no_skill: float | None = None
    """Value of a constant prediction: nothing below it is better than anything."""
    least_shown: float | None = None
    """Smaller values are shown as "< -1": an R² of -300,000 says no more than that the prediction failed."""

    @property
    def is_share(self) -> bool:
        """Whether it is shown in percent."""
        return self.title.endswith("(%)")

    @property
    def words(self) -> str:
        """The title without its unit, for use in a sentence."""
        return self.title.partition(" (")[0]


class MetricEntry(TypedDict):
    """A metric of a variant in metrics.json; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    left_out: dict[str, int]
    """Numbers of what was undefined or missing, by name."""


@dataclass(frozen=True)
class Videos:
    """What a task runs on: the videos of one action, with the embeddings of the encoder or of a control."""

    train: Sequence[EmbeddedVideo]
    """To fit probes to; all may lack labels."""
    test: Sequence[EmbeddedVideo]
    """To measure."""
    stride: int = 1
    """Comparisons of frames use every `stride`-th frame."""
    seed: int = 0

    @property
    def test_arrays(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Embeddings and frame labels of each test video."""
        return [video.embeddings for video in self.test], [video.phases for video in self.test]

    @property
    def arrays(self) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Embeddings and frame labels of each training video, then those of each test video."""
        train = [video.embeddings for video in self.train], [video.phases for video in self.train]
        return *train, *self.test_arrays

    @property
    def num_classes(self) -> int:
        """Number of classes up to the largest frame label; 0 without labels."""
        return 1 + max((int(video.phases.max(initial=-1)) for video in [*self.train, *self.test]), default=-1)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One evaluation of embeddings."""

    name: str
    metrics: tuple[Metric, ...]
    run: Callable[[Videos], Mapping[str, Result]]
    """The result of each metric, by name."""
    needs: tuple[Need, ...] = ()
    pooled: bool = False
    """Whether it runs on the videos of all actions together, and not on each action for a mean over actions."""

    def missing(self, train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo]) -> Need | None:
        """The first of its needs that these videos do not meet; None where it can run."""
        met: dict[Need, bool] = {
            "labelled training videos": any(bool((video.phases >= 0).any()) for video in train),
            "frame labels": any(bool((video.phases >= 0).any()) for video in test),
            "progress": any(video.progress is not None for video in test),
            "two labels of two videos each": len(_repeated_labels(train) & _repeated_labels(test)) >= 2,
            "predictions of a classifier": any(video.label and video.predicted for video in test),
            "clips played backwards": all(
                any(v.backwards is not None for v in side) for side in (train, test)
            ),
        }
        return next((need for need in self.needs if not met[need]), None)


def is_labelled(video: EmbeddedVideo) -> bool:
    """Whether a video has frames and a label of the whole."""
    return bool(video.label) and len(video) > 0


def _repeated_labels(videos: Sequence[EmbeddedVideo]) -> set[str | None]:
    counts = Counter(video.label for video in videos if is_labelled(video))
    return {label for label, count in counts.items() if count >= 2}
