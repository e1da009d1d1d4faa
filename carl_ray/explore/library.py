"""What the page knows of the videos of a folder of embeddings.

    FOLDER/explore/    beside local embeddings; for others a folder below `storage.home()`
        moments-….npy        see carl_ray.explore.moments
        posters/KEY.jpg      see carl_ray.explore.pictures
        videos/KEY.mp4       see carl_ray.explore.media

Legend: V videos, in the order of their ids, which is their number in every URL.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from carl_ray import storage
from carl_ray.data.manifest import LABEL_COLUMNS, SCHEMA, clean_labels, read_manifest
from carl_ray.errors import UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Embeddings, array_cell, list_parts, read_part, video_metadata
from carl_ray.explore.moments import MomentIndex, open_index

_COLUMNS = ("video_id", "uri", "content_hash", *LABEL_COLUMNS, "fps", "timestamps", "seconds")
_USUAL_RATE = 25.0


@dataclass(frozen=True, kw_only=True)
class Video(EmbeddedVideo):
    """A video of the corpus; its embeddings are unit vectors, in the file of the index."""

    number: int
    """Place in the order of the ids."""
    fields: Mapping[str, str]
    """Split and further columns of a manifest; empty where there is none."""

    @property
    def times(self) -> Float64[np.ndarray, " frames"]:
        """Seconds from the first frame to each; at 25 frames a second where the rate is unknown."""
        return np.arange(len(self)) / _USUAL_RATE if self.seconds is None else self.seconds

    @property
    def duration(self) -> float:
        """Seconds: the last frame is shown for as long as the one before."""
        times = self.times
        last = times[-1] - times[-2] if len(self) > 1 else 1 / (self.fps or _USUAL_RATE)
        return float(times[-1] + last) if len(self) else 0.0

    @property
    def key(self) -> str:
        """Name of files made of this one: a digest, since hash and URI come from outside."""
        return hashlib.sha256(
            repr((self.content_hash or self.uri, self.times.tobytes())).encode()
        ).hexdigest()[:32]

    @property
    def is_available(self) -> bool:
        """Whether the file is there, as far as that can be seen without asking an object store."""
        return storage.is_remote(self.uri) or Path(storage.resolve(self.uri)[1]).is_file()


@dataclass(frozen=True)
class Corpus:
    """The videos of a folder of embeddings or of one of its parts."""

    embeddings: Embeddings
    index: MomentIndex
    videos: tuple[Video, ...]
    folder: Path
    """Of files made for the page: local and writable."""
    columns: tuple[str, ...] = ("split",)
    """Names of the videos' `fields`."""

    @classmethod
    def open(
        cls,
        uri: str,
        manifest: str | None = None,
        on_video: Callable[[int, int], None] = lambda done, total: None,
    ) -> Corpus:
        """Read the columns of all videos, and open the index of their embeddings, or make it.

        Args:
            uri: The embeddings.
            manifest: URI of a manifest, whose further columns of texts and numbers (person, camera, …) are fields.
            on_video: Called with (videos done, all videos) while the index is made.

        Raises:
            UserError: nothing is there, it holds something else or no video, or an embedding is not finite; or the
                manifest is malformed.
            RunError: the store refuses or fails.
        """
        embeddings = Embeddings.open(uri)
        columns, further = _further_fields(manifest)
        rows: dict[str, dict[str, Any]] = {}
        for part in [uri] if storage.is_file(uri) else list_parts(uri):
            table = clean_labels(read_part(part, _COLUMNS)[1])
            for row in range(len(table)):
                fields = video_metadata(table, row) | {
                    "timestamps": array_cell(table, "timestamps", row, np.float64),
                    "frame_times": array_cell(table, "seconds", row, np.float64),
                }
                rows.setdefault(fields["video_id"], fields)
        if not rows:
            raise UserError(f"{storage.public_uri(uri)}: it holds no embedded video")
        none, folder = dict.fromkeys(columns, ""), _folder(uri)
        described = {
            name: (row["content_hash"], len(row["timestamps"])) for name, row in sorted(rows.items())
        }
        index = open_index(embeddings, folder, described, on_video)
        videos = (
            Video(
                **rows[video_id],
                number=number,
                embeddings=index.vectors(number),
                fields={"split": rows[video_id]["split"] or ""} | further.get(video_id, none),
            )
            for number, video_id in enumerate(described)
        )
        return cls(embeddings, index, tuple(videos), folder, ("split", *columns))

    @cached_property
    def key(self) -> str:
        """Digest of the URI."""
        shown = storage.public_uri(storage.absolute(self.embeddings.uri))
        return hashlib.sha256(shown.encode()).hexdigest()[:16]

    @cached_property
    def title(self) -> str:
        """Name of the corpus: the last two parts of its path."""
        return "/".join(storage.public_uri(storage.absolute(self.embeddings.uri)).rstrip("/").split("/")[-2:])

    @cached_property
    def actions(self) -> dict[str | None, list[str]]:
        """Names of the phases of each label, in the order of the phases."""
        found: dict[str | None, list[str]] = {}
        for video in self.videos:
            names = found.setdefault(video.label, [])
            if video.frame_labels is not None:
                highest = int(max(video.frame_labels, default=-1))
                known = [_phase_name(video.phase_names, phase) for phase in range(highest + 1)]
                names.extend(name for name in video.phase_names or known if name not in names)
        return found


def _further_fields(manifest: str | None) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Columns of texts and numbers that are not every manifest's, and their values as text by video id."""
    if manifest is None:
        return [], {}
    table = read_manifest(manifest)
    columns = [f.name for f in table.schema if f.name not in SCHEMA.names and not pa.types.is_nested(f.type)]
    rows = table.select(["video_id", *columns]).to_pylist()
    return columns, {
        row["video_id"]: {name: "" if row[name] is None else str(row[name]) for name in columns}
        for row in rows
    }


def _phase_name(names: list[str] | None, phase: int) -> str:
    return f"phase {phase}" if names is None or phase >= len(names) else names[phase]


def _folder(uri: str) -> Path:
    """The folder beside local embeddings; elsewhere where these are remote or cannot be written to."""
    local = Path(storage.absolute(uri))
    if not storage.is_remote(uri):
        beside = (local.parent if local.is_file() else local) / "explore"
        if os.access(beside if beside.exists() else beside.parent, os.W_OK):
            return beside
    name = hashlib.sha256(storage.public_uri(storage.absolute(uri)).encode()).hexdigest()[:16]
    return storage.home() / "explore" / name
