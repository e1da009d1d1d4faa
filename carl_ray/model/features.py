"""Features of a frozen backbone, and the normalisation of its input."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from carl_ray.model.backbone import Backbone
from carl_ray.model.networks import IMAGENET_MEAN, IMAGENET_STD

_CPU_PIXELS = 2**18
"""About so many pixels pass at a time on a CPU, 5 frames of 224 x 224: their maps stay in its cache."""


def normalize(
    frames: UInt8[Tensor, "*batch height width 3"],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Float[Tensor, "*batch 3 height width"]:
    """Normalise by the mean and deviation of a backbone, float32, channel axis before rows.

    The memory layout stays channels last: `torch.channels_last` where there is one batch dimension.
    """
    deviation = torch.tensor(std, device=frames.device)
    scale = 1 / (255 * deviation)
    shift = -torch.tensor(mean, device=frames.device) / deviation
    # One row of pixels as one dimension: over a last dimension of 3 alone, a CPU cannot vectorise.
    width = frames.shape[-2]
    rows = frames.flatten(-2).to(torch.float32).mul_(scale.repeat(width)).add_(shift.repeat(width))
    return rows.unflatten(-1, (width, 3)).movedim(-1, -3)


@torch.inference_mode()
def frozen_features(
    backbone: Backbone,
    pixels: UInt8[np.ndarray, "N *T height width 3"],
    *,
    bf16: bool = False,
) -> Float[np.ndarray, "N C"]:
    """Features of frames, or of clips where the backbone is one of clips, as it pools its maps, float32.

    Args:
        backbone: In evaluation mode; computes on the device that it is on.
        pixels: Frames (N, H, W, 3), or clips (N, T, H, W, 3), of the size that the backbone is to see.
        bf16: Matrix products in bfloat16, for hardware that has it (`machine.has_native_bf16`).

    Raises:
        ValueError: the backbone is in training mode, or the pixels are of another kind.
    """
    expected = {"frame": "(N, height, width, 3)", "clip": "(N, T, height, width, 3)"}[backbone.kind]
    if backbone.training or pixels.ndim != expected.count(",") + 1 or pixels.dtype != np.uint8:
        raise ValueError(
            f"expected a backbone in evaluation mode and uint8 pixels {expected}, got training={backbone.training} "
            f"and {pixels.dtype} of shape {pixels.shape}"
        )
    device = next(backbone.parameters()).device
    chunk = backbone.chunk_frames
    if device.type == "cpu":
        chunk = max(1, _CPU_PIXELS // math.prod(pixels.shape[1:-1]))
    features = [np.zeros((0, backbone.pooled_channels), np.float32)]
    for start in range(0, len(pixels), chunk):
        part = torch.from_numpy(np.ascontiguousarray(pixels[start : start + chunk])).to(device)
        seen = normalize(part, backbone.mean, backbone.std)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            maps = backbone(seen.transpose(1, 2) if backbone.kind == "clip" else seen)
            features.append(backbone.pool(maps).float().cpu().numpy())
    return np.concatenate(features)
