"""Every example runs as its docstring says, on small videos and with few steps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import carl_ray

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def videos(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two videos of 40 frames."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("a.mp4", "b.mp4"):
        make_video(folder / name, 40)
    return folder


def run(name: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested_and_short() -> None:
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tests
        assert len(path.read_text().splitlines()) <= 60, path


def test_embedding_one_video(tiny_run: Path, videos: Path, tmp_path: Path) -> None:
    printed = run("embed_one_video.py", tiny_run, videos / "a.mp4", "a.npy", cwd=tmp_path)
    assert printed.startswith("40 frames x 8; ")
    embeddings = np.load(tmp_path / "a.npy")
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


@pytest.mark.slow
def test_own_backbone(
    videos: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = run("own_backbone.py", videos, "run", 2, cwd=tmp_path)
    assert printed.splitlines()[-1] == str(tmp_path / "run")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    embedded = carl_ray.load_encoder(str(tmp_path / "run")).embed(videos / "a.mp4")
    assert embedded.shape[0] == 40 and np.isfinite(embedded).all()


@pytest.mark.slow
def test_own_objective(
    videos: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = run("own_objective.py", videos, "run", 2, cwd=tmp_path)
    assert printed.splitlines()[-1] == str(tmp_path / "run")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["objective"] == {"name": "own_objective:TimeRegression", "temperature": 0.1}
    assert np.isfinite(carl_ray.load_encoder(str(tmp_path / "run")).embed(videos / "a.mp4")).all()


@pytest.mark.slow
def test_own_videos(videos: Path, tmp_path: Path, ray_session: None) -> None:
    printed = run("own_videos.py", videos, "out", 1, cwd=tmp_path)
    assert "nearest to frame 20 of a.mp4:" in printed
    assert printed.splitlines()[-1].split()[1] == "b.mp4,"
