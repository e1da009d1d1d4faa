"""Train an encoder on cached features in this process, with the package's plan, views, learner and step. No Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np

from benchmarks.real.features import table
from benchmarks.real.videos import Video
from carl_ray.config import Config
from carl_ray.data.features import FEATURE_COLUMNS, FeatureCache, cached_views, model_input, read_features
from carl_ray.data.plan import Plan, training_plan

if TYPE_CHECKING:
    from carl_ray.data.manifest import StreamVideo
    from carl_ray.model.encoder import FrameLevelVideoEncoder

_read = lru_cache(maxsize=None)(read_features)


def train(
    config: Config, cache: FeatureCache, videos: Sequence[Video], num_steps: int
) -> FrameLevelVideoEncoder:
    """The encoder after some steps, or the untrained one after none.

    Args:
        config: Its `training.seed` decides weights, order and views.
        cache: Features of the videos.
        videos: To train on; objectives that pair videos pair those of one action.
        num_steps: Steps of the run.
    """
    places = cache.locate_all(table(videos)).select(FEATURE_COLUMNS).to_pylist()
    rows = [
        cast(
            "StreamVideo",
            {"video_id": video.video_id, "num_frames": video.num_frames, "frame_step": 1.0, **place},
        )
        for video, place in zip(videos, places, strict=True)
    ]
    config = replace(config, data=replace(config.data, features=cache.uri, feature_channels=cache.channels))
    size, codes = config.training.global_batch_size, None
    if config.objective.pairs_videos:
        codes = np.unique([video.action for video in videos], return_inverse=True)[1]
    epochs = 1 + num_steps * size // len(videos)
    return train_rows(
        config, rows, training_plan(config.training.seed, len(videos), size, epochs, codes), num_steps
    )


def train_rows(
    config: Config,
    rows: Sequence[StreamVideo],
    plan: Plan,
    num_steps: int,
) -> FrameLevelVideoEncoder:
    """As `train`, of rows of a manifest with `FEATURE_COLUMNS`, in the order of a plan."""
    import torch

    from carl_ray.data.batch import collate
    from carl_ray.data.sample import Sample, sample_spec
    from carl_ray.model.encoder import FrameLevelVideoEncoder
    from carl_ray.training.step import TrainingStep

    spec, size = sample_spec(config), config.training.global_batch_size
    step = TrainingStep(config, torch.device("cpu"), max(1, num_steps))
    for number in range(num_steps):
        samples = []
        for place in plan.rows(number * size, (number + 1) * size):
            video = rows[place.video_index]
            views = cached_views(video, place.epoch, spec, _read)
            samples.append(Sample(place.row, place.step, place.epoch, video["video_id"], None, views))
        step.train(collate(samples, spec), number)
    encoder = step.model.encoder.eval()
    assert isinstance(encoder, FrameLevelVideoEncoder)
    return encoder


def embed(
    encoder: FrameLevelVideoEncoder, config: Config, features: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """H of the frames that have features, by video."""
    import torch

    return {
        name: encoder.embed_features(torch.from_numpy(model_input(array, config.model))).numpy()
        for name, array in features.items()
    }


def clean_features(cache: FeatureCache, videos: Sequence[Video]) -> dict[str, np.ndarray]:
    """Features of the clean frames of videos, float32, by id."""
    places = cache.locate_all(table(videos)).select(FEATURE_COLUMNS).to_pylist()
    return {
        video.video_id: _read(*place.values(), 0).astype(np.float32)
        for video, place in zip(videos, places, strict=True)
    }
