import numpy as np
import pytest

from carl_ray.evaluation.bootstrap import bootstrap, mean_r_squared, pair_mean, ratio_of_sums


def repeated(weights):
    """Indices of the videos of one draw."""
    return np.repeat(np.arange(len(weights)), weights)


def ratio(seed=0, count=9):
    rng = np.random.default_rng(seed)
    return ratio_of_sums(rng.random(count), rng.integers(1, 9, count).astype(float))


def random_pairs(seed=0, count=9, undefined=0.2):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((count, count)) < undefined, np.nan, rng.standard_normal((count, count)))
    np.fill_diagonal(values, np.nan)
    return pair_mean(values)


def targets_and_predictions(seed=0, boundaries=3, count=9):
    """Ragged frames by boundary and video; video 2 has no part in boundary 1."""
    rng = np.random.default_rng(seed)
    frames = [[rng.standard_normal((rng.integers(2, 6), 2)) for _ in range(count)] for _ in range(boundaries)]
    frames[1][2] = np.zeros((0, 2))
    return frames


def r_squared_of(frames):
    def statistic(function):
        return np.array([[function(video) for video in boundary] for boundary in frames])

    return mean_r_squared(
        np.stack(
            [
                statistic(len).astype(float),
                statistic(lambda v: v[:, 0].sum()),
                statistic(lambda v: (v[:, 0] ** 2).sum()),
                statistic(lambda v: ((v[:, 0] - v[:, 1]) ** 2).sum()),
            ]
        )
    )


def draws(count, number=40, seed=5):
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=number)


def test_a_ratio_of_sums_is_that_of_the_videos_drawn():
    result = ratio()
    expected = [
        result.statistics[0][chosen].sum() / result.statistics[1][chosen].sum()
        for chosen in map(repeated, draws(9))
    ]
    np.testing.assert_allclose(result.resampled(draws(9)), expected)


def test_a_pair_mean_never_pairs_a_video_with_itself():
    result = random_pairs()
    expected = []
    for chosen in map(repeated, draws(9)):
        pairs = [result.statistics[i, j] for i in chosen for j in chosen if i != j]
        expected.append(np.nanmean(pairs))
    np.testing.assert_allclose(result.resampled(draws(9)), expected)


def test_mean_r_squared_is_that_of_the_frames_drawn():
    frames = targets_and_predictions()
    expected = []
    for chosen in map(repeated, draws(9)):
        scores = []
        for boundary in frames:
            target, prediction = np.concatenate([boundary[video] for video in chosen]).T
            scores.append(1 - ((target - prediction) ** 2).sum() / ((target - target.mean()) ** 2).sum())
        expected.append(np.mean(scores))
    np.testing.assert_allclose(r_squared_of(frames).resampled(draws(9)), expected)


def test_boundaries_without_frames_or_spread_are_no_part_of_the_mean():
    frames = targets_and_predictions()
    expected = r_squared_of(frames[:1]).value
    empty = [np.zeros((0, 2))] * 9
    constant = [np.tile([[0.3, 0.1]], (4, 1))] * 9
    assert r_squared_of([frames[0], empty, constant]).value == pytest.approx(expected)
    assert np.isnan(r_squared_of([empty, constant]).value)


@pytest.mark.parametrize("result", [ratio(), random_pairs(), r_squared_of(targets_and_predictions())])
def test_drawing_every_video_once_gives_the_value(result):
    assert result.resampled(np.ones((2, 9), dtype=int)) == pytest.approx([result.value] * 2)
    assert result.resampled(np.full((1, 9), 2))[0] == pytest.approx(result.value)


def test_nothing_to_average_is_not_a_number():
    assert np.isnan(ratio_of_sums(np.zeros(3), np.zeros(3)).value)
    assert np.isnan(pair_mean(np.full((3, 3), np.nan)).value)
    assert np.isnan(pair_mean(np.array([[np.nan, 1], [1, np.nan]])).resampled(np.array([[2, 0]]))).all()


def test_bootstrap_equals_a_loop_over_draws():
    results = [ratio(1, 7), ratio(2, 12)]
    found = bootstrap(results, num_draws=200, level=0.9, seed=3)
    values = []
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(3).spawn(2)]
    for _ in range(200):
        by_action = []
        for result, rng in zip(results, streams, strict=True):
            count = result.num_videos
            chosen = repeated(rng.multinomial(count - 1, np.full(count, 1 / count)))
            by_action.append(result.statistics[0][chosen].sum() / result.statistics[1][chosen].sum())
        values.append(np.mean(by_action))
    assert found.value == pytest.approx(np.mean([result.value for result in results]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [5, 95])))


def test_the_interval_covers_as_often_as_it_says():
    covered = 0
    for seed in range(300):
        sample = np.random.default_rng(seed).random(40)
        interval = bootstrap([ratio_of_sums(sample, np.ones(40))], num_draws=200, seed=seed)
        covered += interval.low <= 0.5 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_the_seed_alone_decides_the_draws():
    assert bootstrap([ratio()], seed=1) == bootstrap([ratio()], seed=1)
    assert bootstrap([ratio()], seed=1) != bootstrap([ratio()], seed=2)


def test_actions_of_the_same_size_are_drawn_independently():
    result = ratio_of_sums(np.arange(20.0), np.ones(20))
    one, both = bootstrap([result]), bootstrap([result, result])
    assert (both.high - both.low) / (one.high - one.low) == pytest.approx(2**-0.5, abs=0.1)


def test_an_undefined_action_is_left_out():
    undefined = ratio_of_sums(np.zeros(4), np.zeros(4))
    assert bootstrap([ratio(), undefined]) == bootstrap([ratio()])
    assert np.isnan(bootstrap([undefined])).all()


@pytest.mark.parametrize(
    "result",
    [
        ratio(count=1),
        ratio_of_sums(np.array([1.0, 0, 0]), np.array([2.0, 0, 0])),
        random_pairs(count=2, undefined=0),
        r_squared_of([[np.random.default_rng(0).random((5, 2))]]),
    ],
)
def test_too_few_videos_have_no_interval(result):
    found = bootstrap([result])
    assert found.value == result.value
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(bootstrap([ratio(), result]).low)


def test_undefined_draws_are_ignored():
    found = bootstrap([ratio_of_sums(np.array([1.0, 1, 0, 0]), np.array([1.0, 1, 0, 0]))])
    assert (found.value, found.low, found.high) == (1, 1, 1)
