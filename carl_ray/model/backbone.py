"""Encoders of single frames, their frozen and learnable blocks, pretrained weights (sections 3.3 and 4.2)."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from carl_ray.config import ModelConfig
from carl_ray.errors import RunError, UserError
from carl_ray.model.normalization import BatchNorm, Mode
from carl_ray.storage import public_uri, read_bytes

_RESNET_BLOCKS = (("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_SMALL_BLOCKS = (("conv1",), ("conv2",), (), ("conv3", "conv4"), ("conv5", "conv6"))
_SMALL_CHANNELS_AND_STRIDES = ((16, 2), (32, 2), (32, 1), (64, 2), (64, 1), (128, 1))


class Backbone(nn.Module):
    """A convolutional network in five blocks, of which the first ones may be frozen.

    Frozen blocks have no gradient and use their stored statistics, also after `train()`; they pass
    `chunk_frames` frames at a time. State names are torchvision's for a ResNet (without `fc`).

    Attributes:
        channels: Channels of the feature maps that come out.
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
        for block in blocks:
            for name, module in block:
                self.add_module(name, module)
        self.frozen = [name for block in blocks[:num_frozen] for name, _ in block]
        self.learnable = [name for block in blocks[num_frozen:] for name, _ in block]
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        """Sets the mode of the learnable blocks; the frozen ones stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def forward(self, frames: Float[Tensor, "N 3 height width"]) -> Float[Tensor, "N C h w"]:
        """Feature maps of normalised frames."""
        maps = frames
        if self.frozen:
            with torch.no_grad():
                maps = torch.cat(
                    [self._pass(self.frozen, chunk) for chunk in frames.split(self.chunk_frames)]
                )
        return self._pass(self.learnable, maps)

    def _pass(self, names: list[str], maps: Tensor) -> Tensor:
        # The layout in which convolutions are fastest, on CPUs and on GPUs.
        maps = maps.contiguous(memory_format=torch.channels_last)
        for name in names:
            maps = self.get_submodule(name)(maps)
        return maps


def build_backbone(model: ModelConfig) -> Backbone:
    """The backbone that a config names, with random weights (`load_backbone_weights` brings others).

    `small` has six 3 x 3 convolutions with batch norm and ReLU, from 16 to 128 channels; a side of 48 pixels
    leaves 6. It halves the resolution twice before the third convolution, which costs half of what one
    halving every second convolution does. Counted as the paper's blocks, conv1 and conv2 are blocks 1 and 2,
    conv3 and conv4 block 4, conv5 and conv6 block 5.
    """
    names: tuple[tuple[str, ...], ...]
    if model.backbone == "small":
        network, names, channels = _small_network(model.batch_norm), _SMALL_BLOCKS, 128
    else:
        # Imported where it is needed: it takes as long as torch itself, and half of a run's processes do without.
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
    """How a backbone got its weights; `str()` is one line for the log.

    Attributes:
        source: `random`, `imagenet` or the URI, without secrets.
        matched: Tensors that were loaded.
        expected: Tensors that the backbone has (batch norm's counters aside).
        unused: Tensors of the source that the backbone has no place for, such as its classifier.
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
    """Loads the weights that a config names into a backbone, and says how many tensors matched.

    Args:
        backbone: What `build_backbone(model)` returned, changed in place.
        model: `weights` is `random` (nothing is changed), `imagenet` (torchvision's first ImageNet-1k
            weights, downloaded) or the URI of a file whose tensors are named as `weights_format` says.

    Raises:
        UserError: the file is missing, is no file of tensors, or does not cover the whole backbone.
        RunError: the download or the storage failed.
    """
    expected = {k: v for k, v in backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    if model.weights == "random":
        return WeightsReport("random", 0, len(expected), 0)
    if model.weights == "imagenet":
        source, layout = "torchvision's ImageNet weights", "torchvision"
        tensors = _download_imagenet(model.backbone)
    else:
        source, layout = public_uri(model.weights), model.weights_format
        tensors = _select(_read_checkpoint(model.weights), layout, source)
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
            f"{source}: read as {layout}, it covers {matched} of the {len(expected)} tensors of "
            f"{model.backbone}: {'; '.join(reasons)}; check model.weights_format and model.backbone"
        )
    known = backbone.state_dict()
    backbone.load_state_dict({k: v for k, v in tensors.items() if k in known}, strict=False)
    return WeightsReport(source, matched, len(expected), sum(name not in known for name in tensors))


def _download_imagenet(name: str) -> dict[str, Tensor]:
    import torchvision

    # The first version: every ResNet has it, and the field started from it.
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
    except Exception as error:  # Noise makes the reader fail in many ways.
        raise UserError(
            f"{public_uri(uri)}: expected a file written by torch.save ({' '.join(str(error).split())[:200]})"
        ) from None
    if not isinstance(document, Mapping):
        raise UserError(f"{public_uri(uri)}: expected a dictionary of tensors, got {type(document).__name__}")
    return document


def _select(document: Mapping[str, object], layout: str, source: str) -> dict[str, Tensor]:
    """The backbone's tensors of a checkpoint by their torchvision names, with its classifier if any."""
    match layout:
        case "torchvision":
            return _tensors(document)
        case "byol":
            tensors = _tensors(_entry(document, "model", layout, source))
            own = {k: v for k, v in tensors.items() if "encoder" in k and "encoder_k" not in k}
            return {k.removeprefix("module.encoder."): v for k, v in own.items()}
        case "moco":
            return _under("module.encoder_q.", _tensors(_entry(document, "state_dict", layout, source)))
        case "simclr":
            return _under("encoder.", _tensors(_entry(document, "state_dict", layout, source)))
        case _:
            raise ValueError(f"expected torchvision, byol, moco or simclr, got {layout!r}")


def _entry(document: Mapping[str, object], key: str, layout: str, source: str) -> Mapping[str, object]:
    entry = document.get(key)
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{source}: a {layout} file has its tensors under {key!r}, this one has {_some(list(document))}; "
            f"check model.weights_format"
        )
    return entry


def _tensors(entry: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: value for name, value in entry.items() if isinstance(value, Tensor)}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(str(name) for name in names[:3]) + more
