"""All state of a run becomes a folder, and back.

    RUN/checkpoints/step-00000500/  model.pt  optimizer.pt  state.json (the last: a folder without it is torn)

`state.json` holds the position in the plan, the config, counters and the SHA-256 of the other files. A
checkpoint that is torn or whose hash is wrong is passed over, with a warning, for the one before. Tensors are
read with `weights_only=True`: a checkpoint is data, never code. torch is imported lazily: commands look for a
checkpoint before anything heavy is loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import Config
from carl_ray.errors import RunError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from carl_ray.model.encoder import FrameLevelVideoEncoder
    from carl_ray.training.step import TrainedModel, TrainingStep

_LOGGER = logging.getLogger(__name__)
CONFIG = "config.json"
"""The config of a run, in its folder."""
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints."""

_STATE = "state.json"
_FILES = ("model.pt", "optimizer.pt")
_ENCODER = "encoder."
_NOT_IN_SHAPES = ("num_heads", "pooling", "positions", "temporal_encoder", "weights", "weights_format")
"""Fields of `ModelConfig` that make another encoder, or another control, of tensors of the same shapes."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: what a resumed one must know besides tensors."""

    step: int
    """Steps done; the next one is this one."""
    row: int
    """Rows of the plan consumed."""
    num_bad_rows: int
    """Rows so far whose video could not be read."""
    num_skipped_steps: int
    """Steps so far whose loss or gradient was not finite."""
    seconds: float
    """Time spent training."""
    videos: str
    """`videos_digest` of the training videos: the plan is an order of these and no others."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint in storage."""

    uri: str
    progress: Progress
    config: Config
    hashes: dict[str, str]


class DamagedError(RunError):
    """A file of a checkpoint does not hold what was written; going on from an older checkpoint may help."""


def save_checkpoint(run_dir: str, step: TrainingStep, progress: Progress, keep: int) -> str:
    """Writes a checkpoint, deletes old ones but `keep`, and returns its URI; called by one worker alone.

    Old ones that cannot be deleted stay, with a warning.

    Raises:
        RunError: storage refused, failed or is full; older checkpoints stay as they were.
    """
    import torch

    name = f"step-{progress.step:08d}"
    uri = storage.join(run_dir, CHECKPOINTS, name)
    random_state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if step.device.type == "cuda":
        random_state["cuda"] = torch.cuda.get_rng_state(step.device)
    contents = {
        "model.pt": _to_bytes(step.model.state_dict()),
        "optimizer.pt": _to_bytes({"optimizer": step.optimizer.state_dict(), "random": random_state}),
    }
    state = {
        "progress": vars(progress),
        "config": configuration.to_document(step.config),
        "hashes": {file_name: hashlib.sha256(content).hexdigest() for file_name, content in contents.items()},
    }
    # Last, what makes it a checkpoint.
    contents[_STATE] = (json.dumps(state, indent=2) + "\n").encode()
    try:
        for file_name, content in contents.items():
            storage.write_bytes(storage.join(uri, file_name), content)
    except RunError:
        _discard_torn(uri)
        raise
    try:
        _delete_older(run_dir, name, keep)
    except RunError as error:
        _LOGGER.warning("the checkpoint %s is written, but older ones are left: %s", name, error)
    return uri


def resume_command(run_dir: str) -> str:
    """The command that goes on with a run, ready to paste."""
    return storage.shell_command("python", "-m", "carl_ray.train", "--run-dir", run_dir, "--resume")


def how_to_go_on(run_dir: str, saved_step: int | None) -> str:
    """What an interrupted run says last: where it goes on, and the command."""
    place = "there is no checkpoint yet: begin again"
    if saved_step is not None:
        place = f"go on from step {saved_step}"
    return f"{place} with: {resume_command(run_dir)}"


def _discard_torn(uri: str) -> None:
    """Removes what there is of a checkpoint that could not be written: a full disk needs the room."""
    if storage.is_remote(uri):
        return  # The store that has just failed; the next checkpoint tidies up.
    with suppress(RunError):
        if not storage.exists(storage.join(uri, _STATE)):
            storage.delete(uri)


def _delete_older(run_dir: str, name: str, keep: int) -> None:
    older = [old for old in _names(run_dir) if old < name]
    # A torn folder is no checkpoint to fall back on: it goes, and does not count.
    complete = [old for old in older if storage.exists(storage.join(run_dir, CHECKPOINTS, old, _STATE))]
    for old in older:
        if old not in complete[: keep - 1]:
            storage.delete(storage.join(run_dir, CHECKPOINTS, old))


def latest_checkpoint(run_dir: str) -> Checkpoint | None:
    """The newest checkpoint of a run that is complete and whose tensors have the right hash, or none.

    Raises:
        RunError: storage refused or failed; that is no reason to go back to an older one.
    """
    for name in _names(run_dir):
        uri = storage.join(run_dir, CHECKPOINTS, name)
        try:
            checkpoint = open_checkpoint(uri)
            for file_name in checkpoint.hashes:
                _read_verified(checkpoint, file_name)
        except (UserError, DamagedError) as error:
            _LOGGER.warning("passing over the checkpoint %s: %s", storage.public_uri(uri), error)
            continue
        return checkpoint
    return None


def open_checkpoint(uri: str) -> Checkpoint:
    """The checkpoint in a folder, its tensors not yet read.

    Raises:
        UserError: there is none, or it is torn.
    """
    source = storage.join(uri, _STATE)
    try:
        state = json.loads(storage.read_bytes(source))
        return Checkpoint(
            uri=uri,
            progress=Progress(**state["progress"]),
            config=configuration.from_document(state["config"], storage.public_uri(source)),
            # These and no others: a name from the file could lead anywhere.
            hashes={name: state["hashes"][name] for name in _FILES},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{storage.public_uri(source)}: not the state of a checkpoint ({error})") from None


def checkpoint_at(uri: str) -> Checkpoint:
    """The checkpoint in a folder, or the latest one of a run folder.

    Raises:
        UserError: there is neither.
        RunError: storage refused or failed.
    """
    if storage.exists(storage.join(uri, _STATE)):
        return open_checkpoint(uri)
    checkpoint = latest_checkpoint(uri)
    if checkpoint is None:
        raise UserError(
            f"{storage.public_uri(storage.absolute(uri))}: expected a run folder with a checkpoint, or one of its "
            "checkpoints"
        )
    return checkpoint


def default_run(instead: str) -> str:
    """The newest run of the demo on this machine.

    Args:
        instead: Options of the command that say what to work on, for the message where there is none.

    Raises:
        UserError: there is none.
    """
    runs = storage.home() / "runs"
    for name in sorted(storage.list_folder(str(runs)), reverse=True):
        if name.startswith("demo-") and latest_checkpoint(str(runs / name)) is not None:
            return str(runs / name)
    raise UserError(
        f"{runs}: no trained demo there; train one with `python -m carl_ray.train`, or give {instead}"
    )


def load_encoder(checkpoint: Checkpoint) -> FrameLevelVideoEncoder:
    """The trained encoder of a checkpoint, in evaluation mode on the CPU; nothing else of it is read.

    Errors as `load_model`.
    """
    from carl_ray.training.step import initial_model

    model = initial_model(checkpoint.config)
    load_model(checkpoint, model)
    return model.encoder.eval()


def load_model(checkpoint: Checkpoint, model: TrainedModel) -> None:
    """Copies a checkpoint's weights into a model.

    Raises:
        UserError: they do not fit the model.
        RunError: a file is damaged, or holds more than tensors.
    """
    tensors = _tensors(checkpoint)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        wrong = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        name = wrong[0]
        raise UserError(
            f"{storage.public_uri(checkpoint.uri)}: does not fit the model: {len(wrong)} tensors differ, "
            f"first {name}: expected shape {expected.get(name, 'none')}, got {found.get(name, 'none')}; "
            "use the --model options it was trained with (its state.json has them)"
        )
    model.load_state_dict(tensors)


@dataclass(frozen=True)
class InitialWeights:
    """What a run that begins with the weights of another takes from it."""

    tensors: dict[str, Tensor]
    """By their names in `TrainedModel`: the whole encoder, and what fits of the head."""
    report: str
    """One line: what was loaded, from where, and what begins anew."""


def initial_weights(config: Config, uri: str) -> InitialWeights:
    """The weights that a run begins with, from the checkpoint or run folder of another.

    Positions are computed, not learnt, so that T may differ.

    Raises:
        UserError: there is no checkpoint, or its encoder is not this config's.
        RunError: a file is damaged, or holds more than tensors.
    """
    checkpoint = checkpoint_at(uri)
    for name in _NOT_IN_SHAPES:
        theirs, ours = getattr(checkpoint.config.model, name), getattr(config.model, name)
        if theirs != ours:
            raise UserError(
                f"model.init_from: {storage.public_uri(checkpoint.uri)}: its encoder is another: model.{name} is "
                f"{theirs!r} there, here {ours!r}; use the --model options that it was trained with"
            )
    from carl_ray.training.step import initial_model

    found = _tensors(checkpoint)
    expected = {name: tuple(value.shape) for name, value in initial_model(config).state_dict().items()}
    fitting = {name: value for name, value in found.items() if expected.get(name) == tuple(value.shape)}
    missing = sorted(name for name in expected if name.startswith(_ENCODER) and name not in fitting)
    if missing:
        name = missing[0]
        got = tuple(found[name].shape) if name in found else "none"
        raise UserError(
            f"model.init_from: {storage.public_uri(checkpoint.uri)}: its encoder is another: {len(missing)} tensors "
            f"do not fit, first {name}: expected shape {expected[name]}, got {got}; use the --model options that it "
            "was trained with (its state.json has them)"
        )
    head = [name for name in expected if not name.startswith(_ENCODER)]
    kept = sum(name in fitting for name in head)
    return InitialWeights(
        {name: value for name, value in fitting.items() if name in expected},
        f"begins with {storage.public_uri(checkpoint.uri)} (step {checkpoint.progress.step}, T = "
        f"{checkpoint.config.model.num_frames}): {len(expected) - len(head)} tensors of the encoder, {kept} of the "
        f"{len(head)} of the head; the optimiser begins anew",
    )


def restore(checkpoint: Checkpoint, step: TrainingStep) -> None:
    """Copies all tensors of a checkpoint into a training step: weights, optimiser, random state.

    Errors as `load_model`.
    """
    import torch

    load_model(checkpoint, step.model)
    saved = _load(checkpoint, "optimizer.pt")
    try:
        step.optimizer.load_state_dict(saved["optimizer"])
    except ValueError as error:
        raise UserError(
            f"{storage.public_uri(checkpoint.uri)}: its optimiser trains other tensors than this model does "
            f"({error}); use the --model.learnable it was trained with (its state.json has it)"
        ) from None
    torch.set_rng_state(saved["random"]["cpu"])
    if step.device.type == "cuda" and "cuda" in saved["random"]:
        torch.cuda.set_rng_state(saved["random"]["cuda"], step.device)


def _names(run_dir: str) -> list[str]:
    names = storage.list_folder(storage.join(run_dir, CHECKPOINTS))
    return sorted((name for name in names if name.startswith("step-")), reverse=True)


def _to_bytes(document: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def _read_verified(checkpoint: Checkpoint, file_name: str) -> bytes:
    uri = storage.join(checkpoint.uri, file_name)
    content = storage.read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != checkpoint.hashes.get(file_name):
        raise DamagedError(f"{storage.public_uri(uri)}: damaged: its SHA-256 is not the one in {_STATE}")
    return content


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    from torch import Tensor

    return {k: v for k, v in _load(checkpoint, "model.pt").items() if isinstance(v, Tensor)}


def _load(checkpoint: Checkpoint, file_name: str) -> dict[str, Any]:
    import torch

    content = _read_verified(checkpoint, file_name)
    try:
        document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # Bytes that torch did not write make its reader fail in any way.
        # Its own message advises to let the file run code.
        found = type(error).__name__
    else:
        if isinstance(document, dict):
            return document
        found = type(document).__name__
    uri = storage.public_uri(storage.join(checkpoint.uri, file_name))
    raise RunError(
        f"{uri}: expected tensors alone, as carl_ray writes them, got something else ({found}), which is not "
        "read because it could run code"
    )
