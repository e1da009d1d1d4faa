"""The stages of the data benchmark measure what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from carl_ray import options
from carl_ray.benchmarks import data
from carl_ray.benchmarks.table import Table
from carl_ray.benchmarks.videos import Video, kinds, long_enough, probe, render
from carl_ray.config import Config
from carl_ray.data.sample import make_view_pair
from carl_ray.errors import UserError
from carl_ray.presets import demo

CONFIG = options.overridden(
    demo(), {"data.short_side": "32", "augment.image_size": "24", "model.num_frames": "8"}
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> list[Video]:
    folder = tmp_path_factory.mktemp("videos")
    paths = [
        make_video(folder / "barcode.mp4", 40, 96, 64, gop=10, options={"sc_threshold": "0"}),
        folder / "rendered.mp4",
    ]
    render(paths[1], ("lift", "kick"), 0, 96, 64, 30)
    (folder / "broken.mp4").write_bytes(b"no video")
    found, notes = probe([*paths, folder / "broken.mp4"])
    assert [(video.path, video.num_frames, video.kind) for video in found] == [
        (paths[0], 40, "96x64 h264"),
        (paths[1], 30, "96x64 h264"),
    ]
    assert len(notes) == 1
    assert "broken.mp4: " in notes[0]
    return found


@pytest.fixture(scope="module")
def tables(videos: list[Video]) -> list[Table]:
    said: list[str] = []
    tables = data.measure(videos, CONFIG, said.append)
    assert len(said) == 1 + data.NUM_DRAWS
    return tables


def column(table: Table, name: str) -> dict[str, float]:
    at = list(table.columns).index(name)
    return {row[0]: float(row[at].replace(",", "")) for row in table.rows if row[at] != "-"}


def test_every_stage_has_a_row(tables: list[Table]) -> None:
    assert [row[0] for row in tables[0].rows] == [
        "decode",
        "decode-only limit",
        "as the run reads them",
        *(label for label, _ in data.VARIANTS),
        "per-frame PIL pipeline",
        "… torchvision's blur",
        "augmentation alone",
        "… alone, colour as a matrix",
        "PIL augmentation alone",
        "… alone, torchvision's blur",
    ]


def test_shares_and_multiples_are_ratios_of_the_rates() -> None:
    rates = {"decode": 500.0, data.LIMIT: 250.0, data.PIL: 20.0, "mine alone": 60.0, data.PIL_ALONE: 30.0}
    table = data.rate_table("", rates, {**dict.fromkeys(rates, 0.0), data.LIMIT: 7.25}, [])
    assert [row[1:] for row in table.rows] == [
        ("500", "2.00", "25.0", "-"),
        ("250", "1.00", "12.5", "7.2"),
        ("20", "0.08", "1.0", "-"),
        ("60", "0.24", "2.0", "-"),
        ("30", "0.12", "1.0", "-"),
    ]


def test_measured_shares_are_of_the_printed_rates(tables: list[Table]) -> None:
    rates, shares = column(tables[0], "frames/s"), column(tables[0], "of the limit")
    for stage, rate in rates.items():
        assert shares[stage] == pytest.approx(rate / rates[data.LIMIT], abs=0.006)


def test_bytes_of_a_pair(tables: list[Table]) -> None:
    assert [row[0] for row in tables[1].rows] == [
        "compressed file",
        "needed frames, decoded",
        "shipped",
        "float32 on the device",
    ]
    assert column(tables[1], "of what is shipped")["float32 on the device"] == 4


def test_a_draw_knows_the_frames_of_both_views(
    videos: list[Video], frame_numbers: Callable[[np.ndarray], list[int]]
) -> None:
    video = videos[0]
    draw = data.make_draw(video, 3, CONFIG)
    pair = make_view_pair(str(video.path), video.path.name, 40, 1.0, 3, CONFIG)
    np.testing.assert_array_equal(draw.pair.timestamps, pair.timestamps)
    np.testing.assert_array_equal(draw.pair.color, pair.color)
    assert draw.num_frames == 16
    for view in range(2):
        np.testing.assert_array_equal(draw.needed[draw.places(view)], pair.timestamps[view])
    full = data._decode_all(draw.content, draw.needed)
    assert full.shape[1:] == (64, 96, 3)
    assert frame_numbers(full) == draw.needed.tolist()


def test_decoding_begins_at_the_key_frame_and_ends_at_the_last_needed_frame(videos: list[Video]) -> None:
    content = videos[0].path.read_bytes()
    timestamps = data._timestamps(content, 40)
    assert timestamps is not None
    assert len(timestamps) == 40
    assert data.decode(content, timestamps, 25, 33) == 14  # 20 to 33
    assert data.decode(content, None, 25, 33) == 34
    assert data._timestamps(content, 41) is None  # packets and frames do not correspond


def test_a_scaled_crop_stays_in_the_frame(videos: list[Video]) -> None:
    parameters = data.make_draw(videos[0], 0, CONFIG).parameters(0)
    for scale in (0.4, 1, 64 / 32, 3.7):
        height, width = round(32 * scale), round(48 * scale)
        crop = data.scaled(parameters, scale, height, width)
        assert crop.top + crop.height <= height
        assert crop.left + crop.width <= width
        assert crop.width / parameters.width == pytest.approx(scale, rel=0.05)
        assert crop.hue == parameters.hue


def test_videos_that_do_not_fill_a_view_are_left_out(videos: list[Video]) -> None:
    long, notes = long_enough(videos, 35)
    assert long == videos[:1]
    assert notes == ["left out, fewer than 35 frames: rendered.mp4 (30)"]
    with pytest.raises(UserError, match="no video has the 50 frames of a view"):
        long_enough(videos, 50)


def test_kinds_are_counted(videos: list[Video]) -> None:
    assert kinds(videos) == "2 videos (96x64 h264)"
    other = Video(Path("/c.mp4"), 9, "8x8 av1")
    assert kinds([*videos, other]) == "3 videos (2 96x64 h264, 1 8x8 av1)"


def test_a_video_that_changed_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "gone.mp4").write_bytes(b"")
    config: Config = CONFIG
    with pytest.raises(UserError, match=r"gone\.mp4: expected a video"):
        data.make_draw(Video(tmp_path / "gone.mp4", 40, "96x64 h264"), 0, config)
