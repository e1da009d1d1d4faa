"""Compute features of a frozen backbone once, for runs that train on them and for embeddings.

    python -m carl_ray.cache --manifest MANIFEST --out FOLDER
    python -m carl_ray.cache --manifest MANIFEST --out FOLDER --model.backbone resnet50 --copies 4 --frame-stride 3
    python -m carl_ray.train laptop --data.manifest MANIFEST --data.features FOLDER

Each video gets the features of its clean frames and of some augmented copies, as float16. Called again, the command
adds missing videos. Features of another backbone, other weights or another augmentation need a folder of their own.
Options that are not given are those of the preset `laptop`.
"""

from __future__ import annotations

import argparse
import sys

from carl_ray import options, presets, storage
from carl_ray.config import Config
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.corpus import EmbeddingSettings, read_videos


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when every readable video has its features."""
    with one_line_errors():
        _run(*_parse(sys.argv[1:] if arguments is None else arguments))


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = options.OptionParser(
        prog="python -m carl_ray.cache",
        usage="%(prog)s --manifest URI [--out URI] [--copies K] [--frame-stride N] [--section.field VALUE …]",
        description=__doc__,
    )
    add, count = parser.add_argument, options.number(int, at_least=1)
    add("--manifest", metavar="URI", required=True, help="the videos")
    add("--out", metavar="URI", help="folder of the features [features/ beside the manifest]")
    copies = "augmented copies of each video beside the clean frames [4]; as --augment.copies"
    add("--copies", type=options.number(int, at_least=0), metavar="K", help=copies)
    stride = (
        "every how many frames one is encoded; auto: about nine a second, as --data.frame_stride otherwise"
    )
    add("--frame-stride", default="auto", metavar="N", help=stride)
    add("--split", action="append", metavar="NAME", help="only videos of this split; may be given repeatedly")
    add("--use-gpu", action="store_true", help="one GPU for each actor")
    add("--num-workers", type=count, metavar="N", help="actors [as many as fit now]")
    add("--cpus-per-worker", type=count, default=1, metavar="N", help="[1]")
    parsed, overrides = options.parse_with_config(parser, arguments)
    if parsed.copies is not None:
        overrides["augment.copies"] = str(parsed.copies)
    if parsed.frame_stride != "auto":
        overrides["data.frame_stride"] = parsed.frame_stride
    return parsed, overrides


def _run(parsed: argparse.Namespace, overrides: dict[str, str]) -> None:
    config = options.overridden(presets.preset("laptop"), overrides)
    if config.model.learnable != "none":
        raise UserError("features are those of a frozen backbone: leave out --model.learnable")
    # Lazy imports: mistakes and --help are answered without torch and Ray.
    from carl_ray.data.features import default_folder
    from carl_ray.evaluation.caching import cache_features

    config = _with_stride(config, parsed, overrides)
    out = parsed.out or default_folder(parsed.manifest, config)
    settings = EmbeddingSettings(
        num_workers=parsed.num_workers, cpus_per_worker=parsed.cpus_per_worker, use_gpu=parsed.use_gpu
    )
    result = cache_features(parsed.manifest, out, config, settings, splits=parsed.split)
    print(f"videos cached: {result.num_embedded} ({result.num_frames} frames, {result.seconds:.0f} s)")
    print(f"there before:  {result.num_present}")
    if result.bad_videos:
        print(f"not readable:  {len(result.bad_videos)}, listed in bad_videos.jsonl beside the features")
    print(f"features:      {storage.public_uri(out)}")
    options.print_next("train", "laptop", "--data.manifest", parsed.manifest, "--data.features", out)


def _with_stride(config: Config, parsed: argparse.Namespace, overrides: dict[str, str]) -> Config:
    """The config with the frame stride of `auto`: that of features that are there, or by the videos' rate."""
    if "data.frame_stride" in overrides:
        return config
    from carl_ray.data.features import open_cache
    from carl_ray.data.timing import fit_to_videos

    there = None if parsed.out is None else open_cache(parsed.out)
    if there is not None:
        return options.overridden(config, {"data.frame_stride": str(there.config.data.frame_stride)})
    fitted, timing = fit_to_videos(config, read_videos(parsed.manifest, parsed.split))
    print(f"frame stride {timing.frame_stride}: {timing.reason}", flush=True)
    return options.overridden(config, {"data.frame_stride": str(fitted.data.frame_stride)})


if __name__ == "__main__":
    main()
