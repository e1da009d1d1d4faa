"""Short ways of tests to the samples of a config's one view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from carl_ray.config import Config
from carl_ray.data.batch import collate
from carl_ray.data.make_views import make_views
from carl_ray.data.manifest import StreamVideo
from carl_ray.data.sample import Sample, sample_spec
from carl_ray.objectives.base import Batch, ViewTensors
from carl_ray.objectives.views import CROPS

_CPU = torch.device("cpu")
Crops = ViewTensors[np.ndarray]


def crops(pixels: Any, timestamps: Any, mask: Any, frame_labels: Any = None) -> Crops:
    """Two crops of which nothing else matters."""
    return ViewTensors(
        pixels=pixels,
        timestamps=timestamps,
        mask=mask,
        parameters=np.zeros((2, 16)),
        boxes=np.zeros((2, 4)),
        flips=np.zeros(2, dtype=bool),
        spans=np.zeros((2, 2)),
        columns={} if frame_labels is None else {"frame_labels": frame_labels},
    )


def make_crops(
    source: Any, video_id: str, num_frames: int, step: float, epoch: int, config: Config, **more: Any
) -> Crops:
    """The crops of a video."""
    return make_views(source, video_id, num_frames, step, epoch, sample_spec(config), **more)[CROPS]


def batch_of(
    views: Sequence[Crops],
    rows: Sequence[int],
    video_ids: Sequence[str],
    config: Config,
    *,
    epoch: int = 0,
    device: torch.device = _CPU,
) -> Batch:
    """The batch of some crops."""
    samples = [
        Sample(row, 0, epoch, video_id, None, {CROPS: view})
        for view, row, video_id in zip(views, rows, video_ids, strict=True)
    ]
    return collate(samples, sample_spec(config), device)


def video_row(uri: str, video_id: str, num_frames: int, frame_step: float = 1.0, **more: Any) -> StreamVideo:
    """A row of the manifest."""
    row = {"video_id": video_id, "uri": uri, "num_frames": num_frames, "frame_step": frame_step}
    return row | {"verified": False} | more  # type: ignore[return-value]
