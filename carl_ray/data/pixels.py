"""Frames as YUV 4:2:0, half the bytes of RGB, to send them (`augment.pixels`).

Full range, ITU-R BT.601, as in JPEG. A colour difference is the mean over 2 x 2 pixels; back, it is interpolated.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

_TO_YUV = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [-0.168736, -0.331264, 0.5],
        [0.5, -0.418688, -0.081312],
    ]
)
_TO_RGB = torch.tensor([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])
_CENTER = 128.0
_CHUNK_CPU = 2
_CHUNK_ACCELERATOR = 128


def to_yuv420(
    frames: UInt8[Tensor, "n size size 3"],
) -> UInt8[np.ndarray, "n packed"]:
    """Pack frames: luma (S, S), then both colour differences (S / 2, S / 2).

    Args:
        frames: RGB on the CPU, S even.
    """
    count, size = frames.shape[:2]
    packed = np.empty((count, size * size * 3 // 2), np.uint8)
    for start in range(0, count, _CHUNK_CPU):
        part = slice(start, start + _CHUNK_CPU)
        planes = frames[part].permute(3, 0, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        luma = _product(_TO_YUV[:1], planes).round_().to(torch.uint8)
        # Pooling by slices takes an eighth of the time of `avg_pool2d`.
        pairs = planes[:, :, 0::2] + planes[:, :, 1::2]
        small = (pairs[..., 0::2] + pairs[..., 1::2]).div_(4)
        colors = _product(_TO_YUV[1:], small).add_(_CENTER).round_().clamp_(0, 255)
        packed[part, : size * size] = luma.view(-1, size * size).numpy()
        packed[part, size * size :] = (
            colors.to(torch.uint8).view(2, -1, size * size // 4).transpose(0, 1).flatten(1).numpy()
        )
    return packed


def from_yuv420(packed: UInt8[Tensor, "n packed"], size: int) -> UInt8[Tensor, "n {size} {size} 3"]:
    """Unpack frames of `to_yuv420` on their device: RGB, within a few levels.

    Args:
        packed: Result of `to_yuv420`.
        size: S.
    """
    frames = torch.empty((len(packed), size, size, 3), dtype=torch.uint8, device=packed.device)
    to_rgb = _TO_RGB.to(packed.device)
    step = _CHUNK_CPU if packed.device.type == "cpu" else _CHUNK_ACCELERATOR
    for start in range(0, len(packed), step):
        part = slice(start, start + step)
        luma, colors = packed[part].float().split([size * size, size * size // 2], dim=1)
        colors = colors.sub(_CENTER).view(-1, 2, size // 2, size // 2)
        colors = functional.interpolate(colors, scale_factor=2, mode="bilinear", align_corners=False)
        planes = torch.cat([luma.reshape(1, -1), colors.transpose(0, 1).flatten(1)])
        rgb = _product(to_rgb, planes).round_().clamp_(0, 255)
        frames[part] = rgb.view(3, -1, size, size).permute(1, 2, 3, 0)
    return frames


def _product(matrix: Tensor, planes: Tensor) -> Tensor:
    """Product of a matrix and the planes' pixels, in float32."""
    # A caller's autocast would leave eight bits of a value.
    with torch.autocast(planes.device.type, enabled=False):
        return matrix @ planes.flatten(1)
