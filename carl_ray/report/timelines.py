"""Timelines of test videos: predicted and labelled phases over time, the worst prediction first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from carl_ray.evaluation.classification import predicted_phases
from carl_ray.evaluation.embedded_video import EmbeddedVideo, phase_names
from carl_ray.evaluation.protocol import by_action
from carl_ray.evaluation.task import Videos
from carl_ray.report.figures import NO_PHASE_COLOR, phase_colors


@dataclass(frozen=True)
class Segment:
    """A run of frames of one phase."""

    name: str
    color: str
    start: float
    """In the timeline's unit."""
    end: float


@dataclass(frozen=True)
class Timeline:
    """The phases of one test video."""

    video_id: str
    action: str
    unit: str
    """`s`, or `frames` where the frame rate is unknown."""
    length: float
    accuracy: float
    """Share of the labelled frames whose phase is predicted."""
    rows: dict[str, list[Segment]]
    """`labelled` and `predicted`."""


def timelines(train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo]) -> list[Timeline]:
    """Timelines of all test videos with labels whose action has labelled training videos, worst first."""
    found = []
    for action, (fitted, held) in by_action(train, test).items():
        held = [video for video in held if (video.phases >= 0).any()]
        videos = Videos(fitted, held)
        if not held or not any((video.phases >= 0).any() for video in fitted):
            continue
        names = phase_names([*fitted, *held], videos.num_classes)
        for video, predicted in zip(held, predicted_phases(videos), strict=True):
            times = np.arange(len(video) + 1.0)
            if video.seconds is not None:
                step = video.seconds[-1] / (len(video) - 1) if len(video) > 1 else 1 / (video.fps or 1)
                times = np.append(video.seconds, video.seconds[-1] + step)
            labelled = video.phases >= 0
            found.append(
                Timeline(
                    video_id=video.video_id,
                    action=action,
                    unit="frames" if video.seconds is None else "s",
                    length=float(times[-1]),
                    accuracy=float((predicted == video.phases)[labelled].mean()),
                    rows={
                        "labelled": _segments(video.phases, times, names),
                        "predicted": _segments(predicted, times, names),
                    },
                )
            )
    return sorted(found, key=lambda timeline: (timeline.accuracy, timeline.video_id))


def legends(found: Sequence[Timeline]) -> dict[str, dict[str, str]]:
    """Colours of the phases by name, by action; one without a name if they agree in all actions."""
    by_name: dict[str, dict[str, str]] = {}
    for timeline in sorted(found, key=lambda timeline: timeline.action):
        shown = by_name.setdefault(timeline.action, {})
        shown |= {segment.name: segment.color for row in timeline.rows.values() for segment in row}
    colors = {color for of_action in by_name.values() for color in of_action.items()}
    merged = {name: color for of_action in by_name.values() for name, color in sorted(of_action.items())}
    return {"": merged} if len(merged) == len(colors) else by_name


def _segments(
    phases: Int[np.ndarray, " frames"], times: Float[np.ndarray, " edges"], names: Sequence[str]
) -> list[Segment]:
    colors = phase_colors(len(names))
    edges = np.flatnonzero(np.diff(phases, prepend=-2, append=-2))
    return [
        Segment(
            name=names[phases[start]] if phases[start] >= 0 else "no label",
            color=colors[phases[start]] if phases[start] >= 0 else NO_PHASE_COLOR,
            start=float(times[start]),
            end=float(times[end]),
        )
        for start, end in pairwise(edges.tolist())
    ]
