"""The command `carl-ray COMMAND ...`; the same as `python -m carl_ray.COMMAND ...`.

carl-ray --help
carl-ray train penn_action --data.manifest s3://bucket/manifest.parquet --run-dir s3://bucket/run
"""

from __future__ import annotations

import importlib
import sys

import carl_ray
from carl_ray import errors, options

COMMANDS = {
    "train": "train an encoder; without arguments, the demo on rendered videos",
    "index": "scan a folder of videos and write its manifest (Parquet, one row a video)",
    "cache": "compute features of a frozen backbone once, for training and embedding",
    "poses": "estimate the keypoints of a person in every frame",
    "embed": "embed every frame of the videos of a manifest",
    "evaluate": "compute metrics with controls and write report.html",
    "search": "find the nearest moments in other videos",
    "explore": "find, compare and label moments in a web browser",
    "align": "align two videos in time: a side-by-side video, frame pairs as CSV",
    "propagate": "label all videos from the labels of a few",
    "segments": "find and count repetitions, one interval each",
    "export": "write features for temporal action localisation (G-TAD)",
    "export-model": "write an encoder as a folder to share: weights, model card, ONNX",
    "sweep": "sweep training parameters with Ray Tune",
    "jobs": "run a pipeline of commands as Ray jobs on a cluster",
    "sizing": "measure one video and one step, print the cluster that a run needs",
    "compare": "tabulate several evaluations beside the paper's numbers",
    "datasets.choreography": "render synthetic videos with known phases and progress",
    "datasets.finegym": "convert FineGym",
    "datasets.hmdb51": "index HMDB51",
    "datasets.kinetics400": "convert Kinetics-400",
    "datasets.penn_action": "convert PennAction",
    "datasets.pouring": "convert Pouring",
    "datasets.scenes": "render synthetic videos with independent action and scene",
    "datasets.something_v2": "index Something-Something v2",
    "datasets.ucf101": "index UCF101",
}
"""One line of help for every command; `carl_ray.COMMAND` is its module, with underscores."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command; the exit status is the command's own, 2 for an unknown command.

    Args:
        arguments: Command and its arguments; default `sys.argv[1:]`.
    """
    errors.handle_signals()
    given = sys.argv[1:] if arguments is None else arguments
    command, *rest = given or ["--help"]
    if command in ("-h", "--help"):
        print(_help())
    elif command == "--version":
        print(f"carl_ray {carl_ray.__version__}")
    elif command in COMMANDS:
        importlib.import_module(f"carl_ray.{command.replace('-', '_')}").main(rest)
    else:
        hint = options.nearest(command, list(COMMANDS))
        errors.fail(f"unknown command {command!r}{hint}; see {options.program()} --help", 2)


def _help() -> str:
    lines = [
        f"usage: {options.program()} COMMAND [ARGUMENT ...]",
        "",
        "Frame-wise action representations from long, unlabelled videos (CARL, CVPR 2022) on Ray.",
        "",
        *(f"  {command:<22} {description}" for command, description in COMMANDS.items()),
        "",
        f"{options.program('COMMAND')} --help lists the options of a command.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
