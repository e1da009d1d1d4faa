import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from carl_ray.config import ModelConfig
from carl_ray.model.backbone import build_backbone
from carl_ray.model.features import frozen_features, normalize


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_normalize_is_torchvisions(batch):
    frames = torch.randint(0, 256, (*batch, 16, 20, 3), dtype=torch.uint8)
    ours = normalize(frames)
    assert ours.shape == (*batch, 3, 16, 20) and ours.dtype == torch.float32
    theirs = functional.normalize(
        functional.to_dtype(frames.movedim(-1, -3), torch.float32, scale=True),
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_normalized_frames_are_channels_last_in_memory():
    frames = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    assert normalize(frames).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "shape"), [("small", (19, 32, 32, 3)), ("small3d", (3, 8, 32, 32, 3))])
def test_frozen_features_are_those_of_the_whole_batch(name, shape):
    backbone = build_backbone(ModelConfig(backbone=name, weights="random")).eval()
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    features = frozen_features(backbone, pixels)
    assert features.dtype == np.float32 and features.shape == (len(pixels), backbone.channels)
    with torch.no_grad():
        seen = normalize(torch.from_numpy(pixels), backbone.mean, backbone.std)
        maps = backbone(seen if name == "small" else seen.transpose(1, 2))
    np.testing.assert_allclose(features, backbone.pool(maps).numpy(), rtol=1e-3, atol=1e-5)
    assert np.isfinite(frozen_features(backbone, pixels, bf16=True)).all()
    assert frozen_features(backbone, pixels[:0]).shape == (0, backbone.channels)
    with pytest.raises(ValueError, match="expected a backbone in evaluation mode and uint8 pixels"):
        frozen_features(backbone, pixels[0])
    with pytest.raises(ValueError, match="got training=True"):
        frozen_features(backbone.train(), pixels)
