"""Run a sweep, or continue the one in a folder, and write its results.

    from carl_ray import presets
    from carl_ray.sweeps.runner import run_sweep
    from carl_ray.sweeps.space import Choices, Space

    space = Space("depth", {"model.num_layers": Choices((1, 2, 3))})
    document = run_sweep(space, presets.demo(), "sweeps/depth", num_trials=3)

In the folder: sweep.json (the definition), trials/ (`carl_ray.sweeps.trials`), ray/ (Tune's records, with
TensorBoard's HParams), results.json, .csv and .parquet, sweep.html and best.json, the config of the best trial at full
length.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import PRETRAINED, Config
from carl_ray.lease import hold
from carl_ray.machine import machine_name
from carl_ray.sweeps.space import Space

if TYPE_CHECKING:
    from carl_ray.sweeps.definition import Sweep

_SHARE_OF_EPOCHS = 4
"""By default a trial has so many times fewer epochs than the full run."""
_NUM_TRIALS = 8


def default_num_trials(space: Space, search: str) -> int | None:
    """Eight trials, or all points of a smaller space; none (all) for a grid."""
    return None if search == "grid" else min(_NUM_TRIALS, space.num_points or _NUM_TRIALS)


def trial_config(full: Config, epochs: int | None) -> Config:
    """The config of the trials: `epochs`, or a quarter of the full run's, and no validation losses.

    Losses of different trials do not compare: the parameters change their scale.
    """
    epochs = epochs or max(1, full.training.epochs // _SHARE_OF_EPOCHS)
    training = replace(full.training, epochs=epochs)
    return replace(full, training=training, data=replace(full.data, max_validation_videos=0))


def run_sweep(
    space: Space,
    full: Config,
    folder: str,
    *,
    trial_epochs: int | None = None,
    search: Literal["random", "grid", "optuna"] | None = None,
    num_trials: int | None = None,
    search_seed: int = 0,
    max_concurrent: int | None = None,
    seeds: int = 1,
    num_rungs: int | None = None,
    metric: str | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Run the trials of a sweep that its folder does not have yet, and write the results.

    Starts Ray, or joins the cluster of `RAY_ADDRESS`. Trials whose status is `failed` are repeated by the next call.

    Args:
        space: What it varies.
        full: The config of a full run; without a manifest the preset demo uses the rendered videos of the demo.
        folder: URI of the sweep's folder, new or of the same sweep.
        trial_epochs: Epochs of a trial; none: a quarter of the full run's.
        search: How points are chosen; none: at random.
        num_trials: Trials in total, including finished ones; none: `default_num_trials`.
        search_seed: Of the random points.
        max_concurrent: Trials at a time; none: as many as the cluster has room for, on this machine alone two, or as
            many as it has GPUs for.
        seeds: Runs of each trial, with `training.seed` and those after it.
        num_rungs: How often a trial is measured; none: twice, once for a grid. It is stopped early where it is behind.
        metric: The score, a metric of metrics.json or `label_free`; none: phase classification (FineGym: the linear
            probe), or `label_free` where no frame has a label.
        command: The command line, for the page.

    Returns:
        The sweep's document (`carl_ray.sweeps.results.sweep_document`).

    Raises:
        UserError: the arguments, the videos or the folder do not fit.
        RunError: interrupted, or the storage fails. The results so far are written.
    """
    folder, search = storage.absolute(folder), search or "random"
    num_trials = num_trials or default_num_trials(space, search)
    num_rungs = num_rungs or (1 if search == "grid" else 2)
    base = _checked_config(trial_config(full, trial_epochs), folder)
    embedded = full.data.manifest is None
    # Lazy imports, the light ones first: mistakes are reported before torch and Ray are imported.
    from carl_ray.sweeps.definition import define_sweep, save_definition

    define = partial(define_sweep, space, base, seeds=seeds, num_rungs=num_rungs, metric=metric)
    sweep = None if embedded else define()
    import ray

    from carl_ray.datasets.embedded import index_embedded
    from carl_ray.session import connect
    from carl_ray.sweeps.cluster_share import concurrent_trials, local_cpus, local_trials, share_cluster
    from carl_ray.sweeps.tune_driver import chosen_points, run_trials
    from carl_ray.training.cluster_checks import check_shared
    from carl_ray.training.run_checks import check_run

    joined = os.environ.get("RAY_ADDRESS", "local") != "local"
    wanted = max_concurrent or (None if joined else local_trials(base.cluster))
    with connect(None if wanted is None or joined else local_cpus(base.cluster, wanted)):
        if embedded:
            index_embedded(preset=base.preset)
            check_run(base, folder)
        check_shared(folder)
        sweep = sweep or define()
        chosen = chosen_points(sweep, search, num_trials, search_seed)
        with hold(folder):
            save_definition(sweep, folder, search, search_seed)
            print(f"sweep folder: {storage.public_uri(folder)}", flush=True)
            print(f"TensorBoard:  {storage.shell_command('tensorboard', '--logdir', folder)}", flush=True)
            try:
                most = num_trials or len(chosen)
                grow = max_concurrent is not None and "RAY_ADDRESS" in os.environ
                trials = min(wanted or most, most)
                trials = concurrent_trials(base.cluster, trials, grow=grow, warn=wanted is not None)
                sharing = replace(sweep, base=share_cluster(sweep.base, trials, ray.nodes()))
                seed = search_seed if search == "optuna" else None
                run_trials(sharing, folder, chosen, most, max_concurrent=trials, optuna_seed=seed)
            finally:
                document = _write_results(sweep, folder, {"search": search, "command": command}, full)
    return document


def _checked_config(base: Config, folder: str) -> Config:
    """The trials' config with its manifest and absolute paths, since a trial's process has another working directory.

    Raises:
        UserError, RunError: as training before Ray starts.
    """
    from carl_ray.datasets.embedded import embedded_manifest, has_embedded
    from carl_ray.training.run_checks import check_folder, check_run, check_weights

    data, model = base.data, base.model
    manifest, weights = data.manifest, model.weights
    if has_embedded(base.preset) and manifest is None:
        manifest = embedded_manifest(base.preset)
        check_folder(base, folder, resume=False)
        check_weights(base)
    else:
        check_run(base, folder)
    features, keypoints, init_from = map(_absolute, (data.features, data.keypoints, model.init_from))
    if weights not in ("random", *PRETRAINED):
        weights = storage.absolute(weights)
    data = replace(data, manifest=_absolute(manifest), features=features, keypoints=keypoints)
    return replace(base, data=data, model=replace(model, weights=weights, init_from=init_from))


def _absolute(uri: str | None) -> str | None:
    return None if uri is None else storage.absolute(uri)


def _write_results(sweep: Sweep, folder: str, about: Mapping[str, str], full: Config) -> dict[str, Any]:
    """Write tables, page and the best config of the trials so far."""
    from carl_ray.report.sweep_page import write_sweep_page
    from carl_ray.sweeps.results import sweep_document, write_results

    machine = machine_name(use_gpu=sweep.base.cluster.use_gpu)
    document = sweep_document(sweep, folder, {**about, "date": time.strftime("%Y-%m-%d"), "machine": machine})
    write_results(folder, document)
    write_sweep_page(storage.join(folder, "sweep.html"), document)
    for trial in document["trials"]:
        if trial["id"] == document["best"]:
            config = sweep.run_config(trial["values"], full.training.seed)
            length = {name: getattr(full.training, name) for name in ("epochs", "checkpoint_every_steps")}
            data = replace(config.data, max_validation_videos=full.data.max_validation_videos)
            if full.data.manifest is None:
                data = replace(data, manifest=None)
            config = replace(config, data=data, training=replace(config.training, **length))
            storage.write_bytes(storage.join(folder, "best.json"), configuration.to_json(config).encode())
    return document
