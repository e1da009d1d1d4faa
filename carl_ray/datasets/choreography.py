"""Choreography: rendered videos with known phases, the default data set.

    python -m carl_ray.datasets.choreography FOLDER
    python -m carl_ray.datasets.choreography FOLDER --benchmark

An articulated figure performs one of four actions; an action is a few phases (sub-actions), each leading from
one key pose to the next. Body, colors, background, camera, tempo, phase lengths and the idle time before and
after the action differ from video to video: neither the position in a video nor its colors tell the phase.
The benchmark adds repetitions, phases in another order in each video, and a figure that is hard to see.
The videos are H.264 files with B-frames; the ground truth (phase, progress and repetition of every frame) is in
`labels.parquet`. docs/choreography.md defines it and says what the data set can and cannot show.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from carl_ray import storage
from carl_ray.data.randomness import sample_generator
from carl_ray.datasets.figure import Difficulty, perform
from carl_ray.datasets.timeline import ACTIONS, sample_timeline
from carl_ray.errors import UserError, one_line_errors
from carl_ray.options import OptionParser, print_next
from carl_ray.progress import ProgressLine

FRAMES_PER_SECOND = 25

# Increment with every change of frames or labels, so that older folders are rendered again.
_RENDERER_VERSION = 1
_MARKER = "choreography.json"
_LABELS = "labels.parquet"

LABELS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),  # path inside the folder, "train/lift-003.mp4"
        pa.field("label", pa.string(), nullable=False),  # name of the action
        pa.field("frame_labels", pa.list_(pa.int32()), nullable=False),  # phase of a frame; -1: none
        pa.field("progress", pa.list_(pa.float32()), nullable=False),  # place among the key poses, 0 to 1
        pa.field("repetition", pa.list_(pa.int32()), nullable=False),  # counted from 0; -1: outside of all
    ]
)


@dataclass(frozen=True, kw_only=True)
class ChoreographyConfig:
    """Options of the rendered videos. The same config always gives the same frames and labels."""

    num_train: int = 96
    """Videos in `train/`; the actions take turns."""
    num_validation: int = 24
    """Videos in `validation/`."""
    num_test: int = 32
    """Videos in `test/`."""
    size: int = 96
    """Height and width of a frame in pixels, even."""
    seed: int = 0
    """Every random draw comes from this and the video's id."""
    max_repetitions: int = 1
    """Maximum number of times that a video shows the action; each number from 1 on is equally likely."""
    varying_order: bool = False
    """The phases come in a random order in each video, not in that of `ACTIONS`."""
    difficulty: Difficulty = "easy"
    """How hard the figure is to see: `easy` or `hard`, see `carl_ray.datasets.figure.perform`."""

    def __post_init__(self) -> None:
        for name in ("num_train", "num_validation", "num_test"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 32 <= self.size <= 1024 or self.size % 2:
            raise ValueError(f"size must be an even number of pixels from 32 to 1024, got {self.size}")
        if not 1 <= self.max_repetitions <= 100:
            raise ValueError(f"max_repetitions must be from 1 to 100, got {self.max_repetitions}")
        if self.difficulty not in get_args(Difficulty):
            raise ValueError(f"difficulty must be easy or hard, got {self.difficulty!r}")


def benchmark() -> ChoreographyConfig:
    """Config for studies on a GPU: 600 videos of 128 pixels, up to 3 repetitions, varying order, `hard`.

    Use `dataclasses.replace` to switch one of the difficulties off.
    """
    return ChoreographyConfig(
        num_train=400,
        num_validation=80,
        num_test=120,
        size=128,
        max_repetitions=3,
        varying_order=True,
        difficulty="hard",
    )


def encode(frames: Iterator[Image.Image], path: Path) -> None:
    """Write H.264 in MP4: yuv420p, 25 frames a second, B-frames, a key frame at least every 24 frames."""
    # Lazy import of FFmpeg: most commands only need the folder's path.
    import av

    from carl_ray.datasets.h264 import encode_h264

    # A fixed quantizer: x264 has no macroblock tree then.
    options = {"preset": "veryfast", "qp": "20", "g": "24", "bf": "2"}
    content, _ = encode_h264(map(av.VideoFrame.from_image, frames), FRAMES_PER_SECOND, options)
    path.write_bytes(content)


def video_ids(config: ChoreographyConfig) -> dict[str, str]:
    """Action of every video, by its id (the path inside the folder)."""
    splits = {"train": config.num_train, "validation": config.num_validation, "test": config.num_test}
    names = list(ACTIONS)
    return {
        f"{split}/{names[i % len(names)]}-{i // len(names):03d}.mp4": names[i % len(names)]
        for split, count in splits.items()
        for i in range(count)
    }


def _render_video(folder: Path, config: ChoreographyConfig, video_id: str, name: str) -> dict[str, object]:
    """Render and encode one video; return its row of the labels."""
    action = ACTIONS[name]
    rng = sample_generator(config.seed, 0, video_id, 0)
    timeline = sample_timeline(
        len(action.phases), rng, max_repetitions=config.max_repetitions, varying_order=config.varying_order
    )
    frames = perform(
        action.poses,
        timeline.movement,
        has_bar=action.has_bar,
        size=config.size,
        frames_per_second=FRAMES_PER_SECOND,
        rng=rng,
        difficulty=config.difficulty,
    )
    encode(frames, folder / video_id)
    return {
        "video_id": video_id,
        "label": name,
        "frame_labels": timeline.frame_labels.tolist(),
        "progress": timeline.movement.progress.tolist(),
        "repetition": timeline.repetition.tolist(),
    }


def render(
    folder: Path,
    config: ChoreographyConfig,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Render all videos and their labels into a folder, atomically.

    One core draws and encodes some 2,000 frames of 96 pixels a second: seconds for the default set.

    Args:
        folder: Created; an earlier rendering is replaced.
        config: Which videos.
        on_video: Called with (videos done, videos in all) after each video.

    Raises:
        UserError: the folder holds other files than an earlier rendering.
        RunError: no permission, or no space left.
    """
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        if not is_empty and not (folder / _MARKER).is_file():
            raise UserError(
                f"{folder}: it holds other files than rendered videos; name a new or empty folder"
            )
        videos = video_ids(config)
        for split in ("train", "validation", "test"):
            (temporary / split).mkdir(parents=True)
        rows = []
        for video_id, action in videos.items():
            rows.append(_render_video(temporary, config, video_id, action))
            on_video(len(rows), len(videos))
        labels = pa.Table.from_pylist(rows, schema=LABELS_SCHEMA).sort_by("video_id")
        pq.write_table(labels, temporary / _LABELS, compression="zstd")
        (temporary / _MARKER).write_text(json.dumps(_marker(config), indent=2) + "\n")
        if is_rendered(folder, config):
            return  # another process was faster
        shutil.rmtree(folder, ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:
            if not is_rendered(folder, config):
                raise
    except OSError as error:
        raise storage.storage_error(error, str(folder), "render into") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _marker(config: ChoreographyConfig) -> dict[str, object]:
    return {"renderer_version": _RENDERER_VERSION, **asdict(config)}


def is_rendered(folder: Path, config: ChoreographyConfig) -> bool:
    """Whether a folder holds exactly the videos of a config, complete."""
    try:
        marker = json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        return False
    files = [folder / _LABELS, *(folder / video_id for video_id in video_ids(config))]
    return marker == _marker(config) and all(file.is_file() for file in files)


def default_folder(config: ChoreographyConfig) -> Path:
    """Default folder of the videos of a config: below `storage.home()`."""
    digest = hashlib.blake2b(json.dumps(_marker(config), sort_keys=True).encode(), digest_size=4).hexdigest()
    return storage.home() / "datasets" / f"choreography-{digest}"


def ensure_rendered(
    folder: Path | None = None,
    config: ChoreographyConfig = ChoreographyConfig(),
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Return the folder with the videos of a config; render them if they are not there.

    Layout: `train/*.mp4`, `validation/*.mp4`, `test/*.mp4`, and `labels.parquet` (`LABELS_SCHEMA`).

    Args:
        folder: None: `default_folder(config)`.
        config: Which videos.
        on_video: As for `render`.

    Raises:
        UserError, RunError: as `render`.
    """
    folder = default_folder(config) if folder is None else folder
    if not is_rendered(folder, config):
        render(folder, config, on_video)
    return folder


def read_labels(folder: Path) -> pa.Table:
    """Read the labels of a rendered folder: a table of `LABELS_SCHEMA` with `phase_names`, one row a video."""
    labels = pq.read_table(folder / _LABELS, schema=LABELS_SCHEMA)
    names = [list(ACTIONS[action].phases) for action in labels.column("label").to_pylist()]
    return labels.append_column("phase_names", pa.array(names, pa.list_(pa.string())))


def main(arguments: list[str] | None = None) -> None:
    """Render into a folder; options are the fields of `ChoreographyConfig`."""
    parser = OptionParser(
        prog="python -m carl_ray.datasets.choreography",
        description="Renders choreographed videos with known phases.",
    )
    parser.add_argument("folder", type=Path, nargs="?", help="default: in $CARL_RAY_HOME or ~/carl_ray")
    parser.add_argument(
        "--benchmark", action="store_true", help="the set for studies; other options change it as they say"
    )
    study = asdict(benchmark())
    kinds: dict[type, dict[str, Any]] = {
        bool: {"action": argparse.BooleanOptionalAction},
        str: {"choices": get_args(Difficulty)},
        int: {"type": int},
    }
    for name, value in asdict(ChoreographyConfig()).items():
        note = f"default {value}" + (f", in the benchmark {study[name]}" if value != study[name] else "")
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, default=argparse.SUPPRESS, help=note, **kinds[type(value)])
    with one_line_errors():
        options = vars(parser.parse_args(arguments))
        folder = options.pop("folder")
        start = benchmark() if options.pop("benchmark") else ChoreographyConfig()
        try:
            config = replace(start, **options)
        except ValueError as error:
            raise UserError(str(error)) from None
        folder = ensure_rendered(folder, config, ProgressLine("rendered"))
        print(f"{len(video_ids(config))} videos and their labels are in {folder}")
        print_next("index", str(folder), "--out", str(folder / "manifest.parquet"))


if __name__ == "__main__":
    main()
