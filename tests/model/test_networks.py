"""The contract of every backbone, and the errors of those that are none."""

import copy
import itertools
import json
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
from torch import nn

from carl_ray.config import CLIP_BACKBONES, Config, ModelConfig, from_json, to_json
from carl_ray.errors import UserError
from carl_ray.layers.normalization import BatchNorm
from carl_ray.machine import has_native_bf16
from carl_ray.model import backbone as backbones
from carl_ray.model import networks
from carl_ray.model.encoder import FrameLevelVideoEncoder

HERE = "tests.model.test_networks"


class OwnNetwork(nn.Module):
    """Convolutions of a user's own, with a batch norm of torch, and a branch that takes what no batch norm may."""

    kind, channels, mean, std, input_size = "frame", 8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 32

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.first = nn.Conv2d(3, 8, 3, stride=4)
        self.second, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, frames):
        maps = self.first(frames * self.scale)
        return maps + self.norm(torch.relu(self.second(maps)))

    def stages(self):
        return [self.first, nn.ModuleList([self.second, self.norm])]


class Lacking(nn.Module):
    kind, channels = "frame", 8


MVIT = "mvit_v2_s"  # Of one size of clips alone, which takes seconds.
NAMES = [
    *("resnet18", "small", "efficientnet_lite0", f"{HERE}:OwnNetwork"),
    *(name for name in CLIP_BACKBONES if name != MVIT),
    *("timm:test_vit", "timm:test_resnet", "timm:test_convnext"),
]
SWIN = "timm:swin_tiny_patch4_window7_224"  # Its maps have the channels last.
SIZES = {"timm:test_vit": 64, SWIN: 224}


@lru_cache(1)
def network(name, batch_norm):
    """To draw the weights of a large one takes longer than all that is done with it."""
    return networks.build_network(name, batch_norm)


@pytest.fixture(autouse=True)
def _a_network_is_built_once(monkeypatch):
    monkeypatch.setattr(backbones, "build_network", lambda *chosen: copy.deepcopy(network(*chosen)))


def build(name, **fields):
    """The backbone with statistics as after training, and two inputs of the size that it takes."""
    torch.manual_seed(0)
    fields = {"learnable": "1", "batch_norm": "local"} | fields
    built = backbones.build_backbone(ModelConfig(backbone=name, weights="random", **fields))
    for module in built.modules():
        if isinstance(module, BatchNorm):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    size = SIZES.get(name, 32)
    return built, torch.randn(2, 3, *([8] if built.kind == "clip" else []), size, size)


def plain(backbone, pixels):
    """What its modules compute, nothing folded."""
    for name in backbone.frozen + backbone.learnable:
        pixels = backbone.get_submodule(name)(pixels)
    return pixels


@pytest.mark.parametrize("name", [*NAMES, SWIN])
def test_shapes_and_folding(name):
    backbone, pixels = build(name)
    backbone.eval()
    assert len(backbone.mean) == len(backbone.std) == 3 and backbone.input_size >= 32
    with torch.no_grad():
        maps, exact = backbone(pixels), plain(copy.deepcopy(backbone), pixels)
        assert torch.equal(maps, backbone(pixels))
        torch.testing.assert_close(maps, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
        for backbone.pooling in ("max", "average"):
            assert backbone.pool(maps).shape == (2, backbone.channels)
        if backbone.kind == "frame" or has_native_bf16("cpu"):  # Emulated, a video takes half a minute.
            with torch.autocast("cpu", torch.bfloat16):
                assert backbone.pool(backbone(pixels)).isfinite().all()
        folded = backbone._folded["learnable" if backbone.learnable else "frozen"][1]
    left = [m for m in folded.modules() if isinstance(m, BatchNorm)]
    assert len(left) == (name == f"{HERE}:OwnNetwork"), "its batch norm follows no convolution"
    assert all(isinstance(m, BatchNorm) for m in backbone.modules() if "BatchNorm" in type(m).__name__)


@pytest.mark.parametrize("num_cut", [1, 2, 5])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*CLIP_BACKBONES, f"{HERE}:OwnNetwork")])
def test_a_cut_network_computes_what_its_stages_do_in_the_whole_one(name, num_cut):
    whole, pixels = build(name)
    stages = list(copy.deepcopy(network(name, "local")).stages())
    if num_cut >= len(stages):
        with pytest.raises(UserError, match=rf"more than 5 stages, and {name} has {len(stages)} stages"):
            build(name, cut_stages=num_cut)
        return
    made = []
    for module in whole.modules():
        module.register_forward_hook(lambda module, inputs, outcome: made.append(outcome))
    backbone, _ = build(name, cut_stages=num_cut)
    backbone.load_state_dict(whole.state_dict(), strict=False)
    with torch.no_grad():
        plain(whole.eval(), pixels)
        maps = plain(backbone.eval(), pixels)
    assert any(torch.equal(maps, one) for one in made)
    gone = sum(len(list(stage.parameters())) for stage in stages[-num_cut:])
    assert len(list(backbone.parameters())) == len(list(whole.parameters())) - gone
    assert backbone.pool(maps).shape == (2, backbone.channels) == (2, backbone.pooled_channels)


@pytest.mark.parametrize(
    "fields", [{"pooling": "grid"}, {"cut_stages": 1}, {"pooling": "grid", "cut_stages": 1}], ids=str
)
@pytest.mark.parametrize("learnable", ["1", "all"])
@pytest.mark.parametrize(
    "name", ["small", "timm:test_vit", "timm:test_vit2", "timm:test_vit3", "timm:test_resnet"]
)
def test_all_that_trains_has_a_gradient_with_a_grid_and_without_the_last_stages(name, learnable, fields):
    """DDP waits for it."""
    try:
        backbone, pixels = build(name, learnable=learnable, **fields)
    except UserError as error:
        assert (
            name == "timm:test_vit3"
            and "needs its last 1 stages (what pools its tokens is in them)" in str(error)
        )
        return
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert trained
    backbone.pool(backbone(pixels)).square().sum().backward()
    assert all(p.grad is not None for p in trained)


class Looking(OwnNetwork):
    """It looks at what it computes."""

    def forward(self, frames):
        return super().forward(frames) if frames.max() < 100 else frames


@pytest.mark.parametrize("pooling", ["max", "grid"])
def test_a_network_may_look_at_what_it_computes(pooling, monkeypatch):
    monkeypatch.setattr(backbones, "build_network", lambda *chosen: Looking())
    backbone = backbones.build_backbone(
        ModelConfig(backbone=f"{HERE}:Looking", weights="random", pooling=pooling)
    )
    assert backbone.pool(backbone(torch.randn(2, 3, 32, 32))).shape == (2, backbone.pooled_channels)


def test_clips_are_not_cut():
    with pytest.raises(
        UserError, match=r"model\.cut_stages: expected .* single frames .*, and r3d_18 sees clips"
    ):
        build("r3d_18", cut_stages=1)


def test_a_grid_keeps_where_something_is():
    backbone, _ = build("small", pooling="grid")
    maps = torch.arange(2 * 128 * 6 * 6.0).view(2, 128, 6, 6)
    pooled = backbone.pool(maps).view(2, 128, 3, 3)
    for row, column in itertools.product(range(3), range(3)):
        field = maps[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(pooled[:, :, row, column], field.mean((2, 3)))
    assert backbone.pooled_channels == 9 * 128


def test_a_grid_of_tokens_is_that_of_their_patches():
    backbone, pixels = build("timm:test_vit", pooling="grid")
    tokens = torch.randn(2, 1 + 36, backbone.channels)  # A class token before 6 x 6 patches.
    pooled = backbone.pool(tokens).view(2, backbone.channels, 3, 3)
    for row, column in itertools.product(range(3), range(3)):
        patches = [1 + 6 * (2 * row + y) + 2 * column + x for y in (0, 1) for x in (0, 1)]
        torch.testing.assert_close(pooled[:, :, row, column], tokens[:, patches].mean(1))
    with torch.no_grad():
        assert backbone.pool(backbone.eval()(pixels)).shape == (2, backbone.pooled_channels)


def test_clips_have_no_grid():
    with pytest.raises(UserError, match=r"model\.pooling grid: expected a backbone with a map of each frame"):
        build("small3d", pooling="grid")


@pytest.mark.parametrize("learnable", ["none", "1", "2", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_what_is_learnable_alone(name, learnable):
    backbone, pixels = build(name, learnable=learnable)
    stages = network(name, "local").stages()
    counts = [sum(p.numel() for p in stage.parameters() if p.requires_grad) for stage in stages]
    statistics = {
        key: value.clone() for key, value in backbone.named_buffers() if key.endswith("running_mean")
    }
    with torch.no_grad() if learnable == "none" else torch.enable_grad():
        pooled = backbone.train().pool(backbone(pixels))
    if learnable != "none":
        (pooled.square().sum() + pooled.sum()).backward()
    reached = {key for key, p in backbone.named_parameters() if p.grad is not None}
    assert reached == {key for key, p in backbone.named_parameters() if p.requires_grad}
    num_learnt = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    if learnable == "all":
        unused = {"timm:test_convnext": {"network.model.head.norm.weight", "network.model.head.norm.bias"}}
        assert {key for key, _ in backbone.named_parameters()} - reached == unused.get(name, set())
    else:
        assert num_learnt == sum(counts[len(counts) - int("0" if learnable == "none" else learnable) :])
    trained = {key.rpartition(".")[0] for key in reached}
    moved = {
        k.rpartition(".")[0] for k, v in statistics.items() if not torch.equal(v, backbone.get_buffer(k))
    }
    assert moved == {key.rpartition(".")[0] for key in statistics} & trained


def test_maps_of_mvit_are_its_tokens_without_that_of_the_class():
    backbone, _ = build(MVIT)
    model = backbone.eval().network.model
    tokens = []
    model.norm.register_forward_hook(lambda module, inputs, made: tokens.append(made))
    with torch.no_grad():
        maps = plain(backbone, torch.randn(1, 3, 16, 224, 224))
    assert maps.shape == (1, backbone.channels, 8, 7, 7)
    assert maps[0, :, 1, 2, 3].equal(tokens[0][0, 1 + 49 + 2 * 7 + 3])
    assert sum(p.numel() for s in network(MVIT, "local").stages() for p in s.parameters()) == sum(
        p.numel() for p in backbone.parameters()
    )


def test_a_transformer_pools_as_its_classifier():
    backbone, pixels = build("timm:test_vit")
    with torch.no_grad():
        tokens = backbone.eval()(pixels)
        assert backbone.pool(tokens).equal(backbone.network.model(pixels))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet5000", "timm has no model 'resnet5000'; similar: resnet"),
        ("no_such_module:Class", r"could not import no_such_module:Class \(.*PYTHONPATH"),
        (f"{HERE}:NoClass", "could not import .*NoClass"),
        ("os:getcwd", "os:getcwd: expected a class of torch modules"),
        (f"{HERE}:Lacking", "Lacking lacks mean, std, input_size, stages; carl_ray"),
    ],
)
def test_what_is_no_backbone(name, message):
    with pytest.raises(UserError, match=message):
        build(name)


def test_more_stages_than_there_are():
    with pytest.raises(UserError, match="at most the 5 stages of resnet18, got 6"):
        build("resnet18", learnable="6")


def test_frames_have_no_encoder_of_clips():
    with pytest.raises(UserError, match="r3d_18 sees clips"):
        FrameLevelVideoEncoder(ModelConfig(backbone="r3d_18", weights="random"))


def test_an_entry_point(monkeypatch):
    found = EntryPoints([EntryPoint("theirs", f"{HERE}:OwnNetwork", "carl_ray.backbones")])
    monkeypatch.setattr("carl_ray.config.entry_points", lambda group: found.select(group=group))
    monkeypatch.setattr("carl_ray.model.networks.entry_points", lambda group: found.select(group=group))
    assert build("theirs")[0].channels == 8
    with pytest.raises(ValueError, match=r"'swin3d_t', 'theirs', 'timm:NAME' or 'module:Class', got 'their'"):
        ModelConfig(backbone="their", weights="random")


def test_learnable_may_be_a_number():
    document = json.loads(to_json(Config(preset="test")))
    document["model"]["learnable"] = 3
    assert from_json(json.dumps(document), "here").model.learnable == "3"
    with pytest.raises(UserError, match=r"model\.learnable: expected one of 'all', .* got 0"):
        from_json(json.dumps(document | {"model": {"learnable": 0}}), "here")


def test_one_stage_of_a_timm_model_is_not_its_normalisation_alone():
    backbone, _ = build("timm:test_vit")
    names = {key.split(".")[2] for key, p in backbone.named_parameters() if p.requires_grad}
    assert names == {"blocks", "norm"}
