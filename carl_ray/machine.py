"""The machine that a command runs on: its cores, and its name in results."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_name(*, use_gpu: bool) -> str:
    """Processor, cores, the GPU where it was used, and torch, in one line."""
    # Late: who only counts cores need not wait for it.
    import torch

    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        processor = next(models, processor)
    gpu = f", {torch.cuda.get_device_name()}" if use_gpu and torch.cuda.is_available() else ""
    return f"{processor}, {available_cores()} cores{gpu}, torch {torch.__version__}"
