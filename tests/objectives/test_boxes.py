"""Places of cells in the source: crop, flip and stride undone."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from carl_ray.data.keypoints import keypoints_in_view
from carl_ray.data.views import ViewIndices
from carl_ray.objectives.base import ViewTensors
from carl_ray.objectives.boxes import cell_boxes, overlap


def view(box: list[float], span: list[float], flip: bool, frames: int = 8) -> ViewTensors[torch.Tensor]:
    """One clip of one video."""
    return ViewTensors(
        timestamps=torch.zeros(1, 1, frames, dtype=torch.float64),
        mask=torch.ones(1, 1, frames, dtype=torch.bool),
        parameters=torch.zeros(1, 1, 16, dtype=torch.float64),
        boxes=torch.tensor([[box]], dtype=torch.float64),
        flips=torch.tensor([[flip]]),
        spans=torch.tensor([[span]], dtype=torch.float64),
    )


def test_cells_fill_the_box_in_the_order_of_the_map():
    boxes = cell_boxes(view([0.25, 0.5, 0.75, 1.0], [10, 18], False), (2, 1, 2))[0, 0]
    assert boxes.tolist() == [
        [0.25, 0.5, 10, 0.5, 1.0, 14],
        [0.5, 0.5, 10, 0.75, 1.0, 14],
        [0.25, 0.5, 14, 0.5, 1.0, 18],
        [0.5, 0.5, 14, 0.75, 1.0, 18],
    ]


def test_a_flip_exchanges_left_and_right_and_twice_is_nothing():
    plain = cell_boxes(view([0.1, 0.2, 0.9, 1.0], [0, 8], False), (2, 2, 4)).unflatten(2, (2, 2, 4))
    flipped = cell_boxes(view([0.1, 0.2, 0.9, 1.0], [0, 8], True), (2, 2, 4)).unflatten(2, (2, 2, 4))
    assert not torch.allclose(plain, flipped)
    torch.testing.assert_close(flipped.flip(4), plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("flip", [False, True])
def test_corners_of_cells_are_corners_in_the_view(flip: bool):
    """Joints at the corners of boxes, brought into the view: the way back, by other code."""
    box, cells = [0.1, 0.2, 0.9, 1.0], (2, 3, 4)
    boxes = cell_boxes(view(box, [0, 8], flip), cells)[0, 0].numpy()
    # Mirrored, the left end of a cell is its right end in the source.
    corners = np.where(flip, boxes[:, 3], boxes[:, 0]), boxes[:, 1]
    keypoints = np.zeros((len(boxes), 17, 3))
    keypoints[:, 0] = np.stack([*corners, np.ones(len(boxes))], -1)
    clip = ViewIndices(np.arange(len(boxes)), np.ones(len(boxes), bool), (0, len(boxes)))
    found = keypoints_in_view(keypoints, [clip], np.array([box]), np.array([flip]))[0, :, 0]
    down, across = np.meshgrid(np.arange(3) / 3, np.arange(4) / 4, indexing="ij")
    expected = np.stack([np.tile(across.ravel(), 2), np.tile(down.ravel(), 2), np.ones(len(boxes))], -1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_lights_the_cell_whose_box_has_it(flip: bool, stride: int):
    rng = np.random.default_rng(5)
    for _ in range(20):
        left, top = (int(x) for x in rng.integers(0, 32, 2))
        width, height, start = 64, 48, int(rng.integers(0, 10))
        # A block of 4 x 4 pixels and two frames at a cell of the crop.
        cell = (int(rng.integers(4)), int(rng.integers(4)), int(rng.integers(4)))
        source = np.zeros((64, 96, 128))
        y, x = top + 12 * cell[1], left + 16 * (3 - cell[2] if flip else cell[2])
        source[start + 2 * stride * cell[0] :, y : y + 12, x : x + 16][: 2 * stride] = 1
        frames = source[start : start + 8 * stride : stride, top : top + height, left : left + width]
        frames = frames[:, :, ::-1] if flip else frames
        lit = torch.from_numpy(frames.copy()).reshape(4, 2, 4, 12, 4, 16).mean((1, 3, 5))
        box = [left / 128, top / 96, (left + width) / 128, (top + height) / 96]
        boxes = cell_boxes(view(box, [start, start + 8 * stride], flip), (4, 4, 4))[0, 0]
        (at,) = lit.flatten().nonzero()
        assert lit.flatten()[at] == 1
        begin = start + 2 * stride * cell[0]
        expected = [x / 128, y / 96, begin, (x + 16) / 128, (y + 12) / 96, begin + 2 * stride]
        torch.testing.assert_close(
            boxes[at][0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9
        )


def test_overlap_counts_voxels():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 6, (2, 12, 3))
    high = low + rng.integers(1, 5, (2, 12, 3))
    a, b = (torch.from_numpy(np.concatenate([low[k], high[k]], -1)).double() for k in (0, 1))
    found = overlap(a, b)
    grid = np.stack(np.meshgrid(*[np.arange(12)] * 3, indexing="ij"), -1)

    def voxels(k: int, number: int) -> np.ndarray:
        return ((grid >= low[k, number]) & (grid < high[k, number])).all(-1)

    for i in range(12):
        for j in range(12):
            first, second = voxels(0, i), voxels(1, j)
            shared, union = (first & second).sum(), (first | second).sum()
            assert float(found.iou[i, j]) == pytest.approx(
                float(Fraction(int(shared), int(union))), abs=1e-12
            )
            assert float(found.coverage[i, j]) == pytest.approx(shared / first.sum(), abs=1e-12)
    torch.testing.assert_close(overlap(b, a).iou.T, found.iou)
    torch.testing.assert_close(overlap(a, a).iou.diagonal(), torch.ones(12, dtype=torch.float64))


def test_units_of_an_axis_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(2, 9, 3, generator=generator, dtype=torch.float64)
    boxes = torch.cat([low, low + 0.1 + torch.rand(2, 9, 3, generator=generator, dtype=torch.float64)], -1)
    scale = torch.tensor([1.0, 480.0, 1 / 25] * 2, dtype=torch.float64)
    torch.testing.assert_close(overlap(*boxes).iou, overlap(*(boxes * scale)).iou)


@pytest.mark.parametrize("frame_step", [0.1, 1 / 30, 0.04])
def test_clips_that_follow_each_other_do_not_overlap_in_time(frame_step: float):
    for start in (*range(30), 36_000):
        for frames in (16, 32, 48):
            spans = [[(start + k) * frame_step, (start + k + frames) * frame_step] for k in (0, frames)]
            first, second = (cell_boxes(view([0, 0, 1, 1], span, False), (4, 1, 1))[0, 0] for span in spans)
            assert not overlap(first, second).in_time.any()
            assert torch.equal(overlap(first, first).in_time, torch.eye(4, dtype=torch.bool))


def test_padding_does_not_move_the_cells():
    whole = view([0, 0, 1, 1], [0, 16], False)
    short = replace(whole, mask=torch.arange(8)[None, None] < 5)
    torch.testing.assert_close(cell_boxes(whole, (4, 2, 2)), cell_boxes(short, (4, 2, 2)))
