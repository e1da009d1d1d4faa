"""The linear probe of whole videos, from the rows of their embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from carl_ray.evaluation import clip_probe
from carl_ray.evaluation.clip_probe import TASK
from carl_ray.evaluation.task import Videos
from tests.evaluation.test_recognition import make_video


def labelled(rng: np.random.Generator, number: int, count: int, seen: slice) -> object:
    """A video whose rows tell its label in a part of it alone."""
    label = ("kick", "lift")[number % 2]
    rows = rng.standard_normal((count, 4))
    rows[seen, 1] += 6 * (number % 2)
    video = make_video(number, label)
    return replace(
        video,
        embeddings=rows,
        timestamps=np.arange(count, dtype=np.float64),
        frame_labels=None,
        progress=None,
    )


@pytest.mark.parametrize(("seen", "lowest", "highest"), [(slice(0, 40), 0.9, 1.0), (slice(1, 4), 0.0, 0.8)])
def test_ten_even_rows_tell_the_label(seen: slice, lowest: float, highest: float):
    rng = np.random.default_rng(0)
    train = [labelled(rng, number, 91, seen) for number in range(30)]
    test = [labelled(rng, 100 + number, 91, seen) for number in range(20)]
    result = TASK.run(Videos(train, test))["video_linear_probe"]  # type: ignore[arg-type]
    # Rows 1 to 3 are between the first two of ten even ones.
    assert lowest <= result.value <= highest
    assert result.num_videos == 20


def test_videos_of_a_group_are_held_out_together(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    train = [labelled(rng, number, 20, slice(None)) for number in range(8)]
    train[:6] = [replace(v, group=f"g{n // 3}") for n, v in enumerate(train[:6])]  # type: ignore[type-var]
    seen = []
    probe = clip_probe.linear_probe_of_clips
    monkeypatch.setattr(
        clip_probe,
        "linear_probe_of_clips",
        lambda *videos, **options: seen.append(options["groups"]) or probe(*videos, **options),
    )
    TASK.run(Videos(train, train[:2]))  # type: ignore[arg-type]
    assert seen == [["g0"] * 3 + ["g1"] * 3 + [v.video_id for v in train[6:]]]  # type: ignore[attr-defined]


def test_short_videos_have_each_row_once_and_unlabelled_ones_do_not_count():
    rng = np.random.default_rng(0)
    train = [labelled(rng, number, 1 + number % 3, slice(None)) for number in range(30)]
    test = [labelled(rng, 100 + number, 2, slice(None)) for number in range(6)]
    unlabelled = replace(test[0], label=None)  # type: ignore[type-var]
    result = TASK.run(Videos(train, [*test, unlabelled]))["video_linear_probe"]  # type: ignore[arg-type, list-item]
    assert result.value == 1
    assert result.statistics[1].tolist() == [1] * 6 + [0]
