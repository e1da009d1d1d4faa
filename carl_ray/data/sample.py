"""Make two augmented views of a video, and batches of them.

    bytes ─ make_view_pair ▶ ViewPair (uint8, NumPy, on a CPU worker) ─ collate ▶ Batch (tensors of a trainer)

A pair is a pure function of (seed, epoch, video) and the configuration. No Ray here: the stream of
`carl_ray.data.stream`, a plain DataLoader and a notebook call the same functions.

Legend: B videos, 2 views, T frames of a view, S x S pixels, K numbers of a colour draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from carl_ray.config import Config
from carl_ray.data.augment import AugmentParameters, apply_color, apply_geometry, draw_parameters
from carl_ray.data.decode import read_frames
from carl_ray.data.memory import NUM_COLOR_VALUES, frame_shape
from carl_ray.data.pixels import from_yuv420, to_yuv420
from carl_ray.data.randomness import ViewNumber, sample_generator, sample_seed
from carl_ray.data.view_pair import ViewPair, array_types
from carl_ray.data.views import ViewIndices, sample_views

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """Videos of one worker in one step; without any, one fully masked video."""

    frames: UInt8[Tensor, "batch 2 time *frame"]
    timestamps: Float64[Tensor, "batch 2 time"]
    frame_mask: Bool[Tensor, "batch 2 time"]
    frame_labels: Int64[Tensor, "batch 2 time"]
    rows: Int64[Tensor, " batch"]
    """Rows of the plan; 2 k and 2 k + 1 are a pair where the plan has pairs. -1 for the masked video."""
    color: Float64[np.ndarray, "batch 2 values"]
    sample_seeds: Int64[Tensor, "batch 2"]
    """Seeds of the model's own draws for a view (dropout)."""


def make_view_pair(
    source: bytes | str,
    video_id: str,
    num_video_frames: int,
    frame_step: float,
    epoch: int,
    config: Config,
    *,
    verified: bool = False,
    frame_labels: Sequence[int] | None = None,
) -> ViewPair:
    """The two augmented views of one video in one epoch (paper, section 3.2).

    The union of both views' frames is decoded once, resized while decoding.

    Args:
        source: The file's content, or its path or URI.
        video_id: `video_id` of the manifest; with the run's seed and the epoch it determines every draw.
        num_video_frames: Frames of the video.
        frame_step: Timestamp of frame i is i * frame_step.
        epoch: Epoch of the run.
        config: The run.
        verified: Every frame was decoded once to count them: the decoder may rely on it.
        frame_labels: Class of every frame of the video, -1 for none; None where it has no labels.

    Raises:
        DecodeError: the video cannot be read.
    """
    seed, time = config.training.seed, config.model.num_frames
    views = sample_views(
        num_video_frames,
        time,
        max_crop_ratio=config.views.max_crop_ratio,
        min_overlap=config.views.min_overlap,
        sampling=config.views.sampling,
        crop=config.views.crop,
        rng=sample_generator(seed, epoch, video_id, ViewNumber.SHARED),
    )
    needed = np.unique(np.concatenate([view.frame_indices[view.frame_mask] for view in views]))
    decoded = read_frames(
        source,
        needed,
        short_side=config.data.short_side,
        decoder=config.data.decoder,
        num_frames=num_video_frames if verified else None,
    )
    size = config.augment.image_size
    frames = np.zeros((2, time, *frame_shape(config)), dtype=np.uint8)
    color = np.zeros((2, NUM_COLOR_VALUES))
    for number, view in enumerate(views):
        rng = sample_generator(seed, epoch, video_id, ViewNumber.FIRST + number)
        parameters = draw_parameters(config.augment, decoded.shape[1], decoded.shape[2], rng)
        places = np.searchsorted(needed, view.frame_indices[view.frame_mask])
        # Into the output array without a copy if it has this layout: new pages are slow.
        whole = view.frame_mask.all() and config.augment.pixels == "rgb"
        augmented = apply_geometry(
            decoded, parameters, size, places, torch.from_numpy(frames[number]) if whole else None
        )
        if config.augment.color_on == "workers":
            apply_color(augmented, parameters, config.augment.color, in_place=True)
        if not whole:
            packed = to_yuv420(augmented) if config.augment.pixels == "yuv420" else augmented.numpy()
            frames[number, view.frame_mask] = packed
        color[number] = parameters.to_vector()
    return ViewPair(
        frames=frames,
        timestamps=np.stack([view.frame_indices * float(frame_step) for view in views]),
        frame_mask=np.stack([view.frame_mask for view in views]),
        frame_labels=np.stack([_labels_of(view, frame_labels) for view in views]),
        color=color,
    )


def _labels_of(view: ViewIndices, frame_labels: Sequence[int] | None) -> Int64[np.ndarray, " time"]:
    if frame_labels is None:
        return np.full(len(view.frame_indices), -1, np.int64)
    return np.where(view.frame_mask, np.asarray(frame_labels, np.int64)[view.frame_indices], -1)


def view_seeds(seed: int, epoch: int, video_id: str) -> tuple[int, int]:
    """Seeds of the model's draws (dropout) for the two views of a video in an epoch."""
    first, second = (
        sample_seed(seed, epoch, video_id, view) for view in (ViewNumber.FIRST, ViewNumber.SECOND)
    )
    return first, second


def collate(
    pairs: Sequence[ViewPair],
    rows: Sequence[int],
    seeds: Sequence[tuple[int, int]],
    config: Config,
    device: torch.device = _CPU,
) -> Batch:
    """Collate videos into a batch in CPU memory; without any, one masked video.

    Args:
        pairs: Views of each video.
        rows: Row of the plan of each.
        seeds: `view_seeds` of each.
        config: The run.
        device: Device of the trainer. For a GPU the frames are in pinned memory, for asynchronous copies.
    """
    time = config.model.num_frames
    if not pairs:
        empty = {name: np.zeros(shape, dtype) for name, (dtype, shape) in array_types(config).items()}
        pairs = [ViewPair(**empty | {"frame_labels": np.full((2, time), -1)})]
        rows, seeds = [-1], [(0, 0)]
    # Pinned for this GPU: the thread may have chosen none yet.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        frames = torch.empty(
            (len(pairs), 2, time, *frame_shape(config)), dtype=torch.uint8, pin_memory=device.type == "cuda"
        )
    np.stack([pair.frames for pair in pairs], out=frames.numpy())
    return Batch(
        frames=frames,
        timestamps=torch.from_numpy(np.stack([pair.timestamps for pair in pairs])),
        frame_mask=torch.from_numpy(np.stack([pair.frame_mask for pair in pairs])),
        frame_labels=torch.from_numpy(np.stack([pair.frame_labels for pair in pairs])),
        rows=torch.tensor(rows, dtype=torch.int64),
        color=np.stack([pair.color for pair in pairs]),
        sample_seeds=torch.tensor(seeds, dtype=torch.int64),
    )


def frames_on_device(
    batch: Batch, config: Config, device: torch.device
) -> UInt8[Tensor, "batch 2 time size size 3"]:
    """The input frames of the encoder before normalisation, on the trainer's device.

    Converts YUV 4:2:0 to RGB, and computes colour and blur, if the workers have not.
    """
    frames = batch.frames.to(device, non_blocking=True)
    if config.augment.pixels == "yuv420":
        frames = from_yuv420(frames.flatten(0, 2), config.augment.image_size).unflatten(
            0, batch.frame_mask.shape
        )
    if config.augment.color_on == "workers":
        return frames
    colored = frames.clone()
    for video, view in torch.nonzero(batch.frame_mask.any(dim=2)).tolist():
        parameters = AugmentParameters.from_vector(batch.color[video, view])
        mask = batch.frame_mask[video, view].to(device)
        colored[video, view, mask] = apply_color(frames[video, view, mask], parameters, config.augment.color)
    return colored
