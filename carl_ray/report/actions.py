"""All pictures of one action for the report: a pair of videos aligned, frames retrieved, a map of all frames.

Which videos and frames are shown follows from names and lengths alone, never from how well it went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from carl_ray.data.decode import DecodeError
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.alignment import align_pair
from carl_ray.evaluation.embeddings import EmbeddedVideo
from carl_ray.evaluation.nearest_frames import FoundFrame, found_frame, nearest_frames, printable
from carl_ray.report import figures
from carl_ray.report.figures import Picture
from carl_ray.report.sheets import is_right, jpeg, thumbnails
from carl_ray.report.video import Clip, aligned_video, partners, same_relative_position

_QUERY_PLACES = (1 / 6, 1 / 2, 5 / 6)
_NUM_NEIGHBOURS = 5
_MOST_MAP_FRAMES = 500
_LEAST_MAP_FRAMES = 8
_MOST_PAIR_FRAMES = 1500  # of a video in a similarity matrix; of longer ones every few frames
_MOST_EMBEDDED_BYTES = 6 * 2**20


@dataclass(frozen=True)
class Tile:
    """A frame on a retrieval sheet."""

    found: FoundFrame
    picture: Picture | None
    """None where the file cannot be read."""
    verdict: str
    """`right`, `wrong` or `unknown` phase."""


@dataclass(frozen=True)
class Sheet:
    """A frame and those nearest to it."""

    query: Tile
    nearest: list[Tile]


@dataclass(frozen=True)
class Pair:
    """Two videos of an action, aligned."""

    first: str
    second: str
    matrices: dict[str, Picture]
    """By encoder."""
    movie: str
    """Data URI, or the name of a file beside the page; empty where a file cannot be read."""
    failure: str
    """Why there is no movie."""
    differences: tuple[float, float] | None
    """Mean difference of true progress: aligned, and at the same relative position."""


@dataclass
class ActionPictures:
    """All pictures of one action; what is missing stays empty."""

    name: str
    colors: list[str]
    """Of the phases."""
    num_videos: int
    has_unlabelled_frames: bool
    pair: Pair | None = None
    sheets: list[Sheet] = field(default_factory=list)
    maps: dict[str, Picture] = field(default_factory=dict)
    """By encoder."""
    num_map_frames: int = 0


def draw_action(
    name: str, videos: Sequence[EmbeddedVideo], movie_name: str
) -> tuple[ActionPictures, bytes | None]:
    """The pictures of an action's videos, and the movie where it is to be written beside the page."""
    labels = [video.frame_labels for video in videos if video.frame_labels is not None]
    num_phases = 1 + max((int(of_frames.max(initial=-1)) for of_frames in labels), default=-1)
    drawn = ActionPictures(
        name=name,
        colors=figures.phase_colors(num_phases),
        num_videos=len(videos),
        has_unlabelled_frames=any(bool((of_frames < 0).any()) for of_frames in labels),
    )
    beside = None
    if len(videos) > 1:
        drawn.pair, beside = _draw_pair(videos[0], videos[1], num_phases, movie_name)
        drawn.sheets = _draw_sheets(videos)
    drawn.maps, drawn.num_map_frames = _draw_maps(videos, num_phases)
    return drawn, beside


def _draw_pair(
    first: EmbeddedVideo, second: EmbeddedVideo, num_phases: int, movie_name: str
) -> tuple[Pair, bytes | None]:
    step = -(-max(len(first), len(second)) // _MOST_PAIR_FRAMES)
    pair = (first, second)
    phases = [None if video.frame_labels is None else video.frame_labels[::step] for video in pair]
    seconds = [step / video.fps if video.fps else None for video in pair]
    encoders = {"trained": [video.embeddings for video in pair]}
    if first.untrained is not None and second.untrained is not None:
        encoders["untrained"] = [first.untrained, second.untrained]
    paths, matrices = {}, {}
    for encoder, embeddings in encoders.items():
        seen = [frames[::step] for frames in embeddings]
        paths[encoder] = align_pair(seen[0], seen[1])
        matrices[encoder] = figures.similarity_matrix(
            seen[0],
            seen[1],
            paths[encoder],
            phases=(phases[0], phases[1]),
            num_phases=num_phases,
            seconds_per_frame=(seconds[0], seconds[1]),
        )
    path = paths["trained"] * step
    movie, failure, beside = "", "", None
    try:
        clips = [Clip(printable(video.video_id), video.uri, len(video)) for video in pair]
        content = aligned_video(clips[0], clips[1], path)
    except (DecodeError, UserError, RunError) as error:
        failure = str(error)
    else:
        if len(content) <= _MOST_EMBEDDED_BYTES:
            movie = Picture(content, "video/mp4").data_uri
        else:
            movie, beside = movie_name, content
    return Pair(
        first=first.video_id,
        second=second.video_id,
        matrices=matrices,
        movie=movie,
        failure=failure,
        differences=_progress_differences(first, second, path),
    ), beside


def _progress_differences(
    first: EmbeddedVideo, second: EmbeddedVideo, path: Int[np.ndarray, "steps 2"]
) -> tuple[float, float] | None:
    if first.progress is None or second.progress is None:
        return None
    shown = (partners(path, len(first)), same_relative_position(len(first), len(second)))
    aligned, unaligned = (float(np.abs(first.progress - second.progress[frames]).mean()) for frames in shown)
    return aligned, unaligned


def _draw_sheets(videos: Sequence[EmbeddedVideo]) -> list[Sheet]:
    """Three frames of the first video, and the nearest frames in the others."""
    query, others = videos[0], videos[1:]
    frames = np.arange(len(query))
    if query.frame_labels is not None and (query.frame_labels >= 0).any():
        frames = np.flatnonzero(query.frame_labels >= 0)
    asked = [int(frames[int(place * len(frames))]) for place in _QUERY_PLACES]
    rows = [
        (found_frame(query, frame), nearest_frames(query.embeddings[frame], others, _NUM_NEIGHBOURS))
        for frame in asked
    ]
    pictures = thumbnails(item for asked_for, found in rows for item in (asked_for, *found))

    def tile(asked_for: FoundFrame, item: FoundFrame) -> Tile:
        right = is_right(asked_for, item)
        picture = pictures[item.uri, item.frame]
        return Tile(
            item,
            None if picture is None else jpeg(picture),
            "unknown" if right is None else "right" if right else "wrong",
        )

    return [
        Sheet(tile(asked_for, asked_for), [tile(asked_for, item) for item in found])
        for asked_for, found in rows
    ]


def _draw_maps(videos: Sequence[EmbeddedVideo], num_phases: int) -> tuple[dict[str, Picture], int]:
    """A map for each encoder, and the number of frames in each; none where there are too few frames."""
    total = sum(len(video) for video in videos)
    if total < _LEAST_MAP_FRAMES:
        return {}, 0
    chosen = np.unique(np.linspace(0, total - 1, min(total, _MOST_MAP_FRAMES)).astype(np.int64))
    encoders = {"trained": [video.embeddings for video in videos]}
    untrained = [video.untrained for video in videos if video.untrained is not None]
    if len(untrained) == len(videos):
        encoders["untrained"] = untrained
    labels = [
        np.full(len(video), -1, np.int32) if video.frame_labels is None else video.frame_labels
        for video in videos
    ]
    phases = np.concatenate(labels)[chosen]
    maps = {
        encoder: figures.frame_map(np.concatenate(embeddings)[chosen], phases, num_phases)
        for encoder, embeddings in encoders.items()
    }
    return maps, len(chosen)
