"""Posters and ribbons: pictures of a video and of its embeddings.

A ribbon has the colours of the first three principal components of the corpus, in CIELAB: the first from blue to
yellow, which people with any of the usual kinds of colour blindness see, then lightness, in a narrow range, then green
to red.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

# Not lazily: while it is imported, its folder is on sys.path, which child processes get; it has a module `typing`.
import cv2
import numpy as np
from jaxtyping import Float
from PIL import Image

from carl_ray import storage
from carl_ray.data.child import BadVideoError
from carl_ray.errors import RunError, note
from carl_ray.explore.conversion import POSTER, Children
from carl_ray.explore.library import Video

RIBBON_COLUMNS = 256

_POSTER_SIZE = (428, 240)  # pixels, at most
_POSTER_SECONDS = 60.0
_POSTER_PROCESSES = 2
_SAMPLED_VIDEOS, _SAMPLED_FRAMES = 512, 16
_PERCENTILES = (2, 98)
_MIDDLE = np.array([62, 0, 0], np.float32)  # L*, a*, b*
_RANGES = np.array([[0, 0, 45], [9, 0, 0], [0, 25, 0]], np.float32)
"""What each component adds to L*, a* and b*, at most."""


class Posters:
    """The middle frames of videos, made when they are first asked for, in that order, and kept in files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children = Children(_POSTER_PROCESSES)
        self._making: dict[int, asyncio.Task[None]] = {}
        self._failed: dict[int, str] = {}
        self.asked = 0
        """Posters that were not there when they were asked for."""
        self.done = 0
        """How many of these are made, or cannot be."""

    def get(self, video: Video) -> Path | None:
        """The JPEG file; None while it is being made.

        Raises:
            BadVideoError: the video cannot be read.
        """
        if video.number in self._failed:
            raise BadVideoError(self._failed[video.number])
        path = self._folder / f"{video.key}.jpg"
        if video.number not in self._making:
            if path.is_file():
                return path
            self.asked += 1
            self._making[video.number] = asyncio.create_task(self._make(video, path))
        return None

    async def _make(self, video: Video, path: Path) -> None:
        try:
            arguments = {"task": "poster", "frame": len(video) // 2, "num_frames": len(video)}
            answer = await self._children.ask(video, POSTER, seconds=_POSTER_SECONDS, **arguments)
            await asyncio.to_thread(storage.write_bytes, str(path), _jpeg(answer["poster"]))
        except BadVideoError as error:
            self._failed[video.number] = str(error)
        except RunError as error:  # The next request tries again.
            note(f"carl_ray: {video.uri}: {error}")
        finally:
            self.done += 1
            del self._making[video.number]

    def close(self) -> None:
        """End the processes."""
        self._children.close()


def _jpeg(pixels: np.ndarray) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail(_POSTER_SIZE)
    content = io.BytesIO()
    picture.save(content, "jpeg", quality=80)
    return content.getvalue()


class Ribbons:
    """Colours of embeddings over the time of their videos."""

    def __init__(self, videos: Sequence[Video]) -> None:
        self._videos = videos

    def png(self, video: Video) -> bytes:
        """A picture of `RIBBON_COLUMNS` x 1 pixels: the frame shown in the middle of each column."""
        content = io.BytesIO()
        Image.fromarray(self.colours(video)[None]).save(content, "png")
        return content.getvalue()

    def colours(self, video: Video) -> np.ndarray:
        """The colours, uint8 (`RIBBON_COLUMNS`, 3)."""
        vectors = video.embeddings
        if not len(vectors):
            return np.full((RIBBON_COLUMNS, 3), 128, np.uint8)
        mean, components, low, high = self._basis
        middles = (np.arange(RIBBON_COLUMNS) + 0.5) / RIBBON_COLUMNS * video.duration
        shown = vectors[np.maximum(np.searchsorted(video.times, middles, "right") - 1, 0)]
        shares = ((shown - mean) @ components - low) / np.maximum(high - low, 1e-9)
        lab = _MIDDLE + (2 * np.clip(shares, 0, 1) - 1).astype(np.float32) @ _RANGES
        rgb = cv2.cvtColor(lab[None], cv2.COLOR_LAB2RGB)[0]
        return np.round(255 * np.clip(rgb, 0, 1)).astype(np.uint8)

    @cached_property
    def _basis(self) -> tuple[Float[np.ndarray, ...], ...]:
        """Mean, first three principal components (D, 3) and their ranges, of a sample of the corpus."""
        filled = [video.embeddings for video in self._videos if len(video)]
        arrays = filled[:: max(1, len(filled) // _SAMPLED_VIDEOS)]
        sample = np.concatenate([array[:: max(1, len(array) // _SAMPLED_FRAMES)] for array in arrays])
        mean = sample.mean(0)
        _, _, directions = np.linalg.svd(np.cov(sample - mean, rowvar=False).reshape(2 * (sample.shape[1],)))
        components = np.zeros((sample.shape[1], 3))
        components[:, : min(3, len(directions))] = directions[:3].T
        # Their signs are arbitrary: the same ones on every machine.
        components *= np.sign(components[np.abs(components).argmax(0), [0, 1, 2]])
        low, high = np.percentile((sample - mean) @ components, _PERCENTILES, axis=0)
        return mean, components, low, high
