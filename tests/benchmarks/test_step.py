"""`carl_ray.benchmarks.step`: what it counts, and that every part is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from carl_ray.benchmarks import step
from carl_ray.benchmarks.table import table_text
from carl_ray.config import ModelConfig
from carl_ray.presets import PRESETS

CPU = torch.device("cpu")


def test_operations_of_the_small_backbone_are_those_on_paper() -> None:
    counted = step.cnn_operations(ModelConfig(backbone="small", weights="random"), 48)
    # Sides and channels of the maps after each of the six convolutions.
    products = [
        side**2 * 9 * before * after
        for side, before, after in (
            (24, 3, 16), (12, 16, 32), (12, 32, 32), (6, 32, 64), (6, 64, 64), (6, 64, 128)
        )
    ]  # fmt: skip
    assert counted.forward == 2 * sum(products)
    # Block 5: the weights of both convolutions, the input of the second alone.
    assert counted.backward == 2 * (products[4] + 2 * products[5])


@pytest.mark.parametrize(
    ("learnable", "forward", "backward"), [("block5", 4.09, 2 * 0.81), ("none", 4.09, 0)]
)
def test_operations_of_resnet50(learnable: str, forward: float, backward: float) -> None:
    """4.09 billion multiplications with an addition, as torchvision states, the classifier aside."""
    counted = step.cnn_operations(ModelConfig(weights="random", learnable=learnable), 224)  # type: ignore[arg-type]
    assert counted.forward == pytest.approx(2e9 * forward, rel=0.01)
    assert counted.backward <= 2e9 * backward
    if backward:
        # The first convolutions of the block, the shortcut's among them, need no gradient of their input.
        assert counted.backward == pytest.approx(2e9 * (backward - 0.21), rel=0.02)


def test_every_part_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_CPU_FRAMES", 8)
    demo = PRESETS["demo"]()
    config = replace(
        demo,
        model=replace(demo.model, learnable="block5"),
        augment=replace(demo.augment, image_size=32),
    )
    lines: list[str] = []
    table = step.measure(config, CPU, lines.append)
    assert [row[0] for row in table.rows] == [
        *step.STAGES,
        "all of them, waiting after each",
        "the step",
        "CNN, frozen part, not folded",
        "ideal CNN",
    ]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "1 video x 2 views x 4 frames of 32 pixels" in table.title
    assert sum(float(row[2].rstrip("%")) for row in table.rows[: len(step.STAGES)]) == pytest.approx(
        100, abs=1
    )
    assert any("folded" in note and "times as fast" in note for note in table.notes)
    assert lines and table_text(table)


def test_pairs_of_videos_where_the_objective_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_CPU_FRAMES", 8)
    demo = PRESETS["demo"]()
    config = replace(
        demo, objective=replace(demo.objective, name="tcc"), augment=replace(demo.augment, image_size=16)
    )
    table = step.measure(config, CPU, lambda line: None)
    assert "2 videos x 2 views x 2 frames" in table.title
    # All blocks learn: there is nothing to fold.
    assert "CNN, frozen part, not folded" not in [row[0] for row in table.rows]
