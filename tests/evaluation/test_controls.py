import numpy as np
import pytest
import torch

from carl_ray.evaluation import kendalls_tau
from carl_ray.evaluation.controls import chance_embeddings, position_embeddings
from carl_ray.model.temporal import frame_positions, sine_cosine_code


def test_positions_are_what_the_encoder_adds_to_a_padded_batch():
    lengths = [5, 1, 12]
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    code = sine_cosine_code(frame_positions(mask, 8), 16)
    found = position_embeddings(lengths, num_frames=8, width=16)
    for video, length, expected in zip(found, lengths, code, strict=True):
        assert video.dtype == np.float32
        np.testing.assert_array_equal(video, expected[:length].numpy())


def test_positions_alone_win_kendalls_tau():
    assert kendalls_tau(position_embeddings([60, 60, 60], num_frames=32, width=64)).value == pytest.approx(1)
    assert kendalls_tau(position_embeddings([40, 70, 55], num_frames=32, width=64)).value > 0.95


def test_chance_depends_on_the_seed_and_the_id_alone():
    first = chance_embeddings([5, 9], ["a", "ü/b"], width=4, seed=1)
    again = chance_embeddings([9, 5], ["ü/b", "a"], width=4, seed=1)
    np.testing.assert_array_equal(first[0], again[1])
    np.testing.assert_array_equal(first[1], again[0])
    other = chance_embeddings([5, 5], ["a", "c"], width=4, seed=2)
    assert not np.isclose(first[0], other[0]).any()
    assert not np.isclose(other[0], other[1]).any()


def test_chance_is_standard_normal():
    (video,) = chance_embeddings([5000], ["a"], width=8)
    assert video.dtype == np.float32
    assert video.shape == (5000, 8)
    assert np.abs(video.mean(0)).max() < 0.06
    np.testing.assert_allclose(np.cov(video.T), np.eye(8), atol=0.08)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="width must be even and positive, got 7"):
        position_embeddings([5], num_frames=8, width=7)
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        position_embeddings([5], num_frames=0, width=8)
    with pytest.raises(ValueError, match="expected an id for each of 2 videos, got 1"):
        chance_embeddings([5, 6], ["a"], width=8)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        chance_embeddings([5], ["a"], width=0)
