"""`benchmarks.paper_tables`: every row is a valid config, and the numbers are the paper's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.paper_tables import TABLES, finegym_table, frames_table, pretrained_table
from benchmarks.studies.cached import base_config
from benchmarks.studies.runs import digest, row_config
from carl_ray.evaluation.tasks import metric_names
from carl_ray.paper import PROTOCOLS
from carl_ray.presets import PRESETS


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_configs_of_their_own(name: str) -> None:
    table = TABLES[name]
    names = [row.name for row in table.rows]
    assert len(set(names)) == len(names) and table.reference in names
    assert set(table.metrics) <= set(metric_names(PROTOCOLS["phases"]))
    base = base_config(1, Path("study")) if name == "rates" else PRESETS["demo"]()
    configs = []
    for row in table.rows:
        config = row_config(base, dict(row.options), 7)
        assert config.training.seed == 7
        assert set(row.paper) <= set(metric_names(PROTOCOLS["phases"]))
        configs.append(config)
    assert len({digest(config) for config in configs}) == len(configs)
    # An order can be the paper's only against a row that the paper has, in the columns that it has.
    reference = next(row for row in table.rows if row.name == table.reference)
    columns = {column for row in table.rows for column in row.paper}
    assert not reference.paper or set(reference.paper) == columns


def test_options_take_effect() -> None:
    base = PRESETS["demo"]()
    rows = {
        (n, row.name): row_config(base, dict(row.options), 0)
        for n, t in TABLES.items()
        for row in t.rows
        if n != "rates"
    }
    assert rows["5", "ResNet + C3D"].model.temporal_encoder == "c3d"
    assert rows["6", "0 layers"].model.num_layers == 0
    assert rows["7", "block 4+5"].model.learnable == "block4+5"
    assert rows["10", "beta 80 %"].views.min_overlap == 0.8
    assert (
        rows["10", "beta 80 %"].views.max_crop_ratio
        == rows["10", "even sampling"].views.max_crop_ratio
        == 1.5
    )
    assert rows["9", "tau 0.3, variance 10"].objective.temperature == 0.3
    assert rows["unlabelled", "TCN, no positions"].model.positions == "none"
    assert rows["11", "supervised, 10 %"].data.train_fraction == 0.1
    assert rows["13", "contrastive baseline"].objective.name == "contrastive"
    assert rows["13", "SCL"] == replace(base, training=replace(base.training, seed=0))


def test_frames_of_the_papers_own_preset() -> None:
    assert [row.name for row in frames_table(240).rows][:4] == ["T = 80", "T = 160", "T = 240", "T = 480"]


def test_frozen_blocks_of_the_demo_are_pretrained() -> None:
    models = [
        row_config(PRESETS["demo"](), dict(row.options), 0).model
        for row in pretrained_table(TABLES["7"]).rows
    ]
    assert [model.learnable for model in models] == ["none", "block5", "block4+5", "all"]
    assert {(model.backbone, model.weights) for model in models} == {("efficientnet_lite0", "pretrained")}


def test_classification_on_finegym_is_the_linear_probe() -> None:
    assert finegym_table(TABLES["10"]).metrics == ("linear_probe",)
    table = finegym_table(frames_table(240))
    assert set(table.metrics) == set(metric_names(PROTOCOLS["finegym"]))
    rows = {row.name: row for row in table.rows}
    assert rows["T = 240"].paper["linear_probe_10"] == "33.53"
    assert rows["supervised, 10 %"].reads == {"linear_probe_10": "linear_probe"}


@pytest.mark.parametrize("name", ["6", "7", "9", "10"])
def test_rows_of_other_presets_are_what_they_say(name: str) -> None:
    """A row of one setting says it, whatever the preset has."""
    rows = [
        [row_config(PRESETS[preset](), dict(row.options), 0) for row in TABLES[name].rows]
        for preset in ("demo", "penn_action")
    ]
    for demo, penn_action in zip(*rows, strict=True):
        for section, field in (("model", "num_layers"), ("model", "learnable"), ("views", "max_crop_ratio")):
            if any(f"{section}.{field}" in row.options for row in TABLES[name].rows):
                found = [getattr(getattr(config, section), field) for config in (demo, penn_action)]
                assert found[0] == found[1]


def test_the_papers_numbers() -> None:
    """The tables, once more by hand."""
    paper = {
        (n, row.name): list(row.paper.values())
        for n, table in TABLES.items()
        for row in table.rows
        if row.paper
    }
    assert paper == {
        ("5", "ResNet only"): ["68.63", ".296", ".440"],
        ("5", "ResNet + C3D"): ["83.96", ".705", ".778"],
        ("5", "ResNet + Transformer"): ["93.07", ".918", ".985"],
        ("6", "1 layer"): ["92.15", ".909", ".985"],
        ("6", "2 layers"): ["92.61", ".913", ".990"],
        ("6", "3 layers"): ["93.07", ".918", ".985"],
        ("6", "4 layers"): ["92.81", ".910", ".990"],
        ("7", "none"): ["90.63", ".907", ".994"],
        ("7", "block 5"): ["93.07", ".918", ".985"],
        ("7", "block 4+5"): ["92.98", ".919", ".989"],
        ("8", "TCN"): ["86.31", ".898", ".832"],
        ("8", "TCC"): ["86.35", ".899", ".980"],
        ("8", "SCL"): ["93.07", ".918", ".985"],
        ("10", "alpha 1"): ["36.72"],
        ("9", "tau 0.1, variance 1"): ["92.95", ".903", ".963"],
        ("9", "tau 0.1, variance 25"): ["92.03", ".922", ".993"],
        ("9", "tau 1, variance 10"): ["91.57", ".889", ".993"],
        ("9", "tau 0.3, variance 10"): ["92.13", ".903", ".992"],
        ("9", "tau 0.1, variance 10"): ["93.07", ".918", ".985"],
        ("10", "alpha 1.5, beta 20 %, random"): ["41.75"],
        ("10", "alpha 2"): ["39.03"],
        ("10", "even sampling"): ["38.44"],
        ("10", "beta 0 %"): ["38.15"],
        ("10", "beta 50 %"): ["39.14"],
        ("10", "beta 80 %"): ["37.94"],
        ("10", "beta 100 %"): ["35.53"],
        ("11", "T = 11"): ["27.10", "32.78", "34.02"],
        ("11", "T = 21"): ["30.28", "36.46", "38.06"],
        ("11", "T = 32"): ["33.53", "39.89", "41.75"],
        ("11", "T = 64"): ["31.46", "37.92", "39.45"],
        ("11", "supervised, 10 %"): ["24.51"],
        ("11", "supervised, 50 %"): ["48.75"],
        ("11", "supervised, 100 %"): ["60.37"],
        ("13", "contrastive baseline"): ["88.05", ".898", ".891"],
        ("13", "SCL"): ["93.07", ".918", ".985"],
    }
