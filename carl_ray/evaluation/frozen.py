"""An encoder without training: features of a frozen backbone and their motion, reduced over a corpus.

    frames ─ frozen backbone ▶ minus the video's mean ▶ joined with the central difference ▶ PCA ▶ (frames, D)

A folder of such embeddings holds its encoder in `encoder/`: frozen.json (config, digests) and components.npy.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from carl_ray import config as configuration
from carl_ray import presets, storage
from carl_ray.config import Config
from carl_ray.data.features import FEATURE_COLUMNS, FeatureCache, model_input, read_features
from carl_ray.errors import UserError

FROZEN = "frozen"
"""Name of the encoder of the preset `laptop` before any training; also the preset of the origin of its embeddings."""
ENCODER = "encoder"
"""Folder of the encoder in a folder of embeddings."""

CONTROL = "control"
"""The same for the control beside a trained encoder's embeddings."""
WIDTH = 128
"""Components that are kept, at most."""

_PCA_FRAMES = 10_000
_DESCRIPTION, _COMPONENTS = "frozen.json", "components.npy"


def frozen_config(config: Config) -> Config:
    """The config with features that are centred in each video and joined with their central difference."""
    return replace(config, model=replace(config.model, centered=True, motion="difference"))


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
    if uri.startswith("hf://"):  # Trained encoders alone are there.
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
    """
    located = cache.locate(videos)
    config = frozen_config(cache.config)
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
    """Principal axes of some ten thousand frames, evenly spaced over the videos."""
    from sklearn.decomposition import PCA

    total = sum(videos.column("num_frames").to_pylist()) // config.data.frame_stride
    every = max(1, total // _PCA_FRAMES)
    columns = (videos.column(name).to_pylist() for name in FEATURE_COLUMNS)
    frames = np.concatenate(
        [
            model_input(read_features(part, group), config.model)[::every]
            for part, group in zip(*columns, strict=True)
        ]
    )
    # Frames are centred in each video already: only the axes are kept.
    solver = "covariance_eigh" if len(frames) > frames.shape[1] else "full"
    axes = PCA(min(WIDTH, *frames.shape), svd_solver=solver).fit(frames).components_.T
    return np.ascontiguousarray(axes, dtype=np.float32)
