"""`carl_ray.report.sheets`: the right frames, marked honestly, whatever names and files hold."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carl_ray.evaluation.nearest_frames import FoundFrame
from carl_ray.report.sheets import (
    RIGHT_COLOR,
    UNKNOWN_COLOR,
    WRONG_COLOR,
    is_right,
    jpeg,
    retrieval_sheet,
    thumbnails,
)

QUERY = FoundFrame("query", "query.mp4", 3, 0.3, 1.0, "jump", 1)


def has_color(content: bytes, color: str) -> bool:
    image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(image - wanted).max(axis=2) <= 3).sum() > 200)


@pytest.mark.parametrize(
    ("label", "phase", "expected"),
    [("jump", 1, True), ("jump", 2, False), ("kick", 1, False), ("jump", None, None)],
)
def test_right_means_the_phase_of_the_same_action(
    label: str, phase: int | None, expected: bool | None
) -> None:
    found = replace(QUERY, label=label, phase=phase)
    assert is_right(QUERY, found) is expected
    content = retrieval_sheet(QUERY, [found]).content
    colors = {True: RIGHT_COLOR, False: WRONG_COLOR, None: UNKNOWN_COLOR}
    assert [has_color(content, color) for color in colors.values()] == [key is expected for key in colors]


def test_a_query_without_a_phase_has_no_right_answers() -> None:
    assert is_right(replace(QUERY, phase=None), QUERY) is None


def test_thumbnails_are_the_frames(
    make_video: Callable[..., Path], frame_numbers: Callable[[np.ndarray], list[Any]], tmp_path: Path
) -> None:
    uri = str(make_video(tmp_path / "a.mp4", 60))
    items = [replace(QUERY, uri=uri, frame=frame) for frame in (41, 7, 41)]
    gone = replace(QUERY, uri=str(tmp_path / "gone.mp4"))
    beyond = replace(QUERY, uri=str(make_video(tmp_path / "b.mp4", 5)), frame=5)
    pictures = thumbnails([*items, gone, beyond])
    assert pictures.pop((gone.uri, 3)) is None
    assert pictures.pop((beyond.uri, 5)) is None
    numbers = {
        key: frame_numbers(picture[None])[0] for key, picture in pictures.items() if picture is not None
    }
    assert numbers == {(uri, 7): 7, (uri, 41): 41}


@pytest.mark.parametrize(
    "name", ["$x$ <script>", "$\\nosuch{$", "$", "動画 двойка " * 20, "a\nb\x1b[31m", "%s {0}", ""]
)
def test_any_name_is_drawn_as_it_is(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = retrieval_sheet(replace(QUERY, video_id=name), [replace(QUERY, video_id=name)])
    assert picture == retrieval_sheet(replace(QUERY, video_id=name), [replace(QUERY, video_id=name)])


def test_jpeg_holds_the_frame() -> None:
    frame = np.zeros((16, 24, 3), np.uint8)
    frame[:, 12:] = 200
    read = np.asarray(Image.open(io.BytesIO(jpeg(frame).content))).astype(int)
    assert np.abs(read - frame).mean() < 3
