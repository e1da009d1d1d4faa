"""`carl_ray.presets`: complete configs, with the paper's values (section 4.2)."""

from __future__ import annotations

import pytest

from carl_ray.config import Config, from_json, to_json
from carl_ray.errors import UserError
from carl_ray.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_preset_carries_its_name_and_survives_json(name: str) -> None:
    config = PRESETS[name]()
    assert config.preset == name
    assert from_json(to_json(config), name) == config


@pytest.mark.parametrize(
    ("name", "num_frames", "epochs", "blur"),
    [
        ("pouring", 240, 500, 0.5),
        ("penn_action", 80, 300, 0.5),
        ("finegym99", 240, 300, 0.0),
        ("finegym288", 240, 300, 0.0),
        ("kinetics400", 80, 10, 0.5),
        ("kinetics400_to_penn_action", 80, 300, 0.5),
    ],
)
def test_paper_presets_have_the_papers_values(name: str, num_frames: int, epochs: int, blur: float) -> None:
    config: Config = PRESETS[name]()
    assert config.model.num_frames == num_frames
    assert config.training.epochs == epochs
    assert config.augment.blur_probability == blur
    assert (config.model.backbone, config.model.weights, config.model.learnable) == (
        "resnet50",
        "imagenet",
        "block5",
    )
    assert (config.model.num_layers, config.model.width, config.model.feedforward_width) == (3, 256, 1024)
    assert (config.views.crop, config.views.max_crop_ratio, config.views.min_overlap) == ("paper", 1.5, 0.2)
    assert (config.objective.temperature, config.objective.variance) == (0.1, 10.0)
    assert config.objective.negatives == "video"
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-4, 1e-5)
    assert config.optimizer.max_gradient_norm == 10.0
    assert config.training.global_batch_size == 4
    assert config.augment.image_size == 224


def test_demo_needs_neither_manifest_nor_downloaded_weights() -> None:
    config = PRESETS["demo"]()
    assert config.data.manifest is None
    assert config.model.weights == "random"
    assert config.model.learnable == "all"


def test_a_preset_by_its_name() -> None:
    assert preset("pouring") == PRESETS["pouring"]()
    with pytest.raises(
        UserError, match=r"unknown preset 'pen_action'; did you mean penn_action\? \(presets: demo"
    ):
        preset("pen_action")
