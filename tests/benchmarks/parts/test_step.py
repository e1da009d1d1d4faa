"""`benchmarks.parts.step`: what it counts, and that every part is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.parts import step
from benchmarks.parts.table import table_text
from carl_ray.config import AugmentConfig, ModelConfig
from carl_ray.data.augment import AugmentParameters
from carl_ray.objectives.choice import objective_options
from carl_ray.objectives.views import CROPS
from carl_ray.presets import PRESETS
from carl_ray.training.step import TrainingStep

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
        "frames to the device",
        "with colour",
        "with RGB from YUV 4:2:0",
        "CNN, frozen part, not folded",
        "ideal CNN",
    ]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "1 video x 2 views x 4 frames of 32 pixels" in table.title
    assert sum(float(row[2].rstrip("%")) for row in table.rows[: len(step.STAGES)]) == pytest.approx(
        100, abs=1
    )
    assert any("folded" in note and "times as fast" in note for note in table.notes)
    assert any("one worker" in note for note in table.notes)
    assert lines and table_text(table)


@pytest.mark.parametrize(
    "augment",
    [{}, {"color_on": "trainer"}, {"color_on": "trainer", "pixels": "yuv420"}],
    ids=str,
)
def test_the_parts_are_those_of_the_step(augment: dict[str, str]) -> None:
    demo = PRESETS["demo"]()
    config = replace(
        demo,
        model=replace(demo.model, num_frames=4, learnable="block5"),
        augment=replace(demo.augment, image_size=16, **augment),  # type: ignore[arg-type]
    )
    batch = step.synthetic_batch(config, 2)
    whole, split = (TrainingStep(config, CPU, num_steps=10) for _ in range(2))
    report = whole.train(batch, 0)
    seconds, loss = step.stage_seconds(split, batch)
    assert len(seconds) == len(step.STAGES) and min(seconds) >= 0
    assert loss == pytest.approx(report.loss, rel=1e-6)
    for mine, theirs in zip(split.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_colour_is_drawn_as_in_a_run() -> None:
    demo = PRESETS["demo"]()
    config = replace(demo, model=replace(demo.model, num_frames=2), augment=AugmentConfig())
    color = step.synthetic_batch(config, 4).views[CROPS].parameters
    drawn = [AugmentParameters.from_vector(vector) for vector in color.reshape(8, -1).numpy()]
    assert sum(draw.jitter for draw in drawn) == 7
    assert sum(draw.grayscale for draw in drawn) == 2
    assert [draw.blur_sigma > 0 for draw in drawn].count(True) == 4
    assert [draw.blur_sigma > 0 for draw in drawn[:2]].count(True) == 1


def test_matrix_products_are_as_precise_as_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def seconds(*_: object) -> float:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return 1.0

    monkeypatch.setattr(step, "seconds_of", seconds)
    before = torch.backends.cuda.matmul.allow_tf32
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        step.matrix_rate(CPU, torch.float32)
        assert set(seen) == {allowed}
        seen.clear()
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_pairs_of_videos_where_the_objective_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_CPU_FRAMES", 8)
    demo = PRESETS["demo"]()
    config = replace(demo, objective=objective_options("tcc"), augment=replace(demo.augment, image_size=16))
    table = step.measure(config, CPU, lambda line: None)
    assert "2 videos x 2 views x 2 frames" in table.title
    # All blocks learn: there is nothing to fold.
    assert "CNN, frozen part, not folded" not in [row[0] for row in table.rows]
