"""`benchmarks.parts.embedding`: both ways see the same frames and give the same embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.parts import embedding
from carl_ray.data.decode import probe_video
from carl_ray.errors import UserError
from carl_ray.evaluation.inference import VideoEmbedder
from carl_ray.presets import PRESETS
from carl_ray.training.learner import initial_encoder

CPU = torch.device("cpu")


@pytest.fixture
def config():
    demo = PRESETS["demo"]()
    return replace(demo, augment=replace(demo.augment, image_size=32))


def test_the_plain_way_gives_the_embedders_embeddings(config, make_video, tmp_path, frame_numbers) -> None:
    # As high as the encoder's frames: nothing is resized.
    path = make_video(tmp_path / "a.mp4", 20, 48, 32)
    encoder = initial_encoder(config).eval()
    plain = embedding.embed_plainly(encoder, path.read_bytes(), 32, CPU)
    (embedded,) = VideoEmbedder([encoder], config, CPU).embed_file(str(path))
    assert plain.embeddings.shape == (20, 128) and plain.seconds > plain.decoding_seconds > 0
    np.testing.assert_allclose(plain.embeddings, embedded, rtol=1e-3, atol=1e-4)
    rounded = embedding.embed_plainly(encoder, path.read_bytes(), 32, CPU, bf16=True).embeddings
    error = np.abs(rounded - plain.embeddings).max() / np.abs(plain.embeddings).max()
    assert 1e-4 < error < 0.1


def test_a_cut_video_holds_the_first_frames(make_video, tmp_path) -> None:
    path = make_video(tmp_path / "a.mp4", 30, 65, 49, pixel_format="yuv444p")
    cut = embedding.cut_video(path, 12)
    probed = probe_video(cut, verify=True)
    assert (probed.num_frames, probed.width, probed.height) == (12, 64, 48)
    assert probe_video(embedding.cut_video(path, 99), verify=True).num_frames == 30


def test_the_table(config, make_video, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embedding, "_CPU_FRAMES", 10)
    lines: list[str] = []
    table = embedding.measure([make_video(tmp_path / "a.mp4", 25)], config, CPU, lines.append)
    assert [row[0] for row in table.rows] == [
        "plain, fp32, frame by frame", "plain, bf16, frame by frame", "VideoEmbedder, fp32", "VideoEmbedder, bf16"
    ]  # fmt: skip
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.rows[0][2] == table.rows[1][3] == "1.00"
    assert float(table.rows[2][5]) < 0.1
    assert "10 frames of a.mp4" in table.title and len(lines) == 4


def test_three_dimensional_convolutions_are_refused(config, tmp_path) -> None:
    config = replace(config, model=replace(config.model, temporal_encoder="c3d"))
    with pytest.raises(UserError, match=r"model\.temporal_encoder c3d") as refused:
        embedding.measure([tmp_path / "none.mp4"], config, CPU, lambda line: None)
    assert "\n" not in str(refused.value)
