"""A CNN and a vision transformer of timm: train, resume, embed, evaluate, on Ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import carl_ray
from carl_ray.config import AugmentConfig, ModelConfig

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "size"), [("timm:test_efficientnet", 32), ("timm:test_vit", 32)])
def test_from_training_to_metrics(
    name: str, size: int, make_video: Callable[..., Path], tmp_path: Path, ray_session: None
) -> None:
    for number, split in enumerate(["train"] * 4 + ["test"] * 2):
        make_video(tmp_path / "videos" / split / f"{number}.mp4", 24)
    manifest, run = str(tmp_path / "videos.parquet"), tmp_path / "run"
    carl_ray.build_manifest(str(tmp_path / "videos"), manifest)
    config = carl_ray.preset("demo")
    config = replace(
        config,
        data=replace(config.data, manifest=manifest, short_side=size),
        augment=AugmentConfig(image_size=size),
        model=ModelConfig(
            backbone=name, weights="random", learnable="1", num_frames=8, hidden_width=16, width=16, num_layers=1,
            num_heads=2, feedforward_width=16, embedding_width=8,
        ),
        training=replace(config.training, epochs=2, global_batch_size=2, checkpoint_every_steps=2),
    )  # fmt: skip
    carl_ray.fit(config, str(run))
    last, first = (run / "checkpoints" / f"step-0000000{step}" for step in (4, 2))
    whole = json.loads((last / "state.json").read_text())["hashes"]
    assert first.exists()
    shutil.rmtree(last)
    carl_ray.fit(config, str(run), resume=True)
    assert json.loads((last / "state.json").read_text())["hashes"]["model.pt"] == whole["model.pt"]
    embeddings = str(tmp_path / "embeddings")
    assert carl_ray.embed_corpus(str(run), manifest, embeddings).num_embedded == 6
    document = carl_ray.evaluate_embeddings(embeddings, embeddings, str(tmp_path / "evaluation"))
    assert {"trained", "untrained"} <= set(document) and (tmp_path / "evaluation" / "report.html").exists()
