"""The stream's benchmark: both ways give the same pairs, and the table compares them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from carl_ray import options
from carl_ray.benchmarks import stream
from carl_ray.benchmarks.videos import Video, probe
from carl_ray.data.sample import make_view_pair
from carl_ray.errors import UserError
from carl_ray.presets import demo

CONFIG = options.overridden(
    demo(), {"data.short_side": "32", "augment.image_size": "24", "model.num_frames": "8"}
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> list[Video]:
    folder = tmp_path_factory.mktemp("videos")
    return probe([make_video(folder / f"{n}.mp4", 20 + n, 48, 32) for n in range(3)])[0]


def test_the_loader_gives_the_plans_pairs(videos: list[Video]) -> None:
    data = stream.plan_pairs(videos, CONFIG)
    pairs = list(stream.data_loader(data, num_workers=0))
    planned = list(data.plan.rows(0, data.plan.num_rows))
    assert sorted(row.video_index for row in planned) == [0, 1, 2]
    for tensors, row in zip(pairs, planned, strict=True):
        video = videos[row.video_index]
        path = str(video.path)
        expected = make_view_pair(path, path, video.num_frames, 1.0, row.epoch, CONFIG)
        assert set(tensors) == set(vars(expected))
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, getattr(expected, name))


def test_a_turn_counts_what_comes_after_the_first_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 13.0, 18.0])
    monkeypatch.setattr(stream.time, "perf_counter", lambda: next(clock))
    turn = stream._consumed(lambda: (count for count in (100, 30, 20, 7)), 3)
    assert turn == stream.Turn(num_frames=50, seconds=5.0, first_seconds=3.0)
    assert turn.rate == 10


@pytest.mark.usefixtures("ray_session")
def test_both_ways_are_compared(videos: list[Video]) -> None:
    said: list[str] = []
    table = stream.measure(videos, CONFIG, said.append, seconds=0.05, turns=1)
    assert [row[0] for row in table.rows] == ["torch DataLoader", "Ray Data"]
    loader, ray_data = (float(row[1].replace(",", "")) for row in table.rows)
    # The rates are printed whole, the ratio to two places.
    assert float(table.rows[1][4]) == pytest.approx(ray_data / loader, abs=0.006 + 1 / loader)
    assert f"turn by turn: {table.rows[1][4]}" in table.notes[0]
    (store,) = (note for note in table.notes if note.startswith("object store"))
    assert "; 0 MB spilled" in store
    assert len(said) == 3


def test_a_cluster_elsewhere_is_no_comparison(videos: list[Video], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(stream.ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match="unset RAY_ADDRESS"):
        stream.measure(videos, CONFIG, print)
