import urllib.error

import pytest
import torch
import torchvision

from carl_ray.config import ModelConfig
from carl_ray.errors import RunError, UserError
from carl_ray.model.backbone import build_backbone, load_backbone_weights


def config(**fields):
    return ModelConfig(**({"backbone": "resnet18", "weights": "random"} | fields))


def saved(tmp_path, document, name="weights.pt"):
    torch.save(document, tmp_path / name)
    return str(tmp_path / name)


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


@pytest.fixture(scope="module")
def tensors():
    """A torchvision checkpoint, classifier included."""
    return torchvision.models.resnet18(weights=None).state_dict()


def documents(tensors):
    return {
        "torchvision": tensors,
        "byol": {
            "epoch": 3,
            "model": prefixed("module.encoder.", tensors)
            | prefixed("module.encoder_k.", {name: value * 0 for name, value in tensors.items()})
            | {"module.predictor.weight": torch.zeros(2)},
        },
        "moco": {
            "state_dict": prefixed("module.encoder_q.", tensors)
            | prefixed("module.encoder_k.", {name: value * 0 for name, value in tensors.items()})
            | {"module.queue": torch.zeros(4)},
        },
        "simclr": {"state_dict": prefixed("encoder.", tensors) | {"projector.0.weight": torch.zeros(2)}},
    }


@pytest.mark.parametrize("layout", ["torchvision", "byol", "moco", "simclr"])
def test_weights_files(tmp_path, tensors, layout):
    model = config(weights=saved(tmp_path, documents(tensors)[layout]), weights_format=layout)
    backbone = build_backbone(model)
    report = load_backbone_weights(backbone, model)
    # 20 convolutions and as many batch norms with four tensors each.
    assert (report.matched, report.expected) == (100, 100)
    assert report.unused == 2, "fc.weight and fc.bias"
    assert "100 of 100 tensors" in str(report)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, tensors[name]), name


def test_backbone_computes_what_torchvisions_does(tensors):
    reference = torchvision.models.resnet18(weights=None)
    reference.fc = torch.nn.Identity()
    backbone = build_backbone(config())
    backbone.load_state_dict(reference.state_dict())
    frames = torch.randn(2, 3, 64, 64)
    pooled = backbone.eval()(frames).mean((2, 3))
    torch.testing.assert_close(pooled, reference.eval()(frames), rtol=1e-4, atol=1e-4)


def test_files_of_half_precision_without_counters(tmp_path, tensors):
    half = {name: value.half() for name, value in tensors.items() if "num_batches" not in name}
    model = config(weights=saved(tmp_path, half))
    backbone = build_backbone(model)
    assert load_backbone_weights(backbone, model).matched == 100
    assert backbone.get_parameter("conv1.weight").dtype == torch.float32


def test_random_weights_change_nothing():
    backbone = build_backbone(config())
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    report = load_backbone_weights(backbone, config())
    assert (report.matched, report.unused) == (0, 0)
    assert all(torch.equal(backbone.state_dict()[name], before[name]) for name in before)


def refusal(tmp_path, document, **fields):
    model = config(weights=saved(tmp_path, document), **fields)
    backbone = build_backbone(model)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_backbone_weights(backbone, model)
    assert all(torch.equal(backbone.state_dict()[name], before[name]) for name in before)
    assert "\n" not in str(caught.value)
    assert "weights.pt" in str(caught.value)
    return str(caught.value)


def test_a_missing_tensor_is_named(tmp_path, tensors):
    rest = {name: value for name, value in tensors.items() if name != "layer3.1.conv2.weight"}
    message = refusal(tmp_path, rest)
    assert "99 of the 100 tensors of resnet18" in message
    assert "missing layer3.1.conv2.weight" in message


def test_a_tensor_of_another_shape_is_named(tmp_path, tensors):
    message = refusal(tmp_path, tensors | {"conv1.weight": torch.zeros(64, 3, 3, 3)})
    assert "conv1.weight: expected (64, 3, 7, 7), got (64, 3, 3, 3)" in message


def test_another_backbone_does_not_fit(tmp_path, tensors):
    message = refusal(tmp_path, tensors, backbone="resnet50")
    assert "resnet50" in message


def test_the_wrong_format_is_named(tmp_path, tensors):
    assert "read as simclr" in refusal(tmp_path, documents(tensors)["moco"], weights_format="simclr")
    assert "under 'model'" in refusal(tmp_path, documents(tensors)["moco"], weights_format="byol")
    assert "missing conv1.weight" in refusal(tmp_path, documents(tensors)["moco"])


@pytest.mark.parametrize("document", [[torch.zeros(2)], {"model": object}])
def test_no_tensors(tmp_path, document):
    refusal(tmp_path, document)


def test_no_torch_file(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"not a checkpoint at all")
    model = config(weights=str(tmp_path / "weights.pt"))
    with pytest.raises(UserError, match=r"weights\.pt"):
        load_backbone_weights(build_backbone(model), model)


def test_no_file(tmp_path):
    model = config(weights=str(tmp_path / "none.pt"))
    with pytest.raises(UserError, match="no such file"):
        load_backbone_weights(build_backbone(model), model)


def test_a_failed_download_names_the_remedies(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    model = config(weights="imagenet")
    with pytest.raises(RunError) as caught:
        load_backbone_weights(build_backbone(model), model)
    assert "--model.weights random" in str(caught.value)
    assert "no route to host" in str(caught.value)


LEARNABLE = {
    "resnet18": {
        "none": set(),
        "block5": {"layer4"},
        "block4+5": {"layer3", "layer4"},
        "all": {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"},
    },
    "small": {
        "none": set(),
        "block5": {"conv5", "conv6"},
        "block4+5": {"conv3", "conv4", "conv5", "conv6"},
        "all": {f"conv{number}" for number in range(1, 7)},
    },
}


@pytest.mark.parametrize("name", list(LEARNABLE))
@pytest.mark.parametrize("learnable", ["none", "block5", "block4+5", "all"])
def test_learnable_blocks(name, learnable):
    backbone = build_backbone(config(backbone=name, learnable=learnable))
    trained = {key.split(".")[0] for key, value in backbone.named_parameters() if value.requires_grad}
    assert trained == LEARNABLE[name][learnable]
    backbone.eval().train()
    in_training = {key for key, module in backbone.named_children() if module.training}
    assert in_training - {"relu", "maxpool"} == LEARNABLE[name][learnable]


@pytest.mark.parametrize("name", ["resnet18", "small"])
def test_chunks_change_no_result(name):
    frames = torch.randn(5, 3, 32, 32)
    torch.manual_seed(0)
    whole = build_backbone(config(backbone=name))
    torch.manual_seed(0)
    parts = build_backbone(config(backbone=name, chunk_frames=2))
    torch.testing.assert_close(parts(frames), whole(frames), rtol=1e-4, atol=1e-4)


def test_frozen_blocks_keep_no_graph():
    backbone = build_backbone(config(learnable="none"))
    assert not backbone(torch.randn(2, 3, 32, 32, requires_grad=True)).requires_grad
