"""Aligns two videos: a side-by-side video in which the second follows the action of the first.

    python -m carl_ray.align A B --checkpoint URI --out aligned.mp4
    python -m carl_ray.align A B
    python -m carl_ray.align

Both videos are embedded, frame by frame, and aligned by dynamic time warping. The result shows A at its own pace,
the frame of B aligned with it, and, for comparison, the frame of B at the same relative position. Without
--checkpoint it takes the newest demo run; without videos two of the rendered test videos that show one action.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.options import OptionParser


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; leaves with status 0 only when the video is written."""
    with one_line_errors():
        options = _parse(arguments)
        # Imported late: help and mistakes on the command line answer at once.
        import torch

        from carl_ray.data.decode import DecodeError
        from carl_ray.evaluation.alignment import align_pair
        from carl_ray.evaluation.frames import unit_frames
        from carl_ray.evaluation.inference import VideoEmbedder, default_run
        from carl_ray.report.video import Clip, aligned_video
        from carl_ray.training.checkpoint import checkpoint_at, load_encoder

        checkpoint = checkpoint_at(options.checkpoint or default_run())
        uris = [options.a, options.b] if options.b else _rendered_pair()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        embedder = VideoEmbedder([load_encoder(checkpoint)], checkpoint.config, device)
        embeddings = [embedder.embed_file(uri)[0] for uri in uris]
        path = align_pair(embeddings[0], embeddings[1])
        units = unit_frames(embeddings)
        similarity = float(np.mean(np.sum(units[0][path[:, 0]] * units[1][path[:, 1]], axis=1)))
        clips = [
            Clip(_file_name(uri), uri, len(frames)) for uri, frames in zip(uris, embeddings, strict=True)
        ]
        try:
            content = aligned_video(clips[0], clips[1], path)
        except DecodeError as error:  # What one pass could decode, another cannot: the file has changed.
            raise UserError(f"{' or '.join(map(storage.public_uri, uris))}: {error}") from None
        storage.write_bytes(options.out, content)
        print(
            f"aligned {clips[0].num_frames} with {clips[1].num_frames} frames, mean cosine similarity along "
            f"the path {similarity:.3f}: {storage.public_uri(options.out)}"
        )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(
        prog="python -m carl_ray.align",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", nargs="?", metavar="A", help="path or URI of the video that keeps its pace")
    parser.add_argument("b", nargs="?", metavar="B", help="path or URI of the video that follows")
    parser.add_argument("--checkpoint", metavar="URI", help="run folder or checkpoint; none: the newest demo")
    parser.add_argument("--out", metavar="VIDEO", default="aligned.mp4", help="MP4 file [aligned.mp4]")
    options = parser.parse_args(arguments)
    if options.a is not None and options.b is None:
        raise UserError("expected two videos, got one: python -m carl_ray.align A B")
    if not options.out.partition("?")[0].lower().endswith(".mp4"):
        raise UserError(f"--out: expected the name of an MP4 file, such as aligned.mp4, got {options.out!r}")
    for uri in (options.a, options.b):
        if uri is not None and storage.resolve(uri) == storage.resolve(options.out):
            raise UserError(f"--out: {storage.public_uri(uri)} is one of the videos; name another file")
    return options


def _rendered_pair() -> list[str]:
    """The first two rendered test videos of the first action."""
    from carl_ray.datasets import choreography

    folder = choreography.ensure_rendered(on_video=choreography.print_progress)
    name = next(iter(choreography.ACTIONS))
    found: list[Path] = sorted((folder / "test").glob(f"{name}-*.mp4"))
    return [str(path) for path in found[:2]]


def _file_name(uri: str) -> str:
    return storage.public_uri(uri).partition("?")[0].rpartition("/")[2]


if __name__ == "__main__":
    main()
