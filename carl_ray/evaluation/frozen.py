"""An encoder without training: windows of features of a frozen backbone, reduced over a corpus.

    frames ─ frozen backbone ▶ minus the video's mean ▶ window of nine frames ▶ PCA ▶ (frames, D)

Without a corpus, each frame's features are joined with their central difference instead, and not reduced.

A folder of such embeddings holds its encoder in `encoder/`: frozen.json (config, digests) and components.npy.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32

from carl_ray import config as configuration
from carl_ray import presets, storage
from carl_ray.config import Config, Motion
from carl_ray.data.features import FEATURE_COLUMNS, FeatureCache, model_input, read_features
from carl_ray.errors import UserError
from carl_ray.evaluation.embeddings import Form
from carl_ray.evaluation.frames import unit_frames

FROZEN = "frozen"
"""Name of the encoder of the preset `laptop` before any training; also the preset of the origin of its embeddings."""
ENCODER = "encoder"
"""Folder of the encoder in a folder of embeddings."""

CONTROL = "control"
"""The same for the control beside a trained encoder's embeddings."""
WIDTH = 128
"""Components that are kept, at most."""

TRAINED_WEIGHT = 0.6
"""Of a trained embedding beside a frozen one: its cosines spread further."""
AVERAGED_STRIDES = 2
"""A trained embedding beside a frozen one is averaged over so many strides on either side."""

_PCA_FRAMES = 4_000
_DESCRIPTION, _COMPONENTS = "frozen.json", "components.npy"


def frozen_config(config: Config, motion: Motion = "difference") -> Config:
    """The config with features that are centred in each video and joined with their motion."""
    return replace(config, model=replace(config.model, centered=True, motion=motion))


def formed(
    embeddings: Float[np.ndarray, "frames width"],
    frozen: Float[np.ndarray, "frames D"] | None,
    form: Form,
    frame_stride: int,
) -> Float[np.ndarray, "frames formed"]:
    """What a folder of embeddings holds of an encoder's output for one video.

    Args:
        embeddings: The output.
        frozen: Embeddings of the frozen backbone; for `joined` alone.
        form: `plain`: the output; `centered`: minus its mean over the video; `joined`: that, averaged over five
            strides, L2-normalised and with a smaller weight, beside the frozen embeddings, L2-normalised. `dynamic`,
            `static`: the first or the second half of the output.
        frame_stride: Frames of a stride.
    """
    if form == "plain":
        return embeddings
    if form in ("dynamic", "static"):
        return np.split(embeddings, 2, axis=1)[form == "static"]
    centered = embeddings - embeddings.mean(axis=0)
    if form == "centered":
        return centered
    if frozen is None:
        raise ValueError("form joined needs embeddings of the frozen backbone")
    near = frame_stride * np.arange(-AVERAGED_STRIDES, AVERAGED_STRIDES + 1)
    places = (np.arange(len(centered))[:, None] + near).clip(0, len(centered) - 1)
    trained, beside = (unit_frames([part])[0] for part in (centered[places].mean(axis=1), frozen))
    return np.concatenate([TRAINED_WEIGHT * trained, beside], axis=1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """What determines a frozen encoder."""

    config: Config
    """Of the features: `frozen_config`."""
    weights_digest: str | None
    """Of the backbone that the components were made with; None without components."""
    components: Float32[np.ndarray, "width D"] | None
    """Principal axes of a corpus; None: embeddings are not reduced."""
    uri: str = FROZEN
    """Its folder."""

    @property
    def model_sha256(self) -> str:
        """Hash of weights and components, which embeddings name as their model's."""
        content = b"" if self.components is None else self.components.tobytes()
        return hashlib.sha256(f"{self.weights_digest}:".encode() + content).hexdigest()


def load_frozen(uri: str) -> FrozenEncoder | None:
    """The frozen encoder of a folder, or of the folder of embeddings that it is in.

    For the name `frozen`: with the backbone of the preset `laptop`, and without components. None where there is none.

    Raises:
        UserError: it is damaged.
        RunError: the store refuses or fails.
    """
    if storage.is_on_hub(uri):  # Trained encoders alone are there.
        return None
    folders = (uri, storage.join(uri, ENCODER))
    folder = next((f for f in folders if storage.exists(storage.join(f, _DESCRIPTION))), None)
    if folder is None:
        return FrozenEncoder(frozen_config(presets.preset("laptop")), None, None) if uri == FROZEN else None
    shown = storage.public_uri(folder)
    try:
        document = json.loads(storage.read_bytes(storage.join(folder, _DESCRIPTION)))
        config = configuration.from_document(document["config"], shown)
        content = storage.read_bytes(storage.join(folder, _COMPONENTS))
        components = np.load(io.BytesIO(content), allow_pickle=False)
        encoder = FrozenEncoder(config, document["weights_digest"], components, folder)
        if encoder.model_sha256 != document["sha256"]:
            raise ValueError(f"{_COMPONENTS} is not as it was written")
        return encoder
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shown}: not a frozen encoder ({error})") from None


def fit_frozen(folder: str, cache: FeatureCache, videos: pa.Table) -> FrozenEncoder:
    """Fit components to the cached features of videos, and write the encoder into its folder.

    Args:
        folder: URI.
        cache: The features.
        videos: Columns `video_id`, `content_hash`, `num_frames`; those without features do not count.

    Raises:
        UserError: none of the videos has features.
    """
    located = cache.locate(videos)
    if located.column(FEATURE_COLUMNS[0]).null_count == len(located):
        raise UserError(f"{storage.public_uri(cache.uri)}: it has features of none of the videos")
    config = frozen_config(cache.config, "window")
    axes = _principal_axes(located.filter(located.column(FEATURE_COLUMNS[0]).is_valid()), config)
    encoder = FrozenEncoder(config, cache.weights_digest, axes, folder)
    sink = io.BytesIO()
    np.save(sink, axes, allow_pickle=False)
    storage.write_bytes(storage.join(folder, _COMPONENTS), sink.getvalue())
    document = {
        "config": configuration.to_document(config),
        "weights_digest": encoder.weights_digest,
        "sha256": encoder.model_sha256,
    }
    content = (json.dumps(document, indent=2) + "\n").encode()
    storage.write_bytes(storage.join(folder, _DESCRIPTION), content)
    return encoder


def _principal_axes(videos: pa.Table, config: Config) -> Float32[np.ndarray, "width D"]:
    """Principal axes of some thousand frames, evenly spaced over the videos."""
    total = sum(videos.column("num_frames").to_pylist()) // config.data.frame_stride
    every = max(1, total // _PCA_FRAMES)
    columns = (videos.column(name).to_pylist() for name in FEATURE_COLUMNS)
    return fit_axes(
        np.concatenate(
            [
                # Copied: a view would keep the windows of all frames of all videos in memory.
                model_input(read_features(part, group), config.model)[::every].copy()
                for part, group in zip(*columns, strict=True)
            ]
        )
    )


def fit_axes(frames: Float[np.ndarray, "frames width"]) -> Float32[np.ndarray, "width D"]:
    """Principal axes of frames, `WIDTH` where they have as many."""
    from sklearn.decomposition import PCA

    # Frames are centred in each video already: only the axes are kept. An exact solution takes minutes.
    kept = min(WIDTH, *frames.shape)
    solver = "randomized" if kept == WIDTH else "full"
    axes = PCA(kept, svd_solver=solver, random_state=0).fit(frames).components_.T
    return np.ascontiguousarray(axes, dtype=np.float32)
