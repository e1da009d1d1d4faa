import math
import warnings

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning

from carl_ray.evaluation import classification, linear_probe, phase_classification, phase_progression
from carl_ray.evaluation.bootstrap import r_squared_by_boundary
from carl_ray.evaluation.frame_classes import _linear_layer
from carl_ray.evaluation.probes import num_fitted, select

METRICS = [
    phase_classification,
    lambda *videos: linear_probe(*videos, num_classes=4),
    lambda *videos: phase_progression(*videos, num_phases=4),
]


def videos(seed, count, width=6, phases=4, noise=0.5, unlabelled=0.2):
    """Videos of all phases in order whose embeddings tell the phase, more or less."""
    centers = np.random.default_rng(99).standard_normal((phases, width))
    rng = np.random.default_rng(seed)
    embeddings, labels = [], []
    for _ in range(count):
        classes = np.repeat(np.arange(phases), rng.integers(3, 9, phases))
        embeddings.append(centers[classes] + noise * rng.standard_normal((len(classes), width)))
        labels.append(np.where(rng.random(len(classes)) < unlabelled, -1, classes))
    return embeddings, labels


def kept(embeddings, labels):
    units = [video / np.linalg.norm(video, axis=1, keepdims=True) for video in embeddings]
    return [unit[c >= 0] for unit, c in zip(units, labels, strict=True)], [c[c >= 0] for c in labels]


def softmax(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def slow_logistic_accuracy(train, test, phases=4, strength=1.0):
    """Right frames by test video: L2 penalty of half the squared weights, C = strength times the cross-entropy."""
    (frames, classes), (test_frames, test_classes) = kept(*train), kept(*test)
    x, y = np.concatenate(frames), np.concatenate(classes)
    width = x.shape[1]

    def loss(parameters):
        weight, bias = parameters[: width * phases].reshape(width, phases), parameters[width * phases :]
        chance = softmax(x @ weight + bias)
        gradient = chance - np.eye(phases)[y]
        value = -np.log(chance[np.arange(len(y)), y]).sum() + 0.5 * (weight**2).sum() / strength
        return value, np.concatenate([(x.T @ gradient + weight / strength).ravel(), gradient.sum(0)])

    found = minimize(loss, np.zeros((width + 1) * phases), jac=True, method="BFGS", options={"gtol": 1e-7}).x
    weight, bias = found[: width * phases].reshape(width, phases), found[width * phases :]
    return [
        int(((frames @ weight + bias).argmax(1) == classes).sum())
        for frames, classes in zip(test_frames, test_classes, strict=True)
    ]


def slow_progression(train, test, phases):
    """R^2 by boundary; NaN where no video has the phase."""
    scores = []
    for k in range(phases - 1):
        sides = []
        for frames, classes in (kept(*train), kept(*test)):
            x, y = [], []
            for unit, c in zip(frames, classes, strict=True):
                last = max((t for t in range(len(c)) if c[t] == k), default=None)
                if last is not None:
                    x += [[*unit[t], 1] for t in range(len(c))]
                    y += [(t - last) / len(c) for t in range(len(c))]
            sides.append((np.array(x), np.array(y)))
        (x, y), (test_x, test_y) = sides
        if len(y) and len(test_y):
            predicted = test_x @ np.linalg.lstsq(x, y)[0]
            scores.append(1 - ((test_y - predicted) ** 2).sum() / ((test_y - test_y.mean()) ** 2).sum())
        else:
            scores.append(np.nan)
    return scores


def slow_linear_layer(frames, classes, num_classes, seed):
    """The linear probe in NumPy."""
    weight = np.zeros((frames[0].shape[1] + 1, num_classes))
    velocity = np.zeros_like(weight)
    rng = np.random.default_rng(seed)
    for epoch in range(100):
        rate = 50 * (1 + math.cos(math.pi * epoch / 100)) / 2
        order = rng.permutation(len(frames))
        for start in range(0, len(order), 10):
            x = np.concatenate([frames[i] for i in order[start : start + 10]])
            x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
            y = np.concatenate([classes[i] for i in order[start : start + 10]])
            gradient = x.T @ (softmax(x @ weight) - np.eye(num_classes)[y]) / len(y) + 1e-6 * weight
            velocity = 0.9 * velocity + gradient
            weight = weight - rate * velocity
    return weight


@pytest.mark.parametrize("phases", [2, 4])
def test_classification_equals_a_slow_reference(phases):
    # Many hard test frames: a penalty of another strength (C = 1.3) puts some of them elsewhere.
    train, test = videos(0, 12, phases=phases, noise=1.5), videos(1, 400, phases=phases, noise=1.5)
    found = phase_classification(*train, *test)
    expected = slow_logistic_accuracy(train, test, phases)
    assert found.statistics[0].tolist() == expected
    assert slow_logistic_accuracy(train, test, phases, strength=1.3) != expected
    assert found.statistics[1].tolist() == [(labels >= 0).sum() for labels in test[1]]
    assert 0.5 < found.value < 1
    assert set(found.left_out.values()) == {0}


def test_fractions_take_whole_videos_and_are_nested():
    train, test = videos(0, 30), videos(1, 3)
    order = np.random.default_rng(7).permutation(30)
    for fraction, count in ((0.1, 3), (0.5, 15), (0.51, 16), (1.0, 30)):
        chosen = sorted(order[:count])
        expected = phase_classification([train[0][i] for i in chosen], [train[1][i] for i in chosen], *test)
        found = phase_classification(*train, *test, fraction=fraction, seed=7)
        assert found.statistics[0].tolist() == expected.statistics[0].tolist()
    hundred = videos(2, 100, unlabelled=0)
    assert num_fitted(hundred[1], 0.07) == 7


def test_videos_without_labels_are_no_part_of_a_fraction():
    (embeddings, labels), test = videos(0, 8), videos(1, 3)
    empty = [np.full_like(classes, -1) for classes in labels]
    found = phase_classification(embeddings * 2, labels + empty, *test, fraction=0.5, seed=1)
    expected = phase_classification(embeddings, labels, *test, fraction=0.5, seed=1)
    assert found.statistics[0].tolist() == expected.statistics[0].tolist()
    assert found.left_out["train_videos_without_labels"] == 8


def test_a_single_training_class_is_predicted():
    embeddings, labels = videos(0, 3, unlabelled=0)
    single = [np.full_like(classes, 2) for classes in labels]
    found = phase_classification(embeddings, single, embeddings, labels)
    assert found.statistics[0].tolist() == [(classes == 2).sum() for classes in labels]
    assert found.left_out["test_frames_of_unseen_phases"] == sum((classes != 2).sum() for classes in labels)


def test_fits_that_do_not_converge_are_counted_and_warn_nobody(monkeypatch):
    train, test = videos(0, 12), videos(1, 7)
    monkeypatch.setattr(classification, "_MOST_ITERATIONS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        assert phase_classification(*train, *test).left_out["not_converged"] == 1


def test_progression_equals_a_slow_reference():
    train, test = videos(0, 12), videos(1, 7)
    found = phase_progression(*train, *test, num_phases=4)
    expected = slow_progression(train, test, 4)
    np.testing.assert_allclose(
        r_squared_by_boundary(found.statistics, np.ones((1, 7), dtype=int))[0], expected, atol=1e-9
    )
    assert found.value == pytest.approx(np.mean(expected), abs=1e-9)
    assert found.left_out["undefined_boundaries"] == 0


def test_videos_that_lack_a_phase_are_left_out_of_its_boundary_and_counted():
    train, test = videos(0, 6), videos(1, 5)
    train[1][2][train[1][2] == 0] = 1
    test[1][0][test[1][0] == 1] = 2
    test[1][1][test[1][1] == 1] = -1
    test[1][3][test[1][3] == 3] = -1  # the last phase ends no boundary
    found = phase_progression(*train, *test, num_phases=4)
    assert found.value == pytest.approx(np.mean(slow_progression(train, test, 4)), abs=1e-9)
    assert found.left_out == {
        "train_videos_without_phase": 1,
        "test_videos_without_phase": 2,
        "undefined_boundaries": 0,
    }


def test_a_boundary_that_nobody_has_is_undefined_and_counted():
    train, test = videos(0, 6), videos(1, 5)
    for classes in train[1]:
        classes[classes == 1] = 0
    found = phase_progression(*train, *test, num_phases=4)
    expected = slow_progression(train, test, 4)
    assert math.isnan(expected[1])
    assert found.value == pytest.approx(np.nanmean(expected), abs=1e-9)
    assert found.left_out == {
        "train_videos_without_phase": 6,
        "test_videos_without_phase": 0,
        "undefined_boundaries": 1,
    }


def test_the_linear_probe_equals_a_slow_reference():
    train, test = videos(0, 23, noise=1), videos(1, 6, noise=1)
    found = linear_probe(*train, *test, num_classes=5, seed=3)
    weight = slow_linear_layer(*kept(*train), 5, 3)
    expected = [
        ((frames @ weight[:-1] + weight[-1]).argmax(1) == classes).sum()
        for frames, classes in zip(*kept(*test), strict=True)
    ]
    assert found.statistics[0].tolist() == expected
    learnt, bias = _linear_layer(select(*train, *test, 1.0, 3), 5, 3)
    np.testing.assert_allclose(np.concatenate([learnt.T, bias[None]]), weight, rtol=1e-6)


def test_the_linear_probe_counts_unseen_classes():
    (embeddings, labels), test = videos(0, 6, unlabelled=0), videos(1, 3, unlabelled=0)
    without = [np.where(classes == 3, -1, classes) for classes in labels]
    found = linear_probe(embeddings, without, *test, num_classes=4)
    assert found.left_out == {
        "train_videos_without_labels": 0,
        "test_videos_without_labels": 0,
        "test_frames_of_unseen_classes": sum((classes == 3).sum() for classes in test[1]),
    }


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_the_test_videos_does_not_matter(metric):
    train, test = videos(0, 12), videos(1, 5)
    shuffled = [[side[i] for i in (3, 1, 4, 0, 2)] for side in test]
    assert metric(*train, *shuffled).value == pytest.approx(metric(*train, *test).value)


@pytest.mark.parametrize("metric", METRICS)
def test_no_labels_at_all_are_undefined(metric):
    train, test = videos(0, 4), videos(1, 3)
    nobody = [[np.full_like(classes, -1) for classes in side[1]] for side in (train, test)]
    for train_labels, test_labels in ((nobody[0], nobody[1]), (nobody[0], test[1]), (train[1], nobody[1])):
        assert math.isnan(metric(train[0], train_labels, test[0], test_labels).value)


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_arguments_are_refused(metric):
    train, test = videos(0, 4), videos(1, 3)
    # Where jaxtyping checks shapes while tests run, it refuses this first, with a TypeError.
    expected = "test embeddings: expected width 6 as in training, got 5|Type-check error"
    with pytest.raises((ValueError, TypeError), match=expected):
        metric(*train, [video[:, :5] for video in test[0]], test[1])
    with pytest.raises(ValueError, match="labels: expected those of 4 videos, got 3"):
        metric(train[0], train[1][:3], *test)
    with pytest.raises(ValueError, match="at least one video, got none"):
        metric(*train, [], [])


def test_values_out_of_range_are_refused():
    train, test = videos(0, 4), videos(1, 3)
    with pytest.raises(ValueError, match="labels of video 0: expected less than 3, got 3"):
        phase_progression(*train, *test, num_phases=3)
    with pytest.raises(ValueError, match="labels of video 0: expected less than 3, got 3"):
        linear_probe(*train, *test, num_classes=3)
    with pytest.raises(ValueError, match="num_phases must be at least 2 for a boundary, got 1"):
        phase_progression(*train, *test, num_phases=1)
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match="fraction must be above 0 and at most 1"):
            phase_classification(*train, *test, fraction=fraction)
