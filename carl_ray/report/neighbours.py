"""The frames of other videos that are nearest to a frame (paper, figure 7)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from carl_ray.evaluation.embeddings import EmbeddedVideo
from carl_ray.evaluation.frames import unit_frames


@dataclass(frozen=True)
class FoundFrame:
    """A frame of a video, and how near it is to the one that was asked for."""

    video_id: str
    uri: str
    frame: int
    """Index in the video."""
    seconds: float | None
    """From the first frame, by the average frame rate; none where the rate is unknown."""
    similarity: float
    """Cosine, from -1 to 1; of the frame that was asked for with itself 1."""
    label: str | None
    """Of the video."""
    phase: int | None
    """Label of the frame; none where it has none."""


def found_frame(video: EmbeddedVideo, frame: int, similarity: float = 1.0) -> FoundFrame:
    """A frame of an embedded video, with what is known of it."""
    phase = None if video.frame_labels is None else int(video.frame_labels[frame])
    return FoundFrame(
        video_id=video.video_id,
        uri=video.uri,
        frame=frame,
        seconds=frame / video.fps if video.fps else None,
        similarity=similarity,
        label=video.label,
        phase=None if phase is None or phase < 0 else phase,
    )


def nearest_frames(
    query: Float[np.ndarray, " width"], videos: Iterable[EmbeddedVideo], count: int
) -> list[FoundFrame]:
    """The nearest frame of each video, the nearest first, of the `count` videos where it is nearest.

    One frame a video: its neighbours in time would otherwise fill the list. Only the best are kept while the
    videos pass by. Equally near frames come by video id, then by frame.

    Args:
        query: Embedding of a frame; normalised here, as are the videos'.
        videos: Those to search; videos without frames are passed over.
        count: How many to find; fewer where there are fewer videos.

    Raises:
        ValueError: an embedding is not finite, or of another width than the query.
    """
    (unit,) = unit_frames([query[None]])
    found: list[FoundFrame] = []
    for video in videos:
        if len(video) == 0:
            continue
        try:
            _, frames = unit_frames([unit, video.embeddings])
        except ValueError as error:
            raise ValueError(f"{video.video_id}: {error}") from None
        similarities = frames @ unit[0]
        best = int(np.argmax(similarities))
        found.append(found_frame(video, best, float(similarities[best])))
        if len(found) > 2 * count:
            found = _first(found, count)
    return _first(found, count)


def printable(text: str) -> str:
    """The text with a question mark for whatever is no printable character: line ends, control codes."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _first(found: list[FoundFrame], count: int) -> list[FoundFrame]:
    return heapq.nsmallest(count, found, key=lambda item: (-item.similarity, item.video_id, item.frame))
