"""Choreographed videos with known phases: the default data set, rendered on the spot.

    python -m carl_ray.datasets.choreography FOLDER

An articulated figure performs one of four actions; an action is a fixed order of phases (sub-actions), each
leading from one key pose to the next. Body, colours, background, camera, tempo, phase lengths and the idle
time before and after the action differ from video to video, so neither the position in a video nor its
colours tell the phase. The videos are real H.264 files with B-frames; the truth (phase and progress of every
frame) lies beside them in `labels.parquet`.

Lengths of the scene are in body heights, x to the right and y down from the floor; angles are in degrees.
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
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from carl_ray import storage
from carl_ray.data.randomness import sample_generator
from carl_ray.errors import UserError, one_line_errors

FRAMES_PER_SECOND = 25

# Part of the marker. Raised with every change of frames or labels, so that older folders are rendered anew.
_RENDERER_VERSION = 1
_MARKER = "choreography.json"
_LABELS = "labels.parquet"
_SUPERSAMPLING = 2
_VISIBLE_HEIGHT = 1.45  # body heights from the lower to the upper edge: room for raised arms and a jump

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


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Angles of the joints. An arm or leg at 0 hangs down, at 90 points outwards, an arm at 180 points up.

    Elbows and knees turn the lower segment against the upper one, in the same direction.
    """

    left_shoulder: float = 10
    left_elbow: float = 5
    right_shoulder: float = 10
    right_elbow: float = 5
    left_hip: float = 6
    left_knee: float = -3
    right_hip: float = 6
    right_knee: float = -3
    lean: float = 0
    """Of the torso, to the right."""
    bow: float = 0
    """Part of the torso's length that bending forwards hides from the camera."""
    rise: float = 0
    """Height of the lower foot above the floor, in body heights."""

    def vector(self) -> NDArray[np.float64]:
        """The numbers in the order of the fields."""
        return np.array([getattr(self, field.name) for field in fields(self)], dtype=np.float64)


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


def _both(shoulder: float, elbow: float, hip: float = 6, knee: float = -3, **others: float) -> Pose:
    """A pose whose two sides mirror each other."""
    sides = {"shoulder": shoulder, "elbow": elbow, "hip": hip, "knee": knee}
    return Pose(
        **{f"{s}_{joint}": angle for s in ("left", "right") for joint, angle in sides.items()}, **others
    )


_STAND = Pose()
_GUARD = _both(50, 110, hip=14, knee=-8)
_CHAMBER = replace(_GUARD, right_hip=85, right_knee=-105, lean=-6)
_KICK = replace(
    _CHAMBER, left_shoulder=60, left_elbow=60, right_shoulder=25, right_hip=105, right_knee=-5, lean=-22
)

ACTIONS: dict[str, Action] = {
    "lift": Action(
        ("reach down", "pull", "rack", "press"),
        (
            _STAND,
            _both(22, -8, hip=62, knee=-95, bow=0.45),
            _both(22, -8, hip=12, knee=-6),
            _both(42, 118, hip=26, knee=-34),
            _both(155, 18, hip=14, knee=-8),
        ),
        has_bar=True,
    ),
    "jump": Action(
        ("sink", "leap", "land", "rise"),
        (
            _STAND,
            _both(38, -25, hip=58, knee=-100, bow=0.25),
            _both(140, 8, hip=42, knee=-2, rise=0.17),
            _both(88, 0, hip=50, knee=-85, bow=0.1),
            _both(58, -112, hip=16, knee=-8),
        ),
    ),
    "kick": Action(
        ("guard", "chamber", "strike", "recoil", "settle"),
        (_STAND, _GUARD, _CHAMBER, _KICK, replace(_CHAMBER, right_hip=70), _both(30, 125, hip=30, knee=-18)),
    ),
    "greet": Action(
        ("spread", "raise", "bow", "fold"),
        (
            _STAND,
            _both(92, 0),
            _both(168, 8, hip=3, knee=-1),
            _both(75, -20, hip=10, knee=-14, bow=0.62),
            _both(30, -125),
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


def render_frames(
    action: Action, timeline: Timeline, size: int, rng: np.random.Generator
) -> Iterator[Image.Image]:
    """The frames of one video, RGB, size x size: a random body, scene and camera perform the action."""
    key_poses = np.stack([pose.vector() for pose in action.poses])
    joints = slice(0, 8)
    key_poses[:, joints] += rng.normal(0, 4, key_poses[:, joints].shape)
    body, scene = _Body.sample(rng), _Scene.sample(rng)
    camera, sway = _Waves.sample(rng, np.array([0.03, 0.02, 0.03])), _Waves.sample(rng, np.full(8, 2.5))
    zoom, offset = rng.uniform(0.88, 1.05), rng.uniform([-0.07, -0.03], [0.07, 0.03])
    mirror = rng.random() < 0.5
    canvas = size * _SUPERSAMPLING
    backdrop = scene.backdrop(canvas)
    for frame, progress in enumerate(timeline.progress):
        seconds = frame / FRAMES_PER_SECOND
        pose = _interpolate(key_poses, float(progress))
        pose[joints] += sway.at(seconds)
        pan_x, pan_y, breath = camera.at(seconds)
        pixels = canvas / _VISIBLE_HEIGHT * zoom * (1 + breath)
        centre = np.array([offset[0] + pan_x, -_VISIBLE_HEIGHT / 2 + 0.1 + offset[1] + pan_y])
        image = backdrop.copy()
        brush = _Brush(ImageDraw.Draw(image), pixels, centre, canvas / 2)
        scene.draw(brush)
        bar_is_held = float(progress) * len(action.phases) >= 1
        body.draw(brush, pose, action.has_bar, bar_is_held)
        if mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield image.reduce(_SUPERSAMPLING)


def _interpolate(key_poses: NDArray[np.float64], progress: float) -> NDArray[np.float64]:
    """The pose at a progress from 0 to 1: cubics through the key poses, at rest in the first and the last."""
    last = len(key_poses) - 1
    left = min(int(progress * last), last - 1)
    u = progress * last - left
    tangents = np.zeros_like(key_poses)
    tangents[1:-1] = (key_poses[2:] - key_poses[:-2]) / 2
    blend = np.array([2 * u**3 - 3 * u**2 + 1, u**3 - 2 * u**2 + u, 3 * u**2 - 2 * u**3, u**3 - u**2])
    return blend @ np.stack([key_poses[left], tangents[left], key_poses[left + 1], tangents[left + 1]])


@dataclass(frozen=True)
class _Waves:
    """Slow wandering of several quantities. It comes and goes, so that it is no clock of the video."""

    amplitude: NDArray[np.float64]
    frequency: NDArray[np.float64]
    phase: NDArray[np.float64]

    @classmethod
    def sample(cls, rng: np.random.Generator, largest: NDArray[np.float64]) -> _Waves:
        amplitude = largest * rng.uniform(0.2, 1, largest.shape)
        return cls(amplitude, rng.uniform(0.3, 0.9, largest.shape), rng.uniform(0, 2 * np.pi, largest.shape))

    def at(self, seconds: float) -> NDArray[np.float64]:
        return self.amplitude * np.sin(2 * np.pi * self.frequency * seconds + self.phase)


@dataclass(frozen=True)
class _Brush:
    """Draws in body heights on a canvas of pixels."""

    draw: ImageDraw.ImageDraw
    pixels: float
    centre: NDArray[np.float64]
    middle: float

    def place(self, point: NDArray[np.float64]) -> tuple[float, float]:
        x, y = (point - self.centre) * self.pixels + self.middle
        return float(x), float(y)

    def limb(self, points: list[NDArray[np.float64]], thickness: float, color: tuple[int, int, int]) -> None:
        """A thick line through the points, with round joints and ends."""
        placed = [self.place(point) for point in points]
        self.draw.line(
            [xy for point in placed for xy in point], fill=color, width=round(thickness * self.pixels)
        )
        for point in points:
            self.disc(point, thickness / 2, color)

    def disc(self, centre: NDArray[np.float64], radius: float, color: tuple[int, int, int]) -> None:
        x, y = self.place(centre)
        r = radius * self.pixels
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def box(self, low: NDArray[np.float64], high: NDArray[np.float64], color: tuple[int, int, int]) -> None:
        self.draw.rectangle((*self.place(low), *self.place(high)), fill=color)


@dataclass(frozen=True)
class _Scene:
    """Wall with a gradient, floor, and a few dull shapes."""

    top: NDArray[np.float64]
    bottom: NDArray[np.float64]
    floor: tuple[int, int, int]
    shapes: tuple[tuple[bool, NDArray[np.float64], NDArray[np.float64], tuple[int, int, int]], ...]
    """(round, centre, half extent, colour) of each."""

    @classmethod
    def sample(cls, rng: np.random.Generator) -> _Scene:
        top, bottom = rng.uniform(15, 75, (2, 3))
        shapes = tuple(
            (
                bool(rng.random() < 0.5),
                np.array([rng.uniform(-0.8, 0.8), rng.uniform(-1.4, -0.1)]),
                rng.uniform(0.05, 0.25, 2),
                _color((top + bottom) / 2 + rng.uniform(-22, 22, 3)),
            )
            for _ in range(rng.integers(1, 5))
        )
        return cls(top, bottom, _color(rng.uniform(20, 85, 3)), shapes)

    def backdrop(self, canvas: int) -> Image.Image:
        height = np.linspace(0, 1, canvas)[:, None, None]
        wall = (1 - height) * self.top + height * self.bottom
        return Image.fromarray(np.broadcast_to(wall, (canvas, canvas, 3)).astype(np.uint8))

    def draw(self, brush: _Brush) -> None:
        for is_round, centre, extent, color in self.shapes:
            if is_round:
                brush.disc(centre, float(extent.mean()), color)
            else:
                brush.box(centre - extent, centre + extent, color)
        brush.box(np.array([-3.0, 0.0]), np.array([3.0, 3.0]), self.floor)


@dataclass(frozen=True)
class _Body:
    """Limb lengths and thickness in body heights, and colours."""

    arm: float
    leg: float
    torso: float
    head: float
    shoulders: float
    hips: float
    thickness: float
    skin: tuple[int, int, int]
    shirt: tuple[int, int, int]
    trousers: tuple[int, int, int]
    bar: tuple[int, int, int]

    @classmethod
    def sample(cls, rng: np.random.Generator) -> _Body:
        return cls(
            arm=rng.uniform(0.20, 0.235),
            leg=rng.uniform(0.225, 0.26),
            torso=rng.uniform(0.28, 0.34),
            head=rng.uniform(0.075, 0.095),
            shoulders=rng.uniform(0.10, 0.14),
            hips=rng.uniform(0.05, 0.075),
            thickness=rng.uniform(0.075, 0.105),
            skin=_color(np.array([235, 195, 160]) * rng.uniform(0.75, 1.05)),
            shirt=_bright(rng),
            trousers=_bright(rng),
            bar=_color(np.full(3, rng.uniform(170, 250))),
        )

    def draw(self, brush: _Brush, pose: NDArray[np.float64], has_bar: bool, bar_is_held: bool) -> None:
        """Draws the figure with its lower foot on the floor (or `rise` above it)."""
        left_shoulder, left_elbow, right_shoulder, right_elbow = pose[0:4]
        left_hip, left_knee, right_hip, right_knee = pose[4:8]
        lean, bow, rise = pose[8:11]
        legs = [
            self._chain(-1, left_hip, left_knee, self.leg),
            self._chain(1, right_hip, right_knee, self.leg),
        ]
        pelvis = np.array([0.0, -max(leg[-1][1] for leg in legs) - self.thickness / 2 - max(rise, 0.0)])
        spine = self.torso * (1 - bow) * np.array([np.sin(np.radians(lean)), -np.cos(np.radians(lean))])
        neck = pelvis + spine
        head = neck + np.array([0.3 * lean / 90 * self.head, -self.head * (1.25 - 1.3 * bow)])
        arms = [
            self._chain(-1, left_shoulder - lean, left_elbow, self.arm),
            self._chain(1, right_shoulder + lean, right_elbow, self.arm),
        ]
        for side, leg in zip((-1, 1), legs, strict=True):
            hip = pelvis + np.array([side * self.hips, 0.0])
            brush.limb([hip, *(hip + point for point in leg)], self.thickness, self.trousers)
        across = np.array([self.shoulders * 0.8, 0.0])
        brush.limb([pelvis, neck], self.shoulders * 1.6, self.shirt)
        brush.limb([neck - across, neck + across], self.thickness, self.shirt)
        brush.disc(head, self.head, self.skin)
        hands = []
        for side, arm in zip((-1, 1), arms, strict=True):
            shoulder = neck + np.array([side * self.shoulders, 0.02])
            points = [shoulder, *(shoulder + point for point in arm)]
            brush.limb(points[:2], self.thickness * 0.9, self.shirt)
            brush.limb(points[1:], self.thickness * 0.8, self.skin)
            hands.append(points[-1])
        if has_bar:
            grip = (hands[0] + hands[1]) / 2 if bar_is_held else np.array([0.0, -0.07])
            ends = [grip - np.array([0.45, 0.0]), grip + np.array([0.45, 0.0])]
            brush.limb(ends, 0.03, self.bar)
            for end in ends:
                brush.disc(end, 0.075, self.bar)

    @staticmethod
    def _chain(side: int, upper: float, bend: float, length: float) -> list[NDArray[np.float64]]:
        """Elbow and hand (or knee and foot) of a limb, from its root; side is -1 left, 1 right."""
        first, second = np.radians([upper, upper + bend])
        joint = length * np.array([side * np.sin(first), np.cos(first)])
        return [joint, joint + length * np.array([side * np.sin(second), np.cos(second)])]


def _color(values: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = np.clip(values, 0, 255).astype(int).tolist()
    return red, green, blue


def _bright(rng: np.random.Generator) -> tuple[int, int, int]:
    """A saturated colour that stands out from every wall."""
    channels = np.array([rng.uniform(200, 255), rng.uniform(90, 230), rng.uniform(40, 120)])
    return _color(rng.permutation(channels))


def encode(frames: Iterator[Image.Image], path: Path) -> None:
    """Writes H.264 in MP4: yuv420p, 25 frames a second, B-frames, a key frame at least every 24 frames."""
    first = next(frames)
    # Through memory: a full disk is then an OSError of Python's, with its reason.
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # A fixed quantizer: the macroblock tree of x264, part of its other rate controls, reads memory that nobody
        # has written: equal frames would not always give equal bytes.
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
    encode(render_frames(action, timeline, config.size, rng), folder / video_id)
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


def attach_labels(manifest: pa.Table, labels: pa.Table) -> pa.Table:
    """The manifest with the columns `label` and `frame_labels` filled in from a table of labels.

    Args:
        manifest: As `carl_ray.index` writes it, of the rendered folder.
        labels: Columns `video_id`, `label` and `frame_labels`; videos that the manifest lacks are ignored.

    Raises:
        ValueError: a video of the manifest has no labels, or as many frame labels as it has not frames.
    """
    by_id = {row["video_id"]: row for row in labels.select(["video_id", "label", "frame_labels"]).to_pylist()}
    found = []
    for video_id, num_frames in zip(
        manifest.column("video_id").to_pylist(), manifest.column("num_frames").to_pylist(), strict=True
    ):
        if video_id not in by_id:
            raise ValueError(
                f"{video_id}: it has no labels; the manifest must be of the rendered folder alone"
            )
        if len(by_id[video_id]["frame_labels"]) != num_frames:
            count = len(by_id[video_id]["frame_labels"])
            raise ValueError(
                f"{video_id}: expected {count} frames, as many as it has labels, got {num_frames}"
            )
        found.append(by_id[video_id])
    for name in ("label", "frame_labels"):
        field = manifest.schema.field(name)
        column = pa.array([row[name] for row in found], type=field.type)
        manifest = manifest.set_column(manifest.schema.get_field_index(name), field, column)
    return manifest


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
