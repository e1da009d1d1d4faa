"""What was made fast computes what the plain way computes: the same losses, to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from carl_ray.config import AugmentConfig, Config, DataConfig, TrainingConfig
from carl_ray.data.augment import AugmentParameters, draw_parameters
from carl_ray.data.randomness import ViewNumber, sample_generator
from carl_ray.data.views import sample_views
from carl_ray.objectives.base import Batch
from carl_ray.objectives.views import CROPS
from carl_ray.training.step import StepReport, TrainingStep
from tests.samples import Crops, batch_of, crops, make_crops, small_model

CPU = torch.device("cpu")
LENGTHS = (23, 6)  # the second is padded
SIZE = 32
CONFIG = Config(
    preset="test",
    data=DataConfig(short_side=45),  # 79 wide of 112 x 64: the short way to an odd width; 60 of 80 x 60
    augment=AugmentConfig(image_size=SIZE, jitter_probability=1.0, blur_probability=1.0),
    model=small_model(
        32, num_frames=8, backbone="resnet18", learnable="block5", embedding_width=16, dropout=0.0
    ),
    training=TrainingConfig(precision="fp32", seed=5),
)


def plain_pair(path: Path, video_id: str, num_video_frames: int) -> Crops:
    """Every frame is decoded and scaled to RGB at once, then torchvision does one operation after the other."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        scale = CONFIG.data.short_side / min(stream.width, stream.height)
        width, height = round(stream.width * scale), round(stream.height * scale)
        decoded = np.stack(
            [
                frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
                for frame in container.decode(stream)
            ]
        )
    time = CONFIG.model.num_frames
    views = sample_views(
        num_video_frames, time, rng=sample_generator(CONFIG.training.seed, 0, video_id, ViewNumber.SHARED)
    )
    frames = np.zeros((2, time, SIZE, SIZE, 3), np.uint8)
    for number, view in enumerate(views):
        rng = sample_generator(CONFIG.training.seed, 0, video_id, ViewNumber.FIRST + number)
        draw = draw_parameters(CONFIG.augment, height, width, rng)
        images = torch.from_numpy(decoded[view.frame_indices[view.frame_mask]]).permute(0, 3, 1, 2)
        frames[number, view.frame_mask] = plain_augmentation(images, draw).permute(0, 2, 3, 1).numpy()
    times = np.stack([view.frame_indices * 1.0 for view in views])
    return crops(frames, times, np.stack([view.frame_mask for view in views]))


def plain_augmentation(images: torch.Tensor, draw: AugmentParameters) -> torch.Tensor:
    images = functional.resized_crop(
        images, draw.top, draw.left, draw.height, draw.width, [SIZE, SIZE], antialias=True
    )
    if draw.flip:
        images = functional.horizontal_flip(images)
    operations = (
        (functional.adjust_brightness, draw.brightness),
        (functional.adjust_contrast, draw.contrast),
        (functional.adjust_saturation, draw.saturation),
        (functional.adjust_hue, draw.hue),
    )
    for index in draw.order:
        operation, factor = operations[index]
        images = operation(images, factor)
    if draw.grayscale:
        images = functional.rgb_to_grayscale(images, 3)
    return functional.gaussian_blur(images, [3, 3], [draw.blur_sigma] * 2)


class PlainBackbone(torch.nn.Module):
    """The modules of a backbone one after the other, in torch's standard layout, nothing folded."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.to(memory_format=torch.contiguous_format)
        self.mean, self.std, self.pool = backbone.mean, backbone.std, backbone.pool

    def chunks(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (frames,)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        maps = frames.contiguous()
        for name in (*self.backbone.frozen, *self.backbone.learnable):
            maps = self.backbone.get_submodule(name)(maps)
        return maps


@dataclass(frozen=True)
class Computed:
    """What one way computes of a batch."""

    validation_loss: float
    first: StepReport
    gradients: dict[str, torch.Tensor]
    second: StepReport


def computed(batch: Batch, *, plain: bool) -> Computed:
    step = TrainingStep(CONFIG, CPU, num_steps=10)
    # In float64, what the two ways differ in beside rounding would show, whatever the CPU's float32 kernels do.
    step.model.double().encoder.register_forward_pre_hook(
        lambda module, inputs: (inputs[0].double(), *inputs[1:])
    )
    # Statistics as pretrained weights have them: folding zeros and ones would prove nothing.
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, buffer in step.model.encoder.backbone.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                noise = torch.rand(buffer.shape, generator=generator)
                buffer.copy_(noise - 0.5 if name.endswith("mean") else noise + 0.5)
    if plain:
        step.model.encoder.backbone = PlainBackbone(step.model.encoder.backbone)
    sums, counts = step.evaluate(batch)
    first = step.train(batch, 0)
    gradients = {
        name.replace("backbone.backbone", "backbone"): parameter.grad.clone()
        for name, parameter in step.model.named_parameters()
        if parameter.grad is not None
    }
    return Computed(float((sums / counts).sum()), first, gradients, step.train(batch, 1))


@pytest.mark.parametrize("size", [(112, 64), (80, 60)])
def test_losses_of_the_plain_way(
    tmp_path: Path, make_video: Callable[..., Path], size: tuple[int, int]
) -> None:
    paths = [make_video(tmp_path / f"{length}.mp4", length, *size) for length in LENGTHS]
    batches = [
        batch_of(
            [make(path, path.name, length) for path, length in zip(paths, LENGTHS, strict=True)],
            range(len(paths)),
            [path.name for path in paths],
            CONFIG,
        )
        for make in (
            lambda path, name, length: make_crops(str(path), name, length, 1.0, 0, CONFIG),
            plain_pair,
        )
    ]
    fast, plain = (batch.views[CROPS] for batch in batches)
    assert torch.equal(fast.mask, plain.mask)
    assert torch.equal(fast.timestamps, plain.timestamps)
    different = (fast.pixels.int() - plain.pixels.int()).abs()
    assert different.max() <= 4 and (different > 0).float().mean() < 0.01
    expected = computed(batches[1], plain=True)
    # The model alone, then frames and all.
    for found, tolerance in (
        (computed(batches[1], plain=False), 1e-12),
        (computed(batches[0], plain=False), 1e-4),
    ):
        assert found.validation_loss == pytest.approx(expected.validation_loss, rel=tolerance)
        assert found.first.loss == pytest.approx(expected.first.loss, rel=tolerance)
        assert found.gradients.keys() == expected.gradients.keys()
        squares = sum((found.gradients[k] - v).square().sum() for k, v in expected.gradients.items())
        assert math.sqrt(squares) < 100 * tolerance * expected.first.gradient_norm
        # Adam takes every gradient to the same size: from here on rounding grows.
        assert found.second.loss == pytest.approx(expected.second.loss, rel=100 * tolerance)
