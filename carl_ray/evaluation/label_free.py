"""A score of an encoder from whole videos alone: no labels, no timestamps but the order of the frames.

For choosing between hyperparameters where nothing is labelled. The loss cannot: tau, sigma^2 and T change its
scale. Kendall's tau cannot: positions alone win it. Ranks and spectra of the embeddings cannot: random vectors
have the highest rank. So the score asks for what seeing the action gives:

    video a ──────────── aligned with ───────────▶ video b     direct: where in b is the partner of a frame of a?
       └── aligned with ▶ video c ── aligned with ─────┘       detour: the same question, by way of c

An encoder that embeds relative times puts partners at the same relative time: it never departs from there. One
that embeds noise departs, but the detour leads elsewhere. People act at different speeds and idle for different
times, so an encoder that sees the action departs as the videos do, and both ways lead to the same frame.

The converse does not hold. Whatever each video's embeddings keep time by, detours over it agree: the number of the
frame in videos of different lengths, or a clock that is bent at random for each video, departs consistently and
can score as high as true progress, or higher (docs/label_free.md). No score of embeddings alone can tell: give
every video the true progress of another one, and the embeddings are of the same kind as before. So this compares
encoders of which it may be assumed that what they have learnt is in the frames; it does not prove that one has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int

from carl_ray.evaluation.frames import MOST_SIMILARITIES, unit_frames
from carl_ray.objectives.dtw import dynamic_time_warping

# Videos that each video is aligned with: those most like it, as a warping path between other actions means
# nothing. Two are the fewest with a detour.
_NUM_NEIGHBOURS = 3
# A difference of direct way and detour has the errors of three alignments.
_ERROR_OF_ONE = 1 / math.sqrt(3)
# Of equally cheap paths the one nearest to equal relative time, whatever rounding says: where the embeddings
# leave the choice, it must not look like a departure. Far below any difference of cosines that an encoder means.
_TIE_COST = 1e-6
# Cells of a batch of padded cost matrices, float64: bounds memory to some hundred megabytes.
_MOST_CELLS = 1 << 21

_Videos = list[Float64[np.ndarray, "_ width"]]
_Pair = tuple[int, int]


def consistent_warping(embeddings: Sequence[Float[np.ndarray, "_ width"]], *, stride: int = 1) -> float:
    """How far alignments depart from equal relative time, beyond what their own errors would make them.

    Each video a is aligned with the three videos most like it (by the mean, over its frames, of the cosine of
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
        stride: Every so many frames are seen.

    Returns:
        Between -1 / sqrt(3) and 1, never NaN; 0 where fewer than three videos have frames.

    Raises:
        ValueError: as `unit_frames`.
    """
    units = [frames for frames in unit_frames(embeddings, stride=stride) if len(frames)]
    if len(units) < 3:
        return 0.0
    neighbours = _most_alike(units, min(_NUM_NEIGHBOURS, len(units) - 1))
    detours = [
        (a, b, c) for a, around in enumerate(neighbours.tolist()) for b in around for c in around if b != c
    ]
    pairs = {_ordered(*pair) for a, b, c in detours for pair in ((a, b), (a, c), (c, b))}
    partners = _partner_times(units, pairs)
    times = [_relative_times(len(frames)) for frames in units]
    # Every video has the same number of detours, so the mean of all is the mean over videos.
    return float(np.mean([_gain(times, partners, *detour) for detour in detours]))


def _gain(
    times: list[Float64[np.ndarray, " _"]],
    partners: dict[_Pair, Float64[np.ndarray, " _"]],
    a: int,
    b: int,
    c: int,
) -> float:
    """Mean over the frames of a of the departure from equal time in b, less that of errors alone."""
    direct = partners[a, b]
    detour = np.interp(partners[a, c], times[c], partners[c, b])
    return float((np.abs(direct - times[a]) - _ERROR_OF_ONE * np.abs(direct - detour)).mean())


def _most_alike(units: _Videos, count: int) -> Int[np.ndarray, "videos count"]:
    """For each video the `count` others in which its frames have the nearest neighbours on average."""
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


def _partner_times(units: _Videos, pairs: set[_Pair]) -> dict[_Pair, Float64[np.ndarray, " _"]]:
    """For both orders of each pair: the mean relative time, in the second, of the partners of each frame."""
    found: dict[_Pair, Float64[np.ndarray, " _"]] = {}
    for batch in _batches(units, pairs):
        shape = [max(len(units[pair[side]]) for pair in batch) for side in (0, 1)]
        cost = torch.zeros(len(batch), *shape, dtype=torch.float64)
        masks = [torch.zeros(len(batch), length, dtype=torch.bool) for length in shape]
        for place, (a, b) in enumerate(batch):
            time1, time2 = _relative_times(len(units[a])), _relative_times(len(units[b]))
            distance = 1 - units[a] @ units[b].T + _TIE_COST * np.abs(time1[:, None] - time2)
            cost[place, : len(time1), : len(time2)] = torch.from_numpy(distance)
            masks[0][place, : len(time1)] = True
            masks[1][place, : len(time2)] = True
        paths = dynamic_time_warping(cost, *masks).cells.numpy()
        for place, (a, b) in enumerate(batch):
            cells = paths[place, : len(units[a]), : len(units[b])]
            found[a, b] = cells @ _relative_times(len(units[b])) / cells.sum(1)
            found[b, a] = cells.T @ _relative_times(len(units[a])) / cells.sum(0)
    return found


def _batches(units: _Videos, pairs: set[_Pair]) -> Iterator[list[_Pair]]:
    """The pairs in batches of alike lengths and bounded size."""
    batch: list[_Pair] = []
    first = second = 0
    for a, b in sorted(pairs, key=lambda pair: [len(units[video]) for video in pair]):
        first, second = max(first, len(units[a])), max(second, len(units[b]))
        if batch and (len(batch) + 1) * first * second > _MOST_CELLS:
            yield batch
            batch, first, second = [], len(units[a]), len(units[b])
        batch.append((a, b))
    if batch:
        yield batch


def _ordered(first: int, second: int) -> _Pair:
    return (first, second) if first < second else (second, first)


def _relative_times(length: int) -> Float64[np.ndarray, " length"]:
    """0 at the first frame, 1 at the last, as positions are spread over a video."""
    return np.linspace(0, 1, length)
