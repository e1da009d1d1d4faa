"""Trains a frame-level video encoder, by default with the sequence contrastive loss.

    python -m carl_ray.train
    python -m carl_ray.train penn_action --data.manifest s3://bucket/manifest.parquet --run-dir s3://bucket/run
    ray job submit --working-dir . -- python -m carl_ray.train penn_action …
    python -m carl_ray.train … --run-dir s3://bucket/run --resume
    python -m carl_ray.train --config best.json

Without arguments it trains the demo on the embedded videos, on this machine's CPUs, evaluates it and writes a
report. The same command with --resume goes on from the latest checkpoint of the run folder.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import replace

from carl_ray import config as configuration
from carl_ray import options, storage
from carl_ray.config import Config
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.machine import available_cores
from carl_ray.presets import PRESETS


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; leaves with status 0 only when all steps are done."""
    with one_line_errors():
        _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: list[str]) -> None:
    parsed, overrides = _parse(arguments)
    config, run_dir = _choose(parsed, overrides)
    storage.set_patience(config.cluster.storage_seconds)
    # Imported late, the light ones first: help and mistakes answer at once, before torch is imported and Ray starts.
    from carl_ray.datasets.embedded import embedded_manifest, index_embedded
    from carl_ray.training.preparation import check_run

    # A resumed demo names the manifest that it was begun with.
    embedded = config.preset == "demo" and config.data.manifest in (None, embedded_manifest())
    check_run(config, run_dir, resume=parsed.resume, manifest=not embedded)
    from carl_ray.session import connect
    from carl_ray.training.checkpoint import how_to_go_on
    from carl_ray.training.trainer import train

    with connect(_local_cpus(config)):
        if embedded:
            manifest_uri, manifest, _ = index_embedded()
            print(f"videos: {manifest.num_rows}, described in {manifest_uri}", flush=True)
            config = replace(config, data=replace(config.data, manifest=manifest_uri))
        print(f"run folder: {storage.public_uri(run_dir)}", flush=True)
        started = time.monotonic()
        outcome = train(config, run_dir, resume=parsed.resume)
        if not outcome.finished:  # Whatever ended it, the news of it were lost.
            raise RunError(f"ended before its last step; {how_to_go_on(run_dir, outcome.step or None)}")
        _print_results(run_dir, outcome.num_steps, time.monotonic() - started)
        if not embedded:
            embeddings = storage.join(run_dir, "embeddings")
            manifest_uri = config.data.manifest or ""
            options.print_next(
                "embed", "--checkpoint", run_dir, "--manifest", manifest_uri, "--out", embeddings
            )
        if embedded:
            _evaluate(run_dir, manifest_uri)


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = options.OptionParser(
        prog="python -m carl_ray.train",
        usage="%(prog)s [PRESET] [--run-dir URI] [--resume] [--section.field VALUE …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("preset", nargs="?", help=f"one of {', '.join(PRESETS)}; demo where none is named")
    parser.add_argument("--run-dir", metavar="URI", help="folder for all that the run writes")
    parser.add_argument(
        "--config", metavar="URI", help="config.json of a run, or best.json of a sweep, to begin with"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run-dir")
    options.add_config_options(parser)
    parsed, unknown = parser.parse_known_args(arguments)
    options.check_known(unknown, ("run-dir", "resume", "config", "help"))
    known = options.field_names()
    return parsed, {name: value for name, value in vars(parsed).items() if name in known}


def _choose(parsed: argparse.Namespace, overrides: dict[str, str]) -> tuple[Config, str]:
    if parsed.preset is not None and parsed.preset not in PRESETS:
        raise UserError(
            f"unknown preset {storage.public_uri(parsed.preset)!r}{options.nearest(parsed.preset, list(PRESETS))} "
            f"(presets: {', '.join(PRESETS)})"
        )
    if parsed.config is not None and (parsed.preset is not None or parsed.resume):
        other = "a preset" if parsed.preset is not None else "--resume"
        raise UserError(f"--config and {other} both say what the run is: expected one of them")
    if parsed.resume and parsed.run_dir is None:
        raise UserError("--resume needs --run-dir: which run?")
    if parsed.config is not None:
        base = configuration.from_json(storage.read_bytes(parsed.config), storage.public_uri(parsed.config))
    else:
        base = PRESETS[parsed.preset or "demo"]()
    name = base.preset
    run_dir = parsed.run_dir or str(storage.home() / "runs" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    if parsed.resume:
        from carl_ray.training.preparation import saved_config

        saved = saved_config(run_dir)
        if saved is None and parsed.preset is None:
            raise UserError(
                f"{storage.public_uri(storage.absolute(run_dir))} holds no run: expected the folder of one, or without "
                "--resume a folder for a new one"
            )
        base = saved or base
        if parsed.preset not in (None, base.preset):
            raise UserError(
                f"{storage.public_uri(run_dir)} holds a run of preset {base.preset}, not {parsed.preset}"
            )
    return options.overridden(base, overrides), run_dir


def _print_results(run_dir: str, num_steps: int, seconds: float) -> None:
    from carl_ray.training.run_log import METRICS, read_log

    validation = [line["validation_loss"] for line in read_log(run_dir) if "validation_loss" in line]
    print(f"{num_steps} steps done, this time in {seconds:.0f} s")
    if validation:
        first, last = (
            "not finite" if loss is None else f"{loss:.4f}" for loss in (validation[0], validation[-1])
        )
        print(f"loss on validation videos: {first} at the start, {last} at the end")
    shown = storage.public_uri(run_dir)
    print(f"run folder:  {shown}")
    print(f"log:         {storage.public_uri(storage.join(run_dir, METRICS))}")
    print(f"checkpoints: {storage.public_uri(storage.join(run_dir, 'checkpoints'))}")
    board = storage.shell_command("tensorboard", "--logdir", storage.join(run_dir, "events"))
    print(f"TensorBoard: {board}")


def _evaluate(run_dir: str, manifest_uri: str) -> None:
    """Embeds the training and the test videos with the latest checkpoint and evaluates them in the run folder."""
    from carl_ray.evaluation.corpus import embed_corpus
    from carl_ray.report.evaluation import METRICS_FILE, REPORT_FILE, evaluate_embeddings
    from carl_ray.report.tables import metrics_text

    embeddings, out = storage.join(run_dir, "embeddings"), storage.join(run_dir, "evaluation")
    embed_corpus(run_dir, manifest_uri, embeddings, splits=["train", "test"])
    print(metrics_text(evaluate_embeddings(embeddings, embeddings, out)))
    print(f"metrics:     {storage.public_uri(storage.join(out, METRICS_FILE))}")
    print(f"report:      {storage.public_uri(storage.join(out, REPORT_FILE))}")
    options.print_next("search", "--embeddings", embeddings, "--out", "sheet.png")


def _local_cpus(config: Config) -> int:
    """Logical CPUs of a cluster on this machine: what the run asks for where it has fewer; nobody else shares it."""
    cluster = config.cluster
    needed = math.ceil(cluster.min_workers * cluster.worker_cpus + cluster.decode_cpus)
    return max(needed, available_cores())


if __name__ == "__main__":
    main()
