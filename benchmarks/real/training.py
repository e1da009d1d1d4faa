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
    import torch

    from carl_ray.data.batch import collate
    from carl_ray.data.plan import training_plan
    from carl_ray.data.sample import Sample, sample_spec
    from carl_ray.model.encoder import FrameLevelVideoEncoder
    from carl_ray.training.step import TrainingStep

    config = replace(config, data=replace(config.data, features=cache.uri, feature_channels=cache.channels))
    spec, size = sample_spec(config), config.training.global_batch_size
    step = TrainingStep(config, torch.device("cpu"), max(1, num_steps))
    codes = None
    if config.objective.pairs_videos:
        codes = np.unique([video.action for video in videos], return_inverse=True)[1]
    epochs = 1 + num_steps * size // len(videos)
    plan = training_plan(config.training.seed, len(videos), size, epochs, codes)
    places = cache.locate_all(table(videos)).select(FEATURE_COLUMNS).to_pylist()
    for number in range(num_steps):
        samples = []
        for row in plan.rows(number * size, (number + 1) * size):
            video = videos[row.video_index]
            given = {"video_id": video.video_id, "num_frames": video.num_frames, "frame_step": 1.0}
            located = cast("StreamVideo", {**given, **places[row.video_index]})
            views = cached_views(located, row.epoch, spec, _read)
            samples.append(Sample(row.row, row.step, row.epoch, video.video_id, None, views))
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
