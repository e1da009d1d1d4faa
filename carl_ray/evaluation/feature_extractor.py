"""Features of a frozen backbone of whole videos, clean and augmented, without Ray.

video ─ decode and augment in chunks (child process) ▶ CNN, a few frames at a time ▶ float16 features of each copy
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float16, UInt8

from carl_ray.config import Config
from carl_ray.data.guard import BadVideoError, FrameReader
from carl_ray.errors import RunError
from carl_ray.model.backbone import Backbone
from carl_ray.model.features import frozen_features

_CHUNK_FRAMES = 64


class FeatureExtractor:
    """Features of a frozen backbone of videos: of their clean frames and of their fixed copies.

    Args:
        backbone: In evaluation mode; moved to `device`.
        config: Of the run: `augment.copies`, `data.frame_stride`.
        device: Where it computes.
    """

    def __init__(self, backbone: Backbone, config: Config, device: torch.device) -> None:
        self._backbone = backbone.to(device)
        self._config = config
        self._reader = FrameReader()
        weakref.finalize(self, self._reader.close)

    def embed(
        self, videos: Sequence[tuple[bytes | str, int, str]]
    ) -> Iterator[list[Float16[np.ndarray, "taken C"]] | BadVideoError | RunError]:
        """The features of each copy, clean first, of several videos.

        Args:
            videos: Content, path or URI; number of frames; id.

        Yields:
            The arrays; for a video that cannot be read a `BadVideoError`, for one that another try may read a
            `RunError`.
        """
        for source, num_frames, video_id in videos:
            try:
                chunks = self.chunks(source, num_frames, video_id)
                yield list(np.concatenate([self.features(chunk) for chunk in chunks], axis=1))
            except (BadVideoError, RunError) as error:
                yield error

    def chunks(
        self, source: bytes | str, num_frames: int, video_id: str
    ) -> Iterator[UInt8[np.ndarray, "copies chunk size size 3"]]:
        """Decoded and augmented frames, in chunks; errors as `FrameReader.read`."""
        size = self._config.augment.image_size
        return self._reader.read(
            source,
            num_frames,
            self._config,
            chunk_frames=_CHUNK_FRAMES,
            short_side=size,
            copies_of=video_id,
        )

    def features(
        self, frames: UInt8[np.ndarray, "copies chunk size size 3"]
    ) -> Float16[np.ndarray, "copies chunk C"]:
        """The backbone's pooled features of frames."""
        flat = frames.reshape(-1, *frames.shape[2:])
        made = frozen_features(self._backbone, flat)
        return made.astype(np.float16).reshape(*frames.shape[:2], -1)
