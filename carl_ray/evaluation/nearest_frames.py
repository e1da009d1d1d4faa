"""Nearest-neighbour search of a frame in other videos (paper, figure 7)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from carl_ray import storage
from carl_ray.address import place_of
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.frames import unit_frames


@dataclass(frozen=True)
class FoundFrame:
    """A frame of a video and its cosine similarity to the query."""

    video_id: str
    uri: str
    frame: int
    """Index in the video."""
    seconds: float | None
    """From the first frame; none where the frame rate is unknown."""
    similarity: float
    """Cosine, from -1 to 1; 1 for the query itself."""
    label: str | None
    """Label of the video."""
    phase: int | None
    """Label of the frame; none where it has none."""
    phase_name: str | None = None
    """Its name; none where the frame has no label."""


def found_frame(video: EmbeddedVideo, frame: int, similarity: float = 1.0) -> FoundFrame:
    """A frame of an embedded video with its time, label and phase."""
    phase, seconds = int(video.phases[frame]), video.seconds
    return FoundFrame(
        video_id=video.video_id,
        uri=video.uri,
        frame=frame,
        seconds=None if seconds is None else float(seconds[frame]),
        similarity=similarity,
        label=video.label,
        phase=None if phase < 0 else phase,
        phase_name=video.phase_name(phase),
    )


def nearest_frames(
    query: Float[np.ndarray, " width"],
    videos: Iterable[EmbeddedVideo],
    count: int,
    *,
    excluded: EmbeddedVideo | None = None,
) -> list[FoundFrame]:
    """The nearest frame of each of the `count` nearest videos, nearest first.

    At most one frame a video: its neighbours in time would otherwise fill the list. Memory does not grow with the
    number of videos. Ties are ordered by video id, then by frame.

    Args:
        query: Embedding of a frame; normalised here, as are the videos'.
        videos: The videos to search; those without frames are skipped.
        count: The most frames returned; fewer where there are fewer videos.
        excluded: A video that is not searched, nor are others of its id or its file (of a range: its frames there).

    Raises:
        ValueError: `count` is below 1, or an embedding is not finite, or of another width than the query.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    (unit,) = unit_frames([query[None]])
    file = None if excluded is None else _file(excluded)

    def best_frames() -> Iterator[FoundFrame]:
        for video in videos:
            if len(video) == 0:
                continue
            if excluded is not None and (video.video_id == excluded.video_id or _file(video) == file):
                continue
            if video.embeddings.shape[1:] != unit.shape[1:]:
                raise ValueError(
                    f"{video.video_id}: expected embeddings as wide as the query's, {unit.shape[1]}, got "
                    f"{video.embeddings.shape[1]}; embed the query with carl_ray.load_encoder(…, like=…), which names "
                    "the folder that is searched"
                )
            try:
                _, frames = unit_frames([unit, video.embeddings])
            except ValueError as error:
                raise ValueError(f"{video.video_id}: {error}") from None
            similarities = frames @ unit[0]
            best = int(np.argmax(similarities))
            yield found_frame(video, best, float(similarities[best]))

    return heapq.nsmallest(
        count, best_frames(), key=lambda found: (-found.similarity, found.video_id, found.frame)
    )


def _file(video: EmbeddedVideo) -> tuple[object, str]:
    return storage.resolve(video.uri), place_of(video.uri)


def printable(text: str) -> str:
    """Text with unprintable characters replaced by question marks."""
    return "".join(character if character.isprintable() else "?" for character in text)
