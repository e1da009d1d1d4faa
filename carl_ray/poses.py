"""Estimate the keypoints of a person in every frame of the videos of a manifest.

    python -m carl_ray.poses MANIFEST --out keypoints
    python -m carl_ray.poses MANIFEST --out s3://bucket/keypoints --every 2
    python -m carl_ray.train PRESET --data.manifest MANIFEST --data.keypoints keypoints

The estimator is MediaPipe's BlazePose: COCO's 17 joints of one person, zeros where there is none. Called again, the
command adds missing videos, also after an interruption. Videos that cannot be read are listed in bad_videos.jsonl
in the folder. With --every N, joints are interpolated between every N-th frame: N times as fast.

It needs a package that pip cannot install beside the others by its name alone:

    pip install --no-deps mediapipe==0.10.21 absl-py attrs flatbuffers "protobuf>=6.31,<7"
"""

from __future__ import annotations

import argparse

from carl_ray import storage
from carl_ray.errors import one_line_errors
from carl_ray.options import OptionParser, number


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 unless no video could be read."""
    with one_line_errors():
        _run(_parse(arguments))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog="python -m carl_ray.poses", description=__doc__)
    add, count = parser.add_argument, number(int, at_least=1)
    add("manifest", metavar="MANIFEST", help="path or URI of the manifest")
    out = "path or URI of the folder of keypoints, new or to be continued"
    add("--out", metavar="FOLDER", required=True, help=out)
    every = "estimate every N-th frame, interpolate between [1]"
    add("--every", type=count, default=1, metavar="N", help=every)
    add("--split", action="append", metavar="NAME", help="only videos of this split; may be given repeatedly")
    add("--num-workers", type=count, metavar="N", help="actors, of one CPU each [as many as fit now]")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    # Lazily: help and usage errors answer at once.
    from carl_ray.evaluation.corpus import EmbeddingSettings
    from carl_ray.evaluation.poses import estimate_poses

    settings = EmbeddingSettings(num_workers=options.num_workers)
    result = estimate_poses(
        options.manifest, options.out, settings, every=options.every, splits=options.split
    )
    print(f"videos estimated: {result.num_embedded} ({result.num_frames} frames, {result.seconds:.0f} s)")
    print(f"there before:     {result.num_present}")
    if result.num_frames:
        share = result.num_with_person / result.num_frames
        print(f"with a person:    {share:.1%} of the frames; nobody in {len(result.without_person)} videos")
    if result.bad_videos:
        print(f"not readable:     {len(result.bad_videos)}, listed in bad_videos.jsonl in the folder")
    print(f"keypoints:        {storage.public_uri(options.out)}")


if __name__ == "__main__":
    main()
