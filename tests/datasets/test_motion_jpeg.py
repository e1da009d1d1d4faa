"""`carl_ray.datasets.motion_jpeg`: JPEG files come back from the video as they are."""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np
import pytest
from PIL import Image

from carl_ray.data.decode import probe_video, read_frames
from carl_ray.datasets.motion_jpeg import mux_motion_jpeg

FULL_COLOUR, HALF_COLOUR, QUARTER_COLOUR = 0, 1, 2  # Pillow's numbers of 4:4:4, 4:2:2 and 4:2:0


def jpeg(number: int, width: int = 64, height: int = 48, mode: str = "RGB", **options: object) -> bytes:
    """A picture with every brightness from 0 to 255 that differs from number to number."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x + 3 * number) / 9), np.cos((y + number) / 7), np.sin((x + y) / 11)]
    picture = np.stack([(128 + 140 * wave).clip(0, 255) for wave in waves], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, "jpeg", quality=95, **options)
    return buffer.getvalue()


def alone(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def luma(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114])


def packets(video: bytes) -> list[bytes]:
    with av.open(io.BytesIO(video)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"subsampling": FULL_COLOUR}, 3),
        ({"mode": "L"}, 3),
        ({"subsampling": FULL_COLOUR, "progressive": True}, 3),
        # Decoders interpolate subsampled colour differently; brightness must agree.
        ({"subsampling": HALF_COLOUR}, None),
        ({"subsampling": QUARTER_COLOUR}, None),
        ({"subsampling": QUARTER_COLOUR, "width": 63, "height": 47}, None),
    ],
)
def test_every_frame_equals_the_jpeg_decoded_alone(options: dict, tolerance: int | None) -> None:
    frames = [jpeg(number, **options) for number in range(40)]
    video = mux_motion_jpeg(iter(frames), frames_per_second=25)
    assert packets(video) == frames
    probe = probe_video(video, verify=True)
    assert (probe.num_frames, probe.fps, probe.duration, probe.codec) == (40, 25, 1.6, "mjpeg")
    expected = np.stack([alone(frame) for frame in frames])
    assert (probe.height, probe.width) == expected.shape[1:3]
    decoded = read_frames(video, np.arange(40))
    assert decoded.shape == expected.shape
    if tolerance is not None:
        assert np.abs(decoded.astype(int) - expected).max() <= tolerance
    assert np.abs(luma(decoded) - luma(expected)).max() < 12
    assert np.abs(luma(decoded) - luma(expected)).mean() < 1
    # A limited range taken for a full one would move black and white by 16.
    assert decoded.min() <= expected.min() + 3 and decoded.max() >= expected.max() - 3
    np.testing.assert_array_equal(read_frames(video, [39, 3, 21]), decoded[[39, 3, 21]])


def test_equal_frames_make_equal_bytes() -> None:
    frames = [jpeg(number) for number in range(5)]
    assert mux_motion_jpeg(frames, frames_per_second=25) == mux_motion_jpeg(frames, frames_per_second=25)
    assert probe_video(mux_motion_jpeg(frames, frames_per_second=30)).fps == 30


def test_a_single_frame_is_a_video() -> None:
    video = mux_motion_jpeg([jpeg(7)], frames_per_second=25)
    assert probe_video(video, verify=True).num_frames == 1


def test_exif_is_left_out_and_nothing_turns() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    turned = [jpeg(number, exif=exif) for number in range(3)]
    assert b"Exif" in turned[0]
    video = mux_motion_jpeg(turned, frames_per_second=25)
    assert packets(video) == [jpeg(number) for number in range(3)]
    assert read_frames(video, [0, 1, 2]).shape == (3, 48, 64, 3)


def test_other_segments_and_bytes_after_the_end_stay() -> None:
    frame = jpeg(0, comment=b"a comment", icc_profile=b"profile" * 10) + b"\0\0"
    assert packets(mux_motion_jpeg([frame], frames_per_second=25)) == [frame]


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "frame 2 is a damaged JPEG file: its end is missing"),
        (lambda content: content[:30], "frame 2 is a damaged JPEG file: its header breaks off"),
        (lambda content: b"", "frame 2 is no JPEG file"),
        (lambda content: b"\x89PNG" + content, "frame 2 is no JPEG file"),
        (lambda content: jpeg(2, 64, 32), "frame 2 has 64 x 32 pixels, the first one 64 x 48"),
        (lambda content: content[:2] + content[content.index(b"\xff\xda") :], "it states no size"),
    ],
)
def test_what_is_no_video_is_refused(spoil: Callable[[bytes], bytes], message: str) -> None:
    frames = [jpeg(number) for number in range(4)]
    frames[2] = spoil(frames[2])
    with pytest.raises(ValueError, match=message):
        mux_motion_jpeg(frames, frames_per_second=25)


def test_no_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no frame"):
        mux_motion_jpeg([], frames_per_second=25)
