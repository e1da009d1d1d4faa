"""Batches of samples in the memory of a trainer and on its device. No Ray here.

Legend: B videos, n clips of a view, T frames of a clip, S pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from carl_ray.config import Config
from carl_ray.data.augment import AugmentParameters
from carl_ray.data.augment_tensors import apply_color
from carl_ray.data.pixels import from_yuv420
from carl_ray.data.randomness import ViewNumber, sample_seed, view_key
from carl_ray.data.sample import Sample, SampleSpec, arrays_of, masked_views
from carl_ray.objectives.base import Batch, ViewTensors
from carl_ray.objectives.views import ViewSpec

_CPU = torch.device("cpu")


def collate(samples: Sequence[Sample], spec: SampleSpec, device: torch.device = _CPU) -> Batch:
    """Collate samples into a batch in CPU memory; without any that was read, one masked video.

    Args:
        samples: Those without views are left out.
        spec: Of the samples.
        device: Device of the trainer. For a GPU the frames are in pinned memory, for asynchronous copies.
    """
    samples = [sample for sample in samples if sample.views is not None]
    if not samples:
        samples = [Sample(-1, -1, 0, None, None, masked_views(spec))]
    held = [arrays_of(sample.views or {}) for sample in samples]
    stacked: dict[str, Tensor] = {}
    # Pinned for this GPU: the thread may have chosen none yet.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for name, (dtype, shape) in spec.array_types.items():
            is_large = device.type == "cuda" and name.endswith((".pixels", ".features"))
            empty = torch.from_numpy(np.empty(0, dtype))
            out = torch.empty((len(held), *shape), dtype=empty.dtype, pin_memory=is_large)
            np.stack([arrays[name] for arrays in held], out=out.numpy())
            stacked[name] = out
    seeds = {
        view.name: torch.tensor([view_seeds(spec.seed, sample, view) for sample in samples])
        for view in spec.views
    }
    views = {
        view.name: ViewTensors.from_arrays(
            {
                name.partition(".")[2]: value
                for name, value in stacked.items()
                if name.startswith(f"{view.name}.")
            }
        )
        for view in spec.views
    }
    return Batch(views, torch.tensor([sample.row for sample in samples]), seeds)


def view_seeds(seed: int, sample: Sample, view: ViewSpec) -> list[int]:
    """Seeds of the draws of the model and the objective for the clips of a view."""
    if sample.video_id is None:
        return [0] * view.count
    numbers = range(ViewNumber.FIRST, ViewNumber.FIRST + view.count)
    return [sample_seed(seed, sample.epoch, sample.video_id, view_key(view.name, n)) for n in numbers]


def batch_on_device(batch: Batch, config: Config, device: torch.device) -> Batch:
    """The batch on the trainer's device, its pixels as RGB before normalisation."""
    views = {
        spec.name: replace(
            batch.views[spec.name], pixels=pixels_on_device(batch.views[spec.name], spec, device)
        )
        for spec in config.view_specs
        if spec.features is None
    }
    return replace(batch, views={**batch.views, **views}).map(lambda part: part.to(device, non_blocking=True))


def pixels_on_device(
    view: ViewTensors[Tensor], spec: ViewSpec, device: torch.device
) -> UInt8[Tensor, "batch n time size size 3"]:
    """Input frames of the encoder before normalisation, on the trainer's device.

    Converts YUV 4:2:0 to RGB, and computes colour and blur, if the workers have not.
    """
    assert view.pixels is not None
    frames = view.pixels.to(device, non_blocking=True)
    if spec.augment.pixels == "yuv420":
        frames = from_yuv420(frames.flatten(0, 2), spec.augment.image_size).unflatten(0, view.mask.shape)
    if spec.augment.color_on == "workers":
        return frames
    colored = frames.clone()
    for video, clip in torch.nonzero(view.mask.any(dim=2)).tolist():
        parameters = AugmentParameters.from_vector(view.parameters[video, clip].numpy())
        mask = view.mask[video, clip].to(device)
        colored[video, clip, mask] = apply_color(frames[video, clip, mask], parameters)
    return colored
