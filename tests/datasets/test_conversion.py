"""`carl_ray.datasets.conversion`: labels on frames, and what people are told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from carl_ray.datasets.conversion import (
    Conversion,
    LeftOut,
    VideoFolder,
    fit_labels,
    publish,
    summarize,
)
from carl_ray.errors import UserError

TOO_FEW, TOO_MANY = "one label too few, the last frame has none", "one label too many, dropped"
STRETCHED = "labels of another number of frames, stretched"


@pytest.mark.parametrize(
    ("labels", "numbers", "num_frames", "expected", "note"),
    [
        ([0, 0, 1, 1], range(4), 4, [0, 0, 1, 1], None),
        ([0, 0, 1, 1, 1], range(4), 4, [0, 0, 1, 1], TOO_MANY),
        ([0, 0, 1], range(4), 4, [0, 0, 1, -1], TOO_FEW),
        # A frame is missing in the middle; labels keep to their frames.
        ([0, 1, 2, 3], [0, 1, 3], 4, [0, 1, 3], None),
        # The last frames are missing, and the data set says how many there were.
        ([0, 0, 1, 1, 2, 2], range(3), 6, [0, 0, 1], None),
        ([0, 0, 1, 1, 2], range(3), 6, [0, 0, 1], None),
        # What the data set says is wrong.
        ([0, 0, 1, 1], range(4), 40, [0, 0, 1, 1], None),
        # Another sampling of the video.
        ([0, 0, 1, 1, 2, 2, 3, 3], range(4), 4, [0, 1, 2, 3], STRETCHED),
        ([0, 1], range(6), 6, [0, 0, 0, 1, 1, 1], STRETCHED),
    ],
)
def test_labels_fit_frames(
    labels: list[int], numbers: range | list[int], num_frames: int, expected: list[int], note: str | None
) -> None:
    assert fit_labels(labels, list(numbers), num_frames, 4) == (expected, [note] if note else [])


@pytest.mark.parametrize("labels", [[0, 3], [-2, 0]])
def test_phases_are_within_their_range(labels: list[int]) -> None:
    assert fit_labels([-1, 2], [0, 1], 2, 3) == ([-1, 2], [])
    with pytest.raises(LeftOut, match="a phase label is outside 0 to 2"):
        fit_labels(labels, [0, 1], 2, 3)


def test_a_finished_video_is_not_written_again(jpeg: Callable[..., bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    VideoFolder(str(out)).add("train/a.mp4", [jpeg(0), jpeg(1)])
    content = (out / "train" / "a.mp4").read_bytes()
    again = VideoFolder(str(out))
    again.add("train/a.mp4", iter(lambda: pytest.fail("it was read again"), None))
    with pytest.raises(LeftOut, match="frame 1 is no JPEG file"):
        again.add("train/b.mp4", [jpeg(0), b"no"])
    assert {path.name for path in out.rglob("*") if path.is_file()} == {"a.mp4"}
    assert (out / "train" / "a.mp4").read_bytes() == content


def test_converting_needs_no_ray() -> None:
    code = (
        "import sys, carl_ray.datasets.penn_action, carl_ray.datasets.pouring; sys.exit('ray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_summary_counts_everything() -> None:
    conversion = Conversion({"train": 1140, "test": 966})
    conversion.add("train/a.mp4", "train", "squat", [0, 1, -1], "something")
    for number in range(7):
        conversion.leave_out(f"{number:04d}", "no frames")
    conversion.leave_out("x", "no .mat file")
    lines = summarize(conversion).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["split", "videos", "published", "labelled", "frames", "of"],
        ["train", "1", "1,140", "2", "3"],
        ["test", "0", "966", "0", "0"],
    ]
    assert lines[3:] == [
        "left out: 8",
        "       7 x no frames (0000, 0001, 0002, 0003, 0004, …)",
        "       1 x no .mat file (x)",
        "mended: 1",
        "       1 x something (train/a.mp4)",
    ]


def test_nothing_converted_names_the_main_reason() -> None:
    conversion = Conversion({})
    with pytest.raises(UserError, match="RAW: it holds no video"):
        publish(conversion, "RAW", "out", "demo")
    for video, reason in (("a", "no .mat file"), ("b", "no frames"), ("c", "no frames")):
        conversion.leave_out(video, reason)
    with pytest.raises(UserError, match=r"RAW: no video .* most frequent reason: no frames \(2\)"):
        publish(conversion, "RAW", "out", "demo")
