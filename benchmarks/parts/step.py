"""Where the time of a training step goes, and how near it comes to the time of its convolutions alone. Free of Ray.

The ideal time is what the backbone's own arithmetic takes at the rate of a large matrix product on the same
device: all blocks forward over the real frames, and the learnable blocks backward, without the gradient of what
the frozen ones gave.

Legend: B videos, T frames of a view, S pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.parts.table import Table
from carl_ray.config import Config, ModelConfig
from carl_ray.data.augment import AugmentParameters, draw_parameters
from carl_ray.data.batch import batch_on_device, pixels_on_device
from carl_ray.machine import machine_name
from carl_ray.model.backbone import Backbone, build_backbone
from carl_ray.model.features import normalize
from carl_ray.objectives.base import Batch, ViewTensors
from carl_ray.objectives.views import CROPS
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
"""Parts of a step, in order. What the workers leave to the trainer (`augment.color_on`, `augment.pixels`) is in the
first; "Transformer" is all after the CNN in the encoder, the pooling included; heads are in "loss"."""

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
    32 frames in both views together, for minutes are too long for a benchmark. Then what the trainer can be left
    with, each by itself on the same batch: RGB from YUV 4:2:0, and colour.

    Args:
        config: Model, objective and precision. Weights are random: they change no time.
        device: Where the step computes.
        on_progress: Called with a line before each part.
    """
    on_gpu = device.type == "cuda"
    videos = config.training.global_batch_size if on_gpu else 2 if config.objective.pairs_videos else 1
    frames = config.model.num_frames if on_gpu else min(config.model.num_frames, _CPU_FRAMES // 2 // videos)
    config = replace(config, model=replace(config.model, num_frames=frames))
    batch = synthetic_batch(config, videos)
    real = int(batch.views[CROPS].mask.sum())
    repeats = 10 if on_gpu else 3

    on_progress(f"a training step, {real} frames")
    step = TrainingStep(config, device, num_steps=1_000_000)
    precision = step.config.training.precision
    median_seconds(lambda: step.train(batch, 0), device, 2)  # the first ones compile, choose algorithms, fold
    _forget_peak(device)
    whole = median_seconds(lambda: step.train(batch, 0), device, repeats)
    memory = _peak_gib(device)
    on_progress("its parts")
    runs = [stage_seconds(step, batch)[0] for _ in range(repeats)]
    stages = [statistics.median(times) for times in zip(*runs, strict=True)]

    rows = [
        (name, f"{1000 * seconds:,.1f}", f"{seconds / sum(stages):.1%}", _rate(real, seconds), "")
        for name, seconds in zip(STAGES, stages, strict=True)
    ]
    rows.append(
        ("all of them, waiting after each", f"{1000 * sum(stages):,.1f}", "", _rate(real, sum(stages)), "")
    )
    rows.append(("the step", f"{1000 * whole:,.1f}", "", _rate(real, whole), memory))
    on_progress("what the trainer can be left with")
    for name, variant in left_to_trainer(config).items():
        shipped = (
            batch
            if variant.view_specs[0].frame_shape == config.view_specs[0].frame_shape
            else synthetic_batch(variant, videos)
        )
        run = partial(pixels_on_device, shipped.views[CROPS], variant.view_specs[0], device)
        median_seconds(run, device, 1)
        seconds = median_seconds(run, device, repeats)
        rows.append((name, f"{1000 * seconds:,.1f}", f"{seconds / whole:.1%}", _rate(real, seconds), ""))

    drawn = [
        AugmentParameters.from_vector(vector)
        for vector in batch.views[CROPS].parameters.flatten(0, 1).numpy()
    ]
    notes = [
        "share: of the sum of the parts, then of the step; one worker: no exchange between GPUs is in it",
        f"the step and its parts: colour on the {config.augment.color_on}, pixels {config.augment.pixels}",
        "frames to the device, with colour or RGB from YUV 4:2:0: the copy is in all of these rows, normalising in "
        f"none; of {len(drawn)} views {sum(draw.jitter for draw in drawn)} jittered, "
        f"{sum(draw.grayscale for draw in drawn)} made grey, {sum(draw.blur_sigma > 0 for draw in drawn)} blurred",
    ]
    if on_gpu:
        notes.append("GiB: the most that tensors took on the GPU during the step")
    if step.model.encoder.backbone.frozen:
        on_progress("the frozen part without folding")
        folded, plain = _frozen_seconds(step, batch, repeats)
        rows.append(("CNN, frozen part, not folded", f"{1000 * plain:,.1f}", "", _rate(real, plain), ""))
        notes.append(f"frozen part: folded {plain / folded:.2f} times as fast as not folded")
    on_progress("matrix products")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rate = matrix_rate(device, dtype)
    operations = cnn_operations(config.model, config.augment.image_size)
    ideal = real * (operations.forward + operations.backward) / rate
    rows.append(("ideal CNN", f"{1000 * ideal:,.1f}", "", _rate(real, ideal), ""))
    notes.append(
        f"ideal CNN: {real} x ({operations.forward / 1e9:.2f} forward + {operations.backward / 1e9:.2f} backward) "
        f"GFLOP at {rate / 1e12:.2f} TFLOP/s, as measured for a {precision} matrix product; "
        f"{ideal / whole:.0%} of the step"
    )
    if on_gpu:
        del step
        on_progress(f"one video of T = {_LONG}")
        longer = replace(config, model=replace(config.model, num_frames=_LONG))
        batch = synthetic_batch(longer, 2 if config.objective.pairs_videos else 1)
        step = TrainingStep(longer, device, num_steps=1_000_000)
        median_seconds(lambda: step.train(batch, 0), device, 1)
        _forget_peak(device)
        seconds = median_seconds(lambda: step.train(batch, 0), device, 3)
        real = int(batch.views[CROPS].mask.sum())
        name = f"the step, {len(batch.rows)} x T = {_LONG}"
        rows.append((name, f"{1000 * seconds:,.1f}", "", _rate(real, seconds), _peak_gib(device)))
    title = (
        f"training step: {config.model.backbone}, {videos} video{'s' * (videos > 1)} x 2 views x {frames} frames of "
        f"{config.augment.image_size} pixels, {precision}, {machine_name(use_gpu=on_gpu)}"
    )
    return Table(title, ("stage", "ms", "share", "frames/s", "GiB"), rows, notes)


def synthetic_batch(config: Config, num_videos: int) -> Batch:
    """Random pixels, shipped as the config says; every frame real, colour drawn for every view."""
    # Of its first 2 views, and of its first 8, about as many are jittered, grey and blurred as is probable.
    rng = np.random.default_rng(51)
    generator = torch.Generator().manual_seed(0)
    shape = (num_videos, 2, config.model.num_frames)
    size = config.augment.image_size
    color = [draw_parameters(config.augment, size, size, rng).to_vector() for _ in range(2 * num_videos)]
    pixels = (*shape, *config.view_specs[0].frame_shape)
    view = ViewTensors(
        pixels=torch.randint(0, 256, pixels, dtype=torch.uint8, generator=generator),
        timestamps=torch.arange(shape[2], dtype=torch.float64).expand(shape).contiguous(),
        mask=torch.ones(shape, dtype=torch.bool),
        parameters=torch.from_numpy(np.reshape(color, (num_videos, 2, -1))),
        boxes=torch.zeros(num_videos, 2, 4, dtype=torch.float64),
        flips=torch.zeros(num_videos, 2, dtype=torch.bool),
        spans=torch.zeros(num_videos, 2, 2, dtype=torch.float64),
        columns={name: torch.zeros(shape, dtype=torch.int64) for name in config.objective.columns},
    )
    seeds = torch.arange(2 * num_videos).unflatten(0, (num_videos, 2))
    return Batch({CROPS: view}, torch.arange(num_videos), {CROPS: seeds})


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
    """Floating-point operations a second of a large product of square matrices, the best of several.

    In float32 on a GPU with the precision that convolutions are allowed, TF32 or not.
    """
    size, products, attempts = (8192, 20, 5) if device.type == "cuda" else (1024, 1, 10)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def run() -> None:
        for _ in range(products):
            torch.mm(a, b, out=out)

    with _precision_of_convolutions():
        run()
        return products * 2 * size**3 / min(seconds_of(run, device) for _ in range(attempts))


@contextmanager
def _precision_of_convolutions() -> Iterator[None]:
    """Matrix products on a GPU may use TF32 where cuDNN's convolutions may: by default these do, and those do not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def left_to_trainer(config: Config) -> dict[str, Config]:
    """The config with each way in which views can come to the trainer, by name."""
    usual = replace(config.augment, color_on="workers", pixels="rgb")
    ways = {
        "frames to the device": usual,
        "with colour": replace(usual, color_on="trainer"),
    }
    if usual.image_size % 2 == 0:
        ways["with RGB from YUV 4:2:0"] = replace(usual, pixels="yuv420")
    return {name: replace(config, augment=augment) for name, augment in ways.items()}


def stage_seconds(step: TrainingStep, batch: Batch) -> tuple[list[float], float]:
    """Seconds of each of `STAGES` of one step, the device idle between them; and its loss.

    The step's own code computes the loss, stamped from hooks. After it come the lines of `TrainingStep.train` that
    compute.
    """
    device, model = step.device, step.model
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
        hooks.enter_context(model.encoder.register_forward_hook(stamp))
        stamp()
        sums, counts = step._terms(batch_on_device(batch, step.config, device), model, 0.0)
    loss = (sums / counts.clamp(min=1)).sum()
    stamp()
    loss.backward()
    stamp()
    nn.utils.clip_grad_norm_(model.parameters(), step.config.optimizer.max_gradient_norm)
    step.phases[0].optimizer.step()
    model.zero_grad(set_to_none=True)
    stamp()
    return np.diff(stamps).tolist(), loss.item()


def _frozen_seconds(step: TrainingStep, batch: Batch, repeats: int) -> tuple[float, float]:
    """Seconds of the frozen part, folded and as its modules stand."""
    backbone = step.model.encoder.backbone
    pixels = batch_on_device(batch, step.config, step.device).views[CROPS].pixels
    assert pixels is not None
    frames = normalize(pixels.flatten(0, 2))

    def plain() -> None:
        for chunk in backbone.chunks(frames):
            _one_by_one(backbone, backbone.frozen, chunk)

    def folded() -> None:
        backbone.pass_frozen(frames)

    # In turns, so that a machine that slows down slows both.
    with torch.no_grad(), _autocast(step):
        times = [
            (seconds_of(folded, step.device), seconds_of(plain, step.device)) for _ in range(1 + repeats)
        ]
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


def median_seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of several calls."""
    return statistics.median(seconds_of(function, device) for _ in range(repeats))


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of a call, until the device is done."""
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


def _peak_gib(device: torch.device) -> str:
    """Since `_forget_peak`. A process on a CPU cannot forget: its peak may be that of anything before."""
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f}" if device.type == "cuda" else "-"


def _rate(frames: int, seconds: float) -> str:
    return f"{frames / seconds:,.1f}"
