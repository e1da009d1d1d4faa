"""`benchmarks.gpu`: every part to its end on a CPU, and what is written of one that fails."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from benchmarks import gpu
from benchmarks.parts import gpu as parts

CPU = torch.device("cpu")


# Not here, for the time they take: the tests themselves, and what imports torch's compiler.
@pytest.mark.parametrize("part", [name for name in gpu.PARTS if name not in ("tests", "compile")])
def test_a_part(part: str) -> None:
    found = gpu.measure(part, CPU, tiny=True)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    match part:
        case "environment":
            assert found["packages"]["pydantic"] != "missing" and "gpu" not in found
        case "step":
            first, second = found["steps"]
            assert (first["precision"], second["precision"]) == ("fp32", "bf16")
            assert first["frames"] == 2 * 2 * 8 and first["ideal_s"] > 0
            assert first["share_of_ideal"] == pytest.approx(first["ideal_s"] / first["step_s"])
        case "long":
            assert (found["num_frames"], found["frames"]) == (40, 80)
        case "embedding":
            assert len(found["frames_s"]) == 3 and min(found["frames_s"].values()) > 0
        case "color":
            assert len(found["ways"]) == 3
        case "features":
            assert found["num_frames"] == 8


def test_a_command_and_a_part_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(part: str, options: argparse.Namespace, seconds: float) -> gpu.Document:
        return gpu._attempt(part, options)

    def fails(sizes: parts.Sizes, device: torch.device) -> gpu.Document:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "_in_own_process", measured)
    monkeypatch.setitem(parts.MEASURES, "long", fails)
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--tiny", "--parts", "environment,long", "--out", str(out)]
    assert gpu.main(arguments) == 1
    document = json.loads(out.read_text())
    assert document["failed"] == ["long"] and "torch" in document["parts"]["environment"]
    assert document["parts"]["long"]["error"] == "RuntimeError: out of memory"


@pytest.mark.parametrize(
    ("code", "seconds", "expected"),
    [
        ("import time; time.sleep(60)", 0.2, "not done within 0 s"),
        ("", 0.0, "not done within 0 s"),
        ("import sys; sys.exit('no device')", 60.0, "ended with 1: no device"),
        ("import os; os.kill(os.getpid(), 9)", 60.0, "ended with -9"),
    ],
)
def test_a_process_that_hangs_or_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, seconds: float, expected: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -S -c {code!r}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    options = argparse.Namespace(device="cpu", tiny=True)
    assert expected in gpu._in_own_process("step", options, seconds)["error"]


def test_stand_ins_are_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_STAND_INS", ("no_such_package", "no_such_package.part", "json"))
    for name in gpu._STAND_INS[:2]:
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)
    gpu.replace_missing()
    assert isinstance(sys.modules["no_such_package.part"], MagicMock)
    assert gpu._version("no_such_package") == "missing, a stand-in" and sys.modules["json"] is json


def test_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        gpu.main(["--parts", "steps"])
    assert left.value.code == 2 and "unknown part 'steps'" in capsys.readouterr().err
