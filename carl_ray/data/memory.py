"""How many bytes the data of a run takes on its way. Free of Ray and torch."""

from __future__ import annotations

from carl_ray.config import Config


def pair_bytes(config: Config) -> int:
    """Bytes of the frames of one pair of views, as shipped."""
    return 2 * config.model.num_frames * config.augment.image_size**2 * 3


def load_task_bytes(config: Config) -> int:
    """Heap that one loading task may need: an interpreter, decoded frames (16:9), and the pair being made."""
    decoded = 2 * config.model.num_frames * config.data.short_side**2 * 16 // 9 * 3
    return 400 * 2**20 + 2 * decoded + 2 * pair_bytes(config)
