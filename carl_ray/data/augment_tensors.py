"""Spatial augmentation of tensors on any device; `augment.py` draws it, and applies it to arrays.

    frames (N, H, W, 3) ─ apply_geometry, center_view ▶ (N, S, S, 3) ─ apply_color ▶ (N, S, S, 3)      uint8

Also what decoding children without the compiled part use.

Legend: N frames, H x W pixels of the decoded frame, S pixels of the augmented one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from carl_ray.data.augment import AugmentParameters, blur_weights, change_colors

# Luma of ITU-R 601 as torchvision rounds it.
_LUMA = (0.2989, 0.587, 0.114)
# Values (frames x height x width x 3) at a time: bounds memory. Colour makes several float32 copies, which are
# fastest in the cache of a CPU, or in large pieces on an accelerator.
_RESIZE_CHUNK = 2**20
_COLOR_CHUNK_CPU = 2**18
_COLOR_CHUNK_ACCELERATOR = 2**24


def apply_geometry(
    frames: UInt8[np.ndarray, "n height width 3"] | UInt8[Tensor, "n height width 3"],
    parameters: AugmentParameters,
    image_size: int,
    places: Int64[np.ndarray, " taken"] | None = None,
    out: UInt8[Tensor, "taken {image_size} {image_size} 3"] | None = None,
) -> UInt8[Tensor, "taken {image_size} {image_size} 3"]:
    """Crop, resize (bilinear, antialiased) and flip; the result is contiguous.

    Args:
        frames: As decoded.
        parameters: Drawn for their size.
        image_size: S.
        places: Indices of the frames to take; None takes all. Avoids a copy of the whole frames.
        out: Output tensor; None: a new one.

    Raises:
        ValueError: the crop does not lie in the frames (drawn for another size?), or these are not uint8.
    """
    _check_frames(frames)
    box = frames[(slice(None), *parameters.box(*frames.shape[1:3]))]
    return _resize(box, image_size, image_size, flip=parameters.flip, places=places, out=out)


def center_view(
    frames: UInt8[np.ndarray, "n height width 3"] | UInt8[Tensor, "n height width 3"], image_size: int
) -> UInt8[Tensor, "n {image_size} {image_size} 3"]:
    """Resize the shorter side to image_size and crop the centre; contiguous.

    Raises:
        ValueError: these are not uint8 frames.
    """
    _check_frames(frames)
    height, width = frames.shape[1:3]
    short = min(height, width)
    resized = _resize(frames, image_size * height // short, image_size * width // short)
    top = round((resized.shape[1] - image_size) / 2)
    left = round((resized.shape[2] - image_size) / 2)
    return resized[:, top : top + image_size, left : left + image_size].contiguous()


def apply_color(
    frames: UInt8[Tensor, "n size size 3"], parameters: AugmentParameters
) -> UInt8[Tensor, "n size size 3"]:
    """Apply colour jitter, greyscale and Gaussian blur, on the device of the frames, which stay as they are.

    `augment.change_colors`, on an accelerator up to the rounding of float32. Returns `frames` itself where nothing is
    to be done.

    Args:
        frames: Square.
        parameters: The draw.

    Raises:
        ValueError: these are not square uint8 frames.
    """
    _check_frames(frames)
    if frames.shape[1] != frames.shape[2]:
        raise ValueError(f"expected square frames, as apply_geometry makes, got shape {tuple(frames.shape)}")
    if not (parameters.color_operations or parameters.blur_sigma > 0):
        return frames
    output = frames.clone(memory_format=torch.contiguous_format)
    if frames.device.type == "cpu":
        change_colors(output.numpy(), parameters)
        return output
    if parameters.color_operations:
        jitter(output, parameters.color_operations)
    if parameters.blur_sigma > 0:
        weights = blur_weights(parameters.blur_sigma, output.shape[1])
        for part in _color_chunks(output):
            _write(_blurred(_planes(output[part]), weights).round_(), output[part])
    return output


def jitter(frames: UInt8[Tensor, "n size size 3"], operations: Sequence[tuple[int, float]]) -> None:
    """Apply `AugmentParameters.color_operations` one after the other, in place."""
    for part in _color_chunks(frames):
        _write(_jitter(_planes(frames[part]), operations), frames[part])


def _check_frames(frames: np.ndarray | Tensor) -> None:
    if frames.dtype not in (np.uint8, torch.uint8) or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"expected uint8 frames (N, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")


def _chunks(num_frames: int, values_per_frame: int, values_per_chunk: int) -> Iterator[slice]:
    step = max(1, values_per_chunk // values_per_frame)
    return (slice(start, start + step) for start in range(0, num_frames, step))


def _resize(
    frames: np.ndarray | Tensor,
    height: int,
    width: int,
    *,
    flip: bool = False,
    places: np.ndarray | None = None,
    out: Tensor | None = None,
) -> UInt8[Tensor, "taken {height} {width} 3"]:
    """Resize, then mirror if `flip`; contiguous, never an alias of the input.

    Bilinear with antialiasing, as torchvision resizes; importing that would cost every decoder two seconds.
    """
    on_cpu = isinstance(frames, np.ndarray) or frames.device.type == "cpu"
    count = len(frames) if places is None else len(places)
    if out is None:
        device = "cpu" if isinstance(frames, np.ndarray) else frames.device
        out = torch.empty((count, height, width, 3), dtype=torch.uint8, device=device)
    for part in _chunks(count, math.prod(frames.shape[1:]), _RESIZE_CHUNK):
        chunk = frames[part] if places is None else frames[places[part]]
        if isinstance(chunk, np.ndarray):
            # Arrays from Ray's object store are read-only, which torch does not take.
            chunk = torch.from_numpy(chunk if chunk.flags.writeable else chunk.copy())
        images = chunk.permute(0, 3, 1, 2)
        if images.shape[2:] != (height, width):
            # Only the CPU interpolates bytes.
            images = functional.interpolate(
                images if on_cpu else images.float(),
                size=(height, width),
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
            images = images if on_cpu else images.round_().to(torch.uint8)
        out[part].copy_((images.flip(3) if flip else images).permute(0, 2, 3, 1))
    return out


def _planes(frames: UInt8[Tensor, "n size size 3"]) -> Float[Tensor, "3 n size size"]:
    """In float32; the arithmetic between channels runs over contiguous memory."""
    if frames.device.type != "cpu":
        return frames.permute(3, 0, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    planes = torch.empty((3, *frames.shape[:3]), dtype=torch.uint8)
    for number, frame in enumerate(frames.numpy()):
        cv2.split(frame, list(planes[:, number].numpy()))
    return planes.to(torch.float32)


def _color_chunks(frames: UInt8[Tensor, "n size size 3"]) -> Iterator[slice]:
    chunk = _COLOR_CHUNK_CPU if frames.device.type == "cpu" else _COLOR_CHUNK_ACCELERATOR
    return _chunks(len(frames), math.prod(frames.shape[1:]), chunk)


def _write(planes: Float[Tensor, "c n size size"], output: UInt8[Tensor, "n size size 3"]) -> None:
    """Planes of integers in [0, 255] into frames; a single plane becomes all channels."""
    planes = planes.expand(3, *planes.shape[1:])
    if output.device.type == "cpu":
        for number, target in enumerate(output.numpy()):
            cv2.merge([cv2.convertScaleAbs(plane) for plane in planes[:, number].numpy()], target)
        return
    for channel, plane in enumerate(planes):
        output[..., channel].copy_(plane)


def _luma(planes: Float[Tensor, "3 n size size"]) -> Float[Tensor, "n size size"]:
    # No `alpha`, here and below: it multiplies and adds with one rounding on some CPUs and with two on others.
    red, green, blue = (plane.mul(part) for plane, part in zip(planes, _LUMA, strict=True))
    return red.add_(green).add_(blue).floor_()


def _jitter(
    planes: Float[Tensor, "3 n size size"], operations: Sequence[tuple[int, float]]
) -> Float[Tensor, "c n size size"]:
    """The colour operations in order, on integers in [0, 255], perhaps in place; one channel after greyscale."""
    for operation, factor in operations:
        match operation:
            case 0:
                planes.mul_(factor)
            case 1:
                luma = _luma(planes)
                total = luma.sum(dim=(-2, -1), keepdim=True, dtype=torch.float64)  # of each frame, exact
                planes.mul_(factor).add_((total / luma.shape[-2:].numel()).float().mul_(1 - factor))
            case 2:
                grey = _luma(planes).mul_(1 - factor)
                planes.mul_(factor).add_(grey)
            case 3:
                planes = _turn_hue(planes, factor)
            case _:
                return _luma(planes).unsqueeze(0)
        if factor > 1:  # values may leave the range
            planes.clamp_(0, 255)
        planes.floor_()
    return planes


def _turn_hue(planes: Float[Tensor, "3 n size size"], turn: float) -> Float[Tensor, "3 n size size"]:
    """Turn the hue by a part of the circle; value and saturation (HSV) stay.

    With h the hue in [0, 6) and d(c) = clamp(|h - c|, 1, 2) - 1, red is lowest + d(3) * range, green is
    highest - d(2) * range, blue highest - d(4) * range: the six cases of the textbook's HSV to RGB in one line.
    """
    red, green, blue = planes
    lowest = torch.minimum(torch.minimum(red, green), blue)
    highest = torch.maximum(torch.maximum(red, green), blue)
    spread = highest - lowest
    # The inputs are integers, so a difference cut to 1 tells unequal (1) from equal (0). This, and `lerp` to
    # choose between two tensors, take a third of the time of comparisons and `where`.
    not_red = (highest - red).clamp_(max=1)
    not_green = (highest - green).clamp_(max=1)
    green_or_blue = torch.lerp(
        (blue - red).add_(spread, alpha=2), (red - green).add_(spread, alpha=4), not_green
    )
    hue = torch.lerp(green - blue, green_or_blue, not_red)
    hue.div_(spread.clamp(min=1)).add_(6 * turn)  # without a spread there is no hue, and none is needed
    hue.sub_((hue / 6).floor_(), alpha=6)
    distances = torch.empty_like(planes)
    for center, distance in zip((3, 2, 4), distances, strict=True):
        torch.sub(hue, center, out=distance)
    distances.abs_().clamp_(1, 2).sub_(1).mul_(spread)
    distances[0].add_(lowest)
    torch.sub(highest, distances[1:], out=distances[1:])
    # As torchvision scales back to uint8: a rounding error must not cut an integer to the level beneath.
    return distances.mul_(255.999 / 255)


def _blurred(planes: Float[Tensor, "c n size size"], weights: list[float]) -> Float[Tensor, "c n size size"]:
    """Convolve with symmetric weights: first along columns, then along rows."""
    size, radius = planes.shape[-1], len(weights) - 1
    padded = functional.pad(planes.flatten(0, 1), [radius] * 4, mode="reflect")
    for dim in (1, 2):
        total = padded.narrow(dim, radius, size) * weights[0]
        for offset in range(1, radius + 1):
            total.add_(padded.narrow(dim, radius - offset, size), alpha=weights[offset])
            total.add_(padded.narrow(dim, radius + offset, size), alpha=weights[offset])
        padded = total
    return padded.view_as(planes)
