"""The Parquet files of embeddings: format, writing, reading and search.

    FOLDER/part-00000.parquet, part-00001.parquet, …   one row a video; each part can be read alone

    embeddings, untrained   H of every frame, by the trained encoder and by the same encoder before its training
    backwards, untrained_backwards   of encoders of clips, where asked for: rows of ten even clips played backwards
    frozen                  of runs on cached features: windows of features of the frozen backbone, reduced
    timestamps              of every frame: its number times the manifest's `frame_step`
    seconds                 of every frame, from the first one: the manifest's `frame_times`, or its number by the
                            average frame rate; null where that is unknown
    predicted               of videos that a run on labels was not trained on: the five most probable labels by its
                            classifier
    group                   the manifest's, where it has this column
    video_id, uri, content_hash, split, label, frame_labels, phase_names, progress, fps   as in the manifest

Parts of earlier versions lack `seconds` and `phase_names`, and can still be read.

Parts are written atomically, so every part that exists is complete. The schema metadata of each part holds its
`Origin` as JSON: parts of different encoders are never mixed.

Longer than 400 lines: what is written and what is read back change together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from carl_ray import storage
from carl_ray.data.manifest import LABEL_COLUMNS, clean_labels, refuse_pickles, write_table
from carl_ray.data.manifest import SCHEMA as MANIFEST_SCHEMA
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.nearest_frames import FoundFrame, nearest_frames
from carl_ray.options import nearest

if TYPE_CHECKING:
    import pandas as pd

Precision = Literal["float16", "float32"]
Form = Literal["plain", "centered", "joined", "dynamic", "static"]
"""What is made of the encoders' output, of each video: see `carl_ray.evaluation.frozen.formed`."""
CropMode = Literal["resized", "central"]
"""`resized`: shorter side resized to the encoder's size, then the central square. `central`: the central
square at full resolution, as the released code tests one of its data sets."""

_ORIGIN = b"carl_ray.origin"
_PREFIX, _SUFFIX = "part-", ".parquet"
_PART_NAME = re.compile(rf"{_PREFIX}\d+\{_SUFFIX}")
_ROWS_AT_A_TIME = 64
_FURTHER_VECTORS = ("untrained", "frozen", "backwards", "untrained_backwards")
_SECONDS = pa.field("seconds", pa.list_(pa.float64()))


@dataclass(frozen=True)
class Origin:
    """Where embeddings come from."""

    checkpoint: str
    """URI of the checkpoint, without credentials."""
    model_sha256: str
    """SHA-256 of its `model.pt`."""
    preset: str
    step: int
    """Training steps of the checkpoint."""
    num_frames: int
    """T of the configuration: positions of a video are spread over [0, T - 1]."""
    position_width: int
    """Width of the sine-cosine positional encoding."""
    view: str
    """How frames were cropped to the encoder's input (`CropMode`)."""
    has_untrained: bool
    """Whether the rows also hold the embeddings of the untrained encoder."""
    form: Form = "plain"
    """What was made of the encoders' output (`carl_ray.evaluation.frozen.formed`)."""
    has_backwards: bool = False
    """Whether the rows also hold clips played backwards."""


def write_part(folder: str, videos: Sequence[EmbeddedVideo], origin: Origin, precision: Precision) -> None:
    """Add a part with these videos to a folder of embeddings, atomically.

    Only one process at a time may write to a folder.

    Raises:
        RunError: the store refuses, fails or is full.
    """
    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(video, name) for video in videos], type=MANIFEST_SCHEMA.field(name).type)
        for name in ("video_id", "uri", "content_hash", *LABEL_COLUMNS, "fps")
    }
    if any(video.group is not None for video in videos):
        columns["group"] = pa.array([video.group for video in videos], pa.string())
    columns["timestamps"] = pa.array([video.timestamps for video in videos], pa.list_(pa.float64()))
    columns["seconds"] = pa.array([video.seconds for video in videos], pa.list_(pa.float64()))
    columns["embeddings"] = _to_lists([video.embeddings for video in videos], precision)
    for name in _FURTHER_VECTORS:
        if arrays := [array for video in videos if (array := getattr(video, name)) is not None]:
            columns[name] = _to_lists(arrays, precision)
    if any(video.predicted is not None for video in videos):
        columns["predicted"] = pa.array([video.predicted for video in videos], pa.list_(pa.string()))
    table = pa.table(columns).replace_schema_metadata({_ORIGIN: json.dumps(asdict(origin))})
    numbers = [int(part.rpartition("-")[2].removesuffix(_SUFFIX)) for part in list_parts(folder)]
    write_table(table, storage.join(folder, f"{_PREFIX}{max(numbers, default=-1) + 1:05d}{_SUFFIX}"))


def list_parts(folder: str) -> list[str]:
    """URIs of the parts in a folder of embeddings; none where it does not exist."""
    return [storage.join(folder, name) for name in storage.list_folder(folder) if _PART_NAME.fullmatch(name)]


def read_part(uri: str, columns: Sequence[str] | None = None) -> tuple[Origin, pa.Table]:
    """The origin and the rows of one part.

    Args:
        uri: The part.
        columns: The columns to read; None: all.

    Raises:
        UserError: it is no part of embeddings, or damaged.
        RunError: the store refuses or fails.
    """
    origin, file = _open(uri)
    try:
        return origin, _with_labels(file.read(columns))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _unreadable(uri, error) from None


def _with_labels(table: pa.Table) -> pa.Table:
    """The table with the columns that parts of earlier versions lack beside others that were read."""
    earlier = {"progress": MANIFEST_SCHEMA.field("phase_names"), "timestamps": _SECONDS}
    for name, field in earlier.items():
        if name in table.column_names and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def iterate_embeddings(uri: str, *, split: str | None = None) -> Iterator[EmbeddedVideo]:
    """The videos of a folder of embeddings or of a part, each once, in batches.

    Args:
        uri: The folder, or a single part.
        split: Only videos of this split; those without one count as "train".

    Raises:
        UserError: while iterating: nothing is there, or it does not hold embeddings.
        RunError: the store refuses or fails.
    """
    seen: set[str] = set()
    for part in _files(uri):
        _, file = _open(part)
        try:
            for read in file.iter_batches(batch_size=_ROWS_AT_A_TIME):
                batch = clean_labels(_with_labels(pa.Table.from_batches([read])))
                for row in range(batch.num_rows):
                    video = _video(batch, row, part)
                    if video.video_id in seen or split not in (None, video.split or "train"):
                        continue
                    seen.add(video.video_id)
                    yield video
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _unreadable(part, error) from None


def read_embeddings(uri: str, *, split: str | None = None) -> list[EmbeddedVideo]:
    """All videos of `iterate_embeddings`, ordered by video id.

    Raises:
        UserError: as there; also where no video remains.
    """
    videos = sorted(iterate_embeddings(uri, split=split), key=lambda video: video.video_id)
    if not videos:
        where = "" if split is None else f" of the split {split!r}"
        raise UserError(f"{storage.public_uri(uri)}: it holds no embedded video{where}")
    return videos


def read_origin(uri: str) -> Origin:
    """The origin of the embeddings in a folder or a part.

    Raises:
        UserError: nothing is there, it holds something else, or its parts have different origins.
    """
    parts = _files(uri)
    origins = [_open(part)[0] for part in parts]
    for part, origin in zip(parts, origins, strict=True):
        if origin != origins[0]:
            raise UserError(
                f"{storage.public_uri(part)}: embeddings of another origin than those of "
                f"{storage.public_uri(parts[0])}; keep them in folders of their own"
            )
    return origins[0]


class NotEmbeddedError(UserError):
    """A video that is not among the embedded ones."""


@dataclass(frozen=True)
class Embeddings:
    """The embedded videos of a folder or of one of its parts.

    They are read from storage at each iteration, a few in memory at a time.

        embeddings = Embeddings.open("s3://bucket/embeddings")
        hits = embeddings.search(("test/a.mp4", 120), k=5)
    """

    uri: str
    """The folder or part."""
    origin: Origin
    """Origin of all of them."""

    @classmethod
    def open(cls, uri: str) -> Embeddings:
        """Open a folder of embeddings or one of its parts.

        Raises:
            UserError: nothing is there, it holds something else, or its parts have different origins.
            RunError: the store refuses or fails.
        """
        return cls(uri, read_origin(uri))

    def __iter__(self) -> Iterator[EmbeddedVideo]:
        return iterate_embeddings(self.uri)

    def __len__(self) -> int:
        """Number of videos."""
        columns = [read_part(part, ["video_id"])[1].column(0) for part in _files(self.uri)]
        return len({video_id for column in columns for video_id in column.to_pylist()})

    def video(self, video_id: str) -> EmbeddedVideo:
        """The video of an id.

        Raises:
            NotEmbeddedError: no embedded video has this id.
        """
        known = []
        for video in self:
            if video.video_id == video_id:
                return video
            known.append(video.video_id)
        raise NotEmbeddedError(
            f"{storage.public_uri(video_id)}: expected the id of one of the {len(known)} videos in "
            f"{storage.public_uri(self.uri)}{nearest(video_id, known, files=True)}"
        )

    def search(
        self,
        query: Float[np.ndarray, " width"] | tuple[str | EmbeddedVideo, int],
        k: int = 10,
        *,
        label: str | None = None,
    ) -> list[FoundFrame]:
        """The frames most similar to a query, nearest first, at most one a video.

        Args:
            query: Embedding of a frame, or a video (or the id of one of these) and the index of its frame. That video
                itself, found by its id or its file, is not searched.
            k: The most frames returned.
            label: Only videos of this label; None: all.

        Returns:
            Frames with `video_id`, `uri`, `frame`, `seconds`, `similarity` (cosine), `label` and `phase`.

        Raises:
            UserError: the video or the frame is not there.
            ValueError: `k` is below 1, an embedding is not finite, or the query has another width.
        """
        searched = (video for video in self if label in (None, video.label))
        if not isinstance(query, tuple):
            return nearest_frames(query, searched, k)
        video, frame = query
        if isinstance(video, str):
            video = self.video(video)
        if not 0 <= frame < len(video):
            raise UserError(
                f"{video.video_id!r} has {len(video)} frames, expected 0 to {len(video) - 1}, got {frame}"
            )
        return nearest_frames(video.embeddings[frame], searched, k, excluded=video)

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one row for each frame, all embeddings in memory.

        Columns: `video_id`, `split`, `label`, `frame` (index in the video), `timestamp`, `seconds` (NaN where the
        frame rate is unknown), `frame_label` (-1 where there is none), `phase` (its name), `progress` (NaN where
        unknown) and `embedding` (float32 array (D,), not normalised).
        """
        import pandas as pd

        frames = pd.concat(
            [
                pd.DataFrame(
                    {
                        "video_id": video.video_id,
                        "split": video.split,
                        "label": video.label,
                        "frame": np.arange(len(video)),
                        "timestamp": video.timestamps,
                        "seconds": np.nan if video.seconds is None else video.seconds,
                        "frame_label": video.phases,
                        "phase": [video.phase_name(phase) for phase in video.phases.tolist()],
                        "progress": np.nan if video.progress is None else video.progress,
                        "embedding": list(video.embeddings),
                    }
                )
                for video in self
            ],
            ignore_index=True,
        )
        return frames.astype({"progress": np.float32})


def _files(uri: str) -> list[str]:
    """The part itself, or the parts of the folder; at least one."""
    shown = storage.public_uri(storage.absolute(uri))
    if not storage.exists(uri):
        raise UserError(f"{shown}: no embeddings there; make them with `python -m carl_ray.embed --out …`")
    if storage.is_file(uri):
        return [uri]
    parts = list_parts(uri)
    if not parts:
        raise UserError(f"{shown}: expected a folder of embeddings, found no {_PREFIX}00000{_SUFFIX} in it")
    return parts


def _open(uri: str) -> tuple[Origin, pq.ParquetFile]:
    filesystem, path = storage.resolve(uri)
    try:
        if storage.is_remote(uri):
            # Read whole, because storage retries reads; any later failure means the file is damaged.
            file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)))
        else:
            file = pq.ParquetFile(path, filesystem=filesystem)
        refuse_pickles(file.schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(uri, error) from None
    try:
        return Origin(**json.loads((file.schema_arrow.metadata or {})[_ORIGIN])), file
    except (KeyError, ValueError, TypeError):
        raise UserError(
            f"{storage.public_uri(uri)}: a Parquet file, but not one that `python -m carl_ray.embed` wrote"
        ) from None


def _unreadable(uri: str, error: Exception) -> UserError | RunError:
    # Arrow reports damage as OSError as well, but without an errno.
    if isinstance(error, OSError) and error.errno is not None:
        return storage.storage_error(error, uri, "read")
    reason = " ".join(str(error).split())
    return UserError(f"{storage.public_uri(uri)}: not a whole Parquet file of embeddings ({reason})")


def _to_lists(arrays: Sequence[np.ndarray], precision: Precision) -> pa.ListArray:
    """An Arrow array with one list of vectors for each video."""
    width = arrays[0].shape[1]
    flat = np.concatenate([array.astype(precision).reshape(-1) for array in arrays])
    offsets = np.cumsum([0, *(len(array) for array in arrays)]).astype(np.int32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
    return pa.ListArray.from_arrays(pa.array(offsets), vectors)


def _video(batch: pa.Table, row: int, uri: str) -> EmbeddedVideo:
    def vectors(name: str) -> np.ndarray:
        listed = batch.column(name)[row].values
        flat = listed.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        return flat.reshape(len(listed), listed.type.list_size)

    embeddings = vectors("embeddings")
    further: dict[str, Any] = {n: vectors(n) for n in _FURTHER_VECTORS if n in batch.schema.names}
    fields = video_metadata(batch, row) | {"timestamps": array_cell(batch, "timestamps", row, np.float64)}
    seconds = array_cell(batch, "seconds", row, np.float64)
    is_even = seconds is None or np.array_equal(seconds, np.arange(len(seconds)) / (fields["fps"] or 1))
    fields["frame_times"] = None if is_even else seconds
    for name in ("timestamps", "frame_times", "frame_labels", "progress"):
        if fields[name] is not None and len(fields[name]) != len(embeddings):
            raise UserError(
                f"{storage.public_uri(uri)}: {fields['video_id']} has {len(embeddings)} embeddings, but "
                f"{len(fields[name])} {name}; correct the manifest and run embed again, which updates the labels alone"
            )
    return EmbeddedVideo(
        **fields,
        embeddings=embeddings,
        **further,
        group=further_cell(batch, "group", row),
        predicted=further_cell(batch, "predicted", row),
    )


def video_metadata(table: pa.Table, row: int) -> dict[str, Any]:
    """Fields of an `EmbeddedVideo` that are columns of manifests and of parts."""
    scalars = ("video_id", "uri", "content_hash", "split", "label", "phase_names", "fps")
    return {name: table.column(name)[row].as_py() for name in scalars} | {
        "frame_labels": array_cell(table, "frame_labels", row, np.int32),
        "progress": array_cell(table, "progress", row, np.float32),
    }


def further_cell(table: pa.Table, name: str, row: int) -> Any:
    """A cell of a column that a table may lack; None there."""
    return table.column(name)[row].as_py() if name in table.column_names else None


def array_cell(table: pa.Table, name: str, row: int, dtype: type) -> Any:
    """A cell of a list column as an array of this type; None where it is null."""
    value = table.column(name)[row]
    return value.values.to_numpy(zero_copy_only=False).astype(dtype) if value.is_valid else None
