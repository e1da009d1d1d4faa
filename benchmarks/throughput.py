"""How fast each part of a run is on this machine: one report, for docs/benchmarks.md and for yours.

    python -m benchmarks.throughput FOLDER
    python -m benchmarks.throughput
    python -m benchmarks.throughput FOLDER --parts data,stream
    python -m benchmarks.throughput --parts step --model.num_frames 80

FOLDER holds videos, as many and as long as you like; the more they are like yours, the better. At most 24 of them,
evenly taken, are measured (`decoders` reads them all). Without it three videos of 640 x 360 pixels are rendered and
measured; with 6 kB a frame they take longer to decode than much footage. The configuration is the preset `pouring`
with random weights (T = 240, 224 x 224 pixels, all augmentation, ResNet-50); every field is an option. Ratios within
one report mean more than its rates: those are as good as the machine is quiet.

    data        decoding, views and augmentation on one core, beside the decode-only limit and a PIL pipeline
    stream      Ray Data to one consumer, beside a torch DataLoader; the object store
    step        a training step, split
    embedding   whole videos through the encoder
    evaluation  tau and AP@K at PennAction's size, beside plain loops
    plan        the plan and the manifest at 10 million videos
    decoders    PyAV and decord on every file of the folder, each in a process of its own
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.parts.table import Table, table_text
from carl_ray import options
from carl_ray.config import Config
from carl_ray.errors import UserError, one_line_errors
from carl_ray.machine import machine_name
from carl_ray.presets import pouring

if TYPE_CHECKING:
    import torch

    from benchmarks.parts.videos import Video

PARTS = ("data", "stream", "step", "embedding", "evaluation", "plan", "decoders")
"""What can be measured; each is a module of `benchmarks.parts`."""
DEFAULT_PARTS = ("data", "stream", "step", "embedding", "evaluation")
"""What is, unless `--parts` says otherwise."""

_PLANNED_VIDEOS = 10_000_000
_MOST_VIDEOS = 24


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    with one_line_errors():
        folder, parts, config = _parse(sys.argv[1:] if arguments is None else arguments)
        # Imported late: help and mistakes on the command line answer at once.
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        size = config.augment.image_size
        print(
            f"{machine_name(use_gpu=True)}, PyAV {metadata.version('av')}; "
            f"T = {config.model.num_frames}, {size} x {size} pixels",
            flush=True,
        )
        videos = _Videos(folder)
        for part in parts:
            for table in _measured(part, videos, config, device):
                print(f"\n{table_text(table)}", flush=True)


def _parse(arguments: list[str]) -> tuple[Path | None, list[str], Config]:
    parser = options.OptionParser(
        prog="python -m benchmarks.throughput",
        usage="%(prog)s [FOLDER] [--parts PART,…] [--section.field VALUE …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="path of a local folder of videos")
    parser.add_argument(
        "--parts",
        default=",".join(DEFAULT_PARTS),
        metavar="PART,…",
        help=f"some of {', '.join(PARTS)} [{','.join(DEFAULT_PARTS)}]",
    )
    parsed, overrides = options.parse_with_config(parser, arguments)
    parts = [part.strip() for part in parsed.parts.split(",")]
    for part in parts:
        if part not in PARTS:
            raise UserError(
                f"--parts: unknown part {part!r}{options.nearest(part, PARTS)} (parts: {', '.join(PARTS)})"
            )
    config = options.overridden(pouring(), {"model.weights": "random"} | overrides)
    folder = None if parsed.folder is None else Path(parsed.folder)
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder}: no such folder on this machine")
    return folder, parts, config


class _Videos:
    """The videos of the command, looked for when a part asks for them."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @cached_property
    def paths(self) -> list[Path]:
        """All files that are named as videos."""
        from benchmarks.parts.videos import ensure_rendered
        from carl_ray.data.manifest import VIDEO_SUFFIXES

        if self._folder is None:
            return ensure_rendered(_progress)
        files = self._folder.rglob("*")
        found = sorted(path for path in files if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
        if not found:
            raise UserError(f"{self._folder}: no video in it")
        return found

    @cached_property
    def readable(self) -> list[Video]:
        """Those of an even sample that decode."""
        return self._first_readable(_MOST_VIDEOS)

    @cached_property
    def one(self) -> Video:
        """One that decodes."""
        return self._first_readable(1)[0]

    def _first_readable(self, most: int) -> list[Video]:
        from benchmarks.parts.videos import even_sample

        sample = even_sample(self.paths, _MOST_VIDEOS)
        if len(sample) < len(self.paths):
            _progress(f"{len(sample)} of the {len(self.paths)} videos, evenly taken")
        _progress("counting the frames of the videos" if most > 1 else "looking for a video that decodes")
        videos, notes = probe(sample, most)
        for note in notes:
            _progress(note)
        if not videos:
            raise UserError(f"{self._folder}: none of {len(sample)} videos can be read ({notes[0]})")
        return videos


def probe(paths: Sequence[Path], most: int) -> tuple[list[Video], list[str]]:
    """The first files that decode, at most so many; and a note for each before them that does not.

    Every frame is decoded and counted, in a process that may hang or crash without harm to this one. Not in
    `benchmarks.parts.videos`: that process belongs to a module that knows Ray.
    """
    from benchmarks.parts.videos import Video
    from carl_ray.data.probing import probe_guarded

    videos: list[Video] = []
    notes = []
    for path in paths:
        if len(videos) == most:
            break
        try:
            with path.open("rb") as file:
                found = probe_guarded(file, path.stat().st_size, verify=True)
        except OSError as error:
            found = {"reason": f"it cannot be read ({error.strerror or error})"}
        if "reason" in found:
            notes.append(f"left out {path.name}: {found['reason']}")
        else:
            kind = f"{found['width']}x{found['height']} {found['codec']}"
            videos.append(Video(path.absolute(), found["num_frames"], kind))
    return videos, notes


def _measured(part: str, videos: _Videos, config: Config, device: torch.device) -> Iterator[Table]:
    """The tables of a part. Its module is imported only now: `step` runs where there is no Ray."""
    match part:
        case "data":
            from benchmarks.parts import data

            yield from data.measure(videos.readable, config, _progress)
        case "stream":
            from benchmarks.parts import stream

            yield stream.measure(videos.readable, config, _progress)
        case "step":
            from benchmarks.parts import step

            yield step.measure(config, device, _progress)
        case "embedding":
            from benchmarks.parts import embedding

            # On a CPU it embeds a part of the first alone.
            measured = videos.readable if device.type == "cuda" else [videos.one]
            yield embedding.measure([video.path for video in measured], config, device, _progress)
        case "evaluation":
            from benchmarks.parts import evaluation

            yield evaluation.measure(_progress)
        case "plan":
            from benchmarks.parts import plan

            yield plan.measure(_PLANNED_VIDEOS, _progress)
        case "decoders":
            from benchmarks.parts import decoders

            yield decoders.measure(videos.paths, _progress)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
