r"""Sweep training parameters with Ray Tune and choose by metrics on validation videos.

    carl-ray sweep
    carl-ray sweep loss --num-trials 4
    carl-ray sweep loss --config RUN/config.json
    carl-ray sweep temporal --preset penn_action --data.manifest s3://bucket/manifest.parquet \
        --run-dir s3://bucket/sweeps/temporal --search optuna --num-trials 32 --max-concurrent 8

SPACE is one of loss (tau, sigma squared), temporal (alpha, beta, sampling), frames (T) and all. Every trial trains as
`python -m carl_ray.train` does, embeds the training and validation videos, and is measured; the loss is no score, since
these parameters change its scale. The same command continues an interrupted sweep; no run is trained twice. Without
arguments it sweeps `loss` on the rendered videos of the demo.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from typing import Any

from carl_ray import config as configuration
from carl_ray import options, storage
from carl_ray.datasets.embedded import embedded_manifest, has_embedded
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.presets import PRESETS, preset
from carl_ray.sweeps.runner import run_sweep
from carl_ray.sweeps.space import SPACES


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exits with status 0 only when every trial is done or was stopped early."""
    with one_line_errors():
        given = sys.argv[1:] if arguments is None else arguments
        folder, keywords = parse(given)
        print_results(run_sweep(folder=folder, **keywords), storage.absolute(folder))


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The sweep's folder and the keyword arguments of `run_sweep`; over 60 lines: one option after another."""
    parser = options.OptionParser(
        prog="python -m carl_ray.sweep",
        usage="%(prog)s [SPACE] [--preset NAME | --config URI] [--run-dir URI] [--num-trials N] [--section.field V …]",
        description=__doc__,
    )
    add = parser.add_argument
    number: dict[str, Any] = {"type": options.number(int, at_least=1), "metavar": "N"}
    add("space", nargs="?", default="loss", metavar="SPACE", help=f"one of {', '.join(SPACES)}")
    add("--preset", metavar="NAME", help=f"one of {', '.join(PRESETS)} [demo]")
    no_secret = options.uri_without_credentials  # The page of the sweep shows the command.
    add("--config", type=no_secret, metavar="URI", help="config.json of a run, in place of a preset")
    add("--run-dir", metavar="URI", help="folder of the sweep, new or begun by the same command")
    add(
        "--search",
        choices=("random", "grid", "optuna"),
        help="how points are chosen (default random)",
    )
    add(
        "--num-trials",
        **number,
        help="trials in total (default 8, or as many as there are points; the whole grid)",
    )
    add(
        "--max-concurrent",
        **number,
        help="trials at a time (default as many as the cluster has room for; on this machine alone two, or as many as "
        "it has GPUs for)",
    )
    add(
        "--seeds",
        **number,
        default=1,
        help="runs of each trial, with training.seed and those after it (default 1)",
    )
    add(
        "--rungs",
        **number,
        help="how often a trial is measured, and stopped early where it is behind (default 2; a grid's trials are "
        "measured once, at their end)",
    )
    add(
        "--metric",
        metavar="NAME",
        help="the score: a metric of metrics.json, or label_free (default phase_classification; linear_probe for "
        "FineGym; video_linear_probe for clips; label_free where there are no labels)",
    )
    add("--search-seed", type=int, metavar="N", default=0, help="of the random points (default 0)")
    add("--address", metavar="ADDRESS", help="of a Ray cluster; RAY_ADDRESS does the same")
    parsed, overrides = options.parse_with_config(parser, arguments)
    if parsed.space not in SPACES:
        hint = options.nearest(parsed.space, list(SPACES))
        raise UserError(f"unknown space {parsed.space!r}{hint} ({', '.join(SPACES)})")
    if parsed.address is not None:
        os.environ["RAY_ADDRESS"] = parsed.address
    if parsed.config is None:
        start = preset(parsed.preset or "demo")
    elif parsed.preset is None:
        start = configuration.from_json(storage.read_bytes(parsed.config), storage.public_uri(parsed.config))
        if has_embedded(start.preset) and start.data.manifest == embedded_manifest(start.preset):
            start = replace(start, data=replace(start.data, manifest=None))
    else:
        raise UserError("--config and --preset both say what a run is: expected one of them")
    base = options.overridden(start, overrides)
    around = start.preset if parsed.config is None else storage.parent(storage.absolute(parsed.config))
    folder = parsed.run_dir or str(storage.home() / "sweeps" / f"{parsed.space}-{around.rpartition('/')[2]}")
    return folder, {
        "space": SPACES[parsed.space](base),
        "full": replace(base, training=replace(base.training, epochs=start.training.epochs)),
        "trial_epochs": base.training.epochs if "training.epochs" in overrides else None,
        "num_rungs": parsed.rungs,
        "command": f"{options.program('sweep')} {shlex.join(arguments)}".strip(),
        **{
            name: getattr(parsed, name)
            for name in ("search", "num_trials", "search_seed", "max_concurrent", "seeds", "metric")
        },
    }


def print_results(document: dict[str, Any], folder: str) -> None:
    """Print the best trial and the result files of a sweep.

    Raises:
        RunError: trials failed, or none is done.
    """
    trials = document["trials"]
    best = next((trial for trial in trials if trial["id"] == document["best"]), None)
    if best is not None:
        score = best["score"]
        values = ", ".join(f"{name} {value}" for name, value in best["values"].items())
        interval = "" if score["low"] is None else f" [{score['low']:.4f}, {score['high']:.4f}]"
        print(f"best:         {values}: {document['metric']} {score['mean']:.4f}{interval}")
    for name in ("results.csv", "results.parquet", "sweep.html", *(["best.json"] if best else [])):
        print(f"{name + ':':<18}{storage.public_uri(storage.join(folder, name))}")
    if best is not None:
        options.print_next("train", "--config", storage.join(folder, "best.json"))
    failed = [trial for trial in trials if trial["status"] == "failed"]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(trials)} trials failed, the first ({failed[0]['id']}) because: "
            f"{failed[0]['reason']}"
        )
    if best is None:
        raise RunError("no trial is done")


if __name__ == "__main__":
    main()
