"""Controls: embeddings that everything is compared with (paper, section 4). To add one: a line in `CONTROLS`.

trained     H of the trained encoder
untrained   H of the same encoder before its training (`carl_ray.evaluation.inference`)
positions   the sine-cosine positional encoding alone, without frame content
chance      an independent random vector for every frame
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32

if TYPE_CHECKING:
    from carl_ray.evaluation.embeddings import EmbeddedVideo, Origin


@dataclass(frozen=True)
class Control:
    """One control."""

    meaning: str
    """What it is, as part of a sentence for people."""
    embed: Callable[[Sequence[EmbeddedVideo], Origin, int], list[Float[np.ndarray, "_ width"]] | None]
    """(videos, origin, seed) to the embeddings of each video; None where they were not computed."""


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
    import torch

    from carl_ray.model.temporal import frame_positions, sine_cosine_code

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


def _untrained(videos: Sequence[EmbeddedVideo], origin: Origin, seed: int) -> list[np.ndarray] | None:
    found = [video.untrained for video in videos if video.untrained is not None]
    return found if len(found) == len(videos) else None


def _positions(videos: Sequence[EmbeddedVideo], origin: Origin, seed: int) -> list[np.ndarray]:
    lengths = [len(video) for video in videos]
    return position_embeddings(lengths, num_frames=origin.num_frames, width=origin.position_width)


def _chance(videos: Sequence[EmbeddedVideo], origin: Origin, seed: int) -> list[np.ndarray]:
    width = videos[0].embeddings.shape[1] if videos else 1
    return chance_embeddings([len(v) for v in videos], [v.video_id for v in videos], width=width, seed=seed)


CONTROLS: dict[str, Control] = {
    "untrained": Control("the same encoder before its training", _untrained),
    "positions": Control(
        "the sine-cosine positional encoding alone, without what the frames show", _positions
    ),
    "chance": Control("a random vector for each frame", _chance),
}
VARIANTS = ("trained", *CONTROLS)
"""Trained encoder and controls, as named in metrics.json."""


def embedded_by(
    variant: str, videos: Sequence[EmbeddedVideo], origin: Origin, seed: int
) -> list[EmbeddedVideo] | None:
    """The videos with the embeddings of a variant; None where these were not computed.

    Args:
        variant: One of `VARIANTS`.
        videos: With the embeddings of the trained encoder.
        origin: Of these.
        seed: Of random vectors.
    """
    if variant == "trained":
        return list(videos)
    embeddings = CONTROLS[variant].embed(videos, origin, seed)
    if embeddings is None:
        return None
    return [replace(video, embeddings=array) for video, array in zip(videos, embeddings, strict=True)]
