"""Train a run from start to end: check, connect to Ray, cache features, train. Imports Ray lazily."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from carl_ray import options, presets, storage
from carl_ray.config import Config
from carl_ray.errors import RunError
from carl_ray.machine import available_cores

IMPORTS = ("torch", "carl_ray.training.trainer")
"""Modules that training needs once Ray has started; they take seconds."""


@dataclass(frozen=True)
class FittedRun:
    """A run that was trained to its last step."""

    run_dir: str
    """URI of the run folder."""
    manifest: str
    """URI of the manifest that it was trained on."""
    num_steps: int
    seconds: float
    """Wall time of the training in this call."""


def fit(config: Config, run_dir: str | None = None, *, resume: bool = False) -> str:
    """Train a run, on the cluster of `RAY_ADDRESS` or this machine; return its folder.

    An existing connection to Ray is used and left open.

    Args:
        config: The run, such as `carl_ray.preset("demo")`. With `data.manifest` None and preset `demo` it is trained on
            the rendered videos of the demo. Features of `data.features`, or of preset `laptop`, that are missing are
            cached first; frame stride, crop, T, variance and epochs of `laptop` follow the videos, unless they were
            changed.
        run_dir: Path or URI of the run folder; a new folder under `~/carl_ray/runs` where None.
        resume: Continue from the folder's latest checkpoint, or begin where there is none.

    Returns:
        URI of the run folder, with `config.json`, `metrics.jsonl` and `checkpoints/`.

    Raises:
        UserError: a mistake in the config, the manifest or the folder; nothing is trained.
        RunError: training failed or was interrupted; the message has the command that resumes it.
    """
    with fitted(config, run_dir or new_run_dir(config.preset), resume=resume) as run:
        return run.run_dir


@contextmanager
def fitted(
    config: Config, run_dir: str, *, resume: bool, given: Collection[str] | None = None
) -> Iterator[FittedRun]:
    """Train a run as `fit` does; the body runs while Ray is still connected.

    `given` has the dotted names of the fields that do not follow the videos; None: those that differ from the preset's.
    """
    storage.set_patience(config.cluster.storage_seconds)
    # In the order of their cost: mistakes are reported before torch is imported and Ray starts.
    from carl_ray.datasets.embedded import embedded_manifest, has_embedded, index_embedded
    from carl_ray.training.run_checks import (
        check_folder,
        check_inputs,
        check_run,
        check_same_run,
        check_weights,
        try_objective,
    )

    # A resumed demo names the manifest that it was begun with.
    preset, manifest = config.preset, config.data.manifest
    is_cached = preset == "laptop" or config.data.features is not None
    is_embedded = has_embedded(preset) and manifest in (None, embedded_manifest(preset))
    checked = None  # Until Ray has indexed the videos, or cached their features.
    if is_cached:
        saved = check_folder(config, run_dir, resume=resume)
        # Without features, whose width is not known yet.
        try_objective(replace(config, data=replace(config.data, features=None)))
        config = _with_features(config, saved, given)
        check_inputs(config)
        if saved is None:
            check_weights(config)
    elif is_embedded:
        # The manifest is taken to be that of the run.
        saved = check_folder(config, run_dir, resume=resume)
        if saved is None:
            check_weights(config)
        else:
            data = replace(config.data, manifest=saved.data.manifest)
            check_same_run(saved, replace(config, data=data), run_dir)
    else:
        checked = check_run(config, run_dir, resume=resume)
    from carl_ray.session import connect

    with connect(local_cpus(config), meanwhile=IMPORTS):
        from carl_ray.training.checkpoint import how_to_go_on
        from carl_ray.training.trainer import train_checked

        if is_cached:
            from carl_ray.evaluation.caching import cache_features

            cache_features(manifest or "", config.data.features or "", config)
        elif is_embedded:
            uri, videos, _ = index_embedded(preset=preset)
            print(f"videos: {videos.num_rows}, described in {uri}", flush=True)
            config = replace(config, data=replace(config.data, manifest=uri))
        checked = checked or check_run(config, run_dir, resume=resume)
        print(f"run folder: {storage.public_uri(run_dir)}", flush=True)
        started = time.monotonic()
        result = train_checked(checked)
        if not result.finished:
            raise RunError(f"ended before its last step; {how_to_go_on(run_dir, result.step or None)}")
        seconds = time.monotonic() - started
        manifest = checked.config.data.manifest or ""
        yield FittedRun(checked.run_dir, manifest, result.num_steps, seconds)


def _with_features(config: Config, saved: Config | None, given: Collection[str] | None) -> Config:
    """Fit a run of `laptop` to its videos, name the folder of its features, and tell size and time of a new run."""
    from carl_ray.data.features import default_folder
    from carl_ray.data.timing import chosen_fields, fit_to_videos, with_chosen
    from carl_ray.evaluation.corpus import read_videos
    from carl_ray.training import run_videos

    run_videos.read_videos(replace(config, data=replace(config.data, features=None)), quiet=True)
    manifest = config.data.manifest or ""
    if config.preset == "laptop":
        chosen, usual = chosen_fields(config), chosen_fields(presets.preset("laptop"))
        if given is None:
            given = [name for name in chosen if chosen[name] != usual[name]]
        if saved is not None:
            begun = chosen_fields(saved)
            config = with_chosen(config, {name: begun[name] for name in chosen if name not in given})
        elif not set(chosen) <= set(given):
            config, timing = fit_to_videos(config, read_videos(manifest, [config.data.train_split]), given)
            print(
                f"stride {config.data.frame_stride}, T {config.model.num_frames}: {timing.reason}", flush=True
            )
    if config.data.features is None:
        folder = (saved and saved.data.features) or default_folder(manifest, config)
        config = options.overridden(config, {"data.features": folder})
    if saved is None:
        from carl_ray.evaluation.estimate import estimate_run

        print(estimate_run(config, read_videos(manifest, None)), flush=True)
        print(f"features:    {storage.public_uri(config.data.features or '')}", flush=True)
    return config


def new_run_dir(preset: str) -> str:
    """Path of a new run folder of a preset on this machine."""
    return str(storage.home() / "runs" / f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}")


def local_cpus(config: Config) -> int:
    """Logical CPUs of a Ray cluster on this machine: enough for the run's minimum."""
    cluster = config.cluster
    required = math.ceil(cluster.min_workers * cluster.worker_cpus + cluster.decode_cpus)
    return max(required, available_cores())
