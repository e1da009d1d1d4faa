"""A CNN and a vision transformer of timm, and an encoder of clips: train, resume, embed, evaluate, on Ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import carl_ray
from carl_ray.config import AugmentConfig, Config
from carl_ray.evaluation.clip_probe import even_clips
from carl_ray.evaluation.corpus import EmbeddingSettings
from carl_ray.evaluation.inference import BackwardsEncoder, VideoEmbedder, load_encoders
from carl_ray.objectives.choice import objective_options
from carl_ray.training.checkpoint import checkpoint_at
from tests.samples import small_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


def of_timm(name: str) -> Config:
    config = carl_ray.preset("demo")
    return replace(
        config,
        augment=AugmentConfig(image_size=32),
        model=small_model(backbone=name, learnable="1", num_frames=8),
    )  # fmt: skip


@pytest.fixture(scope="module")
def manifest(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four training and four test videos of two classes, with a keypoint estimate that never moves."""
    folder = tmp_path_factory.mktemp("videos")
    for number, split in enumerate(["train"] * 4 + ["test"] * 4):
        make_video(folder / "ab"[number % 2] / split / f"{number}.mp4", 24)
    paths = sorted(folder.rglob("*.mp4"))
    labels = pa.table(
        {
            "video_id": [str(path.relative_to(folder)) for path in paths],
            "label": [path.parts[-3] for path in paths],
            "split": [path.parts[-2] for path in paths],
            "keypoints": pa.array([np.full(24 * 17 * 3, 0.5, np.float16)] * 8, pa.list_(pa.float16())),
            "group": [path.stem for path in paths],
        }
    )
    uri = str(folder.with_suffix(".parquet"))
    carl_ray.build_manifest(str(folder), uri, labels)
    return uri


def fitted_twice(config: Config, manifest: str, run: Path) -> None:
    """Train four steps; again from the second, exactly."""
    config = replace(
        config,
        data=replace(config.data, manifest=manifest, short_side=config.augment.image_size),
        training=replace(config.training, epochs=2, global_batch_size=2, checkpoint_every_steps=2),
        cluster=replace(config.cluster, max_decode_tasks=1),
    )
    carl_ray.fit(config, str(run))
    last, first = (run / "checkpoints" / f"step-0000000{step}" for step in (4, 2))
    whole = json.loads((last / "state.json").read_text())["hashes"]
    assert first.exists()
    shutil.rmtree(last)
    carl_ray.fit(config, str(run), resume=True)
    assert json.loads((last / "state.json").read_text())["hashes"] == whole


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(of_timm("timm:test_efficientnet"), id="cnn"),
        pytest.param(of_timm("timm:test_vit"), id="transformer"),
        pytest.param(carl_ray.preset("clips_demo"), id="clips"),
        pytest.param(
            replace(carl_ray.preset("clips_demo"), objective=objective_options("clip_classes")), id="classes"
        ),
        pytest.param(carl_ray.preset("csvr_demo"), id="streams"),
    ],
)
def test_from_training_to_metrics(
    config: Config, manifest: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = tmp_path / "run"
    # One kind with the processes of a run; what those of the others would do is the same.
    if config.model.backbone != "timm:test_vit":
        request.getfixturevalue("local_training")
    fitted_twice(config, manifest, run)
    embeddings = str(tmp_path / "embeddings")
    has_streams = config.model.clip_streams == "two"
    settings = EmbeddingSettings(backwards=has_streams)
    assert carl_ray.embed_corpus(str(run), manifest, embeddings, settings).num_embedded == 8
    document = carl_ray.evaluate_embeddings(embeddings, embeddings, str(tmp_path / "evaluation"))
    assert {"trained", "untrained"} <= set(document) and (tmp_path / "evaluation" / "report.html").exists()
    assert ("video_linear_probe" in document["trained"]) == (config.preset in ("clips_demo", "csvr_demo"))
    assert ("direction_of_time" in document["trained"]) == has_streams
    if has_streams:
        checkpoint = checkpoint_at(str(run))
        made = [BackwardsEncoder(network) for network in load_encoders(checkpoint, untrained=True)]
        embedder = VideoEmbedder(made, checkpoint.config, torch.device("cpu"))
        for video in carl_ray.Embeddings.open(embeddings):
            expected = map(even_clips, embedder.embed_file(video.uri))
            for stored, wanted in zip((video.backwards, video.untrained_backwards), expected, strict=True):
                np.testing.assert_allclose(stored, wanted, rtol=2e-2, atol=2e-3)
            assert not np.allclose(even_clips(video.embeddings), video.backwards, rtol=0.1)
    if config.objective.name == "clip_classes":
        counts = document["trained"]["classifier_top_1"]["left_out"]
        assert counts == {"test_videos_without_prediction_or_label": 0}
        embedded = list(carl_ray.Embeddings.open(embeddings))
        for video in embedded:
            assert video.group == Path(video.video_id).stem
            expected = ["a", "b"] if video.split == "test" else None
            assert (video.predicted and sorted(video.predicted)) == expected
    if config.objective.name == "csvr":
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {"pose_error", "mean_pose_error", "context_loss", "next_critic_loss"} <= set(lines[-1])
        assert lines[-1]["people"] == 1
    if config.objective.name == "regions":
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {"target_entropy", "rank_of_best", "order_accuracy", "low_level_r2"} <= set(lines[-1])
