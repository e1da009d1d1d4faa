"""`carl_ray.data.sample`: one video becomes two views, the same wherever and whenever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from carl_ray.config import AugmentConfig, Config, DataConfig, ModelConfig, TrainingConfig, ViewsConfig
from carl_ray.data.augment import AugmentParameters, draw_parameters
from carl_ray.data.augment_tensors import apply_color, apply_geometry
from carl_ray.data.batch import batch_on_device, collate
from carl_ray.data.decode import DecodeError, read_frames
from carl_ray.data.make_views import make_views
from carl_ray.data.randomness import ViewNumber, sample_generator, sample_seed
from carl_ray.data.sample import (
    NUM_PARAMETERS,
    Sample,
    SampleSpec,
    arrays_of,
    rows_per_task,
    sample_bytes,
    sample_spec,
    views_of,
)
from carl_ray.data.views import sample_views
from carl_ray.objectives.choice import objective_options
from carl_ray.objectives.views import CROPS
from carl_ray.presets import preset
from tests.samples import Crops, batch_of, make_crops

CPU = torch.device("cpu")
TIME, SIZE, NUM_FRAMES = 8, 24, 30
CONFIG = Config(
    preset="test",
    data=DataConfig(short_side=32),
    views=ViewsConfig(max_crop_ratio=2.0),
    augment=AugmentConfig(image_size=SIZE),
    model=ModelConfig(num_frames=TIME, backbone="small", weights="random"),
    training=TrainingConfig(seed=9),
)
LABELLED = replace(CONFIG, objective=objective_options("supervised", num_classes=9))
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


def same(first: Crops, second: Crops) -> bool:
    return all(np.array_equal(value, second.arrays()[name]) for name, value in first.arrays().items())


@pytest.mark.parametrize("epoch", [0, 3])
def test_is_what_the_parts_give_by_hand(video: Path, epoch: int) -> None:
    pair = make_crops(str(video), "a", NUM_FRAMES, 0.5, epoch, CONFIG)
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
        np.testing.assert_array_equal(pair.pixels[number], expected.numpy())
        np.testing.assert_array_equal(pair.timestamps[number], view.frame_indices * 0.5)
        np.testing.assert_array_equal(pair.parameters[number], parameters.to_vector())
        assert pair.mask[number].all()
    assert pair.pixels.shape == (2, TIME, SIZE, SIZE, 3)
    assert (pair.pixels.dtype, pair.timestamps.dtype, pair.mask.dtype) == (
        np.uint8,
        np.float64,
        np.bool_,
    )
    assert pair.parameters.shape == (2, NUM_PARAMETERS)


def test_frames_are_those_that_the_timestamps_name(
    video: Path, frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    for epoch in range(3):
        pair = make_crops(str(video), "a", NUM_FRAMES, 2.0, epoch, PLAIN)
        for number in range(2):
            assert frame_numbers(pair.pixels[number]) == (pair.timestamps[number] / 2).astype(int).tolist()
            assert (np.diff(pair.timestamps[number]) > 0).all()


def test_the_key_alone_decides(video: Path) -> None:
    def pair(source: bytes | str, video_id: str = "a", epoch: int = 0, config: Config = CONFIG) -> Crops:
        return make_crops(source, video_id, NUM_FRAMES, 1.0, epoch, config)

    first = pair(str(video))
    np.random.seed(1)
    torch.manual_seed(1)
    assert same(first, pair(video.read_bytes()))
    reseeded = replace(CONFIG, training=replace(CONFIG.training, seed=10))
    for other in (pair(str(video), "b"), pair(str(video), epoch=1), pair(str(video), config=reseeded)):
        assert not np.array_equal(first.timestamps, other.timestamps)
        assert not np.array_equal(first.parameters, other.parameters)
    assert not np.array_equal(first.parameters[0], first.parameters[1])


@pytest.mark.parametrize("num_frames", [1, 5])
def test_a_short_video_is_padded(
    tmp_path: Path,
    make_video: Callable[..., Path],
    frame_numbers: Callable[[np.ndarray], list[int]],
    num_frames: int,
) -> None:
    path = make_video(tmp_path / "short.mp4", num_frames, 48, 48)
    pair = make_crops(str(path), "short", num_frames, 1.0, 0, PLAIN)
    for number in range(2):
        assert pair.mask[number].tolist() == [i < num_frames for i in range(TIME)]
        assert frame_numbers(pair.pixels[number, :num_frames]) == list(range(num_frames))
        assert not pair.pixels[number, num_frames:].any()
        assert (pair.timestamps[number, num_frames:] == num_frames - 1).all()


def test_the_released_crop_masks_what_lies_past_the_end(
    video: Path, frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    released = replace(PLAIN, views=ViewsConfig(crop="released", max_crop_ratio=3.0))
    pairs = [make_crops(str(video), "a", NUM_FRAMES, 1.0, epoch, released) for epoch in range(5)]
    assert any(not pair.mask.all() for pair in pairs)
    for pair in pairs:
        for number in range(2):
            mask = pair.mask[number]
            assert mask.any()
            assert (
                frame_numbers(pair.pixels[number, mask]) == pair.timestamps[number, mask].astype(int).tolist()
            )
            assert not pair.pixels[number, ~mask].any()


def test_what_cannot_be_read(video: Path) -> None:
    with pytest.raises(DecodeError):
        make_crops(b"no video", "a", NUM_FRAMES, 1.0, 0, CONFIG)
    with pytest.raises(DecodeError):
        make_crops(str(video), "a", 5 * NUM_FRAMES, 1.0, 0, CONFIG)


def test_colour_on_the_trainer_is_the_same_function(video: Path) -> None:
    strong: dict[str, Any] = {
        "jitter_probability": 1.0,
        "blur_probability": 1.0,
        "image_size": SIZE,
    }
    workers = replace(CONFIG, augment=AugmentConfig(**strong))
    trainer = replace(CONFIG, augment=AugmentConfig(**strong, color_on="trainer"))
    for config in (workers, trainer):
        assert config.model.num_frames == TIME
    done = make_crops(str(video), "a", NUM_FRAMES, 1.0, 0, workers)
    raw = make_crops(str(video), "a", NUM_FRAMES, 1.0, 0, trainer)
    np.testing.assert_array_equal(done.parameters, raw.parameters)
    assert not np.array_equal(done.pixels, raw.pixels)
    for number, vector in enumerate(raw.parameters):
        expected = apply_color(torch.from_numpy(raw.pixels[number]), AugmentParameters.from_vector(vector))
        np.testing.assert_array_equal(done.pixels[number], expected.numpy())
    masked = replace(raw, mask=np.stack([np.arange(TIME) < 3, np.zeros(TIME, dtype=bool)]))
    batch = batch_of([raw, masked], [0, 1], "ab", trainer)
    before = batch.views[CROPS].pixels.clone()
    colored = batch_on_device(batch, trainer, CPU).views[CROPS].pixels
    assert torch.equal(batch.views[CROPS].pixels, before)
    np.testing.assert_array_equal(colored[0].numpy(), done.pixels)
    # Masked frames are left as they came.
    np.testing.assert_array_equal(colored[1, 0, :3].numpy(), done.pixels[0, :3])
    np.testing.assert_array_equal(colored[1, 0, 3:].numpy(), raw.pixels[0, 3:])
    np.testing.assert_array_equal(colored[1, 1].numpy(), raw.pixels[1])


@pytest.mark.parametrize("color_on", ["workers", "trainer"])
def test_shipping_yuv_takes_half_the_bytes_and_hardly_changes_the_frames(
    make_video: Callable[..., Path], tmp_path: Path, color_on: str
) -> None:
    path = make_video(tmp_path / "short.mp4", 5, 48, 48)
    config = replace(CONFIG, augment=replace(CONFIG.augment, image_size=SIZE, color_on=color_on))
    halved = replace(config, augment=replace(config.augment, pixels="yuv420"))
    whole, half = (make_crops(str(path), "a", 5, 1.0, 2, each) for each in (config, halved))
    assert (
        half.pixels.nbytes * 2
        == whole.pixels.nbytes
        == 2 * sample_bytes(sample_spec(halved))
        == sample_bytes(sample_spec(config))
    )
    expected, found = (
        batch_on_device(batch_of([pair, pair], [0, 1], "ab", each), each, CPU).views[CROPS].pixels
        for pair, each in ((whole, config), (half, halved))
    )
    assert found.shape == expected.shape == (2, 2, TIME, SIZE, SIZE, 3)
    difference = (found.int() - expected.int()).abs()[:, :, :5].float()
    assert difference.mean() < 2
    assert batch_of([], [], [], halved).views[CROPS].pixels.shape == (1, 2, TIME, SIZE * SIZE * 3 // 2)


def test_collate_keeps_the_order(video: Path) -> None:
    pairs = [make_crops(str(video), name, NUM_FRAMES, 1.0, 0, LABELLED) for name in "abc"]
    batch = batch_of(pairs, [6, 7, 8], "abc", LABELLED, epoch=4)
    assert batch.rows.tolist() == [6, 7, 8]
    assert batch.views[CROPS].pixels.shape == (3, 2, TIME, SIZE, SIZE, 3)
    numbers = ViewNumber.FIRST, ViewNumber.SECOND
    seed = LABELLED.training.seed
    seeds = [[sample_seed(seed, 4, name, number) for number in numbers] for name in "abc"]
    assert batch.seeds[CROPS].tolist() == seeds and len({n for pair in seeds for n in pair}) == 6
    for i, pair in enumerate(pairs):
        np.testing.assert_array_equal(batch.views[CROPS].pixels[i].numpy(), pair.pixels)
        np.testing.assert_array_equal(batch.views[CROPS].timestamps[i].numpy(), pair.timestamps)
        np.testing.assert_array_equal(batch.views[CROPS].mask[i].numpy(), pair.mask)
        np.testing.assert_array_equal(
            batch.views[CROPS].columns["frame_labels"][i].numpy(), pair.columns["frame_labels"]
        )
        np.testing.assert_array_equal(batch.views[CROPS].parameters[i], pair.parameters)


def test_frame_labels_follow_their_frames(video: Path) -> None:
    labels = [n // 7 - 1 for n in range(NUM_FRAMES)]
    pair = make_crops(str(video), "a", NUM_FRAMES, 1.0, 0, LABELLED, columns={"frame_labels": labels})
    expected = [[labels[int(s)] for s in row] for row in pair.timestamps]
    np.testing.assert_array_equal(pair.columns["frame_labels"], np.where(pair.mask, expected, -1))
    bare = make_crops(str(video), "a", NUM_FRAMES, 1.0, 0, LABELLED)
    assert (bare.columns["frame_labels"] == -1).all()
    few = make_crops(str(video), "a", 3, 1.0, 0, LABELLED, columns={"frame_labels": [5, 6, 7]})
    assert few.columns["frame_labels"][0].tolist() == [5, 6, 7] + [-1] * (TIME - 3)


def test_collate_of_nothing_is_one_masked_video() -> None:
    batch = batch_of([], [], [], LABELLED)
    assert batch.views[CROPS].pixels.shape == (1, 2, TIME, SIZE, SIZE, 3)
    assert batch.views[CROPS].pixels.dtype == torch.uint8
    assert batch.views[CROPS].timestamps.shape == (1, 2, TIME)
    assert batch.views[CROPS].timestamps.dtype == torch.float64
    assert batch.rows.tolist() == [-1]
    assert (batch.views[CROPS].columns["frame_labels"] == -1).all()
    assert batch.seeds[CROPS].shape == (1, 2)
    assert batch.seeds[CROPS].dtype == torch.int64
    assert batch.views[CROPS].parameters.shape == (1, 2, NUM_PARAMETERS)
    assert not batch.views[CROPS].mask.any()
    for color_on in ("workers", "trainer"):
        config = replace(CONFIG, augment=replace(CONFIG.augment, color_on=color_on))
        assert torch.equal(batch_on_device(batch, config, CPU).views[CROPS].pixels, batch.views[CROPS].pixels)


def test_the_length_of_a_colour_draw() -> None:
    parameters = draw_parameters(CONFIG.augment, 32, 32, np.random.default_rng(0))
    assert len(parameters.to_vector()) == NUM_PARAMETERS
    assert AugmentParameters.from_vector(parameters.to_vector()) == parameters


def several_views() -> SampleSpec:
    """Views of several shapes: crops, one long small clip with packed pixels, features of frames."""
    spec, (crops,) = sample_spec(LABELLED), CONFIG.view_specs
    packed = replace(crops.augment, image_size=12, pixels="yuv420", crop_area=(0.5, 0.6))
    far = replace(crops, name="far", count=1, num_frames=13, augment=packed)
    return replace(spec, views=(crops, far, replace(crops, name="cached", num_frames=5, features=6)))


@pytest.mark.parametrize("spec", [sample_spec(CONFIG), sample_spec(LABELLED), several_views()])
def test_samples_survive_the_table(spec: SampleSpec) -> None:
    rng = np.random.default_rng(0)
    samples = []
    for row in range(3):
        arrays = {n: rng.integers(0, 2, shape).astype(t) for n, (t, shape) in spec.array_types.items()}
        samples.append(Sample(row, 1, 2, "v", None, views_of(arrays, spec)))
    samples.insert(1, Sample(7, 1, 2, "bad", "no video", None))
    table = pa.concat_tables([sample.to_arrow(spec) for sample in samples])
    for whole in (table, table.combine_chunks(), table.combine_chunks().slice(1)):
        for index, sample in enumerate(samples[len(samples) - whole.num_rows :]):
            read = Sample.from_arrow(whole, index, spec)
            assert replace(read, views=None) == replace(sample, views=None)
            assert (read.views is None) == (sample.views is None)
            for name, value in arrays_of(sample.views or {}).items():
                np.testing.assert_array_equal(arrays_of(read.views or {})[name], value, strict=True)
    batch = collate([Sample.from_arrow(table, index, spec) for index in range(4)], spec)
    assert batch.rows.tolist() == [0, 1, 2]
    for view in spec.views:
        for name, value in batch.views[view.name].arrays().items():
            expected = np.stack([arrays_of(s.views)[f"{view.name}.{name}"] for s in samples if s.views])
            np.testing.assert_array_equal(value.numpy(), expected, strict=True)
    assert collate(samples[1:2], spec).map(lambda part: part[:0]).rows.shape == (0,)


def test_named_views_of_a_video(video: Path) -> None:
    spec = several_views()
    spec = replace(spec, views=spec.views[:2])
    views = make_views(str(video), "a", NUM_FRAMES, 1.0, 0, spec)
    alone = make_crops(str(video), "a", NUM_FRAMES, 1.0, 0, CONFIG)
    # Another view changes none of the crops' draws; its own are others.
    assert same(replace(views["crops"], columns={}), alone)
    far = views["far"]
    assert far.pixels.shape == (1, 13, 12 * 12 * 3 // 2) and far.mask.all()
    assert not np.array_equal(far.parameters[0], alone.parameters[0])
    left, top, right, bottom = far.boxes[0]
    assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    frame = read_frames(str(video), [0], short_side=CONFIG.data.short_side).shape[1:3]
    np.testing.assert_allclose(
        far.parameters[0, :4], np.array([top, left, bottom - top, right - left]) * (*frame, *frame)
    )
    assert far.flips[0] == far.parameters[0, 4]
    assert 0.4 < (right - left) * (bottom - top) < 0.7
    short = make_views(str(video), "a", 6, 1.0, 0, spec)
    assert short["far"].mask.sum() == 6 and not short["far"].pixels[0, 6:].any()


@pytest.mark.parametrize(
    ("name", "batch_size", "num_workers", "expected"),
    [
        ("demo", 8, 1, 8),
        ("demo", 8, 2, 4),
        ("demo", 8, 3, 1),
        ("demo", 8, 16, 1),
        ("demo", 30, 3, 5),
        ("clips_demo", 24, 1, 8),
        ("clips_demo", 24, 2, 6),
        ("laptop", 8, 1, 8),
        ("regions_ucf101", 32, 1, 1),
        ("penn_action", 4, 1, 1),
    ],
)
def test_small_videos_share_a_task(name: str, batch_size: int, num_workers: int, expected: int) -> None:
    config = preset(name)
    if name == "laptop":
        config = replace(config, data=replace(config.data, features="F", feature_channels=1280))
    assert rows_per_task(sample_spec(config), batch_size, num_workers) == expected
