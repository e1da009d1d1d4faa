"""Measure frame embeddings, with controls, and write metrics and a report.

    python -m carl_ray.evaluate --train EMBEDDINGS --test EMBEDDINGS --out FOLDER
    python -m carl_ray.evaluate

Writes metrics.json and report.html. Where --train and --test are the same, probes are fitted to the videos of the split
"train" (or of no split), and those of the split "test" are measured; without such videos, or where none has a label,
those of "validation", or all, and a warning says so. Without arguments it takes the newest demo run.
"""

from __future__ import annotations

import argparse

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.options import OptionParser, number, print_next
from carl_ray.paper import PROTOCOLS
from carl_ray.training.checkpoint import default_run


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when both files are written."""
    with one_line_errors():
        options = _parse(arguments)
        storage.check_bucket(options.out)
        # Lazy import: --help must not load torch.
        from carl_ray.report.evaluation import print_evaluation

        print_evaluation(**vars(options))
        print_next("search", "--embeddings", options.test, "--out", "sheet.png")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog="python -m carl_ray.evaluate", description=__doc__)
    add = parser.add_argument
    add("--train", metavar="EMBEDDINGS", help="folder or file that probes are fitted to")
    add("--test", metavar="EMBEDDINGS", help="folder or file that is measured")
    add("--out", metavar="FOLDER", help="for metrics.json and report.html")
    add(
        "--protocol",
        choices=tuple(PROTOCOLS),
        help="phases: classification, progression, tau, AP@K, alignment error; finegym: linear probe; "
        "none: that of the preset",
    )
    add(
        "--stride",
        type=number(int, at_least=1),
        metavar="N",
        help="tau, AP@K and alignment error look at every Nth frame; none: the paper's for the preset",
    )
    add("--seed", type=int, default=0, metavar="N", help="of label fractions, chance and the bootstrap")
    add(
        "--centered",
        action="store_true",
        help="subtract the mean of each video from its embeddings, of the trained, untrained and frozen encoder",
    )
    add("--title", metavar="TEXT", help="of the report; none: preset and steps")
    options = parser.parse_args(arguments)
    named = [name for name in ("train", "test", "out") if getattr(options, name) is not None]
    if not named:
        run = default_run("--train, --test and --out")
        options.train = options.test = storage.join(run, "embeddings")
        options.out = storage.join(run, "evaluation")
    elif len(named) < 3:
        missing = [f"--{name}" for name in ("train", "test", "out") if name not in named]
        raise UserError(f"{' and '.join(missing)} missing: --train, --test and --out go together")
    return options


if __name__ == "__main__":
    main()
