"""What the report shows of a run of `csvr`: drawn poses, generated clips, both streams' neighbours; or why not."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from carl_ray import config as configuration
from carl_ray.evaluation.bootstrap import ratio_of_sums
from carl_ray.evaluation.embeddings import write_part
from carl_ray.evaluation.generation import METRICS, GeneratedClip, GeneratedVideo, Generation, Poses
from carl_ray.report.evaluation import evaluate_embeddings
from carl_ray.report.figures import Picture
from carl_ray.report.generation import draw_generation
from carl_ray.training.checkpoint import CONFIG, open_checkpoint
from tests.evaluation.test_generation import run  # noqa: F401
from tests.report.test_page import Page

BLUE = (0, 114, 178)


def standing(x: float, known: int = 17) -> np.ndarray:
    """A pose on a vertical line."""
    places = np.stack([np.full(17, x), np.linspace(0.1, 0.9, 17)], 1)
    return np.tile(np.concatenate([places, (np.arange(17) < known)[:, None]], 1), (4, 1, 1)).astype(
        np.float32
    )


def generation(real: np.ndarray, predicted: np.ndarray) -> Generation:
    grey = np.full((4, 32, 32, 3), 90, np.uint8)
    poses = Poses(predicted[..., :2], real, grey, 0.0125, 0.05)
    clip = GeneratedClip(
        np.full((8, 24, 24, 3), (200, 0, 0), np.uint8), np.full((8, 24, 24, 3), 40, np.uint8), 0.125
    )
    one = ratio_of_sums(np.array([0.25, 0.25]), np.array([1.0, 1.0]))
    return Generation(
        [GeneratedVideo("test/<b>.mp4", poses, {"now": clip, "next": clip})],
        {metric.name: one for metric in METRICS},
        {"now": 0.125, "next": 0.25},
        7,
        "",
    )


def columns_of(picture: Picture | None, color: tuple[int, int, int]) -> np.ndarray:
    """Where in the first frame pixels of a colour are, as parts of its width, roughly."""
    assert picture is not None
    pixels = np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB")).astype(int)
    half = pixels[20 : len(pixels) // 2 - 20, 20 : pixels.shape[1] // 2 - 20]
    return np.flatnonzero((np.abs(half - color).sum(-1) < 12).any(0)) / half.shape[1]


def test_true_and_predicted_poses_stand_where_they_are() -> None:
    drawn = draw_generation(generation(standing(0.25), standing(0.75))).videos[0]
    blue, black = (columns_of(drawn.poses, color) for color in (BLUE, (17, 17, 17)))
    assert 0.7 < blue.min() <= blue.max() < 0.8 and 0.2 < black.min() <= black.max() < 0.3
    # A joint that is not known has no prediction either.
    drawn = draw_generation(generation(standing(0.25, 0), standing(0.75))).videos[0]
    assert not len(columns_of(drawn.poses, BLUE)) and not len(columns_of(drawn.poses, (17, 17, 17)))


def test_generated_frames_lie_below_the_real_ones() -> None:
    picture = draw_generation(generation(standing(0.2), standing(0.8))).videos[0].clips
    assert picture is not None
    pixels = np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB")).astype(int)
    middle = pixels[:, pixels.shape[1] // 3]
    found: list[str] = []
    for pixel in middle:
        for name, color in (("real", (200, 0, 0)), ("made", (40, 40, 40))):
            if np.abs(pixel - color).sum() < 6 and found[-1:] != [name]:
                found.append(name)
    assert found == ["real", "made", "real", "made"]


def test_the_report_of_a_run_has_its_pictures_and_errors_or_says_why_not(run, tmp_path: Path) -> None:  # noqa: F811
    folder, origin, test, rows = run
    checkpoint = open_checkpoint(origin.checkpoint)
    document = configuration.to_document(checkpoint.config)
    (folder / CONFIG).write_text(json.dumps(document))
    rng = np.random.default_rng(0)
    videos = [
        replace(
            test[0], video_id=r["video_id"], uri=r["uri"], content_hash=r["content_hash"], label=r["label"],
            split=r["split"], timestamps=np.arange(40.0), fps=30.0,
            embeddings=rng.standard_normal((40, 8)).astype(np.float32),
        )
        for r in rows
    ]  # fmt: skip
    embeddings, out = str(tmp_path / "embeddings"), tmp_path / "out"
    origin = replace(origin, preset="csvr_demo", has_untrained=False)
    write_part(embeddings, videos, origin, "float32")
    metrics = evaluate_embeddings(embeddings, embeddings, str(out))
    assert {metric.name for metric in METRICS} <= metrics["trained"].keys()
    assert "pose_error" not in metrics["chance"]
    page = Page((out / "report.html").read_bytes())
    text = page.words
    for said in ("error of predicted poses", "By the static stream", "Poses after a clip", "Generated clips"):
        assert said in text
    value = metrics["trained"]["pose_error"]["value"]
    assert f"has an error of {value:.4f}" in text and "On all 4 test videos" in text
    assert sum(source.startswith("data:image/png") for source in page.sources()) >= 4

    (folder / "manifest.parquet").rename(folder / "away")
    try:
        metrics = evaluate_embeddings(embeddings, embeddings, str(out))
    finally:
        (folder / "away").rename(folder / "manifest.parquet")
    text = Page((out / "report.html").read_bytes()).words
    assert "pose_error" not in metrics["trained"] and "No pictures: " in text and "no manifest there" in text
