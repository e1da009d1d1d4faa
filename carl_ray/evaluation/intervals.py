"""Labelled intervals of embedded videos, and their CSV files, which `index --labels` reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from carl_ray.data.manifest import LABEL_COLUMNS, SCHEMA
from carl_ray.evaluation.embedded_video import EmbeddedVideo

INTERVALS = ("video", "start", "end", "label", "confidence")
"""Columns of a file of intervals."""


class LabelledVideo(NamedTuple):
    """A video with a label and its confidence for each frame."""

    video: EmbeddedVideo
    """Its `seconds` are known."""
    labels: Sequence[str]
    """Empty: none."""
    confidence: Float64[np.ndarray, " frames"]


class Interval(NamedTuple):
    """A labelled span of a video."""

    start: float
    """Seconds from the first frame."""
    end: float
    label: str
    confidence: float
    """Mean over its frames."""


def timed(video: EmbeddedVideo, spans: Iterable[tuple[int, int, str, float]]) -> list[Interval]:
    """Intervals of spans of frames (first, one after the last, label, confidence) of a video whose times are known."""
    assert video.seconds is not None
    seconds = np.append(video.seconds, video.seconds[-1] + 1 / (video.fps or 1)).tolist()
    return [
        Interval(seconds[start], seconds[end], label, confidence) for start, end, label, confidence in spans
    ]


def intervals(labelled: LabelledVideo) -> list[Interval]:
    """Runs of frames with one label, in order; frames without one are in none."""
    video, labels, confidence = labelled
    starts = [frame for frame, label in enumerate(labels) if not frame or label != labels[frame - 1]]
    runs = ((start, end) for start, end in pairwise([*starts, len(labels)]) if labels[start])
    return timed(video, ((*run, labels[run[0]], float(confidence[slice(*run)].mean())) for run in runs))


def interval_rows(video: EmbeddedVideo, found: Iterable[Interval]) -> list[tuple[str, ...]]:
    """Rows of `INTERVALS` of the intervals of a video."""
    return [
        (video.video_id, f"{start:.4f}", f"{end:.4f}", label, f"{confidence:.3f}")
        for start, end, label, confidence in found
    ]


def with_labels(
    videos: Iterable[EmbeddedVideo], files: Sequence[str]
) -> tuple[list[EmbeddedVideo], list[str]]:
    """The videos with the labels of files alone, without splits, and what was done.

    Args:
        videos: Embedded ones.
        files: URIs of files as for `index --labels`.

    Raises:
        UserError: as `join_labels`.
    """
    import pyarrow as pa

    from carl_ray.data.labels import LabelOptions, join_labels
    from carl_ray.evaluation.embeddings import video_metadata

    # Labels of test videos alone would not fit splits.
    videos = [replace(video, frame_labels=None, phase_names=None, split=None) for video in videos]
    names = ("video_id", "uri", "content_hash", "fps", "frame_times", *LABEL_COLUMNS)
    columns = {
        name: pa.array([getattr(video, name) for video in videos], SCHEMA.field(name).type) for name in names
    }
    table = pa.table(columns | {"num_frames": pa.array([len(video) for video in videos])})
    table, notes = join_labels(table, LabelOptions(files=tuple(files)))
    return [replace(video, **video_metadata(table, row)) for row, video in enumerate(videos)], notes
