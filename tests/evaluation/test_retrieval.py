import numpy as np
import pytest

from carl_ray.evaluation.retrieval import average_precision_at_k, average_precisions


def slow_precisions(embeddings, labels, k, stride=1):
    """The definition, one query frame at a time; by video, NaN where undefined."""
    kept = []
    for video, classes in zip(embeddings, labels, strict=True):
        video = video[classes >= 0][::stride].astype(np.float64)
        norms = np.linalg.norm(video, axis=1, keepdims=True)
        kept.append((video / np.where(norms > 0, norms, 1), classes[classes >= 0][::stride]))
    values = []
    for number, (video, classes) in enumerate(kept):
        others = [other for i, other in enumerate(kept) if i != number]
        shares = []
        for frame, label in zip(video, classes, strict=True):
            found = [
                (((frame - candidate) ** 2).sum(), candidate_label)
                for frames, frame_labels in others
                for candidate, candidate_label in zip(frames, frame_labels, strict=True)
            ]
            if len(found) >= k:
                nearest = sorted(found, key=lambda pair: pair[0])[:k]
                shares.append(np.mean([candidate_label == label for _, candidate_label in nearest]))
        values.append(np.mean(shares) if shares else np.nan)
    return np.array(values)


def values_of(result):
    return np.where(result.statistics[1] > 0, result.statistics[0], np.nan)


def videos(seed, lengths, width=8, phases=4):
    rng = np.random.default_rng(seed)
    embeddings = [rng.standard_normal((length, width)).cumsum(0) for length in lengths]
    labels = [np.sort(rng.integers(0, phases, length)) for length in lengths]
    for classes in labels:
        classes[rng.random(len(classes)) < 0.2] = -1
    return embeddings, labels


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_equals_a_slow_reference(stride):
    embeddings, labels = videos(0, [30, 1, 25, 12, 40])
    found = average_precisions(embeddings, labels, [5, 10, 15], stride=stride)
    for k in (5, 10, 15):
        expected = slow_precisions(embeddings, labels, k, stride)
        np.testing.assert_allclose(values_of(found[k]), expected, atol=1e-12)
        assert found[k].value == pytest.approx(np.nanmean(expected), abs=1e-12)
        assert average_precision_at_k(embeddings, labels, k, stride=stride).value == found[k].value


def test_the_label_drops_frames_before_the_stride():
    embeddings, labels = videos(2, [30, 25])
    kept = [classes >= 0 for classes in labels]
    expected = average_precision_at_k(
        [video[keep][::2] for video, keep in zip(embeddings, kept, strict=True)],
        [classes[keep][::2] for classes, keep in zip(labels, kept, strict=True)],
        5,
    )
    assert average_precision_at_k(embeddings, labels, 5, stride=2).value == expected.value


def test_constant_embeddings_are_worth_the_base_rate_in_any_order():
    labels = [np.repeat([0, 1], [15, 5]), np.repeat([1, 0], [12, 4]), np.repeat([0, 1, 2], 7)]
    embeddings = [np.ones((len(classes), 128)) for classes in labels]
    expected = np.mean(
        [
            np.mean([np.mean(np.concatenate(labels[:i] + labels[i + 1 :]) == label) for label in classes])
            for i, classes in enumerate(labels)
        ]
    )
    for order in ([0, 1, 2], [2, 0, 1]):
        found = average_precision_at_k([embeddings[i] for i in order], [labels[i] for i in order], 5)
        assert found.value == pytest.approx(expected)


def test_a_contested_last_place_is_shared():
    # Nearest is the frame at 0 degrees, then three at 90 of which two have the label: 1 + 1 x 2/3 of 2.
    query = np.array([[1.0, 0.1]])
    others = np.array([[1.0, 0], [0, 1], [0, 1], [0, 2]])
    found = average_precision_at_k([query, others], [np.array([1]), np.array([1, 1, 0, 1])], 2)
    assert found.statistics[0][0] == pytest.approx((1 + 2 / 3) / 2)


def test_frames_of_zeros_are_compared_by_distance():
    rng = np.random.default_rng(4)
    embeddings = [rng.standard_normal((20, 3)) for _ in range(3)]
    labels = [rng.integers(0, 3, 20) for _ in range(3)]
    for video in embeddings:
        video[3] = 0
    # With one zero frame in each other video, none of the places of K = 1 is contested for a zero query of two.
    for pair in ([0, 1], [1, 2]):
        chosen = [embeddings[i] for i in pair], [labels[i] for i in pair]
        found = values_of(average_precision_at_k(*chosen, 1))
        np.testing.assert_allclose(found, slow_precisions(*chosen, 1), atol=1e-12)


def test_videos_without_labels_are_left_out_and_counted():
    embeddings, labels = videos(5, [30, 25, 20])
    without = average_precision_at_k(embeddings[:2], labels[:2], 5)
    labels[2][:] = -1
    found = average_precision_at_k(embeddings, labels, 5)
    assert found.value == pytest.approx(without.value)
    assert found.left_out == {"videos_without_labels": 1, "videos_without_candidates": 0}


def test_too_few_candidates_are_undefined():
    embeddings = [*np.random.default_rng(0).random((2, 20, 3))]
    labels = [np.zeros(20, dtype=int)] * 2
    one = average_precision_at_k(embeddings[:1], labels[:1], 5)
    assert np.isnan(one.value)
    assert one.left_out == {"videos_without_labels": 0, "videos_without_candidates": 1}
    uneven = average_precision_at_k([embeddings[0], embeddings[1][:4]], [labels[0], labels[1][:4]], 5)
    assert uneven.left_out == {"videos_without_labels": 0, "videos_without_candidates": 1}
    assert uneven.statistics[1].tolist() == [0, 1]
    assert average_precision_at_k(embeddings, labels, 20).value == 1


def test_no_labels_at_all_are_undefined():
    found = average_precision_at_k([np.ones((5, 2))] * 2, [np.full(5, -1)] * 2, 5)
    assert np.isnan(found.value)
    assert found.left_out == {"videos_without_labels": 2, "videos_without_candidates": 0}


@pytest.mark.parametrize(
    ("labels", "k", "message"),
    [
        ([np.zeros(4, dtype=int)] * 2, 0, r"at least 1, got \[0\]"),
        ([np.zeros(4, dtype=int)], 5, "expected those of 2 videos, got 1"),
        (
            [np.zeros(4, dtype=int), np.zeros(5, dtype=int)],
            5,
            "labels of video 1: expected one for each of 4",
        ),
        ([np.zeros(4)] * 2, 5, "labels of video 0: expected integers, got float64"),
    ],
)
def test_wrong_arguments_are_refused(labels, k, message):
    # Where jaxtyping checks types while tests run, it refuses wrong ones first, with a TypeError.
    with pytest.raises((ValueError, TypeError), match=f"{message}|Type-check error"):
        average_precision_at_k([np.ones((4, 3))] * 2, labels, k)


def test_neighbors_that_float32_confuses_are_told_apart():
    rng = np.random.default_rng(6)
    embeddings, labels = videos(6, [30, 44, 25])
    base = rng.standard_normal(8)
    embeddings = [base + 1e-5 * video for video in embeddings]
    expected = slow_precisions(embeddings, labels, 5)
    np.testing.assert_allclose(values_of(average_precision_at_k(embeddings, labels, 5)), expected, atol=1e-12)
    units = [video / np.linalg.norm(video, axis=1, keepdims=True) for video in embeddings[:2]]
    exact = np.argsort(units[0] @ units[1].T)[:, -5:]
    rough = np.argsort(units[0].astype(np.float32) @ units[1].astype(np.float32).T)[:, -5:]
    assert (np.sort(exact) != np.sort(rough)).any()
