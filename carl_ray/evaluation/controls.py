"""Control embeddings without learning (paper, section 4).

The third control, the untrained encoder, is in `carl_ray.evaluation.inference`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32

from carl_ray.model.temporal import frame_positions, sine_cosine_code


def position_embeddings(
    lengths: Sequence[int], *, num_frames: int, width: int
) -> list[Float32[np.ndarray, "_ width"]]:
    """The sine-cosine positional encoding of whole videos, and nothing else.

    Args:
        lengths: Frames of each video.
        num_frames: T of the encoder; the positions of a video are spread over [0, T - 1].
        width: Of the Transformer, even.

    Raises:
        ValueError: an odd width, or a number below 1.
    """
    if width < 2 or width % 2:
        raise ValueError(f"width must be even and positive, got {width}")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    videos = []
    for length in lengths:
        positions = frame_positions(torch.ones(1, length, dtype=torch.bool), num_frames)
        videos.append(sine_cosine_code(positions[0], width).numpy())
    return videos


def chance_embeddings(
    lengths: Sequence[int], video_ids: Sequence[str], *, width: int, seed: int = 0
) -> list[Float32[np.ndarray, "_ width"]]:
    """An independent standard normal vector for every frame.

    A video's frames depend on the seed and its id alone, not on the other videos.

    Args:
        lengths: Frames of each video.
        video_ids: Id of each video.
        width: Of the vectors.
        seed: Of all draws.

    Raises:
        ValueError: other numbers of lengths and ids, or a width below 1.
    """
    if len(lengths) != len(video_ids):
        raise ValueError(f"expected an id for each of {len(lengths)} videos, got {len(video_ids)}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    return [
        _generator(seed, video_id).standard_normal((length, width), dtype=np.float32)
        for length, video_id in zip(lengths, video_ids, strict=True)
    ]


def _generator(seed: int, video_id: str) -> np.random.Generator:
    # A seed contains no colon, so that different keys have different texts.
    key = f"chance:{int(seed)}:{video_id}"
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
