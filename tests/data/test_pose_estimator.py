"""`carl_ray.data.pose_estimator`: interpolation, what is said where MediaPipe is missing, BlazePose itself."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from carl_ray.data import pose_estimator
from carl_ray.data.keypoints import COCO_JOINTS
from carl_ray.data.pose_estimator import INSTALL, BlazePose, interpolated
from carl_ray.errors import UserError


def test_joints_are_interpolated_between_frames_where_they_are_sure() -> None:
    taken = np.zeros((3, 17, 3), np.float32)  # frames 0, 3 and 6 of eight
    taken[:, 0] = [(0.0, 0.4, 1.0), (0.3, 0.1, 0.7), (0.6, 0.1, 0.5)]
    taken[:, 1] = [(0.1, 0.1, 0.9), (0.2, 0.2, 0.49), (0.3, 0.3, 0.9)]
    found = interpolated(taken, 8, 3)
    assert found.shape == (8, 17, 3)
    np.testing.assert_allclose(found[:, 0, 0], [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0], atol=1e-6)
    np.testing.assert_allclose(found[:4, 0, 1:], [(0.4, 1), (0.3, 0.9), (0.2, 0.8), (0.1, 0.7)], atol=1e-6)
    # Estimated frames stay as they are, unsure ones too; nothing is made up beside them, nor after the last one.
    np.testing.assert_array_equal(found[[0, 3, 6], 1], taken[:, 1])
    assert not found[[1, 2, 4, 5, 7], 1].any() and not found[7].any() and not found[:, 2:].any()
    np.testing.assert_array_equal(interpolated(taken, 3, 1), taken)


@pytest.mark.parametrize(
    ("mediapipe", "protobuf"),
    [
        (None, "6.33.6"),
        ("1.2.3", "6.33.6"),
        ("0.10.33", "6.33.6"),
        ("0.10.21", "7.36.2"),
        ("0.10.21", "10.0.1"),
        ("0.10.21", None),
    ],
)
def test_what_is_missing_is_said_with_the_command(monkeypatch, mediapipe, protobuf) -> None:
    monkeypatch.setattr(pose_estimator, "_version", {"mediapipe": mediapipe, "protobuf": protobuf}.get)
    with pytest.raises(UserError) as caught:
        BlazePose()
    shown = f"here: mediapipe {mediapipe or 'missing'}, protobuf {protobuf or 'missing'}"
    assert str(caught.value).startswith("poses need MediaPipe 0.10.21, whose wheel holds models (here: ")
    assert shown in str(caught.value) and str(caught.value).endswith(f": install it with {INSTALL}")


def test_a_mediapipe_that_lacks_something_is_said_with_the_command(monkeypatch) -> None:
    monkeypatch.setattr(pose_estimator, "_version", {"mediapipe": "0.10.21", "protobuf": "6.33.6"}.get)
    monkeypatch.setitem(
        sys.modules, "mediapipe.python.solutions.pose", None
    )  # As if it could not be imported.
    with pytest.raises(UserError, match=r"poses need all of MediaPipe \(.*\): install it with pip install"):
        BlazePose()


def test_blaze_pose_finds_a_drawn_person_or_nobody() -> None:
    """A figure of capsules on grey: the head is up, left is at the right of who faces the camera."""
    pytest.importorskip("mediapipe", reason=INSTALL)
    import cv2

    frame = np.full((480, 360, 3), 190, np.uint8)
    skin, shirt, trousers = (224, 172, 140), (40, 70, 160), (40, 40, 50)
    for start, end, width, colour in (
        ((165, 290), (150, 440), 34, trousers), ((195, 290), (210, 440), 34, trousers),
        ((145, 165), (100, 270), 22, skin), ((215, 165), (260, 270), 22, skin),
        ((180, 180), (180, 280), 76, shirt), ((180, 120), (180, 150), 26, skin),
    ):  # fmt: skip
        cv2.line(frame, start, end, colour, width, cv2.LINE_AA)
    cv2.ellipse(frame, (180, 95), (28, 36), 0, 0, 360, skin, -1, cv2.LINE_AA)
    cv2.ellipse(frame, (180, 75), (29, 22), 0, 180, 360, (60, 40, 30), -1, cv2.LINE_AA)
    for x in (169, 191):
        cv2.circle(frame, (x, 92), 4, (30, 30, 30), -1, cv2.LINE_AA)
    cv2.line(frame, (170, 114), (190, 114), (150, 60, 60), 3, cv2.LINE_AA)
    estimator = BlazePose()
    (found,) = estimator.track([frame])
    joints = dict(zip(COCO_JOINTS, found, strict=True))
    expected = {"nose": (180, 100), "left_shoulder": (213, 165), "right_shoulder": (147, 165)}
    expected |= {
        "left_wrist": (258, 268),
        "right_wrist": (102, 268),
        "left_hip": (197, 290),
        "right_hip": (163, 290),
    }
    for name, place in expected.items():
        assert np.abs(joints[name][:2] - np.array(place) / (360, 480)).max() < 0.08, name
        assert joints[name][2] >= 0.5 or "wrist" in name  # It is not sure of hands without fingers.
    (nobody,) = estimator.track([np.full((480, 360, 3), 190, np.uint8)])
    assert nobody.shape == (17, 3) and not nobody.any()
