"""How the score without labels ranks encoders that are measured with labels, too.

    python -m benchmarks.studies.label_free RUN… [--split test]

Each RUN is a run folder with embeddings of training videos and of the split: of a study, in `RUN/embeddings`, or of a
sweep's trial, each of `RUN/embeddings/step-…`. The score sees one half of the split's videos, phase classification
is that of the other half, so that no video is in both. All encoders must have embedded the same videos. Markdown goes
to standard output. Nothing is trained or embedded; 20 encoders of 32 videos take a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.bootstrap import Result
from carl_ray.evaluation.embeddings import EmbeddedVideo, Origin, read_embeddings, read_origin
from carl_ray.evaluation.frames import unit_frames
from carl_ray.options import OptionParser

_TITLED = {"temperature": "tau", "variance": "variance"}
_NEAR = ("scl", "contrastive", "weak_scl")
"""Objectives that place the frames of two views by their distance in time: variants of one another, as in a sweep."""
_NUM_HALVINGS = 20
_NUM_DRAWS = 1000
_FEWEST_RANKED = 3
_FEWEST_WITH_INTERVAL = 5
_NUM_CENTRES = 20

_Halves = Bool[np.ndarray, "halves videos"]
_OfHalves = Float[np.ndarray, " halves"]
_Matrix = Float[np.ndarray, "encoders halves"]


@dataclass(frozen=True, eq=False)
class Encoder:
    """What an encoder is worth, on all videos and on halves of them."""

    name: str
    """Objective, settings, seed and steps of training."""
    groups: tuple[str, ...]
    """What it is ranked among, besides all."""
    accuracy: float
    """Phase classification on all videos."""
    score: float
    """Consistent warping of all videos."""
    accuracies: _OfHalves
    """Phase classification on each half."""
    scores: dict[str, _OfHalves]
    """Scores without labels of each half, by name."""


@dataclass(frozen=True)
class Correlation:
    """How a score ranks encoders."""

    value: float
    """Spearman's, of the score on a half and phase classification on the other half; mean over the halves."""
    low: float
    """Lower end of its 95 % bootstrap interval over encoders."""
    high: float
    """Upper end."""
    p_value: float
    """One-sided: share of random orders of the encoders that do at least as well."""


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    with one_line_errors():
        parser = OptionParser(
            prog="python -m benchmarks.studies.label_free",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders with embeddings")
        parser.add_argument("--split", default="test", help="of the videos to measure on (default test)")
        options = parser.parse_args(arguments)
        encoders: list[Encoder] = []
        first: list[EmbeddedVideo] = []
        for run in options.runs:
            for folder in _folders(run):
                videos = read_embeddings(folder, split=options.split)
                first = first or videos
                if [(v.video_id, len(v)) for v in videos] != [(v.video_id, len(v)) for v in first]:
                    raise UserError(
                        f"{storage.public_uri(folder)}: expected embeddings of the same videos as the first folder's"
                    )
                encoders.append(_measured(run, folder, videos))
                print(f"{encoders[-1].name}: {encoders[-1].score:.4f}", file=sys.stderr, flush=True)
        print(_markdown(encoders, control_scores(first, read_origin(_folders(options.runs[0])[0]))))


def halves_of(labels: Sequence[str | None], count: int, seed: int = 0) -> _Halves:
    """Random halves of the videos, half of each action, each followed by the rest of the videos.

    Args:
        labels: Action of each video.
        count: How often the videos are halved; 2 `count` rows come out.
        seed: Of the draws.
    """
    rng, names = np.random.default_rng(seed), np.array([label or "" for label in labels])
    halves = []
    for _ in range(count):
        half = np.zeros(len(names), dtype=bool)
        for name in np.unique(names):
            members = rng.permutation(np.flatnonzero(names == name))
            half[members[: len(members) // 2]] = True
        halves += [half, ~half]
    return np.array(halves)


def correlate(
    scores: _Matrix, accuracies: _Matrix, *, num_draws: int = _NUM_DRAWS, seed: int = 0
) -> Correlation:
    """How scores on halves rank encoders, against the accuracies on each half's complement.

    Halves 2 k and 2 k + 1 are each other's complements. Where all encoders tie, the correlation is 0.

    Args:
        scores: By encoder and half; at least three encoders.
        accuracies: Likewise.
        num_draws: Bootstrap samples, and random orders.
        seed: Of both.
    """
    rng, count = np.random.default_rng(seed), len(scores)
    others = accuracies[:, np.arange(accuracies.shape[1]) ^ 1]
    value = rank_correlation(scores, others)
    draws = rng.integers(0, count, (num_draws, count))
    # Of two encoders every order is perfect.
    draws = draws[[len(set(draw)) > 2 for draw in draws.tolist()]]
    low, high = np.percentile(rank_correlation(scores[draws], others[draws]), [2.5, 97.5])
    # An encoder keeps all its halves: they are far from independent.
    orders = rng.permuted(np.tile(np.arange(count), (num_draws, 1)), axis=1)
    at_least = rank_correlation(scores[orders], others) >= value - 1e-12
    # The order that was found is one of those possible.
    p_value = (1 + int(at_least.sum())) / (1 + num_draws)
    return Correlation(float(value), float(low), float(high), p_value)


def rank_correlation(
    first: Float[np.ndarray, "*draws encoders halves"], second: Float[np.ndarray, "*draws encoders halves"]
) -> Float[np.ndarray, "*draws"]:
    """Spearman's correlation over the encoders, mean over the halves; 0 for halves in which all encoders tie."""
    return (_standard_ranks(first) * _standard_ranks(second)).mean((-2, -1))


def _standard_ranks(
    values: Float[np.ndarray, "*draws encoders halves"],
) -> Float[np.ndarray, "*draws encoders halves"]:
    """Ranks over the encoders, mean 0 and deviation 1; zeros where all are equal."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=-2)
    ranks -= ranks.mean(-2, keepdims=True)
    deviation = ranks.std(-2, keepdims=True)
    return np.divide(ranks, deviation, out=np.zeros_like(ranks), where=deviation > 0)


def effective_rank(embeddings: Sequence[Float[np.ndarray, "_ width"]]) -> float:
    """RankMe (Garrido et al., ICML 2023): exp of the entropy of the normalised frames' singular values."""
    values = np.linalg.svd(np.concatenate(unit_frames(embeddings)), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def clock_codes(clocks: Sequence[Float[np.ndarray, " _"]]) -> list[Float[np.ndarray, "_ width"]]:
    """Frames as bumps on a line, where the clock of their video stands: an encoder that is that clock.

    Args:
        clocks: What a video's clock shows at each of its frames, within [0, 1].
    """
    centres = np.linspace(0, 1, _NUM_CENTRES)
    return [np.exp(-80 * (clock[:, None] - centres) ** 2) for clock in clocks]


def control_scores(videos: Sequence[EmbeddedVideo], origin: Origin, seed: int = 0) -> dict[str, float]:
    """The score of codes of which it is known what they see, on videos as long as these.

    Args:
        videos: Videos; what depends on `progress` is left out where one has none.
        origin: Where their embeddings come from.
        seed: Of everything random.
    """
    from carl_ray.evaluation.controls import chance, positions
    from carl_ray.evaluation.label_free import consistent_warping

    lengths, rng = [len(video) for video in videos], np.random.default_rng(seed)
    times = [np.linspace(0, 1, length) for length in lengths]
    codes: dict[str, Sequence[np.ndarray]] = {
        "positions": positions(videos, origin),
        "chance": chance(videos, origin, seed),
        "number of the frame": clock_codes([np.arange(length) / max(lengths) for length in lengths]),
    }
    for most in (1.5, 3.0, 6.0):
        powers = most ** rng.uniform(-1, 1, len(times))
        codes[f"blind clock of each video, up to t^{most:g}"] = clock_codes(
            [time**power for time, power in zip(times, powers, strict=True)]
        )
    known = [video.progress.astype(np.float64) for video in videos if video.progress is not None]
    if len(known) == len(videos):
        shuffled = [known[number] for number in rng.permutation(len(known))]
        codes["true progress"] = clock_codes(known)
        codes["true progress of another video"] = clock_codes(
            [
                np.interp(time, np.linspace(0, 1, len(other)), other)
                for time, other in zip(times, shuffled, strict=True)
            ]
        )
    return {name: consistent_warping(embeddings) for name, embeddings in codes.items()}


def _folders(run: str) -> list[str]:
    """The folders of embeddings of a run, one a checkpoint."""
    folder = storage.join(run, "embeddings")
    steps = sorted(name for name in storage.list_folder(folder) if name.startswith("step-"))
    return [storage.join(folder, name) for name in steps] or [folder]


def _labelled(videos: Sequence[EmbeddedVideo]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Embeddings and frame labels; videos without labels have -1."""
    return [video.embeddings for video in videos], [
        np.full(len(video), -1, np.int32) if video.frame_labels is None else video.frame_labels
        for video in videos
    ]


def _measured(run: str, folder: str, videos: Sequence[EmbeddedVideo]) -> Encoder:
    # Imported late: help and mistakes on the command line answer at once.
    from carl_ray.evaluation.classification import phase_classification
    from carl_ray.evaluation.kendall import kendalls_tau
    from carl_ray.evaluation.label_free import consistent_warping

    # Not as a config: runs of other versions of it are read, too.
    config = json.loads(storage.read_bytes(storage.join(run, "config.json")))
    objective, seed = config["objective"], config["training"]["seed"]
    step, num_frames = read_origin(folder).step, config["model"]["num_frames"]
    train = read_embeddings(folder, split="train")
    actions = np.array([video.label or "" for video in videos])
    halves = halves_of([video.label for video in videos], _NUM_HALVINGS)

    def by_action(measure: Callable[[str, list[EmbeddedVideo]], Result]) -> _OfHalves:
        """The mean over actions on each half, and on all videos last."""
        chosen = np.concatenate([halves, np.ones((1, len(videos)), dtype=bool)]).astype(np.int64)
        return np.mean(
            [
                measure(action, [v for v in videos if (v.label or "") == action]).resampled(
                    chosen[:, actions == action]
                )
                for action in np.unique(actions)
            ],
            axis=0,
        )

    def classified(action: str, held: list[EmbeddedVideo]) -> Result:
        fitted = [video for video in train if (video.label or "") == action]
        return phase_classification(*_labelled(fitted), *_labelled(held))

    accuracies = by_action(classified)
    if np.isnan(accuracies).any():
        raise UserError(
            f"{storage.public_uri(folder)}: expected frame labels of training videos and of videos of the split of "
            "every action, at least two videos of each; some have none"
        )
    taus = by_action(lambda _, held: kendalls_tau([video.embeddings for video in held]))
    seen = [[video.embeddings for video, kept in zip(videos, half, strict=True) if kept] for half in halves]
    settings = ", ".join(
        [f"{name} {objective[key]:g}" for key, name in _TITLED.items() if key in objective]
        + [f"T {num_frames}"]
    )
    return Encoder(
        f"{objective['name']}, {settings}, {step} steps, seed {seed}",
        (
            *(["SCL and its variants"] if objective["name"] in _NEAR else []),
            f"{objective['name']}, {step} steps",
        ),
        float(accuracies[-1]),
        consistent_warping([video.embeddings for video in videos]),
        accuracies[:-1],
        {
            "consistent warping": np.array([consistent_warping(half) for half in seen]),
            "RankMe": np.array([effective_rank(half) for half in seen]),
            "Kendall's tau": taus[:-1],
        },
    )


def _markdown(encoders: Sequence[Encoder], controls: dict[str, float]) -> str:
    groups = {"all": list(encoders)}
    for encoder in encoders:
        for group in encoder.groups:
            groups.setdefault(group, []).append(encoder)
    # A group that is all encoders, or another group again, is one line.
    distinct = {tuple(map(id, members)): name for name, members in reversed(groups.items())}
    lines = [
        "| encoders | n | score | rank correlation | 95 % | p | phase classification with itself |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, members in groups.items():
        if name not in distinct.values() or len(members) < _FEWEST_RANKED:
            continue
        accuracies = np.array([encoder.accuracies for encoder in members])
        itself = rank_correlation(accuracies, accuracies[:, np.arange(accuracies.shape[1]) ^ 1])
        for score in members[0].scores:
            found = correlate(np.array([encoder.scores[score] for encoder in members]), accuracies)
            wide = len(members) >= _FEWEST_WITH_INTERVAL
            interval = f"{found.low:.2f} to {found.high:.2f}" if wide else "too few"
            lines.append(
                f"| {name} | {len(members)} | {score} | {found.value:.2f} | {interval} | {found.p_value:.3f} | "
                f"{itself:.2f} |"
            )
    lines += ["", "| encoder | consistent warping | phase classification |", "|---|---|---|"]
    ordered = sorted(encoders, key=lambda encoder: -encoder.score)
    lines += [f"| {encoder.name} | {encoder.score:.4f} | {encoder.accuracy:.4f} |" for encoder in ordered]
    lines += ["", "| codes | consistent warping |", "|---|---|"]
    lines += [f"| {name} | {score:.4f} |" for name, score in controls.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
