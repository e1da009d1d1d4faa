"""Embedding from cached features, without decoding, and the control without training beside it. No Ray here."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.features import FEATURE_COLUMNS, FeatureCache, read_features, require_cache
from carl_ray.errors import UserError
from carl_ray.evaluation.frozen import CONTROL, FrozenEncoder, fit_frozen, load_frozen
from carl_ray.evaluation.inference import (
    VideoEmbedder,
    WholeVideoEncoder,
    default_device,
)
from carl_ray.model.weights import weights_digest


def cache_of(
    encoders: Sequence[WholeVideoEncoder], config: Config, features: str | None
) -> FeatureCache | None:
    """Cached features that serve these encoders.

    Args:
        encoders: With the backbone that made the features.
        config: Of their run.
        features: URI of the folder; None: the run's `data.features`, if it is there and fits.

    Raises:
        UserError: the named folder has no features, or others.
    """
    cache = require_cache(features) if features is not None else None
    if cache is None and (config.data.features is None or config.model.learnable != "none"):
        return None
    try:
        cache = cache or require_cache(config.data.features or "")
        for encoder in encoders:
            if config.model.temporal_encoder == "clip":
                raise UserError(
                    f"{storage.public_uri(cache.uri)}: features of frames, which no encoder of clips has"
                )
            cache.check(config, weights_digest(encoder.backbone), clean_only=True)
    except UserError:
        if features is not None:
            raise
        return None
    return cache


def frozen_control(out: str, cache: FeatureCache | None, videos: pa.Table) -> FrozenEncoder:
    """The encoder without training beside a trained one in a folder of embeddings, which keeps its components.

    Args:
        out: The folder.
        cache: Features that components are fitted to where it has none yet.
        videos: With these features.
    """
    folder = storage.join(out, CONTROL)
    frozen = load_frozen(folder)
    if frozen is None:
        assert cache is not None
        frozen = fit_frozen(folder, cache, videos)
    return frozen


def cached_rows(
    encoders: Sequence[WholeVideoEncoder], config: Config, videos: pa.Table
) -> Generator[tuple[int, list[Float[np.ndarray, "frames width"]] | str], None, None]:
    """Embed videos from their cached features, in this process; yields as `extraction.embedded_rows`.

    Args:
        encoders: In evaluation mode.
        config: Of the run that trained them.
        videos: Columns `num_frames` and `FEATURE_COLUMNS`.
    """
    embedder = VideoEmbedder(encoders, config, default_device())
    columns = (videos.column(name).to_pylist() for name in (*FEATURE_COLUMNS, "num_frames"))
    for index, (part, group, num_frames) in enumerate(zip(*columns, strict=True)):
        yield index, embedder.embed_features(read_features(part, group), num_frames)
