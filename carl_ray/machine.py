"""Properties of this machine (CPU cores, bf16 support, name, software versions), and its threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_CONTROL_GROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """CPU cores of this process: by affinity and its container's quota, rounded down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _quota()
    return cores if share is None else max(1, min(cores, int(share)))


def _quota() -> float | None:
    """CPU quota of the control group (version 2 or 1) in CPUs; None without a limit."""
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


@contextmanager
def single_threaded() -> Iterator[None]:
    """Limit NumPy, SciPy and torch, and other numeric libraries that are loaded, to one thread each.

    Their threads busy-wait for each other. With many small matrices, as the metrics of frames have, two threads on two
    cores take twice as long as one, and four times as long where other programs run.
    """
    # Only libraries that are loaded can be limited.
    import scipy.linalg  # noqa: F401
    import torch
    from threadpoolctl import threadpool_limits

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Else torch sets all cores at its first operation.
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(num_threads)


def has_native_bf16(device_type: str) -> bool:
    """Whether the GPU ("cuda") or CPU ("cpu") multiplies bf16 matrices in hardware.

    Elsewhere bf16 is emulated, about ten times as slow as float32. The environment variables that disable
    instructions of torch and oneDNN (`ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA`) are respected.
    """
    # Import torch lazily: available_cores() must stay cheap.
    import torch

    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Names of instruction sets with bf16, in both libraries, contain one of these.
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and any(name in allowed for name in ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT"))
        and not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu_information("flags").split())
    )


def bf16_slowdown() -> float:
    """Time of a convolution in bf16 over that in float32 on this CPU; takes 0.1 s."""
    import torch

    weight = torch.ones(32, 32, 3, 3)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        inputs, filters = torch.ones(4, 32, 24, 24, dtype=dtype), weight.to(dtype)
        torch.conv2d(inputs, filters)
        begin = time.perf_counter()
        for _ in range(3):
            torch.conv2d(inputs, filters)
        seconds[dtype] = time.perf_counter() - begin
    return seconds[torch.bfloat16] / seconds[torch.float32]


def machine_name(*, use_gpu: bool) -> str:
    """Processor, cores, GPU (if used) and torch version, in one line."""
    import torch

    processor = _cpu_information("model name") or platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if use_gpu and torch.cuda.is_available() else ""
    return f"{processor}, {available_cores()} cores{gpu}, torch {torch.__version__}"


def _cpu_information(field: str) -> str:
    """A field of the first CPU in /proc/cpuinfo; empty if there is none (not Linux)."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return ""
    lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def software_versions() -> dict[str, str]:
    """Versions of Python and the libraries of a run; `commit` in a Git checkout."""
    # Lazily: only a run needs FFmpeg.
    import av

    found = {}
    for name in ("carl_ray", "torch", "ray", "av"):
        # On the nodes of a cluster this package may be a folder without metadata (Ray's working_dir).
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    found |= {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    found["python"] = platform.python_version()
    checkout = Path(__file__).parents[1]
    if (checkout / ".git").exists():  # else Git would find the repository of an environment that lies in one
        options = ("--always", "--dirty", "--abbrev=40", "--exclude=*")
        command = ["git", "-C", str(checkout), "describe", *options]
        with suppress(OSError, subprocess.SubprocessError):  # No Git, or the folder is another user's.
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            found["commit"] = done.stdout.strip()
    return found


def major_differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Differences in major versions, as "torch 1.13.1 before, now 2.4.0"."""
    names = sorted(before.keys() & now.keys() - {"commit"})
    parts = {name: 2 if name == "python" else 1 for name in names}
    return [
        f"{name} {before[name]} before, now {now[name]}"
        for name in names
        if before[name].split(".")[: parts[name]] != now[name].split(".")[: parts[name]]
    ]
