from dataclasses import replace

import numpy as np
import pytest
import torch

from carl_ray.evaluation import kendalls_tau
from carl_ray.evaluation.controls import chance, positions
from carl_ray.model.temporal import frame_positions, sine_cosine_code
from tests.embedded import ORIGIN, embedded


def videos(lengths, width=4, names="abc"):
    return [embedded(name, np.zeros((n, width))) for name, n in zip(names, lengths, strict=False)]


def origin(num_frames, width):
    return replace(ORIGIN, num_frames=num_frames, position_width=width)


def test_positions_are_what_the_encoder_adds_to_a_padded_batch():
    lengths = [5, 1, 12]
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    code = sine_cosine_code(frame_positions(mask, 8), 16)
    found = positions(videos(lengths), origin(8, 16))
    for video, length, expected in zip(found, lengths, code, strict=True):
        assert video.dtype == np.float32
        np.testing.assert_array_equal(video, expected[:length].numpy())


def test_positions_alone_win_kendalls_tau():
    assert kendalls_tau(positions(videos([60, 60, 60]), origin(32, 64))).value == pytest.approx(1)
    assert kendalls_tau(positions(videos([40, 70, 55]), origin(32, 64))).value > 0.95


def test_chance_depends_on_the_seed_and_the_id_alone():
    first = chance(videos([5, 9], names=["a", "ü/b"]), origin(1, 2), 1)
    again = chance(videos([9, 5], names=["ü/b", "a"]), origin(1, 2), 1)
    np.testing.assert_array_equal(first[0], again[1])
    np.testing.assert_array_equal(first[1], again[0])
    other = chance(videos([5, 5], names="ac"), origin(1, 2), 2)
    assert not np.isclose(first[0], other[0]).any()
    assert not np.isclose(other[0], other[1]).any()


def test_chance_is_standard_normal():
    (video,) = chance(videos([5000], width=8), origin(1, 2))
    assert video.dtype == np.float32
    assert video.shape == (5000, 8)
    assert np.abs(video.mean(0)).max() < 0.06
    np.testing.assert_allclose(np.cov(video.T), np.eye(8), atol=0.08)
