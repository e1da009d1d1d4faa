"""`carl_ray.evaluation.frozen`: what a folder of embeddings holds of an encoder's output."""

import numpy as np
import pytest

from carl_ray.evaluation.frames import unit_frames
from carl_ray.evaluation.frozen import TRAINED_WEIGHT, WIDTH, fit_axes, formed
from tests.embedded import embedded

RNG = np.random.default_rng(0)
OUTPUT = RNG.standard_normal((30, 6)).astype(np.float32) + 3
FROZEN = RNG.standard_normal((30, 4)).astype(np.float32)


def test_plain_and_centered():
    assert formed(OUTPUT, None, "plain", 3) is OUTPUT
    np.testing.assert_allclose(formed(OUTPUT, None, "centered", 3).mean(axis=0), 0, atol=1e-5)
    halves = [formed(OUTPUT, None, form, 3) for form in ("dynamic", "static")]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), OUTPUT)
    with pytest.raises(ValueError, match="frozen backbone"):
        formed(OUTPUT, None, "joined", 3)


@pytest.mark.parametrize("stride", [1, 3])
def test_joined_is_the_averaged_output_beside_the_frozen_embeddings(stride):
    made = formed(OUTPUT, FROZEN, "joined", stride)
    assert made.shape == (30, 10) and made.dtype == np.float32
    centered = OUTPUT - OUTPUT.mean(axis=0)
    for frame in (0, 14, 29):
        near = [centered[min(max(frame + k * stride, 0), 29)] for k in range(-2, 3)]
        mean = np.mean(near, axis=0)
        np.testing.assert_allclose(
            made[frame, :6], TRAINED_WEIGHT * mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6
        )
    np.testing.assert_allclose(made[:, 6:], unit_frames([FROZEN])[0], rtol=1e-5)


def test_axes_keep_what_varies_most():
    hidden = RNG.standard_normal((400, 3)) @ RNG.standard_normal((3, 200))
    frames = (hidden + 0.01 * RNG.standard_normal((400, 200))).astype(np.float32)
    axes = fit_axes(frames)
    assert axes.shape == (200, WIDTH)
    np.testing.assert_allclose(axes.T @ axes, np.eye(WIDTH), atol=1e-4)
    kept = frames @ axes[:, :3]
    assert (kept**2).sum() / (frames**2).sum() > 0.99
    np.testing.assert_array_equal(axes, fit_axes(frames))
    assert fit_axes(frames[:5]).shape == (200, 5)


def test_a_centered_video_has_every_kind_of_embeddings_centered():
    made = embedded("a", OUTPUT, untrained=OUTPUT * 2).centered()
    np.testing.assert_allclose(made.embeddings.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(made.untrained, 2 * made.embeddings, atol=1e-4)
    assert made.frozen is None and made.video_id == "a"
