"""Spatial augmentation: one draw for all frames of a view (paper, section 3.2). No torch here.

    frames as decoded (N, H, W, 3) ─ resize_crop ▶ (N, S, S, 3) ─ change_colors ▶ (N, S, S, 3)      uint8

Frames are uint8 with the channel last all the way, four times smaller to send than float. `draw_parameters` is the
only function that draws; parameters are sent as a vector, so that colour may be computed on another machine than the
one that drew it, on tensors of any device (`augment_tensors.py`).

Legend: N frames, H x W pixels of the decoded frame, S pixels of the augmented one.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import cv2
import numpy as np
from jaxtyping import Float64, Int64, UInt8

from carl_ray.config import AugmentConfig
from carl_ray.data import compiled

_NUM_COLOR_OPERATIONS = 4


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

    def box(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the crop in frames of this size; ValueError where it does not lie in them."""
        bottom, right = self.top + self.height, self.left + self.width
        if bottom > height or right > width:
            raise ValueError(
                f"the crop ends at row {bottom} and column {right}, but frames have {height} x {width} pixels: draw "
                "the parameters for the size of these frames"
            )
        return slice(self.top, bottom), slice(self.left, right)

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


def resize_crop(
    frames: UInt8[np.ndarray, "n height width 3"],
    parameters: AugmentParameters,
    places: Int64[np.ndarray, " taken"],
    output: UInt8[np.ndarray, "taken size size 3"],
) -> None:
    """Crop, resize (bilinear, antialiased) and flip.

    Args:
        frames: As decoded.
        parameters: Drawn for their size.
        places: Indices of the frames to take.
        output: Contiguous.

    Raises:
        ValueError: the crop does not lie in the frames (drawn for another size?).
    """
    box = frames[(slice(None), *parameters.box(*frames.shape[1:3]))]
    if not compiled.resize(box, places, parameters.flip, output):
        import torch

        from carl_ray.data.augment_tensors import apply_geometry

        apply_geometry(frames, parameters, output.shape[1], places, torch.from_numpy(output))


def change_colors(frames: UInt8[np.ndarray, "n size size 3"], parameters: AugmentParameters) -> None:
    """Apply colour jitter, greyscale and Gaussian blur to contiguous frames, in place.

    Each operation of the jitter is torchvision's on uint8 (values are cut to integers after each) to within one level,
    and the same bit by bit on any CPU, with or without the compiled part. The blur's kernel is SimCLR's: about a tenth
    of the image, odd, at least 3 pixels.
    """
    operations = parameters.color_operations
    if operations and not compiled.jitter(frames, operations, frames):
        import torch

        from carl_ray.data.augment_tensors import jitter

        jitter(torch.from_numpy(frames), operations)
    if parameters.blur_sigma > 0:
        weights = blur_weights(parameters.blur_sigma, frames.shape[1])
        kernel = np.array([*reversed(weights[1:]), *weights], np.float32)
        for frame in frames:
            blurred = cv2.sepFilter2D(frame, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
            cv2.convertScaleAbs(blurred, dst=frame)  # rounds


def blur_weights(sigma: float, size: int) -> list[float]:
    """Weights of a Gaussian kernel from the centre outwards, for images of `size` pixels square."""
    radius = max(1, size // 20)
    weights = [math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(radius + 1)]
    both_sides = weights[0] + 2 * sum(weights[1:])
    # Beyond four deviations all weights together are worth less than 0.02 levels.
    return [weight / both_sides for weight in weights[: math.ceil(4 * sigma) + 1]]


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
