"""Train with a backbone of your own, here torchvision's MobileNetV3, in plain PyTorch.

    python examples/own_backbone.py VIDEOS [STEPS]

docs/contributing.md says how to turn a module into a backbone of `carl-ray train`.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from own_objective import read_views
from torch import nn

import carl_ray
from carl_ray.model.backbone import Backbone
from carl_ray.model.encoder import FrameLevelVideoEncoder, ProjectionHead
from carl_ray.objectives.scl import sequence_contrastive_loss


def mobilenet(num_frozen: int = 0) -> Backbone:
    """MobileNetV3-Small in five blocks, of which the first `num_frozen` do not train; 576 channels.

    `weights="IMAGENET1K_V1"` instead of None downloads torchvision's ImageNet weights.
    """
    features = torchvision.models.mobilenet_v3_small(weights=None).features
    starts = (0, 1, 2, 4, 9, 13)
    blocks = tuple(
        tuple((f"layer{number}", features[number]) for number in range(*ends))
        for ends in itertools.pairwise(starts)
    )
    return Backbone(blocks, num_frozen=num_frozen, channels=576, chunk_frames=1024)


def main(folder: str, num_steps: int = 100) -> None:
    """Train with the sequence contrastive loss for some steps and save the encoder's weights as encoder.pt."""
    config, rng = carl_ray.preset("demo"), np.random.default_rng(0)
    paths = sorted(Path(folder).rglob("*.mp4"))
    encoder, head = FrameLevelVideoEncoder(config.model), ProjectionHead(config.model)
    encoder.backbone = mobilenet()
    encoder.hidden[0][0] = nn.Linear(encoder.backbone.channels, config.model.hidden_width, bias=False)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-3)
    for step in range(num_steps):
        pixels, times, mask = read_views(str(paths[step % len(paths)]), config, rng)
        z = head(encoder(pixels, mask), mask)
        loss = sequence_contrastive_loss(z[:1], z[1:], times[:1], times[1:], mask[:1], mask[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}/{num_steps}  loss {loss.item():.4f}")
    torch.save(encoder.state_dict(), "encoder.pt")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
