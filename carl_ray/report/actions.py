"""Pictures of one action for the report: alignment, retrieval, map of frames.

Videos and frames are selected by name and length alone, never by result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from carl_ray import storage
from carl_ray.data.decode import DecodeError
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo, phase_names
from carl_ray.evaluation.nearest_frames import FoundFrame, found_frame, nearest_frames, printable
from carl_ray.evaluation.task import Videos
from carl_ray.evaluation.warping import align_pair
from carl_ray.report import figures
from carl_ray.report.figures import Picture
from carl_ray.report.sheets import is_right, jpeg, thumbnails
from carl_ray.report.video import Clip, aligned_video

_QUERY_PLACES = (1 / 6, 1 / 2, 5 / 6)
_NUM_NEIGHBOURS = 5
_TILE_SIDE = 224  # of a tile's picture, enlarged by a click
_MOST_MAP_FRAMES = 500
_LEAST_MAP_FRAMES = 8
_MOST_PAIR_FRAMES = 1500  # of a video in a similarity matrix; longer videos are strided
_MOST_EMBEDDED_BYTES = 6 * 2**20


@dataclass(frozen=True)
class Tile:
    """A frame or clip on a retrieval sheet."""

    found: FoundFrame
    picture: Picture | None
    """None where the file cannot be read."""
    verdict: str
    """Whether its phase, of a clip its label, is that of the query: `right`, `wrong` or `unknown`."""
    still: Picture | None = None
    """Of a clip, one frame of it for people who want no motion."""


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


@dataclass
class ActionPictures:
    """All pictures of one action; empty where data are missing."""

    name: str
    phases: dict[str, str]
    """Colour of each phase, by its name."""
    num_videos: int
    has_unlabelled_frames: bool
    pair: Pair | None = None
    sheets: list[list[Tile]] = field(default_factory=list)
    """The query first, then the frames found, nearest first."""
    maps: dict[str, Picture] = field(default_factory=dict)
    """By encoder."""
    num_map_frames: int = 0


def draw_action(
    name: str, train: Sequence[EmbeddedVideo], videos: Sequence[EmbeddedVideo], folder: str, movie_name: str
) -> ActionPictures:
    """The pictures of an action; a movie that is too large for the page is written to the folder, by its name.

    Args:
        name: Of the action.
        train: Its training videos, which have a say in the names and colours of phases.
        videos: Its test videos.
        folder: Of the page.
        movie_name: Of the file.
    """
    num_phases = Videos(train, videos).num_classes
    names = phase_names([*train, *videos], num_phases)
    labelled = [video.phases >= 0 for video in videos if video.frame_labels is not None]
    has_phases = any(of_video.any() for of_video in labelled)
    drawn = ActionPictures(
        name=name,
        phases=dict(zip(names, figures.phase_colors(num_phases), strict=True)) if has_phases else {},
        num_videos=len(videos),
        has_unlabelled_frames=not all(of_video.all() for of_video in labelled),
    )
    if len(videos) > 1:
        drawn.pair = _draw_pair(videos[0], videos[1], num_phases, folder, movie_name)
        drawn.sheets = _draw_sheets(videos)
    drawn.maps, drawn.num_map_frames = _draw_maps(videos, num_phases)
    return drawn


def _draw_pair(
    first: EmbeddedVideo, second: EmbeddedVideo, num_phases: int, folder: str, movie_name: str
) -> Pair:
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
    movie, failure = "", ""
    try:
        clips = [Clip(printable(video.video_id), video.uri, len(video)) for video in pair]
        content = aligned_video(clips[0], clips[1], path)
    except (DecodeError, UserError, RunError) as error:
        failure = str(error)
    else:
        movie = Picture(content, "video/mp4").data_uri
        if len(content) > _MOST_EMBEDDED_BYTES:
            storage.write_bytes(storage.join(folder, movie_name), content)
            movie = movie_name
    return Pair(first.video_id, second.video_id, matrices, movie, failure)


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
    pictures = thumbnails((item for query, found in rows for item in (query, *found)), _TILE_SIDE)
    verdicts = {None: "unknown", True: "right", False: "wrong"}
    return [
        [
            Tile(
                found=item,
                picture=None if (picture := pictures[item.uri, item.frame]) is None else jpeg(picture),
                verdict=verdicts[is_right(query, item)],
            )
            for item in (query, *found)
        ]
        for query, found in rows
    ]


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
