"""Exact search for moments in many videos: the best frame of each, by one matrix product.

    moments-DIGEST.npy   unit vectors of all frames, float32, sorted by video, then frame; memory-mapped

A million frames of 128 numbers are 512 MB, of which the system keeps in memory what it has room for. The digest is of
encoder and videos: others have another file.

Legend: V videos, R their frames, D width of an embedding.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32
from numpy.lib.format import open_memmap

from carl_ray import storage
from carl_ray.errors import UserError
from carl_ray.evaluation.embeddings import Embeddings
from carl_ray.evaluation.frames import unit_frames

_KEPT_SECONDS = 86_400.0


@dataclass(frozen=True)
class Moment:
    """The frame of a video that is most similar to a query."""

    video: int
    """Place in the order of the ids."""
    frame: int
    similarity: float
    """Cosine, from -1 to 1."""


class MomentIndex:
    """Unit vectors of the frames of many videos.

    Args:
        vectors: Of all frames, video by video.
        lengths: Frames of each video, in the order of the ids.
    """

    def __init__(self, vectors: Float32[np.ndarray, "R D"], lengths: Sequence[int]) -> None:
        self._vectors = vectors
        self._starts = np.cumsum([0, *lengths])

    def vectors(self, video: int) -> Float32[np.ndarray, "frames D"]:
        """Unit vectors of the frames of a video, in the mapped file; none for a video without frames."""
        return self._vectors[self._starts[video] : self._starts[video + 1]]

    def place(self, video: int) -> tuple[str, int, int]:
        """File of the vectors, and the first of a video's rows in it and the one after its last."""
        start, stop = self._starts[video : video + 2].tolist()
        return str(getattr(self._vectors, "filename", "")), start, stop

    def search(
        self, query: Float[np.ndarray, " D"], count: int, allowed: Bool[np.ndarray, " V"] | None = None
    ) -> list[Moment]:
        """The best frame of each of the best videos, best first; ties in the order of the ids.

        Args:
            query: Embedding of a frame; normalised here.
            count: The most moments returned.
            allowed: Which videos are searched, in the order of the ids; None: all.

        Raises:
            ValueError: the query is not finite, or of another width.
        """
        (unit,) = unit_frames([query[None]])
        if unit.shape[1] != self._vectors.shape[1]:
            raise ValueError(f"expected a query of {self._vectors.shape[1]} numbers, got {unit.shape[1]}")
        similarities = self._vectors @ unit[0].astype(np.float32)
        videos = np.flatnonzero(np.diff(self._starts))
        best = np.maximum.reduceat(similarities, self._starts[videos])
        if allowed is not None:
            videos, best = videos[allowed[videos]], best[allowed[videos]]
        nearest = np.argsort(-best, kind="stable")[:count]
        return [
            Moment(video, int(np.argmax(similarities[slice(*self._starts[video : video + 2])])), similarity)
            for video, similarity in zip(videos[nearest].tolist(), best[nearest].tolist(), strict=True)
        ]


def open_index(
    embeddings: Embeddings,
    folder: Path,
    described: Mapping[str, tuple[str, int]],
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> MomentIndex:
    """Open the index of a folder of embeddings; make it where it is missing or of other embeddings.

    Args:
        embeddings: The videos.
        folder: Local folder of the index.
        described: Hash and number of frames of each, in the order of the ids.
        on_video: Called with (videos done, all videos) while it is made.

    Raises:
        UserError: an embedding is not finite.
        RunError: the store refuses or fails.
    """
    digest = hashlib.sha256(json.dumps([asdict(embeddings.origin), described]).encode()).hexdigest()
    path = folder / f"moments-{digest[:16]}.npy"
    lengths = {video_id: length for video_id, (_, length) in described.items()}
    if not path.exists():
        _write(embeddings, path, lengths, on_video)
        for other in folder.glob("moments-*.npy"):
            # Another server may be using it: alignment opens it anew.
            if other != path and time.time() - other.stat().st_mtime > _KEPT_SECONDS:
                other.unlink(missing_ok=True)
    return MomentIndex(np.load(path, mmap_mode="r", allow_pickle=False), [*lengths.values()])


def _write(
    embeddings: Embeddings,
    path: Path,
    lengths: Mapping[str, int],
    on_video: Callable[[int, int], None],
) -> None:
    starts = dict(zip(lengths, np.cumsum([0, *lengths.values()]).tolist(), strict=False))
    total = sum(lengths.values())
    if not total:
        raise UserError(f"{storage.public_uri(embeddings.uri)}: it holds no embedded frame")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    vectors: np.memmap | None = None
    try:
        for done, video in enumerate(embeddings, 1):
            if len(video):
                if vectors is None:
                    shape = (total, video.embeddings.shape[1])
                    vectors = open_memmap(temporary, "w+", np.float32, shape)
                try:
                    start = starts[video.video_id]
                    (vectors[start : start + len(video)],) = unit_frames([video.embeddings])
                except ValueError as error:
                    raise UserError(f"{video.video_id}: {error}") from None
            on_video(done, len(lengths))
        assert vectors is not None
        vectors.flush()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
