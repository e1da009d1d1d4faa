"""A GPU computes what a CPU does. `benchmarks/gpu.sh` runs this file, where neither PyAV nor Ray is.

CARL_RAY_TEST_DEVICE names the device; without a GPU, and without that name, the tests are skipped.
"""

from __future__ import annotations

import os
from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from benchmarks.parts.step import synthetic_batch
from carl_ray.config import AugmentConfig, Config
from carl_ray.data import augment
from carl_ray.data.augment import draw_parameters
from carl_ray.data.augment_tensors import apply_color
from carl_ray.data.batch import batch_on_device, collate
from carl_ray.data.pixels import from_yuv420, to_yuv420
from carl_ray.data.sample import Sample, sample_spec
from carl_ray.evaluation.inference import VideoEmbedder
from carl_ray.objectives.choice import objective_options
from carl_ray.objectives.views import CROPS
from carl_ray.presets import PRESETS
from carl_ray.training.learner import initial_encoder
from carl_ray.training.step import TrainingStep

CPU = torch.device("cpu")
GPU = torch.device(os.environ.get("CARL_RAY_TEST_DEVICE", "cuda"))
pytestmark = pytest.mark.skipif(GPU.type == "cuda" and not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def configured(objective: str = "scl", precision: str = "fp32") -> Config:
    demo = PRESETS["demo"]()
    return replace(
        demo,
        augment=replace(demo.augment, image_size=32),
        model=replace(demo.model, num_frames=8, dropout=0.0),
        objective=objective_options(objective),
        training=replace(demo.training, precision=precision, global_batch_size=2),
    )


def losses(config: Config, device: torch.device, steps: int = 3) -> list[float]:
    trained, batch = TrainingStep(config, device, 10), synthetic_batch(config, 2)
    reports = [trained.train(batch, number) for number in range(steps)]
    assert all(report.applied for report in reports)
    return [report.loss for report in reports]


@pytest.mark.parametrize("objective", ["scl", "contrastive", "tcn", "tcc", "lav", "gta", "weak_scl"])
def test_losses(objective: str) -> None:
    config = configured(objective)
    assert losses(config, GPU) == pytest.approx(losses(config, CPU), rel=2e-3, abs=1e-4)


def test_losses_in_bf16() -> None:
    assert losses(configured(precision="bf16"), GPU) == pytest.approx(losses(configured(), CPU), rel=0.05)


def test_color() -> None:
    if isinstance(augment.cv2, MagicMock):
        pytest.skip("the CPU needs OpenCV")
    rng = np.random.default_rng(2)
    frames = torch.from_numpy(rng.integers(0, 256, (4, 64, 64, 3), np.uint8))
    for _ in range(20):
        draw = draw_parameters(AugmentConfig(image_size=64), 64, 64, rng)
        wanted = apply_color(frames, draw).int()
        difference = apply_color(frames.to(GPU), draw).cpu().int() - wanted
        assert difference.abs().max() <= 4 and (difference.abs() > 1).float().mean() < 1e-3


def test_frames_from_yuv420() -> None:
    frames = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (5, 32, 32, 3), np.uint8))
    packed = torch.from_numpy(to_yuv420(frames))
    found = from_yuv420(packed.to(GPU), 32).cpu().int()
    assert (found - from_yuv420(packed, 32).int()).abs().max() <= 1


def test_embeddings() -> None:
    config = configured()
    frames = np.random.default_rng(4).integers(0, 256, (20, 32, 32, 3), np.uint8)
    encoder = initial_encoder(config).eval()
    (wanted,) = VideoEmbedder([encoder], config, CPU).embed_frames(frames)
    (found,) = VideoEmbedder([encoder], config, GPU).embed_frames(frames)
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())


def test_a_batch_for_a_gpu_is_one_that_it_can_copy_by_itself() -> None:
    config = configured()
    device = GPU if GPU.type == "cpu" else torch.device("cuda", torch.cuda.device_count() - 1)
    view = synthetic_batch(config, 1).views[CROPS].map(lambda part: part[0].numpy())
    sample = Sample(0, 0, 0, "a", None, {CROPS: view})
    batch = collate([sample, sample], sample_spec(config), device)
    pixels = batch.views[CROPS].pixels
    assert pixels is not None and pixels.is_pinned() == (device.type == "cuda")
    copied = batch_on_device(batch, config, device).views[CROPS].pixels
    assert copied is not None and copied.device == device
    np.testing.assert_array_equal(copied.cpu().numpy(), np.stack([view.pixels] * 2))
