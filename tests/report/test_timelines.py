"""`carl_ray.report.timelines`: phases in seconds, the worst prediction first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from carl_ray.evaluation.embeddings import EmbeddedVideo
from carl_ray.report.figures import NO_PHASE_COLOR, PHASE_COLORS
from carl_ray.report.timelines import legends, timelines
from tests.embedded import embedded


def video(name: str, labels: list[int], seen: list[int] | None = None, **fields) -> EmbeddedVideo:
    """A video whose embeddings say `seen`."""
    classes = np.array(labels, np.int32)
    shown = np.array(labels if seen is None else seen).clip(0)
    settings = {"label": "squat", "fps": 2.0, "phase_names": ["down", "up"]} | fields
    return embedded(name, np.eye(2, 3, dtype=np.float32)[shown], frame_labels=classes, **settings)


TRAIN = [video(f"train/{number}", [0, 0, 1, 1]) for number in range(3)]


def test_segments_are_in_seconds_and_the_worst_is_first() -> None:
    good = video("a", [-1, 0, 0, 1], [0, 0, 0, 1])
    bad = video("b", [0, 0, 1, 1], [0, 1, 1, 0])
    found = timelines(TRAIN, [good, bad, video("nothing", [-1, -1])])
    assert [(line.video_id, line.accuracy) for line in found] == [("b", 0.5), ("a", 1.0)]
    shown = {
        row: [(segment.name, segment.start, segment.end) for segment in segments]
        for row, segments in found[1].rows.items()
    }
    assert shown == {
        "labelled": [("no label", 0.0, 0.5), ("down", 0.5, 1.5), ("up", 1.5, 2.0)],
        "predicted": [("down", 0.0, 1.5), ("up", 1.5, 2.0)],
    }
    assert (found[1].length, found[1].unit) == (2.0, "s")
    assert [s.color for s in found[1].rows["labelled"]] == [NO_PHASE_COLOR, *PHASE_COLORS[:2]]


def test_without_a_rate_or_names() -> None:
    bare = [replace(found, fps=None, phase_names=None) for found in (*TRAIN, video("a", [0, 1, 1, 1]))]
    (line,) = timelines(bare[:3], bare[3:])
    assert (line.length, line.unit) == (4.0, "frames")
    assert [segment.name for segment in line.rows["labelled"]] == ["phase 0", "phase 1"]


@pytest.mark.parametrize("train", [[], [video("x", [0, 1], label="jump")], [video("x", [-1, -1])]])
def test_actions_without_labelled_training_videos_have_none(train: list[EmbeddedVideo]) -> None:
    assert timelines(train, [video("a", [0, 1])]) == []


def test_one_legend_where_all_actions_agree() -> None:
    def lines(names: list[str]) -> list:
        fields = {"label": "jump", "phase_names": names}
        train, test = (video(name, [0, 0, 1], **fields) for name in ("x", "y"))
        return timelines([*TRAIN, train], [video("a", [0, 1, 1]), test])

    assert legends(lines(["down", "up"])) == {"": {"down": PHASE_COLORS[0], "up": PHASE_COLORS[1]}}
    assert list(legends(lines(["up", "down"]))) == ["jump", "squat"]
