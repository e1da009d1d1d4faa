"""Shapes and sizes in memory of the data of a run. No Ray and no torch here."""

from __future__ import annotations

import math

from carl_ray.config import Config

NUM_COLOR_VALUES = 16
"""Length of `AugmentParameters.to_vector`."""


def frame_shape(config: Config) -> tuple[int, ...]:
    """Shape of one frame of a view, as shipped: (S, S, 3), or YUV 4:2:0 in one row."""
    size = config.augment.image_size
    return (size * size * 3 // 2,) if config.augment.pixels == "yuv420" else (size, size, 3)


def pair_bytes(config: Config) -> int:
    """Bytes of the frames of one pair of views, as shipped."""
    return 2 * config.model.num_frames * math.prod(frame_shape(config))


def load_task_bytes(config: Config) -> int:
    """Memory of a loading task: two interpreters, decoded frames (16:9), a view pair."""
    decoded = 2 * config.model.num_frames * config.data.short_side**2 * 16 // 9 * 3
    return 480 * 2**20 + 2 * decoded + 2 * pair_bytes(config)
