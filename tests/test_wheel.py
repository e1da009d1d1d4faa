"""The built wheel, installed in an environment of its own: contents, commands, Python API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy: setuptools leaves build/ and *.egg-info behind."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, stdout=(folder / "files").open("wb"))
    for name in (folder / "files").read_text().rstrip("\0").split("\0"):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(folder / "source")], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a new environment with the wheel; dependencies come from the running environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--ignore-installed", str(wheel)], check=True)
    return folder / "bin"


def run(installed: Path, *command: str, cwd: Path) -> str:
    """Standard output of a command in the new environment, outside the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "RAY_"))}
    done = subprocess.run(
        [str(installed / command[0]), *command[1:]],
        cwd=cwd,
        env=environment | {"CARL_RAY_HOME": str(cwd / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(about).decode())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"carl_ray"}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "carl_ray").rglob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "carl_ray").rglob("*.jinja")}
    assert expected | {"carl_ray/py.typed"} <= set(names)
    assert ("carl_ray/data/_compiled.abi3.so" in names) == (shutil.which("cc") is not None)
    assert "-abi3-" in wheel.name
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert metadata["License-Expression"] == "Apache-2.0"
    required = [value for value in metadata.get_all("Requires-Dist") if "extra ==" not in value]
    assert not [value for value in required if value.startswith(("moto", "pytest", "optuna", "decord"))]


def test_the_compiled_part_is_found_beside_a_copy_without_it(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "carl_ray", tmp_path / "carl_ray", ignore=shutil.ignore_patterns("*.so"))
    code = "from carl_ray.data import compiled; print(compiled.__file__, compiled.library())"
    path, _, library = run(installed, "python", "-c", code, cwd=tmp_path).partition(" ")
    assert Path(path).is_relative_to(tmp_path)
    assert (str(installed.parent) in library) == (shutil.which("cc") is not None)


def test_commands(
    installed: Path, make_video: Callable[..., Path], tmp_path: Path, ray_session: None
) -> None:
    shown = run(installed, "carl-ray", "--help", cwd=tmp_path)
    assert shown.startswith("usage: carl-ray COMMAND")
    for command in ("train", "sweep", "jobs"):
        assert run(installed, "carl-ray", command, "--help", cwd=tmp_path).startswith(
            f"usage: carl-ray {command}"
        )
    started_as_module = run(installed, "python", "-m", "carl_ray.train", "--help", cwd=tmp_path)
    assert started_as_module.startswith("usage: python -m carl_ray.train")

    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / "videos" / name, 20)
    printed = run(installed, "carl-ray", "index", "videos", "--out", "manifest.parquet", cwd=tmp_path)
    assert "rejected: 0" in printed
    assert printed.splitlines()[-1].startswith("next: carl-ray train ")
    assert (tmp_path / "manifest.parquet").exists()


def test_python_api(installed: Path, tiny_run: Path, make_video: Callable[..., Path], tmp_path: Path) -> None:
    video = make_video(tmp_path / "video.mp4", 30)
    code = (
        "import json, sys, carl_ray; assert 'torch' not in sys.modules\n"
        "h = carl_ray.load_encoder(sys.argv[1]).embed(sys.argv[2])\n"
        "print(json.dumps([carl_ray.__file__, carl_ray.__version__, h.shape, str(h.dtype)]))"
    )
    printed = run(installed, "python", "-c", code, str(tiny_run), str(video), cwd=tmp_path)
    path, version, shape, dtype = json.loads(printed.splitlines()[-1])
    assert Path(path).is_relative_to(installed.parent)
    assert (version, shape, dtype) == ("0.1.0", [30, 8], "float32")
