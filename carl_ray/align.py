"""Align two videos and write them side by side, or a table of the aligned frames.

    python -m carl_ray.align A B --checkpoint URI --out aligned.mp4
    python -m carl_ray.align A B --out aligned.mp4 --out pairs.csv
    python -m carl_ray.align A B --repetitions --out aligned.mp4
    python -m carl_ray.align

The frames of both videos are embedded and aligned by dynamic time warping. The video shows A at its own pace, the frame
of B aligned with it, and, for comparison, the frame of B at the same relative position. The table has every pair of
aligned frames, with seconds. Printed are the mean cosine similarities of aligned frames and of frames at the same
relative position, for the trained encoder and for the same encoder before its training. Without --checkpoint it takes
the newest demo run; without videos, two of the rendered test videos of one action.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from carl_ray import storage
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.evaluation.frozen import FROZEN, load_frozen
from carl_ray.options import OptionParser, print_next
from carl_ray.progress import ProgressLine
from carl_ray.training.checkpoint import Checkpoint, checkpoint_at, default_run, load_encoder

if TYPE_CHECKING:
    import numpy as np

    from carl_ray.report.video import Clip


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when every file is written."""
    with one_line_errors():
        _run(_parse(arguments))


def _run(options: argparse.Namespace) -> None:
    for uri in (options.a, options.b):
        if uri is not None and not storage.is_file(uri):
            raise UserError(f"{storage.public_uri(storage.absolute(uri))}: no such file")
    uri = options.checkpoint or default_run("--checkpoint")
    checkpoint = load_frozen(uri) or checkpoint_at(uri)
    # Lazy import: mistakes are reported before torch is loaded.
    from carl_ray.data.decode import DecodeError
    from carl_ray.evaluation.inference import (
        VideoEmbedder,
        WholeVideoEncoder,
        default_device,
        load_encoders,
        untrained_encoder,
    )
    from carl_ray.evaluation.repetitions import find_repetitions
    from carl_ray.evaluation.warping import align_pair, align_repetitions
    from carl_ray.report.video import Clip, aligned_video

    encoders: dict[str, WholeVideoEncoder] = {}
    if isinstance(checkpoint, Checkpoint):
        encoders["trained"] = load_encoder(checkpoint)
        try:
            encoders["untrained"] = untrained_encoder(
                checkpoint.config, instead="the similarities of the trained one alone"
            )
        except (RunError, UserError) as error:
            print(f"warning: without the untrained encoder: {error}", file=sys.stderr, flush=True)
    else:
        (encoders[FROZEN],) = load_encoders(checkpoint, untrained=False)
    uris = [options.a, options.b] if options.b else _rendered_pair()
    embedder = VideoEmbedder(list(encoders.values()), checkpoint.config, default_device())
    embedded = [embedder.embed_file(uri) for uri in uris]
    first, second = embedded[0][0], embedded[1][0]
    found = find_repetitions(first), find_repetitions(second)
    counts = f"{len(found[0])} and {len(found[1])} repetitions found"
    both_repeat = min(map(len, found)) > 1
    if options.repetitions and not both_repeat:
        raise UserError(f"--repetitions: expected two videos that repeat, {counts}; leave it out")
    align = partial(align_repetitions, found=found) if options.repetitions else align_pair
    path = align(first, second)
    clips = [Clip(_file_name(uri), uri, len(frames[0])) for uri, frames in zip(uris, embedded, strict=True)]
    try:
        for out in options.out:
            content = _pairs(clips, path) if _is_table(out) else aligned_video(clips[0], clips[1], path)
            storage.write_bytes(out, content)
    except DecodeError as error:  # It could be decoded before: the file has changed.
        raise UserError(f"{' or '.join(map(storage.public_uri, uris))}: {error}") from None
    print(f"mean cosine similarity of each of {len(first)} frames with its partner among {len(second)}")
    print(f"{'':<12}{'aligned':>9}{'same relative position':>25}")
    for name, of_first, of_second in zip(encoders, *embedded, strict=True):
        aligned, unaligned = _similarities(of_first, of_second, align(of_first, of_second))
        print(f"{name:<12}{aligned:>9.3f}{unaligned:>25.3f}")
    if both_repeat:
        whole = "whole videos are aligned as if they did not repeat; --repetitions takes them one by one"
        print(f"{counts}: {'aligned one by one' if options.repetitions else whole}")
    for out in options.out:
        print(f"written:    {storage.public_uri(out)}")
    one_by_one = ["--repetitions"] if both_repeat else []
    names = ["repetitions.mp4"] if both_repeat and not options.repetitions else []
    names += (
        ["aligned.mp4", "pairs.csv"] if all(map(_is_table, options.out)) else ["pairs.csv", "aligned.mp4"]
    )
    other = next((name for name in names if name not in options.out), names[0])
    print_next("align", *uris, "--checkpoint", uri, *one_by_one, "--out", other)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog="python -m carl_ray.align", description=__doc__)
    add = parser.add_argument
    add("a", nargs="?", metavar="A", help="path or URI of the video that keeps its pace")
    add("b", nargs="?", metavar="B", help="path or URI of the video that follows")
    add("--checkpoint", metavar="URI", help="run folder, checkpoint, or frozen; none: the newest demo")
    add(
        "--out",
        action="append",
        metavar="FILE",
        help="a video (.mp4) or a table of the pairs of frames (.csv); may be given repeatedly [aligned.mp4]",
    )
    add("--repetitions", action="store_true", help="align repetition by repetition")
    options = parser.parse_args(arguments)
    options.out = options.out or ["aligned.mp4"]
    if options.a is not None and options.b is None:
        raise UserError("expected two videos, got one: python -m carl_ray.align A B")
    for out in options.out:
        if not out.partition("?")[0].lower().endswith((".mp4", ".csv")):
            raise UserError(
                f"--out: expected the name of an MP4 or a CSV file, such as aligned.mp4 or pairs.csv, got {out!r}"
            )
        for uri in (options.a, options.b):
            if uri is not None and storage.resolve(uri) == storage.resolve(out):
                raise UserError(f"--out: {storage.public_uri(uri)} is one of the videos; name another file")
    return options


def _is_table(out: str) -> bool:
    return out.partition("?")[0].lower().endswith(".csv")


def _pairs(clips: list[Clip], path: np.ndarray) -> bytes:
    """Aligned frames as CSV, with the seconds at which they are shown where the file says so."""
    seconds = [_seconds(clip) for clip in clips]
    rows = ((a, seconds[0][a], b, seconds[1][b]) for a, b in path.tolist())
    return storage.csv_bytes(("frame_a", "seconds_a", "frame_b", "seconds_b"), rows)


def _seconds(clip: Clip) -> list[str]:
    from carl_ray.data.decode import probe_video

    found = probe_video(clip.source)
    if len(found.frame_times) != clip.num_frames:  # The packets are not the frames.
        found = probe_video(clip.source, verify=True)
    if found.fps is None or len(found.frame_times) != clip.num_frames:
        return [""] * clip.num_frames
    return [f"{seconds:.3f}" for seconds in found.frame_times]


def _similarities(first: np.ndarray, second: np.ndarray, path: np.ndarray) -> tuple[float, float]:
    """Mean cosine similarities of partners: aligned, and at equal positions."""
    from carl_ray.evaluation.frames import unit_frames
    from carl_ray.report.video import partners, same_relative_position

    units = unit_frames([first, second])
    shown = (partners(path, len(first)), same_relative_position(len(first), len(second)))
    aligned, unaligned = (float((units[0] * units[1][frames]).sum(1).mean()) for frames in shown)
    return aligned, unaligned


def _rendered_pair() -> list[str]:
    """The first two rendered test videos of the first action."""
    from carl_ray.datasets import choreography

    folder = choreography.ensure_rendered(on_video=ProgressLine("rendered"))
    name = next(iter(choreography.ACTIONS))
    found: list[Path] = sorted((folder / "test").glob(f"{name}-*.mp4"))
    return [str(path) for path in found[:2]]


def _file_name(uri: str) -> str:
    return storage.public_uri(uri).partition("?")[0].rpartition("/")[2]


if __name__ == "__main__":
    main()
