import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import kendalltau

from carl_ray.evaluation.kendall import kendalls_tau


def normalized(video):
    norms = np.linalg.norm(video.astype(np.float64), axis=1, keepdims=True)
    return video / np.where(norms > 0, norms, 1)


def slow_taus(embeddings, stride=1):
    """The definition, one ordered pair at a time."""
    units = [normalized(video[::stride]) for video in embeddings]
    taus = np.full((len(units), len(units)), np.nan)
    for a, first in enumerate(units):
        for b, second in enumerate(units):
            if a != b and len(first) > 1 and len(second):
                nearest = cdist(first, second, "sqeuclidean").argmin(1)
                if len(set(nearest)) > 1:
                    taus[a, b] = kendalltau(np.arange(len(first)), nearest).statistic
    return taus


def videos(seed, lengths, width=8):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, width)).cumsum(0) for length in lengths]


def on_a_curve(length, turns=0.5):
    angles = np.linspace(0, 2 * np.pi * turns, length)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_equals_a_slow_reference(stride):
    embeddings = videos(0, [30, 1, 57, 12, 80, 2])
    found = kendalls_tau(embeddings, stride=stride)
    expected = slow_taus(embeddings, stride)
    np.testing.assert_allclose(found.statistics, expected, atol=1e-12)
    assert found.value == pytest.approx(np.nanmean(expected), abs=1e-12)
    assert found.left_out == {"undefined_pairs": 30 - int((~np.isnan(expected)).sum())}


def test_long_videos_are_exact():
    embeddings = videos(2, [3000, 2500])
    np.testing.assert_allclose(kendalls_tau(embeddings).statistics, slow_taus(embeddings), atol=1e-12)


def test_half_precision_with_many_equal_frames_is_exact():
    rng = np.random.default_rng(3)
    embeddings = [np.repeat(video, 3, axis=0).astype(np.float16) for video in videos(3, [9, 14, 20])]
    embeddings.append(embeddings[0][rng.permutation(27)])
    np.testing.assert_allclose(kendalls_tau(embeddings).statistics, slow_taus(embeddings), atol=1e-12)


def test_frames_of_zeros_are_compared_by_distance():
    embeddings = videos(4, [20, 25, 30])
    for video in embeddings:
        video[::4] = 0
    np.testing.assert_allclose(kendalls_tau(embeddings).statistics, slow_taus(embeddings), atol=1e-12)


def test_the_same_course_at_any_tempo_is_perfect():
    # Of a slower video several frames share a neighbour, which tau-b counts as ties of one side.
    assert kendalls_tau([on_a_curve(40), on_a_curve(40)]).value == pytest.approx(1)
    assert kendalls_tau([on_a_curve(40), on_a_curve(40)[::-1]]).value == pytest.approx(-1)
    found = kendalls_tau([on_a_curve(20), on_a_curve(39)])
    assert found.statistics[0, 1] == pytest.approx(1)
    assert 0.9 < found.statistics[1, 0] < 1


def test_constant_embeddings_are_undefined():
    found = kendalls_tau([np.full((length, 128), 0.3) for length in (9, 14, 71)])
    assert np.isnan(found.value)
    assert found.left_out == {"undefined_pairs": 6}


def test_videos_without_frames_are_counted():
    embeddings = [*videos(7, [30, 44]), np.zeros((0, 8))]
    found = kendalls_tau(embeddings)
    assert found.left_out == {"undefined_pairs": 4}
    assert found.value == pytest.approx(kendalls_tau(embeddings[:2]).value)
    assert np.isnan(kendalls_tau(embeddings[2:]).value)


def test_neighbors_that_float32_confuses_are_told_apart():
    rng = np.random.default_rng(10)
    base = rng.standard_normal(8)
    embeddings = [base + 1e-5 * video for video in videos(10, [30, 44, 25])]
    expected = slow_taus(embeddings)
    np.testing.assert_allclose(kendalls_tau(embeddings).statistics, expected, atol=1e-12)
    first, second = (normalized(video).astype(np.float32) for video in embeddings[:2])
    exact = cdist(*map(normalized, embeddings[:2]), "sqeuclidean").argmin(1)
    assert ((first @ second.T).argmax(1) != exact).any()
