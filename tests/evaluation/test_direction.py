"""The direction of time: clips are told from the same clips played backwards, or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from carl_ray.errors import UserError
from carl_ray.evaluation import direction
from carl_ray.evaluation.clip_probe import even_clips
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


def video(number: int, sees: Literal["trained", "untrained"], **fields: object) -> EmbeddedVideo:
    """A video whose trained or untrained encoder tells the direction of its clips."""
    rng = np.random.default_rng(number)
    trained, untrained = rng.standard_normal((2, 30, 6)).astype(np.float32)
    shift = 3 * np.eye(6, dtype=np.float32)[0]
    return embedded(
        str(number),
        trained,
        untrained=untrained,
        backwards=even_clips(trained) - shift * (sees == "trained"),
        untrained_backwards=even_clips(untrained) - shift * (sees == "untrained"),
        **fields,
    )


@pytest.mark.parametrize("sees", ["trained", "untrained"])
def test_the_task_measures_both_encoders_and_needs_no_label(sees: Literal["trained", "untrained"]) -> None:
    train, test = [video(n, sees) for n in range(20)], [video(n, sees) for n in range(50, 70)]
    document = evaluate(train, test, ORIGIN, tasks=["direction_of_time"])
    found = {name: document[name]["direction_of_time"]["value"] for name in ("trained", "untrained")}
    assert found.pop(sees) == 1 and [*found.values()] == [0.5]
    # They are the same both ways.
    assert not document["positions"] and not document["chance"]


def test_videos_of_a_group_are_held_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    measured = direction.direction_of_time
    monkeypatch.setattr(
        direction,
        "direction_of_time",
        lambda *videos, **options: seen.append(options["groups"]) or measured(*videos, **options),
    )
    train = [video(n, "trained", group=None if n else "g") for n in range(4)]
    evaluate(train, [video(n, "trained") for n in (8, 9)], ORIGIN, tasks=["direction_of_time"])
    assert seen[0] == ["g", "1", "2", "3"]


def test_videos_that_were_embedded_forwards_alone_are_not_measured() -> None:
    forwards = [replace(video(n, "trained"), backwards=None) for n in range(8)]
    document = evaluate(forwards[:4], forwards[4:], ORIGIN, tasks=["direction_of_time"])
    assert document["not_run"] == {"direction_of_time": "clips played backwards"}


def test_broken_vectors_are_refused() -> None:
    made = [video(n, "trained") for n in range(8)]
    assert made[7].backwards is not None
    made[7].backwards[0, 0] = np.nan
    with pytest.raises(UserError, match=r"embeddings of clips played backwards of '7' are not finite"):
        evaluate(made[:4], made[4:], ORIGIN, tasks=["direction_of_time"])
