"""Checkpoints of a run: save, find the latest complete one, restore.

    RUN/checkpoints/step-00000500/  model.pt  optimizer.pt  state.json (the last: a folder without it is torn)

`state.json` holds the position in the plan, the config, counters and the SHA-256 of the other files. A
checkpoint that is torn or whose hash is wrong is skipped, with a warning, for the one before. Tensors are read
with `weights_only=True`: a checkpoint is data, never code. torch is imported lazily: commands look for a checkpoint
before anything heavy is loaded.

Longer than 400 lines: what is written and what is read back change together.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import Config
from carl_ray.errors import RunError, UserError
from carl_ray.model.pretrained import hub_folder, mismatch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from carl_ray.training.learner import VideoNetwork
    from carl_ray.training.step import TrainingStep

_LOGGER = logging.getLogger(__name__)
CONFIG = "config.json"
"""File of a run folder with the run's config."""
CHECKPOINTS = "checkpoints"
"""Folder of a run folder with its checkpoints."""

EXPORTED = "model.safetensors"
"""File of an exported encoder with its tensors; the state is in its `CONFIG`."""
ENCODER = "encoder."
"""Prefix of the encoder's tensors."""

_STATE = "state.json"
_FILES = ("model.pt", "optimizer.pt")
_NOT_IN_SHAPES = (
    *("backbone", "cut_stages", "pooling", "weights"),
    *("num_heads", "positions", "temporal_encoder", "clip_input"),
)
"""Fields of `ModelConfig` that change the encoder, or the untrained control, but no shape of a tensor."""


@dataclass(frozen=True)
class Progress:
    """Position and counters of a run, which a resumed run continues."""

    step: int
    """Steps done, which is the number of the next one."""
    row: int
    """Rows of the plan consumed."""
    num_bad_rows: int
    """Rows so far whose video could not be read."""
    num_skipped_steps: int
    """Steps so far whose loss or gradient was not finite."""
    seconds: float
    """Time spent training."""
    videos: str
    """`videos_digest` of the training videos that the plan orders."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint in storage."""

    uri: str
    progress: Progress
    config: Config
    hashes: dict[str, str]

    @property
    def model_sha256(self) -> str:
        """Hash of its `model.pt`."""
        return self.hashes["model.pt"]


class DamagedError(RunError):
    """A file of a checkpoint is not as it was written."""


def save_checkpoint(run_dir: str, step: TrainingStep, progress: Progress, keep: int) -> str:
    """Write a checkpoint, keep the newest `keep`, return its URI; on one worker alone.

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
        "optimizer.pt": _to_bytes(
            {
                "optimizers": {phase.name: phase.optimizer.state_dict() for phase in step.phases},
                "random": random_state,
            }
        ),
    }
    state = {
        "progress": vars(progress),
        "config": configuration.to_document(step.config),
        "hashes": {file_name: hashlib.sha256(content).hexdigest() for file_name, content in contents.items()},
    }
    # Last: it marks the checkpoint as complete.
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
    """The shell command that resumes a run."""
    return storage.shell_command("python", "-m", "carl_ray.train", "--run-dir", run_dir, "--resume")


def how_to_go_on(run_dir: str, saved_step: int | None) -> str:
    """End of an interrupted run's message: the step it resumes from, the command."""
    place = (
        "there is no checkpoint yet: begin again" if saved_step is None else f"go on from step {saved_step}"
    )
    return f"{place} with: {resume_command(run_dir)}"


def _discard_torn(uri: str) -> None:
    """Delete the parts of a checkpoint that could not be written, to free a full disk."""
    if storage.is_remote(uri):
        return  # The store has just failed; the next checkpoint deletes it.
    with suppress(RunError):
        if not storage.exists(storage.join(uri, _STATE)):
            storage.delete(uri)


def _delete_older(run_dir: str, name: str, keep: int) -> None:
    older = [old for old in _names(run_dir) if old < name]
    # Torn folders are deleted and do not count.
    complete = [old for old in older if storage.exists(storage.join(run_dir, CHECKPOINTS, old, _STATE))]
    for old in older:
        if old not in complete[: keep - 1]:
            storage.delete(storage.join(run_dir, CHECKPOINTS, old))


def latest_checkpoint(run_dir: str) -> Checkpoint | None:
    """The newest checkpoint that is complete and has the right hashes, or None.

    Raises:
        RunError: storage refused or failed; this does not fall back to an older checkpoint.
    """
    for name in _names(run_dir):
        uri = storage.join(run_dir, CHECKPOINTS, name)
        try:
            checkpoint = open_checkpoint(uri)
            for file_name in checkpoint.hashes:
                _read_verified(checkpoint, file_name)
            return checkpoint
        except (UserError, DamagedError) as error:
            _LOGGER.warning("passing over the checkpoint %s: %s", storage.public_uri(uri), error)
    return None


def completed_checkpoints(run_dir: str) -> list[str]:
    """Names of the checkpoints that were written to their end, damaged or not, the newest first."""
    names = _names(run_dir)
    return [n for n in names if storage.exists(storage.join(run_dir, CHECKPOINTS, n, _STATE))]


def is_newest(checkpoint: Checkpoint | None, run_dir: str) -> bool:
    """Whether no checkpoint was written to the run folder since this one, or since there was none."""
    newest = next(iter(_names(run_dir)), None)
    if checkpoint is None or newest is None:
        return checkpoint is None and newest is None
    return storage.absolute(checkpoint.uri) == storage.join(storage.absolute(run_dir), CHECKPOINTS, newest)


def open_checkpoint(uri: str, state_file: str = _STATE, files: Sequence[str] = _FILES) -> Checkpoint:
    """Read the state of the checkpoint in a folder, without its tensors.

    Raises:
        UserError: there is none, or it is torn.
    """
    source = storage.join(uri, state_file)
    with storage.reading(source, "not the state of a checkpoint"):
        state = json.loads(storage.read_bytes(source))
        return Checkpoint(
            uri=uri,
            progress=Progress(**state["progress"]),
            config=configuration.from_document(state["config"], storage.public_uri(source)),
            # Fixed names: one from the file could point outside the folder.
            hashes={name: state["hashes"][name] for name in files},
        )


def checkpoint_at(uri: str) -> Checkpoint:
    """The checkpoint in a folder, the latest one of a run folder, or an exported encoder.

    Args:
        uri: Of the folder; `hf://OWNER/NAME` of an encoder on the Hugging Face hub.

    Raises:
        UserError: there is none of them.
        RunError: storage refused or failed.
    """
    if storage.is_on_hub(uri):
        uri = hub_folder(uri, [CONFIG, EXPORTED])
    if storage.exists(storage.join(uri, EXPORTED)):
        return open_checkpoint(uri, CONFIG, [EXPORTED])
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
    """Folder of the newest run of the demo on this machine.

    Args:
        instead: Options of the command that name another run, for the error message.

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


def run_of(uri: str) -> str | None:
    """The run folder that holds a checkpoint; None where it lies elsewhere."""
    folder = storage.parent(uri)
    run_dir = storage.parent(folder)
    return run_dir if folder == storage.join(run_dir, CHECKPOINTS) else None


def load_encoder(checkpoint: Checkpoint) -> VideoNetwork:
    """Load the trained encoder of a checkpoint, in evaluation mode, on the CPU.

    Errors as `load_model`.
    """
    from carl_ray.training.learner import initial_encoder

    encoder = initial_encoder(checkpoint.config)
    load_model(checkpoint, encoder, ENCODER)
    return encoder.eval()


def load_model(checkpoint: Checkpoint, model: nn.Module, prefix: str = "") -> None:
    """Copy a checkpoint's weights into a learner, or the part of them with a prefix into one of its modules.

    Raises:
        UserError: they do not fit the model.
        RunError: a file is damaged, or holds more than tensors.
    """
    tensors = {
        k.removeprefix(prefix): v for k, v in checkpoint_tensors(checkpoint).items() if k.startswith(prefix)
    }
    if wrong := mismatch(model.state_dict(), tensors):
        raise UserError(
            f"{storage.public_uri(checkpoint.uri)}: does not fit the model: {wrong}; use the --model options it was "
            "trained with (its state.json has them)"
        )
    model.load_state_dict(tensors)


@dataclass(frozen=True)
class InitialWeights:
    """Pretrained tensors that a new run starts with."""

    tensors: dict[str, Tensor]
    """By their names in `Learner`."""
    report: str
    """One line for the log: the source, and how many tensors were loaded."""
    checkpoint: str | None = None
    """URI of the checkpoint that they are of; None: the backbone's own weights."""


def initial_weights(config: Config, uri: str) -> InitialWeights:
    """Read the encoder of another run, and what fits of its head, for fine-tuning.

    T may differ, since positions are computed, not learnt.

    Args:
        config: The new run.
        uri: Checkpoint or run folder of the other.

    Raises:
        UserError: there is no checkpoint, or its encoder is not this config's.
        RunError: a file is damaged, or holds more than tensors.
    """
    checkpoint = checkpoint_at(uri)
    shown = storage.public_uri(checkpoint.uri)

    def refusal(reason: str) -> UserError:
        return UserError(
            f"model.init_from: {shown}: its encoder is another: {reason}; use the --model options that it was trained "
            "with (its state.json has them)"
        )

    for name in _NOT_IN_SHAPES:
        theirs, ours = getattr(checkpoint.config.model, name), getattr(config.model, name)
        if theirs != ours:
            raise refusal(f"model.{name} is {theirs!r} there, here {ours!r}")
    from carl_ray.training.learner import initial_learner

    tensors, expected = checkpoint_tensors(checkpoint), initial_learner(config).state_dict()
    encoder = {name: value for name, value in expected.items() if name.startswith(ENCODER)}
    found = {name: value for name, value in tensors.items() if name in encoder}
    if wrong := mismatch(encoder, found):
        raise refusal(wrong)
    head = {
        name: tensors[name]
        for name, value in expected.items()
        if name not in encoder and name in tensors and tensors[name].shape == value.shape
    }
    return InitialWeights(
        found | head,
        f"begins with {shown} (step {checkpoint.progress.step}, T = {checkpoint.config.model.num_frames}): "
        f"{len(encoder)} tensors of the encoder, {len(head)} of the {len(expected) - len(encoder)} of the head; the "
        "optimiser begins anew",
        checkpoint.uri,
    )


def restore(checkpoint: Checkpoint, step: TrainingStep) -> None:
    """Restore a training step from a checkpoint: weights, optimiser, random state.

    Errors as `load_model`.
    """
    import torch

    load_model(checkpoint, step.model)
    saved = _load(checkpoint, "optimizer.pt")
    # Earlier checkpoints have one optimiser, without a name.
    optimizers = saved.get("optimizers") or {step.phases[0].name: saved["optimizer"]}
    try:
        for phase in step.phases:
            phase.optimizer.load_state_dict(optimizers[phase.name])
    except (ValueError, KeyError) as error:
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


def checkpoint_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by their names in `Learner`."""
    from torch import Tensor

    from carl_ray.training.learner import present_names

    if EXPORTED in checkpoint.hashes:
        from safetensors.torch import load

        return load(_read_verified(checkpoint, EXPORTED))
    tensors = {k: v for k, v in _load(checkpoint, "model.pt").items() if isinstance(v, Tensor)}
    return present_names(tensors)


def _load(checkpoint: Checkpoint, file_name: str) -> dict[str, Any]:
    import torch

    content = _read_verified(checkpoint, file_name)
    try:
        document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # Other content makes torch.load fail in many ways.
        # Its own message advises to allow code.
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
