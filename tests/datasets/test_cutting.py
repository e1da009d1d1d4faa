"""A cut has exactly the frames of its time range, whatever the video's rate, timestamps or orientation."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from carl_ray.data.decode import DecodeError, probe_video, read_frames
from carl_ray.datasets import cutting
from carl_ray.datasets.cutting import Cut, CutResult, cut_all, cut_video, num_frames_between
from carl_ray.errors import RunError


@pytest.fixture(scope="module")
def video(make_video, tmp_path_factory) -> Path:
    """Twelve seconds at 25 frames a second, a key frame every second; frame i begins at i / 25 seconds."""
    return make_video(tmp_path_factory.mktemp("cutting") / "long.mp4", 300, fps=25, gop=25)


@pytest.fixture
def numbers(frame_numbers):
    """The numbers that the frames of a cut show."""

    def read(source, start, end, *, frame_rate=25, short_side=360):
        content, num_frames = cut_video(
            source, Fraction(start), Fraction(end), frame_rate=frame_rate, short_side=short_side
        )
        probe = probe_video(content, verify=True)
        assert (probe.num_frames, probe.fps, probe.codec) == (num_frames, frame_rate, "h264")
        return frame_numbers(read_frames(content, range(num_frames)))

    return read


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("0", "1", range(25)),
        ("3.2", "4.48", range(80, 112)),  # 3.2 * 25 is 80 in fractions, whatever it is in floats
        ("7.5", "8", range(187, 200)),  # at 7.5 s, frame 187 has been on the screen since 7.48 s
        ("11.8", "12", range(295, 300)),
        ("11.8", "14", range(295, 300)),  # ends with the video
        ("9.99", "10", [249]),
    ],
)
def test_frames_of_a_range_at_the_rate_of_the_video(video, numbers, start, end, expected):
    assert numbers(video, start, end) == list(expected)


def test_another_rate_shows_what_was_on_the_screen(make_video, tmp_path, numbers):
    fast = make_video(tmp_path / "fast.mp4", 150, fps=30, gop=10)
    assert numbers(fast, "2", "3") == [60 + k * 30 // 25 for k in range(25)]
    slow = make_video(tmp_path / "slow.mp4", 30, fps=10)
    assert numbers(slow, "1", "2") == [10 + k * 10 // 25 for k in range(25)]


def test_gaps_in_the_timestamps_are_filled_by_the_frame_before(make_video, tmp_path, numbers):
    pts = [*range(50), *range(100, 150)]  # nothing from 2 s to 4 s
    gap = make_video(tmp_path / "gap.mp4", 100, fps=25, gop=10, pts=pts)
    assert numbers(gap, "1.8", "4.2") == [45, 46, 47, 48, *[49] * 51, 50, 51, 52, 53, 54]


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.avi", "a.webm"])
def test_containers_with_other_clocks(make_video, tmp_path, numbers, name):
    """Transport streams begin at 1.4 s, Matroska rounds to milliseconds, AVI has no presentation times."""
    codec, b_frames = ("libvpx", 0) if name.endswith("webm") else ("libx264", 2)
    other = make_video(tmp_path / name, 150, fps=25, gop=20, codec=codec, b_frames=b_frames)
    # In the middle of frames, for rounded timestamps lie on either side of their beginning.
    assert numbers(other, "4.02", "5.02") == list(range(100, 125))


def test_a_video_that_cannot_be_searched_is_decoded_from_its_start(video, numbers, monkeypatch):
    decoded = cutting._decoded
    late = []

    def lands_late(source, seek_to):
        if seek_to is None:
            return decoded(source, None)
        late.append(seek_to)
        return decoded(source, seek_to + 5)

    monkeypatch.setattr(cutting, "_decoded", lands_late)
    assert numbers(video, "6", "6.4") == list(range(150, 160)) and late == [5]


def test_size_and_rotation(make_video, tmp_path, frame_numbers):
    turned = make_video(tmp_path / "turned.mp4", 30, 130, 98, fps=25, matrix=(0, 1, -1, 0))
    content, _ = cut_video(turned, Fraction(0), Fraction(1), frame_rate=25, short_side=48)
    frames = read_frames(content, range(25))
    assert frames.shape == (25, 64, 48, 3)  # 63.67 to the nearest even number; stands upright
    assert probe_video(content).rotation == 0
    upright = read_frames(str(turned), range(25), short_side=48)
    assert np.abs(frames.astype(int) - upright).mean() < 6
    content, _ = cut_video(turned, Fraction(0), Fraction(1), frame_rate=25, short_side=360)
    assert read_frames(content, [0]).shape == (1, 130, 98, 3)  # not made larger


def test_full_range_pixels_keep_their_brightness(make_video, tmp_path):
    video = make_video(tmp_path / "full.mp4", 10, fps=25, pixel_format="yuvj420p")
    content, _ = cut_video(video, Fraction(0), Fraction("0.4"), frame_rate=25, short_side=360)
    cut, original = (read_frames(source, [5]).astype(int) for source in (content, str(video)))
    assert np.abs(cut - original).mean() < 3


def test_equal_cuts_are_equal_bytes(video):
    first, second = (
        cut_video(video, Fraction(2), Fraction(4), frame_rate=25, short_side=48)[0] for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"not a video" * 100, "not a video"), (None, "the video ends before")],
)
def test_broken_videos_say_why(video, tmp_path, content, reason):
    path = video
    if content is not None:
        path = tmp_path / "broken.mp4"
        path.write_bytes(content)
    with pytest.raises(DecodeError, match=reason):
        cut_video(path, Fraction(20), Fraction(21), frame_rate=25, short_side=48)


def test_ranges_are_checked_and_counted():
    with pytest.raises(ValueError, match=r"got \[2, 2\)"):
        Cut(Path("a"), Path("b"), Fraction(2), Fraction(2))
    assert num_frames_between(Fraction("0.01"), Fraction("1.02"), 25) == 26


def test_many_cuts_in_processes(video, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"junk" * 1000)
    cuts = [
        Cut(video, tmp_path / "out" / "-a.mp4", Fraction(1), Fraction(2)),
        Cut(video, tmp_path / "out" / "_ü b.mp4", Fraction(3), Fraction(5)),
        Cut(broken, tmp_path / "out" / "c.mp4", Fraction(3), Fraction(5)),
    ]
    outcomes = dict(cut_all(cuts, frame_rate=25, short_side=48, num_processes=2))
    assert outcomes[cuts[0]] == CutResult(25) and outcomes[cuts[1]] == CutResult(50)
    assert "not a video" in outcomes[cuts[2]].reason
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["-a.mp4", "_ü b.mp4"]

    kept = cuts[0].target.stat().st_mtime_ns
    cuts[1].target.write_bytes(b"half a fi")
    outcomes = dict(cut_all(cuts, frame_rate=25, short_side=48, num_processes=2))
    assert outcomes[cuts[0]] == CutResult(25) and outcomes[cuts[1]] == CutResult(50)
    assert cuts[0].target.stat().st_mtime_ns == kept


def test_a_crash_costs_one_cut(video, tmp_path, monkeypatch):
    # The decoder of the second cut dies, in whichever process it is.
    dying = tmp_path / "sitecustomize.py"
    dying.write_text(
        "import os, json, signal\n"
        "loads = json.loads\n"
        "def dies(line, **options):\n"
        "    request = loads(line, **options)\n"
        "    if str(request.get('arguments', {}).get('target')).endswith('1.mp4'):\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return request\n"
        "json.loads = dies\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    cuts = [Cut(video, tmp_path / f"{i}.mp4", Fraction(i), Fraction(i + 1)) for i in range(3)]
    outcomes = dict(cut_all(cuts, frame_rate=25, short_side=48, num_processes=1))
    assert outcomes[cuts[1]] == CutResult(reason="the decoder crashed (SIGSEGV)")
    assert outcomes[cuts[0]] == outcomes[cuts[2]] == CutResult(25)


def test_an_interrupted_run_leaves_whole_files_only(video, tmp_path):
    cuts = [Cut(video, tmp_path / "out" / f"{i}.mp4", Fraction(0), Fraction(i + 1)) for i in range(6)]
    outcomes = cut_all(cuts, frame_rate=25, short_side=48, num_processes=1)
    cut, outcome = next(outcomes)
    outcomes.close()
    assert outcome == CutResult(25 * (cuts.index(cut) + 1)) and cut.target.is_file()
    finished = [cut for cut in cuts if cut.target.exists()]
    for cut in finished:
        assert probe_video(str(cut.target), verify=True).num_frames == 25 * cut.end
    assert len(dict(cut_all(cuts, frame_rate=25, short_side=48))) == 6


def test_a_target_that_cannot_be_written_ends_it(video, tmp_path):
    (tmp_path / "file").write_text("in the way")
    cut = Cut(video, tmp_path / "file" / "a.mp4", Fraction(1), Fraction(2))
    with pytest.raises(RunError, match="could not write"):
        list(cut_all([cut], frame_rate=25, short_side=48))
