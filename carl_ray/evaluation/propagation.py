"""Propagation of the frame labels of a few videos to others, and its accuracy as an evaluation task.

Where the phases of the labelled videos come once and in one order, each of them is aligned with the other video by
dynamic time warping, and the partners of a frame vote. Where phases return, each frame has the phase of its nearest
labelled frame, smoothed by the path of phases that is likeliest as a whole, with only those changes from phase to phase
that occur in the labelled videos. Frames without a label count as one more phase, "none".

Legend: N frames of the other video, V labelled videos, S states: the phases and, last, none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from carl_ray.evaluation.bootstrap import Result, ratio_of_sums
from carl_ray.evaluation.frames import unit_frames
from carl_ray.evaluation.task import Metric, Task, Videos

if TYPE_CHECKING:
    pass

_MOST_FRAMES = 3000
"""Longer videos are strided: alignment takes time and memory by the product of two lengths."""
_SHORTEST_RUN = 0.5
"""Runs of a phase this much shorter than the shortest of the labelled ones are taken for noise."""
_COUNTS = (1, 3, 10)
_NUM_DRAWS = 5
_MOST_SOURCES = 20


class Propagation(NamedTuple):
    """Predicted labels of a video."""

    phases: Int[np.ndarray, " N"]
    """-1: none."""
    confidence: Float64[np.ndarray, " N"]
    """From 0 to 1: how much nearer the phase is than others, and the share of the videos that vote for it."""


class _Evidence(NamedTuple):
    nearest: Float64[np.ndarray, "V N S"]
    """Similarity of each frame to the nearest frame of each state; -1 where a video lacks it."""
    votes: Float64[np.ndarray, "V N S"] | None
    """Share of the partners in each state; None where phases return."""


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
    states, num_states = _states([labels[::step] for labels in source_labels])
    (evidence,) = _evidence(sources, states, [units], num_states)
    found = _decide(evidence, states, num_states)
    return Propagation(*(np.repeat(values, step)[: len(embeddings)] for values in found))


def _states(labels: Sequence[Int[np.ndarray, " _"]]) -> tuple[list[Int[np.ndarray, " _"]], int]:
    """State of each frame, and S."""
    none = 1 + max(int(phases.max(initial=-1)) for phases in labels)
    if none == 0:
        raise ValueError("expected at least one labelled frame to propagate labels from, got none")
    return [np.where(phases < 0, none, phases) for phases in labels], none + 1


def _evidence(
    sources: Sequence[np.ndarray],
    states: Sequence[Int[np.ndarray, " _"]],
    targets: Sequence[np.ndarray],
    num_states: int,
) -> list[_Evidence]:
    """What the labelled videos say about the frames of each of the others; all are unit vectors."""
    from carl_ray.evaluation.warping import partner_values

    of_state = [np.eye(num_states)[frames] for frames in states]
    found = []
    for units in targets:
        nearest = np.full((len(sources), len(units), num_states), -1.0)
        for place, (source, frames) in enumerate(zip(sources, states, strict=True)):
            similarities = units @ source.T
            for state in np.unique(frames):
                nearest[place, :, state] = similarities[:, frames == state].max(1)
        found.append(_Evidence(nearest, None))
    if any((np.diff(frames[frames < num_states - 1]) < 0).any() for frames in states):
        return found
    videos = [*sources, *targets]
    values = [*of_state, *(np.zeros((len(units), num_states)) for units in targets)]
    pairs = [(len(sources) + t, s) for t in range(len(targets)) for s in range(len(sources))]
    found = [_Evidence(evidence.nearest, np.zeros_like(evidence.nearest)) for evidence in found]
    for a, b, partners in partner_values(videos, values, pairs):
        if a >= len(sources) and (votes := found[a - len(sources)].votes) is not None:
            votes[b] = partners
    return found


def _decide(evidence: _Evidence, states: Sequence[Int[np.ndarray, " _"]], num_states: int) -> Propagation:
    """The likeliest phase of each frame."""
    nearest = evidence.nearest.max(0)
    best = np.partition(nearest, -2, axis=1)[:, -2:]
    margin = max(float((best[:, 1] - best[:, 0]).mean()), 1e-9)
    weights = np.exp((nearest - best[:, 1:]) / (margin / 2))
    shares = weights / weights.sum(1, keepdims=True)
    if evidence.votes is None:
        # A run is worth its frames times the margin, and costs two changes.
        cost = margin * _SHORTEST_RUN * min(map(_shortest_run, states)) / 2
        path = _likeliest_path(nearest, _changes(states, num_states), cost)
    else:
        votes = evidence.votes.mean(0)
        path = votes.argmax(1)
        shares = (shares + votes) / 2
    phases = np.where(path == num_states - 1, -1, path)
    return Propagation(phases, shares[np.arange(len(path)), path])


def _shortest_run(states: Int[np.ndarray, " _"]) -> int:
    return int(np.diff(np.flatnonzero(np.diff(states, prepend=-1, append=-1))).min())


def _changes(states: Sequence[Int[np.ndarray, " _"]], num_states: int) -> Bool[np.ndarray, "S S"]:
    """Changes from state to state that occur, no change included."""
    occur = np.eye(num_states, dtype=bool)
    for frames in states:
        occur[frames[:-1], frames[1:]] = True
    return occur


def _likeliest_path(
    similarities: Float64[np.ndarray, "N S"], changes: Bool[np.ndarray, "S S"], cost: float
) -> Int[np.ndarray, " N"]:
    """States of greatest total similarity, less `cost` for each change (Viterbi's algorithm)."""
    gain = np.where(changes, cost * np.eye(len(changes)) - cost, -np.inf)
    total = similarities[0]
    before = np.zeros(similarities.shape, np.int64)
    for frame, similarity in enumerate(similarities[1:], 1):
        reached = total[:, None] + gain
        before[frame] = reached.argmax(0)
        total = reached.max(0) + similarity
    path = [int(total.argmax())]
    for frame in range(len(similarities) - 1, 0, -1):
        path.append(int(before[frame, path[-1]]))
    return np.array(path[::-1])


def _run(videos: Videos) -> dict[str, Result]:
    """Accuracy over the labelled test frames for each number of labelled videos, by seeded draws."""
    rng, stride, test = np.random.default_rng(videos.seed), videos.stride, videos.test
    labelled = [video for video in videos.train if (video.phases >= 0).any()]
    chosen = [labelled[k] for k in rng.permutation(len(labelled))[:_MOST_SOURCES]]
    truths = [video.phases[::stride] for video in test]
    frames = np.array([(truth >= 0).sum() for truth in truths], dtype=np.float64)
    correct = np.zeros((len(_COUNTS), len(test)))
    if chosen:
        units = unit_frames([video.embeddings for video in [*chosen, *test]], stride=stride)
        states, num_states = _states([video.phases[::stride] for video in chosen])
        evidences = _evidence(units[: len(chosen)], states, units[len(chosen) :], num_states)
        for _ in range(_NUM_DRAWS):
            order = rng.permutation(len(chosen))
            for place, count in enumerate(_COUNTS):
                drawn = order[:count]
                for number, (truth, evidence) in enumerate(zip(truths, evidences, strict=True)):
                    if frames[number]:
                        votes = None if evidence.votes is None else evidence.votes[drawn]
                        some = _Evidence(evidence.nearest[drawn], votes)
                        found = _decide(some, [states[k] for k in drawn], num_states)
                        correct[place, number] += ((found.phases == truth) & (truth >= 0)).sum() / _NUM_DRAWS
    lacking = [max(0, count - len(chosen)) for count in _COUNTS]
    return {
        f"propagation_{count}": ratio_of_sums(
            right, frames * (lack == 0), {"labelled_training_videos_too_few": lack}
        )
        for count, right, lack in zip(_COUNTS, correct, lacking, strict=True)
    }


TASK = Task(
    name="propagation",
    needs=("training videos", "frame labels"),
    metrics=tuple(
        Metric(
            name=f"propagation_{count}",
            title=f"propagation from {count} {'video' if count == 1 else 'videos'} (%)",
            meaning=f"share of the test frames whose phase `carl-ray propagate` finds from {count} labelled training "
            f"{'video' if count == 1 else 'videos'} of the action; mean over {_NUM_DRAWS} draws of these",
        )
        for count in _COUNTS
    ),
    run=_run,
)
