"""Every example runs as its docstring says, on small videos and with few steps."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import carl_ray
from carl_ray.objectives.base import Encoding, Terms
from carl_ray.objectives.choice import find_objective
from carl_ray.objectives.views import CROPS
from tests.objectives.test_contract import videos as videos_of_crops

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def videos(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two videos of 40 frames."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("a.mp4", "b.mp4"):
        make_video(folder / name, 40)
    return folder


def script(*arguments: object, cwd: Path) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested_and_short() -> None:
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tests
        assert len(path.read_text().splitlines()) <= 60, path


def test_embedding_one_video(tiny_run: Path, videos: Path, tmp_path: Path) -> None:
    printed = script(EXAMPLES / "embed_one_video.py", tiny_run, videos / "a.mp4", "a.npy", cwd=tmp_path)
    assert printed.startswith("40 frames x 8; ")
    embeddings = np.load(tmp_path / "a.npy")
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


@pytest.mark.slow
def test_own_backbone_and_objective(
    videos: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts whose classes the training workers import; one after the other in a process, which imports torch once."""
    code = "import runpy, sys\nfor name in ('own_backbone', 'own_objective'):"
    code += f"\n    sys.path[0], sys.argv[0] = {str(EXAMPLES)!r}, f'{EXAMPLES}/{{name}}.py'"
    code += f"\n    sys.argv[1:] = [{str(videos)!r}, f'{{name}}-run', '2']"
    code += "\n    runpy.run_path(sys.argv[0], run_name='__main__')"
    printed = script("-c", code, cwd=tmp_path)
    names = ("own_backbone.py", "own_objective.py")
    runs = [tmp_path / name.replace(".py", "-run") for name in names]
    assert {str(run) for run in runs} <= set(printed.splitlines())
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for run in runs:
        embedded = carl_ray.load_encoder(str(run)).embed(videos / "a.mp4")
        assert embedded.shape[0] == 40 and np.isfinite(embedded).all()
    config = json.loads((runs[1] / "config.json").read_text())
    assert config["objective"] == {"name": "own_objective:TimeRegression", "temperature": 0.1}


def test_own_objectives_keep_what_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the notebook's: float32 under autocast, and no influence of padding."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    notebook: dict[str, Any] = {"__name__": __name__}
    exec((EXAMPLES / "notebooks/own_objective.py").read_text().split("# ## One batch")[0], notebook)

    def terms(kind: type[Any], garbage: float = 0.0) -> Terms:
        frames, batch = videos_of_crops("scl", garbage)
        encodings = {CROPS: Encoding(frames, batch.views[CROPS].mask)}
        return kind(kind.Options(name="own"), 4, "frozen")(encodings, batch, 0.5)

    for kind in (find_objective("own_objective:TimeRegression"), notebook["NearestFrame"]):
        expected = terms(kind)
        torch.testing.assert_close(terms(kind, math.nan), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(terms(kind), expected)


@pytest.mark.slow
def test_own_videos(
    videos: Path,
    tmp_path: Path,
    local_training: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["own_videos.py", str(videos), "out", "1"])
    runpy.run_path(str(EXAMPLES / "own_videos.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "nearest to frame 20 of a.mp4:" in printed
    assert printed.splitlines()[-1].split()[1] == "b.mp4,"
