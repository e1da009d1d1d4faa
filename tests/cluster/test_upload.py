"""`ray job submit --working-dir .` sends the package, and neither data nor environments nor secrets."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from carl_ray.data.manifest import VIDEO_SUFFIXES

ROOT = Path(__file__).parents[2]
SENT = ("carl_ray", "tuning", "cluster", "pyproject.toml", "setup.py", "README.md", "LICENSE")
LEFT = [
    ".git/objects/pack",
    ".venv/lib/python3.12/site-packages/torch/__init__.py",
    ".venv311/bin/python",
    "venv/bin/python",
    "build/lib/carl_ray/train.py",
    "carl_ray.egg-info/PKG-INFO",
    "carl_ray/data/__pycache__/sample.pyc",
    "carl_ray/data/_compiled.abi3.so",
    ".mypy_cache/cache.db",
    ".env",
    "data/raw/annotations.csv",
    "datasets/penn_action/frames/0001/000001.jpg",
    "videos/squat.txt",
    "runs/first/config.json",
    "somewhere/weights.pth",
    "somewhere/archive.tar.gz",
    "carl_ray/manifest.parquet",
    *(f"somewhere/else/video{suffix}" for suffix in sorted(VIDEO_SUFFIXES)),
]


def files_below(folder: Path, *names: str) -> set[str]:
    found = [path for name in names for path in (folder / name, *(folder / name).rglob("*"))]
    return {str(path.relative_to(folder)) for path in found if path.is_file()}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What is sent of this repository, as it lies on a laptop that has worked with it."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in (*SENT, ".gitignore", ".rayignore"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def sent(folder: Path) -> set[str]:
    """The files that Ray packs, as both `ray job submit` and Ray's own driver do."""
    package = folder.parent / "package.zip"
    create_package(str(folder), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_the_whole_package_is_sent_and_nothing_else(checkout: Path) -> None:
    wanted = files_below(checkout, *SENT)
    assert "carl_ray/data/stream.py" in wanted
    assert "carl_ray/datasets/finegym.py" in wanted
    for name in LEFT:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(b"large or private")
    assert sent(checkout) - {".gitignore", ".rayignore"} == wanted


def test_without_the_file_data_would_be_sent(checkout: Path) -> None:
    (checkout / ".rayignore").unlink()
    (checkout / "squat.mp4").write_bytes(b"large")
    assert "squat.mp4" in sent(checkout)
