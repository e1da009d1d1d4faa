"""`carl_ray.report.video`: the right frames side by side, and a file that browsers play."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from carl_ray.data.decode import DecodeError, iterate_frames, probe_video, read_frames
from carl_ray.report import video
from carl_ray.report.video import Clip, aligned_video, partners, same_relative_position

TEXT = video._TEXT_HEIGHT
PATH = np.array([(0, 0), (0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (3, 5), (4, 6)])


def test_the_partner_is_the_middle_one() -> None:
    assert partners(PATH, 5).tolist() == [1, 3, 3, 4, 6]


def test_frames_that_the_path_lacks_lie_between_their_neighbours() -> None:
    assert partners(np.array([(0, 0), (3, 6), (6, 6)]), 8).tolist() == [0, 2, 4, 6, 6, 6, 6, 6]


def test_same_relative_position() -> None:
    assert same_relative_position(5, 9).tolist() == [0, 2, 4, 6, 8]
    assert same_relative_position(9, 5).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert same_relative_position(1, 7).tolist() == [0]


def panels(content: bytes, num_frames: int, widths: list[int]) -> list[np.ndarray]:
    """The pictures of each panel, without the text above them."""
    frames = read_frames(content, range(num_frames))[:, TEXT:]
    assert frames.shape[2] == sum(widths) + 2 * video._GAP
    starts = np.cumsum([0, *(width + video._GAP for width in widths[:-1])])
    return [frames[:, :, start : start + width] for start, width in zip(starts, widths, strict=True)]


def test_each_frame_stands_beside_its_partner(
    make_video: Callable[..., Path], frame_numbers: Callable[[np.ndarray], list[Any]], tmp_path: Path
) -> None:
    first = Clip("first", str(make_video(tmp_path / "a.mp4", 40, 96, 96, fps=12)), 40)
    second = Clip("second", str(make_video(tmp_path / "b.mp4", 70, 128, 96, fps=30)), 70)
    # The second stands still, then hurries.
    path = np.array(
        [(i, 0) for i in range(10)] + [(9, j) for j in range(1, 40)] + [(i, i + 30) for i in range(10, 40)]
    )
    content = aligned_video(first, second, path)

    probe = probe_video(content, verify=True)
    assert (probe.codec, probe.num_frames, probe.fps) == ("h264", 40, 12)
    shown = panels(content, 40, [240, 320, 320])
    assert frame_numbers(shown[0]) == list(range(40))
    assert frame_numbers(shown[1]) == [0] * 9 + [19] + list(range(40, 70))
    assert frame_numbers(shown[2]) == same_relative_position(40, 70).tolist()
    assert aligned_video(first, second, path) == content


def test_browsers_play_it_from_its_beginning(make_video: Callable[..., Path], tmp_path: Path) -> None:
    clip = Clip("clip", str(make_video(tmp_path / "a.mp4", 5)), 5)
    content = aligned_video(clip, clip, np.array([(i, i) for i in range(5)]))
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    (tmp_path / "out.mp4").write_bytes(content)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"


@pytest.mark.parametrize(("width", "height"), [(300, 60), (60, 300), (33, 47)])
def test_any_shape_keeps_its_proportions(
    make_video: Callable[..., Path],
    frame_numbers: Callable[[np.ndarray], list[Any]],
    tmp_path: Path,
    width: int,
    height: int,
) -> None:
    clip = Clip("x", str(make_video(tmp_path / "a.mp4", 6, width, height, pixel_format="yuv444p")), 6)
    content = aligned_video(clip, clip, np.array([(i, i) for i in range(6)]))
    scale = min(240 / height, 400 / width)
    panel = max(200, round(width * scale) // 2 * 2)
    shown = panels(content, 6, [panel] * 3)[0]
    left, top = (panel - round(width * scale)) // 2, (240 - round(height * scale)) // 2
    picture = shown[:, top : 240 - top, left : panel - left]
    assert frame_numbers(picture) == list(range(6))
    bars = np.ones(shown.shape[1:3], bool)
    bars[max(0, top - 2) : 242 - top, max(0, left - 2) : panel - left + 2] = False
    assert (shown[:, bars] < 60).all()


def test_the_text_changes_with_time_and_survives_any_name(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    uri = str(make_video(tmp_path / "a.mp4", 8))
    path = np.array([(i, i) for i in range(8)])
    name = "a folder/" * 20 + "двойка $x$ 動画\n.mp4"
    content = aligned_video(Clip(name, uri, 8), Clip("", uri, 8), path)
    text = read_frames(content, [0, 7])[:, :TEXT].astype(int)
    assert text[0, : TEXT // 2].max() > 200
    assert np.abs(text[0, TEXT // 2 :] - text[1, TEXT // 2 :]).max() > 60
    assert np.abs(text[0, :20] - text[1, :20]).max() < 40


def test_memory_is_bounded(
    make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = []

    def counted(*args: Any, **options: Any) -> Any:
        for chunk in iterate_frames(*args, **options):
            chunks.append(len(chunk))
            yield chunk

    monkeypatch.setattr(video, "iterate_frames", counted)
    clip = Clip("clip", str(make_video(tmp_path / "a.mp4", 100)), 100)
    aligned_video(clip, clip, np.array([(i, i) for i in range(100)]))
    # Three streams, some frames at a time, each frame decoded once a stream.
    assert sum(chunks) == 300
    assert max(chunks) <= 16


def test_videos_that_cannot_be_shown(make_video: Callable[..., Path], tmp_path: Path) -> None:
    clip = Clip("clip", str(make_video(tmp_path / "a.mp4", 5)), 5)
    path = np.array([(i, i) for i in range(5)])
    with pytest.raises(DecodeError, match="no such file"):
        aligned_video(clip, Clip("gone", str(tmp_path / "gone.mp4"), 5), path)
    longer = np.array([(i, i) for i in range(9)])
    with pytest.raises(DecodeError, match="9 frames were expected, but only 5 decode"):
        aligned_video(clip, Clip("shorter than it was", clip.source, 9), longer[:5] * 2)
