import copy
import pickle
import urllib.error
from itertools import pairwise

import pytest
import torch
import torchvision

from carl_ray.config import ModelConfig
from carl_ray.errors import RunError, UserError
from carl_ray.layers.normalization import BatchNorm
from carl_ray.model.backbone import build_backbone
from carl_ray.model.weights import load_backbone_weights


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
    model = config(weights=saved(tmp_path, documents(tensors)[layout]))
    backbone = build_backbone(model)
    report = load_backbone_weights(backbone, model)
    # 20 convolutions and as many batch norms with four tensors each; fc.weight and fc.bias are unused.
    assert report == f"backbone: 100 of 100 tensors from {model.weights}, 2 of the source unused"
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
    assert "100 of 100 tensors" in load_backbone_weights(backbone, model)
    assert backbone.get_parameter("conv1.weight").dtype == torch.float32


def test_random_weights_change_nothing():
    backbone = build_backbone(config())
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert load_backbone_weights(backbone, config()) == "backbone: 100 tensors at random"
    assert all(torch.equal(backbone.state_dict()[name], before[name]) for name in before)


def unlike(tensors, **changed):
    return {name: value for name, value in (tensors | changed).items() if value is not None}


@pytest.mark.parametrize(
    ("content", "fields", "said"),
    [
        (
            lambda tensors: unlike(tensors, **{"layer3.1.conv2.weight": None}),
            {},
            "100 tensors of resnet18: 1 tensors differ, first layer3.1.conv2.weight: expected",
        ),
        (
            lambda tensors: unlike(tensors, **{"conv1.weight": torch.zeros(64, 3, 3, 3)}),
            {},
            "conv1.weight: expected shape (64, 3, 7, 7), got (64, 3, 3, 3)",
        ),
        (lambda tensors: tensors, {"backbone": "resnet50"}, "tensors of resnet50"),
        (lambda tensors: {"state_dict": prefixed("backbone.", tensors)}, {}, "it has backbone.conv1.weight"),
        (lambda tensors: [torch.zeros(2)], {}, ""),
        (lambda tensors: {"model": object}, {}, ""),
        (lambda tensors: b"not a checkpoint at all", {}, ""),
        (lambda tensors: None, {}, "no such file"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(tmp_path, tensors, content, fields, said):
    document, path = content(tensors), tmp_path / "weights.pt"
    if isinstance(document, bytes):
        path.write_bytes(document)
    elif document is not None:
        saved(tmp_path, document)
    model = config(weights=str(path), **fields)
    backbone = build_backbone(model)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_backbone_weights(backbone, model)
    assert all(torch.equal(backbone.state_dict()[name], before[name]) for name in before)
    assert "\n" not in str(caught.value) and "weights.pt" in str(caught.value) and said in str(caught.value)


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


@pytest.mark.parametrize(
    ("frames", "sizes"), [(0, [0]), (1, [1]), (8, [8]), (9, [5, 4]), (15, [8, 7]), (17, [6, 6, 5])]
)
def test_chunks_are_as_equal_as_can_be(frames, sizes):
    backbone = build_backbone(config(backbone="small", chunk_frames=8))
    chunks = backbone.chunks(torch.zeros(frames, 1))
    assert [len(chunk) for chunk in chunks] == sizes


def test_frozen_blocks_keep_no_graph():
    backbone = build_backbone(config(learnable="none"))
    assert not backbone(torch.randn(2, 3, 32, 32, requires_grad=True)).requires_grad


def with_statistics(backbone, seed=0):
    """The backbone with batch norm that does something, as after training."""
    draw = torch.Generator().manual_seed(seed)
    for module in backbone.modules():
        if isinstance(module, BatchNorm):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.3, 1.2),
                (module.bias.data, -0.3, 0.3),
            ):
                values.uniform_(low, high, generator=draw)
    return backbone


def one_by_one(backbone, names, maps):
    for name in names:
        maps = backbone.get_submodule(name)(maps)
    return maps


@pytest.mark.parametrize("name", ["resnet18", "small"])
def test_losses_and_gradients_are_those_without_folding(name):
    frames = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    losses, gradients = [], []
    for folding in (True, False):
        torch.manual_seed(0)
        backbone = with_statistics(build_backbone(config(backbone=name)))
        everything = backbone.frozen + backbone.learnable
        maps = backbone(frames) if folding else one_by_one(backbone, everything, frames)
        loss = maps.amax((2, 3)).square().mean()
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in backbone.parameters() if p.requires_grad])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)
    for folded, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def test_folded_blocks_follow_every_change():
    backbone = with_statistics(build_backbone(config(backbone="small"))).eval()
    frames = torch.randn(2, 3, 32, 32)

    @torch.no_grad()
    def check():
        wanted = one_by_one(backbone, backbone.frozen + backbone.learnable, frames)
        torch.testing.assert_close(backbone(frames), wanted, rtol=1e-4, atol=1e-4)
        return wanted

    results = [check()]
    backbone.load_state_dict(with_statistics(build_backbone(config(backbone="small")), seed=1).state_dict())
    results.append(check())
    for name in ("conv1.1.running_mean", "conv5.1.running_var"):
        backbone.get_buffer(name).mul_(1.5)
        results.append(check())
    with torch.no_grad():
        backbone.get_parameter("conv2.1.bias").add_(0.3)
    results.append(check())
    backbone.conv3[0] = torch.nn.Conv2d(32, 32, 3, padding=1)  # with a bias
    backbone.conv3[0].requires_grad_(False)
    results.append(check())
    for before, after in pairwise(results):
        assert not torch.allclose(before, after, rtol=1e-2, atol=1e-2)
    backbone.double()
    frames = frames.double()
    torch.testing.assert_close(check(), results[-1].double(), rtol=1e-4, atol=1e-4)
    assert check().dtype == torch.float64


def test_learnable_blocks_train_unfolded_and_are_folded_anew_after_each_step():
    backbone = with_statistics(build_backbone(config(backbone="small")))
    frames = torch.randn(3, 3, 32, 32)
    optimizer = torch.optim.Adam([p for p in backbone.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        backbone.train()
        tracked = int(backbone.conv5[1].num_batches_tracked)
        backbone(frames).square().mean().backward()
        assert int(backbone.conv5[1].num_batches_tracked) == tracked + 1
        optimizer.step()
        optimizer.zero_grad()
        backbone.eval()
        with torch.no_grad():
            wanted = one_by_one(backbone, backbone.frozen + backbone.learnable, frames)
            torch.testing.assert_close(backbone(frames), wanted, rtol=1e-4, atol=1e-4)
    assert backbone(frames).requires_grad, "evaluation mode alone folds no learnable block"


def test_frames_embedded_in_inference_mode_leave_a_backbone_that_trains():
    backbone = build_backbone(config(backbone="small")).eval()
    frames = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        embedded = backbone(frames)
    torch.testing.assert_close(embedded, backbone(frames).detach(), rtol=1e-4, atol=1e-4)
    backbone.train()(frames).sum().backward()
    assert backbone.conv5[0].weight.grad is not None


def test_folded_blocks_are_no_part_of_the_module():
    backbone = build_backbone(config()).eval()
    fresh = build_backbone(config())
    frames = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = backbone(frames)
    assert list(backbone.state_dict()) == list(fresh.state_dict())
    assert [name for name, _ in backbone.named_modules()] == [name for name, _ in fresh.named_modules()]
    whole = pickle.dumps(backbone)
    assert len(whole) < 1.05 * len(pickle.dumps(fresh))
    for copied in (copy.deepcopy(backbone), pickle.loads(whole)):
        with torch.no_grad():
            assert torch.equal(copied(frames), wanted)
            copied.bn1.bias.add_(1)
            assert not torch.allclose(copied(frames), wanted)
            assert torch.equal(backbone(frames), wanted)
