"""Backbones of single frames, frozen and learnable, with pretrained weights."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from carl_ray.config import ModelConfig
from carl_ray.errors import RunError, UserError
from carl_ray.model.normalization import BatchNorm, Mode
from carl_ray.storage import public_uri, read_bytes

_RESNET_BLOCKS = (("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_SMALL_BLOCKS = (("conv1",), ("conv2",), (), ("conv3", "conv4"), ("conv5", "conv6"))
_SMALL_CHANNELS_AND_STRIDES = ((16, 2), (32, 2), (32, 1), (64, 2), (64, 1), (128, 1))
_STATE_KEYS = ("model", "state_dict")
"""Entries of a checkpoint that hold its tensors: BYOL's; MoCo's and SimCLR's."""
_ENCODER_PREFIXES = ("module.encoder_q.", "module.encoder.", "encoder.")
"""Prefixes of the encoder's tensors in checkpoints of MoCo, BYOL and SimCLR."""


class Backbone(nn.Module):
    """A convolutional network in five blocks, of which the first ones may be frozen.

    Frozen blocks have no gradient and use their stored statistics, also after `train()`; they pass at most
    `chunk_frames` frames at a time. State names are torchvision's for a ResNet (without `fc`).

    Where batch norm uses stored statistics and nothing needs a gradient, it is folded into the convolution before it:
    always in the frozen blocks, and in all blocks in evaluation mode without gradient. The folded copy is a cache, made
    anew once a tensor has changed; changes through `.data.copy_()` and the like are not detected.

    Attributes:
        channels: Channels of the feature maps that come out.
        chunk_frames: The most frames that pass at a time where nothing needs a gradient.
        frozen: Names of the frozen modules, in order.
        learnable: Names of the others, in order.
    """

    def __init__(
        self,
        blocks: tuple[tuple[tuple[str, nn.Module], ...], ...],
        *,
        num_frozen: int,
        channels: int,
        chunk_frames: int,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.chunk_frames = chunk_frames
        # Not registered as submodules: they are a cache, not state.
        self._folded: dict[str, tuple[tuple[object, ...], nn.Module]] = {}
        for block in blocks:
            for name, module in block:
                self.add_module(name, module)
        self.frozen = [name for block in blocks[:num_frozen] for name, _ in block]
        self.learnable = [name for block in blocks[num_frozen:] for name, _ in block]
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train()

    def __getstate__(self) -> dict[str, Any]:
        """The state without the cache of folded blocks, for copies and pickles."""
        return {**self.__dict__, "_folded": {}}

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode of the learnable blocks; the frozen ones stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        if mode:
            self._folded.pop("learnable", None)  # The next step outdates it.
        return self

    def forward(self, frames: Float[Tensor, "N 3 height width"]) -> Float[Tensor, "N C h w"]:
        """Feature maps of normalised frames."""
        if self.training or torch.is_grad_enabled():
            return self.pass_learnable(self.pass_frozen(frames))
        return self._pass_folded(("frozen", "learnable"), frames)

    # Not inference_mode: the learnable blocks save the output for their backward pass.
    @torch.no_grad()
    def pass_frozen(self, frames: Float[Tensor, "N 3 height width"]) -> Tensor:
        """Output of the frozen blocks, without gradient; the frames if none is frozen."""
        return self._pass_folded(("frozen",), frames) if self.frozen else frames

    def pass_learnable(self, maps: Tensor) -> Float[Tensor, "N C h w"]:
        """Output of the learnable blocks for the output of `pass_frozen`."""
        maps = _channels_last(maps)
        for name in self.learnable:
            maps = self.get_submodule(name)(maps)
        return maps

    def chunks(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Split frames into the fewest, nearly equal chunks of at most `chunk_frames`."""
        # Equal chunks need less memory at once, and cuDNN tunes for fewer sizes.
        return frames.chunk(max(1, math.ceil(len(frames) / self.chunk_frames)))

    def _pass_folded(self, parts: Sequence[str], frames: Tensor) -> Tensor:
        device = frames.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        # Once for all chunks: checking whether the weights have changed reads all of them.
        folded = [self._folded_part(part, dtype) for part in parts if getattr(self, part)]
        passed = []
        # The folded weights have the type already; autocast would cast them again for every chunk.
        with torch.autocast(device, enabled=False):
            for maps in self.chunks(frames):
                if dtype is not None:
                    maps = maps.to(dtype)
                for blocks in folded:
                    maps = blocks(_channels_last(maps))
                passed.append(maps)
        return passed[0] if len(passed) == 1 else torch.cat(passed)

    def _folded_part(self, part: str, dtype: torch.dtype | None) -> nn.Module:
        names: list[str] = getattr(self, part)
        modules = [self.get_submodule(name) for name in names]
        key = _fingerprint(modules, dtype)
        if part not in self._folded or self._folded[part][0] != key:
            self._folded[part] = key, _fold(names, modules, dtype)
        return self._folded[part][1]


def _fingerprint(modules: Sequence[nn.Module], dtype: torch.dtype | None) -> tuple[object, ...]:
    """Key that changes once a tensor of the modules is written, moved or replaced."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return dtype, *(
        # Moving a module keeps its tensors' versions, writing keeps their addresses.
        (id(t), t.data_ptr(), t.device, t.dtype, None if t.is_inference() else t._version)
        for t in tensors
    )


@torch.inference_mode(False)  # A copy made in inference mode could not be used in training.
@torch.no_grad()
def _fold(names: Sequence[str], modules: Sequence[nn.Module], dtype: torch.dtype | None) -> nn.Module:
    """Copies of the modules with batch norm folded into the convolutions, cast."""
    named = zip(names, (copy.deepcopy(module) for module in modules), strict=True)
    folded = nn.Sequential(OrderedDict(named)).eval().requires_grad_(False)
    _fold_children(folded)
    return folded if dtype is None else folded.to(dtype)


def _fold_children(module: nn.Module) -> None:
    """Fold each batch norm into the convolution registered before it."""
    before: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, BatchNorm) and before is not None and isinstance(before[1], nn.Conv2d):
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, nn.Identity())
        _fold_children(child)
        before = name, child


def _channels_last(maps: Tensor) -> Tensor:
    # The layout in which convolutions are fastest, on CPUs and on GPUs.
    return maps.contiguous(memory_format=torch.channels_last)


def build_backbone(model: ModelConfig) -> Backbone:
    """Build the backbone that a config names, with random weights.

    `small` has six 3 x 3 convolutions with batch norm and ReLU, from 16 to 128 channels; it reduces 48 pixels to 6. It
    halves the resolution twice before the third convolution, at half the cost of halving every second one.
    Counted as the paper's blocks, conv1 and conv2 are blocks 1 and 2, conv3 and conv4 block 4, conv5 and conv6
    block 5.
    """
    names: tuple[tuple[str, ...], ...]
    if model.backbone == "small":
        network, names, channels = _small_network(model.batch_norm), _SMALL_BLOCKS, 128
    else:
        # Imported lazily: it takes as long as torch itself, and half of a run's processes do not need it.
        import torchvision

        norm_layer = partial(BatchNorm, mode=model.batch_norm)
        network = torchvision.models.get_model(model.backbone, weights=None, norm_layer=norm_layer)
        names, channels = _RESNET_BLOCKS, network.fc.in_features
    num_frozen = {"none": 5, "block5": 4, "block4+5": 3, "all": 0}[model.learnable]
    backbone = Backbone(
        tuple(tuple((name, network.get_submodule(name)) for name in block) for block in names),
        num_frozen=num_frozen,
        channels=channels,
        chunk_frames=model.chunk_frames,
    )
    return backbone.to(memory_format=torch.channels_last)


def _small_network(batch_norm: Mode) -> nn.Module:
    network = nn.Module()
    before = 3
    for number, (channels, stride) in enumerate(_SMALL_CHANNELS_AND_STRIDES, start=1):
        convolution = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        block = nn.Sequential(convolution, BatchNorm(channels, batch_norm), nn.ReLU(inplace=True))
        network.add_module(f"conv{number}", block)
        before = channels
    return network


@dataclass(frozen=True)
class WeightsReport:
    """Source of a backbone's weights; `str()` is one line for the log.

    Attributes:
        source: `random`, `imagenet` or the URI, without secrets.
        matched: Tensors that were loaded.
        expected: Tensors that the backbone has (batch norm's counters aside).
        unused: Tensors of the source that the backbone does not have, such as a classifier's.
    """

    source: str
    matched: int
    expected: int
    unused: int

    def __str__(self) -> str:
        if self.source == "random":
            return f"backbone: {self.expected} tensors at random"
        return (
            f"backbone: {self.matched} of {self.expected} tensors from {self.source}, "
            f"{self.unused} of the source unused"
        )


def load_backbone_weights(backbone: nn.Module, model: ModelConfig) -> WeightsReport:
    """Load the weights that a config names into a backbone, and report the matches.

    Args:
        backbone: The return value of `build_backbone(model)`, changed in place.
        model: `weights` is `random` (nothing is changed), `imagenet` (torchvision's first ImageNet-1k weights,
            downloaded) or the URI of a torch file: torchvision's, or a checkpoint of BYOL, MoCo v2 or SimCLR, which
            are recognised by the prefixes of their tensors.

    Raises:
        UserError: the file is missing, is no file of tensors, or does not cover the whole backbone.
        RunError: the download or the storage failed.
    """
    known = backbone.state_dict()
    expected = {name: value for name, value in known.items() if not name.endswith("num_batches_tracked")}
    if model.weights == "random":
        return WeightsReport("random", 0, len(expected), 0)
    if model.weights == "imagenet":
        source, tensors = "torchvision's ImageNet weights", _download_imagenet(model.backbone)
    else:
        source, tensors = public_uri(model.weights), _encoder_tensors(_read_checkpoint(model.weights))
    missing = [name for name in expected if name not in tensors]
    misshapen = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    matched = len(expected) - len(missing) - len(misshapen)
    if matched < len(expected):
        reasons = []
        if missing:
            reasons.append(
                f"missing {_some(missing)}; it has {_some(list(tensors)) or 'no tensors of that kind'}"
            )
        if misshapen:
            name = misshapen[0]
            wanted, got = tuple(expected[name].shape), tuple(tensors[name].shape)
            reasons.append(f"{len(misshapen)} of another shape, such as {name}: expected {wanted}, got {got}")
        raise UserError(
            f"{source}: it covers {matched} of the {len(expected)} tensors of {model.backbone}: "
            f"{'; '.join(reasons)}; check model.backbone, and that the file is of torchvision, BYOL, MoCo v2 or SimCLR"
        )
    backbone.load_state_dict({k: v for k, v in tensors.items() if k in known}, strict=False)
    return WeightsReport(source, matched, len(expected), sum(name not in known for name in tensors))


def _download_imagenet(name: str) -> dict[str, Tensor]:
    import torchvision

    # The first version, which exists for every ResNet.
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a wrong hash is a RuntimeError
        raise RunError(
            f"could not fetch torchvision's ImageNet weights for {name} ({' '.join(str(error).split())}); "
            f"use --model.weights random, or --model.weights with the path or URI of a file that has them "
            f"({weights.url})"
        ) from None


def _read_checkpoint(uri: str) -> Mapping[str, object]:
    content = read_bytes(uri)
    try:
        document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{public_uri(uri)}: holds more than tensors, or is no torch file; save its tensors alone with "
            f"torch.save ({' '.join(str(error).split())[:200]})"
        ) from None
    except Exception as error:  # Other content makes torch.load fail in many ways.
        raise UserError(
            f"{public_uri(uri)}: expected a file written by torch.save ({' '.join(str(error).split())[:200]})"
        ) from None
    if not isinstance(document, Mapping):
        raise UserError(f"{public_uri(uri)}: expected a dictionary of tensors, got {type(document).__name__}")
    return document


def _encoder_tensors(document: Mapping[str, object]) -> dict[str, Tensor]:
    """The backbone's tensors of a checkpoint by torchvision's names."""
    for key in _STATE_KEYS:
        nested = document.get(key)
        if isinstance(nested, Mapping):
            document = nested
    tensors = {name: value for name, value in document.items() if isinstance(value, Tensor)}
    for prefix in _ENCODER_PREFIXES:
        found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if found:
            return found
    return tensors


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(str(name) for name in names[:3]) + more
