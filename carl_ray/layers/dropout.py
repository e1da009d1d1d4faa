"""Dropout and noise that depend on a sample's seed alone."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_WORD = 0xFFFFFFFF


def dropout_mask(
    seeds: Int[Tensor, " N"], layer: int, positions: Int[Tensor, " N"], channels: int, probability: float
) -> Bool[Tensor, "N channels"]:
    """Dropout mask (True: kept) as a hash of (seed, layer, position, channel).

    Draws of a generator would depend on earlier draws and, on a GPU, on the shape.

    Args:
        seeds: Seed of each frame's video and view; any 64-bit numbers.
        layer: Number of the layer.
        positions: Position of each frame in the view.
        channels: Activations of a frame.
        probability: Share of dropped activations.
    """
    return _hashes(seeds, layer, positions, channels) >= int(probability * 2**32)


def uniform_noise(seeds: Int[Tensor, " N"], width: int) -> Float[Tensor, "N width"]:
    """Numbers of mean 0 and deviation 1, uniform, as hashes of (seed, column); float32.

    Args:
        seeds: Any 64-bit numbers.
        width: Of a row.
    """
    drawn = _hashes(seeds, 0, torch.zeros_like(seeds), width)
    return (drawn.float() / 2**31 - 1) * math.sqrt(3)


def _hashes(
    seeds: Int[Tensor, " N"], layer: int, positions: Int[Tensor, " N"], channels: int
) -> Int[Tensor, "N channels"]:
    key = _scramble((seeds & _WORD) + (layer + 1) * 0x9E3779B9)
    key = _scramble(key ^ ((seeds >> 32) & _WORD))
    rows = _scramble(key + (positions + 1) * 0x85157AF5)
    columns = _scramble((torch.arange(channels, device=seeds.device) + 1) * 0x61C88647)
    return _scramble(rows[:, None] + columns)


def _scramble(values: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """32-bit hashes (in int64) of the lowest 32 bits of the values."""
    # Two rounds of shift and multiply with the constants of MurmurHash3's finalizer.
    values = values & _WORD
    values = values ^ (values >> 16)
    values = (values * 0x85EBCA6B) & _WORD
    values = values ^ (values >> 13)
    values = (values * 0xC2B2AE35) & _WORD
    return values ^ (values >> 16)
