"""Networks that generate poses and clips, and tell generated ones from real ones.

Legend: N samples, C channels, D width of a condition, F poses, K joints, T frames of a generated clip, S its side in
pixels.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

_LEAST_POSITIONS = 4
_WIDTHS = (64, 48, 32)
_CRITIC_WIDTHS = (32, 64, 64)
_POSE_WIDTH = 256


class AdaptiveInstanceNorm(nn.Module):
    """Maps whose mean and deviation of every channel come from a condition (AdaIN).

    At the start they are 0 and 1, whatever the condition.

    Args:
        condition_width: D.
        channels: C.
    """

    def __init__(self, condition_width: int, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Linear(condition_width, channels) for _ in range(2))
        for layer in (self.scale, self.shift):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, maps: Float[Tensor, "N C t h w"], condition: Float[Tensor, "N D"]
    ) -> Float[Tensor, "N C t h w"]:
        """The maps with the condition's statistics, float32 or better.

        Raises:
            ValueError: a map has fewer than four positions, whose statistics say nothing.
        """
        if maps.shape[2:].numel() < _LEAST_POSITIONS:
            shape = " x ".join(map(str, maps.shape[2:]))
            raise ValueError(f"AdaIN needs maps of at least {_LEAST_POSITIONS} positions, got {shape}")
        with torch.autocast(maps.device.type, enabled=False):
            wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
            variance, mean = torch.var_mean(wide, dim=(2, 3, 4), correction=0, keepdim=True)
            seen = condition.to(wide.dtype)
            scale, shift = (layer(seen)[..., None, None, None] for layer in (self.scale, self.shift))
            return (1 + scale) * (wide - mean) * torch.rsqrt(variance + 1e-5) + shift


class ClipGenerator(nn.Module):
    """Clips from maps: convolutions between two steps of nearest-neighbour upsampling.

    Args:
        channels: C.
        num_frames: T.
        size: S.
    """

    def __init__(self, channels: int, num_frames: int, size: int) -> None:
        super().__init__()
        self.shape = (num_frames, size, size)
        widths = (channels, *_WIDTHS, 3)
        self.layers = nn.ModuleList(
            nn.Conv3d(before, after, 3, padding=1) for before, after in itertools.pairwise(widths)
        ).to(memory_format=torch.channels_last_3d)  # The layout in which convolutions are fastest.

    def forward(self, maps: Float[Tensor, "N C t h w"]) -> Float[Tensor, "N 3 T S S"]:
        """Clips with values from -1 to 1."""
        first, second, third, last = self.layers
        half = [max(seen, side // 2) for seen, side in zip(maps.shape[2:], self.shape, strict=True)]
        maps = functional.leaky_relu(first(maps), 0.2)
        maps = functional.leaky_relu(second(functional.interpolate(maps, size=half)), 0.2)
        maps = functional.leaky_relu(third(functional.interpolate(maps, size=self.shape)), 0.2)
        return torch.tanh(last(maps))


class ClipCritic(nn.Module):
    """Discriminator of clips: four strided convolutions with spectral norm, a score for each patch."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *_CRITIC_WIDTHS, 1)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv3d(before, after, 3, stride=2, padding=1))
            for before, after in itertools.pairwise(widths)
        )

    def forward(self, clips: Float[Tensor, "N 3 T S S"]) -> Float[Tensor, "N patches"]:
        """Scores, higher for real clips."""
        *hidden, last = self.layers
        for layer in hidden:
            clips = functional.leaky_relu(layer(clips), 0.2)
        return last(clips).flatten(1)


class PoseGenerator(nn.Module):
    """Future poses from a condition and noise.

    Args:
        condition_width: D.
        noise_width: Numbers of noise.
        num_poses: F.
        num_joints: K.
    """

    def __init__(self, condition_width: int, noise_width: int, num_poses: int, num_joints: int) -> None:
        super().__init__()
        self.shape = (num_poses, num_joints, 2)
        self.layers = nn.Sequential(
            nn.Linear(condition_width + noise_width, _POSE_WIDTH),
            nn.ReLU(inplace=True),
            nn.Linear(_POSE_WIDTH, _POSE_WIDTH),
            nn.ReLU(inplace=True),
            nn.Linear(_POSE_WIDTH, num_poses * num_joints * 2),
        )

    def forward(
        self, condition: Float[Tensor, "N D"], noise: Float[Tensor, "N Z"]
    ) -> Float[Tensor, "N F K 2"]:
        """Poses: x and y of every joint, as parts of the view."""
        made: Tensor = self.layers(torch.cat([condition, noise], 1))
        # From the middle of the view: else the first steps learn that constant.
        return 0.5 + made.unflatten(1, self.shape)


class PoseCritic(nn.Module):
    """Discriminator of poses under a condition, with spectral norm.

    Args:
        condition_width: D.
        num_poses: F.
        num_joints: K.
    """

    def __init__(self, condition_width: int, num_poses: int, num_joints: int) -> None:
        super().__init__()
        seen = num_poses * num_joints * 3 + condition_width
        self.layers = nn.Sequential(
            spectral_norm(nn.Linear(seen, _POSE_WIDTH)),
            nn.LeakyReLU(0.2, inplace=True),
            spectral_norm(nn.Linear(_POSE_WIDTH, _POSE_WIDTH)),
            nn.LeakyReLU(0.2, inplace=True),
            spectral_norm(nn.Linear(_POSE_WIDTH, 1)),
        )

    def forward(
        self,
        poses: Float[Tensor, "N F K 2"],
        valid: Float[Tensor, "N F K"],
        condition: Float[Tensor, "N D"],
    ) -> Float[Tensor, "N 1"]:
        """Scores, higher for real poses; joints that are not valid count as 0."""
        shown = (poses * valid[..., None]).flatten(1)
        scores: Tensor = self.layers(torch.cat([shown, valid.flatten(1), condition], 1))
        return scores
