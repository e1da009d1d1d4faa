"""`carl_ray.data.key_frames` and the views made of key frames, clips and what follows them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import TypeAdapter

from carl_ray.config import Config, DataConfig, ModelConfig
from carl_ray.data.decode import DecodeError
from carl_ray.data.guard import ViewReader
from carl_ray.data.key_frames import choose_key_frames
from carl_ray.data.make_views import make_views
from carl_ray.data.sample import SampleSpec, arrays_of, draw_clips, sample_spec
from carl_ray.objectives.views import (
    AugmentConfig,
    Follows,
    KeyFrame,
    Stride,
    ViewsConfig,
    ViewSpec,
    Whole,
)
from tests.samples import video_row

TIME = 6
PLAIN = AugmentConfig(
    image_size=48,
    crop_area=(1.0, 1.0),
    crop_aspect=(1.0, 1.0),
    flip_probability=0.0,
    jitter_probability=0.0,
    grayscale_probability=0.0,
    blur_probability=0.0,
)
STRONG = AugmentConfig(image_size=48, crop_area=(0.3, 0.6), jitter_probability=1.0)


def spec_of(augment: AugmentConfig = PLAIN, frame_stride: int = 1) -> SampleSpec:
    """The views of an objective with a clip, what follows it, and a key frame."""
    config = Config(
        preset="test",
        data=DataConfig(short_side=48, frame_stride=frame_stride),
        model=ModelConfig(num_frames=TIME, backbone="small", weights="random"),
    )
    small = replace(augment, image_size=24)
    return replace(
        sample_spec(config),
        views=(
            ViewSpec("future", 1, 4, Follows("clip", 2), small, encoder="none"),
            ViewSpec("clip", 1, TIME, Stride(1, 3, reserve=8), augment, keypoints=True),
            ViewSpec("still", 1, 1, KeyFrame(), augment, encoder="none"),
        ),
    )


@pytest.mark.parametrize(
    "found,num_frames,policy,expected,reason",
    [
        ([0, 30, 60], 100, "auto", [0, 30, 60], None),
        ([0, 30, 60, 100, -1], 100, "auto", [0, 30, 60], None),
        ([0, 1, 2], 12, "auto", [0, 1, 2], None),
        ([0, 1, 2], 11, "auto", [0], "more than a quarter of the frames"),
        (range(30), 30, "auto", [0, 12, 24], "more than a quarter of the frames"),
        (range(30), 30, "codec", range(30), None),
        ([7], 25, "auto", [0, 12, 24], "one key frame"),
        ([7], 25, "codec", [7], None),
        ([], 25, "auto", [0, 12, 24], "none in the file"),
        ([], 25, "codec", [0, 12, 24], "none in the file"),
        (None, 13, "auto", [0, 12], "none in a manifest of an earlier version"),
        ([3, 9], 100, "even", range(0, 100, 12), None),
    ],
)
def test_key_frames_or_even_ones(found, num_frames, policy, expected, reason) -> None:
    candidates, why = choose_key_frames(found, num_frames, policy)
    assert (candidates.tolist(), why) == (list(expected), reason)


@pytest.mark.parametrize(
    "span", [Whole(), Stride(1, 3, 5), KeyFrame("codec"), KeyFrame(), Follows("a", 2), ViewsConfig()]
)
def test_the_decoding_process_gets_the_same_span(span) -> None:
    adapter = TypeAdapter(SampleSpec)
    view = ViewSpec("a", 1, 1, span, PLAIN)
    spec = replace(spec_of(), views=(view,))
    assert adapter.validate_json(adapter.dump_json(spec)) == spec


@pytest.mark.parametrize("frame_stride", [1, 2])
def test_draws(frame_stride) -> None:
    spec = spec_of(frame_stride=frame_stride)
    future, clip, still = spec.views
    stills, starts = set(), set()
    for epoch in range(300):
        (drawn,) = draw_clips(clip, "v", 40 * frame_stride, epoch, spec)
        (after,) = draw_clips(future, "v", 40 * frame_stride, epoch, spec)
        assert after.frame_indices.tolist() == [drawn.crop[1] + 2 * frame_stride * i for i in range(4)]
        assert after.frame_mask.all()
        starts.add((drawn.frame_indices[0] // frame_stride, drawn.frame_indices[1] // frame_stride))
        (one,) = draw_clips(still, "v", 40, epoch, spec, [0, 11, 23, 35])
        stills.add(one.frame_indices.item())
        assert one.crop == (one.frame_indices[0], one.frame_indices[0] + 1)
    assert stills == {0, 11, 23, 35}
    # Starts [0, S - T s - reserve] for each stride.
    assert {first for first, second in starts if second - first == 3} == set(range(40 - 3 * TIME - 8 + 1))
    without = replace(clip, span=Stride(1, 3))
    assert max(draw_clips(without, "v", 40, e, spec_of())[0].crop[1] for e in range(300)) == 40


@pytest.mark.parametrize("num_frames", [3, 5, 8, 14, 30])
def test_a_future_ends_with_the_video(
    make_video: Callable[..., Path], frame_numbers, tmp_path: Path, num_frames
) -> None:
    path = make_video(tmp_path / "v.mp4", num_frames, 48, 48)
    for epoch in range(4):
        views = make_views(str(path), "v", num_frames, 1.0, epoch, spec_of(), key_frames=[0])
        future, clip = views["future"], views["clip"]
        begin = int(clip.spans[0, 1])
        places = begin + 2 * np.arange(4)
        assert future.mask[0].tolist() == (places < num_frames).tolist()
        assert frame_numbers(future.pixels[0, future.mask[0]]) == places[places < num_frames].tolist()
        assert not future.pixels[0, ~future.mask[0]].any()
        assert frame_numbers(clip.pixels[0, clip.mask[0]]) == clip.timestamps[0, clip.mask[0]].tolist()
        assert frame_numbers(views["still"].pixels[0]) == [
            0 if num_frames <= 12 else views["still"].timestamps.item()
        ]


def test_a_future_has_the_draw_of_its_clip(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", 40, 64, 48)
    flips = set()
    for epoch in range(8):
        views = make_views(str(path), "v", 40, 1.0, epoch, spec_of(STRONG), key_frames=[0, 9, 20])
        for name in ("parameters", "boxes", "flips"):
            np.testing.assert_array_equal(getattr(views["future"], name), getattr(views["clip"], name))
            if name == "boxes":
                assert not np.array_equal(views["still"].boxes, views["clip"].boxes)
        flips.add(bool(views["clip"].flips[0]))
        assert views["still"].timestamps.item() in (0, 9, 20)
    assert flips == {True, False}


def test_the_reader_gives_the_same(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = str(make_video(tmp_path / "v.mp4", 6, 48, 48))
    keypoints = np.random.default_rng(0).random((6, 17, 3)).astype(np.float16)
    keypoints[2, 3] = np.nan
    reader, spec = ViewReader(), spec_of(STRONG)
    for given in (keypoints, None):
        row = video_row(path, "v", 6, key_frames=[0, 3], keypoints=given)
        here = arrays_of(make_views(path, "v", 6, 1.0, 2, spec, key_frames=[0, 3], keypoints=given))
        there = arrays_of(reader.read(row, 2, spec))
        assert there.keys() == here.keys() and "clip.keypoints" in here
        for name, expected in here.items():
            np.testing.assert_array_equal(there[name], expected, strict=True)
        assert here["clip.keypoints"].any() == (given is not None)
    assert not there["future.mask"].any()
    reader.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ViewSpec("v", 2, 4, Follows("a", 1), PLAIN),
        lambda: ViewSpec("v", 1, 2, KeyFrame(), PLAIN),
        lambda: ViewSpec("v", 1, 4, Whole(), PLAIN, 8, keypoints=True),
    ],
)
def test_views_that_cannot_be(make) -> None:
    with pytest.raises(ValueError, match=r"^view v: "):
        make()


def test_a_view_follows_one_that_is_there() -> None:
    spec = spec_of()
    lost = ViewSpec("b", 1, 2, Follows("future", 2), PLAIN)
    with pytest.raises(
        ValueError, match="view b follows 'future', which is not a view with a place of its own"
    ):
        draw_clips(lost, "v", 40, 0, replace(spec, views=(*spec.views, lost)))


def test_a_damaged_key_frame_gives_way_to_another(
    make_video: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_video(tmp_path / "v.mp4", 60, 48, 48, gop=12)
    with av.open(str(path)) as container:
        damaged = [packet for packet in container.demux(video=0) if packet.size and packet.is_keyframe][2]
        start, size = damaged.pos, damaged.size
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    spec = replace(spec_of(), views=spec_of().views[2:])
    keys = [0, 12, 24, 36, 48]

    def stills(given: list[int], policy: str) -> set[tuple[int, int]]:
        """The key frames that are drawn and that the views name, with the one that is read, where one is."""
        view = replace(spec.views[0], span=KeyFrame(policy))
        own = replace(spec, views=(view,))
        found = set()
        for epoch in range(40):
            (drawn,) = draw_clips(view, "v", 60, epoch, own, given)
            with contextlib.suppress(DecodeError):
                read = make_views(bytes(content), "v", 60, 1.0, epoch, own, key_frames=given)["still"]
                assert read.spans.tolist() == [[drawn.frame_indices.item(), drawn.frame_indices.item() + 1]]
                found.add((drawn.frame_indices.item(), int(read.timestamps.item())))
        return found

    assert stills(keys, "auto") == {(0, 0), (12, 12), (24, 36), (36, 36), (48, 48)}
    assert set(caplog.messages) == {"v: a key frame does not decode; another frame is shown"}
    # There is no other one: an even one, unless it is the same.
    assert stills([24], "codec") == {(24, 0), (24, 12), (24, 36), (24, 48)}
    whole = replace(spec_of(), views=(*spec_of().views, ViewSpec("all", 1, 60, Whole(), PLAIN)))
    with pytest.raises(DecodeError, match=r"^frame 59 was asked for"):
        make_views(bytes(content), "v", 60, 1.0, 0, whole, key_frames=keys)
