"""Consistent warping: a score of encoders on unlabelled videos.

It compares hyperparameters without labels.

The loss cannot compare them, because tau, sigma^2 and T change its scale; Kendall's tau cannot, because positions alone
win it; ranks and spectra of the embeddings cannot, because random vectors have the highest rank.

    video a ──────────── aligned with ───────────▶ video b     direct: where in b is the partner of a frame of a?
       └── aligned with ▶ video c ── aligned with ─────┘       detour: the same question, by way of c

Embeddings of relative time alone align frames at equal relative time: no departure from it. Noise departs, but the
detour leads elsewhere. People act at different speeds and idle for different times, so an encoder that sees the action
departs as the videos do, and both ways lead to the same frame.

The converse does not hold: whatever keeps time in each video, such as the number of the frame in videos of different
lengths or a clock that is bent at random for each video, departs consistently and can score as high as true progress,
or higher (docs/results.md). No score of embeddings alone can tell these apart. So the score compares encoders that
may be assumed to have learnt what is in the frames; it does not prove that one has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int

from carl_ray.evaluation.bootstrap import Result, fixed_value
from carl_ray.evaluation.frames import MOST_SIMILARITIES, unit_frames
from carl_ray.evaluation.task import Metric, Task, Videos

# Videos that each video is aligned with: the most similar ones, as a warping path between different actions means
# nothing. Two are the fewest with a detour.
_NUM_NEIGHBOURS = 3
# A difference of direct way and detour has the errors of three alignments.
_ERROR_OF_ONE = 1 / math.sqrt(3)
# Breaks ties between equally cheap paths towards equal relative time, which would otherwise look like a departure. Far
# below any meaningful difference of cosines.
_TIE_COST = 1e-6


def consistent_warping(embeddings: Sequence[Float[np.ndarray, "_ width"]], *, stride: int = 1) -> float:
    """Departure of alignments from equal relative time, beyond their errors.

    Each video a is aligned with the three videos most similar to it (by the mean, over its frames, of the cosine of
    the nearest frame there), and these with one another, by dynamic time warping with the cosine distance as
    cost. Times are relative: 0 is the first, 1 the last frame of a video. For a frame of a at time t, its
    mean partner in b at time p, and the partner in b of its partner in another neighbour c at time q:

        score = mean of |p - t| - |p - q| / sqrt(3)      over b and c, the frames of a, then all videos a

    |p - q| holds the errors of three alignments. Were they independent, normal and of one size, |p - q| would
    be sqrt(3) times the error of a single one: that much departure is no evidence and is taken off.

    Higher is better. Positions alone give about 0, as do random vectors and a constant. True progress gives how
    far the videos depart from one another in time. That is no upper bound: departures that are consistent and
    false count the same. Values on one set of videos compare encoders, whatever their scale, rotation and width,
    and say nothing beside those on another set; trimmed videos of even speed leave little to see. Like the
    alignment error it takes for granted that the phases of an action come once, in one order.

    Args:
        embeddings: One array a video; normalised here. Videos without frames are left out.
        stride: Only every `stride`-th frame is used.

    Returns:
        Between -1 / sqrt(3) and 1, never NaN; 0 where fewer than three videos have frames.

    Raises:
        ValueError: as `unit_frames`.
    """
    from carl_ray.evaluation.warping import partner_values

    units = [frames for frames in unit_frames(embeddings, stride=stride) if len(frames)]
    if len(units) < 3:
        return 0.0
    neighbours = _most_alike(units, min(_NUM_NEIGHBOURS, len(units) - 1))
    detours = [
        (a, b, c) for a, around in enumerate(neighbours.tolist()) for b in around for c in around if b != c
    ]
    pairs = {(min(pair), max(pair)) for a, b, c in detours for pair in ((a, b), (a, c), (c, b))}
    times = [np.linspace(0, 1, len(frames)) for frames in units]
    partners = {(a, b): found for a, b, found in partner_values(units, times, pairs, tie_cost=_TIE_COST)}
    # Every video has the same number of detours, so the mean of all is the mean over videos.
    return float(np.mean([_gain(times, partners, *detour) for detour in detours]))


def _gain(
    times: list[Float64[np.ndarray, " _"]],
    partners: dict[tuple[int, int], Float64[np.ndarray, " _"]],
    a: int,
    b: int,
    c: int,
) -> float:
    """Mean over the frames of a of the departure in b, less that of errors alone."""
    direct = partners[a, b]
    detour = np.interp(partners[a, c], times[c], partners[c, b])
    return float((np.abs(direct - times[a]) - _ERROR_OF_ONE * np.abs(direct - detour)).mean())


def _most_alike(units: list[Float64[np.ndarray, "_ width"]], count: int) -> Int[np.ndarray, "videos count"]:
    """For each video the `count` others with the nearest frames on average."""
    frames = np.concatenate(units)
    starts = np.cumsum([0] + [len(video) for video in units[:-1]])
    size = max(1, MOST_SIMILARITIES // len(frames))
    likeness = np.empty((len(units), len(units)))
    for number, video in enumerate(units):
        # A sum over the frames of the video: its order is that of the mean.
        likeness[number] = sum(
            np.maximum.reduceat(frames @ video[start : start + size].T, starts).sum(1)
            for start in range(0, len(video), size)
        )
    np.fill_diagonal(likeness, -np.inf)
    return np.argsort(-likeness, axis=1, kind="stable")[:, :count]


def _run(videos: Videos) -> dict[str, Result]:
    score = consistent_warping(videos.test_arrays[0], stride=videos.stride)
    return {"label_free": fixed_value(score, len(videos.test))}


TASK = Task(
    name="label_free",
    pooled=True,
    metrics=(
        Metric(
            name="label_free",
            title="score without labels",
            meaning="how far alignments of videos depart consistently from equal relative time; positions, noise and "
            "constants give about 0. It compares encoders and does not prove that one has learnt the action",
            needs_one_order=True,
        ),
    ),
    run=_run,
)
