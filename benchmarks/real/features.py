"""Features of a frozen backbone of the videos, computed once in this process; and runs that train on them. No Ray.

A folder of features is that of `carl-ray cache`: the same files, backbone and copies.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from benchmarks.real.videos import Video
from carl_ray.config import Config
from carl_ray.data.features import FEATURE_COLUMNS, FeatureCache, create_cache, open_cache, write_part


def cache(videos: Sequence[Video], folder: str, config: Config) -> FeatureCache:
    """The features of videos, computing what the folder lacks, a part a video.

    Args:
        videos: To be there.
        folder: New, or begun with the same config.
        config: Backbone, copies and frame stride.
    """
    import torch

    from carl_ray.evaluation.feature_extractor import FeatureExtractor
    from carl_ray.evaluation.inference import untrained_encoder
    from carl_ray.model.weights import weights_digest

    backbone = untrained_encoder(config).backbone
    digest = weights_digest(backbone)
    made = open_cache(folder) or create_cache(folder, config, digest, backbone.pooled_channels)
    made.check(config, digest)
    rows = table(videos)
    missing = made.locate(rows).column(FEATURE_COLUMNS[0]).is_null().to_pylist()
    extractor = FeatureExtractor(backbone, config, torch.device("cpu"))
    for number, (video, lacks) in enumerate(zip(videos, missing, strict=True)):
        if not lacks:
            continue
        (arrays,) = extractor.embed([(str(video.path), video.num_frames, video.video_id)])
        if isinstance(arrays, Exception):
            print(f"{video.video_id}: {arrays}", file=sys.stderr)
            continue
        write_part(folder, rows.slice(number, 1), [arrays])
        print(f"features {number + 1}/{len(videos)}: {video.video_id}", file=sys.stderr, flush=True)
    return made


def table(videos: Sequence[Video]) -> pa.Table:
    """The videos as rows that `FeatureCache.locate` takes."""
    return pa.table(
        {
            "video_id": [video.video_id for video in videos],
            "content_hash": [_digest(video.path) for video in videos],
            "num_frames": [video.num_frames for video in videos],
        }
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
