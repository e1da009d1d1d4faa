"""Scenes: rendered videos in which action, motion and scene are independent of each other.

    python -m carl_ray.datasets.scenes FOLDER
    python -m carl_ray.datasets.scenes FOLDER --camera pan --tint

A figure performs one of three sequences of four key poses, forwards or backwards: six actions. Which sequence it is
(the pair, three classes) can be seen in single poses, which of the two actions only in the motion. It stands before
one of six textures of two colours, drawn independently of the action: a representation of the scene says nothing of
the action. Clothes, size, place, drift, mirroring, phase lengths and idle time differ from video to video. `camera`
"pan" lets the background drift as well. `tint` multiplies each colour channel of a video by a constant: a shortcut
between clips of a video that says nothing of what they show.

The videos are H.264 files of 64 frames with a key frame every 12 frames. `labels.parquet` has action, pair, scene,
tint and the exact keypoints of every frame; `carl_ray.build_manifest(folder, out, read_labels(folder))` joins them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, UInt8
from PIL import Image, ImageDraw

from carl_ray.data.keypoints import COCO_JOINTS
from carl_ray.data.randomness import sample_generator
from carl_ray.datasets import timeline
from carl_ray.datasets.figure import (
    VISIBLE_HEIGHT,
    Body,
    Brush,
    Pose,
    as_color,
    both_sides,
    interpolate,
    waves,
)
from carl_ray.datasets.rendered import (
    FRAMES_PER_SECOND,
    RenderConfig,
    Renderer,
    encode,
    rendering_command,
)

NUM_FRAMES = 64
KEY_FRAME_INTERVAL = 12

_CHOREOGRAPHED = {name: action.poses for name, action in timeline.ACTIONS.items()}
SEQUENCES: dict[str, tuple[Pose, ...]] = {
    "raise arms": (*_CHOREOGRAPHED["greet"][:3], both_sides(150, 100)),
    "squat and stretch": (
        *_CHOREOGRAPHED["jump"][:1],
        both_sides(38, -25, hip=58, knee=-100, bow=0.25),
        both_sides(60, -60, hip=30, knee=-30, bow=0.1),
        both_sides(140, 8, hip=38, knee=-2),
    ),
    "guard and kick": _CHOREOGRAPHED["kick"][:4],
}
"""Key poses of each pair of actions, which shows them forwards and backwards."""

ACTIONS = {
    f"{name}{way}": (pair, step)
    for pair, name in enumerate(SEQUENCES)
    for way, step in (("", 1), (" backwards", -1))
}
"""Pair of each action, and the step through its key poses."""

_TEXTURES = ("vertical stripes", "horizontal stripes", "diagonal stripes", "checks", "blobs", "disc")
# Two colours of each; jitter makes scenes overlap in colour.
_COLORS = np.array(
    [
        [[150, 90, 60], [60, 70, 110]],
        [[70, 130, 90], [130, 120, 70]],
        [[110, 70, 130], [80, 120, 130]],
        [[140, 130, 120], [70, 60, 60]],
        [[60, 100, 140], [120, 80, 70]],
        [[90, 110, 60], [140, 80, 110]],
    ]
)
_JITTER = 32
_SUPERSAMPLING = 3
_MARGIN = 0.25  # of the background beyond each edge of the picture, as part of it
_LARGEST_GAIN = 0.6  # of a tint, above or below 1

LABELS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),  # path inside the folder, "train/003.mp4"
        pa.field("label", pa.string(), nullable=False),  # the action
        pa.field("pair", pa.int32(), nullable=False),  # 0 to 2: its sequence of key poses
        pa.field("scene", pa.int32(), nullable=False),  # 0 to 5: the texture
        pa.field("tint", pa.list_(pa.float32()), nullable=False),  # gains of red, green and blue
        # frames x `COCO_JOINTS` x (x, y, score); x and y as parts of the picture
        pa.field("keypoints", pa.list_(pa.float16()), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ScenesConfig(RenderConfig):
    """Options of the rendered videos. The same config always gives the same frames and labels."""

    num_train: int = 240
    num_validation: int = 60
    num_test: int = 120
    size: int = 64
    camera: Literal["static", "pan"] = "static"
    """`pan`: the background drifts, as if the camera followed the figure."""
    tint: bool = False
    """Multiply each colour channel of a video by a constant from 0.4 to 1.6."""


@dataclass(frozen=True)
class Performance:
    """One video before it is encoded."""

    pair: int
    scene: int
    tint: Float64[np.ndarray, " 3"]
    """Gains of red, green and blue."""
    size: int
    poses: list[np.ndarray]
    """Of each frame, as `Pose.vector`."""
    body: Body
    pixels: float
    """Of a body height, on the supersampled canvas."""
    centres: Float64[np.ndarray, "frames 2"]
    """What the middle of the picture shows, in the figure's coordinates."""
    background: UInt8[np.ndarray, "canvas canvas 3"]
    """Larger than the picture by `_MARGIN` on each side."""
    shifts: Float64[np.ndarray, "frames 2"]
    """Of the background, as parts of the picture."""

    @property
    def keypoints(self) -> Float64[np.ndarray, "frames 17 3"]:
        """x, y and score of `COCO_JOINTS` in each frame. Left is where x is smaller; eyes and ears have the score 0."""
        canvas = self.size * _SUPERSAMPLING
        found = np.zeros((len(self.poses), len(COCO_JOINTS), 3))
        for frame, pose in enumerate(self.poses):
            joints = self.body.joints(pose)
            joints["nose"] = joints["head"]
            brush = self._brush(frame, Image.new("RGB", (1, 1)))
            for place, name in enumerate(COCO_JOINTS):
                if name in joints:
                    x, y = brush.place(joints[name])
                    found[frame, place] = x / canvas, y / canvas, 1
        return found

    def frames(self) -> Iterator[Image.Image]:
        """The pictures, RGB."""
        canvas = self.size * _SUPERSAMPLING
        for frame, pose in enumerate(self.poses):
            left, top = np.round((_MARGIN + self.shifts[frame]) * canvas).astype(int)
            image = Image.fromarray(self.background[top : top + canvas, left : left + canvas])
            self.body.draw(self._brush(frame, image), pose, has_bar=False, is_held=False)
            pixels = np.asarray(image.reduce(_SUPERSAMPLING)) * self.tint
            yield Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))

    def _brush(self, frame: int, image: Image.Image) -> Brush:
        return Brush(ImageDraw.Draw(image), self.pixels, self.centres[frame], self.size * _SUPERSAMPLING / 2)


def perform(config: ScenesConfig, video_id: str, action: str) -> Performance:
    """Draw at random what the video of an id shows, by `config.seed` and the id alone."""
    rng = sample_generator(config.seed, 0, video_id, 0)
    pair, step = ACTIONS[action]
    canvas = config.size * _SUPERSAMPLING
    key_poses = np.stack([pose.vector() for pose in list(SEQUENCES.values())[pair][::step]])
    joints = slice(0, 8)
    key_poses[:, joints] += rng.normal(0, 4, key_poses[:, joints].shape)
    if rng.random() < 0.5:
        key_poses = _mirrored(key_poses)
    sway = waves(rng, np.full(8, 2.5))
    poses = []
    for frame, progress in enumerate(_progress(rng)):
        pose = interpolate(key_poses, progress)
        pose[joints] += sway(frame / FRAMES_PER_SECOND)
        poses.append(pose)
    shirt, trousers = (as_color(rng.uniform(20, 255, 3)) for _ in range(2))
    body = replace(Body.sample(rng), shirt=shirt, trousers=trousers)
    pixels = canvas / VISIBLE_HEIGHT * rng.uniform(0.8, 1.05)
    place, drift = (rng.uniform([-x, -y], [x, y]) for x, y in ((0.2, 0.04), (0.3, 0.04)))
    passed = np.linspace(-0.5, 0.5, NUM_FRAMES)[:, None]
    middle = np.array([0.0, 0.1 - VISIBLE_HEIGHT / 2])
    scene = int(rng.integers(len(_TEXTURES)))
    horizon = 0.5 - middle[1] * pixels / canvas
    background = _background(scene, canvas, horizon, rng)
    # Drawn in any case, so that these options change nothing else.
    pan, tint = rng.uniform([-0.4, -0.05], [0.4, 0.05]), 1 + rng.uniform(-_LARGEST_GAIN, _LARGEST_GAIN, 3)
    return Performance(
        pair,
        scene,
        tint if config.tint else np.ones(3),
        config.size,
        poses,
        body,
        pixels,
        middle + place + passed * drift,
        background,
        passed * pan * (config.camera == "pan"),
    )


def _mirrored(poses: Float64[np.ndarray, "poses values"]) -> Float64[np.ndarray, "poses values"]:
    """The poses with left and right exchanged."""
    mirrored = poses[:, [2, 3, 0, 1, 6, 7, 4, 5, 8, 9, 10]]
    mirrored[:, 8] *= -1  # lean
    return mirrored


def _progress(rng: np.random.Generator) -> list[float]:
    """Place among the key poses, 0 to 1, of each frame: idle, three phases, idle."""
    before, after = rng.uniform(NUM_FRAMES / 30, NUM_FRAMES / 6, 2)
    phases = rng.dirichlet([6, 6, 6]) * (NUM_FRAMES - before - after)
    ends = before + np.cumsum([0, *phases])
    found: list[float] = np.interp(np.arange(NUM_FRAMES) + 0.5, ends, np.arange(4) / 3).tolist()
    return found


def _background(
    scene: int, canvas: int, horizon: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "canvas canvas 3"]:
    """A texture of two colours above the floor, with the margin; `horizon` is a part of the picture."""
    side = np.linspace(-_MARGIN, 1 + _MARGIN, round(canvas * (1 + 2 * _MARGIN)))
    x, y = np.meshgrid(side, side)
    frequency = rng.uniform(2.5, 4.5)
    shift = rng.uniform(0, 2 * np.pi, 2)

    def wave(along: np.ndarray, number: int) -> np.ndarray:
        return np.sin(2 * np.pi * frequency * along + shift[number])

    match _TEXTURES[scene]:
        case "vertical stripes":
            pattern = wave(x, 0)
        case "horizontal stripes":
            pattern = wave(y, 0)
        case "diagonal stripes":
            pattern = wave((x + y) / np.sqrt(2), 0)
        case "checks":
            pattern = wave(x, 0) * wave(y, 1)
        case "blobs":
            places = rng.uniform(-_MARGIN, 1 + _MARGIN, (24, 2))
            radius = 0.25 / frequency
            pattern = radius - np.sqrt(((np.stack([x, y], -1)[:, :, None] - places) ** 2).sum(-1)).min(-1)
        case _:
            centre, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.25, 0.4)
            pattern = radius - np.hypot(x - centre[0], y - centre[1])
    colors = _COLORS[scene] + rng.uniform(-_JITTER, _JITTER, (2, 3))
    floor = rng.uniform(40, 150, 3)
    shown = np.where(pattern[:, :, None] > 0, colors[0], colors[1])
    return np.where((y < horizon)[:, :, None], shown, floor).clip(0, 255).astype(np.uint8)


def video_ids(config: ScenesConfig) -> dict[str, str]:
    """Action of every video, by its id (the path inside the folder), which does not tell it."""
    names = list(ACTIONS)
    return {
        f"{split}/{i:03d}.mp4": names[i % len(names)]
        for split, count in config.num_videos.items()
        for i in range(count)
    }


def _render_video(folder: Path, config: ScenesConfig, video_id: str, action: str) -> dict[str, object]:
    """Render and encode one video; return its row of the labels."""
    performance = perform(config, video_id, action)
    interval = str(KEY_FRAME_INTERVAL)
    options = {"g": interval, "keyint_min": interval, "sc_threshold": "0"}
    encode(performance.frames(), folder / video_id, options)
    return {
        "video_id": video_id,
        "label": action,
        "pair": performance.pair,
        "scene": performance.scene,
        "tint": performance.tint.tolist(),
        "keypoints": performance.keypoints.astype(np.float16).ravel(),
    }


RENDERER = Renderer("scenes", 1, LABELS_SCHEMA, ScenesConfig(), video_ids, _render_video)
default_folder, is_rendered = RENDERER.default_folder, RENDERER.is_rendered
render, ensure_rendered, read_labels = RENDERER.render, RENDERER.ensure_rendered, RENDERER.read_labels


def main(arguments: list[str] | None = None) -> None:
    """Render into a folder; options are the fields of `ScenesConfig`."""
    rendering_command(RENDERER, "Renders videos whose action and scene are independent.", arguments)


if __name__ == "__main__":
    main()
