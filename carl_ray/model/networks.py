"""The networks that a backbone may be: what they have in common, and an adapter for each kind.

To add one in the package: its name in `config.BACKBONES` and a case in `build_network`. Outside of it, a torch module
with what `Network` lists is named by `model.backbone` as `module:Class`, or as an entry point of `carl_ray.backbones`.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from carl_ray.config import BACKBONE_GROUP, CLIP_BACKBONES
from carl_ray.errors import UserError, one_line
from carl_ray.layers.normalization import BatchNorm, Mode, own_batch_norm

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_KINETICS_MEAN, _KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
_RESNET_STAGES = (("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_VIDEO_STAGES = (("stem",), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_SMALL_STAGES = (("conv1",), ("conv2",), (), ("conv3", "conv4"), ("conv5", "conv6"))
_SMALL3D = (
    *((24, (1, 5, 5), (1, 2, 2)), (32, (3, 3, 3), (1, 2, 2))),
    *((48, (3, 3, 3), (2, 1, 1)), (64, (3, 3, 3), (2, 2, 2))),
)
"""Channels, kernel and stride of each convolution."""
_SMALL_CHANNELS_AND_STRIDES = ((16, 2), (32, 2), (32, 1), (64, 2), (64, 1), (128, 1))
_TIMM_NAMES = {"efficientnet_lite0": "tf_efficientnet_lite0"}
"""Backbones that have a name without the prefix `timm:`."""


class Network(Protocol):
    """What a torch module needs to be a backbone.

    Where its output are tokens (N, tokens, C), it may also have `pool(tokens) -> (N, C)`, which is used then, and
    `maps_of(tokens) -> (N, C, h, w)`, for `model.pooling grid`.

    Attributes:
        kind: `frame` for inputs (N, 3, H, W) and maps (N, C, h, w) or tokens; `clip` for inputs (N, 3, T, H, W) and
            maps (N, C, t, h, w).
        channels: C.
        mean: Of the three colours that it expects, of values in [0, 1].
        std: Their deviation.
        input_size: Height and width of the frames that it was made for, in pixels.
    """

    kind: Literal["frame", "clip"]
    channels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_size: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """Feature maps of normalised frames or clips."""

    def stages(self) -> Sequence[nn.Module]:
        """The units of `model.learnable`, from input to output; what is in none trains with `all` only."""


class Chain(nn.Module):
    """Modules that are applied one after the other, in stages.

    Args:
        stages: Modules by name.
        channels, kind, mean, std, input_size: See `Network`.
    """

    def __init__(
        self,
        stages: Sequence[Mapping[str, nn.Module]],
        *,
        channels: int,
        kind: Literal["frame", "clip"] = "frame",
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        input_size: int = 224,
    ) -> None:
        super().__init__()
        self.kind, self.channels, self.mean, self.std, self.input_size = kind, channels, mean, std, input_size
        self._names = [list(stage) for stage in stages]
        for stage in stages:
            for name, module in stage.items():
                self.add_module(name, module)

    def forward(self, maps: Float[Tensor, "N 3 *space"]) -> Float[Tensor, "N C *maps"]:
        """Feature maps of normalised frames or clips."""
        for module in self.children():
            maps = module(maps)
        return maps

    def stages(self) -> Sequence[nn.Module]:
        """The modules of each stage."""
        return [nn.ModuleList(self.get_submodule(name) for name in names) for names in self._names]


class TimmNetwork(nn.Module):
    """A model of timm without its classifier; stages are those of its `group_matcher`.

    Maps are (N, C, h, w); of a model of tokens (N, tokens, C), which it pools as its classifier would.

    Args:
        name: Of the model, with random weights.
        batch_norm: Mode of its batch norms.
    """

    published = "model."
    model: Any
    kind: Literal["frame", "clip"] = "frame"

    def __init__(self, name: str, batch_norm: Mode) -> None:
        import timm

        super().__init__()
        architecture = name.partition(".")[0]  # What follows names weights.
        if not timm.is_model(architecture):
            close = difflib.get_close_matches(architecture, timm.list_models(), 3)
            raise UserError(
                f"model.backbone: timm has no model {name!r}; similar: {', '.join(close) or 'none'} "
                "(timm.list_models() has all)"
            )
        try:  # Position codes are resampled to other sizes of frames where the model can do it.
            self.model = timm.create_model(name, num_classes=0, dynamic_img_size=True)
        except TypeError:
            self.model = timm.create_model(name, num_classes=0)
        if not hasattr(self.model, "forward_features"):
            raise UserError(f"model.backbone: timm's {name} has no forward_features; choose another model")
        own_batch_norm(self.model, batch_norm)
        expected: dict[str, Any] = self.model.pretrained_cfg
        self.channels: int = self.model.num_features
        self.mean, self.std = tuple(expected["mean"]), tuple(expected["std"])
        self.input_size: int = expected["input_size"][-1]
        self.freeze_unused(TimmNetwork.pool)

    def freeze_unused(self, pool: Callable[[TimmNetwork, Tensor], Tensor]) -> None:
        """Freeze what maps, or what `pool` makes of tokens, do not depend on, such as parts of the classifier.

        DDP waits for a gradient of everything that may have one.
        """
        shapes = copy.deepcopy(self).to("meta")  # Computes nothing.
        outcome = shapes(torch.zeros(1, 3, self.input_size, self.input_size, device="meta"))
        pooled = pool(shapes, outcome) if outcome.ndim < 4 else outcome
        learnable = [p for p in shapes.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(pooled.sum(), learnable, allow_unused=True)
        used = {id(p) for p, gradient in zip(learnable, gradients, strict=True) if gradient is not None}
        for parameter, shape in zip(self.parameters(), shapes.parameters(), strict=True):
            parameter.requires_grad_(id(shape) in used)

    def forward(self, frames: Float[Tensor, "N 3 height width"]) -> Float[Tensor, "N C *maps"]:
        """Feature maps or tokens."""
        maps: Tensor = self.model.forward_features(frames)
        return maps.movedim(-1, 1) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else maps

    def pool(self, tokens: Float[Tensor, "N tokens C"]) -> Float[Tensor, "N C"]:
        """The class token, or the mean of the others, as the model's own classifier takes them."""
        pooled: Tensor = self.model.forward_head(tokens, pre_logits=True)
        return pooled

    def maps_of(self, tokens: Float[Tensor, "N tokens C"]) -> Float[Tensor, "N C side side"]:
        """The tokens of the patches of square frames, where they are."""
        patches = tokens[:, getattr(self.model, "num_prefix_tokens", 0) :]
        return patches.transpose(1, 2).unflatten(2, (math.isqrt(patches.shape[1]), -1))

    def stages(self) -> Sequence[nn.Module]:
        """The modules with parameters of each group of layers."""
        from timm.models import group_modules

        groups = group_modules(self.model, self.model.group_matcher(coarse=True), return_values=True)
        # The whole model is no part of a stage, though it may have parameters of its own, such as a class token.
        stages = [nn.ModuleList(m for m in groups[key] if m is not self.model) for key in sorted(groups)]
        return [stage for stage in stages if any(p.requires_grad for p in stage.parameters())]


class _S3D(nn.Module):
    """torchvision's S3D without its classifier; each module of its `features` is a stage."""

    kind: Literal["frame", "clip"] = "clip"
    channels, mean, std, input_size = 1024, _KINETICS_MEAN, _KINETICS_STD, 224

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features

    def forward(self, clips: Float[Tensor, "N 3 T height width"]) -> Float[Tensor, "N C t h w"]:
        """Feature maps."""
        return self.features(clips)

    def stages(self) -> Sequence[nn.Module]:
        """Those with parameters; pooling belongs to none."""
        return [module for module in self.features if next(module.parameters(), None) is not None]


class _Transformer3D(nn.Module):
    """torchvision's video Swin or MViT without its classifier, whose tokens become maps."""

    kind: Literal["frame", "clip"] = "clip"
    mean, std, input_size = _KINETICS_MEAN, _KINETICS_STD, 224
    published = "model."

    def __init__(self, model: Any) -> None:
        from torchvision.ops import StochasticDepth

        super().__init__()
        self.model = model
        self.channels: int = model.norm.normalized_shape[0]
        model.head = nn.Identity()
        for module in model.modules():
            if isinstance(module, StochasticDepth):
                module.p = 0.0  # Its draws would depend on the worker, and on those before.

    def forward(self, clips: Float[Tensor, "N 3 T height width"]) -> Float[Tensor, "N C t h w"]:
        """Feature maps; MViT's class token is left out."""
        model = self.model
        if hasattr(model, "patch_embed"):
            maps: Tensor = model.norm(model.features(model.pos_drop(model.patch_embed(clips))))
            return maps.movedim(-1, 1)
        tokens = model.pos_encoding(model.conv_proj(clips).flatten(2).transpose(1, 2))
        size = (model.pos_encoding.temporal_size, *model.pos_encoding.spatial_size)
        for block in model.blocks:
            tokens, size = block(tokens, size)
        return model.norm(tokens)[:, 1:].transpose(1, 2).unflatten(2, size)

    def stages(self) -> Sequence[nn.Module]:
        """The blocks, the first with what comes before them, the last with the norm after them."""
        model = self.model
        if hasattr(model, "patch_embed"):
            before, blocks = [model.patch_embed], list(model.features)
        else:
            before, blocks = [model.conv_proj, model.pos_encoding], list(model.blocks)
        parts = [[block] for block in blocks]
        parts[0], parts[-1] = before + parts[0], [*parts[-1], model.norm]
        return [nn.ModuleList(part) for part in parts]


def build_network(name: str, batch_norm: Mode) -> Network:
    """Build the network that `model.backbone` names, with random weights.

    Raises:
        UserError: there is none of that name, or it lacks something of `Network`.
    """
    if name == "small":
        return _small(batch_norm)
    if name in _TIMM_NAMES or name.startswith("timm:"):
        return TimmNetwork(_TIMM_NAMES.get(name, name.removeprefix("timm:")), batch_norm)
    if name == "small3d":
        return _small3d(batch_norm)
    if name in CLIP_BACKBONES:
        return _torchvision_video(name, batch_norm)
    if name.startswith("resnet"):
        # Imported lazily: it takes as long as torch itself, and half of a run's processes do not need it.
        import torchvision

        resnet = torchvision.models.get_model(
            name, weights=None, norm_layer=partial(BatchNorm, mode=batch_norm)
        )
        return Chain(_named(resnet, _RESNET_STAGES), channels=resnet.fc.in_features)
    return _own(name, batch_norm)


def cut(network: Network, stages: Sequence[nn.Module], num_cut: int, name: str, *, pooled: bool) -> None:
    """Put the identity in the place of the last stages; `channels` become those of the last one that stays.

    The names of the state stay. For networks of frames that apply their stages one after the other.

    Args:
        network: Changed in place.
        stages: Of the network.
        num_cut: How many of the last ones go.
        name: Of the network, for messages.
        pooled: Whether a network of tokens is to pool them itself.

    Raises:
        UserError: it has no more stages than that, or needs the later ones.
    """
    assert isinstance(network, nn.Module)
    if network.kind != "frame" or num_cut >= len(stages):
        has = "sees clips" if network.kind != "frame" else f"has {len(stages)} stages"
        raise UserError(
            f"model.cut_stages: expected a backbone of single frames with more than {num_cut} stages, and {name} {has}"
        )
    gone = {id(parameter) for stage in stages[-num_cut:] for parameter in stage.parameters()}
    replaced = "."
    for path, module in list(network.named_modules()):
        parameters = {id(parameter) for parameter in module.parameters()}
        if parameters and parameters <= gone and not path.startswith(f"{replaced}."):
            network.set_submodule(path, nn.Identity())
            replaced = path
    try:
        shape = outcome_shape(network, pooled=pooled)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"model.cut_stages: {name} needs its last {num_cut} stages ({one_line(error)})"
        ) from None
    network.channels = shape[1 if len(shape) in (2, 4) else -1]


@torch.no_grad()
def outcome_shape(network: Network, *, pooled: bool = False) -> torch.Size:
    """Shape of what a network of frames makes of one frame: of its maps or tokens, or of the tokens as it pools them.

    Raises:
        ValueError: its tokens are no vector of a frame once it has pooled them.
    """
    assert isinstance(network, nn.Module)
    tried: Any = copy.deepcopy(network).eval()
    outcome: Tensor = tried(torch.zeros(1, 3, network.input_size, network.input_size))
    if pooled and outcome.ndim < 4 and hasattr(tried, "pool"):
        outcome = tried.pool(outcome)
        if outcome.ndim != 2:
            raise ValueError("what pools its tokens is in them")
    return outcome.shape


def _named(network: nn.Module, stages: Sequence[Sequence[str]]) -> list[dict[str, nn.Module]]:
    return [{name: network.get_submodule(name) for name in stage} for stage in stages]


def _torchvision_video(name: str, batch_norm: Mode) -> Network:
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    own_batch_norm(model, batch_norm)
    if name == "s3d":
        return _S3D(model.features)
    if name in ("mvit_v2_s", "swin3d_t"):
        return _Transformer3D(model)
    return Chain(
        _named(model, _VIDEO_STAGES),
        channels=model.fc.in_features,
        kind="clip",
        mean=_KINETICS_MEAN,
        std=_KINETICS_STD,
        input_size=112,
    )


def _small(batch_norm: Mode) -> Chain:
    """Six 3 x 3 convolutions with batch norm and ReLU, from 16 to 128 channels; 48 pixels become 6.

    The resolution is halved twice before the third convolution, at half the cost of halving every second one. Counted
    as the paper's blocks, conv1 and conv2 are blocks 1 and 2, conv3 and conv4 block 4, conv5 and conv6 block 5.
    """
    modules = _convolutions(
        nn.Conv2d, [(c, (3, 3), (s, s)) for c, s in _SMALL_CHANNELS_AND_STRIDES], batch_norm
    )
    channels = _SMALL_CHANNELS_AND_STRIDES[-1][0]
    return Chain([{name: modules[name] for name in stage} for stage in _SMALL_STAGES], channels=channels)


def _small3d(batch_norm: Mode) -> Chain:
    """Four convolutions over space and time; clips of 8 x 32 x 32 become 2 x 4 x 4."""
    modules = _convolutions(nn.Conv3d, _SMALL3D, batch_norm)
    stages = [{name: module} for name, module in modules.items()]
    return Chain(stages, channels=_SMALL3D[-1][0], kind="clip", input_size=32)


def _convolutions(
    kind: type[nn.Conv2d | nn.Conv3d],
    layers: Sequence[tuple[int, tuple[int, ...], tuple[int, ...]]],
    batch_norm: Mode,
) -> dict[str, nn.Module]:
    """Convolutions (channels, kernel, stride) with batch norm and ReLU, by name from `conv1` on."""
    modules: dict[str, nn.Module] = {}
    before = 3
    for number, (channels, kernel, stride) in enumerate(layers, start=1):
        padding: Any = tuple(side // 2 for side in kernel)
        convolution = kind(before, channels, kernel, stride, padding, bias=False)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        norm = BatchNorm(channels, batch_norm)
        modules[f"conv{number}"] = nn.Sequential(convolution, norm, nn.ReLU(inplace=True))
        before = channels
    return modules


def _own(name: str, batch_norm: Mode) -> Network:
    """A user's own class, by entry point or import path."""
    known = entry_points(group=BACKBONE_GROUP)
    found = known[name] if name in known.names else EntryPoint(name, name, BACKBONE_GROUP)
    try:
        own = found.load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"model.backbone: could not import {found.value} ({error}); its folder must be on PYTHONPATH"
        ) from None
    # Checked before it is called: a config may come from elsewhere.
    if not (inspect.isclass(own) and issubclass(own, nn.Module)):
        raise UserError(f"model.backbone: {found.value}: expected a class of torch modules, got {own!r}")
    network: Any = own()
    missing = [
        attribute
        for attribute in ("kind", "channels", "mean", "std", "input_size", "stages")
        if not hasattr(network, attribute)
    ]
    if missing:
        raise UserError(
            f"model.backbone: {found.value} lacks {', '.join(missing)}; carl_ray.model.networks.Network says what "
            "they are"
        )
    own_batch_norm(network, batch_norm)
    checked: Network = network
    return checked
