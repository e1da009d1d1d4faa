"""Spatial augmentation: one draw for all frames of a view (paper, section 3.2).

    frames as decoded (N, H, W, 3) ─ apply_geometry ▶ (N, S, S, 3) ─ apply_color ▶ (N, S, S, 3)      uint8
                                   ─ normalize ▶ (N, 3, S, S)                                         float32

Frames are uint8 with the channel last all the way: four times smaller to send than float, and `normalize`
gives the channels-last tensor on which convolutions are fastest. `draw_parameters` is the only function that draws;
parameters are sent as a vector, so that colour may be computed on another machine than the one that drew it.

Longer than 400 lines: what is drawn, and both devices' ways to apply it, change together.

Legend: N frames, H x W pixels of the decoded frame, S pixels of the augmented one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from carl_ray.config import AugmentConfig
from carl_ray.data import compiled

# Luma of ITU-R 601 as torchvision rounds it.
_LUMA = (0.2989, 0.587, 0.114)
# The cross product with the direction of grey.
_AROUND_GREY = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
_NUM_COLOR_OPERATIONS = 4
# Values (frames x height x width x 3) at a time: bounds memory. Colour makes several float32 copies, which are
# fastest in the cache of a CPU, or in large pieces on an accelerator.
_RESIZE_CHUNK = 2**20
_COLOR_CHUNK_CPU = 2**18
_COLOR_CHUNK_ACCELERATOR = 2**24


Color = Literal["exact", "matrix"]
"""How colour jitter is computed; see `apply_color`."""


@dataclass(frozen=True)
class AugmentParameters:
    """One draw of the spatial augmentation, for all frames of a view."""

    top: int
    """First row of the crop, in pixels of the decoded frame."""
    left: int
    """First column of the crop."""
    height: int
    """Rows of the crop."""
    width: int
    """Columns of the crop."""
    flip: bool
    """Mirror left and right."""
    jitter: bool
    """Apply the four colour operations; where false, the order and the factors below have no effect."""
    order: tuple[int, ...]
    """Order of the colour operations: a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    brightness: float
    """Factor; 1 changes nothing."""
    contrast: float
    """Factor; 1 changes nothing."""
    saturation: float
    """Factor; 1 changes nothing."""
    hue: float
    """Part of the colour circle to turn by, in [-0.5, 0.5]; 0 changes nothing."""
    grayscale: bool
    """Make all channels the luma."""
    blur_sigma: float
    """Deviation of the Gaussian blur in pixels of the augmented frame; 0 does not blur."""

    def __post_init__(self) -> None:
        if min(self.top, self.left) < 0 or min(self.height, self.width) < 1:
            raise ValueError(
                "the crop must lie in the frame and hold a pixel, got "
                f"(top, left, height, width) = {(self.top, self.left, self.height, self.width)}"
            )
        if sorted(self.order) != list(range(_NUM_COLOR_OPERATIONS)):
            raise ValueError(f"order must be a permutation of (0, 1, 2, 3), got {self.order}")

    @property
    def color_operations(self) -> list[tuple[int, float]]:
        """The colour operations to apply, in order: numbers as in `order`, 4 greyscale, and their factors."""
        factors = self.brightness, self.contrast, self.saturation, self.hue
        jitter = [(number, factors[number]) for number in self.order if self.jitter]
        return [pair for pair in jitter if pair != (3, 0)] + [(4, 0.0)] * self.grayscale

    def to_vector(self) -> Float64[np.ndarray, " 16"]:
        """The fields as numbers, in order; `from_vector` restores them exactly."""
        return np.hstack(astuple(self)).astype(np.float64)

    @classmethod
    def from_vector(cls, vector: Float64[np.ndarray, " 16"]) -> AugmentParameters:
        """The parameters that `to_vector` wrote.

        Raises:
            ValueError: the vector has another length, or holds no such parameters.
        """
        values = np.asarray(vector, dtype=np.float64).tolist()
        if len(values) != 16:
            raise ValueError(f"augmentation parameters are a vector of 16 numbers, got {len(values)}")
        top, left, height, width = map(int, values[:4])
        flip, jitter = map(bool, values[4:6])
        order = tuple(map(int, values[6:10]))
        brightness, contrast, saturation, hue, grayscale, blur_sigma = values[10:]
        factors = brightness, contrast, saturation, hue
        return cls(top, left, height, width, flip, jitter, order, *factors, bool(grayscale), blur_sigma)


def draw_parameters(
    config: AugmentConfig, height: int, width: int, rng: np.random.Generator
) -> AugmentParameters:
    """One draw for a view whose decoded frames have height x width pixels.

    Crop as torchvision's RandomResizedCrop: an area and (log-uniformly) an aspect ratio, tried up to ten
    times until the box fits, else the largest central box within the range of aspects. Everything is drawn in
    any case, the crop last: a probability in `config` changes whether a thing happens and nothing else.
    """
    flip = bool(rng.random() < config.flip_probability)
    jitter = bool(rng.random() < config.jitter_probability)
    grayscale = bool(rng.random() < config.grayscale_probability)
    blur = bool(rng.random() < config.blur_probability)
    order = tuple(int(operation) for operation in rng.permutation(_NUM_COLOR_OPERATIONS))
    brightness, contrast, saturation = (
        float(rng.uniform(max(0.0, 1 - strength), 1 + strength))
        for strength in (config.brightness, config.contrast, config.saturation)
    )
    hue = float(rng.uniform(-config.hue, config.hue))
    blur_sigma = float(rng.uniform(*config.blur_sigma))
    crop = _draw_crop(config, height, width, rng)
    color = brightness, contrast, saturation, hue
    return AugmentParameters(*crop, flip, jitter, order, *color, grayscale, blur_sigma if blur else 0.0)


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
    bottom, right = parameters.top + parameters.height, parameters.left + parameters.width
    if bottom > frames.shape[1] or right > frames.shape[2]:
        raise ValueError(
            f"the crop ends at row {bottom} and column {right}, but frames have {frames.shape[1]} x "
            f"{frames.shape[2]} pixels: draw the parameters for the size of these frames"
        )
    box = frames[:, parameters.top : bottom, parameters.left : right]
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
    frames: UInt8[Tensor, "n size size 3"],
    parameters: AugmentParameters,
    color: Color = "exact",
    *,
    in_place: bool = False,
) -> UInt8[Tensor, "n size size 3"]:
    """Apply colour jitter, greyscale and Gaussian blur, on the device of the frames.

    The same function on any device, up to the rounding of float32, and a level of `matrix`; the jitter of `exact` is
    the same bit by bit on any CPU, with or without the compiled part. The blur's kernel is
    SimCLR's: about a tenth of the image, odd, at least 3 pixels. Returns `frames` itself where nothing is to be done.

    Args:
        frames: Square.
        parameters: The draw.
        color: `exact`: each operation of the jitter is torchvision's on uint8 (values are cut to integers after
            each) to within one level. `matrix`: all of them, and greyscale, are one linear map of a frame's
            colours; hue is turned about the grey axis, and values are cut once, at the end.
        in_place: Writes over `frames`.

    Raises:
        ValueError: these are not square uint8 frames.
    """
    _check_frames(frames)
    if frames.shape[1] != frames.shape[2]:
        raise ValueError(f"expected square frames, as apply_geometry makes, got shape {tuple(frames.shape)}")
    if not (parameters.jitter or parameters.grayscale or parameters.blur_sigma > 0):
        return frames
    # OpenCV refuses to write to memory of any other order.
    direct = in_place and frames.is_contiguous()
    output = frames if direct else torch.empty_like(frames, memory_format=torch.contiguous_format)
    source = frames
    if parameters.jitter or parameters.grayscale:
        if color == "matrix":
            _map_colors(source, parameters, output)
        else:
            _change_colors(source, parameters, output)
        source = output
    if parameters.blur_sigma > 0:
        _blur(source, parameters.blur_sigma, output)
    return frames.copy_(output) if in_place and not direct else output


def _check_frames(frames: np.ndarray | Tensor) -> None:
    if frames.dtype not in (np.uint8, torch.uint8) or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"expected uint8 frames (N, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")


def _chunks(num_frames: int, values_per_frame: int, values_per_chunk: int) -> Iterator[slice]:
    step = max(1, values_per_chunk // values_per_frame)
    return (slice(start, start + step) for start in range(0, num_frames, step))


def _draw_crop(
    config: AugmentConfig, height: int, width: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random resized crop."""
    lowest, highest = config.crop_aspect
    for _ in range(10):
        area = height * width * rng.uniform(*config.crop_area)
        aspect = math.exp(rng.uniform(math.log(lowest), math.log(highest)))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < lowest:
        crop_height = max(1, min(height, round(width / lowest)))
    elif width / height > highest:
        crop_width = max(1, min(width, round(height * highest)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


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


def _change_colors(
    frames: UInt8[Tensor, "n size size 3"],
    parameters: AugmentParameters,
    output: UInt8[Tensor, "n size size 3"],
) -> None:
    """Jitter and greyscale, one operation after the other; `output` may be `frames`."""
    if frames.device.type == "cpu":
        source = frames.contiguous().numpy()
        if compiled.jitter(source, parameters.color_operations, output.numpy()):
            return
    for part in _color_chunks(frames):
        planes = _planes(frames[part])
        if parameters.jitter:
            planes = _jitter(planes, parameters)
        if parameters.grayscale:
            planes = _luma(planes).unsqueeze(0)
        _write(planes, output[part])


def _luma(planes: Float[Tensor, "3 n size size"]) -> Float[Tensor, "n size size"]:
    # No `alpha`, here and below: it multiplies and adds with one rounding on some CPUs and with two on others.
    red, green, blue = (plane.mul(part) for plane, part in zip(planes, _LUMA, strict=True))
    return red.add_(green).add_(blue).floor_()


def _jitter(
    planes: Float[Tensor, "3 n size size"], parameters: AugmentParameters
) -> Float[Tensor, "3 n size size"]:
    """The colour operations in order, on integers in [0, 255]; may work in place."""
    for operation in parameters.order:
        factor = 1.0  # above 1, values may leave the range
        match operation:
            case 0:
                factor = parameters.brightness
                planes.mul_(factor)
            case 1:
                factor = parameters.contrast
                luma = _luma(planes)
                total = luma.sum(dim=(-2, -1), keepdim=True, dtype=torch.float64)  # of each frame, exact
                planes.mul_(factor).add_((total / luma.shape[-2:].numel()).float().mul_(1 - factor))
            case 2:
                factor = parameters.saturation
                grey = _luma(planes).mul_(1 - factor)
                planes.mul_(factor).add_(grey)
            case 3 if parameters.hue != 0:
                planes = _turn_hue(planes, parameters.hue)
        if factor > 1:
            planes.clamp_(0, 255)
        planes.floor_()
    return planes


def _map_colors(
    frames: UInt8[Tensor, "n size size 3"],
    parameters: AugmentParameters,
    output: UInt8[Tensor, "n size size 3"],
) -> None:
    """Colour jitter and greyscale by `color_map`; `output` may be `frames`."""
    of_color, of_mean = color_map(parameters)
    if frames.device.type == "cpu":
        for source, target in zip(frames.numpy(), output.numpy(), strict=True):
            offset = of_mean @ cv2.mean(source)[:3]
            cv2.transform(source, np.column_stack([of_color, offset]), dst=target)
        return
    for part in _color_chunks(frames):
        _write(_mapped(_planes(frames[part]), of_color, of_mean), output[part])


def _mapped(planes: Float[Tensor, "3 n size size"], *maps: np.ndarray) -> Float[Tensor, "3 n size size"]:
    """The planes after the two matrices of `color_map`, rounded."""
    color, mean = (torch.tensor(matrix, dtype=torch.float32, device=planes.device) for matrix in maps)
    # A caller's autocast would leave eight bits of a value.
    with torch.autocast(planes.device.type, enabled=False):
        offset = mean @ planes.mean(dim=(-2, -1))
        mapped = (color @ planes.flatten(1)).view_as(planes)
    return mapped.add_(offset[:, :, None, None]).clamp_(0, 255).round_()


def color_map(
    parameters: AugmentParameters,
) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "3 3"]]:
    """Matrices (A, B) of the jitter: A color + B mean color of the frame, unrounded.

    Brightness scales, contrast moves towards the mean luma, saturation towards a pixel's own luma; hue is a rotation
    about the axis of grey (Rodrigues' formula), where torchvision's keeps value and saturation of HSV.
    """
    of_color, of_mean = np.eye(3), np.zeros((3, 3))
    to_luma = np.ones((3, 1)) * np.array(_LUMA) / sum(_LUMA)
    for operation in parameters.order if parameters.jitter else ():
        added = np.zeros((3, 3))
        match operation:
            case 0:
                matrix = parameters.brightness * np.eye(3)
            case 1:
                matrix = parameters.contrast * np.eye(3)
                added = (1 - parameters.contrast) * to_luma @ (of_color + of_mean)
            case 2:
                matrix = parameters.saturation * np.eye(3) + (1 - parameters.saturation) * to_luma
            case _:
                angle = 2 * math.pi * parameters.hue
                matrix = (
                    math.cos(angle) * np.eye(3) + (1 - math.cos(angle)) / 3 + math.sin(angle) * _AROUND_GREY
                )
        of_color, of_mean = matrix @ of_color, matrix @ of_mean + added
    if parameters.grayscale:
        of_color, of_mean = to_luma @ of_color, to_luma @ of_mean
    return of_color, of_mean


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


def _blur(
    frames: UInt8[Tensor, "n size size 3"], sigma: float, output: UInt8[Tensor, "n size size 3"]
) -> None:
    """A Gaussian blur in float32, mirrored at the borders; `output` may be `frames`."""
    weights = _blur_weights(sigma, frames.shape[1])
    if frames.device.type == "cpu":
        kernel = np.array([*reversed(weights[1:]), *weights], np.float32)
        for source, target in zip(frames.numpy(), output.numpy(), strict=True):
            blurred = cv2.sepFilter2D(source, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
            cv2.convertScaleAbs(blurred, dst=target)  # rounds
        return
    for part in _color_chunks(frames):
        _write(_blurred(_planes(frames[part]), weights).round_(), output[part])


def _blur_weights(sigma: float, size: int) -> list[float]:
    """The weights from the centre outwards, for images of `size` pixels square."""
    radius = max(1, size // 20)
    weights = [math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(radius + 1)]
    both_sides = weights[0] + 2 * sum(weights[1:])
    # Beyond four deviations all weights together are worth less than 0.02 levels.
    return [weight / both_sides for weight in weights[: math.ceil(4 * sigma) + 1]]


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
