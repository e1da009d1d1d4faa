"""Recognition and retrieval of whole videos from vectors of clips: one label a video.

Legend: G gallery (or training) videos, Q query (or test) videos, C width, n clips of a video.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped

from carl_ray.evaluation.bootstrap import Result, of_some, ratio_of_sums
from carl_ray.evaluation.frames import MOST_SIMILARITIES, unit_frames
from carl_ray.evaluation.task import Metric, Task, Videos, is_labelled

Center = Literal["gallery", "own", "none"]
"""What is subtracted before cosines are taken: the gallery's mean from both sides, from each side its own, nothing."""

Vectors = Float[np.ndarray, "_ C"]
Labels = Shaped[np.ndarray, " _"] | Sequence[Any]

KS = (1, 5, 10, 20, 50)
_VOTERS = (5, 20)  # a single one votes as R@1 does
_TEMPERATURE = 0.07
_PENALTIES = (0.01, 0.1, 1.0, 10.0)
_HELD_OUT = 0.1
_MOST_ITERATIONS = 10_000


def retrieval_of_videos(
    gallery: Vectors,
    gallery_labels: Labels,
    queries: Vectors,
    query_labels: Labels,
    *,
    ks: Sequence[int] = KS,
    center: Center = "gallery",
) -> dict[str, Result]:
    """`recall_at_K` and `mean_average_precision` of queries whose label a gallery video shares, by cosine.

    R@K is the share of the queries that have a video of their label among their K nearest. Ties are ordered as the
    gallery is. A query whose label no gallery video has counts as 0.

    Args:
        gallery: One vector a video.
        gallery_labels: Of these.
        queries: As `gallery`.
        query_labels: Of these.
        ks: Numbers of neighbours.
        center: See `Center`.

    Raises:
        ValueError: a K that is not from 1 to G, vectors that are not finite or of different widths, other numbers of
            labels than of vectors.
    """
    truth = np.asarray(gallery_labels)
    _check(gallery, truth, ks)
    _check(queries, np.asarray(query_labels))
    firsts, precisions = [], []
    for rows, order, _ in _ranked(gallery, queries, center):
        same: Bool[np.ndarray, "rows G"] = truth[order] == np.asarray(query_labels)[rows, None]
        found = same.any(axis=1)
        firsts.append(np.where(found, same.argmax(axis=1), len(truth)))
        share = same.cumsum(axis=1) / np.arange(1, len(truth) + 1)
        precisions.append((share * same).sum(axis=1) / np.maximum(same.sum(axis=1), 1))
    first, ones = np.concatenate(firsts), np.ones(len(queries))
    left_out = {"queries_of_unseen_labels": int((first == len(truth)).sum())}
    values = {f"recall_at_{k}": (first < k).astype(np.float64) for k in ks}
    values["mean_average_precision"] = np.concatenate(precisions)
    return {name: ratio_of_sums(value, ones, left_out) for name, value in values.items()}


def nearest_neighbours(
    train: Vectors,
    train_labels: Labels,
    test: Vectors,
    test_labels: Labels,
    *,
    k: int,
    center: Center = "gallery",
) -> Result:
    """Accuracy of the label for which the k nearest training videos vote, with weight exp(cosine / 0.07).

    Arguments and errors are those of `retrieval_of_videos`.
    """
    names, classes = np.unique(np.asarray(train_labels), return_inverse=True)
    _check(train, classes, [k])
    _check(test, np.asarray(test_labels))
    correct = np.zeros(len(test))
    for rows, order, similarities in _ranked(train, test, center):
        # Relative to the nearest one: the weights of others only underflow.
        weights = np.exp((similarities[:, :k] - similarities[:, :1]) / _TEMPERATURE)
        votes = np.zeros((len(rows), len(names)))
        np.add.at(votes, (np.arange(len(rows))[:, None], classes[order[:, :k]]), weights)
        correct[rows] = names[votes.argmax(axis=1)] == np.asarray(test_labels)[rows]
    return ratio_of_sums(correct, np.ones(len(test)))


def linear_probe_of_clips(
    train: Sequence[Float[np.ndarray, "_ C"]],
    train_labels: Labels,
    test: Sequence[Float[np.ndarray, "_ C"]],
    test_labels: Labels,
    *,
    groups: Labels | None = None,
    seed: int = 0,
) -> Result:
    """Accuracy of a multinomial logistic regression on standardised vectors of clips.

    The probabilities of a video's clips are averaged. The penalty C is that of 0.01, 0.1, 1 and 10 which predicts best,
    on videos of a tenth of the training groups, the others; the final fit is to all of them.

    Args:
        train: An array a training video, one row a clip.
        train_labels: Of the training videos.
        test: As `train`.
        test_labels: Of the test videos.
        groups: Of the training videos: those of one group are held out together. None: each is its own.
        seed: Of the choice of groups.

    Raises:
        ValueError: a video without clips, vectors that are not finite or of different widths, other numbers of labels
            or groups than of videos.
    """
    truth, names = np.asarray(train_labels), np.asarray(range(len(train)) if groups is None else groups)
    _check(train, truth)
    _check(train, names)
    _check(test, np.asarray(test_labels))
    if not all(len(video) for video in [*train, *test]):
        raise ValueError("expected at least one clip of each video")
    unit_frames([*train, *test])  # checks shapes and values
    distinct = np.unique(names)
    num_held = max(1, round(_HELD_OUT * len(distinct)))
    held = np.isin(names, np.random.default_rng(seed).permutation(distinct)[:num_held])
    penalty = 1.0
    if len(np.unique(truth[~held])) > 1:
        fitted, unseen = (
            [v for v, h in zip(train, held, strict=True) if h == side] for side in (False, True)
        )
        scores = [
            (_predicted(fitted, truth[~held], unseen, value) == truth[held]).mean() for value in _PENALTIES
        ]
        penalty = _PENALTIES[int(np.argmax(scores))]
    correct = _predicted(train, truth, test, penalty) == np.asarray(test_labels)
    return ratio_of_sums(correct.astype(np.float64), np.ones(len(test)))


def _predicted(
    train: Sequence[np.ndarray], labels: np.ndarray, test: Sequence[np.ndarray], penalty: float
) -> np.ndarray:
    """The most probable label of each test video."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if (labels == labels[0]).all():
        return np.repeat(labels[:1], len(test))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=_MOST_ITERATIONS))
    model.fit(np.concatenate(train), np.repeat(labels, [len(video) for video in train]))
    probabilities = model.predict_proba(np.concatenate(test))
    ends = np.cumsum([len(video) for video in test])[:-1]
    means = [part.mean(axis=0) for part in np.split(probabilities, ends)]
    predicted: np.ndarray = model.classes_[np.argmax(means, axis=1)]
    return predicted


def _check(vectors: Sequence[Any] | np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1,)) -> None:
    if len(vectors) != len(labels):
        raise ValueError(f"expected labels or groups of {len(vectors)} videos, got {len(labels)}")
    if not ks or min(ks) < 1 or max(ks) > len(vectors):
        raise ValueError(f"expected numbers of neighbours from 1 to {len(vectors)} videos, got {list(ks)}")


def _ranked(
    gallery: Vectors, queries: Vectors, center: Center
) -> Iterator[tuple[Int[np.ndarray, " rows"], Int[np.ndarray, "rows G"], Float64[np.ndarray, "rows G"]]]:
    """Some queries, the gallery from the nearest to the farthest video, and its cosines, until all are done."""
    unit_frames([gallery, queries])  # checks shapes and values
    means = {"gallery": (gallery, gallery), "own": (gallery, queries)}.get(center)
    if means is not None:
        gallery, queries = (
            x - m.mean(axis=0, dtype=np.float64) for x, m in zip((gallery, queries), means, strict=True)
        )
    gallery, queries = unit_frames([gallery, queries])
    size = max(1, MOST_SIMILARITIES // len(gallery))
    for start in range(0, len(queries), size):
        rows = np.arange(start, min(start + size, len(queries)))
        similarities = queries[rows] @ gallery.T
        order = np.argsort(-similarities, axis=1, kind="stable")
        yield rows, order, np.take_along_axis(similarities, order, axis=1)


def _run(videos: Videos) -> dict[str, Result]:
    train, test = ([video for video in side if is_labelled(video)] for side in (videos.train, videos.test))
    fitted, measured = (np.stack([v.embeddings.mean(axis=0) for v in side]) for side in (train, test))
    labels, truth = ([v.label for v in side] for side in (train, test))
    found = retrieval_of_videos(fitted, labels, measured, truth, ks=[k for k in KS if k <= len(train)])
    for k in _VOTERS:
        if k <= len(train):
            found[f"knn_{k}"] = nearest_neighbours(fitted, labels, measured, truth, k=k)
    labelled = np.array([is_labelled(video) for video in videos.test])
    none = np.zeros(len(test))
    undefined = ratio_of_sums(none, none, {"test_videos_with_fewer_candidates_than_k": len(test)})
    return {
        metric.name: of_some(found.get(metric.name.removeprefix("video_"), undefined), labelled)
        for metric in TASK.metrics
    }


def _metric(name: str, title: str, meaning: str) -> Metric:
    meaning = f"{meaning}, by the mean of their embeddings"
    return Metric(name=f"video_{name}", title=f"video {title} (%)", meaning=meaning)


_FOUND = "have a training video of their label among the {} nearest"
TASK = Task(
    name="recognition",
    needs=("two labels of two videos each",),
    pooled=True,
    metrics=(
        *(
            _metric(f"recall_at_{k}", f"R@{k}", f"share of the test videos that {_FOUND.format(k)}")
            for k in KS
        ),
        _metric(
            "mean_average_precision", "mAP", "average precision of finding training videos of the same label"
        ),
        *(
            _metric(
                f"knn_{k}", f"kNN, k = {k}", f"share of the test videos whose label the {k} nearest vote for"
            )
            for k in _VOTERS
        ),
    ),
    run=_run,
)
