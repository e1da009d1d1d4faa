"""Frame stride, T and crop of a run, from the lengths and frame rates of its videos. No Ray and no torch here."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from carl_ray.config import Config

FRAMES_PER_SECOND = 9.0
"""Frames of a second of video that a model sees: every third one of the usual 24 to 30."""
NUM_FRAMES = 32
"""T where videos are long enough: longer views gained nothing on exercise clips of 3 to 20 s."""
NUM_STEPS = 300
_LEAST_STRIDES, _MOST_STRIDES = 48, 600
_UNKNOWN_RATE = 30.0
_CHOSEN = (
    "data.frame_stride",
    "views.max_crop_ratio",
    "model.num_frames",
    "objective.variance",
    "training.epochs",
)


@dataclass(frozen=True)
class Timing:
    """Frame stride, T and longest crop, with the reason."""

    frame_stride: int
    num_frames: int
    max_crop_ratio: float
    reason: str


def choose_timing(num_frames: np.ndarray, fps: np.ndarray) -> Timing:
    """Choose frame stride and T for videos.

    The stride gives about nine frames a second; fewer where the median video would have over 600 of them, more where it
    would have under 48. T is 32, or less where a crop of 1.5 T would not fit into the median video.

    Args:
        num_frames: Frames of each video.
        fps: Frame rate of each; NaN where unknown.
    """
    rate = float(np.nanmedian(fps)) if np.isfinite(fps).any() else _UNKNOWN_RATE
    length = float(np.median(num_frames))
    stride = max(1, round(rate / FRAMES_PER_SECOND), math.ceil(length / _MOST_STRIDES))
    stride = max(1, min(stride, int(length // _LEAST_STRIDES)))
    taken, ratio = math.ceil(length / stride), 1.5
    time = max(4, min(NUM_FRAMES, int(taken / ratio)))
    reason = (
        f"the median video has {length:.0f} frames at {rate:.3g} per second ({length / rate:.1f} s): "
        f"{'every frame' if stride == 1 else f'one of {stride} frames'} makes {taken} at {rate / stride:.3g} per second"
        f", and views of T = {time} show {time * stride / rate:.1f} s, from crops of up to {ratio:g} T"
    )
    return Timing(stride, time, ratio, reason)


def fit_to_videos(config: Config, videos: pa.Table, given: Collection[str] = ()) -> tuple[Config, Timing]:
    """The config with stride, T, crop, variance and epochs for videos.

    The variance is that of a step in time between two frames used; the epochs make about 300 steps.

    Args:
        config: Usually the preset `laptop`.
        videos: Training videos: `num_frames`, `fps`.
        given: Dotted names of fields that stay as they are.
    """
    rates = videos.column("fps").to_numpy().astype(float)
    timing = choose_timing(videos.column("num_frames").to_numpy(), rates)
    batch_size = config.training.global_batch_size
    stride = config.data.frame_stride if "data.frame_stride" in given else timing.frame_stride
    epochs = math.ceil(NUM_STEPS * batch_size / max(1, videos.num_rows))
    values = (stride, timing.max_crop_ratio, timing.num_frames, float(stride**2), epochs)
    chosen = zip(_CHOSEN, values, strict=True)
    return with_chosen(config, {name: value for name, value in chosen if name not in given}), timing


def chosen_fields(config: Config) -> dict[str, object]:
    """The fields that `fit_to_videos` may change, by dotted name."""
    fields = ((name, *name.split(".")) for name in _CHOSEN)
    return {name: getattr(getattr(config, section), field, None) for name, section, field in fields}


def with_chosen(config: Config, values: Mapping[str, object]) -> Config:
    """The config with other values in fields of `chosen_fields`, as far as its objective has them."""
    for name, value in values.items():
        section, field = name.split(".")
        options = getattr(config, section)
        if hasattr(options, field):
            config = replace(config, **{section: replace(options, **{field: value})})
    return config
