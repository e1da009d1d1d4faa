r"""Sweeps the parameters of training with Ray Tune and chooses by metrics on validation videos.

    python tuning/sweep.py
    python tuning/sweep.py loss --num-trials 4
    python tuning/sweep.py temporal --preset penn_action --data.manifest s3://bucket/manifest.parquet \
        --run-dir s3://bucket/sweeps/temporal --search optuna --num-trials 32 --max-concurrent 8
    python tuning/sweep.py paper --seeds 3

SPACE is one of loss (tau, sigma squared), temporal (alpha, beta, sampling), frames (T), paper (the rows of the paper's
tables 9, 10 and 11) and all. Every trial trains as `python -m carl_ray.train` does, embeds the training and
validation videos, and is measured: the loss is no measure, since these parameters change its scale. The same call goes
on where another ended, whatever ended it; nothing is trained twice. Without arguments it sweeps `loss` on the embedded
videos.
"""

from __future__ import annotations

from carl_ray import errors

if __name__ == "__main__":
    errors.handle_signals()  # Before all that takes time.

import argparse
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from spaces import SPACES

from carl_ray import config as configuration
from carl_ray import options, storage
from carl_ray.config import Config
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.lease import hold, refuse_if_held
from carl_ray.machine import machine_name
from carl_ray.presets import PRESETS

_SHARE_OF_EPOCHS = 4  # A trial is so many times shorter than the preset's run.
_NUM_TRIALS = 8
_SECONDS_TO_GROW = 600.0


@dataclass(frozen=True)
class _Command:
    """A command line, understood."""

    space: str
    base: Config
    """The config of the trials but for what is swept."""
    full: Config
    """The same as the best is to be trained: at the preset's length."""
    folder: str
    search: str
    num_trials: int | None
    search_seed: int
    max_concurrent: int | None
    seeds: int
    num_rungs: int
    metric: str | None
    text: str


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; leaves with status 0 only when every trial is done or was stopped early."""
    with one_line_errors():
        given = sys.argv[1:] if arguments is None else arguments
        _run(_parse(given))


def _parse(arguments: list[str]) -> _Command:
    parser = options.OptionParser(
        prog="python tuning/sweep.py",
        usage="%(prog)s [SPACE] [--preset NAME] [--run-dir URI] [--num-trials N] [--section.field VALUE …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "space", nargs="?", default="loss", metavar="SPACE", help=f"one of {', '.join(SPACES)}"
    )
    parser.add_argument("--preset", default="demo", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument(
        "--run-dir", metavar="URI", help="folder of the sweep, new or begun by the same command"
    )
    parser.add_argument(
        "--search",
        choices=("random", "grid", "optuna"),
        help="how points are chosen (default random; grid for the space paper)",
    )
    parser.add_argument(
        "--num-trials",
        type=int,
        metavar="N",
        help=f"trials in all (default {_NUM_TRIALS}, or as many points as there are; the whole grid)",
    )
    parser.add_argument(
        "--max-concurrent",
        type=int,
        metavar="N",
        help="trials at a time (default what the cluster has room for; on this machine alone two, or what it has GPUs "
        "for)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="runs of each trial, with training.seed and those after it (default 1)",
    )
    parser.add_argument(
        "--rungs",
        type=int,
        metavar="N",
        help="how often a trial is measured; it ends early where it is behind (default 2; a grid's trials are "
        "measured once, at their end)",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="what is best: a metric of metrics.json, or label_free (default phase_classification; linear_probe for "
        "FineGym; label_free where no frame has a label)",
    )
    parser.add_argument(
        "--search-seed", type=int, default=0, metavar="N", help="of the random points (default 0)"
    )
    parser.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster; RAY_ADDRESS does the same")
    options.add_config_options(parser)
    parsed, unknown = parser.parse_known_args(arguments)
    options.check_known(
        unknown, [a.option_strings[-1].lstrip("-") for a in parser._actions if a.option_strings]
    )
    for name, known in (("space", SPACES), ("preset", PRESETS)):
        value = getattr(parsed, name)
        if value not in known:
            raise UserError(
                f"unknown {name} {value!r}{options.nearest(value, list(known))} ({', '.join(known)})"
            )
    for name in ("num_trials", "max_concurrent", "seeds", "rungs"):
        if getattr(parsed, name) is not None and getattr(parsed, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(parsed, name)}")
    if parsed.address is not None:
        os.environ["RAY_ADDRESS"] = parsed.address
    overrides = {name: value for name, value in vars(parsed).items() if name in options.field_names()}
    preset = PRESETS[parsed.preset]()
    base = options.overridden(preset, overrides)
    full = replace(base, training=replace(base.training, epochs=preset.training.epochs))
    if "training.epochs" not in overrides:
        base = replace(
            base, training=replace(base.training, epochs=max(1, preset.training.epochs // _SHARE_OF_EPOCHS))
        )
    # Validation losses of different trials cannot be compared.
    base = replace(base, data=replace(base.data, max_validation_videos=0))
    search = parsed.search or ("grid" if parsed.space == "paper" else "random")
    return _Command(
        space=parsed.space,
        base=base,
        full=full,
        folder=parsed.run_dir or str(storage.home() / "sweeps" / f"{parsed.space}-{parsed.preset}"),
        search=search,
        num_trials=parsed.num_trials or _default_num_trials(parsed.space, base, search),
        search_seed=parsed.search_seed,
        max_concurrent=parsed.max_concurrent,
        seeds=parsed.seeds,
        num_rungs=parsed.rungs or (1 if search == "grid" else 2),
        metric=parsed.metric,
        text=f"python tuning/sweep.py {shlex.join(arguments)}".strip(),
    )


def _default_num_trials(space: str, base: Config, search: str) -> int | None:
    return None if search == "grid" else min(_NUM_TRIALS, SPACES[space](base).num_points or _NUM_TRIALS)


def _run(command: _Command) -> None:
    # Imported late, the light ones first: help and mistakes answer at once, before torch is imported and Ray starts.
    from carl_ray.datasets.embedded import embedded_manifest, index_embedded
    from carl_ray.training.preparation import check_shared, check_weights, read_videos, refuse_secrets

    embedded = command.base.preset == "demo" and command.base.data.manifest is None
    folder = storage.absolute(command.folder)
    base = command.base
    refuse_secrets({"--run-dir": folder, "data.manifest": base.data.manifest})
    refuse_secrets({"model.weights": base.model.weights, "model.init_from": base.model.init_from})
    if embedded:
        base = replace(base, data=replace(base.data, manifest=embedded_manifest()))
    else:
        read_videos(base)
    base = _from_any_folder(base)
    check_weights(base)
    from carl_ray.session import connect
    from carl_ray.sweeps.preparation import checked_sweep, local_cpus, local_trials, remember
    from carl_ray.sweeps.search import chosen_points

    checked = partial(
        checked_sweep,
        SPACES[command.space](base),
        base,
        seeds=command.seeds,
        num_rungs=command.num_rungs,
        metric=command.metric,
    )
    sweep = None if embedded else checked()
    joined = os.environ.get("RAY_ADDRESS", "local") != "local"
    wanted = command.max_concurrent or (None if joined else local_trials(base.cluster))
    refuse_if_held(folder)
    with connect(None if wanted is None or joined else local_cpus(base.cluster, wanted)):
        if embedded:
            index_embedded()
        check_shared(folder)
        sweep = sweep or checked()
        chosen = chosen_points(sweep, command.search, command.num_trials, command.search_seed)  # type: ignore[arg-type]
        with hold(folder):
            remember(sweep, folder, command.search, command.search_seed)
            print(f"sweep folder: {storage.public_uri(folder)}", flush=True)
            print(
                f"TensorBoard:  {storage.shell_command('tensorboard', '--logdir', storage.join(folder, 'trials'))}",
                flush=True,
            )
            try:
                _try_points(command, sweep, folder, chosen, wanted)
            finally:
                document = _write_results(command, sweep, folder, embedded=embedded)
    _tell(document, folder)


def _try_points(
    command: _Command, sweep: Any, folder: str, chosen: dict[str, Any], wanted: int | None
) -> None:
    """Runs the trials, as many at a time as are wanted and fit."""
    import ray

    from carl_ray.sweeps.preparation import room_for_trials, share_cluster, wait_for_room
    from carl_ray.sweeps.search import run_sweep

    cluster, most = sweep.base.cluster, command.num_trials or len(chosen)
    trials = min(wanted or most, most)
    if (
        room_for_trials(cluster, ray.nodes()) < trials
        and command.max_concurrent
        and "RAY_ADDRESS" in os.environ
    ):
        print(
            f"waiting up to {_SECONDS_TO_GROW / 60:g} minutes for the cluster to grow: {trials} trials at a time need "
            "more than it has",
            file=sys.stderr,
            flush=True,
        )
        wait_for_room(cluster, trials, _SECONDS_TO_GROW)
    room = room_for_trials(cluster, ray.nodes())
    if wanted is not None and room < trials:
        print(
            f"warning: {trials} trials at a time need more than the cluster has: {room} at a time",
            file=sys.stderr,
            flush=True,
        )
    trials = min(trials, room)
    run_sweep(
        replace(sweep, base=share_cluster(sweep.base, trials, ray.nodes())),
        folder,
        chosen,
        search=command.search,  # type: ignore[arg-type]
        num_trials=command.num_trials,
        search_seed=command.search_seed,
        max_concurrent=trials,
    )


def _from_any_folder(base: Config) -> Config:
    """The config with paths from the root: a trial's process runs in a folder of its own."""
    weights, init_from = base.model.weights, base.model.init_from
    if weights not in ("random", "imagenet"):
        weights = storage.absolute(weights)
    if init_from is not None:
        init_from = storage.absolute(init_from)
    return replace(
        base,
        data=replace(base.data, manifest=storage.absolute(base.data.manifest or "")),
        model=replace(base.model, weights=weights, init_from=init_from),
    )


def _write_results(command: _Command, sweep: Any, folder: str, *, embedded: bool) -> dict[str, Any]:
    """The table, the page and the best config of what is there by now; also when the sweep was interrupted."""
    from carl_ray.report.sweep_page import write_sweep_page
    from carl_ray.sweeps.results import csv_bytes, parquet_bytes, sweep_document, table

    about = {
        "search": command.search,
        "command": command.text,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine_name(use_gpu=command.base.cluster.use_gpu),
    }
    document = sweep_document(sweep, folder, about)
    rows = table(document)
    storage.write_bytes(
        storage.join(folder, "results.json"), (json.dumps(document, indent=2) + "\n").encode()
    )
    storage.write_bytes(storage.join(folder, "results.csv"), csv_bytes(rows))
    storage.write_bytes(storage.join(folder, "results.parquet"), parquet_bytes(rows))
    write_sweep_page(storage.join(folder, "sweep.html"), document)
    best = next((trial for trial in document["trials"] if trial["id"] == document["best"]), None)
    if best is not None:
        config = sweep.run_config(best["values"], command.full.training.seed)
        training = replace(
            config.training,
            epochs=command.full.training.epochs,
            checkpoint_every_steps=command.full.training.checkpoint_every_steps,
        )
        full = replace(
            config,
            data=replace(
                config.data,
                manifest=None if embedded else config.data.manifest,
                max_validation_videos=command.full.data.max_validation_videos,
            ),
            training=training,
        )
        storage.write_bytes(storage.join(folder, "best.json"), configuration.to_json(full).encode())
    return document


def _tell(document: dict[str, Any], folder: str) -> None:
    """Says what came of the sweep.

    Raises:
        RunError: trials failed, or none is done.
    """
    best = next((trial for trial in document["trials"] if trial["id"] == document["best"]), None)
    if best is not None:
        score = best["score"]
        values = ", ".join(f"{name} {value}" for name, value in best["values"].items())
        print(f"best:         {values}: {document['metric']} {score['mean']:.4f}", end="")
        print(f" [{score['low']:.4f}, {score['high']:.4f}]" if score["low"] is not None else "")
    label_free = document["label_free"]
    if label_free is not None and label_free["rank_correlation"] is not None:
        print(
            f"label_free:   rank correlation with {label_free['against']} {label_free['rank_correlation']:.2f} "
            f"over the {label_free['num_trials']} trials that are done"
        )
    for name in ("results.csv", "results.parquet", "sweep.html", *(["best.json"] if best else [])):
        print(f"{name + ':':<18}{storage.public_uri(storage.join(folder, name))}")
    if best is not None:
        options.print_next("train", "--config", storage.join(folder, "best.json"))
    failed = [trial for trial in document["trials"] if trial["status"] == "failed"]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(document['trials'])} trials failed, the first ({failed[0]['id']}) because: "
            f"{failed[0]['reason']}"
        )
    if best is None:
        raise RunError("no trial is done")


if __name__ == "__main__":
    main()
