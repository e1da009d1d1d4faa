"""Time and size of a run on cached features, told before it starts. No Ray here."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from carl_ray.config import Config
from carl_ray.data.features import FEATURE_COLUMNS, open_cache
from carl_ray.data.guard import BadVideoError
from carl_ray.data.plan import training_plan
from carl_ray.data.sample import Sample, masked_views, sample_spec
from carl_ray.errors import RunError
from carl_ray.evaluation.feature_extractor import FeatureExtractor
from carl_ray.evaluation.inference import untrained_encoder
from carl_ray.machine import available_cores
from carl_ray.training.cluster_plan import measure_step, torch_threads

_START_SECONDS = 20.0
"""Of Ray and its processes, before the first video is cached and before the first step."""
_END_SECONDS = 45.0
"""Of embeddings, evaluation and report of some dozens of clips, with which a run of `laptop` ends."""
_MEASURED_VIDEOS, _MEASURED_SECONDS = 3, 10.0
_PROCESS_BYTES = 900 * 2**20
"""Of each process that caches, with its decoder, and of the trainer."""


@dataclass(frozen=True)
class Estimate:
    """Size of a run, and its wall time on this machine."""

    videos: dict[str, int]
    """By split."""
    num_steps: int
    batch_size: int
    num_cached: int
    """Frames to be cached, copies counted."""
    cache_bytes: int
    """Of the features of all videos."""
    caching_seconds: float
    training_seconds: float

    def __str__(self) -> str:
        split = ", ".join(f"{count} {name}" for name, count in self.videos.items())
        seconds = self.caching_seconds + self.training_seconds + _END_SECONDS
        memory = _PROCESS_BYTES * (1 + available_cores()) + 2 * 2**30
        return (
            f"videos: {split}; {self.num_steps} steps of {self.batch_size}; about {_minutes(seconds)}: "
            f"{_minutes(self.caching_seconds)} caching {self.num_cached:,} frames and copies "
            f"({self.cache_bytes / 1e6:,.0f} MB), "
            f"{_minutes(self.training_seconds)} training, {_minutes(_END_SECONDS)} embeddings and report; "
            f"memory about {memory / 2**30:.0f} GiB"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def estimate_run(config: Config, videos: pa.Table) -> Estimate:
    """Measure caching and a training step on one thread; estimate the run on this machine.

    Args:
        config: With `data.features`, whose videos need no caching.
        videos: All rows of the manifest: `video_id`, `uri`, `content_hash`, `num_frames`, `split`.

    Raises:
        RunError: none of the first videos can be read.
    """
    splits = videos.column("split").fill_null("train").to_pylist()
    counts = {name: splits.count(name) for name in dict.fromkeys(["train", *sorted(set(splits))])}
    cache = open_cache(config.data.features) if config.data.features else None
    missing = videos
    if cache is not None:
        missing = videos.filter(cache.locate(videos).column(FEATURE_COLUMNS[0]).is_null())
    copies = 1 + (config.augment.copies or 0)
    encoder = untrained_encoder(config)
    caching = 0.0
    if missing.num_rows:
        with torch_threads(1):
            extractor = FeatureExtractor(encoder.backbone, config, torch.device("cpu"))
            rate = _seconds_per_frame(extractor, missing)
        caching = _START_SECONDS + rate * _taken(missing, config) / available_cores()
    num_steps = training_plan(
        config.training.seed,
        counts[config.data.train_split],
        config.training.global_batch_size,
        config.training.epochs,
    ).num_steps
    channels = encoder.backbone.pooled_channels
    return Estimate(
        videos=counts,
        num_steps=num_steps,
        batch_size=config.training.global_batch_size,
        num_cached=copies * _taken(missing, config),
        cache_bytes=2 * channels * copies * _taken(videos, config),
        caching_seconds=caching,
        training_seconds=_START_SECONDS + num_steps * _step_seconds(config, channels),
    )


def _taken(videos: pa.Table, config: Config) -> int:
    return sum(math.ceil(n / config.data.frame_stride) for n in videos.column("num_frames").to_pylist())


def _seconds_per_frame(extractor: FeatureExtractor, videos: pa.Table) -> float:
    """CPU seconds of a frame with all its copies, decoded, augmented and encoded."""
    median = statistics.median(videos.column("num_frames").to_pylist())
    rows = sorted(videos.to_pylist(), key=lambda row: abs(row["num_frames"] - min(median, 600)))
    rates: list[float] = []
    began, reason = time.perf_counter(), ""
    for row in [rows[0], *rows]:  # The first one twice: its process starts and torch warms up.
        chunks, times = [], [time.perf_counter()]
        try:
            for chunk in itertools.islice(
                extractor.chunks(row["uri"], row["num_frames"], row["video_id"]), 4
            ):
                chunks.append(chunk)
                times.append(time.perf_counter())
        except BadVideoError as error:
            reason = f"{row['video_id']}: {error}"
            continue
        # Of a long video without the first chunk: its process was stopped and has started anew.
        skipped = int(len(chunks) > 1)
        made = (times[-1] - times[skipped]) / sum(chunk.shape[1] for chunk in chunks[skipped:])
        piece, started = chunks[0][:, :16], time.perf_counter()
        extractor.features(piece)
        rates.append(made + (time.perf_counter() - started) / piece.shape[1])
        spent = time.perf_counter() - began
        if len(rates) > _MEASURED_VIDEOS or (len(rates) > 1 and spent > _MEASURED_SECONDS):
            break
    if not rates:
        raise RunError(f"no video can be read; {reason}")
    return statistics.mean(rates[1:] or rates)


def _step_seconds(config: Config, channels: int) -> float:
    """Seconds of a training step on one thread, on features of zeros."""
    config = replace(config, data=replace(config.data, feature_channels=channels))
    views = {
        name: replace(view, mask=np.ones_like(view.mask))
        for name, view in masked_views(sample_spec(config)).items()
    }
    sample = Sample(0, 0, 0, "", None, views)
    size = config.training.global_batch_size
    return statistics.median(measure_step([sample], config, size, torch.device("cpu"), 3, lambda _: None))
