"""Frame stride and T follow the videos."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from carl_ray import presets
from carl_ray.data.timing import choose_timing, fit_to_videos


@pytest.mark.parametrize(
    ("seconds", "fps", "stride", "time"),
    [
        (10, 30, 3, 32),
        (10, 24, 3, 32),
        (10, 60, 7, 32),
        (2.5, 30, 1, 32),  # a gesture: every frame
        (1, 30, 1, 20),  # a crop of 1.5 T is the video
        (5, np.nan, 3, 32),  # taken to be 30 frames per second
        (600, 30, 30, 32),
    ],
)
def test_stride_and_length(seconds: float, fps: float, stride: int, time: int) -> None:
    frames = np.array([seconds * (30 if np.isnan(fps) else fps)] * 3)
    timing = choose_timing(frames, np.array([fps] * 3))
    assert (timing.frame_stride, timing.num_frames) == (stride, time)
    assert timing.max_crop_ratio * time <= max(np.ceil(frames[0] / stride), 6)


def test_the_config_keeps_what_was_given() -> None:
    videos = pa.table({"num_frames": [300] * 36, "fps": [60.0] * 36})
    config, timing = fit_to_videos(presets.preset("laptop"), videos)
    assert (config.data.frame_stride, config.objective.variance) == (
        timing.frame_stride,
        timing.frame_stride**2,
    )
    assert config.training.epochs * 36 // 8 in range(300, 306)
    given = {"data.frame_stride", "training.epochs"}
    kept, _ = fit_to_videos(presets.preset("laptop"), videos, given)
    assert (kept.data.frame_stride, kept.training.epochs, kept.objective.variance) == (3, 67, 9.0)
