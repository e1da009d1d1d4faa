"""Draw an articulated figure in front of a wall, frame by frame through key poses.

Lengths of the scene are in body heights, x to the right and y down from the floor; angles are in degrees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Difficulty = Literal["easy", "hard"]
"""How hard the figure is to see, as `perform` describes."""

_SUPERSAMPLING = 2
VISIBLE_HEIGHT = 1.45
"""Body heights from the lower to the upper edge: room for raised arms and a jump."""

_PARTS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")


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
        """The values in the order of the fields."""
        return np.array([getattr(self, field.name) for field in fields(self)], dtype=np.float64)


def both_sides(shoulder: float, elbow: float, hip: float = 6, knee: float = -3, **others: float) -> Pose:
    """A pose whose two sides mirror each other."""
    sides = {"shoulder": shoulder, "elbow": elbow, "hip": hip, "knee": knee}
    return Pose(
        **{f"{s}_{joint}": angle for s in ("left", "right") for joint, angle in sides.items()}, **others
    )


def perform(
    poses: Sequence[Pose],
    progress: Float64[np.ndarray, " frames"],
    *,
    has_bar: bool,
    size: int,
    frames_per_second: int,
    rng: np.random.Generator,
    difficulty: Difficulty = "easy",
) -> Iterator[Image.Image]:
    """Draw the frames of one performance, RGB, size x size, with a random body, scene and camera.

    An easy figure is large, thick-limbed and bright, before a dark wall with a few dull shapes. A hard one is
    about two thirds as tall, has thin limbs and clothes of any color, and stands somewhere in the picture,
    before a wall of any brightness and 10 to 18 moving discs and sticks; the camera moves four times as far.
    The performance is the same in both.

    Args:
        poses: Key poses, at even distances of progress.
        progress: Of each frame, from 0 (first key pose) to 1 (last one).
        has_bar: A bar lies on the floor until the second key pose, and is in the hands from then on.
        size: Pixels.
        frames_per_second: Speed of camera and sway.
        rng: Source of all draws.
        difficulty: How hard the figure is to see.
    """
    key_poses = np.stack([pose.vector() for pose in poses])
    joints = slice(0, 8)
    key_poses[:, joints] += rng.normal(0, 4, key_poses[:, joints].shape)
    body, scene = Body.sample(rng), _Scene.sample(rng)
    camera, sway, camera_scale = waves(rng, np.array([0.03, 0.02, 0.03])), waves(rng, np.full(8, 2.5)), 1
    zoom, offset = rng.uniform(0.88, 1.05), rng.uniform([-0.07, -0.03], [0.07, 0.03])
    mirror = rng.random() < 0.5
    if difficulty == "hard":
        # Drawn last, so that both difficulties show the same body performing in the same way.
        body, scene, camera_scale = body.hard(rng), scene.hard(rng), 4
        zoom, offset = zoom * rng.uniform(0.6, 0.75), rng.uniform([-0.35, -0.15], [0.35, 0.15])
    canvas = size * _SUPERSAMPLING
    backdrop = scene.backdrop(canvas)
    for frame, place in enumerate(progress.tolist()):
        seconds = frame / frames_per_second
        pose, is_held = interpolate(key_poses, place), place * (len(poses) - 1) >= 1
        pose[joints] += sway(seconds)
        pan_x, pan_y, breath = camera_scale * camera(seconds)
        pixels = float(canvas / VISIBLE_HEIGHT * zoom * (1 + breath))
        centre = np.array([offset[0] + pan_x, -VISIBLE_HEIGHT / 2 + 0.1 + offset[1] + pan_y])
        image = backdrop.copy()
        brush = Brush(ImageDraw.Draw(image), pixels, centre, canvas / 2)
        scene.draw(brush, seconds)
        body.draw(brush, pose, has_bar, is_held)
        if mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield image.reduce(_SUPERSAMPLING)


def interpolate(key_poses: NDArray[np.float64], progress: float) -> NDArray[np.float64]:
    """Interpolate the pose at a progress from 0 to 1: cubics, at rest in the first and last key pose."""
    last = len(key_poses) - 1
    left = min(int(progress * last), last - 1)
    u = progress * last - left
    tangents = np.zeros_like(key_poses)
    tangents[1:-1] = (key_poses[2:] - key_poses[:-2]) / 2
    blend = np.array([2 * u**3 - 3 * u**2 + 1, u**3 - 2 * u**2 + u, 3 * u**2 - 2 * u**3, u**3 - u**2])
    return blend @ np.stack([key_poses[left], tangents[left], key_poses[left + 1], tangents[left + 1]])


def waves(rng: np.random.Generator, largest: NDArray[np.float64]) -> Callable[[float], NDArray[np.float64]]:
    """Slow oscillation of several quantities by time in seconds; it is no clock of the video."""
    amplitude = largest * rng.uniform(0.2, 1, largest.shape)
    frequency, phase = rng.uniform(0.3, 0.9, largest.shape), rng.uniform(0, 2 * np.pi, largest.shape)
    return lambda seconds: amplitude * np.sin(2 * np.pi * frequency * seconds + phase)


@dataclass(frozen=True)
class Brush:
    """Draw on a canvas of pixels in units of body heights."""

    draw: ImageDraw.ImageDraw
    pixels: float
    centre: NDArray[np.float64]
    middle: float

    def place(self, point: NDArray[np.float64]) -> tuple[float, float]:
        """Pixels of a point."""
        # Scalars: arithmetic on arrays of two takes ten times as long, and this runs 40 times a frame.
        (x, y), (centre_x, centre_y) = point.tolist(), self.centre.tolist()
        return (x - centre_x) * self.pixels + self.middle, (y - centre_y) * self.pixels + self.middle

    def limb(self, points: list[NDArray[np.float64]], thickness: float, color: tuple[int, int, int]) -> None:
        """A thick line through the points, with round joints and ends."""
        placed = [self.place(point) for point in points]
        self.draw.line(
            [xy for point in placed for xy in point], fill=color, width=round(thickness * self.pixels)
        )
        for point in points:
            self.disc(point, thickness / 2, color)

    def disc(self, centre: NDArray[np.float64], radius: float, color: tuple[int, int, int]) -> None:
        """A filled circle."""
        x, y = self.place(centre)
        r = radius * self.pixels
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def box(self, low: NDArray[np.float64], high: NDArray[np.float64], color: tuple[int, int, int]) -> None:
        """A filled rectangle."""
        self.draw.rectangle((*self.place(low), *self.place(high)), fill=color)


def _clutter(rng: np.random.Generator) -> Callable[[Brush, float], None]:
    """A function that draws a disc, or a stick like a limb, that moves and turns, at a time in seconds."""
    is_round = rng.random() < 0.3
    middle = rng.uniform([-1.3, -1.6], [1.3, 0.3])
    length, thickness = rng.uniform(0.2, 0.6), rng.uniform(0.04, 0.16)
    angle, color = rng.uniform(0, 180), as_color(rng.uniform(20, 255, 3))
    drift = waves(rng, np.array([0.25, 0.2, 50.0]))  # x and y in body heights, and degrees

    def draw(brush: Brush, seconds: float) -> None:
        x, y, turn = drift(seconds)
        centre = middle + np.array([x, y])
        if is_round:
            brush.disc(centre, thickness, color)
            return
        direction = np.radians(angle + turn)
        half = length / 2 * np.array([np.cos(direction), np.sin(direction)])
        brush.limb([centre - half, centre + half], thickness, color)

    return draw


@dataclass(frozen=True)
class _Scene:
    """Wall with a gradient, floor, and a few dull shapes."""

    top: NDArray[np.float64]
    bottom: NDArray[np.float64]
    floor: tuple[int, int, int]
    shapes: tuple[tuple[bool, NDArray[np.float64], NDArray[np.float64], tuple[int, int, int]], ...]
    """(round, centre, half extent, color) of each."""
    clutter: tuple[Callable[[Brush, float], None], ...] = ()

    @classmethod
    def sample(cls, rng: np.random.Generator) -> _Scene:
        top, bottom = rng.uniform(15, 75, (2, 3))
        shapes = tuple(
            (
                bool(rng.random() < 0.5),
                np.array([rng.uniform(-0.8, 0.8), rng.uniform(-1.4, -0.1)]),
                rng.uniform(0.05, 0.25, 2),
                as_color((top + bottom) / 2 + rng.uniform(-22, 22, 3)),
            )
            for _ in range(rng.integers(1, 5))
        )
        return cls(top, bottom, as_color(rng.uniform(20, 85, 3)), shapes)

    def hard(self, rng: np.random.Generator) -> _Scene:
        """This scene with a wall and a floor of any brightness, and 10 to 18 moving objects."""
        top, bottom = rng.uniform(15, 215, (2, 3))
        clutter = tuple(_clutter(rng) for _ in range(rng.integers(10, 19)))
        return replace(self, top=top, bottom=bottom, floor=as_color(rng.uniform(20, 215, 3)), clutter=clutter)

    def backdrop(self, canvas: int) -> Image.Image:
        height = np.linspace(0, 1, canvas)[:, None, None]
        wall = (1 - height) * self.top + height * self.bottom
        return Image.fromarray(np.broadcast_to(wall, (canvas, canvas, 3)).astype(np.uint8))

    def draw(self, brush: Brush, seconds: float) -> None:
        for is_round, centre, extent, color in self.shapes:
            if is_round:
                brush.disc(centre, float(extent.mean()), color)
            else:
                brush.box(centre - extent, centre + extent, color)
        brush.box(np.array([-3.0, 0.0]), np.array([3.0, 3.0]), self.floor)
        for draw_thing in self.clutter:
            draw_thing(brush, seconds)


@dataclass(frozen=True)
class Body:
    """Limb lengths and thickness in body heights, and colors."""

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
    def sample(cls, rng: np.random.Generator) -> Body:
        """A random body in bright clothes."""
        return cls(
            arm=rng.uniform(0.20, 0.235),
            leg=rng.uniform(0.225, 0.26),
            torso=rng.uniform(0.28, 0.34),
            head=rng.uniform(0.075, 0.095),
            shoulders=rng.uniform(0.10, 0.14),
            hips=rng.uniform(0.05, 0.075),
            thickness=rng.uniform(0.075, 0.105),
            skin=as_color(np.array([235, 195, 160]) * rng.uniform(0.75, 1.05)),
            shirt=_bright(rng),
            trousers=_bright(rng),
            bar=as_color(np.full(3, rng.uniform(170, 250))),
        )

    def hard(self, rng: np.random.Generator) -> Body:
        """This body with thin limbs and clothes of any color."""
        shirt, trousers = (as_color(rng.uniform(20, 255, 3)) for _ in range(2))
        return replace(self, thickness=0.6 * self.thickness, shirt=shirt, trousers=trousers)

    def joints(self, pose: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Places of the joints of a figure with its lower foot on the floor, or `rise` above it, by name.

        Left is where x is smaller.
        """
        (lean, bow, rise), sides = pose[8:11], (-1, 1)
        legs = [
            self._chain(side, hip, knee, self.leg)
            for side, (hip, knee) in zip(sides, pose[4:8].reshape(2, 2), strict=True)
        ]
        pelvis = np.array([0.0, -max(leg[-1][1] for leg in legs) - self.thickness / 2 - max(rise, 0.0)])
        spine = self.torso * (1 - bow) * np.array([np.sin(np.radians(lean)), -np.cos(np.radians(lean))])
        neck = pelvis + spine
        head = neck + np.array([0.3 * lean / 90 * self.head, -self.head * (1.25 - 1.3 * bow)])
        arms = [
            self._chain(side, shoulder + side * lean, elbow, self.arm)
            for side, (shoulder, elbow) in zip(sides, pose[0:4].reshape(2, 2), strict=True)
        ]
        found = {"pelvis": pelvis, "neck": neck, "head": head}
        for side, name, arm, leg in zip(sides, ("left", "right"), arms, legs, strict=True):
            shoulder = neck + np.array([side * self.shoulders, 0.02])
            hip = pelvis + np.array([side * self.hips, 0.0])
            places = [shoulder, *(shoulder + point for point in arm), hip, *(hip + point for point in leg)]
            found |= {f"{name}_{part}": place for part, place in zip(_PARTS, places, strict=True)}
        return found

    def draw(self, brush: Brush, pose: NDArray[np.float64], has_bar: bool, is_held: bool) -> None:
        """Draw the figure in a pose, and the bar."""
        joints, sides = self.joints(pose), ("left", "right")
        for side in sides:
            brush.limb([joints[f"{side}_{part}"] for part in _PARTS[3:]], self.thickness, self.trousers)
        neck, across = joints["neck"], np.array([self.shoulders * 0.8, 0.0])
        brush.limb([joints["pelvis"], neck], self.shoulders * 1.6, self.shirt)
        brush.limb([neck - across, neck + across], self.thickness, self.shirt)
        brush.disc(joints["head"], self.head, self.skin)
        for side in sides:
            points = [joints[f"{side}_{part}"] for part in _PARTS[:3]]
            brush.limb(points[:2], self.thickness * 0.9, self.shirt)
            brush.limb(points[1:], self.thickness * 0.8, self.skin)
        if has_bar:
            hands = joints["left_wrist"] + joints["right_wrist"]
            grip = hands / 2 if is_held else np.array([0.0, -0.07])
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


def as_color(values: NDArray[np.float64]) -> tuple[int, int, int]:
    """Red, green and blue, from 0 to 255."""
    red, green, blue = np.clip(values, 0, 255).astype(int).tolist()
    return red, green, blue


def _bright(rng: np.random.Generator) -> tuple[int, int, int]:
    """A saturated color with contrast to every wall."""
    channels = np.array([rng.uniform(200, 255), rng.uniform(90, 230), rng.uniform(40, 120)])
    return as_color(rng.permutation(channels))
