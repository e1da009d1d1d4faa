"""The stages of the data benchmark measure what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import throughput
from benchmarks.parts import data
from benchmarks.parts.table import Table
from benchmarks.parts.videos import Video, even_sample, kinds, long_enough, render
from carl_ray import options
from carl_ray.config import Config
from carl_ray.data.decode import read_frames
from carl_ray.errors import UserError
from carl_ray.presets import demo
from tests.samples import make_crops

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
    found, notes = throughput.probe([folder / "broken.mp4", *paths], 24)
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
        "PIL augmentation alone",
        "… alone, torchvision's blur",
    ]


def test_shares_and_multiples_are_ratios_of_the_rates() -> None:
    stages = {
        "decode": data.Stage(2.0),
        data.LIMIT: data.Stage(1.0) + data.Stage(3.0, 29_000_000),
        data.PIL: data.Stage(50.0),
        "mine": data.Stage(20.0, compared_with=data.PIL_ALONE),
        data.PIL_ALONE: data.Stage(40.0, compared_with=data.PIL_ALONE) + data.Stage(0.0),
    }
    table = data.rate_table("", stages, 1000, 4, [])
    assert [row[1:] for row in table.rows] == [
        ("500", "2.00", "25.0", "-"),
        ("250", "1.00", "12.5", "7.2"),
        ("20", "0.08", "1.0", "-"),
        ("50", "0.20", "2.0", "-"),
        ("25", "0.10", "1.0", "-"),
    ]


def test_the_decoders_own_rate_is_told(tables: list[Table]) -> None:
    (note,) = (note for note in tables[0].notes if note.endswith("frames/s leave the decoder"))
    # No decode of a view's frames yields fewer than one view has.
    assert float(note.split()[1].replace(",", "")) >= 0.5 * column(tables[0], "frames/s")["decode"]


def test_variants_are_what_their_labels_say_whatever_the_options() -> None:
    base = options.overridden(CONFIG, {"augment.color_on": "trainer", "augment.pixels": "yuv420"})
    made = [options.overridden(base, overrides).augment for _, overrides in data.VARIANTS]
    assert [(augment.color_on, augment.pixels) for augment in made] == [
        ("trainer", "rgb"),
        ("trainer", "yuv420"),
        ("workers", "rgb"),
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
    pair = make_crops(str(video.path), str(video.path), 40, 1.0, 3, CONFIG)
    np.testing.assert_array_equal(draw.pair.timestamps, pair.timestamps)
    np.testing.assert_array_equal(draw.pair.parameters, pair.parameters)
    assert draw.num_frames == 16
    for view in range(2):
        np.testing.assert_array_equal(draw.needed[draw.places(view)], pair.timestamps[view])


def draws(videos: list[Video]) -> list[data.Draw]:
    """Of the video of numbers, with a key frame every ten: some begin past the first of them, some do not."""
    made = [data.make_draw(videos[0], epoch, CONFIG) for epoch in range(8)]
    assert len({draw.needed[0] >= 10 for draw in made}) == 2
    return made


def test_the_limit_converts_what_the_run_reads(videos: list[Video]) -> None:
    # 24 pixels keep an even width, 25 an odd one.
    for draw in [*draws(videos), data.make_draw(videos[1], 0, CONFIG)]:
        start = data.find_start(draw)
        assert start is not None
        for short_side in (24, 25):
            expected = read_frames(draw.content, draw.needed, short_side=short_side)
            for begin in (start, None):
                np.testing.assert_array_equal(data.least_frames(draw, begin, short_side), expected)


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (0, -1, 1, 0), (-1, 0, 0, -1)])
def test_the_limit_turns_the_picture(
    tmp_path: Path, make_video: Callable[..., Path], matrix: tuple[int, int, int, int]
) -> None:
    path = make_video(tmp_path / "turned.mp4", 40, 96, 64, gop=10, matrix=matrix)
    draw = data.make_draw(Video(path, 40, "h264"), 0, CONFIG)
    expected = read_frames(draw.content, draw.needed, short_side=25)
    np.testing.assert_array_equal(data.least_frames(draw, data.find_start(draw), 25), expected)


def test_decoding_begins_at_the_key_frame_and_ends_at_the_last_needed_frame(videos: list[Video]) -> None:
    for draw in draws(videos):
        first, last = draw.needed[0], draw.needed[-1]
        assert data.decode(draw, data.find_start(draw)) == last + 1 - first // 10 * 10
        assert data.decode(draw, None) == last + 1
    # Packets and frames do not correspond.
    assert data.find_start(replace(draw, video=replace(draw.video, num_frames=41))) is None


def test_pillow_is_given_the_frames_that_it_augments(
    videos: list[Video], frame_numbers: Callable[[np.ndarray], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_PIL_STRIDE", 3)
    draw = data.make_draw(videos[0], 0, CONFIG)
    kept = data.full_frames(draw, data.find_start(draw))
    augmented = {int(frame) for view in range(2) for frame in draw.pair.timestamps[view, ::3]}
    assert {int(draw.needed[place]) for place in kept} == augmented
    for place, pixels in kept.items():
        assert pixels.shape == (64, 96, 3)
        assert frame_numbers(pixels[None]) == [draw.needed[place]]


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


def test_a_sample_is_even() -> None:
    paths = [Path(f"{number}.mp4") for number in range(10)]
    assert even_sample(paths, 10) == paths
    assert even_sample(paths, 4) == [paths[at] for at in (0, 3, 6, 9)]


def test_kinds_are_counted(videos: list[Video]) -> None:
    assert kinds(videos) == "2 videos (96x64 h264)"
    other = Video(Path("/c.mp4"), 9, "8x8 av1")
    assert kinds([*videos, other]) == "3 videos (2 96x64 h264, 1 8x8 av1)"


def test_a_video_that_changed_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "gone.mp4").write_bytes(b"")
    config: Config = CONFIG
    with pytest.raises(UserError, match=r"gone\.mp4: expected a video"):
        data.make_draw(Video(tmp_path / "gone.mp4", 40, "96x64 h264"), 0, config)
