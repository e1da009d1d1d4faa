"""`carl_ray.data.keypoints`: joints follow crop and flip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from carl_ray.data.keypoints import keypoints_in_view
from carl_ray.data.make_views import make_views
from carl_ray.data.views import clip_at
from carl_ray.datasets.scenes import COCO_JOINTS
from tests.data.test_key_frames import STRONG, spec_of

FULL, NO = np.array([[0.0, 0, 1, 1]]), np.array([False])


def others(joints: np.ndarray) -> np.ndarray:
    """The joints with left and right exchanged, by their names."""
    swap = {"left": "right", "right": "left"}
    names = ["_".join(swap.get(part, part) for part in name.split("_")) for name in COCO_JOINTS]
    return joints[..., [COCO_JOINTS.index(name) for name in names], :]


def test_a_flip_exchanges_left_and_right() -> None:
    keypoints = np.random.default_rng(0).random((9, 17, 3))
    clip = clip_at(1, 2, 9, 4)
    box = np.array([[0.2, 0.1, 0.9, 0.8]])
    plain = keypoints_in_view(keypoints, [clip], box, NO)
    mirrored = keypoints_in_view(keypoints, [clip], box, np.array([True]))
    expected = others(plain) * [-1, 1, 1] + [1, 0, 0]
    np.testing.assert_allclose(mirrored, np.where(mirrored[..., 2:] > 0, expected, 0), atol=1e-6)
    np.testing.assert_array_equal(mirrored[..., 2], others(plain)[..., 2])
    assert 0.1 < plain[..., 2].mean() < 0.9
    # Twice is the view itself, of the mirrored video the plain view.
    mirror_video = others(keypoints) * [-1, 1, 1] + [1, 0, 0]
    opposite = np.array([[0.1, 0.1, 0.8, 0.8]])
    again = keypoints_in_view(mirror_video, [clip], opposite, np.array([True]))
    np.testing.assert_allclose(again, plain, atol=1e-6)


@pytest.mark.parametrize(
    "joint,valid",
    [
        ((0.5, 0.5, 0.5), True),
        ((0.5, 0.5, 0.49), False),
        ((-0.1, 1.1, 1), True),
        ((-0.11, 0.5, 1), False),
        ((0.5, 1.11, 1), False),
        ((np.nan, 0.5, 1), False),
        ((0.5, np.nan, 1), False),
        ((0.5, 0.5, np.nan), False),
        ((0.5, 0.5, np.inf), False),
        ((-np.inf, 0.5, 1), False),
    ],
)
def test_what_is_valid(joint, valid) -> None:
    keypoints = np.zeros((3, 17, 3))
    keypoints[:, 4] = joint
    found = keypoints_in_view(keypoints, [clip_at(1, 1, 3, 4)], FULL, NO)
    assert found.shape == (1, 4, 17, 3) and found.dtype == np.float32
    # The last two frames are padding.
    assert found[0, :, 4, 2].tolist() == [valid, valid, False, False]
    assert (found[0, :2, 4, :2] == (np.float32(joint[:2]) if valid else 0)).all()
    assert not found[0, 2:].any() and not np.delete(found, 4, axis=2).any()
    assert not keypoints_in_view(None, [clip_at(1, 1, 3, 4)], FULL, NO).any()


def test_joints_stay_on_what_they_mark(make_video, tmp_path: Path) -> None:
    """A white dot at each keypoint of a rendered frame is found there in the view."""
    import av

    rng = np.random.default_rng(1)
    keypoints = np.zeros((24, 17, 3))
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in range(24):
            x, y = rng.uniform(0.2, 0.8, 2)
            keypoints[frame, 9] = x, y, 1
            pixels = np.zeros((64, 96, 3), np.uint8)
            at = round(y * 64), round(x * 96)
            pixels[at[0] - 2 : at[0] + 2, at[1] - 2 : at[1] + 2] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    spec = spec_of(
        replace(STRONG, blur_probability=0.0, grayscale_probability=1.0, brightness=0.0, contrast=0.0)
    )
    checked, flips = 0, set()
    for epoch in range(12):
        clip = make_views(str(path), "v", 24, 1.0, epoch, spec, keypoints=keypoints)["clip"]
        joint = 10 if clip.flips[0] else 9
        flips.add(joint)
        for pixels, found in zip(clip.pixels[0], clip.keypoints[0, :, joint], strict=True):
            if found[2] and (found[:2] > 0.1).all() and (found[:2] < 0.9).all():
                light = pixels[..., 1].astype(float)
                rows, columns = np.indices(light.shape) + 0.5
                centre = np.array([(columns * light).sum(), (rows * light).sum()]) / light.sum() / 48
                np.testing.assert_allclose(centre, found[:2], atol=0.03)
                checked += 1
    assert checked > 20 and flips == {9, 10}
