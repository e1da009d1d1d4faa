"""What all metrics of embeddings promise: directions alone matter, and neither order nor batches nor empty videos."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from carl_ray.evaluation import (
    alignment_error,
    average_precision_at_k,
    kendall,
    kendalls_tau,
    label_free,
    retrieval,
    warping,
)
from carl_ray.evaluation.label_free import consistent_warping

Videos = Sequence[np.ndarray]
Metric = Callable[..., float]


def labels_of(videos: Videos) -> list[np.ndarray]:
    """Of the frames, in four equal parts; the label of a frame stays with it."""
    return [np.arange(len(video)) * 4 // max(len(video), 1) for video in videos]


def progress_of(videos: Videos) -> list[np.ndarray]:
    return [np.linspace(0, 1, len(video)) ** (1 + len(video) / 30) for video in videos]


METRICS: dict[str, Metric] = {
    "tau": lambda videos, **options: kendalls_tau(videos, **options).value,
    "AP@5": lambda videos, **options: average_precision_at_k(videos, labels_of(videos), 5, **options).value,
    "alignment": lambda videos, **options: alignment_error(videos, progress_of(videos), **options).value,
    "label free": consistent_warping,
}
every = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def walks(seed: int = 0, lengths: Sequence[int] = (30, 41, 12, 25, 18)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, 6)).cumsum(0) for length in lengths]


@every
def test_the_order_of_the_videos_does_not_matter(metric: Metric) -> None:
    videos = walks()
    assert metric([videos[k] for k in (3, 0, 4, 2, 1)]) == pytest.approx(metric(videos), abs=1e-12)


@every
def test_small_batches_give_the_same(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = metric(walks())
    for module in (kendall, retrieval, label_free):
        monkeypatch.setattr(module, "MOST_SIMILARITIES", 500)
    monkeypatch.setattr(kendall, "_MOST_SIGNS", 50)
    monkeypatch.setattr(warping, "_MOST_CELLS", 500)
    assert metric(walks()) == pytest.approx(expected, abs=1e-12)


@every
def test_scale_rotation_and_idle_dimensions_do_not_matter(metric: Metric) -> None:
    videos, rotation = walks(), np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    expected = metric(videos)
    assert abs(expected) > 1e-3
    scaled = [video * scale for video, scale in zip(videos, (1e-200, 1e200, 3, 0.1, 7), strict=True)]
    wider = [np.hstack([video, np.zeros((len(video), 3))]) for video in videos]
    for same in (scaled, wider, [video @ rotation for video in videos]):
        assert metric(same) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["tau", "AP@5", "label free"])
def test_the_stride_leaves_frames_out(name: str) -> None:
    # Of lengths whose quarters are the same in every other frame.
    videos = walks(lengths=(32, 40, 16, 24))
    assert METRICS[name](videos, stride=2) == METRICS[name]([video[::2] for video in videos])


@every
def test_half_precision_is_read_and_arguments_are_not_changed(metric: Metric) -> None:
    videos = [video.astype(np.float16) for video in walks()]
    before = [video.copy() for video in videos]
    assert metric(videos) == pytest.approx(metric([video.astype(np.float64) for video in videos]), abs=1e-12)
    assert all(map(np.array_equal, videos, before))


@every
def test_videos_without_frames_do_not_matter(metric: Metric) -> None:
    first, *others = walks()
    assert metric([first, np.zeros((0, 6)), *others]) == pytest.approx(metric(walks()), abs=1e-12)
    alone = metric([first])
    assert alone == 0 if metric is consistent_warping else math.isnan(alone)


@every
@pytest.mark.parametrize(
    ("videos", "stride", "message"),
    [
        ([], 1, "at least one video, got none"),
        ([np.ones((4, 3)), np.ones((4, 2))], 1, "video 1: expected width 3 as in video 0, got 2"),
        ([np.ones(4)], 1, r"video 0: expected \(frames, width\), got shape \(4,\)"),
        ([np.ones((4, 3)), np.full((4, 3), np.inf)], 1, "video 1: expected finite values"),
        ([np.ones((4, 3))] * 3, 0, "stride must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(metric: Metric, videos: Videos, stride: int, message: str) -> None:
    # Where jaxtyping checks shapes while tests run, it refuses wrong ones first, with a TypeError.
    with pytest.raises((ValueError, TypeError), match=f"{message}|Type-check error"):
        metric(videos, stride=stride)
