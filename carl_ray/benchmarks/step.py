"""Where the time of a training step goes, and how near it comes to the time of its convolutions alone. Free of Ray.

The ideal time is what the backbone's own arithmetic takes at the rate of a large matrix product on the same
device: all blocks forward over the real frames, and the learnable blocks backward, without the gradient of what
the frozen ones gave.

Legend: B videos, T frames of a view, S pixels.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from carl_ray.benchmarks.table import Table
from carl_ray.config import Config, ModelConfig
from carl_ray.data.augment import normalize
from carl_ray.data.sample import NUM_COLOR_VALUES, Batch
from carl_ray.machine import machine_name
from carl_ray.model.backbone import Backbone, build_backbone
from carl_ray.training.objective import Views, objective_terms
from carl_ray.training.step import TrainingStep

STAGES = (
    "to the device, normalise",
    "CNN, frozen part",
    "CNN, learnable blocks",
    "Transformer",
    "loss",
    "backward",
    "clip, optimiser",
)
"""Parts of a step, in order. "Transformer" is all between the CNN and the loss, the pooling and the head included."""

_CPU_FRAMES = 32
_LONG = 2000


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a backbone for one frame, two for each multiplication with an addition."""

    forward: int
    backward: int
    """Of the learnable blocks: gradients of their weights, and of all their inputs but the first one's."""


def measure(config: Config, device: torch.device, on_progress: Callable[[str], None]) -> Table:
    """Time of every part of a step on random frames, all of them real.

    On a GPU with the config's T and batch, and besides with one video of T = 2000. On a CPU one video of at most
    32 frames in both views together, for minutes are too long for a benchmark. Frames come as RGB, and colour is left
    to the workers.

    Args:
        config: Model, objective and precision. Weights are random: they change no time.
        device: Where the step computes.
        on_progress: Called with a line before each part.
    """
    on_gpu = device.type == "cuda"
    videos = config.training.global_batch_size if on_gpu else 2 if config.objective.paired else 1
    frames = config.model.num_frames if on_gpu else min(config.model.num_frames, _CPU_FRAMES // 2 // videos)
    config = _sized(config, frames)
    batch = synthetic_batch(config, videos)
    real = int(batch.frame_mask.sum())
    repeats = 10 if on_gpu else 3

    on_progress(f"a training step, {real} frames")
    step = TrainingStep(config, device, num_steps=1_000_000)
    _median(lambda: step.train(batch, 0), device, 2)  # the first ones compile, choose algorithms, fold
    _forget_peak(device)
    whole = _median(lambda: step.train(batch, 0), device, repeats)
    memory = _peak_bytes(device)
    on_progress("its parts")
    stages = [
        statistics.median(times)
        for times in zip(*(_stages(step, batch) for _ in range(repeats)), strict=True)
    ]

    rows = [
        (name, f"{1000 * seconds:,.1f}", f"{seconds / sum(stages):.1%}", _rate(real, seconds), "")
        for name, seconds in zip(STAGES, stages, strict=True)
    ]
    rows.append(
        ("all of them, waiting after each", f"{1000 * sum(stages):,.1f}", "", _rate(real, sum(stages)), "")
    )
    rows.append(("the step", f"{1000 * whole:,.1f}", "", _rate(real, whole), _gib(memory)))

    notes = ["share: of the sum of the parts; memory: " + _memory_meaning(device)]
    if step.model.encoder.backbone.frozen:
        on_progress("the frozen part without folding")
        folded, plain = _frozen_seconds(step, batch, repeats)
        rows.append(("CNN, frozen part, not folded", f"{1000 * plain:,.1f}", "", _rate(real, plain), ""))
        compiled = ", compiled" if config.model.compile else ""
        notes.append(f"frozen part: folded{compiled} {plain / folded:.2f} times as fast as not folded")
    on_progress("matrix products")
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    rate = matrix_rate(device, dtype)
    operations = cnn_operations(config.model, config.augment.image_size)
    ideal = real * (operations.forward + operations.backward) / rate
    rows.append(("ideal CNN", f"{1000 * ideal:,.1f}", "", _rate(real, ideal), ""))
    notes.append(
        f"ideal CNN: {real} x ({operations.forward / 1e9:.2f} forward + {operations.backward / 1e9:.2f} backward) "
        f"GFLOP at {rate / 1e12:.2f} TFLOP/s, as measured for a {config.training.precision} matrix product; "
        f"{ideal / whole:.0%} of the step"
    )
    if on_gpu:
        del step
        on_progress(f"one video of T = {_LONG}")
        longer = _sized(config, _LONG)
        batch = synthetic_batch(longer, 2 if config.objective.paired else 1)
        step = TrainingStep(longer, device, num_steps=1_000_000)
        _median(lambda: step.train(batch, 0), device, 1)
        _forget_peak(device)
        seconds = _median(lambda: step.train(batch, 0), device, 3)
        real = int(batch.frame_mask.sum())
        name = f"the step, {len(batch.rows)} x T = {_LONG}"
        rows.append((name, f"{1000 * seconds:,.1f}", "", _rate(real, seconds), _gib(_peak_bytes(device))))
    title = (
        f"training step: {config.model.backbone}, {videos} video{'s' * (videos > 1)} x 2 views x {frames} frames of "
        f"{config.augment.image_size} pixels, {config.training.precision}, {machine_name(use_gpu=on_gpu)}"
    )
    return Table(title, ("stage", "ms", "share", "frames/s", "GiB"), rows, notes)


def synthetic_batch(config: Config, num_videos: int) -> Batch:
    """Random pixels; every frame real."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_videos, 2, config.model.num_frames)
    size = config.augment.image_size
    return Batch(
        frames=torch.randint(0, 256, (*shape, size, size, 3), dtype=torch.uint8, generator=generator),
        timestamps=torch.arange(shape[2], dtype=torch.float64).expand(shape).contiguous(),
        frame_mask=torch.ones(shape, dtype=torch.bool),
        frame_labels=torch.zeros(shape, dtype=torch.int64),
        rows=torch.arange(num_videos),
        color=np.zeros((num_videos, 2, NUM_COLOR_VALUES)),
        sample_seeds=torch.arange(2 * num_videos).unflatten(0, (num_videos, 2)),
    )


def cnn_operations(model: ModelConfig, image_size: int) -> Operations:
    """What one frame costs, counted by torch on a device that has shapes and no numbers."""
    frames_counted = 2  # batch norm wants more than one value a channel
    with torch.device("meta"):
        backbone = build_backbone(model)
        frames = torch.empty(frames_counted, 3, image_size, image_size)
        with FlopCounterMode(display=False) as forward:
            with torch.no_grad():
                maps = _one_by_one(backbone, backbone.frozen, frames)
            maps = backbone.pass_learnable(maps)
        with FlopCounterMode(display=False) as backward:
            if maps.requires_grad:
                maps.sum().backward()
    return Operations(
        forward.get_total_flops() // frames_counted, backward.get_total_flops() // frames_counted
    )


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large product of square matrices, the best of several."""
    size, products, attempts = (8192, 20, 5) if device.type == "cuda" else (1024, 1, 10)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = a @ b

    def run() -> None:
        for _ in range(products):
            torch.mm(a, b, out=out)

    return products * 2 * size**3 / min(_seconds(run, device) for _ in range(attempts))


def _sized(config: Config, num_frames: int) -> Config:
    return replace(
        config,
        augment=replace(config.augment, color_on="workers", pixels="rgb"),
        model=replace(config.model, num_frames=num_frames),
    )


def _stages(step: TrainingStep, batch: Batch) -> list[float]:
    """Seconds of each of `STAGES` of one step, the device idle between them."""
    config, device, model = step.config, step.device, step.model
    backbone = model.encoder.backbone
    stamps: list[float] = []

    def stamp(*_: object) -> None:
        _synchronize(device)
        stamps.append(time.perf_counter())

    model.train()
    with ExitStack() as hooks:
        hooks.enter_context(backbone.register_forward_pre_hook(stamp))
        if backbone.learnable:
            first = backbone.get_submodule(backbone.learnable[0])
            hooks.enter_context(first.register_forward_pre_hook(stamp))
        else:
            hooks.enter_context(backbone.register_forward_hook(stamp))
        hooks.enter_context(backbone.register_forward_hook(stamp))
        stamp()
        frames = normalize(batch.frames.to(device).flatten(0, 1))
        mask = batch.frame_mask.to(device)
        seeds = batch.sample_seeds.to(device)
        with _autocast(step):
            made = model(frames, mask.flatten(0, 1), seeds.flatten())
        stamp()
    views = Views(
        frames=made.unflatten(0, (-1, 2)).float(),
        timestamps=batch.timestamps.to(device),
        mask=mask,
        frame_labels=batch.frame_labels.to(device),
        rows=batch.rows.to(device),
        seeds=seeds,
    )
    objective = config.objective
    sums, counts = objective_terms(objective, views, model.order_head, objective.weak_weight)
    loss = (sums / counts.clamp(min=1)).sum()
    stamp()
    loss.backward()
    stamp()
    nn.utils.clip_grad_norm_(step.parameters, config.optimizer.max_gradient_norm)
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)
    stamp()
    return np.diff(stamps).tolist()


def _frozen_seconds(step: TrainingStep, batch: Batch, repeats: int) -> tuple[float, float]:
    """Seconds of the frozen part, folded and as its modules stand."""
    backbone = step.model.encoder.backbone
    frames = normalize(batch.frames.to(step.device).flatten(0, 2))

    def plain() -> None:
        for chunk in frames.split(backbone.chunk_frames):
            _one_by_one(backbone, backbone.frozen, chunk)

    def folded() -> None:
        backbone.pass_frozen(frames)

    # In turns, so that a machine that slows down slows both.
    with torch.no_grad(), _autocast(step):
        times = [(_seconds(folded, step.device), _seconds(plain, step.device)) for _ in range(1 + repeats)]
    first, second = zip(*times[1:], strict=True)
    return statistics.median(first), statistics.median(second)


def _one_by_one(backbone: Backbone, names: Iterable[str], maps: Tensor) -> Tensor:
    maps = maps.contiguous(memory_format=torch.channels_last)
    for name in names:
        maps = backbone.get_submodule(name)(maps)
    return maps


def _autocast(step: TrainingStep) -> torch.autocast:
    enabled = step.config.training.precision == "bf16"
    return torch.autocast(step.device.type, dtype=torch.bfloat16, enabled=enabled)


def _median(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    return statistics.median(_seconds(function, device) for _ in range(repeats))


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    begin = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # KiB but for macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _memory_meaning(device: torch.device) -> str:
    if device.type == "cuda":
        return "the most that tensors took on the GPU during the step"
    return "the most that the process ever took"


def _rate(frames: int, seconds: float) -> str:
    return f"{frames / seconds:,.1f}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f}"
