"""Checks of a run before Ray starts; its inputs are read once and handed on.

Ray, torch and torchvision are imported lazily, so that mistakes are reported at once.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import BACKBONES, CLIP_BACKBONES, Config
from carl_ray.errors import UserError, note, one_line
from carl_ray.lease import refuse_if_held
from carl_ray.model.pretrained import find_weights
from carl_ray.objectives.base import Batch, Encoding, Objective, Terms
from carl_ray.objectives.choice import OBJECTIVES, find_objective
from carl_ray.training.checkpoint import (
    CHECKPOINTS,
    CONFIG,
    Checkpoint,
    InitialWeights,
    completed_checkpoints,
    initial_weights,
    is_newest,
    latest_checkpoint,
    load_model,
    resume_command,
    run_of,
)
from carl_ray.training.run_videos import Videos, check_same_videos, read_videos, videos_seen_before


@dataclass(eq=False)
class CheckedRun:
    """A run whose inputs were read and found valid."""

    config: Config
    """As given, with the frame classes counted (`read_videos`)."""
    run_dir: str
    """Absolute URI of the run folder."""
    resume: bool
    saved: Config | None
    """config.json of the run folder; None where it holds no run."""
    checkpoint: Checkpoint | None
    """Where the run continues; None: from the beginning."""
    videos: Videos | None
    weights: InitialWeights | None
    """Pretrained tensors that a run from the beginning starts with; None: random ones."""

    def take(self) -> tuple[Videos, InitialWeights | None]:
        """Hand over videos and weights, once: the driver must not keep them in memory for the length of the run."""
        videos, weights = self.videos, self.weights
        assert videos is not None
        self.videos = self.weights = None
        return videos, weights


def check_run(config: Config, run_dir: str, *, resume: bool = False) -> CheckedRun:
    """Read the inputs of a run and check what needs no cluster, the cheapest first.

    Args:
        config: The run.
        run_dir: URI of the run folder.
        resume: Whether the folder may hold a run already.

    Raises:
        UserError: as `check_folder`; or the manifest, its labels or the weights are missing or do not fit.
        RunError: weights could not be fetched, or storage failed.
    """
    saved = check_folder(config, run_dir, resume=resume)
    check_inputs(config)
    try_objective(config)
    config, videos = read_videos(config)
    if saved is not None:
        check_same_run(saved, config, run_dir)
    checkpoint = find_checkpoint(config, videos, run_dir) if resume else None
    weights = starting_weights(config) if checkpoint is None else None
    if weights is not None and weights.checkpoint is not None:
        _warn_of_test_videos(config, weights.checkpoint)
    if config.data.features is not None:
        check_features(config, checkpoint, weights)
    return CheckedRun(config, storage.absolute(run_dir), resume, saved, checkpoint, videos, weights)


def refresh_checkpoint(run: CheckedRun) -> None:
    """Read the checkpoint of a resumed run again where another process has written one since the check.

    Raises:
        UserError, RunError: as `find_checkpoint`.
    """
    if run.resume and run.videos is not None and not is_newest(run.checkpoint, run.run_dir):
        run.checkpoint = find_checkpoint(run.config, run.videos, run.run_dir)
        if run.checkpoint is not None:
            run.weights = None


def check_inputs(config: Config) -> None:
    """Raise `UserError` where features or a logger's package are missing; warn of steps without negatives."""
    for name in config.training.loggers:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"training.loggers {name}: its package is missing: pip install 'carl_ray[{name}]'"
            )
    if config.objective.contrasts_videos and config.training.global_batch_size == 1:
        note(
            "warning: training.global_batch_size is 1: a step has no other videos, which the objective "
            f"{config.objective.name} takes as negatives"
        )
    if config.data.features is None and (config.model.centered or config.model.motion != "none"):
        raise UserError(
            "model.centered and model.motion need whole videos: name their features by --data.features URI, as "
            "`carl_ray.cache --manifest URI --out URI` makes them (a sweep takes those of a run by --config "
            "RUN/config.json), or set both to false and none"
        )


def check_features(config: Config, checkpoint: Checkpoint | None, weights: InitialWeights | None) -> None:
    """Raise `UserError` where `data.features` are not those of the run's backbone and augmentation."""
    from carl_ray.data.features import require_cache
    from carl_ray.model.weights import weights_digest
    from carl_ray.training.learner import initial_learner

    model = initial_learner(config)
    if checkpoint is not None:
        load_model(checkpoint, model)
    elif weights is not None:
        model.load_state_dict(weights.tensors, strict=False)
    require_cache(config.data.features or "").check(config, weights_digest(model.encoder.backbone))


def check_folder(config: Config, run_dir: str, *, resume: bool) -> Config | None:
    """Check that a folder may take a run; return the config of the run in it, if any.

    Raises:
        UserError: a URI holds credentials, another process writes into the folder, or it holds a run already and
            `resume` is false.
    """
    refuse_secrets(
        {"--run-dir": run_dir, "data.manifest": config.data.manifest, "model.weights": config.model.weights}
        | {"model.init_from": config.model.init_from, "data.keypoints": config.data.keypoints}
        | {"data.features": config.data.features}
    )
    refuse_if_held(run_dir)
    saved = saved_config(run_dir)
    if saved is not None and not resume:
        raise UserError(
            f"{storage.public_uri(run_dir)} already holds a run; another --run-dir starts anew, and this one goes on "
            f"with: {resume_command(run_dir)}"
        )
    return saved


def saved_config(run_dir: str) -> Config | None:
    """The config of the run in a folder, or None where it holds no run."""
    uri = storage.join(run_dir, CONFIG)
    if not storage.exists(uri):
        return None
    content = storage.read_bytes(uri)
    config = configuration.from_json(content, storage.public_uri(uri))
    if json.loads(content).get("augment", {}).get("color") == "matrix":
        raise UserError(
            f"{storage.public_uri(run_dir)} was begun with augment.color = 'matrix', which is gone: its checkpoints "
            "can be used, but it cannot go on; start another run"
        )
    return config


def check_same_run(saved: Config, config: Config, run_dir: str) -> None:
    """Raise `UserError` where a resumed run would compute something else."""
    before, after = configuration.what_is_computed(saved), configuration.what_is_computed(config)
    if config.training.precision == "auto":  # The run keeps the precision that it was begun with.
        after["training"]["precision"] = saved.training.precision
    for section, values in before.items():
        if values == after[section]:
            continue
        if not isinstance(values, dict):
            raise UserError(
                f"{storage.public_uri(run_dir)} holds a run of preset {values}, not {after[section]}"
            )
        field = next(name for name in values if values[name] != after[section][name])
        raise UserError(
            f"{storage.public_uri(run_dir)} was begun with {section}.{field} = {values[field]!r}, now "
            f"{after[section][field]!r}: --resume continues the same run; start another one for another setting"
        )


def find_checkpoint(config: Config, videos: Videos, run_dir: str) -> Checkpoint | None:
    """The checkpoint that a run continues from, checked to fit; None without one.

    Raises:
        UserError: it is of another run, of other videos, or of another model; or all are damaged.
        RunError: the folder cannot be read.
    """
    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is None and (damaged := completed_checkpoints(run_dir)):
        raise UserError(
            f"{storage.public_uri(storage.join(run_dir, CHECKPOINTS))}: none of {len(damaged)} checkpoints can be "
            "read, for the reasons above: restore that folder, or delete it to begin anew"
        )
    if checkpoint is not None:
        check_same_videos(videos, checkpoint, run_dir)
        # config.json may have been edited since.
        check_same_run(checkpoint.config, config, run_dir)
        from carl_ray.training.learner import initial_learner

        load_model(checkpoint, initial_learner(config))
    return checkpoint


def starting_weights(config: Config) -> InitialWeights | None:
    """Read the pretrained tensors that a run starts with; None for random ones.

    Raises:
        UserError, RunError: as `initial_weights`, `find_weights` and `load_backbone_weights`.
    """
    model = config.model
    if model.init_from is not None:
        return initial_weights(config, model.init_from)
    if model.weights == "random":
        _try_backbone(config)
        return None
    find_weights(model)  # Needs no torch.
    _try_backbone(config)
    from carl_ray.model.backbone import build_backbone
    from carl_ray.model.weights import load_backbone_weights

    backbone = build_backbone(model)
    report = load_backbone_weights(backbone, model)
    streams = ("backbone", "static_backbone") if model.clip_streams == "two" else ("backbone",)
    found = backbone.state_dict().items()
    tensors = {f"encoder.{stream}.{name}": value for stream in streams for name, value in found}
    return InitialWeights(tensors, report)


def check_weights(config: Config) -> None:
    """Raise as `starting_weights`, before the videos are there: any number of classes makes the head."""
    starting_weights(replace(config, objective=config.objective.with_num_classes(2)))


def _warn_of_test_videos(config: Config, checkpoint: str) -> None:
    """Warn where the run that the weights come from was trained on videos that this one holds out."""
    run_dir = run_of(checkpoint)
    seen, others = (0, 0) if run_dir is None else videos_seen_before(config, run_dir)
    if seen:
        note(
            f"warning: the run of model.init_from was trained on {seen:,} of the {others:,} videos that this one does "
            "not train on: what is measured on them flatters it"
        )


def _try_backbone(config: Config) -> None:
    """Raise `UserError` where a backbone that others made does not fit the encoder or the size of the frames."""
    model, size = config.model, config.augment.image_size
    if model.temporal_encoder == "clip":
        _try_clips(config)
        return
    if model.backbone in set(BACKBONES) - set(CLIP_BACKBONES) and not model.learnable.isdecimal():
        return
    import torch

    from carl_ray.model.encoder import FrameLevelVideoEncoder

    with _blaming(f"model.backbone: {model.backbone} fails on frames of {size} pixels (augment.image_size)"):
        encoder = FrameLevelVideoEncoder(model).eval()
        with torch.no_grad():
            encoder(torch.zeros(1, 2, 3, size, size), torch.ones(1, 2, dtype=torch.bool))


def _try_clips(config: Config) -> None:
    """Raise `UserError` where encoder and objective fail on the views of a black video."""
    import torch

    from carl_ray.training.learner import initial_learner

    # Its colours and codec do not matter here.
    config = replace(config, augment=replace(config.augment, pixels="rgb", color_on="workers"))
    config = replace(config, objective=config.objective.with_num_classes(2))
    frames = f"{config.model.num_frames} frames of {config.augment.image_size} pixels"
    with _blaming(f"{config.objective.name} with {config.model.backbone} fails on clips of {frames}"):
        learner = initial_learner(config).eval()
        phase = learner.objective.phases(learner.encoder, torch.optim.Adam)[-1].name
        with torch.no_grad():
            learner(_black_videos(config, 1), 0.5, phase)


def try_objective(config: Config) -> None:
    """Raise `UserError` where an objective of others fails on two videos, reads padding, or has no gradient."""
    name, width = config.objective.name, config.model.embedding_width
    kind = find_objective(name)
    if name in OBJECTIVES or kind.phases is not Objective.phases or config.objective.reads_clips:
        return
    import torch

    def terms(padding: float) -> Terms:
        batch, encodings = _black_videos(config, 2), {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            # Classes are counted in the run.
            objective = kind(config.objective.with_num_classes(2), width, config.model.batch_norm)
            for view, seen in batch.views.items():
                seen.mask[1, :, (seen.mask.shape[2] + 1) // 2 :] = False  # half of the second video
                seen.timestamps.masked_fill_(~seen.mask, padding)
                frames = torch.randn(*seen.mask.shape, width).masked_fill(~seen.mask[..., None], padding)
                encodings[view] = Encoding(frames.requires_grad_(), seen.mask)
            return Terms.checked(objective(encodings, batch, 0.5), name)

    with _blaming(f"objective {name} fails on a batch of two videos"):
        found, other = terms(0.0), terms(3.0)
        if not found.sums.requires_grad:
            raise TypeError("its sums have no gradient: were the encodings detached?")
        if not found.sums.isfinite().all():
            raise ValueError(f"its sums are not finite: {found.sums.tolist()}")
        found.sums.sum().backward()
        if not (
            torch.equal(found.counts, other.counts) and torch.allclose(found.sums, other.sums, rtol=1e-4)
        ):
            raise ValueError(
                "its terms depend on padding, or on random numbers other than torch's: expected to leave out frames "
                "whose mask is False"
            )


def _black_videos(config: Config, count: int) -> Batch:
    """A batch of whole videos with labels 0."""
    import torch

    from carl_ray.data.batch import collate
    from carl_ray.data.sample import Sample, masked_views, sample_spec

    spec = sample_spec(config)
    batch = collate([Sample(row, row, 0, "", None, masked_views(spec)) for row in range(count)], spec)
    views = {
        name: replace(
            view,
            mask=torch.ones_like(view.mask),
            timestamps=torch.arange(view.mask.shape[2]).double().repeat(*view.mask.shape[:2], 1),
            columns={column: torch.zeros_like(value) for column, value in view.columns.items()},
        )
        for name, view in batch.views.items()
    }
    return replace(batch, views=views)


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Raise `UserError` for whatever a network or an objective of others raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)[:300]}"
        raise UserError(f"{what}: {reason}") from None


def refuse_secrets(uris: dict[str, str | None]) -> None:
    """Raise `UserError` for the first of these options whose URI holds credentials."""
    for name, uri in uris.items():
        if uri is not None and storage.has_secret(uri):
            raise UserError(
                f"{name}: expected a URI without credentials, since it is written into the run folder; put them into "
                "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            )
