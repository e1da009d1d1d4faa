"""Choreographed videos with known phases: the default data set, rendered on the spot.

    python -m carl_ray.datasets.choreography FOLDER

An articulated figure performs one of four actions; an action is a fixed order of phases (sub-actions), each
leading from one key pose to the next. Body, colours, background, camera, tempo, phase lengths and the idle
time before and after the action differ from video to video, so neither the position in a video nor its
colours tell the phase. The videos are real H.264 files with B-frames; the truth (phase and progress of every
frame) lies beside them in `labels.parquet`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from carl_ray import storage
from carl_ray.data.randomness import sample_generator
from carl_ray.datasets.figure import Pose, both_sides, perform
from carl_ray.errors import UserError, one_line_errors

FRAMES_PER_SECOND = 25

# Part of the marker. Raised with every change of frames or labels, so that older folders are rendered anew.
_RENDERER_VERSION = 1
_MARKER = "choreography.json"
_LABELS = "labels.parquet"

LABELS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),  # path inside the folder, "train/lift-003.mp4"
        pa.field("label", pa.string(), nullable=False),  # name of the action
        pa.field("frame_labels", pa.list_(pa.int32()), nullable=False),  # phase of a frame; -1 while idle
        pa.field("progress", pa.list_(pa.float32()), nullable=False),  # 0 before the action, 1 after it
    ]
)


@dataclass(frozen=True, kw_only=True)
class ChoreographyConfig:
    """Which videos are rendered. The same config always gives the same frames and labels."""

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

    def __post_init__(self) -> None:
        for name in ("num_train", "num_validation", "num_test"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 32 <= self.size <= 1024 or self.size % 2:
            raise ValueError(f"size must be an even number of pixels from 32 to 1024, got {self.size}")


@dataclass(frozen=True)
class Action:
    """Key poses and the phases between them: phase k leads from key pose k to key pose k + 1."""

    phases: tuple[str, ...]
    poses: tuple[Pose, ...]
    has_bar: bool = False
    """A bar lies on the floor until the first phase is over, and is in the hands from then on."""

    def __post_init__(self) -> None:
        if len(self.poses) != len(self.phases) + 1:
            raise ValueError(f"{len(self.phases)} phases need one key pose more, got {len(self.poses)}")


_STAND = Pose()
_GUARD = both_sides(50, 110, hip=14, knee=-8)
_CHAMBER = replace(_GUARD, right_hip=85, right_knee=-105, lean=-6)
_KICK = replace(
    _CHAMBER, left_shoulder=60, left_elbow=60, right_shoulder=25, right_hip=105, right_knee=-5, lean=-22
)

ACTIONS: dict[str, Action] = {
    "lift": Action(
        ("reach down", "pull", "rack", "press"),
        (
            _STAND,
            both_sides(22, -8, hip=62, knee=-95, bow=0.45),
            both_sides(22, -8, hip=12, knee=-6),
            both_sides(42, 118, hip=26, knee=-34),
            both_sides(155, 18, hip=14, knee=-8),
        ),
        has_bar=True,
    ),
    "jump": Action(
        ("sink", "leap", "land", "rise"),
        (
            _STAND,
            both_sides(38, -25, hip=58, knee=-100, bow=0.25),
            both_sides(140, 8, hip=42, knee=-2, rise=0.17),
            both_sides(88, 0, hip=50, knee=-85, bow=0.1),
            both_sides(58, -112, hip=16, knee=-8),
        ),
    ),
    "kick": Action(
        ("guard", "chamber", "strike", "recoil", "settle"),
        (
            _STAND,
            _GUARD,
            _CHAMBER,
            _KICK,
            replace(_CHAMBER, right_hip=70),
            both_sides(30, 125, hip=30, knee=-18),
        ),
    ),
    "greet": Action(
        ("spread", "raise", "bow", "fold"),
        (
            _STAND,
            both_sides(92, 0),
            both_sides(168, 8, hip=3, knee=-1),
            both_sides(75, -20, hip=10, knee=-14, bow=0.62),
            both_sides(30, -125),
        ),
    ),
}


@dataclass(frozen=True)
class Timeline:
    """What happens in each frame of a video."""

    frame_labels: NDArray[np.int32]
    """Phase, -1 in the idle frames before and after the action."""
    progress: NDArray[np.float64]
    """Share of the action that is done, (phase + part of the phase) / number of phases: tells the pose."""


def sample_timeline(num_phases: int, rng: np.random.Generator) -> Timeline:
    """A random timing of one performance: 60 to 160 frames.

    Idle frames are many and uneven, phases differ in length, and the speed varies within each phase: the
    position of a frame in the video says little about its phase.
    """
    action_frames = rng.integers(48, 89)
    idle_before, idle_after = rng.integers(0, 37, size=2)
    idle_after += max(0, 60 - action_frames - idle_before - idle_after)
    shares = np.exp(rng.uniform(-0.7, 0.7, num_phases))
    ends = np.round(np.cumsum(shares) / shares.sum() * action_frames).astype(int)
    labels, progress = [np.full(idle_before, -1)], [np.zeros(idle_before)]
    for phase, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        part = (np.arange(end - start) + 0.5) / (end - start)
        # Speed 1 + a cos(2 pi u) + b cos(4 pi u) stays positive because |a| + |b| < 1.
        a, b = rng.uniform(-0.55, 0.55), rng.uniform(-0.35, 0.35)
        part = part + a * np.sin(2 * np.pi * part) / (2 * np.pi) + b * np.sin(4 * np.pi * part) / (4 * np.pi)
        labels.append(np.full(end - start, phase))
        progress.append((phase + part) / num_phases)
    labels.append(np.full(idle_after, -1))
    progress.append(np.ones(idle_after))
    return Timeline(np.concatenate(labels).astype(np.int32), np.concatenate(progress))


def encode(frames: Iterator[Image.Image], path: Path) -> None:
    """Writes H.264 in MP4: yuv420p, 25 frames a second, B-frames, a key frame at least every 24 frames."""
    first = next(frames)
    # Through memory: a full disk is then an OSError of Python's, with its reason.
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # A fixed quantizer: the macroblock tree of x264, part of its other rate controls, reads memory that
        # nobody has written, so that equal frames would not always give equal bytes.
        options = {"preset": "veryfast", "qp": "20", "g": "24", "bf": "2"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.width, stream.height = first.size
        stream.pix_fmt = "yuv420p"
        # The bytes depend on the number of threads, which would otherwise follow the machine.
        stream.codec_context.thread_count = 1
        for image in (first, *frames):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    path.write_bytes(buffer.getvalue())


def video_ids(config: ChoreographyConfig) -> dict[str, str]:
    """Action of every video, by its id (the path inside the folder)."""
    splits = {"train": config.num_train, "validation": config.num_validation, "test": config.num_test}
    names = list(ACTIONS)
    return {
        f"{split}/{names[i % len(names)]}-{i // len(names):03d}.mp4": names[i % len(names)]
        for split, count in splits.items()
        for i in range(count)
    }


def _render_video(folder: Path, video_id: str, name: str, config: ChoreographyConfig) -> dict[str, object]:
    """Renders and encodes one video; its row of the labels."""
    action = ACTIONS[name]
    rng = sample_generator(config.seed, 0, video_id, 0)
    timeline = sample_timeline(len(action.phases), rng)
    frames = perform(
        action.poses,
        timeline.progress,
        has_bar=action.has_bar,
        size=config.size,
        frames_per_second=FRAMES_PER_SECOND,
        rng=rng,
    )
    encode(frames, folder / video_id)
    labels, progress = timeline.frame_labels.tolist(), timeline.progress.tolist()
    return {"video_id": video_id, "label": name, "frame_labels": labels, "progress": progress}


def render(
    folder: Path, config: ChoreographyConfig, on_video: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Renders all videos and their labels into a folder, which appears whole or not at all.

    One core draws and encodes about 1,500 frames of 96 pixels a second: seconds for the default set.

    Args:
        folder: Made, or replaced where an earlier rendering lies there.
        config: Which videos.
        on_video: Called with (videos done, videos in all) after each video.

    Raises:
        UserError: the folder holds something that was not rendered here.
        RunError: no permission or no room.
    """
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        _refuse_foreign(folder)
        videos = video_ids(config)
        for split in ("train", "validation", "test"):
            (temporary / split).mkdir(parents=True)
        rows = []
        for video_id, name in videos.items():
            rows.append(_render_video(temporary, video_id, name, config))
            on_video(len(rows), len(videos))
        rows.sort(key=lambda row: str(row["video_id"]))
        pq.write_table(
            pa.Table.from_pylist(rows, schema=LABELS_SCHEMA), temporary / _LABELS, compression="zstd"
        )
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


def _refuse_foreign(folder: Path) -> None:
    """Raises `UserError` rather than let a folder be replaced that was not rendered here."""
    if (
        folder.exists()
        and not (folder / _MARKER).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise UserError(f"{folder}: it holds something else than rendered videos; name a new or empty folder")


def default_folder(config: ChoreographyConfig) -> Path:
    """Where the videos of a config lie when no folder is named: under `storage.home()`."""
    digest = hashlib.blake2b(json.dumps(_marker(config), sort_keys=True).encode(), digest_size=4).hexdigest()
    return storage.home() / "datasets" / f"choreography-{digest}"


def ensure_rendered(
    folder: Path | None = None,
    config: ChoreographyConfig = ChoreographyConfig(),
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """The folder with the videos of a config, rendered first where they are not there yet.

    Layout: `train/*.mp4`, `validation/*.mp4`, `test/*.mp4`, and `labels.parquet` (`LABELS_SCHEMA`).

    Args:
        folder: None stands for `default_folder(config)`.
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
    """The labels of a rendered folder, columns of `LABELS_SCHEMA`, one row a video."""
    return pq.read_table(folder / _LABELS, schema=LABELS_SCHEMA)


def print_progress(done: int, total: int) -> None:
    """Prints how many videos are rendered, ten times in all."""
    if done * 10 // total != (done - 1) * 10 // total:
        print(f"rendered {done} of {total} videos", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Renders into a folder; options are the fields of `ChoreographyConfig`."""
    parser = argparse.ArgumentParser(
        prog="python -m carl_ray.datasets.choreography",
        description="Renders choreographed videos with known phases.",
    )
    parser.add_argument("folder", type=Path, nargs="?", help="default: in $CARL_RAY_HOME or ~/carl_ray")
    defaults = ChoreographyConfig()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    options = vars(parser.parse_args(arguments))
    folder = options.pop("folder")
    with one_line_errors():
        try:
            config = ChoreographyConfig(**options)
        except ValueError as error:
            raise UserError(str(error)) from None
        folder = ensure_rendered(folder, config, print_progress)
        print(f"{len(video_ids(config))} videos and their labels are in {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
