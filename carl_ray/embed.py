"""Embed every frame of every video of a manifest.

    python -m carl_ray.embed --checkpoint RUN --manifest MANIFEST --out FOLDER
    python -m carl_ray.embed --checkpoint RUN --manifest MANIFEST --out FOLDER --split train --split test --use-gpu
    python -m carl_ray.embed --encoder frozen --manifest MANIFEST --out FOLDER
    python -m carl_ray.embed

The temporal encoder sees each video whole. Besides the trained encoder's embeddings, those of the same encoder before
its training are written, the control of every evaluation. Called again, it embeds only missing videos. Without
arguments it takes the newest demo run and the rendered videos of the demo.

`--encoder frozen` needs no training: features of a frozen backbone, centred in each video, in windows of nine frames,
reduced over the videos. They are kept in --features, or in features/ beside the manifest.
"""

from __future__ import annotations

import argparse
import sys
import typing
from dataclasses import fields

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.corpus import EmbeddingSettings, embed_corpus
from carl_ray.evaluation.embeddings import CropMode, Form, Precision
from carl_ray.evaluation.frozen import FROZEN
from carl_ray.machine import bf16_slowdown, has_native_bf16
from carl_ray.options import OptionParser, number, print_next
from carl_ray.training.checkpoint import default_run


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when every readable video is embedded."""
    with one_line_errors():
        _run(_parse(arguments))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog="python -m carl_ray.embed", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", metavar="URI", help="a run folder (its latest) or one checkpoint")
    add("--encoder", choices=[FROZEN], help="without training, in place of --checkpoint")
    add(
        "--features",
        metavar="URI",
        help="features of `carl_ray.cache`; videos that have them are not decoded",
    )
    add("--manifest", metavar="URI", help="the videos; none: the embedded ones")
    add("--out", metavar="URI", help="folder of the embeddings")
    add("--split", action="append", metavar="NAME", help="only videos of this split; may be given repeatedly")
    add("--use-gpu", action="store_true", help="one GPU for each actor")
    add(
        "--num-workers",
        type=number(int, at_least=1),
        metavar="N",
        help="actors; none: as many as the cluster has room for now, so name it where the cluster has yet to grow",
    )
    add(
        "--cpus-per-worker",
        type=number(int, at_least=1),
        default=1,
        metavar="N",
        help="CPUs of each actor, which decodes as many videos at a time (default 1)",
    )
    add("--bf16", action="store_true", help="matrix products in bfloat16")
    add("--precision", choices=typing.get_args(Precision), default="float16", help="of what is written")
    add(
        "--view",
        choices=typing.get_args(CropMode),
        default="resized",
        help="the encoder sees the central square of frames whose shorter side was resized, or of the frames as "
        "they are, which is what the released code tests FineGym with",
    )
    add(
        "--form",
        choices=typing.get_args(Form),
        help="of the embeddings: plain; centered: minus the mean of their video; joined: that, averaged over five "
        "strides, beside embeddings of the frozen backbone, in a folder that begins with videos that have features; "
        "dynamic, static: the half of that stream, of an encoder with two; none: as in the folder, in a new one plain",
    )
    add(
        "--backwards",
        action="store_true",
        help="also embed clips played backwards, for the metric direction of time; encoders of clips only, twice the "
        "computing",
    )
    add(
        "--no-untrained",
        dest="untrained",
        action="store_false",
        help="leave out the control (half the time; no evaluation)",
    )
    options = parser.parse_args(arguments)
    if options.encoder is not None:
        if options.checkpoint is not None:
            raise UserError("--encoder and --checkpoint both name an encoder: expected one of them")
        if options.manifest is None or options.out is None:
            raise UserError(f"--encoder {options.encoder} needs --manifest and --out")
        if options.view != "resized" or options.bf16 or options.form:
            raise UserError(f"--encoder {options.encoder} knows neither --view nor --bf16 nor --form")
    if options.out is None and not (options.manifest is options.checkpoint is None):
        raise UserError("--out is missing: name a folder for the embeddings")
    return options


def _run(options: argparse.Namespace) -> None:
    run, out = "", options.out
    if options.encoder is None:
        run = options.checkpoint or default_run("--checkpoint, --manifest and --out")
        out = out or storage.join(run, "embeddings")
    if options.bf16 and not options.use_gpu and not has_native_bf16("cpu"):
        print(
            f"warning: this machine computes bf16 {bf16_slowdown():.0f} times as slowly as float32: leave out --bf16",
            file=sys.stderr,
            flush=True,
        )
    settings = EmbeddingSettings(**{of.name: getattr(options, of.name) for of in fields(EmbeddingSettings)})
    if options.encoder is None:
        result = embed_corpus(
            run, options.manifest, out, settings, splits=options.split, features=options.features
        )
    else:
        from carl_ray.evaluation.caching import embed_frozen

        result = embed_frozen(
            options.manifest, out, settings, splits=options.split, features=options.features
        )
    print(f"videos embedded: {result.num_embedded} ({result.num_frames} frames, {result.seconds:.0f} s)")
    print(f"there before:    {result.num_present}")
    if result.bad_videos:
        print(f"not readable:    {len(result.bad_videos)}, listed in bad_videos.jsonl beside the embeddings")
    print(f"embeddings:      {storage.public_uri(out)}")
    if result.has_test_videos:
        results = storage.join(storage.parent(storage.absolute(out)), "evaluation")
        print_next("evaluate", "--train", out, "--test", out, "--out", results)
    else:
        print_next("search", "--embeddings", out, "--out", "sheet.png")


if __name__ == "__main__":
    main()
