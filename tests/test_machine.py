"""The cores that a process may use, and whether its CPU multiplies bfloat16."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from carl_ray import machine


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "350000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "unheard of\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "20000\n", "cpu/cpu.cfs_period_us": "10000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "20000\n"}, 8),
    ],
)
def test_a_quota_limits_the_cores(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(machine, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert machine.available_cores() == expected


def test_affinity_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("400000 100000")
    monkeypatch.setattr(machine, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {0, 5}, raising=False)
    assert machine.available_cores() == 2


@pytest.mark.parametrize(
    ("flags", "capability", "allowed", "expected"),
    [
        ("fma avx2 avx512f avx512_bf16", "AVX512", None, True),
        ("fma avx2 avx512f amx_bf16 amx_tile", "AVX512", "ALL", True),
        ("fma avx2 avx512f", "AVX512", None, False),
        ("fma avx2", "AVX2", None, False),
        ("", "DEFAULT", None, False),
        ("fma avx2 avx512f avx512_bf16", "AVX2", None, False),
        ("fma avx2 avx512f avx512_bf16", "AVX512", "AVX2", False),
        ("fma avx2 avx512f avx512_bf16", "AVX512", "avx512_core_vnni", False),
        ("fma avx2 avx512f avx512_bf16", "AVX512", "AVX512_CORE_BF16", True),
    ],
)
def test_native_bf16_of_a_cpu(
    flags: str, capability: str, allowed: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_cpu_information", lambda field: {"flags": flags}[field])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert machine.has_native_bf16("cpu") is expected


def test_bf16_is_slower_where_a_cpu_must_emulate_it() -> None:
    # Of some measurements, each of a few milliseconds: other work on the machine may stop one in the middle.
    command = "from statistics import median; from carl_ray.machine import bf16_slowdown, has_native_bf16 as native; "
    command += "print(native('cpu'), median(bf16_slowdown() for _ in range(9)))"
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    printed = subprocess.run(
        [sys.executable, "-c", command],
        env=os.environ | limits,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert printed[0] == "False"
    assert float(printed[1]) > 2


def test_versions_of_what_a_run_computes_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine.software_versions()
    commit = found.pop("commit", None)  # Where the tests run in a checkout.
    assert found.keys() == {"carl_ray", "torch", "ray", "av", "libavcodec", "libswscale", "python"}
    assert all(version[0].isdigit() for version in found.values())
    assert commit is None or len(commit.removesuffix("-dirty")) == 40
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "carl_ray" / "machine.py"))
    assert "commit" not in machine.software_versions()
    (tmp_path / ".git").mkdir()  # Not one that Git understands.
    assert "commit" not in machine.software_versions()


def test_one_thread_for_whatever_library_computes() -> None:
    """In a process where none of them is loaded, and with the threads that they take by themselves."""
    code = """
from threadpoolctl import threadpool_info
from carl_ray.machine import single_threaded
def numbers():
    import scipy.linalg, torch
    torch.ones(512, 512) @ torch.ones(512, 512)
    return {pool["num_threads"] for pool in threadpool_info()} | {torch.get_num_threads()}
with single_threaded():
    inside = numbers()
print(inside, numbers())
"""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | threads, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == "{1} {2}"


def test_major_versions_that_differ_are_named() -> None:
    before = {"torch": "1.13.1", "ray": "2.9.0", "python": "3.11.7", "av": "14.0.0", "commit": "a"}
    now = {"torch": "2.14.1", "ray": "2.60.0", "python": "3.12.1", "libavcodec": "62.1.0", "commit": "b"}
    assert machine.major_differences(before, now) == [
        "python 3.11.7 before, now 3.12.1",
        "torch 1.13.1 before, now 2.14.1",
    ]
    # Of a run that recorded none.
    assert machine.major_differences({}, now) == machine.major_differences(now, now) == []
