"""What one GPU does with this package: one JSON, for a machine that has neither Ray nor a network.

    bash benchmarks/gpu.sh --out gpu.json
    bash benchmarks/gpu.sh --device cpu --tiny
    python -m benchmarks.gpu --parts step,color

Every part runs in a process of its own with a time limit; one that fails or is too slow leaves its reason in the JSON,
which is written after every part. Inputs are random tensors: no video is decoded.

    environment  versions, GPU, which packages are missing
    tests        tests/test_gpu.py: losses, colour, embeddings and batches are those of a CPU
    step         a training step at T = 80 and 240: its parts, its share of the convolutions' time at the matrix rate
    long         one video of T = 2,000
    compile      what torch.compile gains
    embedding    whole videos through the encoder, in bf16 and fp32, beside frame by frame
    color        colour and YUV 4:2:0 on the trainer
    features     a training step on cached features
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock
from xml.etree import ElementTree

if TYPE_CHECKING:
    import torch

    from carl_ray.config import Config

Document = dict[str, Any]
"""Plain JSON, which parts fill differently."""

_MISSING = (
    "numpy",
    "PIL",
    "pydantic",
    "jaxtyping",
    "pyarrow",
    "cv2",
    "timm",
    "av",
    "scipy",
    "sklearn",
    "pytest",
    "ray",
)
"""Modules that are reported; the package imports the first six wherever it trains."""
_STAND_INS = ("pyarrow", "pyarrow.compute", "pyarrow.fs", "pyarrow.parquet", "cv2")
"""Imported by modules of the package that no part calls."""


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


def main(arguments: list[str] | None = None) -> int:
    """Run the command: 0 if every part was measured, otherwise 1."""
    options = _parse(arguments)
    replace_missing()
    parts = options.parts.split(",")
    if options.here:
        document = _attempt(parts[0], options)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
        return "error" in document
    begin, found = time.monotonic(), {}
    for part in parts:
        left = 60 * options.minutes - (time.monotonic() - begin)
        print(f"{part} …", file=sys.stderr, flush=True)
        found[part] = _in_own_process(part, options, min(PARTS[part].seconds, left))
        print(f"{part}: {found[part].get('error', 'done')}", file=sys.stderr, flush=True)
        document = {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "device": options.device,
            "tiny": options.tiny,
            "seconds": round(time.monotonic() - begin, 1),
            "failed": [name for name, one in found.items() if "error" in one],
            "parts": found,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{options.out}: {len(found) - len(document['failed'])} of {len(found)} parts measured")
    return bool(document["failed"])


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="of torch [cuda]")
    parser.add_argument(
        "--tiny", action="store_true", help="small sizes: seconds on a CPU, whose times say nothing"
    )
    parser.add_argument("--parts", default=",".join(PARTS), metavar="PART,…", help=f"[{','.join(PARTS)}]")
    parser.add_argument(
        "--minutes", type=float, default=11.5, metavar="M", help="for all parts together [11.5]"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), metavar="FILE", help="[gpu.json]")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for part in options.parts.split(","):
        if part not in PARTS:
            parser.error(f"--parts: unknown part {part!r} (parts: {', '.join(PARTS)})")
    return options


def replace_missing() -> None:
    """Import stand-ins for large packages that are not there."""
    for name in _STAND_INS:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = MagicMock(name=name)


def _in_own_process(part: str, options: argparse.Namespace, seconds: float) -> Document:
    """What a part measured, or why not: a device that fails, or hangs, takes only its process along."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--here",
            "--parts",
            part,
            "--device",
            options.device,
        ]
        command += ["--out", str(out), *(["--tiny"] if options.tiny else [])]
        try:
            if seconds <= 0:
                raise TimeoutError
            ended = subprocess.run(command, timeout=seconds, check=False, stderr=subprocess.PIPE, text=True)
        except (TimeoutError, subprocess.TimeoutExpired):
            return {"error": f"not done within {max(0, seconds):.0f} s"}
        if not out.exists():
            return {"error": f"its process ended with {ended.returncode}: {ended.stderr[-2000:]}"}
        return json.loads(out.read_text())


def _attempt(part: str, options: argparse.Namespace) -> Document:
    """What a part measured, or its error."""
    begin = time.monotonic()
    try:
        import torch

        sizes = TINY if options.tiny else Sizes()
        document = PARTS[part].measure(sizes, torch.device(options.device))
    except Exception as error:
        document = {
            "error": f"{type(error).__name__}: {error}"[:2000],
            "trace": traceback.format_exc()[-4000:],
        }
    return document | {"seconds": round(time.monotonic() - begin, 1)}


def environment(sizes: Sizes, device: torch.device) -> Document:
    """Versions and the device."""
    import torch
    import torchvision

    found: Document = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
    }
    found["torch"], found["torchvision"] = torch.__version__, torchvision.__version__
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    found["packages"] = {name: _version(name) for name in _MISSING}
    return found


def _version(name: str) -> str:
    if isinstance(sys.modules.get(name), MagicMock):
        return "missing, a stand-in"
    if importlib.util.find_spec(name) is None:
        return "missing"
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version({"PIL": "pillow", "cv2": "opencv-python-headless"}.get(name, name))
    return "there"


def tests(sizes: Sizes, device: torch.device) -> Document:
    """Outcomes of the tests on the device."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        start = (
            "import sys, benchmarks.gpu as gpu; gpu.replace_missing(); import pytest; sys.exit(pytest.main())"
        )
        command = [sys.executable, "-c", start, "tests/test_gpu.py", "-q", "--noconftest", "-o", "addopts="]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}", "--import-mode=importlib"]
        environ = os.environ | {"CARL_RAY_TEST_DEVICE": str(device)}
        ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environ)
        if not report.exists():
            return {
                "error": f"pytest ended with {ended.returncode}: {(ended.stderr or ended.stdout)[-2000:]}"
            }
        cases = list(ElementTree.parse(report).iter("testcase"))
    outcomes = {str(case.get("name")): next((child.tag for child in case), "passed") for case in cases}
    bad = {name: outcome for name, outcome in outcomes.items() if outcome not in ("passed", "skipped")}
    passed = sum(outcome == "passed" for outcome in outcomes.values())
    found: Document = {
        "passed": passed,
        "skipped": len(outcomes) - passed - len(bad),
        "tests": list(outcomes),
    }
    if bad or not passed:
        found |= {"error": f"{passed} of {len(outcomes)} tests passed: {bad}", "output": ended.stdout[-4000:]}
    return found


def step(sizes: Sizes, device: torch.device) -> Document:
    """Steps in bf16 and fp32, and how near they come to the time of their convolutions at the rate of a matrix."""
    import torch

    from benchmarks.parts.step import STAGES, cnn_operations, matrix_rate, stage_seconds

    rates = {name: matrix_rate(device, getattr(torch, dtype)) for name, dtype in _DTYPES.items()}
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


_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def long(sizes: Sizes, device: torch.device) -> Document:
    """A step on one long video."""
    return _timed_step(_config(sizes, sizes.long, "bf16"), device, 1, sizes.repeats)[2]


def compile_model(sizes: Sizes, device: torch.device) -> Document:
    """A step with and without torch.compile."""
    from benchmarks.parts.step import seconds_of

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
    import numpy as np
    import torch

    from carl_ray.evaluation.inference import VideoEmbedder
    from carl_ray.model.features import normalize
    from carl_ray.training.learner import initial_encoder

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
    from benchmarks.parts.step import left_to_trainer, synthetic_batch
    from carl_ray.data.batch import pixels_on_device
    from carl_ray.objectives.views import CROPS

    config, found = _config(sizes, sizes.lengths[-1], "bf16"), {}
    for name, variant in left_to_trainer(config).items():
        view = synthetic_batch(variant, sizes.videos).views[CROPS]
        seconds = _median(
            partial(pixels_on_device, view, variant.view_specs[0], device), device, sizes.repeats
        )
        found[name] = {"s": seconds, "frames_s": int(view.mask.sum()) / seconds}
    return {"ways": found, "num_frames": config.model.num_frames}


def features(sizes: Sizes, device: torch.device) -> Document:
    """A step on cached features of the backbone, eight videos."""
    import torch

    from benchmarks.parts.step import synthetic_batch
    from carl_ray.model.backbone import build_backbone
    from carl_ray.objectives.views import CROPS
    from carl_ray.training.step import TrainingStep

    config = _config(sizes, sizes.lengths[0], "bf16")
    with torch.device("meta"):
        channels = build_backbone(config.model).channels
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
    from carl_ray.options import overridden
    from carl_ray.presets import PRESETS

    learnable = {} if sizes.preset == "pouring" else {"model.learnable": "block5"}
    return overridden(
        PRESETS[sizes.preset](),
        {"model.weights": "random", "model.num_frames": str(num_frames), "training.precision": precision}
        | learnable,
    )


def _timed_step(config: Config, device: torch.device, videos: int, repeats: int) -> tuple[Any, Any, Document]:
    """A training step, its batch, and what it takes."""
    import torch

    from benchmarks.parts.step import synthetic_batch
    from carl_ray.objectives.views import CROPS
    from carl_ray.training.step import TrainingStep

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
    from benchmarks.parts.step import median_seconds

    median_seconds(function, device, min(2, repeats))
    return median_seconds(function, device, repeats)


@dataclass(frozen=True)
class Part:
    """One part: what measures it, and how long it may take."""

    measure: Callable[[Sizes, torch.device], Document]
    seconds: float


PARTS = {
    "environment": Part(environment, 60),
    "tests": Part(tests, 150),
    "step": Part(step, 180),
    "long": Part(long, 90),
    "embedding": Part(embedding, 90),
    "color": Part(color, 60),
    "features": Part(features, 60),
    "compile": Part(compile_model, 180),
}
"""In this order: the last one is what a machine without a compiler fails at."""

if __name__ == "__main__":
    sys.exit(main())
