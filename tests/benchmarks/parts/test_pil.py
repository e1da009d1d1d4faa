"""The PIL pipeline does what ours does, in the drawn order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.parts import pil
from carl_ray.config import AugmentConfig
from carl_ray.data.augment import AugmentParameters, draw_parameters
from carl_ray.data.augment_tensors import apply_color, apply_geometry
from carl_ray.model.features import normalize

SIZE = 64
# Pillow's hue is a byte and its blur three boxes: its pictures differ from ours by a level or two on average.
MOST_LEVELS = 2.5

ALL = AugmentParameters(
    top=3,
    left=10,
    height=80,
    width=90,
    flip=True,
    jitter=True,
    order=(3, 1, 0, 2),
    brightness=1.3,
    contrast=0.5,
    saturation=1.6,
    hue=0.15,
    grayscale=False,
    blur_sigma=1.5,
)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Three pictures of soft colours with grain, 90 x 120."""
    rows, columns = np.mgrid[:90, :120]
    soft = [127 + 110 * np.sin(columns / 17 + k) * np.cos(rows / 13 + 2 * k) for k in range(3)]
    grain = np.random.default_rng(0).normal(0, 12, (3, 90, 120, 3))
    return np.clip(np.stack(soft, -1) + grain, 0, 255).astype(np.uint8)


def augmented(frames: np.ndarray, parameters: AugmentParameters, blur: pil.Blur = "pillow") -> np.ndarray:
    pictures = [pil.augment(Image.fromarray(frame), parameters, SIZE, blur) for frame in frames]
    return np.stack([np.asarray(picture) for picture in pictures])


def distance(frames: np.ndarray, theirs: AugmentParameters, ours: AugmentParameters) -> float:
    """Mean difference in levels of 255."""
    expected = apply_color(apply_geometry(frames, ours, SIZE), ours).numpy()
    found = augmented(frames, theirs)
    return float(np.abs(found.astype(int) - expected).mean())


@pytest.mark.parametrize("seed", range(12))
def test_equals_ours_for_the_same_draw(frames: np.ndarray, seed: int) -> None:
    parameters = draw_parameters(AugmentConfig(), 90, 120, np.random.default_rng(seed))
    assert distance(frames, parameters, parameters) < MOST_LEVELS


def test_torchvisions_blur_is_nearer_to_ours(frames: np.ndarray) -> None:
    only_blur = replace(ALL, jitter=False)
    expected = apply_color(apply_geometry(frames, only_blur, SIZE), only_blur).numpy().astype(int)
    blurs: tuple[pil.Blur, ...] = ("pillow", "torchvision")
    approximate, exact = (np.abs(augmented(frames, only_blur, blur) - expected).mean() for blur in blurs)
    assert exact < 0.7 * approximate
    assert exact < 0.6


def test_equals_ours_with_everything(frames: np.ndarray) -> None:
    for parameters in (ALL, replace(ALL, grayscale=True)):
        assert distance(frames, parameters, parameters) < MOST_LEVELS


@pytest.mark.parametrize(
    "change",
    [
        {"order": (1, 0, 2, 3)},
        {"flip": False},
        {"top": 8},
        {"brightness": 1.0},
        {"contrast": 1.0},
        {"saturation": 1.0},
        {"hue": 0.0},
        {"hue": -0.15},
        {"grayscale": True},
        {"blur_sigma": 0.0},
    ],
)
def test_another_order_or_a_missing_operation_would_show(
    frames: np.ndarray, change: dict[str, object]
) -> None:
    assert distance(frames, replace(ALL, **change), ALL) > MOST_LEVELS  # type: ignore[arg-type]


def test_the_tensor_is_ours(frames: np.ndarray) -> None:
    expected = normalize(apply_geometry(frames, replace(ALL, height=SIZE, width=SIZE, flip=False), SIZE))
    box = frames[:, ALL.top : ALL.top + SIZE, ALL.left : ALL.left + SIZE]
    for picture, tensor in zip(box, expected, strict=True):
        np.testing.assert_allclose(pil.to_tensor(Image.fromarray(picture)), tensor, atol=1e-5)
