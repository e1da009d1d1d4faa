"""Networks that generate poses and clips."""

from __future__ import annotations

import pytest
import torch

from carl_ray.layers.dropout import uniform_noise
from carl_ray.layers.generation import (
    AdaptiveInstanceNorm,
    ClipCritic,
    ClipGenerator,
    PoseCritic,
    PoseGenerator,
)


def test_adain_gives_the_conditions_statistics():
    torch.manual_seed(0)
    layer = AdaptiveInstanceNorm(5, 3)
    maps, condition = 3 + 2 * torch.randn(4, 3, 2, 5, 5), torch.randn(4, 5)
    # At the start those of every condition are the same.
    started = layer(maps, condition)
    torch.testing.assert_close(started.mean((2, 3, 4)), torch.zeros(4, 3), atol=1e-4, rtol=0)
    torch.nn.init.normal_(layer.scale.weight)
    torch.nn.init.normal_(layer.shift.weight)
    made = layer(maps, condition)
    deviation, mean = torch.std_mean(made, dim=(2, 3, 4), correction=0)
    torch.testing.assert_close(mean, layer.shift(condition), atol=1e-4, rtol=0)
    torch.testing.assert_close(deviation, (1 + layer.scale(condition)).abs(), atol=1e-4, rtol=0)


def test_adain_of_a_constant_map_is_finite():
    layer = AdaptiveInstanceNorm(5, 3)
    maps = torch.ones(2, 3, 2, 2, 2, requires_grad=True)
    made = layer(maps, torch.randn(2, 5))
    made.sum().backward()
    assert made.isfinite().all() and maps.grad is not None and maps.grad.isfinite().all()


def test_adain_refuses_maps_of_too_few_positions():
    with pytest.raises(ValueError, match="at least 4 positions, got 1 x 1 x 3"):
        AdaptiveInstanceNorm(5, 3)(torch.ones(2, 3, 1, 1, 3), torch.ones(2, 5))


@pytest.mark.parametrize(
    ("shape", "frames", "size"), [((2, 4, 4), 8, 16), ((2, 7, 7), 8, 64), ((8, 4, 4), 8, 16)]
)
@pytest.mark.parametrize("samples", [0, 2])
def test_clips_have_the_wanted_size(shape: tuple[int, int, int], frames: int, size: int, samples: int):
    made = ClipGenerator(6, frames, size)(torch.randn(samples, 6, *shape))
    assert made.shape == (samples, 3, frames, size, size) and (made.abs() <= 1).all()
    assert ClipCritic()(made).shape[0] == samples


def test_poses_begin_at_the_middle_and_depend_on_condition_and_noise():
    torch.manual_seed(0)
    generator = PoseGenerator(6, 16, 4, 17)
    condition, noise = torch.randn(8, 6), uniform_noise(torch.arange(8), 16)
    made = generator(condition, noise)
    assert made.shape == (8, 4, 17, 2)
    assert (made - 0.5).abs().mean().item() < 0.1
    assert not torch.allclose(made, generator(condition, noise.flip(0)))
    assert not torch.allclose(made, generator(condition.flip(0), noise))


def test_joints_that_are_not_valid_do_not_reach_the_critic():
    torch.manual_seed(0)
    critic = PoseCritic(6, 4, 17).eval()
    poses, condition = torch.rand(2, 4, 17, 2), torch.randn(2, 6)
    valid = torch.ones(2, 4, 17)
    valid[:, :, 3] = 0
    moved = poses.clone()
    moved[:, :, 3] = 9
    assert torch.equal(critic(poses, valid, condition), critic(moved, valid, condition))
    assert not torch.equal(critic(poses, torch.ones(2, 4, 17), condition), critic(poses, valid, condition))


def test_noise_is_of_the_seed_alone_and_standardised():
    seeds = torch.arange(4000) * 7919
    noise = uniform_noise(seeds, 16)
    assert torch.equal(noise[5:6], uniform_noise(seeds[5:6], 16))
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert abs(float((noise[1:] * noise[:-1]).mean())) < 0.02
