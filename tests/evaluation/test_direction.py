"""The direction of time: clips are told from the same clips played backwards, or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from carl_ray.evaluation import direction
from carl_ray.evaluation.direction import direction_of_time
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.protocol import evaluate
from tests.embedded import embedded
from tests.evaluation.test_protocol import ORIGIN


def test_direction_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)

    def videos(sees: float) -> list[tuple[np.ndarray, np.ndarray]]:
        shown = [rng.standard_normal((4, 6)) for _ in range(60)]
        way = np.eye(6)[0] * sees
        return [(clips + way, clips - way) for clips in shown]

    assert direction_of_time(videos(2), videos(2)).value > 0.95
    blind = direction_of_time(videos(0), videos(0))
    assert blind.value == 0.5 and blind.num_videos == 60
    # A video and its reversal are held out together.
    groups: list[np.ndarray] = []
    probe = direction.linear_probe_of_clips
    monkeypatch.setattr(
        direction,
        "linear_probe_of_clips",
        lambda *videos, **options: groups.append(options["groups"]) or probe(*videos, **options),
    )
    direction_of_time(videos(1), videos(1))
    direction_of_time(videos(1), videos(1), groups=["a", "b", "c"] * 20)
    assert groups[0].tolist() == np.repeat(range(60), 2).tolist()
    assert groups[1].tolist() == list("aabbcc") * 20


def video(number: int, sees: Literal["embeddings", "untrained"] | None) -> EmbeddedVideo:
    """A video whose trained or untrained encoder tells the direction, where it was embedded backwards, too."""
    rng = np.random.default_rng(number)
    arrays = {name: rng.standard_normal((30, 6)).astype(np.float32) for name in ("embeddings", "untrained")}
    forwards = embedded(f"{number}", **arrays)
    if sees is None:
        return forwards
    backwards = replace(forwards, **{sees: arrays[sees] - 3 * np.eye(6, dtype=np.float32)[0]})
    return replace(forwards, backwards=backwards)


@pytest.mark.parametrize("sees", ["embeddings", "untrained"])
def test_the_task_measures_each_encoder_and_needs_no_label(sees: Literal["embeddings", "untrained"]) -> None:
    train, test = [video(n, sees) for n in range(20)], [video(n, sees) for n in range(50, 70)]
    test.append(video(99, None))
    document = evaluate(train, test, ORIGIN, tasks=["direction_of_time"])
    found = {
        name: document[name]["direction_of_time"] for name in ("trained", "untrained", "positions", "chance")
    }
    seen, blind = ("trained", "untrained") if sees == "embeddings" else ("untrained", "trained")
    assert found[seen]["value"] == 1 and found[seen]["left_out"] == {"test_videos_not_embedded_backwards": 1}
    assert [found[name]["value"] for name in (blind, "positions", "chance")] == [0.5] * 3


def test_videos_that_were_embedded_forwards_alone_are_not_measured() -> None:
    forwards = [video(n, None) for n in range(8)]
    document = evaluate(forwards[:4], forwards[4:], ORIGIN, tasks=["direction_of_time"])
    assert document["not_run"] == {"direction_of_time": "clips played backwards"}
