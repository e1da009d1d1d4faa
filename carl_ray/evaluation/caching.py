"""Features of all videos of a manifest, and their embeddings without training; Ray computes them, resumably.

The driver writes a part every half minute, so that an interruption loses no more. Called again, it adds the videos that
are missing. torch and Ray are imported lazily: mistakes are reported without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from carl_ray import presets, storage
from carl_ray.config import Config
from carl_ray.data.features import (
    FEATURE_COLUMNS,
    FeatureCache,
    create_cache,
    default_folder,
    open_cache,
    require_cache,
    write_part,
)
from carl_ray.data.timing import fit_to_videos
from carl_ray.evaluation.corpus import EmbeddingSettings, embed_corpus, read_videos
from carl_ray.evaluation.frozen import ENCODER, fit_frozen, load_frozen
from carl_ray.evaluation.part_writer import EmbeddingResult, PartWriter, write_rows
from carl_ray.lease import hold, refuse_if_held
from carl_ray.model.pretrained import find_weights

_PART_SECONDS = 30.0


def cache_features(
    manifest: str,
    out: str,
    config: Config,
    settings: EmbeddingSettings | None = None,
    *,
    splits: Sequence[str] | None = None,
) -> EmbeddingResult:
    """Compute the features of the videos of a manifest that a folder lacks.

    Uses the Ray cluster that this process is connected to, or connects as `carl_ray.session.connect`, but only where
    videos are missing. Progress goes to standard error.

    Args:
        manifest: URI of the manifest.
        out: Folder of the features, new or begun with the same backbone, weights, augmentation and frame stride.
        config: Its backbone, `data.frame_stride` and `augment`, of which `copies` are cached beside the clean frames.
        settings: Workers; None: the defaults.
        splits: Only videos of these splits; those without one count as "train".

    Raises:
        UserError: the manifest is missing or malformed, `out` holds other features, or another process writes there.
        RunError: storage failed, or more videos than `data.max_bad_fraction` could not be read.
    """
    settings = settings or EmbeddingSettings()
    videos = read_videos(manifest, splits)
    find_weights(config.model)
    cache = open_cache(out)
    from carl_ray.evaluation.inference import untrained_encoder
    from carl_ray.model.weights import weights_digest

    encoder = untrained_encoder(config)
    digest = weights_digest(encoder.backbone)
    if cache is not None:
        cache.check(config, digest)
        missing = _missing(cache, videos)
        if missing.num_rows == 0:
            return EmbeddingResult(videos.num_rows, False)
    refuse_if_held(out)
    from carl_ray.evaluation import extraction
    from carl_ray.session import connect

    with connect(), hold(out) as (lease, _):
        cache = open_cache(out) or create_cache(out, config, digest, encoder.backbone.pooled_channels)
        cache.check(config, digest)
        missing = _missing(cache, videos)
        result = EmbeddingResult(videos.num_rows - missing.num_rows, False)
        extraction.check_resources(settings)

        def write(taken: list[tuple[pa.Table, int, list[np.ndarray]]]) -> None:
            rows = pa.concat_tables(videos.slice(index, 1) for videos, index, _ in taken)
            write_part(out, rows, [arrays for _, _, arrays in taken])

        made_with = replace(
            cache.config, model=config.model
        )  # The encoder's, as it is built anew in the actors.
        rows = extraction.embedded_rows([encoder], made_with, missing, settings, features=True)
        write_rows(rows, missing, result, PartWriter(out, lease, write, _PART_SECONDS), "cached")
    result.check(videos.num_rows, config, "read")
    return result


def embed_frozen(
    manifest: str,
    out: str,
    settings: EmbeddingSettings | None = None,
    *,
    splits: Sequence[str] | None = None,
    features: str | None = None,
) -> EmbeddingResult:
    """Embed the videos of a manifest with a frozen backbone; no training.

    The principal axes are those of the first call's videos; later calls add videos with the same.

    Args:
        manifest: URI of the manifest.
        out: Folder of the embeddings, new or begun so.
        settings: Workers and precision; None: the defaults.
        splits: Only videos of these splits; those without one count as "train".
        features: Folder of features, whose backbone is taken and to which missing videos are added; None: beside the
            manifest.

    Raises:
        UserError: the manifest is missing or malformed, or a folder holds something else.
        RunError: storage failed, or too many videos could not be read.
    """
    settings = settings or EmbeddingSettings()
    videos = read_videos(manifest, splits)
    there = load_frozen(storage.absolute(out))  # A folder, also where it is called "frozen".
    cache = None if features is None else open_cache(features)
    source = cache or there
    config = _clean_config(videos) if source is None else source.config
    features = features or default_folder(manifest, config)
    cached = cache_features(manifest, features, config, settings, splits=splits)
    cache = require_cache(features)
    if there is not None:
        cache.check(there.config, there.weights_digest or "", clean_only=True)
    if there is None:
        refuse_if_held(out)
        there = fit_frozen(storage.join(storage.absolute(out), ENCODER), cache, videos)
    settings = replace(settings, untrained=False)
    result = embed_corpus(there, manifest, out, settings, splits=splits, features=features)
    result.bad_videos, result.seconds = cached.bad_videos, result.seconds + cached.seconds
    return result


def _clean_config(videos: pa.Table) -> Config:
    """The preset `laptop` without copies, with a frame stride for the videos."""
    laptop = presets.preset("laptop")
    config, timing = fit_to_videos(replace(laptop, augment=replace(laptop.augment, copies=0)), videos)
    print(f"frame stride {config.data.frame_stride}: {timing.reason}", flush=True)
    return config


def _missing(cache: FeatureCache, videos: pa.Table) -> pa.Table:
    """The videos without features."""
    return videos.filter(cache.locate(videos).column(FEATURE_COLUMNS[0]).is_null())
