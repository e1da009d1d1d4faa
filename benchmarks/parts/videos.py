"""The videos that are measured: those of a folder, or three rendered ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from carl_ray import storage
from carl_ray.datasets import choreography
from carl_ray.datasets.figure import perform
from carl_ray.errors import UserError

_WIDTH, _HEIGHT = 640, 360
_NUM_FRAMES = 480
_FRAMES_A_REPETITION = 96
_RENDERED = (("lift", "jump"), ("kick", "greet"), ("jump", "kick"))


@dataclass(frozen=True)
class Video:
    """A file that decodes."""

    path: Path
    """Where it is, from the root."""
    num_frames: int
    """Frames that a full decode yields."""
    kind: str
    """Size and codec: "640x360 h264"."""


def even_sample(paths: Sequence[Path], most: int) -> list[Path]:
    """At most so many of them, evenly taken, in their order."""
    if len(paths) <= most:
        return list(paths)
    return [paths[at] for at in np.linspace(0, len(paths) - 1, most).astype(int)]


def long_enough(videos: Sequence[Video], num_frames: int) -> tuple[list[Video], list[str]]:
    """The videos that fill a view, and a note that names the others.

    Raises:
        UserError: there are none.
    """
    long = [video for video in videos if video.num_frames >= num_frames]
    short = [f"{video.path.name} ({video.num_frames})" for video in videos if video not in long]
    if not long:
        raise UserError(
            f"no video has the {num_frames} frames of a view ({', '.join(short) or 'there is none'}): "
            "name a folder with longer ones, or lower --model.num_frames"
        )
    return long, [f"left out, fewer than {num_frames} frames: {', '.join(short)}"] if short else []


def kinds(videos: Sequence[Video]) -> str:
    """How many of which size and codec, the most frequent first: "3 videos (2 640x360 h264, 1 320x180 hevc)"."""
    counted = Counter(video.kind for video in videos).most_common()
    listed = counted[0][0] if len(counted) == 1 else ", ".join(f"{number} {kind}" for kind, number in counted)
    return f"{len(videos)} video{'' if len(videos) == 1 else 's'} ({listed})"


def ensure_rendered(on_progress: Callable[[str], None]) -> list[Path]:
    """Three videos of 640 x 360 pixels and 480 frames, H.264, in `storage.home()/bench`; rendered where missing.

    Two figures that are hard to see stand side by side and repeat their actions, under a moving camera.

    Raises:
        RunError: no permission or no room.
    """
    paths = []
    for number, actions in enumerate(_RENDERED):
        path = storage.home() / "bench" / f"{'-'.join(actions)}-{_WIDTH}x{_HEIGHT}-{_NUM_FRAMES}.mp4"
        if not path.is_file():
            on_progress(f"rendering {path}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                render(path, actions, number, _WIDTH, _HEIGHT, _NUM_FRAMES)
            except OSError as error:
                raise storage.storage_error(error, str(path), "render") from None
        paths.append(path)
    return paths


def render(path: Path, actions: tuple[str, str], seed: int, width: int, height: int, num_frames: int) -> None:
    """Writes a video of two figures side by side, whole or not at all; `width` is at most twice `height`."""
    there_and_back = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(num_frames) / _FRAMES_A_REPETITION)
    performances = [
        perform(
            choreography.ACTIONS[action].poses,
            there_and_back,
            has_bar=choreography.ACTIONS[action].has_bar,
            size=height,
            frames_per_second=choreography.FRAMES_PER_SECOND,
            rng=np.random.default_rng([seed, place]),
            difficulty="hard",
        )
        for place, action in enumerate(actions)
    ]
    left = (height - width // 2) // 2

    def pictures() -> Iterator[Image.Image]:
        for figures in zip(*performances, strict=True):
            picture = Image.new("RGB", (width, height))
            for place, figure in enumerate(figures):
                half = figure.crop((left, 0, left + width // 2, height))
                picture.paste(half, (place * (width // 2), 0))
            yield picture

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    choreography.encode(pictures(), temporary)
    temporary.replace(path)
