"""The encoder of clips: padding, cells, and whole videos."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from carl_ray.config import Config
from carl_ray.errors import UserError
from carl_ray.layers.heads import real_cells
from carl_ray.model.clips import ClipEncoder
from carl_ray.options import overridden
from carl_ray.presets import preset

DEMO = overridden(preset("clips_demo"), {"model.clip_input": "rgb"})


def encoder(config: Config = DEMO, seed: int = 0, **model: Any) -> ClipEncoder:
    torch.manual_seed(seed)
    return ClipEncoder(replace(config, model=replace(config.model, **model)))


def frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("backbone", "maps"), [("small3d", (64, 2, 4, 4)), ("small", (128, 8, 4, 4)), ("r3d_18", (512, 1, 2, 2))]
)
def test_maps_and_their_mean(backbone: str, maps: tuple[int, ...]):
    made = encoder(backbone=backbone, learnable="all").eval()
    with torch.no_grad():
        found = made(frames(2, 8), torch.ones(2, 8, dtype=torch.bool))
    assert found.maps.shape == (2, *maps)
    assert made.width == maps[0]
    torch.testing.assert_close(found.clip, found.maps.mean((2, 3, 4)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_padding_changes_nothing(train: bool):
    made = encoder().train(train)
    mask = torch.arange(8) < torch.tensor([8, 5, 0])[:, None]
    pixels = frames(3, 8)
    found = made(pixels, mask)
    for garbage in (0.0, 1e9, torch.nan):
        again = made(pixels.masked_fill(~mask[..., None, None, None], garbage), mask)
        torch.testing.assert_close(again.clip, found.clip)
        torch.testing.assert_close(again.maps, found.maps)
    assert not found.clip[2].any() and not found.maps[2].any()
    # Five frames fill the first of two cells, and a quarter of the second.
    torch.testing.assert_close(found.clip[1], found.maps[1, :, 0].mean((-2, -1)))


def test_a_worker_without_videos_has_zeros_and_zero_gradients():
    made = encoder()
    found = made(frames(1, 8), torch.zeros(1, 8, dtype=torch.bool))
    (found.clip.sum() + found.maps.sum()).backward()
    assert not found.clip.any()
    assert all(p.grad is not None and not p.grad.any() for p in made.parameters())


def test_cells_are_real_from_half_of_their_frames_on():
    mask = torch.arange(16) < torch.tensor([16, 10, 9, 1])[:, None]
    assert real_cells(mask, 4).tolist() == [
        [True, True, True, True],
        [True, True, True, False],
        [True, True, False, False],
        [False, False, False, False],
    ]


def test_differences_do_not_see_what_stands_still():
    made = encoder(clip_input="difference").eval()
    still = frames(1, 1).expand(1, 8, 3, 32, 32)
    found = made(torch.cat([still, 3 * still]), torch.ones(2, 8, dtype=torch.bool)).clip
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(made(frames(1, 8), torch.ones(1, 8, dtype=torch.bool)).clip, found[:1])


def plainly(made: ClipEncoder, video: Tensor, backwards: bool) -> Tensor:
    """Rows of a video from all its clips, written from the description."""
    total = len(video)
    stride = min(made.stride, max(1, total // made.num_frames))
    span = made.num_frames * made.stride
    starts = list(range(0, total - span + 1, max(1, span // 4)))
    last = max(0, total - made.num_frames * stride)
    if not starts or last > starts[-1]:
        starts.append(last)
    middles, vectors = [], []
    for start in starts:
        step = made.stride if start + span <= total else stride
        places = start + step * torch.arange(made.num_frames)
        mask = (places < total)[None]
        if backwards:
            places[mask[0]] = places[mask[0]].flip(0)
        vectors.append(made(video[places.clamp(max=total - 1)][None], mask).clip[0])
        middles.append(start + made.num_frames * step / 2)
    rows = []
    for frame in range(total):
        after = next((k for k, middle in enumerate(middles) if middle > frame), len(middles) - 1)
        before = max(0, after - 1) if middles[after] > frame else after
        gap = middles[after] - middles[before]
        share = min(1.0, max(0.0, (frame - middles[before]) / gap)) if gap else 0.0
        rows.append((1 - share) * vectors[before] + share * vectors[after])
    return torch.stack(rows)


@pytest.mark.parametrize("total", [1, 5, 8, 15, 16, 17, 20, 47, 64])
@pytest.mark.parametrize(("chunk", "backwards"), [(3, False), (64, False), (3, True)])
def test_rows_of_a_whole_video(total: int, chunk: int, backwards: bool):
    made = encoder().eval()
    assert made.stride == 2
    video = frames(total, seed=total)
    rows = torch.cat(list(made.frame_features(video.split(chunk), backwards=backwards)))
    assert rows.shape == (total, 64)
    with torch.no_grad():
        torch.testing.assert_close(rows, plainly(made, video, backwards), rtol=1e-4, atol=1e-5)


def test_memory_is_that_of_a_clip():
    made = encoder().eval()
    held = []
    forward = made._clips

    def spy(waiting: Tensor, *arguments: Any) -> Tensor:
        held.append(len(waiting))
        return forward(waiting, *arguments)

    made._clips = spy  # type: ignore[method-assign]
    rows = list(made.frame_features(frames(8, seed=k) for k in range(40)))
    assert sum(map(len, rows)) == 320
    assert max(held) <= 32


def test_frames_that_the_map_does_not_divide_are_refused():
    made = encoder(num_frames=7)
    with pytest.raises(UserError, match="small3d makes 64 x 2 x 4 x 4 of 7 frames; expected maps"):
        made(frames(1, 7), torch.ones(1, 7, dtype=torch.bool))
