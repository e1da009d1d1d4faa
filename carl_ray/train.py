"""Train a frame-level video encoder, by default with the SCL loss.

    python -m carl_ray.train
    python -m carl_ray.train laptop --data.manifest manifest.parquet
    python -m carl_ray.train penn_action --data.manifest s3://bucket/manifest.parquet --run-dir s3://bucket/run
    ray job submit --working-dir . -- python -m carl_ray.train penn_action …
    python -m carl_ray.train … --run-dir s3://bucket/run --resume
    python -m carl_ray.train --config best.json

Without arguments it renders the videos of the demo, trains on them on this machine's CPUs, evaluates and writes a
report; --title ends any run so. The same command with --resume continues from the latest checkpoint of the run folder.
"""

from __future__ import annotations

import argparse
import sys

from carl_ray import config as configuration
from carl_ray import options, presets, storage
from carl_ray.config import Config
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.embeddings import Form
from carl_ray.fitting import FittedRun, fitted, new_run_dir

_WITH_REPORT = ("demo", "clips_demo", "csvr_demo", "laptop")
"""Presets of small data, whose runs always end with a report."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; it exits with status 0 only when all steps are done."""
    with one_line_errors():
        parsed, overrides = _parse(sys.argv[1:] if arguments is None else arguments)
        config, run_dir = _choose(parsed, overrides)
        # Of a whole config, nothing follows the videos.
        given = overrides if parsed.config is None else options.field_names(config.objective.name)
        with fitted(config, run_dir, resume=parsed.resume, given=given) as run:
            _print_results(run)
            if parsed.title is not None or config.preset in _WITH_REPORT:
                # Embeddings of centred features are compared centred, beside what training loses.
                _evaluate(run, parsed.title, "joined" if config.model.centered else "plain")
            else:
                out = storage.join(run_dir, "embeddings")
                options.print_next("embed", "--checkpoint", run_dir, "--manifest", run.manifest, "--out", out)


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = options.OptionParser(
        prog="python -m carl_ray.train",
        usage="%(prog)s [PRESET] [--run-dir URI] [--resume] [--section.field VALUE …]",
        description=__doc__,
    )
    add = parser.add_argument
    add("preset", nargs="?", help=f"one of {', '.join(presets.PRESETS)} [demo]")
    add("--run-dir", metavar="URI", help="folder for everything that the run writes")
    add("--config", metavar="URI", help="config.json of a run, or best.json of a sweep, to begin with")
    add("--resume", action="store_true", help="continue the run in --run-dir")
    title = "end with a report of this title; those of the demos and of laptop have it anyway"
    add("--title", metavar="TEXT", help=title)
    return options.parse_with_config(parser, arguments)


def _choose(parsed: argparse.Namespace, overrides: dict[str, str]) -> tuple[Config, str]:
    """The run's config and folder."""
    base = presets.preset(parsed.preset or "demo")
    if parsed.config is not None and (parsed.preset is not None or parsed.resume):
        other = "a preset" if parsed.preset is not None else "--resume"
        raise UserError(f"--config and {other} both say what the run is: expected one of them")
    if parsed.resume and parsed.run_dir is None:
        raise UserError("--resume needs --run-dir: which run?")
    if parsed.config is not None:
        base = configuration.from_json(storage.read_bytes(parsed.config), storage.public_uri(parsed.config))
    run_dir = parsed.run_dir or new_run_dir(base.preset)
    if parsed.resume:
        from carl_ray.training.run_checks import saved_config

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


def _print_results(run: FittedRun) -> None:
    from carl_ray.training.run_log import METRICS, read_log

    def uri(name: str) -> str:
        return storage.public_uri(storage.join(run.run_dir, name))

    losses = [line["validation_loss"] for line in read_log(run.run_dir) if "validation_loss" in line]
    print(f"{run.num_steps} steps are done; this call took {run.seconds:.0f} s")
    if losses:
        first, last = ("not finite" if loss is None else f"{loss:.4f}" for loss in (losses[0], losses[-1]))
        print(f"loss on validation videos: {first} at the start, {last} at the end")
    print(f"run folder:  {storage.public_uri(run.run_dir)}")
    print(f"log:         {uri(METRICS)}")
    print(f"checkpoints: {uri('checkpoints')}")
    board = storage.shell_command("tensorboard", "--logdir", storage.join(run.run_dir, "events"))
    print(f"TensorBoard: {board}")


def _evaluate(run: FittedRun, title: str | None, form: Form) -> None:
    """Embed and evaluate the videos in the run folder; without test videos, as far as that is possible."""
    from carl_ray.evaluation.corpus import EmbeddingSettings, embed_corpus
    from carl_ray.evaluation.embeddings import list_parts
    from carl_ray.report.evaluation import measured_splits, print_evaluation

    embeddings, out = (storage.join(run.run_dir, name) for name in ("embeddings", "evaluation"))
    # Embeddings that are there keep their form: those of an earlier version are plain.
    settings = EmbeddingSettings(form=None if list_parts(embeddings) else form)
    embed_corpus(run.run_dir, run.manifest, embeddings, settings, splits=measured_splits(run.manifest))
    try:
        print_evaluation(embeddings, embeddings, out, title=title)
    except UserError as error:  # The run is trained, but there are too few videos to compare.
        print(f"no report: {error}")
    print(f"embeddings:  {storage.public_uri(embeddings)}")
    options.print_next("search", "--embeddings", embeddings, "--out", "sheet.png")


if __name__ == "__main__":
    main()
