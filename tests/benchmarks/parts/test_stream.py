"""The stream's benchmark: both ways give the same pairs, and the table compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import throughput
from benchmarks.parts import stream
from benchmarks.parts.videos import Video
from carl_ray import options
from carl_ray.data.batch import view_seeds
from carl_ray.data.plan import VALIDATION_EPOCH
from carl_ray.data.sample import Sample, sample_spec, views_of
from carl_ray.errors import RunError, UserError
from carl_ray.objectives.views import CROPS
from carl_ray.presets import demo
from tests.samples import make_crops

CONFIG = options.overridden(
    demo(), {"data.short_side": "32", "augment.image_size": "24", "model.num_frames": "8"}
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> list[Video]:
    folder = tmp_path_factory.mktemp("videos")
    return throughput.probe([make_video(folder / f"{n}.mp4", 20 + n, 48, 32) for n in range(3)], 3)[0]


def test_both_ways_train_on_the_plans_batches(videos: list[Video]) -> None:
    data = stream.plan_pairs(videos, CONFIG, 16)
    assert data.plan.batch_size == 8
    made = list(stream.batches(stream.loader_rows(data, num_workers=0), data))
    assert [batch.rows.tolist() for batch in made] == [list(range(8)), list(range(8, 16))]
    for row, video in ((0, 0), (4, 1), (15, 0)):
        path, batch, place = str(videos[video].path), made[row // 8], row % 8
        # The draw that the limit is measured with, every time.
        expected = make_crops(path, path, 20 + video, 1.0, VALIDATION_EPOCH, CONFIG)
        view = batch.views[CROPS]
        np.testing.assert_array_equal(view.pixels[place], expected.pixels)
        np.testing.assert_array_equal(view.timestamps[place], expected.timestamps)
        np.testing.assert_array_equal(view.mask[place], expected.mask)
        sample = Sample(row, 0, VALIDATION_EPOCH, path, None, None)
        seeds = view_seeds(CONFIG.training.seed, sample, CONFIG.view_specs[0])
        assert batch.seeds[CROPS][place].tolist() == seeds


def rows_of(data: stream.PlanPairs) -> list[Sample]:
    """One pair for all rows, of one real frame more in every batch."""
    pair = views_of(data[0], sample_spec(CONFIG))[CROPS]
    counted = []
    for planned in data.plan.rows(0, data.plan.num_rows):
        mask = np.zeros_like(pair.mask)
        mask[0, : planned.step + 1] = True
        made = {CROPS: replace(pair, mask=mask)}
        counted.append(Sample(planned.row, planned.step, planned.epoch, "v", None, made))
    return counted


def test_a_turn_counts_what_comes_once_processes_run(
    videos: list[Video], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = stream.plan_pairs(videos, CONFIG, 5 * 8)
    rows = iter(rows_of(data))
    clock = iter([10.0, 13.0, 15.0, 20.0])
    monkeypatch.setattr(stream.time, "perf_counter", lambda: next(clock))
    turn = stream._consumed(lambda: rows, data, 2, 2)
    # Batches 2 and 3, whose eight pairs have three and four frames each.
    assert turn == stream.Turn(num_frames=8 * (3 + 4), seconds=5.0, first_seconds=3.0)
    assert turn.rate == 56 / 5
    assert next(rows, None) is None


def test_a_video_that_fails_ends_the_comparison(videos: list[Video]) -> None:
    data = stream.plan_pairs(videos, CONFIG, 8)
    rows = rows_of(data)
    rows[5] = replace(rows[5], views=None, error="no frame decodes")
    with pytest.raises(RunError, match="v: no frame decodes"):
        list(stream.batches(iter(rows), data))


def test_without_samples_nothing_is_said_of_spilling(monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        gcs_address = "127.0.0.1:1"

    def replies() -> Iterator[object]:
        class Reply:
            class store_stats:  # noqa: N801
                spilled_bytes_total = 0

        yield Reply
        raise ConnectionError("no answer")

    reply = replies()
    monkeypatch.setattr(stream.ray, "get_runtime_context", Context)
    monkeypatch.setattr(stream, "get_state_from_address", lambda address: None)
    monkeypatch.setattr(stream, "get_memory_info_reply", lambda state: next(reply))
    with pytest.raises(RunError, match="could not be watched: no answer"), stream._watched(stream.StoreUse()):
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_both_ways_are_compared(videos: list[Video]) -> None:
    said: list[str] = []
    table = stream.measure(videos, CONFIG, said.append, seconds=0.05, turns=1)
    assert [row[0] for row in table.rows] == ["torch DataLoader", "Ray Data"]
    loader, ray_data = (float(row[1].replace(",", "")) for row in table.rows)
    # The rates are printed whole, each half a frame off at most, the ratio to two places.
    ratio = ray_data / loader
    assert float(table.rows[1][4]) == pytest.approx(ratio, abs=0.006 + 0.6 * (1 + ratio) / loader)
    assert f"turn by turn: {table.rows[1][4]}" in table.notes[0]
    (store,) = (note for note in table.notes if note.startswith("object store"))
    assert "; 0 MB spilled" in store
    assert "not counted: the first " in " ".join(table.notes)
    assert len(said) == 3


def test_a_cluster_elsewhere_is_no_comparison(videos: list[Video], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(stream.ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match="unset RAY_ADDRESS"):
        stream.measure(videos, CONFIG, print)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(UserError, match="no video has the 8 frames"):
        stream.measure([], CONFIG, print)
