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
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock
from xml.etree import ElementTree

if TYPE_CHECKING:
    import torch


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
        found[part] = _in_own_process(part, options, min(PARTS[part], left))
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
            with subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True, start_new_session=True
            ) as process:
                try:
                    _, errors = process.communicate(timeout=seconds)
                except BaseException:
                    os.killpg(process.pid, signal.SIGKILL)  # with processes of its own, which hold the GPU
                    raise
        except (TimeoutError, subprocess.TimeoutExpired):
            return {"error": f"not done within {max(0, seconds):.0f} s"}
        if not out.exists():
            return {"error": f"its process ended with {process.returncode}: {errors[-2000:]}"}
        return json.loads(out.read_text())


def _attempt(part: str, options: argparse.Namespace) -> Document:
    """What a part measured, or its error."""
    begin = time.monotonic()
    try:
        import torch

        document = measure(part, torch.device(options.device), tiny=options.tiny)
    except Exception as error:
        document = {
            "error": f"{type(error).__name__}: {error}"[:2000],
            "trace": traceback.format_exc()[-4000:],
        }
    return document | {"seconds": round(time.monotonic() - begin, 1)}


def environment(device: torch.device) -> Document:
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


def tests(device: torch.device) -> Document:
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


def measure(part: str, device: torch.device, *, tiny: bool) -> Document:
    """What a part measures."""
    own = {"environment": environment, "tests": tests}
    if part in own:
        return own[part](device)
    # Imported late: stand-ins come first.
    from benchmarks.parts.gpu import MEASURES, TINY, Sizes

    return MEASURES[part](TINY if tiny else Sizes(), device)


PARTS = {
    "environment": 60.0,
    "tests": 150.0,
    "step": 180.0,
    "long": 90.0,
    "embedding": 90.0,
    "color": 60.0,
    "features": 60.0,
    "compile": 180.0,
}
"""The most seconds of each, in this order: the last one is what a machine without a compiler fails at."""

if __name__ == "__main__":
    sys.exit(main())
