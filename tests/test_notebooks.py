"""The notebooks of examples/notebooks: the same as their scripts, without outputs, and each runs on small videos."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "notebooks"
SHORTER = {"STEPS = 30": "STEPS = 12"}
SHOWN = {
    "own_videos": ["a.mp4: 40 frames x ", "b.mp4: 60 frames x ", "b.mp4, frame 19: ", " found: "],
    "compare_athletes": ["least alike: frame "],
    "own_objective": ["loss ", "a guess: 3.47"],
}
WRITTEN = {
    "own_videos": ["moments.png"],
    "compare_athletes": ["aligned.mp4", "difference.png", "pace.png"],
    "own_objective": ["loss.png"],
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_is_its_script_without_outputs(name: str) -> None:
    """After a change of a script: jupytext --to ipynb examples/notebooks/*.py."""
    jupytext, nbformat = pytest.importorskip("jupytext"), pytest.importorskip("nbformat")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    script = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    cells, expected = ([(c.cell_type, c.source) for c in one.cells] for one in (notebook, script))
    assert cells == expected
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_every_notebook_is_tested() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb")} == {
        f"{name}{suffix}" for name in SHOWN for suffix in (".py", ".ipynb")
    }


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs(
    name: str, make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for length, file in ((40, "videos/a.mp4"), (60, "videos/b.mp4"), (40, "first.mp4"), (60, "second.mp4")):
        make_video(tmp_path / file, length)
    before = set(tmp_path.iterdir())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        for text, other in SHORTER.items():
            cell.source = cell.source.replace(text, other)
    options = {"kernel_name": "python3", "timeout": 600, "resources": {"metadata": {"path": str(tmp_path)}}}
    nbclient.NotebookClient(notebook, startup_timeout=600, **options).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert all(text in printed for text in SHOWN[name]), printed
    assert sorted(path.name for path in set(tmp_path.iterdir()) - before) == WRITTEN[name]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a figure below a cell"
    if name == "own_objective":
        first, last = (float(word) for word in printed.split("loss ")[1].split(";")[0].split(" -> "))
        assert last < first / 2
