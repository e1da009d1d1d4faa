"""Train a backbone of your own on a folder of videos: python examples/own_backbone.py VIDEOS OUT [EPOCHS].

In a shell: PYTHONPATH=examples carl-ray train --model.backbone own_backbone:MobileNet --model.weights random
"""

import sys
from dataclasses import replace

import torchvision
from torch import Tensor, nn

import carl_ray


class MobileNet(nn.Module):
    """MobileNetV3-Small; `weights="DEFAULT"` would download torchvision's for ImageNet."""

    kind, channels, input_size = "frame", 576, 224
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the colours that its weights expect

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.mobilenet_v3_small(weights=None).features

    def forward(self, frames: Tensor) -> Tensor:
        """Feature maps (N, 576, h, w) of normalised frames (N, 3, H, W)."""
        return self.features(frames)

    def stages(self) -> list[nn.Module]:
        """The units of `model.learnable`: 3 would train the last three."""
        return list(self.features)


if __name__ == "__main__":
    config, (videos, out, *epochs) = carl_ray.preset("demo"), sys.argv[1:]
    model = replace(config.model, backbone="own_backbone:MobileNet", weights="random", learnable="all")
    training = replace(config.training, epochs=int(*epochs or [70]))
    carl_ray.build_manifest(videos, f"{out}.parquet")
    data = replace(config.data, manifest=f"{out}.parquet")
    print(carl_ray.fit(replace(config, data=data, model=model, training=training), out))
