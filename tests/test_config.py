"""`carl_ray.config`: a config says everything about a run, survives JSON, and refuses what makes no sense."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from carl_ray.config import (
    AugmentConfig,
    ClusterConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
    from_document,
    from_json,
    to_document,
    to_json,
    what_is_computed,
)
from carl_ray.errors import UserError

CONFIG = Config(
    preset="test",
    data=DataConfig(manifest="s3://bucket/manifest.parquet?region=eu"),
    augment=AugmentConfig(crop_area=(0.3, 0.9), color_on="trainer"),
    model=ModelConfig(backbone="small", weights="random", learnable="none", dropout=0.0),
    training=TrainingConfig(seed=2**63 - 1),
    cluster=ClusterConfig(data_node_labels={"role": "data"}, max_decode_tasks=3, max_failures=-1),
)


@pytest.mark.parametrize("config", [Config(preset="default"), CONFIG])
def test_survives_json(config: Config) -> None:
    assert from_json(to_json(config), "here") == config
    assert from_document(json.loads(to_json(config)), "here") == config
    assert from_document(json.loads(json.dumps(to_document(config))), "here") == config


def test_a_run_without_versions_is_read_and_computes_the_same() -> None:
    config = Config(preset="penn_action")
    old = to_document(config)
    del old["versions"], old["cluster"]["storage_seconds"], old["cluster"]["grace_seconds"]
    assert from_json(json.dumps(old), "config.json") == config
    newer = dataclasses.replace(config, versions={"torch": "2.14.1"})
    assert what_is_computed(newer) == what_is_computed(config)
    assert json.loads(to_json(newer))["versions"] == {"torch": "2.14.1"}


def test_what_is_computed_and_not_how() -> None:
    how = [
        changed("data", retries=7, time_limit=1.0, max_bad_fraction=1.0),
        changed("training", checkpoint_every_steps=3, keep_checkpoints=8),
        changed("cluster", num_workers=8),
    ]
    computed = what_is_computed(CONFIG)
    assert all(what_is_computed(from_document(document, "here")) == computed for document in how)
    what = [
        changed("data", short_side=32),
        changed("training", seed=4),
        changed("training", validate_every_steps=3),
    ]
    assert all(what_is_computed(from_document(document, "here")) != computed for document in what)


def test_fields_that_are_gone_are_ignored() -> None:
    old = to_document(CONFIG)
    old["model"] |= {"weights_format": "byol", "compile": True}
    old["augment"]["color"] = "matrix"
    assert from_document(old, "here") == from_json(json.dumps(old), "here") == CONFIG


def changed(section: str, **values: Any) -> dict[str, Any]:
    document = to_document(CONFIG)
    document[section] |= values
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (changed("model", wdth=3), r"^here: model\.wdth: unknown field$"),
        (to_document(CONFIG) | {"modle": {}}, r"^here: modle: unknown field$"),
        (changed("training", epochs=0), r"^here: training\.epochs: .*greater than or equal to 1, got 0$"),
        (changed("training", epochs=1.5), r"^here: training\.epochs: .*integer.*got 1\.5$"),
        (changed("training", seed=-1), r"^here: training\.seed: .*got -1$"),
        (changed("training", seed=2**63), r"^here: training\.seed: "),
        (changed("optimizer", learning_rate=float("nan")), r"^here: optimizer\.learning_rate: .*got nan$"),
        (changed("optimizer", max_gradient_norm=float("inf")), r"finite number, got inf$"),
        (changed("model", backbone="resnet5"), r"^here: model\.backbone: .*'resnet18'.*got 'resnet5'$"),
        (
            changed("model", width=30),
            r"^here: model: width must be a multiple of 2 x num_heads, got 30 and 8$",
        ),
        (
            changed("model", weights="imagenet"),
            r"^here: model: backbone `small` has no pretrained weights: set",
        ),
        (
            changed("augment", crop_area=[0.9, 0.3]),
            r"^here: augment: crop_area must be .*got \(0\.9, 0\.3\)$",
        ),
        (changed("augment", crop_area=[0.9, 1.3]), r"^here: augment: crop_area is a part .*got 1\.3$"),
        (changed("augment", crop_aspect=[0, 1]), r"^here: augment: crop_aspect must be"),
        (changed("augment", blur_sigma=[-1, 1]), r"^here: augment: blur_sigma must be"),
        (changed("augment", crop_area=[0.5]), r"^here: augment\.crop_area\.1: "),
        (
            changed("cluster", data_node_labels={"role": 3}),
            r"^here: cluster\.data_node_labels\.role: .*got 3$",
        ),
        ({}, r"^here: preset: "),
        ([1] * 10_000, r"^here: document: "),
    ],
)
def test_refuses_in_one_line(document: Any, message: str) -> None:
    for read in (lambda: from_document(document, "here"), lambda: from_json(json.dumps(document), "here")):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 280


@pytest.mark.parametrize("text", ["", "{", '{"preset": "test"', "\udcff"])
def test_text_that_is_no_json(text: str) -> None:
    with pytest.raises(UserError, match=r"^config\.json: document: "):
        from_json(text.encode("utf-8", "surrogateescape"), "config.json")


def test_json_keeps_types_strictly_where_the_command_line_need_not() -> None:
    assert from_document(changed("cluster", use_gpu="true", num_workers="3"), "here").cluster.num_workers == 3
    with pytest.raises(UserError, match=r"preset: .*got 3$"):
        from_json('{"preset": 3}', "here")
