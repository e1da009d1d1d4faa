"""Poses and clips that a run of `csvr` makes for held-out videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import carl_ray
from carl_ray.data.decode import read_frames
from carl_ray.data.keypoint_table import add_keypoints
from carl_ray.data.manifest import SCHEMA, write_table
from carl_ray.errors import UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Origin
from carl_ray.evaluation.generation import METRICS, generate
from carl_ray.evaluation.protocol import add_results
from carl_ray.training.checkpoint import Progress, open_checkpoint, save_checkpoint
from carl_ray.training.step import TrainingStep
from tests.embedded import embedded
from tests.evaluation.test_extraction import row
from tests.evaluation.test_protocol import ORIGIN

NUM_FRAMES = 40


def pose(seed: int) -> np.ndarray:
    """A still pose in the frame: all but the last three joints are known."""
    known = np.random.default_rng(seed).uniform(0.3, 0.7, (17, 2))
    score = (np.arange(17) < 14)[:, None]
    return np.concatenate([known, score], 1).astype(np.float16)


def in_square(joints: np.ndarray) -> np.ndarray:
    """Of frames of 80 x 40 pixels, whose central 40 columns are seen."""
    return (joints[:, :2].astype(float) * (80, 40) - (20, 0)) / 40


def smooth_l1(found: np.ndarray, true: np.ndarray) -> float:
    error = np.abs(found - true)[..., :14, :]
    return float(np.where(error < 0.05, error**2 / 0.1, error - 0.025).mean())


def write(folder: Path, rows: list[dict[str, Any]], poses: list[np.ndarray | None] | None) -> str:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    if poses is not None:
        values = [None if p is None else np.tile(p, (NUM_FRAMES, 1, 1)).reshape(-1) for p in poses]
        table = table.append_column("keypoints", pa.array(values, pa.list_(pa.float16())))
    uri = str(folder / "manifest.parquet")
    write_table(table, uri)
    return uri


@pytest.fixture(scope="module")
def run(
    make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Origin, list[EmbeddedVideo], list[dict[str, Any]]]:
    """Videos 0 to 3 for training, 4 to 8 for the test; 7 shows nobody, 8 is not there."""
    folder = tmp_path_factory.mktemp("run")
    path = make_video(folder / "video.mp4", NUM_FRAMES, 80, 40)
    rows = [
        row(
            path if n < 8 else folder / "gone.mp4",
            f"v{n}",
            NUM_FRAMES,
            label="ab"[n % 2],
            content_hash=str(n),
        )
        | {"split": "train" if n < 4 else "test", "width": 80, "height": 40}
        for n in range(9)
    ]
    config = carl_ray.preset("csvr_demo")
    manifest = write(folder, rows, [None if n == 7 else pose(n) for n in range(9)])
    config = replace(config, data=replace(config.data, manifest=manifest))
    step = TrainingStep(config, torch.device("cpu"), 3)
    uri = save_checkpoint(str(folder), step, Progress(3, 3, 0, 0, 1.0, "videos"), 1)
    origin = replace(ORIGIN, checkpoint=uri, model_sha256=open_checkpoint(uri).model_sha256)
    names = ("uri", "content_hash", "label")
    test = [embedded(r["video_id"], np.zeros((1, 4)), **{name: r[name] for name in names}) for r in rows[4:]]
    return folder, origin, test, rows


@pytest.fixture(scope="module")
def made(run):
    return generate(run[1], run[2])


def test_poses_and_their_errors_are_those_of_the_frames_after_the_clip(run, made):
    assert [video.video_id for video in made.drawn] == ["v4", "v5"] and made.num_videos == 4
    every = read_frames(run[3][0]["uri"], range(NUM_FRAMES), short_side=32)[:, :, 16:48].astype(float)
    mean = np.mean([in_square(pose(n)) for n in range(4)], 0)
    for number, video in zip((4, 5), made.drawn, strict=True):
        poses, true = video.poses, in_square(pose(number))
        assert poses.predicted.shape == (4, 17, 2) and poses.frames.shape == (4, 32, 32, 3)
        places = [int(np.abs(every - frame).mean((1, 2, 3)).argmin()) for frame in poses.frames]
        assert places[0] >= 16 and set(np.diff(places)) == {2}
        np.testing.assert_allclose(poses.real[:, :14, :2], np.tile(true[:14], (4, 1, 1)), atol=2e-3)
        assert poses.real[..., 2].tolist() == [[1] * 14 + [0] * 3] * 4
        assert poses.error == pytest.approx(smooth_l1(poses.predicted, poses.real[..., :2]), rel=1e-4)
        assert poses.mean_error == pytest.approx(smooth_l1(mean, true), rel=1e-2)
    predicted, control, share = (made.results[metric.name] for metric in METRICS)
    assert share.value == pytest.approx(predicted.value / control.value)
    everyone = [smooth_l1(mean, in_square(pose(n))) for n in (4, 5, 6)]
    assert control.value == pytest.approx(np.mean(everyone), rel=1e-2)
    assert share.left_out == {
        "test_videos_without_a_person_after_the_clip": 1, "test_videos_not_sampled_or_not_readable": 1,
    }  # fmt: skip
    document: dict[str, Any] = {"metrics": {}, "trained": {}}
    add_results(document, METRICS, made.results, 0)
    assert document["trained"]["pose_error"]["value"] == predicted.value
    assert document["metrics"]["pose_error"]["higher_is_better"] is False


def test_generated_clips_lie_beside_the_real_ones(made):
    for video in made.drawn:
        assert set(video.clips) == {"now", "next"}
        for clip in video.clips.values():
            assert clip.real.shape == clip.fake.shape == (4, 16, 16, 3)
            difference = np.abs(clip.real.astype(float) - clip.fake).mean() / 255
            assert clip.error == pytest.approx(difference, abs=0.004)
    assert set(made.clip_errors) == {"now", "next"}


def test_the_seed_alone_decides(run, made):
    again, other = (generate(run[1], run[2], seed) for seed in (0, 1))
    for name, result in made.results.items():
        assert again.results[name].value == result.value
    assert other.results["pose_error"].value != made.results["pose_error"].value


def test_keypoints_of_a_table_are_those_of_the_run(run, made, tmp_path: Path):
    _, origin, test, rows = run
    table = str(tmp_path / "keypoints")
    people = [n for n in range(9) if n != 7]
    poses = [np.tile(pose(n).reshape(-1), (NUM_FRAMES, 1)) for n in people]
    videos = pa.Table.from_pylist([rows[n] for n in people], schema=SCHEMA)
    add_keypoints(table, videos, poses, "estimator", "1")
    config = open_checkpoint(origin.checkpoint).config
    config = replace(config, data=replace(config.data, keypoints=table))
    step = TrainingStep(config, torch.device("cpu"), 3)
    uri = save_checkpoint(str(tmp_path), step, Progress(3, 3, 0, 0, 1.0, "videos"), 1)
    origin = replace(origin, checkpoint=uri, model_sha256=open_checkpoint(uri).model_sha256)
    found = generate(origin, test)
    for name, result in made.results.items():
        assert found.results[name].value == pytest.approx(result.value)


@pytest.mark.parametrize("given", [None, "nobody"])
def test_without_keypoints_there_are_clips_and_a_reason(run, given: str | None):
    folder, origin, test, rows = run
    before = (folder / "manifest.parquet").read_bytes()
    try:
        write(folder, rows, None if given is None else [pose(n) if n < 4 else None for n in range(9)])
        found = generate(origin, test)
    finally:
        (folder / "manifest.parquet").write_bytes(before)
    assert "keypoints" in found.missing and not found.results
    assert [video.poses for video in found.drawn] == [None, None] and found.drawn[0].clips


def test_what_is_not_there_is_said(run):
    folder, origin, test, _ = run
    with pytest.raises(UserError, match="another model"):
        generate(replace(origin, model_sha256="0"), test)
    with pytest.raises(UserError, match="none of the test videos"):
        generate(origin, [replace(video, content_hash="other") for video in test])
    with pytest.raises(UserError, match="no file of the test videos can be read"):
        generate(origin, test[-1:])
    (folder / "manifest.parquet").rename(folder / "away")
    with pytest.raises(UserError, match="no manifest there"):
        generate(origin, test)
