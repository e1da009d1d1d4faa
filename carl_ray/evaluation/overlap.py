"""Warnings about test videos that training has seen: copies or parts of training videos, or the same person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from carl_ray.address import parse
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.frames import unit_frames

_POINTS = 16  # of relative time at which two videos are compared
_LEAST_COSINE = 0.993
"""Of what two videos have beyond the mean of all. On the demo's videos, copies at half the size and with visible
compression have 0.996 and more, other videos of the same action at most 0.990."""
_LEAST_VIDEOS = 8
"""With fewer, their mean says too little of what all have in common."""


def overlap_warnings(
    train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo], persons: Mapping[str, str | None]
) -> list[str]:
    """A sentence for each kind of overlap of training and test videos; none where there is none.

    Args:
        train: Training videos.
        test: Test videos.
        persons: Who is in a video, by its id, where that is known.
    """
    hashes = {video.content_hash: video.video_id for video in train if video.content_hash}
    same = {video.video_id: hashes[video.content_hash] for video in test if video.content_hash in hashes}
    alike = {pair[0]: pair[1] for pair in _near_duplicates(train, test) if pair[0] not in same}
    shared = {pair[0]: pair[1] for pair in _shared_frames(train, test) if pair[0] not in same}
    trained = {persons.get(video.video_id): video.video_id for video in train}
    trained.pop(None, None)
    met = {video.video_id: trained[who] for video in test if (who := persons.get(video.video_id)) in trained}
    kinds = {
        "Copies of training videos": (same, "is"),
        "What seem to be copies of training videos": (alike, "is"),
        "Ranges with frames of training videos": (shared, "overlaps with"),
        "Videos of a person who is in training videos, too,": (met, "shows the person of"),
    }
    return [
        f"{what} among the {len(test)} test videos: {len(found)}, such as {test_id}, which {verb} {train_id}. On them "
        "an encoder seems better than it is."
        for what, (found, verb) in kinds.items()
        for test_id, train_id in [*found.items()][:1]
    ]


def _shared_frames(train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo]) -> list[tuple[str, str]]:
    """Ids of test videos and of training videos with frames of the same file (`carl_ray.address`)."""
    ranges: dict[tuple[object, ...], list[tuple[int, int, str]]] = {}
    for video in train:
        *file, start, end, _ = parse(video.uri)
        ranges.setdefault(tuple(file), []).append((start or 0, end or len(video), video.video_id))
    found = []
    for video in test:
        *file, start, end, _ = parse(video.uri)
        for begin, stop, video_id in ranges.get(tuple(file), ()):
            if begin < (end or len(video)) and (start or 0) < stop:
                found.append((video.video_id, video_id))
    return found


def _near_duplicates(train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo]) -> list[tuple[str, str]]:
    """Ids of test videos and the training videos that they may be copies of."""
    sides = [[video for video in side if len(video)] for side in (train, test)]
    if min(map(len, sides)) == 0 or sum(map(len, sides)) < _LEAST_VIDEOS:
        return []
    courses = np.concatenate([_courses(side) for side in sides])
    # What all videos have in common, such as positions, is no similarity.
    courses -= courses.mean(axis=0)
    units = np.concatenate(unit_frames([courses.reshape(len(courses), -1)]))
    cosines = units[len(sides[0]) :] @ units[: len(sides[0])].T
    return [
        (sides[1][number].video_id, sides[0][int(row.argmax())].video_id)
        for number, row in enumerate(cosines)
        if row.max() >= _LEAST_COSINE
    ]


def _courses(videos: Sequence[EmbeddedVideo]) -> Float[np.ndarray, "videos points width"]:
    """Normalised embeddings at evenly spaced relative times."""
    places = [np.linspace(0, len(video) - 1, _POINTS).round().astype(int) for video in videos]
    return np.stack(unit_frames([video.embeddings[at] for video, at in zip(videos, places, strict=True)]))
