"""CSV files of labelled intervals of embedded videos, which `index --labels` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from carl_ray.evaluation.embedded_video import EmbeddedVideo


class LabelledVideo(NamedTuple):
    """A video with a label and its confidence for each frame."""

    video: EmbeddedVideo
    """Its `seconds` are known."""
    labels: Sequence[str]
    """Empty: none."""
    confidence: Float64[np.ndarray, " frames"]


def intervals_csv(videos: Iterable[LabelledVideo]) -> tuple[bytes, int]:
    """The file of the intervals of videos (video,start,end,label,confidence), and the number of these."""
    rows = [row for labelled in videos for row in _intervals(labelled)]
    return csv_bytes(["video", "start", "end", "label", "confidence"], rows), len(rows)


def _intervals(labelled: LabelledVideo) -> Iterator[Sequence[object]]:
    """Rows of a video."""
    video, labels, confidence = labelled
    assert video.seconds is not None
    seconds = np.append(video.seconds, video.seconds[-1] + 1 / (video.fps or 1))
    starts = [frame for frame, label in enumerate(labels) if not frame or label != labels[frame - 1]]
    for start, end in pairwise([*starts, len(labels)]):
        if labels[start]:
            times = (f"{seconds[start]:.4f}", f"{seconds[end]:.4f}")
            yield video.video_id, *times, labels[start], f"{confidence[start:end].mean():.3f}"


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()
