"""Pictures of what `csvr` makes for held-out videos: poses on the frames after a clip, generated clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from carl_ray.evaluation.generation import GeneratedClip, GeneratedVideo, Generation, Poses
from carl_ray.report.figures import STYLE, Picture, encoded_png

_REAL_COLOR, _PREDICTED_COLOR = "#FFFFFF", "#0072B2"  # Far apart in grey too.
# COCO's.
_EDGES = (
    *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
    *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
)
_MOST_FRAMES = 4  # of a generated clip


@dataclass(frozen=True)
class GeneratedPictures:
    """Pictures of the clips of one test video; None where there is nothing to draw."""

    of: GeneratedVideo
    poses: Picture | None
    clips: Picture | None


@dataclass(frozen=True)
class GenerationSection:
    """A section of the page."""

    videos: Sequence[GeneratedPictures]
    made: Generation
    """What was made for all test videos, or why not."""


def draw_generation(made: Generation) -> GenerationSection:
    """The pictures of some test videos, and the errors on all."""
    with matplotlib.rc_context(STYLE):
        drawn = [
            GeneratedPictures(
                video, None if video.poses is None else _draw_poses(video.poses), _draw_clips(video.clips)
            )
            for video in made.drawn
        ]
    return GenerationSection(drawn, made)


def _draw_poses(poses: Poses) -> Picture:
    """The frames after a clip, each with its true and its predicted pose."""
    size = poses.frames.shape[1]
    figure = Figure(figsize=(5, 5), layout="constrained")
    for number, axes in enumerate(figure.subplots(2, 2).flat):
        axes.imshow(poses.frames[number], extent=(0, 1, 1, 0), interpolation="nearest" if size < 64 else None)
        valid = poses.real[number, :, 2] > 0
        _skeleton(axes, poses.real[number, :, :2], valid, _REAL_COLOR, "#111111", "-")
        _skeleton(axes, poses.predicted[number], valid, _PREDICTED_COLOR, "#FFFFFF", "--")
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    return encoded_png(figure)


def _skeleton(
    axes: Axes,
    joints: Float[np.ndarray, "17 2"],
    valid: np.ndarray,
    color: str,
    edge: str,
    style: str,
) -> None:
    around = [Stroke(linewidth=4, foreground=edge), Normal()]
    for first, second in _EDGES:
        if valid[first] and valid[second]:
            x, y = joints[[first, second]].T
            axes.plot(x, y, style, color=color, lw=2.8, path_effects=around)
    axes.plot(*joints[valid].T, "o" if style == "-" else "s", color=color, ms=5, mec=edge, mew=0.6)


def _draw_clips(clips: dict[str, GeneratedClip]) -> Picture | None:
    """Some frames of each clip: the real ones above the generated ones."""
    rows = [
        (f"{words}\n{kind}", pixels)
        for name, words in (("now", "this clip"), ("next", "what follows"))
        if name in clips
        for kind, pixels in (("real", clips[name].real), ("generated", clips[name].fake))
    ]
    if not rows:
        return None
    shown = np.unique(np.linspace(0, len(rows[0][1]) - 1, _MOST_FRAMES).round().astype(int))
    figure = Figure(figsize=(5, 1.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(shown), squeeze=False)
    for (words, pixels), line in zip(rows, grid, strict=True):
        line[0].set_ylabel(words)
        for place, axes in zip(shown, line, strict=True):
            axes.imshow(pixels[place], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
    return encoded_png(figure)
