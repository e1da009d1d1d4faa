"""Exact search for moments in many videos: the best frame of each, by one matrix product.

    moments-DIGEST.npy   unit vectors of all frames, float32, sorted by label, then video, then frame; memory-mapped

A million frames of 128 numbers are 512 MB, of which the system keeps in memory what it has room for. The digest is of
encoder, videos and labels: others have another file.

Legend: V videos, R their frames, D width of an embedding.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from numpy.lib.format import open_memmap

from carl_ray import storage
from carl_ray.errors import UserError
from carl_ray.evaluation.embeddings import Embeddings, list_parts, read_part
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
        vectors: Of all frames, grouped by video.
        order: Place of each group's video in the order of the ids.
        lengths: Frames of each group, 1 or more.
        labels: Of each group; groups of one label are adjacent.
    """

    def __init__(
        self,
        vectors: Float32[np.ndarray, "R D"],
        order: Int64[np.ndarray, " V"],
        lengths: Int64[np.ndarray, " V"],
        labels: Sequence[str | None],
    ) -> None:
        self._vectors = vectors
        self._order = order
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._groups = {int(video): group for group, video in enumerate(order)}
        self._of_label: dict[str | None, slice] = {}
        for group, label in enumerate(labels):
            first = self._of_label[label].start if label in self._of_label else group
            self._of_label[label] = slice(first, group + 1)

    def vectors(self, video: int) -> Float32[np.ndarray, "frames D"]:
        """Unit vectors of the frames of a video, in the mapped file; none for a video without frames."""
        group = self._groups.get(video)
        return (
            self._vectors[:0]
            if group is None
            else self._vectors[self._starts[group] : self._starts[group + 1]]
        )

    def place(self, video: int) -> tuple[str, int, int]:
        """File of the vectors, and the first of a video's rows in it and the one after its last."""
        group = self._groups.get(video)
        rows = (0, 0) if group is None else (int(self._starts[group]), int(self._starts[group + 1]))
        return str(getattr(self._vectors, "filename", "")), *rows

    def search(
        self,
        query: Float[np.ndarray, " D"],
        count: int,
        *,
        label: str | None = None,
        allowed: Bool[np.ndarray, " V"] | None = None,
    ) -> list[Moment]:
        """The best frame of each of the best videos, best first; ties in the order of the ids.

        Args:
            query: Embedding of a frame; normalised here.
            count: The most moments returned.
            label: Only videos of this label; None: all.
            allowed: Which videos are searched, in the order of the ids; None: all.

        Raises:
            ValueError: the query is not finite, or of another width.
        """
        (unit,) = unit_frames([query[None]])
        if unit.shape[1] != self._vectors.shape[1]:
            raise ValueError(f"expected a query of {self._vectors.shape[1]} numbers, got {unit.shape[1]}")
        groups = slice(0, len(self._order)) if label is None else self._of_label.get(label, slice(0, 0))
        if groups.start == groups.stop:
            return []
        first, last = self._starts[groups.start], self._starts[groups.stop]
        similarities = self._vectors[first:last] @ unit[0].astype(np.float32)
        starts = self._starts[groups] - first
        best = np.maximum.reduceat(similarities, starts)
        videos = self._order[groups]
        if allowed is not None:
            best = np.where(allowed[videos], best, -np.inf)
        found = []
        for place in np.lexsort((videos, -best))[:count]:
            if best[place] == -np.inf:
                break
            stop = self._starts[groups.start + place + 1] - first
            frame = int(np.argmax(similarities[starts[place] : stop]))
            found.append(Moment(int(videos[place]), frame, float(best[place])))
        return found


def open_index(
    embeddings: Embeddings, folder: Path, on_video: Callable[[int, int], None] = lambda done, total: None
) -> MomentIndex:
    """Open the index of a folder of embeddings; make it where it is missing or of other embeddings.

    Args:
        embeddings: The videos. Those without frames are left out.
        folder: Local folder of the index.
        on_video: Called with (videos done, all videos) while it is made.

    Raises:
        UserError: an embedding is not finite.
        RunError: the store refuses or fails.
    """
    rows: dict[str, tuple[str | None, int]] = {}
    hashes: set[tuple[str, str]] = set()
    for part in [embeddings.uri] if storage.is_file(embeddings.uri) else list_parts(embeddings.uri):
        table = read_part(part, ["video_id", "label", "timestamps", "content_hash"])[1]
        hashes.update(
            zip(*(table.column(name).to_pylist() for name in ("video_id", "content_hash")), strict=True)
        )
        ids, labels = (table.column(name).to_pylist() for name in ("video_id", "label"))
        for video_id, label, times in zip(ids, labels, table.column("timestamps"), strict=True):
            rows.setdefault(video_id, (label, len(times)))
    numbers = {video_id: number for number, video_id in enumerate(sorted(rows))}
    described = [(label, video_id, length) for video_id, (label, length) in rows.items() if length]
    described.sort(key=lambda row: (row[0] is not None, row[0] or "", row[1]))
    made_of = [asdict(embeddings.origin), described, sorted(hashes)]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    path = folder / f"moments-{digest[:16]}.npy"
    if not path.exists():
        _write(embeddings, path, described, on_video)
        for other in folder.glob("moments-*.npy"):
            # Another server may be using it: alignment opens it anew.
            if other != path and time.time() - other.stat().st_mtime > _KEPT_SECONDS:
                other.unlink(missing_ok=True)
    lengths = np.array([length for *_, length in described], np.int64)
    order = np.array([numbers[video_id] for _, video_id, _ in described], np.int64)
    return MomentIndex(
        np.load(path, mmap_mode="r", allow_pickle=False), order, lengths, [label for label, *_ in described]
    )


def _write(
    embeddings: Embeddings,
    path: Path,
    described: Iterable[tuple[str | None, str, int]],
    on_video: Callable[[int, int], None],
) -> None:
    places, total = {}, 0
    for _, video_id, length in described:
        places[video_id] = slice(total, total := total + length)
    if not places:
        raise UserError(f"{storage.public_uri(embeddings.uri)}: it holds no embedded frame")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    vectors: np.memmap | None = None
    try:
        for done, video in enumerate(embeddings, 1):
            if video.video_id in places:
                if vectors is None:
                    shape = (total, video.embeddings.shape[1])
                    vectors = open_memmap(temporary, "w+", np.float32, shape)
                try:
                    (vectors[places[video.video_id]],) = unit_frames([video.embeddings])
                except ValueError as error:
                    raise UserError(f"{video.video_id}: {error}") from None
            on_video(done, len(places))
        assert vectors is not None
        vectors.flush()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
