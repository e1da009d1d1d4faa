"""The direction of time: a linear probe tells clips from the same clips played backwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from carl_ray.evaluation.bootstrap import Result, ratio_of_sums
from carl_ray.evaluation.clip_probe import even_clips
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.recognition import Labels, linear_probe_of_clips
from carl_ray.evaluation.task import Metric, Task, Videos

_NAME = "direction_of_time"


def direction_of_time(
    train: Sequence[tuple[Float[np.ndarray, "_ C"], Float[np.ndarray, "_ C"]]],
    test: Sequence[tuple[Float[np.ndarray, "_ C"], Float[np.ndarray, "_ C"]]],
    *,
    groups: Labels | None = None,
    seed: int = 0,
) -> Result:
    """Accuracy of a linear probe that tells clips from the same clips played backwards; a half says nothing.

    A video is the vectors of its clips and of these played backwards, which are held out together. `groups` and `seed`
    are those of `linear_probe_of_clips`.
    """
    names = np.asarray(range(len(train)) if groups is None else groups)
    result = linear_probe_of_clips(
        [clips for video in train for clips in video],
        [1, 0] * len(train),
        [clips for video in test for clips in video],
        [1, 0] * len(test),
        groups=np.repeat(names, 2),
        seed=seed,
    )
    correct, counts = result.statistics.reshape(2, len(test), 2).sum(axis=2)
    return ratio_of_sums(correct, counts)


def _run(videos: Videos) -> dict[str, Result]:
    if any(video.backwards is None for video in (*videos.train, *videos.test)):
        return {}  # Of controls, the untrained encoder alone sees clips.
    groups = [video.group or video.video_id for video in videos.train]
    found = direction_of_time(
        _both_ways(videos.train), _both_ways(videos.test), groups=groups, seed=videos.seed
    )
    return {_NAME: found}


def _both_ways(videos: Sequence[EmbeddedVideo]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(even_clips(v.embeddings), v.backwards) for v in videos if v.backwards is not None]


TASK = Task(
    name=_NAME,
    needs=("clips played backwards",),
    pooled=True,
    metrics=(
        Metric(
            name=_NAME,
            title="direction of time (%)",
            meaning="share of the test videos, each forwards and backwards, of which a logistic regression on ten even "
            "clips tells which way they run; 50 % is chance, all that a scene tells, and all there is to tell where "
            "every action also occurs backwards",
        ),
    ),
    run=_run,
)
