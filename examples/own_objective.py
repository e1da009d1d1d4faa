"""Train the encoder with a loss of your own in plain PyTorch: python examples/own_objective.py VIDEOS [STEPS].

docs/contributing.md says how to make such a loss an objective of `carl-ray train`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

import carl_ray
from carl_ray.data import augment
from carl_ray.data.decode import probe_video, read_frames
from carl_ray.data.views import sample_views
from carl_ray.model import features
from carl_ray.model.encoder import FrameLevelVideoEncoder


def read_views(path: str, config: carl_ray.Config, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Pixels (2, T, 3, S, S), frame numbers (2, T) and mask (2, T) of two random views of a video."""
    views = sample_views(probe_video(path).num_frames, config.model.num_frames, max_crop_ratio=3, rng=rng)
    pixels = []
    for view in views:
        frames = read_frames(path, view.frame_indices, short_side=config.data.short_side)
        drawn = augment.draw_parameters(config.augment, *frames.shape[1:3], rng)
        square = augment.apply_geometry(frames, drawn, config.augment.image_size)
        pixels.append(features.normalize(augment.apply_color(square, drawn)))
    times = torch.from_numpy(np.stack([view.frame_indices for view in views])).float()
    return torch.stack(pixels), times, torch.from_numpy(np.stack([view.frame_mask for view in views]))


def time_regression_loss(h: Tensor, times: Tensor, mask: Tensor) -> Tensor:
    """Error of the times of view 1 that the frames of view 2 predict; h (2, T, D), times (2, T), mask (2, T)."""
    similarities = normalize(h[0], dim=-1) @ normalize(h[1], dim=-1).T / 0.1
    weights = similarities.masked_fill(~mask[1], -torch.inf).softmax(-1)
    anchors = mask[0] & (times[0] >= times[1].min()) & (times[0] <= times[1].max())
    return smooth_l1_loss((weights @ times[1])[anchors], times[0][anchors]) / len(times[0])


def main(folder: str, num_steps: int = 100) -> None:
    """Train the encoder of the preset `demo`, one video a step, and save its weights as encoder.pt."""
    config, rng = carl_ray.preset("demo"), np.random.default_rng(0)
    paths, encoder = sorted(Path(folder).rglob("*.mp4")), FrameLevelVideoEncoder(config.model)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    for step in range(num_steps):
        pixels, times, mask = read_views(str(paths[step % len(paths)]), config, rng)
        loss = time_regression_loss(encoder(pixels, mask), times, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}/{num_steps}  loss {loss.item():.4f}")
    torch.save(encoder.state_dict(), "encoder.pt")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
