"""`carl_ray.evaluation.recognition`: planted clusters, hand-computed ranks, probes that cannot cheat."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from carl_ray.evaluation import recognition
from carl_ray.evaluation.protocol import evaluate
from carl_ray.evaluation.recognition import (
    TASK,
    linear_probe_of_clips,
    nearest_neighbours,
    retrieval_of_videos,
)
from carl_ray.evaluation.task import Videos
from tests.evaluation.test_protocol import ORIGIN, make_video

# Angles in degrees: the gallery as seen from the query at 0 is a b a b b c.
ANGLES = {"a": [10, 30], "b": [20, 40, 50], "c": [90]}
LABELS = ["a", "a", "b", "b", "b", "c"]


def _at(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


GALLERY = _at(*(angle for angles in ANGLES.values() for angle in angles))


def _values(*arguments, **options) -> dict[str, float]:
    return {name: result.value for name, result in retrieval_of_videos(*arguments, **options).items()}


def test_planted_ranks_have_the_hand_computed_recall() -> None:
    # First of its label: a at rank 1, b at 2, c at 6, d never.
    queries, truth = _at(0, 0, 0, 0), ["a", "b", "c", "d"]
    found = _values(GALLERY, LABELS, queries, truth, ks=[1, 2, 5, 6], center="none")
    assert found == {
        "recall_at_1": 1 / 4,
        "recall_at_2": 2 / 4,
        "recall_at_5": 2 / 4,
        "recall_at_6": 3 / 4,
        "mean_average_precision": pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 4 + 3 / 5) / 3 + 1 / 6) / 4),
    }
    result = retrieval_of_videos(GALLERY, LABELS, queries, truth, ks=[1])["recall_at_1"]
    assert result.left_out == {"queries_of_unseen_labels": 1} and result.num_videos == 4


def test_clusters_are_found_whatever_the_scale_and_the_offset_only_centred() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 15)
    centres, offset = np.eye(8)[:4], 40 * np.ones(8)
    clusters = [
        offset + (centres[labels] + 0.1 * rng.standard_normal((60, 8))) * rng.uniform(1, 2, (60, 1))
        for _ in range(2)
    ]
    for center in ("gallery", "own"):
        assert _values(clusters[0], labels, clusters[1], labels, center=center)["recall_at_1"] == 1
    permuted = rng.permutation(60)
    expected = _values(clusters[0], labels, clusters[1], labels)
    found = _values(clusters[0][permuted], labels[permuted], clusters[1], labels)
    assert found == pytest.approx(expected) and expected["recall_at_50"] == 1
    shifted = clusters[1] + 3 * np.eye(8)[7]  # the test set as a whole is elsewhere
    own = _values(clusters[0], labels, shifted, labels, center="own")
    assert own["recall_at_1"] == 1 > _values(clusters[0], labels, shifted, labels)["mean_average_precision"]


def test_ties_are_ordered_as_the_gallery_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, queries = np.ones((6, 3)), np.ones((5, 3))
    for labels, first in ((list("abbccc"), "a"), (list("cbbacc"), "c")):
        found = retrieval_of_videos(gallery, labels, queries, list("abcab"), ks=[1, 2], center="none")
        assert found["recall_at_1"].statistics[0].tolist() == [label == first for label in "abcab"]
    monkeypatch.setattr(recognition, "MOST_SIMILARITIES", 12)
    again = retrieval_of_videos(gallery, list("cbbacc"), queries, list("abcab"), ks=[1, 2], center="none")
    assert all((again[name].statistics == found[name].statistics).all() for name in found)


def test_nearest_neighbours_vote_by_similarity() -> None:
    def slow(query: np.ndarray, k: int) -> str:
        cosines = GALLERY @ query
        votes: dict[str, float] = {}
        for place in np.argsort(-cosines, kind="stable")[:k]:
            votes[LABELS[place]] = votes.get(LABELS[place], 0) + math.exp(cosines[place] / 0.07)
        return max(votes, key=votes.__getitem__)

    queries = _at(*np.linspace(-39.3, 99.1, 29))
    for k in (1, 2, 5, 6):
        truth = [slow(query, k) for query in queries]
        found = nearest_neighbours(GALLERY, LABELS, queries, truth, k=k, center="none")
        assert found.value == 1
    # Nearest is b; together the two of a outweigh it.
    votes = (_at(10, 14, -14), ["b", "a", "a"], _at(0), ["a"])
    assert nearest_neighbours(*votes, k=1, center="none").value == 0
    assert nearest_neighbours(*votes, k=3, center="none").value == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": [1, 7]}, r"from 1 to 6 videos, got \[1, 7\]"),
        ({"ks": [0]}, r"from 1 to 6 videos, got \[0\]"),
        ({"gallery_labels": LABELS[:5]}, "labels or groups of 6 videos, got 5"),
        ({"queries": np.full((1, 2), np.nan)}, "expected finite values"),
        ({"queries": np.ones((1, 3))}, "expected width 2"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, object], message: str) -> None:
    arguments = {
        "gallery": GALLERY,
        "gallery_labels": LABELS,
        "queries": _at(0),
        "query_labels": ["a"],
        "ks": [1],
    }
    with pytest.raises(ValueError, match=message):
        retrieval_of_videos(**(arguments | changes))  # type: ignore[arg-type]


def _clips(labels: np.ndarray, rng: np.random.Generator, noise: float) -> list[np.ndarray]:
    """Five clips of each video around a centre of its label, in coordinates of very different scales."""
    scales = 10.0 ** np.arange(-3, 5)
    return [(np.eye(8)[label] + noise * rng.standard_normal((5, 8))) * scales for label in labels]


def test_the_linear_probe_averages_the_clips_of_a_video() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 4
    train, test = (_clips(labels, rng, 0.7) for _ in range(2))
    whole = linear_probe_of_clips(train, labels, test, labels)
    single = linear_probe_of_clips(train, labels, [clips[:1] for clips in test], labels)
    assert single.value < 0.8 and whole.value > single.value + 0.1
    assert linear_probe_of_clips(train, rng.permutation(labels), test, labels).value < 0.4
    names = np.array(["a", "b", "c", "d"])[labels]
    assert linear_probe_of_clips(train, names, test, names).value == whole.value


def test_the_penalty_is_chosen_on_groups_that_the_fit_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, groups = np.arange(120) % 3, np.arange(120) // 6
    # The first number of a clip names its group.
    clips = [
        np.hstack([np.full((5, 1), g), video])
        for g, video in zip(groups, _clips(labels, np.random.default_rng(1), 0.7), strict=True)
    ]
    calls: list[tuple[int, int, float]] = []
    predicted = recognition._predicted

    def spy(train, fitted, test, penalty):
        calls.append((len(train), len(test), penalty))
        if len(train) < 120:
            seen, held = ({video[0, 0] for video in side} for side in (train, test))
            assert (len(seen), len(held)) == (18, 2) and not seen & held
            # The third penalty is the best one.
            return labels[np.isin(groups, list(held))] if penalty == 1.0 else np.full(len(test), -1)
        return predicted(train, fitted, test, penalty)

    monkeypatch.setattr(recognition, "_predicted", spy)
    linear_probe_of_clips(clips, labels, clips[:9], labels[:9], groups=groups)
    assert calls == [*((108, 12, penalty) for penalty in (0.01, 0.1, 1.0, 10.0)), (120, 9, 1.0)]


def test_a_single_label_is_predicted() -> None:
    clips = [np.ones((2, 3))] * 3
    assert linear_probe_of_clips(clips, ["a"] * 3, clips, ["a", "a", "b"]).value == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least one clip"):
        linear_probe_of_clips([*clips, np.ones((0, 3))], ["a"] * 4, clips, ["a"] * 3)
    with pytest.raises(ValueError, match="labels or groups of 3 videos, got 2"):
        linear_probe_of_clips(clips, ["a"] * 3, clips, ["a"] * 3, groups=[0, 1])


def test_the_task_runs_on_the_mean_of_frames_with_every_control() -> None:
    train = [make_video(n, action) for n in range(6) for action in ("kick", "lift")]
    test = [make_video(50 + n, action) for n in range(4) for action in ("kick", "lift")]
    for video in [*train, *test]:
        video.embeddings[:, 3] += 2 * (video.label == "kick")
    unlabelled = replace(make_video(70, "kick"), label=None)
    document = evaluate(train, [*test, unlabelled], ORIGIN, tasks=["recognition", "kendalls_tau"])
    trained, beyond = document["trained"], {"test_videos_with_fewer_candidates_than_k": 8}
    for metric in TASK.metrics:
        if metric.name.endswith(("20", "50")):  # of 12 training videos
            assert trained[metric.name] == {"value": None, "low": None, "high": None, "left_out": beyond}
        else:
            assert trained[metric.name]["value"] == 1, metric.name
    assert document["chance"]["video_mean_average_precision"]["value"] < 0.9
    assert "kendalls_tau" in trained
    means = [np.stack([video.embeddings.mean(0) for video in side]) for side in (train, test)]
    labels = [[video.label for video in side] for side in (train, test)]
    direct = retrieval_of_videos(means[0], labels[0], means[1], labels[1], ks=[1])
    run = TASK.run(Videos(train, [*test, unlabelled]))["video_recall_at_1"]
    assert run.value == direct["recall_at_1"].value and run.num_videos == 9


def test_the_task_needs_two_labels_with_two_videos_on_both_sides() -> None:
    videos = [make_video(n, action) for n in range(2) for action in ("kick", "lift")]
    assert TASK.missing(videos, videos) is None
    for few in (videos[:3], videos[::2], [replace(video, label=None) for video in videos]):
        assert TASK.missing(videos, few) == TASK.missing(few, videos) == "two labels of two videos each"
