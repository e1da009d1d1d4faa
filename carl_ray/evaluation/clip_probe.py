"""Linear probe of whole videos: their label from vectors of ten clips."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from carl_ray.evaluation.bootstrap import Result, of_some
from carl_ray.evaluation.recognition import linear_probe_of_clips
from carl_ray.evaluation.task import Metric, Task, Videos, is_labelled

_NUM_CLIPS = 10
_NAME = "video_linear_probe"


def _run(videos: Videos) -> dict[str, Result]:
    train, test = ([video for video in side if is_labelled(video)] for side in (videos.train, videos.test))
    # Rows of an encoder of clips are the clips around a frame.
    clips = [[even_clips(video.embeddings) for video in side] for side in (train, test)]
    labels = [[video.label for video in side] for side in (train, test)]
    groups = [video.group or video.video_id for video in train]
    found = linear_probe_of_clips(clips[0], labels[0], clips[1], labels[1], groups=groups, seed=videos.seed)
    return {_NAME: of_some(found, np.array([is_labelled(video) for video in videos.test]))}


def even_clips(embeddings: Float[np.ndarray, "frames C"]) -> Float[np.ndarray, "clips C"]:
    """Rows of ten even clips of a video; of a short video each row once."""
    return embeddings[np.unique(np.linspace(0, len(embeddings) - 1, _NUM_CLIPS).round().astype(int))]


TASK = Task(
    name="clip_probe",
    needs=("two labels of two videos each",),
    pooled=True,
    metrics=(
        Metric(
            name=_NAME,
            title="video linear probe (%)",
            meaning="share of the test videos whose label a logistic regression predicts, fitted to ten even clips of "
            "each training video; probabilities of a video's clips are averaged",
            decides=True,
        ),
    ),
    run=_run,
)
