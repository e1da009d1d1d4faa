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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int32

from carl_ray import storage
from carl_ray.data.manifest import LABEL_COLUMNS, SCHEMA, clean_labels, read_manifest
from carl_ray.errors import UserError
from carl_ray.evaluation.embeddings import Embeddings, list_parts, read_part, video_metadata

_COLUMNS = ("video_id", "uri", "content_hash", *LABEL_COLUMNS, "fps", "timestamps", "seconds")
_USUAL_RATE = 25.0


@dataclass(frozen=True)
class Video:
    """A video of the corpus, without its embeddings."""

    number: int
    """Place in the order of the ids."""
    video_id: str
    uri: str
    content_hash: str
    split: str | None
    label: str | None
    fps: float | None
    times: Float64[np.ndarray, " frames"]
    """Seconds from the first frame to each; at 25 frames a second where the rate is unknown."""
    frame_labels: Int32[np.ndarray, " frames"] | None
    phase_names: list[str] | None
    fields: Mapping[str, str]
    """Split and further columns of a manifest; empty where there is none."""

    def __len__(self) -> int:
        return len(self.times)

    @property
    def seconds(self) -> float:
        """Duration: the last frame is shown for as long as the one before."""
        last = self.times[-1] - self.times[-2] if len(self) > 1 else 1 / (self.fps or _USUAL_RATE)
        return float(self.times[-1] + last) if len(self) else 0.0

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
    videos: tuple[Video, ...]
    folder: Path
    """Of files made for the page: local and writable."""
    columns: tuple[str, ...] = ("split",)
    """Names of the videos' `fields`."""

    @classmethod
    def open(cls, uri: str, manifest: str | None = None) -> Corpus:
        """Read the columns of all videos but their embeddings.

        Args:
            uri: The embeddings.
            manifest: URI of a manifest, whose further columns of texts and numbers (person, camera, …) are fields.

        Raises:
            UserError: nothing is there, it holds something else or no video; or the manifest is malformed.
            RunError: the store refuses or fails.
        """
        embeddings = Embeddings.open(uri)
        columns, further = _further_fields(manifest)
        rows: dict[str, dict[str, Any]] = {}
        for part in [uri] if storage.is_file(uri) else list_parts(uri):
            table = clean_labels(read_part(part, _COLUMNS)[1])
            for row in range(len(table)):
                fields = _row(table, row)
                rows.setdefault(fields["video_id"], fields)
        if not rows:
            raise UserError(f"{storage.public_uri(uri)}: it holds no embedded video")
        none = dict.fromkeys(columns, "")
        videos = (
            Video(
                number,
                **rows[video_id],
                fields={"split": rows[video_id]["split"] or ""} | further.get(video_id, none),
            )
            for number, video_id in enumerate(sorted(rows))
        )
        return cls(embeddings, tuple(videos), _folder(uri), ("split", *columns))

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


def _row(table: pa.Table, row: int) -> dict[str, Any]:
    fields = video_metadata(table, row)
    del fields["progress"]
    seconds = table.column("seconds")[row] if "seconds" in table.column_names else None
    if seconds is not None and seconds.is_valid:
        times = seconds.values.to_numpy(zero_copy_only=False).astype(np.float64)
    else:
        times = np.arange(len(table.column("timestamps")[row])) / (fields["fps"] or _USUAL_RATE)
    return fields | {"times": times}


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
