"""Alignment of several videos with one of them, and propagation of labels, for the page.

Both run in a process of their own: torch would take half of the server's memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from carl_ray.errors import UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.intervals import Interval, intervals

Ends = Literal["tied", "open"]
_MOST_COMPARED = 10


class Follower(NamedTuple):
    """A video that follows another one."""

    frames: Int64[np.ndarray, " N"]
    """The frame to show with each frame of the other video."""
    shared: tuple[int, int]
    """First frame of the other video that has a partner, and the one after the last; equal where none has."""
    similarity: float | None
    """Mean cosine of partners; None without any."""


def follow(
    leader: Float[np.ndarray, "N width"], others: Sequence[Float[np.ndarray, "_ width"]], ends: Ends
) -> list[Follower]:
    """Align videos with a leading one.

    Args:
        leader: Embeddings of the video that keeps its pace.
        others: Those of the videos that follow.
        ends: `open`: frames at the ends of either video may be without partner; the follower stands still there.

    Raises:
        ValueError: a video has no frames, or an embedding is not finite.
    """
    from carl_ray.evaluation.frames import unit_frames
    from carl_ray.evaluation.warping import align_pair
    from carl_ray.report.video import partners, same_relative_position

    found = []
    for other in others:
        path = align_pair(leader, other, open_ends=ends == "open")
        if len(path) == 0:
            found.append(Follower(same_relative_position(len(leader), len(other)), (0, 0), None))
            continue
        first, second = unit_frames([leader, other])
        cosines = (first[path[:, 0]] * second[path[:, 1]]).sum(1)
        shared = (int(path[0, 0]), int(path[-1, 0]) + 1)
        found.append(Follower(partners(path, len(leader)), shared, float(cosines.mean())))
    return found


def aligned_clips(
    files: Sequence[tuple[str, str]], embeddings: Sequence[Float[np.ndarray, "_ width"]], ends: Ends
) -> bytes:
    """Two videos side by side in step, as `align` writes them.

    Args:
        files: Name and URI of each.
        embeddings: Of their frames.
        ends: As for `follow`.

    Raises:
        UserError: a video cannot be read, or the ends are open and the videos have nothing in common.
    """
    from carl_ray.data.decode import DecodeError
    from carl_ray.evaluation.warping import align_pair
    from carl_ray.report.video import Clip, aligned_video

    path = align_pair(*embeddings, open_ends=ends == "open")
    if len(path) == 0:
        raise UserError("the two videos have nothing in common")
    clips = [Clip(name, uri, len(frames)) for (name, uri), frames in zip(files, embeddings, strict=True)]
    try:
        return aligned_video(clips[0], clips[1], path)
    except DecodeError as error:
        raise UserError(str(error)) from None


class Agreement(NamedTuple):
    """How well labelled videos label each other: shares of their labelled frames that are right."""

    propagated: float | None
    """None where no video has another one of its action."""
    straight_line: float | None
    """The control: the labels of the others at the same relative position, by majority."""


def propagate_intervals(
    sources: Sequence[EmbeddedVideo], targets: Sequence[EmbeddedVideo]
) -> list[list[Interval] | None]:
    """Intervals of each target from the labelled videos of its action; None where there are none of it."""
    from carl_ray.evaluation.propagation import propagate_names, sources_for

    found: list[list[Interval] | None] = []
    for video in targets:
        alike = sources_for(video, sources)
        usable = alike and len(video) and video.seconds is not None
        found.append(intervals(propagate_names(alike, video)) if usable else None)
    return found


def agreement(sources: Sequence[EmbeddedVideo]) -> Agreement:
    """Label each of the first ten labelled videos from the others, and by a straight line in time."""
    from carl_ray.evaluation.propagation import propagate_names, sources_for

    right, straight, total = 0, 0, 0
    for video in sources[:_MOST_COMPARED]:
        alike = [source for source in sources_for(video, sources) if source is not video]
        if not alike:
            continue
        own, found = _names(video), propagate_names(alike, video).labels
        others = [_names(source) for source in alike]
        for frame, name in enumerate(own):
            if name:
                votes = Counter(labels[frame * len(labels) // len(own)] for labels in others)
                right += found[frame] == name
                straight += votes.most_common(1)[0][0] == name
                total += 1
    return Agreement(right / total, straight / total) if total else Agreement(None, None)


def _names(video: EmbeddedVideo) -> list[str]:
    return [video.phase_name(phase) or "" for phase in video.phases.tolist()]
