"""The command `python -m carl_ray.study`: every run once, one table, mistakes one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from carl_ray import study
from carl_ray.config import Config
from carl_ray.datasets import choreography
from carl_ray.studies import runs
from carl_ray.training.checkpoint import Progress, save_checkpoint
from carl_ray.training.step import TrainingStep
from carl_ray.training.trainer import Outcome


def untrained(config: Config, run_dir: str, *, resume: bool) -> Outcome:
    progress = Progress(step=1, row=8, num_bad_rows=0, num_skipped_steps=0, seconds=0.0, videos="0")
    save_checkpoint(run_dir, TrainingStep(config, torch.device("cpu"), 1), progress, 1)
    return Outcome(True, 1, 1, None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["12"], "unknown table '12'"), (["13", "--seeds", "0"], "--seeds: expected at least 1, got 0")],
)
def test_mistakes_on_the_command_line(arguments, expected, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        study.main(arguments)
    captured = capsys.readouterr().err
    assert left.value.code == 2 and expected in captured and len(captured.splitlines()) == 1


def test_a_table_is_run_once(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path))
    few = choreography.ChoreographyConfig(num_train=8, num_validation=4, num_test=12, size=32)
    rendered = choreography.ensure_rendered
    monkeypatch.setattr(
        choreography, "ensure_rendered", lambda **options: rendered(config=few, **options | {"workers": 1})
    )
    # Training is tested elsewhere, and takes long to start: here it ends where it begins.
    monkeypatch.setattr(runs, "train", untrained)
    arguments = ["13", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "study")]
    study.main(arguments)
    printed = capsys.readouterr().out
    assert "2 runs, 2 of them still to be done" in printed
    result = json.loads((tmp_path / "study" / "table-13.json").read_text())
    assert (result["table"], result["seeds"], result["epochs"]) == ("13", 1, 1)
    assert result["command"].endswith("carl_ray.study " + " ".join(arguments))
    first, second = result["rows"]
    for metric in ("phase_classification", "alignment_error"):
        values = [row["metrics"][metric]["values"] for row in (first, second)]
        assert all(len(value) == 1 and value[0] is not None for value in values)
    text = (tmp_path / "study" / "table-13.md").read_text()
    assert text in printed and "contrastive baseline" in text and "*positions* (of SCL)" in text

    def trained_again(*arguments, **options):
        raise AssertionError("a run that was done is done again")

    monkeypatch.setattr(runs, "train", trained_again)
    study.main(arguments)
    assert "2 runs, 0 of them still to be done" in capsys.readouterr().out
