"""`benchmarks.studies.cached`: runs on cached features, and videos of two rates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import paper
from benchmarks.paper_tables import TABLES
from benchmarks.studies import cached
from carl_ray.config import Config
from carl_ray.data.features import create_cache, open_cache, read_features, write_part
from carl_ray.data.manifest import SCHEMA, read_manifest

CHANNELS = 128
"""Of the backbone `small`."""


def rows() -> list[dict]:
    made = []
    for number in range(14):
        frames = 30 + 2 * number
        phases = np.repeat([-1, 0, 1, 2, -1], -(-frames // 5))[:frames]
        made.append(
            {
                "video_id": f"{number}",
                "uri": f"/{number}.mp4",
                "content_hash": f"{number}",
                "split": "train" if number < 8 else "test" if number < 12 else "validation",
                "label": f"action {number % 2}",
                "num_frames": frames,
                "frame_labels": phases.tolist(),
                "progress": np.linspace(0, 1, frames).tolist(),
                **{"width": 96, "height": 96, "rotation": 0, "bytes": 1, "verified": True},
                **{"frame_step": 1.0, "fps": 25.0, "key_frames": [0, frames - 1]},
            }
        )
    return made


def computed(table: pa.Table, uri: str, config: Config) -> None:
    """Features that turn around a circle, in the place of a backbone's."""
    if open_cache(uri) is None:
        create_cache(uri, config, "digest", CHANNELS)
        rng = np.random.default_rng(0)
        plane = rng.standard_normal((2, CHANNELS))
        for number, frames in enumerate(table.column("num_frames").to_pylist()):
            angles = np.linspace(0, 2 * np.pi, frames)
            circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane
            copies = [circle + 0.1 * rng.standard_normal(circle.shape) for _ in range(3)]
            write_part(uri, table.slice(number, 1), [[copy.astype(np.float16) for copy in copies]])


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cached, "_compute", computed)
    whole = cached.base_config

    def small(epochs: int, folder: Path) -> Config:
        config = whole(epochs, folder)
        model = replace(config.model, num_frames=8, backbone="small", weights="random")
        model = replace(model, hidden_width=16, width=16, num_layers=1, num_heads=2, feedforward_width=16)
        return replace(config, model=model)

    monkeypatch.setattr(cached, "base_config", small)
    pq.write_table(pa.Table.from_pylist(rows(), schema=SCHEMA), tmp_path / "manifest.parquet")
    return tmp_path


def test_videos_of_two_rates(study: Path) -> None:
    cached.prepare(str(study / "manifest.parquet"), study)
    whole = pq.read_table(study / "features" / "manifest.parquet").to_pylist()
    assert [row["split"] for row in whole] == ["train"] * 8 + ["test"] * 4
    for name, unit in cached.MIXED.items():
        cache = open_cache(str(study / name))
        table = read_manifest(str(study / name / "manifest.parquet"))
        assert cache is not None
        places = cache.locate_all(table).select(["features_part", "features_group"]).to_pylist()
        for number, (row, place, other) in enumerate(zip(table.to_pylist(), places, whole, strict=True)):
            step = 2 if number % 2 else 1
            assert row["num_frames"] == len(row["progress"]) == -(-other["num_frames"] // step)
            assert row["frame_labels"] == other["frame_labels"][::step]
            assert row["frame_step"] == (unit if step == 2 else 1.0) and row["fps"] == 25 / step
            assert len(read_features(*place.values())) == row["num_frames"]


def test_a_table_is_run_once_without_ray(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rates", "--frozen", "--seeds", "1", "--epochs", "1", "--out", str(study / "out")]
    arguments += ["--manifest", str(study / "manifest.parquet")]
    arguments += ["--row", "seconds, variance 10", "--row", "frames, variance 1"]
    paper.main(arguments)
    assert "2 runs, 2 of them still to be done" in capsys.readouterr().out
    document = json.loads((study / "out" / "table-rates-frozen-rows.json").read_text())
    assert [row["name"] for row in document["rows"]] == ["seconds, variance 10", "frames, variance 1"]
    first, second = (row["metrics"] for row in document["rows"])
    assert first != second and 0 < first["phase_classification"]["mean"] <= 1
    assert document["controls"]["positions"]["kendalls_tau"]["mean"] is not None

    def again(*arguments: object) -> None:
        raise AssertionError("a run that was done is done again")

    monkeypatch.setattr(cached, "measure", again)
    paper.main(arguments)
    assert "2 runs, 0 of them still to be done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rates"], "table rates: expected --frozen"),
        (["7", "--frozen"], "table 7 is about the backbone, which is frozen there"),
        (["grid", "--row", "SCL"], "--row: unknown row 'SCL'"),
    ],
)
def test_mistakes(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        paper.main(arguments)
    assert left.value.code == 2 and expected in capsys.readouterr().err


def test_the_grid_has_every_variance_and_temperature() -> None:
    values = {
        (row.options.get("objective.variance"), row.options["objective.temperature"])
        for row in TABLES["grid"].rows
    }
    assert len(values) == 15 and {variance for variance, _ in values} == {None, "1", "4", "10", "25"}
