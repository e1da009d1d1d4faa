"""Temporal modules: positions, Transformer, 3-D convolutions (section 3.3).

Legend: B videos, T positions of the padded batch, N real frames of the whole batch, W width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from carl_ray.layers.heads import gather_real, scatter_real
from carl_ray.layers.normalization import BatchNorm, Mode

C3D_CHANNELS = 512


def frame_positions(frame_mask: Bool[Tensor, "B T"], num_frames: int) -> Float[Tensor, "B T"]:
    """Positions of the frames on the scale that the encoder was trained with, float32.

    A video of `num_frames` real frames has positions 0, 1, 2, ...; at any other length they are spread evenly over
    [0, num_frames - 1]. They are independent of padding.

    Args:
        frame_mask: True where a frame is real.
        num_frames: T of the configuration.

    Returns:
        Positions; 0 for a single frame and before the first real one, meaningless at padded places.
    """
    rank = (frame_mask.cumsum(1) - 1).clamp(min=0)
    length = frame_mask.sum(1, keepdim=True)
    return rank * ((num_frames - 1) / (length - 1).clamp(min=1))


def sine_cosine_code(positions: Float[Tensor, "*batch"], width: int) -> Float[Tensor, "*batch W"]:
    """Sines and cosines of positions, interleaved, wavelengths 2 pi to 20000 pi.

    Args:
        positions: Any real numbers.
        width: W, even.
    """
    exponent = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    angles = positions.float().unsqueeze(-1) * torch.pow(10000.0, -exponent)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class TransformerEncoder(nn.Module):
    """A pre-norm Transformer encoder that attends to real frames only.

    Args:
        num_layers: Layers; 0 leaves the final layer norm.
        width: W.
        num_heads: Attention heads; divides W.
        feedforward_width: Width between the two linear layers that follow the attention.

    Shape:
        (B, T, W) and the mask (B, T) to (B, T, W); outputs at padded places are finite and meaningless.
    """

    def __init__(self, num_layers: int, width: int, num_heads: int, feedforward_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, num_heads, feedforward_width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "B T W"], frame_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T W"]:
        """The frames after all layers and a final layer norm."""
        # Avoids a softmax over no key, which is 0/0; outputs of such a video are dropped later.
        visible = frame_mask | ~frame_mask.any(1, keepdim=True)
        for layer in self.layers:
            x = layer(x, visible[:, None, None, :])
        return self.norm(x)


class _Layer(nn.Module):
    def __init__(self, width: int, num_heads: int, feedforward_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward_in = nn.Linear(width, feedforward_width)
        self.feedforward_out = nn.Linear(feedforward_width, width)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        projected = self.query_key_value(self.attention_norm(x))
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.attention_output(attended.transpose(1, 2).flatten(2))
        return x + self.feedforward_out(functional.relu(self.feedforward_in(self.feedforward_norm(x))))


class TemporalConvolutions(nn.Module):
    """Two 3-D convolutions, each with batch norm and ReLU (C3D of table 5).

    Padded frames are zeros, as the convolutions' own padding is, and enter no statistics.

    Args:
        channels: Channels of the frames' feature maps; `C3D_CHANNELS` come out.
        batch_norm: Mode of the batch norm.

    Attributes:
        halo: Number of frames before and after a frame that influence its feature map.
    """

    def __init__(self, channels: int, batch_norm: Mode) -> None:
        super().__init__()
        widths = [channels, C3D_CHANNELS, C3D_CHANNELS]
        self.convolutions = nn.ModuleList(
            nn.Conv3d(before, after, 3, padding=1, bias=False) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(BatchNorm(after, batch_norm) for after in widths[1:])
        self.halo = len(self.convolutions)

    def forward(
        self, maps: Float[Tensor, "N C h w"], index: Int[Tensor, " N"], batch: int, time: int
    ) -> Float[Tensor, "N out h w"]:
        """Feature maps mixed over time; arguments as those of `scatter_real`."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            padded = scatter_real(maps, index, batch, time).transpose(1, 2)
            mixed = convolution(padded).transpose(1, 2)
            maps = functional.relu(norm(gather_real(mixed, index)))
        return maps
