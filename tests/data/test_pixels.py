"""`carl_ray.data.pixels`: half the bytes, nearly the same picture."""

from __future__ import annotations

import numpy as np
import torch

from carl_ray.data.pixels import from_yuv420, to_yuv420


def test_grey_survives_to_the_bit_and_takes_half_the_bytes() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(3, 16, 16, 3).contiguous()
    packed = to_yuv420(grey)
    assert packed.dtype == np.uint8 and packed.nbytes * 2 == grey.numel()
    assert torch.equal(from_yuv420(torch.from_numpy(packed), 16), grey)


def test_colours_come_back_within_rounding_and_frames_stay_apart() -> None:
    colors = torch.tensor(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [12, 200, 90]], dtype=torch.uint8
    )
    frames = colors[:, None, None, :].expand(5, 8, 8, 3).contiguous()
    again = from_yuv420(torch.from_numpy(to_yuv420(frames)), 8)
    assert (again.int() - frames.int()).abs().max() <= 2


def test_a_callers_autocast_costs_no_digits() -> None:
    frames = torch.arange(192, dtype=torch.uint8).view(1, 8, 8, 3)
    packed = to_yuv420(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(to_yuv420(frames), packed)
        inside = from_yuv420(torch.from_numpy(packed), 8)
    assert torch.equal(inside, from_yuv420(torch.from_numpy(packed), 8))


def test_colour_loses_resolution_and_luma_does_not() -> None:
    # Stripes of one pixel in the same luma: the mean of both colours is all that is left.
    stripes = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    stripes[:, :, ::2, 0], stripes[:, :, 1::2, 2] = 100, 255
    again = from_yuv420(torch.from_numpy(to_yuv420(stripes)), 4)
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert ((again.float() @ luma) - (stripes.float() @ luma)).abs().max() < 12
    assert (again[0, 0, 0].int() - again[0, 0, 1].int()).abs().max() < 5


def test_planes_lie_where_the_layout_says() -> None:
    frames = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    frames[1, :, 2:] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    packed = to_yuv420(frames)
    assert (packed[0] == [0] * 16 + [128] * 8).all()
    assert packed[1, :16].reshape(4, 4).tolist() == [[0, 0, 76, 76]] * 4
    assert packed[1, 16:].tolist() == [128, 85] * 2 + [128, 255] * 2
