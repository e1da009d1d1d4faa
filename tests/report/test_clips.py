"""`carl_ray.report.clips`: loops of the right frames, nearest first, marked by the class."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.report import clips
from carl_ray.report.clips import clip_sheets
from tests.embedded import embedded
from tests.report.test_page import Page, metrics_of, written

LABELS = ("dive", "box", "kick")
OFFSET = 50 * np.ones(4)


@pytest.fixture(scope="module")
def uri(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_video(tmp_path_factory.mktemp("videos") / "a.mp4", 60, 128, 96))


def video(name: str, label: str | None, uri: str, seed: int, shown: str | None = None) -> EmbeddedVideo:
    """A video whose frames 40 to 60 show its label, far from the origin."""
    rng = np.random.default_rng(seed)
    embeddings = OFFSET + 0.1 * rng.standard_normal((60, 4))
    embeddings[20:, LABELS.index(shown or label or "box")] += 2
    return embedded(name, embeddings.astype(np.float32), uri=uri, label=label, fps=30.0)


@pytest.fixture(scope="module")
def sides(uri: str) -> tuple[list[EmbeddedVideo], list[EmbeddedVideo]]:
    train = [video(f"train/{n}", LABELS[n % 3], uri, n) for n in range(9)]
    train.append(video("train/like-a-dive", "kick", uri, 99, shown="dive"))
    train.append(replace(video("train/unlabelled", "dive", uri, 98), label=None))
    test = [video(f"test/{n}", LABELS[n % 3], uri, 50 + n) for n in range(6)]
    return train, [replace(test[0], video_id="test/7"), *test[1:], replace(test[0], label=None)]


def test_the_nearest_clips_are_of_the_class_and_marked(sides) -> None:
    sheets = [sheet.tiles for sheet in clip_sheets(*sides, 32)]
    assert [sheet[0].found.video_id for sheet in sheets] == ["test/1", "test/3", "test/2"]
    assert [sheet[0].found.frame for sheet in sheets] == [30] * 3
    for sheet, label in zip(sheets, sorted(LABELS), strict=True):
        assert len(sheet) == 6
        near = [v.video_id for v in sides[0] if v.label == label and not v.video_id.endswith("dive")]
        near += ["train/like-a-dive"] * (label == "dive")
        assert {tile.found.video_id for tile in sheet[1 : 1 + len(near)]} == set(near)
        assert all(tile.found.frame >= 20 for tile in sheet[1 : 1 + len(near)])
        assert [tile.verdict == "right" for tile in sheet[1:]] == [t.found.label == label for t in sheet[1:]]
        assert [t.found.similarity for t in sheet[1:]] == sorted(
            (t.found.similarity for t in sheet[1:]), reverse=True
        )
        assert "train/unlabelled" not in {tile.found.video_id for tile in sheet}


def test_a_loop_shows_the_clip_around_the_frame(
    sides, uri: str, frame_numbers: Callable[[np.ndarray], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "_SIDE", 96)
    query = clip_sheets(*sides, 32)[0].tiles[0]
    assert query.picture is not None and query.still is not None and query.picture.mime == "image/webp"
    image = Image.open(io.BytesIO(query.picture.content))
    frames = []
    for number in range(image.n_frames):  # type: ignore[attr-defined]
        image.seek(number)
        frames.append(np.asarray(image.convert("RGB")))
    assert frame_numbers(np.stack(frames)) == list(range(14, 46, 2))
    assert image.info["loop"] == 0 and image.info["duration"] == round(2000 / 30)
    short = [replace(side[0], embeddings=side[0].embeddings[:5]) for side in sides]
    assert len(clip_sheets(short[:1], short[1:], 32)[0].tiles) == 2
    gone = [replace(v, uri="/nowhere.mp4") for v in sides[0]]
    assert {tile.picture for tile in clip_sheets(gone, sides[1], 32)[0].tiles[1:]} == {None}
    assert clip_sheets([], sides[1], 32) == []


def test_two_streams_have_a_sheet_each(sides) -> None:
    """The first half of the embedding is near by the label, the second by the scene."""
    scenes = {v.video_id: f"scene {n % 2}" for side in sides for n, v in enumerate(side)}
    rng = np.random.default_rng(0)

    def joined(v: EmbeddedVideo) -> EmbeddedVideo:
        static = 0.1 * rng.standard_normal(v.embeddings.shape) + OFFSET
        static[:, int(scenes[v.video_id][-1])] += 2
        return replace(v, embeddings=np.concatenate([v.embeddings, static], 1).astype(np.float32))

    train, test = ([joined(v) for v in side] for side in sides)
    moving, still = (clip_sheets(train, test, 32, scenes)[n::2] for n in (0, 1))
    alone = clip_sheets(*sides, 32)
    found = [[[tile.found.video_id for tile in sheet.tiles] for sheet in each] for each in (moving, alone)]
    assert found[0] == found[1] and "motion" in moving[0].heading and not alone[0].heading
    for sheet in still:
        assert sheet.judged_by == "scene" and "scene" in sheet.heading
        query, *others = sheet.tiles
        assert {tile.found.label for tile in others} == {query.found.label} == {scenes[query.found.video_id]}
        assert {tile.verdict for tile in others} == {"right"}
    # Without scenes, by the class.
    assert [s.judged_by for s in clip_sheets(train, test, 32, {})] == ["class"] * 6


def test_the_page_has_the_sheets_of_an_encoder_of_clips_alone(sides, tmp_path: Path) -> None:
    train, test = sides
    metrics = metrics_of(test)
    content = written(tmp_path, test[:3], metrics, train[:6], clip_span=16)
    page = Page(content)
    assert content.count(b"data:image/webp") == 3 * 6 and "Nearest clips" in page.text
    assert page.text.count("✓ same class") >= 3 and "✗ other class" in page.text
    assert all(source.startswith(("#", "data:")) for source in page.sources())
    assert "dynamic" not in page.text and "generated" not in page.text
    scenes = {v.video_id: "scene 1" for v in (*train, *test)}
    page = Page(written(tmp_path, test[:3], metrics, train[:6], clip_span=16, scenes=scenes))
    assert page.text.count("By the static stream") == 3 and page.text.count("✓ same scene") == 15
    assert " s, scene 1" in page.text
    assert b'id="clips"' not in written(tmp_path, test[:3], metrics, train[:6])
