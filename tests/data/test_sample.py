"""`carl_ray.data.sample`: one video becomes two views, the same wherever and whenever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carl_ray.config import AugmentConfig, Config, DataConfig, ModelConfig, TrainingConfig, ViewsConfig
from carl_ray.data.augment import AugmentParameters, apply_color, apply_geometry, draw_parameters
from carl_ray.data.decode import DecodeError, read_frames
from carl_ray.data.memory import pair_bytes
from carl_ray.data.randomness import ViewNumber, sample_generator, sample_seed
from carl_ray.data.sample import (
    NUM_COLOR_VALUES,
    ViewPair,
    collate,
    frames_on_device,
    make_view_pair,
    view_seeds,
)
from carl_ray.data.views import sample_views

TIME, SIZE, NUM_FRAMES = 8, 24, 30
CONFIG = Config(
    preset="test",
    data=DataConfig(short_side=32),
    views=ViewsConfig(max_crop_ratio=2.0),
    augment=AugmentConfig(image_size=SIZE),
    model=ModelConfig(num_frames=TIME, backbone="small", weights="random"),
    training=TrainingConfig(seed=9),
)
# The barcode of a frame survives: no flip, no colour, hardly a crop.
PLAIN = replace(
    CONFIG,
    augment=AugmentConfig(
        image_size=48,
        crop_area=(1.0, 1.0),
        crop_aspect=(1.0, 1.0),
        flip_probability=0.0,
        jitter_probability=0.0,
        grayscale_probability=0.0,
        blur_probability=0.0,
    ),
)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", NUM_FRAMES, 48, 48)


def same(first: ViewPair, second: ViewPair) -> bool:
    return all(np.array_equal(value, vars(second)[name]) for name, value in vars(first).items())


@pytest.mark.parametrize("epoch", [0, 3])
def test_is_what_the_parts_give_by_hand(video: Path, epoch: int) -> None:
    pair = make_view_pair(str(video), "a", NUM_FRAMES, 0.5, epoch, CONFIG)
    views = sample_views(
        NUM_FRAMES,
        TIME,
        max_crop_ratio=2.0,
        min_overlap=0.2,
        rng=sample_generator(9, epoch, "a", ViewNumber.SHARED),
    )
    for number, view in enumerate(views):
        frames = read_frames(str(video), view.frame_indices, short_side=32)
        rng = sample_generator(9, epoch, "a", (ViewNumber.FIRST, ViewNumber.SECOND)[number])
        parameters = draw_parameters(CONFIG.augment, 32, 32, rng)
        expected = apply_color(apply_geometry(frames, parameters, SIZE), parameters)
        np.testing.assert_array_equal(pair.frames[number], expected.numpy())
        np.testing.assert_array_equal(pair.timestamps[number], view.frame_indices * 0.5)
        np.testing.assert_array_equal(pair.color[number], parameters.to_vector())
        assert pair.frame_mask[number].all()
    assert pair.frames.shape == (2, TIME, SIZE, SIZE, 3)
    assert (pair.frames.dtype, pair.timestamps.dtype, pair.frame_mask.dtype) == (
        np.uint8,
        np.float64,
        np.bool_,
    )
    assert pair.color.shape == (2, NUM_COLOR_VALUES)


def test_frames_are_those_that_the_timestamps_name(
    video: Path, frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    for epoch in range(3):
        pair = make_view_pair(str(video), "a", NUM_FRAMES, 2.0, epoch, PLAIN)
        for number in range(2):
            assert frame_numbers(pair.frames[number]) == (pair.timestamps[number] / 2).astype(int).tolist()
            assert (np.diff(pair.timestamps[number]) > 0).all()


def test_the_key_alone_decides(video: Path) -> None:
    def pair(source: bytes | str, video_id: str = "a", epoch: int = 0, config: Config = CONFIG) -> ViewPair:
        return make_view_pair(source, video_id, NUM_FRAMES, 1.0, epoch, config)

    first = pair(str(video))
    np.random.seed(1)
    torch.manual_seed(1)
    assert same(first, pair(video.read_bytes()))
    reseeded = replace(CONFIG, training=replace(CONFIG.training, seed=10))
    for other in (pair(str(video), "b"), pair(str(video), epoch=1), pair(str(video), config=reseeded)):
        assert not np.array_equal(first.timestamps, other.timestamps)
        assert not np.array_equal(first.color, other.color)
    assert not np.array_equal(first.color[0], first.color[1])


@pytest.mark.parametrize("num_frames", [1, 5])
def test_a_short_video_is_padded(
    tmp_path: Path,
    make_video: Callable[..., Path],
    frame_numbers: Callable[[np.ndarray], list[int]],
    num_frames: int,
) -> None:
    path = make_video(tmp_path / "short.mp4", num_frames, 48, 48)
    pair = make_view_pair(str(path), "short", num_frames, 1.0, 0, PLAIN)
    for number in range(2):
        assert pair.frame_mask[number].tolist() == [i < num_frames for i in range(TIME)]
        assert frame_numbers(pair.frames[number, :num_frames]) == list(range(num_frames))
        assert not pair.frames[number, num_frames:].any()
        assert (pair.timestamps[number, num_frames:] == num_frames - 1).all()


def test_the_released_crop_masks_what_lies_past_the_end(
    video: Path, frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    released = replace(PLAIN, views=ViewsConfig(crop="released", max_crop_ratio=3.0))
    pairs = [make_view_pair(str(video), "a", NUM_FRAMES, 1.0, epoch, released) for epoch in range(5)]
    assert any(not pair.frame_mask.all() for pair in pairs)
    for pair in pairs:
        for number in range(2):
            mask = pair.frame_mask[number]
            assert mask.any()
            assert (
                frame_numbers(pair.frames[number, mask]) == pair.timestamps[number, mask].astype(int).tolist()
            )
            assert not pair.frames[number, ~mask].any()


def test_what_cannot_be_read(video: Path) -> None:
    with pytest.raises(DecodeError):
        make_view_pair(b"no video", "a", NUM_FRAMES, 1.0, 0, CONFIG)
    with pytest.raises(DecodeError):
        make_view_pair(str(video), "a", 5 * NUM_FRAMES, 1.0, 0, CONFIG)


@pytest.mark.parametrize("color", ["exact", "matrix"])
def test_colour_on_the_trainer_is_the_same_function(video: Path, color: str) -> None:
    strong: dict[str, Any] = {
        "jitter_probability": 1.0,
        "blur_probability": 1.0,
        "image_size": SIZE,
        "color": color,
    }
    workers = replace(CONFIG, augment=AugmentConfig(**strong))
    trainer = replace(CONFIG, augment=AugmentConfig(**strong, color_on="trainer"))
    for config in (workers, trainer):
        assert config.model.num_frames == TIME
    done = make_view_pair(str(video), "a", NUM_FRAMES, 1.0, 0, workers)
    raw = make_view_pair(str(video), "a", NUM_FRAMES, 1.0, 0, trainer)
    np.testing.assert_array_equal(done.color, raw.color)
    assert not np.array_equal(done.frames, raw.frames)
    for number, vector in enumerate(raw.color):
        expected = apply_color(
            torch.from_numpy(raw.frames[number]), AugmentParameters.from_vector(vector), workers.augment.color
        )
        np.testing.assert_array_equal(done.frames[number], expected.numpy())
    masked = replace(raw, frame_mask=np.stack([np.arange(TIME) < 3, np.zeros(TIME, dtype=bool)]))
    batch = collate([raw, masked], [0, 1], [(0, 0)] * 2, trainer)
    before = batch.frames.clone()
    colored = frames_on_device(batch, trainer, torch.device("cpu"))
    assert torch.equal(batch.frames, before)
    np.testing.assert_array_equal(colored[0].numpy(), done.frames)
    # Masked frames are left as they came.
    np.testing.assert_array_equal(colored[1, 0, :3].numpy(), done.frames[0, :3])
    np.testing.assert_array_equal(colored[1, 0, 3:].numpy(), raw.frames[0, 3:])
    np.testing.assert_array_equal(colored[1, 1].numpy(), raw.frames[1])


@pytest.mark.parametrize("color_on", ["workers", "trainer"])
def test_shipping_yuv_takes_half_the_bytes_and_hardly_changes_the_frames(
    make_video: Callable[..., Path], tmp_path: Path, color_on: str
) -> None:
    path = make_video(tmp_path / "short.mp4", 5, 48, 48)
    config = replace(CONFIG, augment=replace(CONFIG.augment, image_size=SIZE, color_on=color_on))
    halved = replace(config, augment=replace(config.augment, pixels="yuv420"))
    whole, half = (make_view_pair(str(path), "a", 5, 1.0, 2, each) for each in (config, halved))
    assert half.frames.nbytes * 2 == whole.frames.nbytes == 2 * pair_bytes(halved) == pair_bytes(config)
    expected, found = (
        frames_on_device(collate([pair, pair], [0, 1], [(0, 0)] * 2, each), each, torch.device("cpu"))
        for pair, each in ((whole, config), (half, halved))
    )
    assert found.shape == expected.shape == (2, 2, TIME, SIZE, SIZE, 3)
    difference = (found.int() - expected.int()).abs()[:, :, :5].float()
    assert difference.mean() < 2
    assert collate([], [], [], halved).frames.shape == (1, 2, TIME, SIZE * SIZE * 3 // 2)


def test_collate_keeps_the_order(video: Path) -> None:
    pairs = [make_view_pair(str(video), name, NUM_FRAMES, 1.0, 0, CONFIG) for name in "abc"]
    seeds = [view_seeds(9, 0, name) for name in "abc"]
    batch = collate(pairs, [6, 7, 8], seeds, CONFIG)
    assert batch.rows.tolist() == [6, 7, 8]
    assert batch.frames.shape == (3, 2, TIME, SIZE, SIZE, 3)
    assert batch.sample_seeds.tolist() == [list(pair) for pair in seeds]
    for i, pair in enumerate(pairs):
        np.testing.assert_array_equal(batch.frames[i].numpy(), pair.frames)
        np.testing.assert_array_equal(batch.timestamps[i].numpy(), pair.timestamps)
        np.testing.assert_array_equal(batch.frame_mask[i].numpy(), pair.frame_mask)
        np.testing.assert_array_equal(batch.frame_labels[i].numpy(), pair.frame_labels)
        np.testing.assert_array_equal(batch.color[i], pair.color)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_for_a_gpu_is_one_that_it_can_copy_by_itself(video: Path) -> None:
    pair = make_view_pair(str(video), "a", NUM_FRAMES, 1.0, 0, CONFIG)
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    batch = collate([pair, pair], [0, 1], [(0, 0)] * 2, CONFIG, device)
    assert batch.frames.is_pinned()
    copied = frames_on_device(batch, CONFIG, device)
    assert copied.device == device
    np.testing.assert_array_equal(copied.cpu().numpy(), np.stack([pair.frames] * 2))


def test_frame_labels_follow_their_frames(video: Path) -> None:
    labels = [n // 7 - 1 for n in range(NUM_FRAMES)]
    pair = make_view_pair(str(video), "a", NUM_FRAMES, 1.0, 0, CONFIG, frame_labels=labels)
    expected = [[labels[int(s)] for s in row] for row in pair.timestamps]
    np.testing.assert_array_equal(pair.frame_labels, np.where(pair.frame_mask, expected, -1))
    bare = make_view_pair(str(video), "a", NUM_FRAMES, 1.0, 0, CONFIG)
    assert (bare.frame_labels == -1).all()
    few = make_view_pair(str(video), "a", 3, 1.0, 0, CONFIG, frame_labels=[5, 6, 7])
    assert few.frame_labels[0].tolist() == [5, 6, 7] + [-1] * (TIME - 3)


def test_collate_of_nothing_is_one_masked_video() -> None:
    batch = collate([], [], [], CONFIG)
    assert batch.frames.shape == (1, 2, TIME, SIZE, SIZE, 3)
    assert batch.frames.dtype == torch.uint8
    assert batch.timestamps.shape == (1, 2, TIME)
    assert batch.timestamps.dtype == torch.float64
    assert batch.rows.tolist() == [-1]
    assert (batch.frame_labels == -1).all()
    assert batch.sample_seeds.shape == (1, 2)
    assert batch.sample_seeds.dtype == torch.int64
    assert batch.color.shape == (1, 2, NUM_COLOR_VALUES)
    assert not batch.frame_mask.any()
    for color_on in ("workers", "trainer"):
        config = replace(CONFIG, augment=replace(CONFIG.augment, color_on=color_on))
        assert torch.equal(frames_on_device(batch, config, torch.device("cpu")), batch.frames)


def test_view_seeds_are_those_of_the_views() -> None:
    assert view_seeds(1, 2, "a") == (
        sample_seed(1, 2, "a", ViewNumber.FIRST),
        sample_seed(1, 2, "a", ViewNumber.SECOND),
    )
    assert (
        len({view_seeds(1, 2, "a"), view_seeds(0, 2, "a"), view_seeds(1, 3, "a"), view_seeds(1, 2, "b")}) == 4
    )


def test_the_length_of_a_colour_draw() -> None:
    parameters = draw_parameters(CONFIG.augment, 32, 32, np.random.default_rng(0))
    assert len(parameters.to_vector()) == NUM_COLOR_VALUES
    assert AugmentParameters.from_vector(parameters.to_vector()) == parameters
