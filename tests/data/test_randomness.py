from __future__ import annotations

import itertools

import numpy as np

from carl_ray.data.randomness import ViewNumber, sample_generator, sample_seed


def test_same_key_same_draws():
    first, again = (sample_generator(7, 3, "videos/a.mp4", ViewNumber.FIRST) for _ in range(2))
    assert np.array_equal(first.random(100), again.random(100))


def test_every_part_of_the_key_matters():
    keys = itertools.product((0, 1, 11, -1), (0, 1, 11), ("", "a", "1:a", ":", "é"), ViewNumber)
    seeds = [sample_seed(*key) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_integers_of_any_type_make_the_same_key():
    plain = sample_seed(5, 2, "a", 1)
    assert sample_seed(np.int64(5), np.int32(2), "a", ViewNumber.FIRST) == plain


def test_golden_values():
    """These change only with the stream of every run: a checkpoint could then not be resumed exactly."""
    assert sample_seed(0, 0, "a", 1) == int("76ebd0558774e33f", 16) >> 1  # printf '0:0:1:a' | b2sum -l 64
    assert sample_generator(7, 3, "v", 2).integers(1000, size=4).tolist() == [128, 29, 506, 888]


def test_draws_of_neighbouring_keys_are_uniform_and_unrelated():
    draws = np.array(
        [sample_generator(0, epoch, "v", view).random() for epoch in range(500) for view in (0, 1)]
    )
    assert abs(draws.mean() - 0.5) < 0.04
    assert abs(np.corrcoef(draws[::2], draws[1::2])[0, 1]) < 0.15
