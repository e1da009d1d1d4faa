"""Measurements of `benchmarks.gpu`, on random tensors: steps, compilation, embedding, colour. Free of Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.parts.step import (
    STAGES,
    cnn_operations,
    left_to_trainer,
    matrix_rate,
    median_seconds,
    seconds_of,
    stage_seconds,
    synthetic_batch,
)
from carl_ray.config import Config
from carl_ray.data.batch import pixels_on_device
from carl_ray.evaluation.inference import VideoEmbedder
from carl_ray.model.backbone import build_backbone
from carl_ray.model.features import normalize
from carl_ray.objectives.base import Batch
from carl_ray.objectives.views import CROPS
from carl_ray.options import overridden
from carl_ray.presets import PRESETS
from carl_ray.training.learner import initial_encoder
from carl_ray.training.step import TrainingStep

Document = dict[str, Any]
"""Plain JSON, which parts fill differently."""
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    preset: str = "pouring"
    lengths: tuple[int, ...] = (80, 240)
    """T of the steps."""
    videos: int = 4
    long: int = 2000
    embedded: int = 1024
    """Frames."""
    repeats: int = 5
    compiler: str = "inductor"


TINY = Sizes("demo", lengths=(8,), videos=2, long=40, embedded=12, repeats=1, compiler="eager")


def step(sizes: Sizes, device: torch.device) -> Document:
    """Steps in bf16 and fp32, and how near they come to the time of their convolutions at the rate of a matrix."""
    rates = {name: matrix_rate(device, dtype) for name, dtype in _DTYPES.items()}
    found: Document = {"matrix_tflops": {name: rate / 1e12 for name, rate in rates.items()}, "steps": []}
    for precision, num_frames in [
        ("fp32", sizes.lengths[0]),
        *(("bf16", length) for length in sizes.lengths),
    ]:
        config = _config(sizes, num_frames, precision)
        made, batch, entry = _timed_step(config, device, sizes.videos, sizes.repeats)
        operations = cnn_operations(config.model, config.augment.image_size)
        ideal = entry["frames"] * (operations.forward + operations.backward) / rates[precision]
        stages = dict(zip(STAGES, stage_seconds(made, batch)[0], strict=True))
        found["steps"].append(
            entry
            | {
                "precision": precision,
                "ideal_s": ideal,
                "share_of_ideal": ideal / entry["step_s"],
                "stages_s": stages,
            }
            | {"gflop_a_frame": (operations.forward + operations.backward) / 1e9}
        )
        del made, batch
    return found


def long(sizes: Sizes, device: torch.device) -> Document:
    """A step on one long video."""
    return _timed_step(_config(sizes, sizes.long, "bf16"), device, 1, sizes.repeats)[2]


def compile_model(sizes: Sizes, device: torch.device) -> Document:
    """A step with and without torch.compile."""
    config = _config(sizes, sizes.lengths[0], "bf16")
    made, batch, entry = _timed_step(config, device, sizes.videos, sizes.repeats)
    loss = made.train(batch, 0).loss
    made.model.compile(backend=sizes.compiler)
    first = seconds_of(lambda: made.train(batch, 0), device)
    compiled = _median(partial(made.train, batch, 0), device, sizes.repeats)
    return entry | {
        "compiler": sizes.compiler,
        "first_s": first,
        "compiled_s": compiled,
        "gain": entry["step_s"] / compiled,
        "losses": [loss, made.train(batch, 0).loss],
    }


def embedding(sizes: Sizes, device: torch.device) -> Document:
    """Frames of one video through the whole encoder, by chunks and frame by frame."""
    config = _config(sizes, sizes.lengths[0], "bf16")
    size, count = config.augment.image_size, sizes.embedded
    frames = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    encoder = initial_encoder(config).eval().to(device)
    few = torch.from_numpy(frames[: max(1, count // 8)])

    @torch.inference_mode()
    def one_by_one() -> None:
        for frame in few:
            encoder.backbone(normalize(frame[None].to(device)))

    ways: dict[str, tuple[Callable[[], object], int]] = {
        "frame by frame, CNN alone, fp32": (one_by_one, len(few)),
        "VideoEmbedder, fp32": (
            partial(VideoEmbedder([encoder], config, device).embed_frames, frames),
            count,
        ),
        "VideoEmbedder, bf16": (
            partial(VideoEmbedder([encoder], config, device, bf16=True).embed_frames, frames),
            count,
        ),
    }
    return {
        "frames": count,
        "frames_s": {name: held / _median(way, device, sizes.repeats) for name, (way, held) in ways.items()},
    }


def color(sizes: Sizes, device: torch.device) -> Document:
    """What the trainer can be left with, on the batch of the longest step."""
    config = _config(sizes, sizes.lengths[-1], "bf16")
    found: Document = {"num_frames": config.model.num_frames, "ways": {}}
    for name, variant in left_to_trainer(config).items():
        view = synthetic_batch(variant, sizes.videos).views[CROPS]
        way = partial(pixels_on_device, view, variant.view_specs[0], device)
        try:
            seconds = _median(way, device, sizes.repeats)
        except (RuntimeError, ValueError, TypeError) as error:  # On a CPU, some need OpenCV.
            found["error"] = f"{name}: {error}"
        else:
            found["ways"][name] = {"s": seconds, "frames_s": int(view.mask.sum()) / seconds}
    return found


def features(sizes: Sizes, device: torch.device) -> Document:
    """A step on cached features of the backbone, eight videos."""
    config = _config(sizes, sizes.lengths[0], "bf16")
    with torch.device("meta"):
        channels = build_backbone(config.model).pooled_channels
    batch = synthetic_batch(config, 8)
    view = batch.views[CROPS]
    config = replace(
        config,
        data=replace(
            config.data, features="none", feature_channels=channels, short_side=config.augment.image_size
        ),
        model=replace(config.model, learnable="none"),
        augment=replace(config.augment, copies=1),
    )
    made = torch.randn(*view.mask.shape, channels, dtype=torch.float16)
    batch = replace(batch, views={CROPS: replace(view, pixels=None, features=made)})
    trained = TrainingStep(config, device, num_steps=1_000_000)
    return {
        "step_s": _median(lambda: trained.train(batch, 0), device, sizes.repeats),
        "num_frames": view.mask.shape[2],
    }


def _config(sizes: Sizes, num_frames: int, precision: str) -> Config:
    """The preset with random weights, whose times are those of any others."""
    learnable = {} if sizes.preset == "pouring" else {"model.learnable": "block5"}
    return overridden(
        PRESETS[sizes.preset](),
        {"model.weights": "random", "model.num_frames": str(num_frames), "training.precision": precision}
        | learnable,
    )


def _timed_step(
    config: Config, device: torch.device, videos: int, repeats: int
) -> tuple[TrainingStep, Batch, Document]:
    """A training step, its batch, and what it takes."""
    batch = synthetic_batch(config, videos)
    made = TrainingStep(config, device, num_steps=1_000_000)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = _median(partial(made.train, batch, 0), device, repeats)
    frames = int(batch.views[CROPS].mask.sum())
    entry: Document = {"num_frames": config.model.num_frames, "videos": videos, "frames": frames}
    entry |= {"step_s": seconds, "frames_s": frames / seconds}
    entry["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None
    return made, batch, entry


def _median(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of a call after two that choose algorithms."""
    median_seconds(function, device, min(2, repeats))
    return median_seconds(function, device, repeats)


MEASURES: dict[str, Callable[[Sizes, torch.device], Document]] = {
    "step": step,
    "long": long,
    "compile": compile_model,
    "embedding": embedding,
    "color": color,
    "features": features,
}
