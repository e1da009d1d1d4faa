"""The augmentation as users write it with Pillow, frame by frame: what `carl_ray.data.augment` is measured against.

The operations are those of the paper, section 3.2, with the parameters that `draw_parameters` drew: crop, resize,
flip, brightness, contrast, saturation and hue in the drawn order, greyscale, Gaussian blur; then float32 with
ImageNet's mean and deviation taken out. Pillow's own blur is three box filters, and fast; with torchvision's
transforms, which most training code applies to Pillow's images, it is a convolution, and takes seven times as long.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional

from carl_ray.data.augment import AugmentParameters

Blur = Literal["pillow", "torchvision"]
"""Whose Gaussian blur."""

_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
_DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def augment(
    image: Image.Image, parameters: AugmentParameters, image_size: int, blur: Blur = "pillow"
) -> Image.Image:
    """One frame after all operations: RGB, image_size x image_size pixels."""
    left, top = parameters.left, parameters.top
    image = image.crop((left, top, left + parameters.width, top + parameters.height))
    image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    if parameters.flip:
        image = ImageOps.mirror(image)
    if parameters.jitter:
        for operation in parameters.order:
            match operation:
                case 0:
                    image = ImageEnhance.Brightness(image).enhance(parameters.brightness)
                case 1:
                    image = ImageEnhance.Contrast(image).enhance(parameters.contrast)
                case 2:
                    image = ImageEnhance.Color(image).enhance(parameters.saturation)
                case 3:
                    image = _turn_hue(image, parameters.hue)
    if parameters.grayscale:
        image = image.convert("L").convert("RGB")
    if parameters.blur_sigma > 0:
        match blur:
            case "pillow":
                image = image.filter(ImageFilter.GaussianBlur(parameters.blur_sigma))
            case "torchvision":
                size = 2 * max(1, image_size // 20) + 1
                image = functional.gaussian_blur(image, [size, size], [parameters.blur_sigma] * 2)
    return image


def to_tensor(image: Image.Image) -> Float[Tensor, "3 size size"]:
    """The frame in float32, channels first, ImageNet's mean and deviation taken out."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div(255).sub(_MEAN).div(_DEVIATION)


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """The hue, a byte in Pillow, turned by a part of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, np.int16) + round(turn * 256)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
