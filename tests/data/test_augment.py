from __future__ import annotations

import ctypes
import dataclasses
import itertools
import warnings

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from carl_ray.config import AugmentConfig
from carl_ray.data import augment_tensors, compiled
from carl_ray.data.augment import AugmentParameters, blur_weights, draw_parameters, resize_crop
from carl_ray.data.augment_tensors import apply_color, apply_geometry, center_view
from carl_ray.data.randomness import sample_generator

# Where jaxtyping checks shapes while tests run, it refuses wrong ones first, with a TypeError.
REFUSED = (ValueError, TypeError)

IDENTITY = AugmentParameters(
    top=0,
    left=0,
    height=40,
    width=40,
    flip=False,
    jitter=False,
    order=(0, 1, 2, 3),
    brightness=1.0,
    contrast=1.0,
    saturation=1.0,
    hue=0.0,
    grayscale=False,
    blur_sigma=0.0,
)

GOLDEN_VECTOR = [
    2.0,
    29.0,
    248.0,
    286.0,
    0.0,
    1.0,
    0.0,
    3.0,
    1.0,
    2.0,
    1.40690752373458,
    1.683553563895191,
    0.8223908798035456,
    -0.034211003692081965,
    0.0,
    0.0,
]


def parameters(**changes) -> AugmentParameters:
    return dataclasses.replace(IDENTITY, **changes)


def random_frames(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    # Besides noise: greys, saturated colours, and colours with two equal channels, where hue has its corners.
    corners = torch.tensor(list(itertools.product((0, 1, 128, 254, 255), repeat=3)), dtype=torch.uint8)
    frames.view(-1, 3)[: len(corners)] = corners
    return frames


def coordinate_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    """Channels hold the frame's number, the row and the column."""
    return np.stack(np.indices((num_frames, height, width)), axis=-1).astype(np.uint8)


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """Between frames (N, H, W, 3) and torchvision's (N, 3, H, W)."""
    return int((ours.permute(0, 3, 1, 2).int() - theirs.int()).abs().max())


# ---- drawing


def test_draws_stay_in_range_and_reach_it():
    config = AugmentConfig(image_size=32)
    rng = np.random.default_rng(0)
    draws = [draw_parameters(config, 90, 120, rng) for _ in range(3000)]
    for draw in draws:
        assert 0 <= draw.top <= 90 - draw.height and 0 <= draw.left <= 120 - draw.width
    areas = np.array([draw.height * draw.width / (90 * 120) for draw in draws])
    aspects = np.array([draw.width / draw.height for draw in draws])
    assert 0.79 < areas.min() < 0.81 and 0.97 < areas.max() <= 1
    assert aspects.min() > 0.98 * 0.75 and aspects.max() < 1.02 * 4 / 3
    for name in ("brightness", "contrast", "saturation"):
        values = np.array([getattr(draw, name) for draw in draws])
        assert 0.2 <= values.min() < 0.22 and 1.78 < values.max() <= 1.8
        assert abs(values.mean() - 1) < 0.04
    hues = np.array([draw.hue for draw in draws])
    assert -0.2 <= hues.min() < -0.195 and 0.195 < hues.max() <= 0.2
    sigmas = np.array([draw.blur_sigma for draw in draws if draw.blur_sigma > 0])
    assert 0.1 <= sigmas.min() < 0.12 and 1.98 < sigmas.max() <= 2
    for share, probability in (
        (np.mean([draw.flip for draw in draws]), 0.5),
        (np.mean([draw.jitter for draw in draws]), 0.8),
        (np.mean([draw.grayscale for draw in draws]), 0.2),
        (len(sigmas) / len(draws), 0.5),
    ):
        assert abs(share - probability) < 0.04
    orders = [draw.order for draw in draws]
    assert set(orders) == set(itertools.permutations(range(4)))


def test_crops_reach_every_border():
    rng = np.random.default_rng(0)
    draws = [draw_parameters(AugmentConfig(), 60, 60, rng) for _ in range(500)]
    assert any(draw.top == 0 for draw in draws) and any(draw.top + draw.height == 60 for draw in draws)
    assert any(draw.left == 0 for draw in draws) and any(draw.left + draw.width == 60 for draw in draws)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (40, 400, (0, 173, 40, 53)),  # too wide: aspect 4 / 3 in the middle
        (400, 40, (173, 0, 53, 40)),  # too tall: aspect 3 / 4
    ],
)
def test_crop_that_cannot_fit_falls_back_to_the_centre(height, width, expected):
    config = AugmentConfig(crop_area=(0.9, 1.0))
    draw = draw_parameters(config, height, width, np.random.default_rng(0))
    assert (draw.top, draw.left, draw.height, draw.width) == expected


def test_crop_range_that_holds_only_the_frame_takes_it_whole():
    config = AugmentConfig(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    draw = draw_parameters(config, 50, 50, np.random.default_rng(0))
    assert (draw.top, draw.left, draw.height, draw.width) == (0, 0, 50, 50)


def test_probabilities_switch_things_and_change_nothing_else():
    on = AugmentConfig(flip_probability=1, jitter_probability=1, grayscale_probability=1, blur_probability=1)
    off = AugmentConfig(flip_probability=0, jitter_probability=0, grayscale_probability=0, blur_probability=0)
    with_all = draw_parameters(on, 90, 120, np.random.default_rng(3))
    without = draw_parameters(off, 90, 120, np.random.default_rng(3))
    assert (with_all.flip, with_all.jitter, with_all.grayscale) == (True, True, True)
    assert with_all.blur_sigma > 0
    switched = {"flip": False, "jitter": False, "grayscale": False, "blur_sigma": 0.0}
    assert dataclasses.replace(with_all, **switched) == without


def test_strength_zero_changes_nothing():
    config = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0, jitter_probability=1)
    draw = draw_parameters(config, 40, 40, np.random.default_rng(0))
    assert (draw.brightness, draw.contrast, draw.saturation, draw.hue) == (1, 1, 1, 0)


def test_draws_depend_on_the_key_alone():
    config = AugmentConfig()
    one, again, other_view, other_epoch = (
        draw_parameters(config, 90, 120, sample_generator(*key))
        for key in ((0, 0, "v", 1), (0, 0, "v", 1), (0, 0, "v", 2), (0, 1, "v", 1))
    )
    assert one == again
    assert len({one, other_view, other_epoch}) == 3


def test_golden_draw():
    """This changes only with the samples of every run: a checkpoint could then not be resumed exactly."""
    draw = draw_parameters(AugmentConfig(), 256, 340, sample_generator(0, 0, "video", 1))
    assert draw.to_vector() == pytest.approx(GOLDEN_VECTOR, rel=1e-12)


def test_vector_round_trip_is_exact():
    rng = np.random.default_rng(0)
    for _ in range(20):
        draw = draw_parameters(AugmentConfig(), 90, 120, rng)
        vector = draw.to_vector()
        assert vector.shape == (16,) and vector.dtype == np.float64
        assert AugmentParameters.from_vector(vector) == draw


def test_vector_of_another_length_is_refused():
    with pytest.raises(REFUSED, match=r"16 numbers, got 3|Type-check error"):
        AugmentParameters.from_vector(np.zeros(3))


def test_parameters_check_themselves():
    with pytest.raises(ValueError, match="permutation"):
        parameters(order=(0, 1, 1, 3))
    with pytest.raises(ValueError, match="crop must lie"):
        parameters(top=-1)


# ---- geometry


@pytest.mark.parametrize("as_array", [True, False])
def test_crop_without_resize_is_exact(as_array):
    frames = coordinate_frames(3, 20, 30)
    output = apply_geometry(
        frames if as_array else torch.from_numpy(frames), parameters(top=2, left=5, height=12, width=12), 12
    )
    assert output.shape == (3, 12, 12, 3) and output.dtype == torch.uint8 and output.is_contiguous()
    assert np.array_equal(output.numpy(), frames[:, 2:14, 5:17])


def test_chosen_frames_are_those_chosen_before():
    frames = random_frames(7, 20, 30, 3).numpy()
    draw, places = parameters(top=2, left=3, height=15, width=17, flip=True), np.array([5, 0, 0, 6])
    expected = apply_geometry(frames[places], draw, 12)
    assert torch.equal(apply_geometry(frames, draw, 12, places), expected)


def test_flip_mirrors_columns_only():
    frames = coordinate_frames(2, 12, 12)
    output = apply_geometry(frames, parameters(height=12, width=12, flip=True), 12)
    assert np.array_equal(output.numpy(), frames[:, :, ::-1])


@pytest.mark.skipif(compiled.library() is None, reason="the compiled part was not built")
@pytest.mark.parametrize("size", [1, 9, 24, 61])  # taps of two, in pairs and many; both directions
def test_the_compiled_resize_is_the_tensors_bit_by_bit(size, monkeypatch):
    frames, places = random_frames(4, 41, 33, 3).numpy(), np.array([3, 0, 0])
    draws = [parameters(top=1, left=2, height=31, width=29, flip=flip) for flip in (False, True)]
    draws.append(parameters(top=40, left=32, height=1, width=1))
    fast = np.empty((3, size, size, 3), np.uint8)
    for draw in draws:
        resize_crop(frames, draw, places, fast)
        assert np.array_equal(fast, apply_geometry(frames, draw, size, places).numpy())
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "library", lambda: None)
        plain = np.empty_like(fast)
        resize_crop(frames, draws[-1], places, plain)
    assert np.array_equal(fast, plain)


@pytest.mark.skipif(compiled.library() is None, reason="the compiled part was not built")
def test_the_compiled_part_takes_no_wrong_memory():
    frames, output = random_frames(4, 20, 20, 3).numpy(), np.empty((1, 8, 8, 3), np.uint8)
    for place in (-1, 4):
        with pytest.raises(IndexError, match=f"frames {place} to {place} of 4"):
            compiled.resize(frames, np.array([place]), False, output)
    output.flags.writeable = False
    for write in (
        lambda: compiled.resize(frames, np.array([0]), False, output),
        lambda: compiled.jitter(output, [(0, 1.5)], output),
    ):
        with pytest.raises(ctypes.ArgumentError):
            write()


@pytest.mark.parametrize("image_size", [9, 16, 31])
@pytest.mark.parametrize("flip", [False, True])
def test_resize_is_torchvisions(image_size, flip):
    frames = random_frames(3, 24, 33, 3)
    draw = parameters(top=1, left=4, height=20, width=25, flip=flip)
    theirs = functional.resized_crop(
        frames.permute(0, 3, 1, 2), 1, 4, 20, 25, [image_size, image_size], antialias=True
    )
    theirs = functional.horizontal_flip(theirs) if flip else theirs
    assert largest_difference(apply_geometry(frames, draw, image_size), theirs) <= 1


def test_geometry_leaves_its_input_alone_and_takes_read_only_arrays():
    frames = coordinate_frames(2, 20, 20)
    before = frames.copy()
    frames.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same_size = apply_geometry(frames, parameters(height=20, width=20), 20)
        apply_geometry(frames, parameters(height=15, width=15), 12)
    same_size.zero_()
    assert np.array_equal(frames, before)


def test_crop_outside_the_frames_is_refused():
    with pytest.raises(ValueError, match="ends at row 40 and column 40, but frames have 30 x 50 pixels"):
        apply_geometry(coordinate_frames(1, 30, 50), IDENTITY, 16)


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (30, 30), (31, 47)])
def test_center_view_takes_the_centre_of_the_short_side(height, width):
    frames = coordinate_frames(2, height, width)
    output = center_view(frames, min(height, width))
    size = min(height, width)
    top, left = round((height - size) / 2), round((width - size) / 2)
    assert np.array_equal(output.numpy(), frames[:, top : top + size, left : left + size])
    assert output.is_contiguous()


@pytest.mark.parametrize("image_size", [12, 40])
def test_center_view_is_torchvisions_resize_and_center_crop(image_size):
    frames = random_frames(2, 30, 53, 3)
    theirs = functional.resize(frames.permute(0, 3, 1, 2), [image_size], antialias=True)
    theirs = functional.center_crop(theirs, [image_size, image_size])
    assert largest_difference(center_view(frames, image_size), theirs) <= 1


# ---- colour, operation by operation against torchvision on uint8


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.73, 1.0, 1.31, 1.8])
@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("brightness", functional.adjust_brightness),
        ("contrast", functional.adjust_contrast),
        ("saturation", functional.adjust_saturation),
    ],
)
def test_factors_are_torchvisions(name, operation, factor):
    frames = random_frames(3, 32, 32, 3)
    ours = apply_color(frames, parameters(jitter=True, **{name: factor}))
    assert largest_difference(ours, operation(frames.permute(0, 3, 1, 2), factor)) <= 1


@pytest.mark.parametrize("hue", [-0.5, -0.2, -1 / 6, -0.03, 0.0, 0.01, 0.13, 0.2, 0.5])
def test_hue_is_torchvisions(hue):
    frames = random_frames(3, 64, 64, 3)
    ours = apply_color(frames, parameters(jitter=True, hue=hue))
    theirs = functional.adjust_hue(frames.permute(0, 3, 1, 2), hue)
    assert largest_difference(ours, theirs) <= 1
    assert (ours.permute(0, 3, 1, 2) != theirs).float().mean() < 1e-3


def test_greyscale_is_torchvisions_with_equal_channels():
    frames = random_frames(3, 32, 32, 3)
    ours = apply_color(frames, parameters(grayscale=True))
    assert torch.equal(ours[..., 0], ours[..., 1]) and torch.equal(ours[..., 0], ours[..., 2])
    assert largest_difference(ours, functional.rgb_to_grayscale(frames.permute(0, 3, 1, 2), 3)) <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 2.0])
@pytest.mark.parametrize(("size", "kernel_size"), [(16, 3), (48, 5), (112, 11), (224, 23)])
def test_blur_is_torchvisions_with_simclrs_kernel(size, kernel_size, sigma):
    frames = random_frames(2, size, size, 3)
    ours = apply_color(frames, parameters(blur_sigma=sigma))
    theirs = functional.gaussian_blur(frames.permute(0, 3, 1, 2), [kernel_size, kernel_size], [sigma, sigma])
    assert largest_difference(ours, theirs) <= 1
    assert (ours.permute(0, 3, 1, 2) != theirs).float().mean() < 5e-3


def test_blur_of_greyscale_keeps_channels_equal():
    frames = random_frames(2, 32, 32, 3)
    ours = apply_color(frames, parameters(grayscale=True, blur_sigma=1.5))
    theirs = functional.rgb_to_grayscale(frames.permute(0, 3, 1, 2), 3)
    theirs = functional.gaussian_blur(theirs, [3, 3], [1.5, 1.5])
    assert largest_difference(ours, theirs) <= 1


@pytest.mark.parametrize("order", itertools.permutations(range(4)))
def test_operations_run_in_the_drawn_order(order):
    frames = random_frames(2, 32, 32, 3)
    operations = [
        (functional.adjust_brightness, 1.4),
        (functional.adjust_contrast, 0.6),
        (functional.adjust_saturation, 1.5),
        (functional.adjust_hue, 0.15),
    ]
    theirs = frames.permute(0, 3, 1, 2)
    for index in order:
        operation, factor = operations[index]
        theirs = operation(theirs, factor)
    draw = parameters(jitter=True, order=order, brightness=1.4, contrast=0.6, saturation=1.5, hue=0.15)
    # A level's difference after the hue may be amplified by the factors that follow it.
    assert largest_difference(apply_color(frames, draw), theirs) <= 4


@pytest.mark.skipif(compiled.library() is None, reason="the compiled part was not built")
def test_the_compiled_part_is_the_tensors_bit_by_bit(monkeypatch):
    """Nodes with and without it, and CPUs with and without fused instructions, share a run."""
    config = AugmentConfig(jitter_probability=1, blur_probability=0)
    frames = random_frames(3, 61, 61, 3)
    draws = [draw_parameters(config, 61, 61, np.random.default_rng(seed)) for seed in range(60)]
    draws += [parameters(grayscale=True), parameters(jitter=True, hue=0.5, saturation=1.3, contrast=0.0)]
    fused = [apply_color(frames, draw) for draw in draws]
    monkeypatch.setattr(compiled, "library", lambda: None)
    for draw, expected in zip(draws, fused, strict=True):
        assert torch.equal(apply_color(frames, draw), expected)


def test_color_of_frames_in_whatever_order_their_values_lie():
    frames = random_frames(3, 56, 56, 3)
    draw = parameters(jitter=True, order=(3, 1, 0, 2), contrast=1.4, saturation=1.5, hue=0.15, blur_sigma=1.2)
    expected = apply_color(frames, draw)
    # As of channels first, or of a part of more channels.
    others = [
        frames.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        torch.cat([frames, frames], dim=-1)[..., :3],
    ]
    for each in others:
        assert torch.equal(apply_color(each, draw), expected)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_a_gpus_way_to_blur_is_that_of_a_cpu(sigma):
    frames = random_frames(2, 112, 112, 3)
    blurred = augment_tensors._blurred(augment_tensors._planes(frames), blur_weights(sigma, 112)).round()
    ours = apply_color(frames, parameters(blur_sigma=sigma)).permute(3, 0, 1, 2)
    assert (ours - blurred).abs().max() <= 1
    assert (ours != blurred).float().mean() < 1e-3


def test_nothing_to_do_gives_the_frames_back():
    frames = random_frames(2, 16, 16, 3)
    ignored = parameters(jitter=False, brightness=1.7, hue=0.2)
    assert apply_color(frames, ignored) is frames


def test_color_leaves_its_input_alone():
    frames = random_frames(2, 16, 16, 3)
    before = frames.clone()
    apply_color(frames, parameters(jitter=True, brightness=0.5, hue=0.1, blur_sigma=1.0))
    assert torch.equal(frames, before)


def test_a_stack_is_augmented_as_its_frames_alone(monkeypatch):
    config = AugmentConfig(image_size=24, jitter_probability=1, blur_probability=1)
    frames = random_frames(7, 30, 40, 3)
    draw = draw_parameters(config, 30, 40, np.random.default_rng(0))

    def augmented(part: torch.Tensor) -> torch.Tensor:
        return apply_color(apply_geometry(part, draw, 24), draw)

    whole = augmented(frames)
    alone = torch.cat([augmented(frames[index : index + 1]) for index in range(7)])
    assert (
        whole.int() - alone.int()
    ).abs().max() <= 1  # sums run in another order: a tie may round otherwise
    # The size of the pieces that bound memory does not show either; here 3, 3 and 1 frames.
    monkeypatch.setattr(compiled, "library", lambda: None)
    monkeypatch.setattr(augment_tensors, "_RESIZE_CHUNK", 3 * 30 * 40 * 3)
    monkeypatch.setattr(augment_tensors, "_COLOR_CHUNK_CPU", 3 * 24 * 24 * 3)
    assert (whole.int() - augmented(frames).int()).abs().max() <= 1


def test_color_is_the_same_on_workers_and_trainer():
    """The worker's uint8 frames and vector reach the trainer as they are: the same function follows there."""
    config = AugmentConfig(image_size=24, jitter_probability=1, blur_probability=1)
    draw = draw_parameters(config, 30, 40, np.random.default_rng(1))
    frames = apply_geometry(random_frames(3, 30, 40, 3), draw, 24)
    on_worker = apply_color(frames, draw)
    arrived = torch.from_numpy(frames.numpy().copy())
    assert torch.equal(apply_color(arrived, AugmentParameters.from_vector(draw.to_vector())), on_worker)


@pytest.mark.parametrize(
    "apply", [lambda frames: apply_color(frames, IDENTITY), lambda frames: center_view(frames, 8)]
)
def test_frames_of_another_kind_are_refused(apply):
    with pytest.raises(REFUSED, match=r"expected uint8 frames|Type-check error"):
        apply(torch.zeros(2, 16, 16, 3))
    with pytest.raises(REFUSED, match=r"expected uint8 frames|Type-check error"):
        apply(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_color_wants_square_frames():
    with pytest.raises(REFUSED, match=r"expected square frames|Type-check error"):
        apply_color(torch.zeros(2, 16, 12, 3, dtype=torch.uint8), IDENTITY)


def test_no_frames_give_no_frames():
    none = torch.zeros(0, 40, 40, 3, dtype=torch.uint8)
    assert apply_geometry(none, IDENTITY, 16).shape == (0, 16, 16, 3)
    assert apply_color(none, parameters(jitter=True, blur_sigma=1.0)).shape == (0, 40, 40, 3)
