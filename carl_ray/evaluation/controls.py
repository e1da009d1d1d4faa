"""Controls: embeddings that everything is compared with (paper, section 4). To add one: a line in `CONTROLS`.

trained     H of the trained encoder
untrained   H of the same encoder before its training (`carl_ray.evaluation.inference`)
frozen      windows of features of the frozen backbone, centred (`carl_ray.evaluation.frozen`)
positions   the sine-cosine positional encoding alone, without frame content
chance      an independent random vector for every frame
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Float32

if TYPE_CHECKING:
    from carl_ray.evaluation.embedded_video import EmbeddedVideo
    from carl_ray.evaluation.embeddings import Origin


@dataclass(frozen=True)
class Control:
    """One control."""

    meaning: str
    """What it is, as part of a sentence for people."""
    embed: Callable[[Sequence[EmbeddedVideo], Origin, int], list[Float[np.ndarray, "_ width"]] | None]
    """(videos, origin, seed) to the embeddings of each video; None where they were not computed."""


def _stored(
    name: Literal["untrained", "frozen"], videos: Sequence[EmbeddedVideo], origin: Origin, seed: int
) -> list[Float[np.ndarray, "_ width"]] | None:
    found = [getattr(video, name) for video in videos]
    return None if any(array is None for array in found) else found


def positions(
    videos: Sequence[EmbeddedVideo], origin: Origin, seed: int = 0
) -> list[Float32[np.ndarray, "_ width"]]:
    """The sine-cosine positional encoding of whole videos, spread over [0, T - 1] as in the encoder."""
    import torch

    from carl_ray.model.temporal import frame_positions, sine_cosine_code

    masks = [torch.ones(1, len(video), dtype=torch.bool) for video in videos]
    return [
        sine_cosine_code(frame_positions(mask, origin.num_frames)[0], origin.position_width).numpy()
        for mask in masks
    ]


def chance(
    videos: Sequence[EmbeddedVideo], origin: Origin, seed: int = 0
) -> list[Float32[np.ndarray, "_ width"]]:
    """An independent standard normal vector for every frame, from the seed and the video's id alone."""
    found = []
    for video in videos:
        # A seed contains no colon, so that different keys have different texts.
        key = f"chance:{int(seed)}:{video.video_id}"
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        found.append(rng.standard_normal(video.embeddings.shape, dtype=np.float32))
    return found


CONTROLS: dict[str, Control] = {
    "untrained": Control("the same encoder before its training", partial(_stored, "untrained")),
    "frozen": Control("windows of features of the frozen backbone", partial(_stored, "frozen")),
    "positions": Control(
        "the sine-cosine positional encoding alone, without what the frames show", positions
    ),
    "chance": Control("a random vector for each frame", chance),
}
VARIANTS = ("trained", *CONTROLS)
"""Trained encoder and controls, as named in metrics.json."""


def shown_variants(document: Mapping[str, Any]) -> list[str]:
    """The variants that a table of a document of metrics.json has; `frozen` only where it was evaluated."""
    return [name for name in VARIANTS if name != "frozen" or document.get(name) is not None]


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
    return [
        replace(
            video,
            embeddings=array,
            predicted=None,
            backwards=video.untrained_backwards if variant == "untrained" else None,
        )
        for video, array in zip(videos, embeddings, strict=True)
    ]
