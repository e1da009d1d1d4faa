"""Cached features of a frozen backbone: files, reading, views. No Ray and no torch here.

    FOLDER/features.json         the config that made them, digest of the backbone's weights, channels C
    FOLDER/part-00000.parquet    one row, and row group, a video

    video_id, content_hash, num_frames     as in the manifest
    channels                               C
    copy_0, copy_1, …                      float16 (ceil(num_frames / frame_stride), C) as bytes, of every
                                           `data.frame_stride`-th frame: clean, and of each augmented copy

Parts are written atomically, so every part that exists is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float16, Float32

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import MOTIONS, Config, ModelConfig
from carl_ray.data.manifest import StreamVideo, refuse_pickles
from carl_ray.data.sample import NUM_PARAMETERS, SampleSpec, at_frames, draw_clips, draw_copies
from carl_ray.errors import UserError
from carl_ray.objectives.base import ViewTensors

DESCRIPTION = "features.json"
FEATURE_COLUMNS = ["features_part", "features_group"]
"""Columns that `FeatureCache.locate` adds to a table of videos: URI of the part, number of the row group."""

_PART_NAME = re.compile(r"part-\d{5,}\.parquet")
_OPEN_PARTS = 32


@dataclass(frozen=True)
class FeatureCache:
    """A folder of features; `open_cache` and `create_cache` make one."""

    uri: str
    config: Config
    """That made the features; its `model`, `augment` and `data` sections tell what they are."""
    weights_digest: str
    """`carl_ray.model.weights.weights_digest` of the backbone."""
    channels: int

    def check(self, config: Config, weights_digest: str, *, clean_only: bool = False) -> None:
        """Check that the features are those that a run needs.

        Args:
            config: The run.
            weights_digest: Of its backbone.
            clean_only: Only of the clean frames.

        Raises:
            UserError: they are not; the message names the first difference.
        """
        ours = made_of(self.config, clean_only) | {"the backbone's weights": self.weights_digest}
        theirs = made_of(config, clean_only) | {"the backbone's weights": weights_digest}
        if (self.config.augment.copies or 0) > (config.augment.copies or 0):
            ours["augment.copies"] = theirs["augment.copies"]  # More than it needs.
        for name, value in theirs.items():
            if ours[name] != value:
                raise UserError(
                    f"{storage.public_uri(self.uri)}: features made with {name} = {ours[name]!r}, but {value!r} is "
                    "needed; name another folder, which `carl_ray.cache` fills"
                )

    def locate(self, videos: pa.Table) -> pa.Table:
        """The videos with `FEATURE_COLUMNS`, null where their features are missing.

        Args:
            videos: Columns `video_id`, `content_hash`.
        """
        places: dict[tuple[str, str], tuple[str, int]] = {}
        # Loading tasks have other working directories.
        for part in list_parts(storage.absolute(self.uri)):
            listed = open_parquet(part).read(["video_id", "content_hash"]).to_pylist()
            for group, row in enumerate(listed):
                places[row["video_id"], row["content_hash"]] = (part, group)
        keys = zip(*(videos.column(name).to_pylist() for name in ("video_id", "content_hash")), strict=True)
        found = [places.get(key, (None, None)) for key in keys]
        parts, groups = zip(*found, strict=True) if found else ((), ())
        videos = videos.append_column(FEATURE_COLUMNS[0], pa.array(parts, pa.string()))
        return videos.append_column(FEATURE_COLUMNS[1], pa.array(groups, pa.int32()))

    def locate_all(self, videos: pa.Table) -> pa.Table:
        """As `locate`; `UserError` where features are missing."""
        located = self.locate(videos)
        if missing := located.column(FEATURE_COLUMNS[0]).null_count:
            raise UserError(
                f"{storage.public_uri(self.uri)}: it lacks the features of {missing} of {len(videos)} videos; "
                f"`carl_ray.cache --manifest … --out {storage.public_uri(self.uri)}` with the options of the run adds "
                "them"
            )
        return located


def made_of(config: Config, clean_only: bool) -> dict[str, Any]:
    """The fields that determine features, besides the weights, by dotted name."""
    fields: dict[str, Any] = {
        "model.backbone": config.model.backbone,
        "model.cut_stages": config.model.cut_stages,
        "model.pooling": config.model.pooling,
        "augment.image_size": config.augment.image_size,
        "data.frame_stride": config.data.frame_stride,
        "data.decoder": config.data.decoder,
    }
    copies = config.augment.copies or 0
    if clean_only:
        return fields
    fields["augment.copies"] = copies  # The first difference, where there are none.
    if not copies:
        return fields
    drawn = configuration.to_document(config)["augment"]
    for name in ("color_on", "pixels", "image_size"):
        del drawn[name]
    return (
        fields
        | {"training.seed": config.training.seed}
        | {"augment.color": "exact"}  # Names of folders depend on it.
        | {f"augment.{name}": value for name, value in drawn.items()}
    )


def default_folder(manifest: str, config: Config) -> str:
    """URI of the features of a run beside its manifest."""
    fields = made_of(config, clean_only=False)
    # As in versions without that field.
    made = {name: value for name, value in fields.items() if (name, value) != ("model.cut_stages", 0)}
    text = json.dumps([made, config.model.weights], sort_keys=True)
    key = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    name = f"{config.model.backbone}-{config.augment.image_size}px-{key}".replace(":", "-").replace("/", "-")
    return storage.join(storage.parent(storage.absolute(manifest)), "features", name)


def open_cache(uri: str) -> FeatureCache | None:
    """The features in a folder; None where there are none.

    Raises:
        UserError: it holds something else.
        RunError: the store refuses or fails.
    """
    source = storage.join(uri, DESCRIPTION)
    if not storage.exists(source):
        # The claim of its writer may be there.
        if any(not name.startswith(".") for name in storage.list_folder(uri)):
            raise UserError(
                f"{storage.public_uri(uri)}: expected a folder of features, found no {DESCRIPTION}"
            )
        return None
    with storage.reading(source, "not the description of features"):
        document = json.loads(storage.read_bytes(source))
        augment = document["config"]["augment"]
        if augment.get("color") == "matrix" and augment["copies"]:
            augment["copies"] = 0  # Of colours that are not made any more; the clean frames are the same.
        config = configuration.from_document(document["config"], storage.public_uri(source))
        return FeatureCache(uri, config, str(document["weights_digest"]), int(document["channels"]))


def require_cache(uri: str) -> FeatureCache:
    """The features in a folder; `UserError` where there are none."""
    cache = open_cache(uri)
    if cache is None:
        raise UserError(
            f"{storage.public_uri(storage.absolute(uri))}: no features there; make them with `carl_ray.cache "
            "--manifest … --out …`"
        )
    return cache


def create_cache(uri: str, config: Config, weights_digest: str, channels: int) -> FeatureCache:
    """Write the description of a new folder of features."""
    document = {
        "config": configuration.to_document(config),
        "weights_digest": weights_digest,
        "channels": channels,
    }
    storage.write_bytes(storage.join(uri, DESCRIPTION), (json.dumps(document, indent=2) + "\n").encode())
    return FeatureCache(uri, config, weights_digest, channels)


def list_parts(folder: str) -> list[str]:
    """URIs of the parts in a folder of features or keypoints, in the order of writing."""
    return [storage.join(folder, name) for name in storage.list_folder(folder) if _PART_NAME.fullmatch(name)]


def write_part(folder: str, videos: pa.Table, features: Sequence[Sequence[np.ndarray]]) -> None:
    """Add a part, atomically; only one process at a time may write to a folder.

    Args:
        folder: URI.
        videos: Columns `video_id`, `content_hash`, `num_frames`.
        features: Of each video the float16 arrays (frames, C) of each copy.
    """
    table = videos.select(["video_id", "content_hash", "num_frames"])
    channels = [arrays[0].shape[1] for arrays in features]
    table = table.append_column("channels", pa.array(channels, pa.int32()))
    for copy, arrays in enumerate(zip(*features, strict=True)):
        table = table.append_column(
            f"copy_{copy}", pa.array([a.tobytes() for a in arrays], pa.large_binary())
        )
    sink = io.BytesIO()
    # A row group a video: a view reads one copy of one video. Features hardly compress.
    pq.write_table(
        table, sink, row_group_size=1, compression="none", use_dictionary=False, write_statistics=False
    )
    add_part(folder, sink.getvalue())


def add_part(folder: str, content: bytes) -> None:
    """Write the next part of a folder, atomically; only one process at a time may write to a folder."""
    numbers = [int(part.rpartition("-")[2].partition(".")[0]) for part in list_parts(folder)]
    storage.write_bytes(storage.join(folder, f"part-{max(numbers, default=-1) + 1:05d}.parquet"), content)


@lru_cache(maxsize=_OPEN_PARTS)
def open_parquet(uri: str, kind: str = "part of features") -> pq.ParquetFile:
    """A part; its footer stays in memory, since a run reads it at every row.

    Raises:
        UserError: it is not a Parquet file, or has a column that may run code.
        RunError: the store refuses or fails.
    """

    def opened() -> pq.ParquetFile:
        filesystem, path = storage.resolve(uri)
        return pq.ParquetFile(path, filesystem=filesystem)

    with storage.reading(uri, f"not a {kind}"):
        file = storage.persistently(uri, "read", opened)
        refuse_pickles(file.schema_arrow)
        return file


def read_features(part: str, group: int, copy: int = 0) -> Float16[np.ndarray, "frames C"]:
    """The features of one copy of a video.

    Args:
        part: URI, as `FeatureCache.locate` gives it.
        group: Number of the row group there.
        copy: 0: clean.

    Raises:
        UserError: the part is damaged.
        RunError: the store refuses or fails.
    """
    columns = ["channels", f"copy_{copy}"]
    with storage.reading(part, "a damaged part of features"):
        row = storage.persistently(part, "read", lambda: open_parquet(part).read_row_group(group, columns))
        content = row.column(1)[0].as_buffer()
        return np.frombuffer(content, "<f2").reshape(-1, row.column(0)[0].as_py())


def model_input(
    features: Float[np.ndarray, "frames C"], model: ModelConfig | SampleSpec
) -> Float32[np.ndarray, "frames width"]:
    """What an encoder makes of the features of a whole video before its first layer: centred, joined with motion.

    Past its ends, a video is continued by its first and last frame.
    """
    values = features.astype(np.float32)
    if model.centered:
        values -= values.mean(axis=0)
    if model.motion == "difference":
        values = np.concatenate([values, central_difference(values)], axis=1)
    elif model.motion == "window":
        reach = MOTIONS["window"] // 2
        places = np.arange(len(values))[:, None] + np.arange(-reach, reach + 1)
        values = values[places.clip(0, len(values) - 1)].reshape(len(values), -1)
    return values


def central_difference(features: Float[np.ndarray, "frames C"]) -> Float[np.ndarray, "frames C"]:
    """Differences of the features two frames later and earlier; past the ends, of the first and last frame."""
    at = np.arange(len(features))
    return features[np.minimum(at + 2, len(at) - 1)] - features[np.maximum(at - 2, 0)]


def upsample(
    embeddings: Float[np.ndarray, "taken width"], num_frames: int, frame_stride: int
) -> Float32[np.ndarray, "frames width"]:
    """Interpolate embeddings of every `frame_stride`-th frame linearly to all frames; the last one stays to the end."""
    if frame_stride == 1:
        return embeddings.astype(np.float32)
    before, weight = np.divmod(np.arange(num_frames), frame_stride)
    after = np.minimum(before + 1, len(embeddings) - 1)
    share = (weight / frame_stride).astype(np.float32)[:, None]
    return (embeddings[before] * (1 - share) + embeddings[after] * share).astype(np.float32)


def cached_views(
    video: StreamVideo,
    epoch: int,
    spec: SampleSpec,
    read: Callable[[str, int, int], np.ndarray] = read_features,
) -> dict[str, ViewTensors[np.ndarray]]:
    """The views of `make_views` with features in the place of pixels, of a video that `locate` found.

    Parameters, boxes and flips of the copies are not known here: zeros.

    Args:
        video: Row of the manifest, with `FEATURE_COLUMNS`.
        epoch: Epoch of the run.
        spec: Of the run's samples.
        read: As `read_features`; a caller that reads a video many times may keep it in memory.

    Raises:
        UserError, RunError: as `read_features`.
    """
    given: dict[str, Any] = dict(video)
    video_id, part, group = video["video_id"], video["features_part"], video["features_group"]
    views = {}
    for view in spec.views:
        key_frames = video.get("key_frames")
        clips = draw_clips(view, video_id, video["num_frames"], epoch, spec, key_frames)
        copies = draw_copies(view, video_id, epoch, spec.seed) or (0,) * view.count
        features = np.zeros((view.count, view.num_frames, view.features or 0), np.float16)
        for number, (clip, copy) in enumerate(zip(clips, copies, strict=True)):
            whole = model_input(read(part, group, copy), spec)
            real = clip.frame_indices[clip.frame_mask] // spec.data.frame_stride
            features[number, clip.frame_mask] = whole[real]
        views[view.name] = ViewTensors(
            timestamps=np.stack([clip.frame_indices * float(video["frame_step"]) for clip in clips]),
            mask=np.stack([clip.frame_mask for clip in clips]),
            parameters=np.zeros((view.count, NUM_PARAMETERS)),
            boxes=np.zeros((view.count, 4)),
            flips=np.zeros(view.count, bool),
            spans=np.array([clip.crop for clip in clips]) * float(video["frame_step"]),
            features=features,
            columns={
                name: np.stack([at_frames(clip, given.get(name)) for clip in clips]) for name in spec.columns
            },
        )
    return views
