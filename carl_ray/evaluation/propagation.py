"""Propagation of the frame labels of a few videos to others, and its accuracy as an evaluation task.

Where the phases of the labelled videos come once and in one order, each of them is aligned with the other video by
dynamic time warping, and the partners of a frame vote. Where phases return, each frame has the phase of its nearest
labelled frame, smoothed by the path of phases that is likeliest as a whole, with only those changes from phase to phase
that occur in the labelled videos. Frames without a label count as one more phase, "none".

Legend: N frames of the other video, V labelled videos, S states: the phases and, last, none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from carl_ray.evaluation.bootstrap import Result, ratio_of_sums
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.frames import unit_frames
from carl_ray.evaluation.intervals import LabelledVideo
from carl_ray.evaluation.task import Metric, Task, Videos

_MOST_FRAMES = 3000
"""Longer videos are strided: alignment takes time and memory by the product of two lengths."""
_SHORTEST_RUN = 0.5
"""Runs of a phase this much shorter than the shortest of the labelled ones are taken for noise."""
_COUNTS = (1, 3, 10)
_NUM_DRAWS = 5
_MOST_SOURCES = 20
_MOST_COMPARED = 10
_QUERIES_AT_A_TIME = 16


class Propagation(NamedTuple):
    """Predicted labels of a video."""

    phases: Int[np.ndarray, " N"]
    """-1: none."""
    confidence: Float64[np.ndarray, " N"]
    """From 0 to 1: how much nearer the phase is than others, and the share of the videos that vote for it."""


class Agreement(NamedTuple):
    """How well labelled videos label each other: shares of their labelled frames that are right."""

    propagated: float | None
    """None where no video has another one of its action."""
    straight_line: float | None
    """The control: the labels of the others at the same relative position, by majority."""


def propagate(
    source_embeddings: Sequence[Float[np.ndarray, "_ width"]],
    source_labels: Sequence[Int[np.ndarray, " _"]],
    embeddings: Float[np.ndarray, "N width"],
) -> Propagation:
    """Labels of a video from those of labelled ones.

    Args:
        source_embeddings: Of the labelled videos, one or more; normalised here.
        source_labels: Phase of each of their frames; -1: none.
        embeddings: Of the other video, with frames.

    Raises:
        ValueError: as `unit_frames`, or there is no labelled frame.
    """
    step = -(-max(map(len, [*source_embeddings, embeddings])) // _MOST_FRAMES)
    *sources, units = unit_frames([*source_embeddings, embeddings], stride=step)
    states, none = _states([labels[::step] for labels in source_labels])
    votes = _votes([units], sources, states, none)
    found = _decide(_nearest(units, sources, states, none), None if votes is None else votes[0], states)
    return Propagation(*(np.repeat(values, step)[: len(embeddings)] for values in found))


def sources_for(video: EmbeddedVideo, sources: Sequence[EmbeddedVideo]) -> list[EmbeddedVideo]:
    """The labelled videos of the same action as a video; those of an unknown one may be of any."""
    return [source for source in sources if video.label is None or source.label in (None, video.label)]


def propagate_names(sources: Sequence[EmbeddedVideo], video: EmbeddedVideo) -> LabelledVideo:
    """Names of the phases of the frames of a video, from those of labelled ones.

    Args:
        sources: The labelled videos, one or more; phases of one name are one.
        video: The other one, with frames.

    Raises:
        ValueError: as `propagate`.
    """
    own = [
        v.phase_names or [str(phase) for phase in range(int(v.phases.max(initial=-1)) + 1)] for v in sources
    ]
    names = [*dict.fromkeys(chain.from_iterable(own))]
    places = [np.array([*map(names.index, of_video), -1]) for of_video in own]
    labels = [place[source.phases] for place, source in zip(places, sources, strict=True)]
    found = propagate([source.embeddings for source in sources], labels, video.embeddings)
    return LabelledVideo(video, [[*names, ""][phase] for phase in found.phases], found.confidence)


def agreement(sources: Sequence[EmbeddedVideo]) -> Agreement:
    """Label each of the first ten labelled videos from the others, and by a straight line in time."""
    right, straight, total = 0, 0, 0
    for video in sources[:_MOST_COMPARED]:
        alike = [source for source in sources_for(video, sources) if source is not video]
        if not alike:
            continue
        own, found = _names(video), propagate_names(alike, video).labels
        others = [_names(source) for source in alike]
        for frame, name in enumerate(own):
            if name:
                votes = Counter(labels[frame * len(labels) // len(own)] for labels in others)
                right += found[frame] == name
                straight += votes.most_common(1)[0][0] == name
                total += 1
    return Agreement(right / total, straight / total) if total else Agreement(None, None)


def _names(video: EmbeddedVideo) -> list[str]:
    return [video.phase_name(phase) or "" for phase in video.phases.tolist()]


def _states(labels: Sequence[Int[np.ndarray, " _"]]) -> tuple[list[Int[np.ndarray, " _"]], int]:
    """State of each frame of the labelled videos, and the state "none"."""
    none = 1 + max(int(phases.max(initial=-1)) for phases in labels)
    if none == 0:
        raise ValueError("expected at least one labelled frame to propagate labels from, got none")
    return [np.where(phases < 0, none, phases) for phases in labels], none


def _nearest(
    units: np.ndarray, sources: Sequence[np.ndarray], states: Sequence[Int[np.ndarray, " _"]], none: int
) -> Float64[np.ndarray, "V N S"]:
    """Similarity of each frame to the nearest frame of each state of each labelled video; -1: the video lacks it."""
    nearest = np.full((len(sources), len(units), none + 1), -1.0)
    for place, (source, frames) in enumerate(zip(sources, states, strict=True)):
        order = np.argsort(frames, kind="stable")
        found, starts = np.unique(frames[order], return_index=True)
        nearest[place][:, found] = np.maximum.reduceat(units @ source[order].T, starts, axis=1)
    return nearest


def _votes(
    videos: Sequence[np.ndarray],
    sources: Sequence[np.ndarray],
    states: Sequence[Int[np.ndarray, " _"]],
    none: int,
) -> list[Float64[np.ndarray, "V N S"]] | None:
    """For each video the share of each state among the partners of its frames in each labelled video.

    None where phases return.
    """
    from carl_ray.evaluation.warping import partner_values

    if any((np.diff(frames[frames < none]) < 0).any() for frames in states):
        return None
    votes = [np.zeros((len(sources), len(units), none + 1)) for units in videos]
    of_states = [np.eye(none + 1)[frames] for frames in [*states, *(np.full(len(v), none) for v in videos)]]
    first = len(sources)
    pairs = ((first + number, place) for number in range(len(videos)) for place in range(first))
    for video, other, partners in partner_values([*sources, *videos], of_states, pairs):
        if video >= first:
            votes[video - first][other] = partners
    return votes


def _decide(
    nearest: Float64[np.ndarray, "V N S"],
    votes: Float64[np.ndarray, "V N S"] | None,
    states: Sequence[Int[np.ndarray, " _"]],
) -> Propagation:
    """The likeliest phase of each frame."""
    similarities = nearest.max(0)
    best = np.partition(similarities, -2, axis=1)[:, -2:]
    margin = max(float((best[:, 1] - best[:, 0]).mean()), 1e-9)
    weights = np.exp((similarities - best[:, 1:]) / (margin / 2))
    shares = weights / weights.sum(1, keepdims=True)
    if votes is None:
        runs = [np.diff(np.flatnonzero(np.diff(frames, prepend=-1, append=-1))) for frames in states]
        # A run is worth its frames times the margin, and costs two changes.
        change_cost = margin * _SHORTEST_RUN * min(int(lengths.min()) for lengths in runs) / 2
        path = _likeliest_path(similarities, states, change_cost)
    else:
        shares = (shares + votes.mean(0)) / 2
        path = votes.mean(0).argmax(1)
    phases = np.where(path == similarities.shape[1] - 1, -1, path)
    return Propagation(phases, shares[np.arange(len(path)), path])


def _likeliest_path(
    similarities: Float64[np.ndarray, "N S"], states: Sequence[Int[np.ndarray, " _"]], change_cost: float
) -> Int[np.ndarray, " N"]:
    """States of greatest total similarity less the cost of changes (Viterbi), of which only those seen are allowed."""
    gain = np.full((similarities.shape[1],) * 2, -np.inf)
    for frames in states:
        gain[frames[:-1], frames[1:]] = -change_cost
    np.fill_diagonal(gain, 0)
    total, before = similarities[0], np.zeros(similarities.shape, np.int64)
    for frame, similarity in enumerate(similarities[1:], 1):
        reached = total[:, None] + gain
        before[frame], total = reached.argmax(0), reached.max(0) + similarity
    path = [int(total.argmax())]
    for previous in before[:0:-1]:
        path.append(int(previous[path[-1]]))
    return np.array(path[::-1])


def _run(videos: Videos) -> dict[str, Result]:
    """Accuracy over the labelled test frames for each number of labelled videos, by seeded draws."""
    rng, stride, test = np.random.default_rng(videos.seed), videos.stride, videos.test
    labelled = [video for video in videos.train if (video.phases >= 0).any()]
    chosen = [labelled[k] for k in rng.permutation(len(labelled))[:_MOST_SOURCES]]
    draws = [rng.permutation(len(chosen))[:count] for _ in range(_NUM_DRAWS) for count in _COUNTS]
    correct = np.zeros((len(draws), len(test)))
    truths = [video.phases[::stride] for video in test]
    if chosen:
        units = unit_frames([video.embeddings for video in [*chosen, *test]], stride=stride)
        states, none = _states([video.phases[::stride] for video in chosen])
        sources, queries = units[: len(chosen)], units[len(chosen) :]
        for number, truth in enumerate(truths):
            if number % _QUERIES_AT_A_TIME == 0:  # Several: short videos fill a batch.
                votes = _votes(queries[number : number + _QUERIES_AT_A_TIME], sources, states, none)
            nearest = _nearest(queries[number], sources, states, none)
            for place, drawn in enumerate(draws if len(truth) else []):
                some = None if votes is None else votes[number % _QUERIES_AT_A_TIME][drawn]
                found = _decide(nearest[drawn], some, [states[k] for k in drawn])
                correct[place, number] = ((found.phases == truth) & (truth >= 0)).sum()
    frames = np.array([(truth >= 0).sum() for truth in truths], dtype=np.float64)
    results = {}
    for place, count in enumerate(_COUNTS):
        lacking = max(0, count - len(chosen))
        right = correct[place :: len(_COUNTS)].mean(0)
        left_out = {"labelled_training_videos_too_few": lacking}
        results[f"propagation_{count}"] = ratio_of_sums(right, frames * (lacking == 0), left_out)
    return results


TASK = Task(
    name="propagation",
    needs=("frame labels", "labelled training videos"),
    metrics=tuple(
        Metric(
            name=f"propagation_{count}",
            title=f"propagation, from {count} {'video' if count == 1 else 'videos'} (%)",
            meaning=f"share of the test frames whose phase `carl-ray propagate` finds from {count} labelled training "
            f"{'video' if count == 1 else 'videos'} of the action; mean over {_NUM_DRAWS} draws of these",
        )
        for count in _COUNTS
    ),
    run=_run,
)
