"""Estimators of the keypoints of a person in every frame of a video, behind a protocol. No Ray here.

Of each frame the 17 joints of `COCO_JOINTS`, x and y as parts of the displayed frame and a score from 0 to 1; a frame
without a person is zeros.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from carl_ray.data.keypoints import COCO_JOINTS, LEAST_SCORE
from carl_ray.errors import UserError

_VERSION = "0.10.21"
INSTALL = f'pip install --no-deps mediapipe=={_VERSION} absl-py attrs flatbuffers "protobuf>=6.31,<7"'
"""Installs MediaPipe beside this package. Without --no-deps it wants NumPy 1 and JAX, which it does not use here."""


class PoseEstimator(Protocol):
    """An estimator of the keypoints of one person."""

    name: str
    """Recorded beside what it estimates."""
    version: str

    def track(
        self, frames: Iterable[UInt8[np.ndarray, "height width 3"]]
    ) -> Iterator[Float32[np.ndarray, "17 3"]]:
        """Keypoints in each of consecutive RGB frames of one video; zeros where there is no person."""
        ...


class BlazePose:
    """MediaPipe's BlazePose, the model that its wheel holds; it follows one person.

    Raises:
        UserError: no version of MediaPipe is installed that holds a model and runs beside the installed protobuf.
    """

    name = "mediapipe-blazepose-full"

    def __init__(self) -> None:
        found = {name: _version(name) for name in ("mediapipe", "protobuf")}
        self.version = found["mediapipe"] or ""
        shown = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
        # Later ones hold no model; its options are read by a function that protobuf 7 has dropped.
        if self.version != _VERSION or int((found["protobuf"] or "7").partition(".")[0]) >= 7:
            raise UserError(
                f"poses need MediaPipe {_VERSION}, whose wheel holds models (here: {shown}): install it with {INSTALL}"
            )
        try:
            importlib.import_module("mediapipe.python.solutions.pose")
        except ImportError as error:
            raise UserError(f"poses need all of MediaPipe ({error}): install it with {INSTALL}") from None

    def track(
        self, frames: Iterable[UInt8[np.ndarray, "height width 3"]]
    ) -> Iterator[Float32[np.ndarray, "17 3"]]:
        """As `PoseEstimator.track`."""
        # Here, since it takes a second and prints.
        from mediapipe.python.solutions.pose import Pose, PoseLandmark

        places = [PoseLandmark[joint.upper()].value for joint in COCO_JOINTS]
        # Its smoothing lags behind fast motion, and takes every frame for the next thirtieth of a second.
        with Pose(smooth_landmarks=False) as network:
            for frame in frames:
                person = network.process(frame).pose_landmarks
                if person is None:
                    yield np.zeros((len(COCO_JOINTS), 3), np.float32)
                else:
                    joints = [person.landmark[place] for place in places]
                    yield np.array([(joint.x, joint.y, joint.visibility) for joint in joints], np.float32)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def interpolated(
    keypoints: Float32[np.ndarray, "taken 17 3"], num_frames: int, every: int
) -> Float32[np.ndarray, "frames 17 3"]:
    """Keypoints of all frames of a video from those of every `every`-th.

    Between two frames a joint is interpolated linearly where its score reaches `LEAST_SCORE` in both, and else zeros,
    as after the last of them.
    """
    before, weight = np.divmod(np.arange(num_frames), every)
    after = np.minimum(before + (weight > 0), len(keypoints) - 1)
    share = (weight / every).astype(np.float32)[:, None, None]
    between = keypoints[before] * (1 - share) + keypoints[after] * share
    is_sure = keypoints[..., 2:] >= LEAST_SCORE
    known = (weight == 0)[:, None, None] | (
        (after > before)[:, None, None] & is_sure[before] & is_sure[after]
    )
    return np.where(known, between, np.float32(0))
