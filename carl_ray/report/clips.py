"""Retrieval sheets of clips for the report: a query clip and the nearest clips, as short loops.

Queries are selected by name alone, never by result.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from carl_ray.data.decode import DecodeError, read_frames
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.nearest_frames import FoundFrame, found_frame, nearest_frames
from carl_ray.evaluation.task import is_labelled
from carl_ray.report.actions import Tile
from carl_ray.report.figures import Picture
from carl_ray.report.sheets import jpeg

_MOST_QUERIES = 4
_NUM_NEIGHBOURS = 5
_MOST_FRAMES = 16  # of a loop
_SIDE = 112  # of its shorter side, pixels
_USUAL_RATE = 25.0


@dataclass(frozen=True)
class ClipSheet:
    """A query clip, then the nearest ones."""

    tiles: list[Tile]
    heading: str = ""
    """What was compared; empty where it is the whole embedding."""
    judged_by: str = "class"
    """What a clip is marked by: `class` or `scene`."""


def clip_sheets(
    train: Sequence[EmbeddedVideo],
    test: Sequence[EmbeddedVideo],
    span: int,
    scenes: Mapping[str, str] | None = None,
) -> list[ClipSheet]:
    """The clip in the middle of a test video of each of four labels, then the nearest clips of training videos.

    One clip a video, by cosine after the training videos' mean is subtracted, as retrieval is measured.

    Args:
        train: Videos that are searched; those without a label are skipped.
        test: Videos of the queries.
        span: Frames of a video that a clip stands for.
        scenes: Of embeddings of two streams, which make two sheets a query: scene of each video by its id, as far as
            they are known.
    """
    if scenes is None:
        return [ClipSheet(tiles) for tiles in _sheets(train, test, span, {})]
    halves = (
        [replace(v, embeddings=np.split(v.embeddings, 2, axis=1)[half]) for v in side]
        for half in (0, 1)
        for side in (train, test)
    )
    dynamic = _sheets(next(halves), next(halves), span, {})
    static = _sheets(next(halves), next(halves), span, scenes)
    return [
        sheet
        for moving, still in zip(dynamic, static, strict=True)
        for sheet in (
            ClipSheet(moving, "By the dynamic stream: the same motion?"),
            ClipSheet(still, "By the static stream: the same scene?", "scene" if scenes else "class"),
        )
    ]


def _sheets(
    train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo], span: int, scenes: Mapping[str, str]
) -> list[list[Tile]]:
    """Sheets of a query of each label; marked by the scene where scenes are known, else by the label."""
    gallery = [video for video in train if is_labelled(video)]
    first: dict[str | None, EmbeddedVideo] = {}
    for video in sorted(filter(is_labelled, test), key=lambda video: video.video_id):
        first.setdefault(video.label, video)
    if not gallery:
        return []
    total = sum(video.embeddings.sum(axis=0, dtype=np.float64) for video in gallery)
    mean = total / sum(map(len, gallery))
    videos = {video.video_id: video for video in gallery}
    sheets = []
    for label in sorted(first, key=str)[:_MOST_QUERIES]:
        query = first[label]
        middle = len(query) // 2
        centered = (replace(v, embeddings=v.embeddings - mean) for v in gallery)
        found = nearest_frames(query.embeddings[middle] - mean, centered, _NUM_NEIGHBOURS)
        shown = [(query, found_frame(query, middle)), *((videos[item.video_id], item) for item in found)]
        if scenes:
            label = scenes.get(query.video_id)
            shown = [(v, replace(item, label=scenes.get(v.video_id))) for v, item in shown]
        sheets.append([_tile(video, item, label, span) for video, item in shown])
    return sheets


def _tile(video: EmbeddedVideo, found: FoundFrame, label: str | None, span: int) -> Tile:
    start = int(np.clip(found.frame - span // 2, 0, max(0, len(video) - span)))
    step = -(-span // _MOST_FRAMES)
    places = np.arange(start, min(start + span, len(video)), step)
    loop = still = None
    try:
        frames = read_frames(video.uri, places, short_side=_SIDE)
    except (DecodeError, UserError, RunError):
        pass
    else:
        loop, still = _loop(frames, 1000 * step / (video.fps or _USUAL_RATE)), jpeg(frames[len(frames) // 2])
    return Tile(found, loop, "right" if found.label == label else "wrong", still)


def _loop(frames: np.ndarray, milliseconds: float) -> Picture:
    """The frames as an animation without end."""
    images, buffer = [Image.fromarray(frame) for frame in frames], io.BytesIO()
    images[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=round(milliseconds),
        loop=0,
        quality=60,
    )
    return Picture(buffer.getvalue(), "image/webp")
