"""The command `export-model`: the folder, its card, the hub, ONNX."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants as hub
import numpy as np
import onnxruntime
import pytest
import torch
import yaml

import carl_ray
from carl_ray import evaluate, export_model
from carl_ray.evaluation.embeddings import write_part
from carl_ray.model import onnx
from carl_ray.training.checkpoint import checkpoint_at, initial_weights, load_encoder
from tests.test_evaluate import ORIGIN, failure, videos

FRAMES = np.random.default_rng(0).integers(0, 256, (9, 20, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny run, with the metrics of other embeddings and ONNX files."""
    folder = tmp_path_factory.mktemp("exported")
    embeddings = str(folder / "embeddings")
    write_part(embeddings, videos("train", 4) + videos("test", 3), ORIGIN, "float16")
    evaluate.main(["--train", embeddings, "--test", embeddings, "--out", str(folder / "evaluation")])
    arguments = ["--out", str(folder / "model"), "--evaluation", str(folder / "evaluation"), "--onnx"]
    export_model.main([str(tiny_run), *arguments])
    return folder / "model"


def test_the_encoder_is_the_same(exported: Path, tiny_run: Path) -> None:
    expected = carl_ray.load_encoder(str(tiny_run)).embed(FRAMES)
    assert np.array_equal(carl_ray.load_encoder(str(exported)).embed(FRAMES), expected)
    config = checkpoint_at(str(tiny_run)).config
    assert "tensors of the encoder, 0 of the" in initial_weights(config, str(exported)).report


def test_the_card(exported: Path) -> None:
    _, header, text = (exported / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "carl_ray"
    for expected in ("# model\n", "| objective | scl |", "| steps | 3 |", "the rendered videos of the demo"):
        assert expected in text
    (row,) = (line for line in text.splitlines() if line.startswith("| Kendall's tau"))
    assert row.count("|") == 6 and row.count("[") >= 3, "trained and three controls, with intervals"


def test_the_hub(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--lab--squats"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(exported, repository / "snapshots" / ("0" * 40))
    embedded = carl_ray.load_encoder("hf://lab/squats").embed(FRAMES)
    assert np.array_equal(embedded, carl_ray.load_encoder(str(exported)).embed(FRAMES))
    with pytest.raises(
        carl_ray.errors.RunError, match=r"hf://lab/other: could not reach the Hugging Face hub"
    ):
        carl_ray.load_encoder("hf://lab/other")
    assert "expected OWNER/NAME" in failure(capsys, export_model, "hf://a/b/c", "--out", tmp_path)


def test_a_damaged_file(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(carl_ray.errors.RunError, match="damaged"):
        carl_ray.load_encoder(str(tmp_path / "model"))


def test_onnx_of_any_length(exported: Path, tiny_run: Path) -> None:
    encoder = load_encoder(checkpoint_at(str(tiny_run)))
    backbone, temporal = (
        onnxruntime.InferenceSession(exported / f"{name}.onnx") for name in ("backbone", "temporal")
    )
    for length in (1, 5, 40):
        frames = torch.randn(length, 3, 16, 16)
        (features,) = backbone.run(None, {"frames": frames.numpy()})
        (embeddings,) = temporal.run(None, {"features": features})
        expected = encoder.embed_features(torch.cat(list(encoder.frame_features([frames]))))
        np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-5)


def test_mistakes(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--out missing" in failure(capsys, export_model, tiny_run)
    message = failure(capsys, export_model, tiny_run, "--out", tmp_path, "--evaluation", tmp_path)
    assert "metrics.json: no such file" in message
    config = checkpoint_at(str(tiny_run)).config
    with pytest.raises(carl_ray.errors.UserError, match="c3d"):
        onnx.onnx_files(onnx.FrameLevelVideoEncoder(replace(config.model, temporal_encoder="c3d")), 16)
