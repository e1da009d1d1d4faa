"""The table of embeddings: Parquet, one row a video, with all that its evaluation needs.

    FOLDER/part-00000.parquet, part-00001.parquet, …   each readable alone, or all of them as one table

    embeddings, untrained   H of every frame, and of the encoder before its training
    timestamps              of every frame: its number times the manifest's `frame_step`
    seconds                 of every frame: its number by the average frame rate; null where that is unknown, and no
                            column in parts of earlier versions, which are read all the same
    video_id, uri, content_hash, split, label, frame_labels, progress, fps   as in the manifest

A part appears whole or not at all, so what is there is finished. Besides the rows, every part says where its
embeddings come from (`Origin`, JSON in the schema's metadata): parts of different encoders never mix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from carl_ray import storage
from carl_ray.data.manifest import (
    LABEL_COLUMNS,
    attach_labels,
    clean_labels,
    read_manifest,
    refuse_pickles,
    write_table,
)
from carl_ray.data.manifest import SCHEMA as MANIFEST_SCHEMA
from carl_ray.errors import RunError, UserError
from carl_ray.training.checkpoint import Checkpoint

Precision = Literal["float16", "float32"]
CropMode = Literal["resized", "central"]
"""`resized`: shorter side resized to the encoder's size, then the central square (SPEC 7). `central`: the central
square of the frames as they are, which is what the released code's FineGym tests see."""

_ORIGIN = b"carl_ray.origin"
_PREFIX, _SUFFIX = "part-", ".parquet"
_ROWS_AT_A_TIME = 64
_COLUMNS = ["video_id", "uri", "content_hash", "num_frames", "frame_step", "fps", *LABEL_COLUMNS]


@dataclass(frozen=True)
class Origin:
    """Where embeddings come from."""

    checkpoint: str
    """URI of the checkpoint, without credentials."""
    model_sha256: str
    """SHA-256 of its `model.pt`."""
    preset: str
    step: int
    """Steps that it was trained for."""
    num_frames: int
    """T of the configuration: positions of a video are spread over [0, T - 1]."""
    position_width: int
    """Width of the sine-cosine code that is added to the frames."""
    view: str
    """How frames became the encoder's square (`CropMode`)."""
    has_untrained: bool
    """Whether the rows hold the embeddings of the same encoder before its training, too."""


@dataclass(frozen=True)
class EmbeddedVideo:
    """The embeddings of all frames of one video, and what is known of them."""

    video_id: str
    uri: str
    content_hash: str
    """Of the file that was embedded, as in the manifest."""
    split: str | None
    label: str | None
    frame_labels: Int[np.ndarray, " frames"] | None
    """int32; -1 for frames without one."""
    progress: Float[np.ndarray, " frames"] | None
    """float32: true share of the action that is done."""
    fps: float | None
    """Frames a second, on average."""
    timestamps: Float[np.ndarray, " frames"]
    """float64: frame index times the manifest's `frame_step`, as the loss saw them; `seconds` has the time."""
    embeddings: Float[np.ndarray, "frames width"]
    """H, not normalised; float32 whatever the file holds."""
    untrained: Float[np.ndarray, "frames width"] | None
    """H of the encoder before its training."""

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def seconds(self) -> Float[np.ndarray, " frames"] | None:
        """float64: seconds from the first frame by the average frame rate; none where that is unknown."""
        return np.arange(len(self)) / self.fps if self.fps else None


def write_part(folder: str, videos: Sequence[EmbeddedVideo], origin: Origin, precision: Precision) -> None:
    """Adds a part with these videos to a folder of embeddings, whole or not at all.

    One process at a time may write to a folder.

    Raises:
        RunError: the store refuses, fails or is full.
    """
    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(video, name) for video in videos], type=MANIFEST_SCHEMA.field(name).type)
        for name in ("video_id", "uri", "content_hash", *LABEL_COLUMNS, "fps")
    }
    columns["timestamps"] = pa.array([video.timestamps for video in videos], pa.list_(pa.float64()))
    columns["seconds"] = pa.array([video.seconds for video in videos], pa.list_(pa.float64()))
    columns["embeddings"] = _to_lists([video.embeddings for video in videos], precision)
    if origin.has_untrained:
        columns["untrained"] = _to_lists(
            [video.untrained for video in videos if video.untrained is not None], precision
        )
    table = pa.table(columns).replace_schema_metadata({_ORIGIN: json.dumps(asdict(origin))})
    numbers = [int(name[len(_PREFIX) : -len(_SUFFIX)]) for name in _parts(folder)]
    write_table(table, storage.join(folder, f"{_PREFIX}{max(numbers, default=-1) + 1:05d}{_SUFFIX}"))


def origin_of(checkpoint: Checkpoint, view: CropMode, *, untrained: bool) -> Origin:
    """The origin of what a checkpoint embeds."""
    model = checkpoint.config.model
    return Origin(
        checkpoint=storage.public_uri(checkpoint.uri),
        model_sha256=checkpoint.hashes["model.pt"],
        preset=checkpoint.config.preset,
        step=checkpoint.progress.step,
        num_frames=model.num_frames,
        position_width=model.width,
        view=view,
        has_untrained=untrained,
    )


def missing_videos(
    manifest_uri: str, splits: Sequence[str] | None, out: str, origin: Origin
) -> tuple[pa.Table, int]:
    """Rows of the manifest that a folder of embeddings lacks, and how many it holds.

    Raises:
        UserError: as `read_manifest` and `finished_videos`, or the manifest has no videos of these splits.
        RunError: the store refuses or fails.
    """
    if splits is None:
        table = read_manifest(manifest_uri, _COLUMNS)
    else:
        table = pa.concat_tables([read_manifest(manifest_uri, _COLUMNS, split=split) for split in splits])
    if table.num_rows == 0:
        where = f" of the split {' or '.join(splits)}" if splits else ""
        raise UserError(f"{storage.public_uri(manifest_uri)}: it has no videos{where}")
    finished = finished_videos(out, origin, table)
    video_ids = table.column("video_id").to_pylist()
    missing = table.filter(pa.array([video_id not in finished for video_id in video_ids]))
    return missing, table.num_rows - missing.num_rows


def finished_videos(folder: str, origin: Origin, videos: pa.Table) -> set[str]:
    """Ids of the videos that a folder of embeddings already holds; empty where it does not exist.

    Splits, labels and progress of those videos are brought up to what the manifest says now.

    Args:
        folder: URI of the folder.
        origin: Where the embeddings are to come from.
        videos: Rows of the manifest: `video_id`, `content_hash` and `LABEL_COLUMNS`.

    Raises:
        UserError: the folder holds embeddings of another origin, or of another file with the name of one of the
            videos, or a part is no such file.
        RunError: the store refuses or fails.
    """
    hashes = dict(
        zip(*(videos.column(name).to_pylist() for name in ("video_id", "content_hash")), strict=True)
    )
    found: set[str] = set()
    for name in _parts(folder):
        uri = storage.join(folder, name)
        file = _open(uri)
        there = _origin(file, uri)
        if there != origin:
            different = [k for k, v in asdict(there).items() if asdict(origin)[k] != v]
            raise UserError(
                f"{storage.public_uri(folder)}: it holds embeddings of another origin (different: "
                f"{', '.join(different)}); name another --out, or delete that folder"
            )
        try:
            known = file.read(["video_id", "content_hash", *LABEL_COLUMNS])
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _unreadable(uri, error) from None
        for video_id, content_hash in zip(*(known.column(i).to_pylist() for i in (0, 1)), strict=True):
            if hashes.get(video_id, content_hash) != content_hash:
                raise UserError(
                    f"{storage.public_uri(folder)}: its {video_id!r} is another file than the manifest's of that name; "
                    "name another --out, or delete that folder"
                )
            found.add(video_id)
        _refresh_labels(uri, known, videos)
    return found


def _refresh_labels(uri: str, known: pa.Table, videos: pa.Table) -> None:
    """Writes a part anew where the manifest's labels of its videos have changed."""
    listed = pc.is_in(known.column("video_id"), videos.column("video_id").combine_chunks())
    if not pc.any(listed).as_py():
        return
    labels = pa.concat_tables(
        [
            videos.select(["video_id", *LABEL_COLUMNS]),
            known.filter(pc.invert(listed)).select(["video_id", *LABEL_COLUMNS]),
        ],
        promote_options="permissive",
    )
    fresh = attach_labels(known, labels)
    if not fresh.equals(known):
        write_table(attach_labels(_open(uri).read(), labels), uri)


def iterate_embeddings(uri: str, *, split: str | None = None) -> Iterator[EmbeddedVideo]:
    """The videos of a folder of embeddings or of one of its parts, each once, a few in memory at a time.

    Args:
        uri: The folder, or a single part.
        split: Only videos of this split; those without one count as "train".

    Raises:
        UserError: while iterating: nothing is there, or it holds something else than embeddings.
        RunError: the store refuses or fails.
    """
    seen: set[str] = set()
    for part in _files(uri):
        file = _open(part)
        _origin(file, part)
        try:
            for read in file.iter_batches(batch_size=_ROWS_AT_A_TIME):
                batch = clean_labels(pa.Table.from_batches([read]))
                for row in range(batch.num_rows):
                    video = _video(batch, row, part)
                    if video.video_id in seen or split not in (None, video.split or "train"):
                        continue
                    seen.add(video.video_id)
                    yield video
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _unreadable(part, error) from None


def read_embeddings(uri: str, *, split: str | None = None) -> list[EmbeddedVideo]:
    """All of `iterate_embeddings`, by video id.

    Raises:
        UserError: as there; also where no video is left, or widths differ between videos.
    """
    videos = sorted(iterate_embeddings(uri, split=split), key=lambda video: video.video_id)
    if not videos:
        where = "" if split is None else f" of the split {split!r}"
        raise UserError(f"{storage.public_uri(uri)}: it holds no embedded video{where}")
    return videos


def read_origin(uri: str) -> Origin:
    """Where the embeddings in a folder or a part come from.

    Raises:
        UserError: nothing is there, it holds something else, or its parts are of different origins.
    """
    parts = _files(uri)
    origins = [_origin(_open(part), part) for part in parts]
    for part, origin in zip(parts, origins, strict=True):
        if origin != origins[0]:
            raise UserError(
                f"{storage.public_uri(part)}: embeddings of another origin than those of "
                f"{storage.public_uri(parts[0])}; keep them in folders of their own"
            )
    return origins[0]


def _parts(folder: str) -> list[str]:
    return [
        name
        for name in storage.list_folder(folder)
        if name.startswith(_PREFIX)
        and name.endswith(_SUFFIX)
        and name[len(_PREFIX) : -len(_SUFFIX)].isdecimal()
    ]


def _files(uri: str) -> list[str]:
    """The part, or the parts of the folder."""
    shown = storage.public_uri(storage.absolute(uri))
    if not storage.exists(uri):
        raise UserError(f"{shown}: no embeddings there; make them with `python -m carl_ray.embed --out …`")
    if storage.is_file(uri):
        return [uri]
    names = _parts(uri)
    if not names:
        raise UserError(f"{shown}: expected a folder of embeddings, found no {_PREFIX}00000{_SUFFIX} in it")
    return [storage.join(uri, name) for name in names]


def _open(uri: str) -> pq.ParquetFile:
    filesystem, path = storage.resolve(uri)
    try:
        if storage.is_remote(uri):
            # Whole, as it was written: storage tries again, and what fails afterwards is the file's fault.
            file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)))
        else:
            file = pq.ParquetFile(path, filesystem=filesystem)
        refuse_pickles(file.schema_arrow)
        return file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(uri, error) from None


def _unreadable(uri: str, error: Exception) -> UserError | RunError:
    # Arrow's own complaints about damage are OSErrors too, but have no number.
    if isinstance(error, OSError) and error.errno is not None:
        return storage.storage_error(error, uri, "read")
    reason = " ".join(str(error).split())
    return UserError(f"{storage.public_uri(uri)}: not a whole Parquet file of embeddings ({reason})")


def _origin(file: pq.ParquetFile, uri: str) -> Origin:
    metadata = file.schema_arrow.metadata or {}
    try:
        return Origin(**json.loads(metadata[_ORIGIN]))
    except (KeyError, ValueError, TypeError):
        raise UserError(
            f"{storage.public_uri(uri)}: a Parquet file, but not one that `python -m carl_ray.embed` wrote"
        ) from None


def _to_lists(arrays: Sequence[np.ndarray], precision: Precision) -> pa.ListArray:
    """One list of vectors a video."""
    width = arrays[0].shape[1]
    flat = np.concatenate([array.astype(precision).reshape(-1) for array in arrays])
    offsets = np.cumsum([0, *(len(array) for array in arrays)]).astype(np.int32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
    return pa.ListArray.from_arrays(pa.array(offsets), vectors)


def _video(batch: pa.Table, row: int, uri: str) -> EmbeddedVideo:
    def scalar(name: str) -> Any:
        return batch.column(name)[row].as_py()

    def array(name: str, dtype: type) -> np.ndarray | None:
        value = batch.column(name)[row]
        return value.values.to_numpy(zero_copy_only=False).astype(dtype) if value.is_valid else None

    def vectors(name: str) -> np.ndarray:
        listed = batch.column(name)[row].values
        return listed.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(listed), -1)

    embeddings = vectors("embeddings")
    timestamps = array("timestamps", np.float64)
    frame_labels, progress = array("frame_labels", np.int32), array("progress", np.float32)
    for name, values in (("timestamps", timestamps), ("frame_labels", frame_labels), ("progress", progress)):
        if values is not None and len(values) != len(embeddings):
            raise UserError(
                f"{storage.public_uri(uri)}: {scalar('video_id')} has {len(embeddings)} embeddings, "
                f"but {len(values)} {name}; mend the manifest, and embed again with it, which renews labels alone"
            )
    assert timestamps is not None
    return EmbeddedVideo(
        video_id=scalar("video_id"),
        uri=scalar("uri"),
        content_hash=scalar("content_hash"),
        split=scalar("split"),
        label=scalar("label"),
        frame_labels=frame_labels,
        progress=progress,
        fps=scalar("fps"),
        timestamps=timestamps,
        embeddings=embeddings,
        untrained=vectors("untrained") if "untrained" in batch.schema.names else None,
    )
