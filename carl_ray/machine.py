"""The machine that a command runs on: its cores, and its name in results."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CONTROL_GROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """CPU cores that this process may use: by its affinity, and by the CPU quota of its container, rounded down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _quota()
    return cores if share is None else max(1, min(cores, int(share)))


def _quota() -> float | None:
    """Seconds of CPU a second that control groups, version 2 or 1, grant; None: without a limit, or there are none."""
    try:
        maximum = _CONTROL_GROUPS / "cpu.max"
        if maximum.exists():
            quota, period = maximum.read_text(encoding="ascii").split()
        else:
            quota, period = (
                (_CONTROL_GROUPS / "cpu" / name).read_text(encoding="ascii")
                for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        # Without a limit version 2 says "max", version 1 -1.
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


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
