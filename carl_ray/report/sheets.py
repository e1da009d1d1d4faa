"""Thumbnails of video frames, and a sheet of retrieved frames (paper, figure 7)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from carl_ray.data.decode import DecodeError, read_frames
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.nearest_frames import FoundFrame, printable
from carl_ray.report.figures import STYLE, Picture, encoded_png

RIGHT_COLOR, WRONG_COLOR, UNKNOWN_COLOR = "#0072B2", "#D55E00", "#888888"
_THUMBNAIL_SIDE = 112
_COLUMNS = 5


def thumbnails(
    items: Iterable[FoundFrame], side: int = _THUMBNAIL_SIDE
) -> dict[tuple[str, int], np.ndarray | None]:
    """Thumbnails (height, width, 3) with a shorter side of `side`, by URI and frame; None if unreadable."""
    wanted: dict[str, set[int]] = {}
    for item in items:
        wanted.setdefault(item.uri, set()).add(item.frame)
    pictures: dict[tuple[str, int], np.ndarray | None] = {}
    for uri, frames in wanted.items():
        indices = sorted(frames)
        try:
            read: Iterable[np.ndarray | None] = read_frames(uri, indices, short_side=side)
        except (DecodeError, UserError, RunError):
            read = [None] * len(indices)
        pictures |= {(uri, index): picture for index, picture in zip(indices, read, strict=True)}
    return pictures


def retrieval_sheet(query: FoundFrame, found: Sequence[FoundFrame]) -> Picture:
    """A query frame and the frames nearest to it (paper, figure 7), as PNG.

    A frame with the query's label and phase has a blue border and a tick, one with another an orange border and a
    cross, a frame of unknown phase a grey border. Frames whose file cannot be read any more are replaced by a text.

    Args:
        query: The query frame.
        found: The frames found, nearest first.
    """
    pictures = thumbnails([query, *found])
    columns = min(_COLUMNS, len(found))
    rows = 1 + -(-len(found) // columns)
    with matplotlib.rc_context({**STYLE, "font.size": 7.5}), warnings.catch_warnings():
        # A name may have letters that the font lacks, which are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(2.1 * columns, 2.5 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        _draw_frame(grid[0, 0], query, pictures[query.uri, query.frame], "query", "#222222")
        for axes, item in zip(grid[1:].flat, found, strict=False):
            right = is_right(query, item)
            color = UNKNOWN_COLOR if right is None else RIGHT_COLOR if right else WRONG_COLOR
            mark = "" if right is None else " ✓" if right else " ✗"
            picture = pictures[item.uri, item.frame]
            _draw_frame(axes, item, picture, f"cosine {item.similarity:.3f}{mark}", color)
        return encoded_png(figure)


def is_right(query: FoundFrame, found: FoundFrame) -> bool | None:
    """Whether a frame has the query's label and phase; None if unknown."""
    if query.phase is None or found.phase is None:
        return None
    return (query.label, query.phase) == (found.label, found.phase)


def _draw_frame(
    axes: Axes, item: FoundFrame, picture: UInt8[np.ndarray, "_ _ 3"] | None, remark: str, color: str
) -> None:
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.spines[:].set(color=color, linewidth=2.5)
    if picture is None:
        axes.text(0.5, 0.5, "the file cannot\nbe read any more", ha="center", va="center", color="#666666")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    else:
        axes.imshow(picture)
    time = f"frame {item.frame}" if item.seconds is None else f"{item.seconds:.2f} s"
    phase = "" if item.phase_name is None else f"  {printable(item.phase_name)}"
    name = printable(item.video_id)
    name = name if len(name) <= 28 else "…" + name[-27:]
    axes.set_title(f"{name}\n{time}{phase}\n{remark}", loc="left")


def jpeg(frame: UInt8[np.ndarray, "_ _ 3"]) -> Picture:
    """The frame encoded as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=82)
    return Picture(buffer.getvalue(), "image/jpeg")
