"""`python -m carl_ray.compare`: the rows of the paper's table 14 beside ours, from two metrics.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from carl_ray import compare
from tests.embedded import failure


def write_metrics(folder: Path, preset: str, value: float, metrics: tuple[str, ...]) -> str:
    def entries(value: float) -> dict[str, Any]:
        ends = {"low": value - 0.01, "high": value + 0.01}
        return {metric: {"value": value, **ends, "left_out": {}} for metric in metrics}

    document = {
        "trained": entries(value),
        "untrained": None,
        "positions": entries(0.5),
        "chance": {metric: {"value": None, "low": None, "high": None, "left_out": {}} for metric in metrics},
        "origin": {"preset": preset, "step": 1234},
        "bootstrap": {"level": 0.95},
        "test": {"videos": 966},
    }
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(document))
    return str(folder)


def test_both_rows_of_table_14(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ("average_precision_at_5", "kendalls_tau", "phase_classification", "phase_progression")
    folders = [
        write_metrics(tmp_path / "a", "kinetics400", 0.91, metrics),
        write_metrics(tmp_path / "b", "kinetics400_to_penn_action", 0.938, metrics[1:]),
    ]
    out = tmp_path / "tables" / "table_14.md"
    compare.main([*folders, "--out", str(out)])
    lines = out.read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert table[0] == ["", "phase classification (%)", "phase progression (R²)", "Kendall's tau"]
    missing = ["–"] * 3
    assert table[2:] == [
        ["**kinetics400**, step 1,234", "91.0 [90.0, 92.0]", "0.910 [0.900, 0.920]", "0.910 [0.900, 0.920]"],
        ["… *untrained*", *missing],
        ["… *positions*", "50.0 [49.0, 51.0]", "0.500 [0.490, 0.510]", "0.500 [0.490, 0.510]"],
        ["… *chance*", *["undefined"] * 3],
        ["… paper: CARL, Kinetics-400 → PennAction, no tuning (table 14)", "91.9", "0.903", "0.949"],
        [
            "**kinetics400_to_penn_action**, step 1,234",
            *("93.8 [92.8, 94.8]", "0.938 [0.928, 0.948]", "0.938 [0.928, 0.948]"),
        ],
        ["… *untrained*", *missing],
        ["… *positions*", "50.0 [49.0, 51.0]", "0.500 [0.490, 0.510]", "0.500 [0.490, 0.510]"],
        ["… *chance*", *["undefined"] * 3],
        ["… paper: CARL, Kinetics-400 → PennAction, tuned (table 14)", "93.9", "0.908", "0.977"],
    ]
    assert lines[-1].startswith("In brackets the 95% bootstrap interval over test videos (966, 966).")
    assert lines[2] in capsys.readouterr().out


def test_numbers_of_other_data_are_said_to_be(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "a", "demo", 0.9, ("phase_classification",))
    compare.main([folder, "--out", str(tmp_path / "table.md")])
    text = (tmp_path / "table.md").read_text()
    assert "… paper: CARL on PennAction (tables 1 and 2), other data | 93.07 |" in text
    assert "| 93.07 | 0.918 |" in text


def test_mean_over_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ("phase_classification", "kendalls_tau")
    folders = [
        write_metrics(tmp_path / "1", "regions_ucf101", 0.9, metrics),
        write_metrics(tmp_path / "2", "regions_ucf101", 0.93, ("video_recall_at_1", *metrics)),
        write_metrics(tmp_path / "3", "regions_ucf101", 0.96, metrics),
    ]
    out = tmp_path / "table.md"
    compare.main([*folders, "--mean", "--out", str(out)])
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in out.read_text().splitlines()[:4]
    ]
    assert table[0] == ["", "1", "2", "3", "mean", "mean, *positions*", "mean, *chance*"]
    values = ["90.0 [89.0, 91.0]", "93.0 [92.0, 94.0]", "96.0 [95.0, 97.0]", "93.0 ± 3.0", "50.0 ± 0.0"]
    assert table[2] == ["phase classification (%)", *values, "undefined"]
    assert table[3][0] == "Kendall's tau" and table[3][4] == "0.930 ± 0.030"

    assert "- 2: regions_ucf101, step 1,234, " in out.read_text()
    for given in (folders[:1], [folders[0], folders[0] + "/"]):
        error = failure(capsys, compare, *given, "--mean", "--out", out)
        assert "--mean: expected at least two evaluations in different folders" in error
    other = write_metrics(tmp_path / "4", "csvr_ucf101", 0.96, metrics)
    error = failure(capsys, compare, folders[0], other, "--mean", "--out", out)
    assert "--mean: expected evaluations of one preset, got regions_ucf101, csvr_ucf101" in error
    other = write_metrics(tmp_path / "5", "regions_ucf101", 0.96, ("average_precision_at_5",))
    assert "no metric in common" in failure(capsys, compare, folders[0], other, "--mean", "--out", out)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"trained": {}}'])
def test_what_is_no_evaluation(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    error = failure(capsys, compare, tmp_path, "--out", tmp_path / "table.md")
    assert f"{tmp_path}/metrics.json: no" in error
    assert not (tmp_path / "table.md").exists()
