"""Pictures of one action for the report: alignment, retrieval, map of frames.

Videos and frames are selected by name and length alone, never by result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from carl_ray.data.decode import DecodeError
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embeddings import EmbeddedVideo, phase_names
from carl_ray.evaluation.nearest_frames import FoundFrame, found_frame, nearest_frames, printable
from carl_ray.evaluation.warping import align_pair
from carl_ray.report import figures
from carl_ray.report.figures import Picture
from carl_ray.report.sheets import is_right, jpeg, thumbnails
from carl_ray.report.video import Clip, aligned_video, partners, same_relative_position

_QUERY_PLACES = (1 / 6, 1 / 2, 5 / 6)
_NUM_NEIGHBOURS = 5
_MOST_MAP_FRAMES = 500
_LEAST_MAP_FRAMES = 8
_MOST_PAIR_FRAMES = 1500  # of a video in a similarity matrix; longer videos are strided
_MOST_EMBEDDED_BYTES = 6 * 2**20


@dataclass(frozen=True)
class Tile:
    """A frame on a retrieval sheet."""

    found: FoundFrame
    picture: Picture | None
    """None where the file cannot be read."""
    verdict: str
    """Whether its phase is that of the query: `right`, `wrong` or `unknown`."""


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
    """Reason why there is no movie."""
    differences: tuple[float, float] | None
    """Mean difference of true progress: aligned, and at the same relative position."""


@dataclass
class ActionPictures:
    """All pictures of one action; empty where data are missing."""

    name: str
    colors: list[str]
    """Of the phases."""
    phase_names: list[str]
    num_videos: int
    has_unlabelled_frames: bool
    pair: Pair | None = None
    sheets: list[list[Tile]] = field(default_factory=list)
    """The query first, then the frames found, nearest first."""
    maps: dict[str, Picture] = field(default_factory=dict)
    """By encoder."""
    num_map_frames: int = 0


def draw_action(
    name: str, videos: Sequence[EmbeddedVideo], movie_name: str
) -> tuple[ActionPictures, bytes | None]:
    """The pictures of an action, and the movie if it is too large for the page."""
    labels = [video.frame_labels for video in videos if video.frame_labels is not None]
    num_phases = 1 + max((int(of_frames.max(initial=-1)) for of_frames in labels), default=-1)
    drawn = ActionPictures(
        name=name,
        colors=figures.phase_colors(num_phases),
        phase_names=phase_names(videos, num_phases),
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
    paths, matrices = {}, {}
    for encoder, embeddings in _by_encoder(pair).items():
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


def _draw_sheets(videos: Sequence[EmbeddedVideo]) -> list[list[Tile]]:
    """Three frames of the first video, and the nearest frames in the others."""
    first, others = videos[0], videos[1:]
    frames = np.flatnonzero(first.phases >= 0)
    if not len(frames):
        frames = np.arange(len(first))
    queries = [int(frames[int(place * len(frames))]) for place in _QUERY_PLACES]
    rows = [
        (found_frame(first, frame), nearest_frames(first.embeddings[frame], others, _NUM_NEIGHBOURS))
        for frame in queries
    ]
    pictures = thumbnails(item for query, found in rows for item in (query, *found))

    def tile(query: FoundFrame, item: FoundFrame) -> Tile:
        right = is_right(query, item)
        picture = pictures[item.uri, item.frame]
        return Tile(
            item,
            None if picture is None else jpeg(picture),
            "unknown" if right is None else "right" if right else "wrong",
        )

    return [[tile(query, item) for item in (query, *found)] for query, found in rows]


def _draw_maps(videos: Sequence[EmbeddedVideo], num_phases: int) -> tuple[dict[str, Picture], int]:
    """A map for each encoder, and its number of frames; none for few frames."""
    total = sum(len(video) for video in videos)
    if total < _LEAST_MAP_FRAMES:
        return {}, 0
    chosen = np.unique(np.linspace(0, total - 1, min(total, _MOST_MAP_FRAMES)).astype(np.int64))
    phases = np.concatenate([video.phases for video in videos])[chosen]
    maps = {
        encoder: figures.frame_map(np.concatenate(embeddings)[chosen], phases, num_phases)
        for encoder, embeddings in _by_encoder(videos).items()
    }
    return maps, len(chosen)


def _by_encoder(videos: Sequence[EmbeddedVideo]) -> dict[str, list[Float[np.ndarray, "frames width"]]]:
    """Embeddings of each video by encoder; "untrained" only if all have them."""
    encoders = {"trained": [video.embeddings for video in videos]}
    untrained = [video.untrained for video in videos if video.untrained is not None]
    if len(untrained) == len(videos):
        encoders["untrained"] = untrained
    return encoders
