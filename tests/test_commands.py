"""Every command: help and mistakes answer at once, and what a message advises exists."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

from carl_ray import config
from carl_ray.presets import PRESETS
from tests.samples import manifest_row, write_rows

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    re.sub(r"(?<=\w\.)(\w+)\.__main__$", r"\1", ".".join(path.relative_to(ROOT).with_suffix("").parts))
    for folder in ("carl_ray", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)
SWEEP = "tuning/sweep.py"
HEAVY = ("torch", "torchvision", "ray", "scipy", "sklearn", "matplotlib", "cv2")
SOURCES = sorted(
    [*(ROOT / "carl_ray").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), ROOT / "tuning" / "sweep.py"]
)
LIMITS = (1.0, 150 * 2**20)
# Of the processor, for what `_slowness` does, where a second is the limit; 0.3 s where most commands take 0.4.
REFERENCE_SECONDS = 0.4

# Reads requests (command, arguments, environment, file for the output), a line each. Each runs as the command would,
# in a fork of a process that has imported what most commands do; its cost and what it imported are the last line of
# its output.
_WATCHED = f"""
import atexit, json, os, re, runpy, sys, time
import carl_ray.evaluation.embeddings, carl_ray.presets
heavy, before = {HEAVY!r}, time.process_time()
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        break
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
else:
    sys.exit()
command, arguments, environment, output = json.loads(line)
os.environ.update(environment)
sys.stdin = open(os.devnull)
file = os.open(output, os.O_WRONLY)
os.dup2(file, 1)
os.dup2(file, 2)
@atexit.register
def tell():
    # Not getrusage: its peak includes what the process was forked from.
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    cost = [before + time.process_time(), peak, [m for m in heavy if m in sys.modules]]
    print(json.dumps(cost), file=sys.stderr)
sys.argv = [command, *arguments]
if command.endswith(".py"):
    sys.path.insert(0, command.rpartition("/")[0])
    runpy.run_path(command, run_name="__main__")
else:
    runpy.run_module(command, run_name="__main__", alter_sys=True)
"""


def answer(command: str, *arguments: str, home: Path, limits: tuple[float, int] = LIMITS) -> tuple[int, str]:
    """Exit status and output of a command that must not import anything heavy, take a second or 150 MB."""
    # Of the processor, and the best of some times: other work on the machine slows it down.
    for _ in range(3):
        status, written = _run(command, arguments, home)
        output, _, last = written.rstrip().rpartition("\n")
        assert "Traceback" not in output
        seconds, peak, imported = json.loads(last)
        if seconds < limits[0]:
            break
    assert not imported, command
    assert seconds < limits[0] or seconds < limits[0] * _slowness(), command
    assert peak < limits[1], command
    return status, output


def _run(command: str, arguments: tuple[str, ...], home: Path) -> tuple[int, str]:
    process = _watched()
    assert process.stdin is not None and process.stdout is not None
    environment = {**os.environ, "CARL_RAY_HOME": str(home)}
    with tempfile.NamedTemporaryFile("r") as output:
        print(json.dumps([command, arguments, environment, output.name]), file=process.stdin, flush=True)
        return int(process.stdout.readline()), output.read()


def _slowness() -> float:
    """How many times as long as the reference this machine computes now; 1 to 5."""
    begin = time.process_time()
    for number in range(3_000_000):
        str(number)
    return min(5.0, max(1.0, (time.process_time() - begin) / REFERENCE_SECONDS))


@cache
def _watched() -> subprocess.Popen[str]:
    """A process that forks for each command; it ends with this one, which holds its standard input."""
    return subprocess.Popen(
        [sys.executable, "-c", _WATCHED],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_all_commands_are_found() -> None:
    doors = {"train", "index", "embed", "evaluate", "align", "search", "export", "jobs", "sizing"}
    doors |= {"compare", "datasets.pouring", "datasets.finegym", "datasets.kinetics400"}
    found = {f"carl_ray.{name}" for name in doors} | {
        "benchmarks.throughput",
        "benchmarks.soak",
        "benchmarks.paper",
    }
    assert found <= set(COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, SWEEP])
def test_help_answers_at_once(command: str) -> None:
    assert help_of(command).startswith("usage: python ")


@cache
def help_of(command: str, *arguments: str) -> str:
    status, output = answer(command, *arguments, "--help", home=Path("/nowhere"))
    assert status == 0
    return output


@pytest.mark.parametrize("command", [name for name in COMMANDS if name.count(".") > 1])
def test_an_unknown_option_answers_at_once(command: str, tmp_path: Path) -> None:
    status, output = answer(command, "--no-such-option", home=tmp_path)
    assert status == 2
    assert output.startswith("carl_ray: ") and "\n" not in output


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("carl_ray.train", ["pen_action"], "did you mean penn_action?"),
        ("carl_ray.train", ["penn_action"], "needs videos: --data.manifest"),
        ("carl_ray.train", ["penn_action", "--data.manifest", "gone.parquet"], f"{ROOT}/gone.parquet: no manifest"),
        ("carl_ray.train", ["--data.manifest", "ftp://host/m.parquet"], "expected a path or a file, s3 or gs URI"),
        ("carl_ray.train", ["--resume"], "--resume needs --run-dir"),
        ("carl_ray.train", ["--data.manifest", "s3://K:hushhush@b/m"], "data.manifest: expected a URI without cred"),
        ("carl_ray.train", ["--run-dir", "gone", "--resume"], f"{ROOT}/gone holds no run"),
        ("carl_ray.train", ["--run-dir", "BEGUN"], "begun already holds a run; another --run-dir starts anew"),
        ("carl_ray.train", ["--run-dir", "BEGUN", "--resume", "--training.epochs", "7"], "begun with training.epochs"),
        ("carl_ray.train", ["--model.init_from", "gone"], f"{ROOT}/gone: expected a run folder with a checkpoint"),
        ("carl_ray.train", ["--config", "gone.json"], "gone.json: no such file"),
        ("carl_ray.index", ["gone", "--out", "m.parquet"], f"{ROOT}/gone: no such folder"),
        ("carl_ray.index", ["gone"], "--out is missing"),
        ("carl_ray.index", ["--labels", "l.csv"], "labels need videos: name FOLDER and --out, or --update MANIFEST"),
        ("carl_ray.index", ["--update", "m.parquet"], "--update joins labels to a manifest that is there: it takes"),
        ("carl_ray.index", ["--update", "gone.parquet", "--label-from", "1"], f"{ROOT}/gone.parquet: no manifest"),
        ("carl_ray.index", ["tests", "--out", "m", "--labels", "gone.csv"], "gone.csv: no such file of labels"),
        ("carl_ray.index", ["a", "--out", "b", "--label-from", "x"], "expected folder, or the level of a folder from"),
        ("carl_ray.index", ["a", "--test-fraction", "30"], "--test-fraction: expected a number above 0 below 1"),
        ("carl_ray.index", ["a", "--test-fraction", "1"], "--test-fraction: expected a number above 0 below 1"),
        ("carl_ray.index", ["a", "--test-fraction", "nan"], "--test-fraction: expected a number above 0 below 1"),
        ("carl_ray.poses", ["gone.parquet", "--out", "k.parquet"], f"{ROOT}/gone.parquet: no manifest there"),
        ("carl_ray.poses", ["gone.parquet"], "the following arguments are required: --out"),
        ("carl_ray.embed", [], "no trained demo there"),
        ("carl_ray.embed", ["--checkpoint", "gone", "--out", "e"], f"{ROOT}/gone: expected a run folder"),
        ("carl_ray.evaluate", [], "no trained demo there"),
        ("carl_ray.evaluate", ["--train", "a", "--test", "a", "--out", "b"], f"{ROOT}/a: no embeddings there"),
        ("carl_ray.align", ["gone.mp4", "b.mp4"], f"{ROOT}/gone.mp4: no such file"),
        ("carl_ray.align", ["README.md", "README.md", "--checkpoint", "gone"], f"{ROOT}/gone: expected a run folder"),
        ("carl_ray.search", ["a", "--embeddings", "gone"], f"{ROOT}/gone: no embeddings there"),
        ("carl_ray.explore", ["--embeddings", "gone"], f"{ROOT}/gone: no embeddings there"),
        ("carl_ray.explore", ["--port", "70000"], "--port: expected a whole number of at least 0 up to 65535"),
        ("carl_ray.propagate", ["--embeddings", "gone", "--out", "p.csv"], f"{ROOT}/gone: no embeddings there"),
        ("carl_ray.segments", ["--embeddings", "gone", "--out", "s.csv"], f"{ROOT}/gone: no embeddings there"),
        ("carl_ray.propagate", ["--out", "p.csv"], "the following arguments are required: --embeddings"),
        ("carl_ray.export", ["--embeddings", "gone", "--out", "o"], f"{ROOT}/gone: no embeddings there"),
        ("carl_ray.compare", ["gone", "--out", "t.md"], "gone/metrics.json: no such file"),
        ("benchmarks.paper", ["99"], "unknown table '99'"),
        ("benchmarks.paper", ["13", "--manifest", "gone.parquet"], f"{ROOT}/gone.parquet: no manifest there"),
        ("carl_ray.sizing", ["gone.mp4", "pouring"], "gone.mp4: expected a video: no such file"),
        ("benchmarks.throughput", ["gone"], "gone: no such folder on this machine"),
        ("carl_ray.sizing", ["a.mp4", "pen_action"], "did you mean penn_action?"),
        ("carl_ray.jobs", ["submit", "demo", "--folder", "/f", "--set", "vidoes=/v"], "has no parameter 'vidoes'"),
        ("carl_ray.jobs", ["submit", "pouring", "--folder", "/f", "--set", "manifest=m.parquet"], "m.parquet: a job"),
        ("benchmarks.soak", ["--minutes", "0"], "--minutes: expected a number above 0"),
        (SWEEP, ["los"], "unknown space 'los'; did you mean loss?"),
        (SWEEP, ["--preset", "pouring", "--data.manifest", "gone.parquet"], f"{ROOT}/gone.parquet: no manifest there"),
        (SWEEP, ["--model.init_from", "gone"], f"{ROOT}/gone: expected a run folder with a checkpoint"),
    ],
)  # fmt: skip
def test_mistakes_answer_at_once(command: str, arguments: list[str], message: str, tmp_path: Path) -> None:
    """Before Ray starts, and before anything heavy is imported."""
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.json").write_text(config.to_json(PRESETS["demo"]()))
    given = [str(begun) if argument == "BEGUN" else argument for argument in arguments]
    status, output = answer(command, *given, home=tmp_path / "home")
    lines = output.splitlines()
    assert (status, len(lines)) == (2, 1), output
    assert lines[0].startswith("carl_ray: ") and message in lines[0]


def test_a_file_of_weights_that_is_not_there(tmp_path: Path) -> None:
    manifest = write_rows([manifest_row()], tmp_path / "m.parquet")
    arguments = ["pouring", "--data.manifest", manifest, "--model.weights", "gone.pt"]
    # Reading a table takes time and memory of its own.
    status, output = answer("carl_ray.train", *arguments, home=tmp_path / "home", limits=(3.0, 250 * 2**20))
    assert (status, output) == (2, f"carl_ray: model.weights: {ROOT}/gone.pt: no such file")


def test_weights_out_of_reach_are_found_out_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for command in ("carl_ray.train", SWEEP):
        arguments = ["--model.backbone", "resnet18", "--model.weights", "imagenet"]
        status, output = answer(command, *arguments, home=tmp_path / "home")
        assert status == 1
        assert "could not reach https://download.pytorch.org for torchvision's ImageNet weights" in output
        assert "--model.weights random" in output


def _messages(path: Path) -> list[str]:
    """The sentences among the texts of a module that give advice about our own commands."""
    if path.parent.name == "faults":  # they start Ray's commands
        return []
    texts = (text for text in _texts(path) if " " in text and "tensorboard --logdir" not in text)
    return [text.replace("{}", "…") for text in texts]


@cache
def _texts(path: Path) -> list[str]:
    """The text constants of a module, pieces of f-strings joined, its docstrings left out."""
    tree = ast.parse(path.read_text())
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    skipped = documented | {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
    } - {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            texts.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            texts.append(node.value)
    return texts


def options_of(command: str) -> set[str]:
    """The options in a command's help."""
    text = help_of(command)
    if command == "carl_ray.jobs":
        text += "".join(help_of(command, name) for name in ("submit", "status", "logs", "stop"))
    return set(re.findall(r"--[a-z][\w.-]*\w", text))


def test_every_advised_option_exists() -> None:
    """A command's own messages name its own options; those of modules below, options of some command."""
    known_of = {command: options_of(command) for command in (*COMMANDS, SWEEP)}
    every = set().union(*known_of.values())
    wrong = []
    for path in SOURCES:
        relative = path.relative_to(ROOT)
        command = str(relative) if path.parent.name == "tuning" else ".".join(relative.with_suffix("").parts)
        own = known_of.get(command)
        for text in _messages(path):
            for named in re.finditer(r"(?<![\w-])--[a-z][\w.-]*\w", text):
                before = re.findall(r"python -m ((?:carl_ray|benchmarks)\.[\w.]+)", text[: named.start()])
                meant = known_of.get(before[-1]) if before else own
                known = every if meant is None else meant
                # A whole section may be meant, as in "the --model options".
                if not any(option == named[0] or option.startswith(f"{named[0]}.") for option in known):
                    wrong.append(f"{relative}: {named[0]} in {text!r}")
    assert not wrong, "\n".join(wrong)


def test_every_advised_command_exists() -> None:
    for path in SOURCES:
        for text in _texts(path):
            for command in re.findall(r"python -m ((?:carl_ray|benchmarks)[\w.]*\w)", text):
                assert command in COMMANDS, f"{path}: {text!r}"
