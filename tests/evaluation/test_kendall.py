import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import kendalltau

from carl_ray.evaluation import kendall
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


def test_small_blocks_give_the_same(monkeypatch):
    embeddings = videos(1, [30, 1, 57, 12])
    expected = slow_taus(embeddings)
    monkeypatch.setattr(kendall, "MOST_SIMILARITIES", 700)
    monkeypatch.setattr(kendall, "_MOST_SIGNS", 50)
    np.testing.assert_allclose(kendalls_tau(embeddings).statistics, expected, atol=1e-12)


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
    found = kendalls_tau([on_a_curve(20), on_a_curve(39)])
    assert found.statistics[0, 1] == pytest.approx(1)
    assert 0.9 < found.statistics[1, 0] < 1


def test_the_reversed_course_is_minus_one():
    assert kendalls_tau([on_a_curve(40), on_a_curve(40)[::-1]]).value == pytest.approx(-1)


def test_constant_embeddings_are_undefined():
    found = kendalls_tau([np.full((length, 128), 0.3) for length in (9, 14, 71)])
    assert np.isnan(found.value)
    assert found.left_out == {"undefined_pairs": 6}


def test_random_embeddings_are_near_zero():
    rng = np.random.default_rng(0)
    assert kendalls_tau([rng.standard_normal((60, 16)) for _ in range(12)]).value == pytest.approx(
        0, abs=0.03
    )


def test_the_order_of_the_videos_does_not_matter():
    embeddings = videos(5, [30, 44, 57, 12])
    order = [2, 0, 3, 1]
    expected = kendalls_tau(embeddings).statistics[np.ix_(order, order)]
    np.testing.assert_allclose(kendalls_tau([embeddings[i] for i in order]).statistics, expected, atol=1e-12)


def test_scale_does_not_matter():
    embeddings = videos(6, [30, 44])
    scaled = [embeddings[0] * 1e-200, embeddings[1] * 1e200]
    np.testing.assert_allclose(kendalls_tau(scaled).statistics, kendalls_tau(embeddings).statistics)


def test_videos_without_frames_are_counted():
    embeddings = [*videos(7, [30, 44]), np.zeros((0, 8))]
    found = kendalls_tau(embeddings)
    assert found.left_out == {"undefined_pairs": 4}
    assert found.value == pytest.approx(kendalls_tau(embeddings[:2]).value)
    assert np.isnan(kendalls_tau(embeddings[2:]).value)


def test_one_video_has_no_pairs():
    found = kendalls_tau(videos(8, [30]))
    assert np.isnan(found.value)
    assert found.left_out == {"undefined_pairs": 0}


def test_arguments_are_not_changed():
    embeddings = videos(9, [30, 44])
    before = [video.copy() for video in embeddings]
    kendalls_tau(embeddings)
    assert all(map(np.array_equal, embeddings, before))


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ([], "at least one video, got none"),
        ([np.ones((4, 3)), np.ones((4, 2))], "video 1: expected width 3 as in video 0, got 2"),
        ([np.ones(4)], r"video 0: expected \(frames, width\), got shape \(4,\)"),
        ([np.ones((4, 3)), np.full((4, 3), np.inf)], "video 1: expected finite values"),
    ],
)
def test_wrong_arguments_are_refused(embeddings, message):
    # Where jaxtyping checks shapes while tests run, it refuses wrong ones first, with a TypeError.
    with pytest.raises((ValueError, TypeError), match=f"{message}|Type-check error"):
        kendalls_tau(embeddings)


def test_a_stride_below_one_is_refused():
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        kendalls_tau(videos(0, [5, 5]), stride=0)


def test_neighbors_that_float32_confuses_are_told_apart():
    rng = np.random.default_rng(10)
    base = rng.standard_normal(8)
    embeddings = [base + 1e-5 * video for video in videos(10, [30, 44, 25])]
    expected = slow_taus(embeddings)
    np.testing.assert_allclose(kendalls_tau(embeddings).statistics, expected, atol=1e-12)
    first, second = (normalized(video).astype(np.float32) for video in embeddings[:2])
    exact = cdist(*map(normalized, embeddings[:2]), "sqeuclidean").argmin(1)
    assert ((first @ second.T).argmax(1) != exact).any()
