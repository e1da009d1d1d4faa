"""`carl_ray.evaluation.inference`: whole videos, in pieces, equal to one pass over all of their frames."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from carl_ray.data.augment_tensors import center_view
from carl_ray.data.child import BadVideoError
from carl_ray.data.decode import read_frames
from carl_ray.data.guard import FrameReader
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation import inference
from carl_ray.evaluation.inference import VideoEmbedder, untrained_encoder
from carl_ray.evaluation.inference import load_encoder as load_video_encoder
from carl_ray.model.features import normalize
from carl_ray.training.checkpoint import checkpoint_at, default_run, load_encoder
from carl_ray.training.learner import initial_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def embedder(tiny_run: Path) -> VideoEmbedder:
    checkpoint = checkpoint_at(str(tiny_run))
    encoders = [load_encoder(checkpoint), untrained_encoder(checkpoint.config)]
    return VideoEmbedder(encoders, checkpoint.config, CPU)


def expected(run: Path, frames: np.ndarray) -> list[np.ndarray]:
    """One pass over all frames."""
    checkpoint = checkpoint_at(str(run))
    batch = normalize(center_view(frames, 16))[None]
    mask = torch.ones(batch.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        return [
            encoder(batch, mask)[0].numpy()
            for encoder in (load_encoder(checkpoint), untrained_encoder(checkpoint.config))
        ]


@pytest.mark.parametrize("num_frames", [1, 5, 64, 150])
def test_a_video_is_embedded_as_in_one_pass(embedder, tiny_run, make_video, tmp_path, num_frames) -> None:
    path = str(make_video(tmp_path / "a.mp4", num_frames, 40, 24))
    for got, wanted in zip(
        embedder.embed_file(path),
        expected(tiny_run, read_frames(path, range(num_frames), short_side=16)),
        strict=True,
    ):
        assert got.shape == (num_frames, 8) and got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_trained_and_untrained_differ_as_they_should(embedder, tiny_run, make_video, tmp_path) -> None:
    trained, untrained = embedder.embed_file(str(make_video(tmp_path / "a.mp4", 9)))
    assert np.abs(trained - untrained).max() > 0.01
    config = checkpoint_at(str(tiny_run)).config
    start = initial_encoder(config).state_dict()
    assert all(torch.equal(v, start[k]) for k, v in untrained_encoder(config).state_dict().items())


def test_the_central_view_shows_the_middle_at_full_size(tiny_run, make_video, tmp_path) -> None:
    path = str(make_video(tmp_path / "a.mp4", 7, 64, 48))
    checkpoint = checkpoint_at(str(tiny_run))
    central = VideoEmbedder([load_encoder(checkpoint)], checkpoint.config, CPU, view="central")
    middle = read_frames(path, range(7))[:, 16:32, 24:40]
    np.testing.assert_allclose(
        central.embed_file(path)[0], expected(tiny_run, middle)[0], rtol=1e-4, atol=1e-5
    )
    small = str(make_video(tmp_path / "small.mp4", 7, 14, 12))
    np.testing.assert_allclose(
        central.embed_file(small)[0],
        expected(tiny_run, read_frames(small, range(7)))[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_one_video_in_python(embedder, tiny_run, make_video, tmp_path) -> None:
    """By path, content and frames: normalised, and otherwise what the command writes."""
    path = make_video(tmp_path / "a.mp4", 70, 40, 24)
    encoder = load_video_encoder(str(tiny_run), device="cpu")
    trained, _ = embedder.embed_file(str(path))
    wanted = trained / np.linalg.norm(trained, axis=1, keepdims=True)
    frames = read_frames(str(path), range(70), short_side=16)
    for video in (path, str(path), path.read_bytes(), frames):
        got = encoder.embed(video)
        assert got.shape == (70, 8) and got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    central = load_video_encoder(encoder.checkpoint, device="cpu", view="central")
    whole = read_frames(str(path), range(70))
    np.testing.assert_allclose(central.embed(whole), central.embed(path), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="not a video that can be opened"):
        encoder.embed(b"no video" * 99)
    for shape, said in (((2, 8, 8), "expected uint8 frames"), ((0, 8, 8, 3), "at least one frame")):
        with pytest.raises(ValueError, match=said):
            encoder.embed(np.zeros(shape, np.uint8))


def test_one_bad_video_does_not_harm_the_others(embedder, make_video, tmp_path, monkeypatch) -> None:
    good = str(make_video(tmp_path / "a.mp4", 70))
    (tmp_path / "bad.mp4").write_bytes(b"\0" * 99)
    results = list(
        embedder.embed([(good, 70), (str(tmp_path / "bad.mp4"), 5), (good, 71), (good, 70), ("s3:/x", 1)])
    )
    assert [isinstance(result, BadVideoError) for result in results] == [False, True, True, False, True]
    assert "71 frames were expected, but only 70 decode" in str(results[2])
    np.testing.assert_array_equal(results[0][0], results[3][0])
    with pytest.raises(UserError, match=r"/bad\.mp4: not a video that can be opened"):
        embedder.embed_file(str(tmp_path / "bad.mp4"))

    def fails(*arguments: object) -> int:
        raise RunError(f"{good}: could not read it (the store is down)")

    monkeypatch.setattr(FrameReader, "count", fails)
    with pytest.raises(RunError, match=r"^[^:]*/a\.mp4: could not read it \(the store is down\)$"):
        embedder.embed_file(good)


def test_decoders_are_kept_for_later_videos(embedder, make_video, tmp_path) -> None:
    path = str(make_video(tmp_path / "a.mp4", 5))

    def processes() -> set[int]:
        return {reader._process.pid for reader in embedder._idle_readers}

    list(embedder.embed([(path, 5)] * 2))
    before = processes()
    embedder.embed_file(path)
    list(embedder.embed([(path, 5)] * 2))
    assert processes() == before and len(before) >= 2


def test_a_caller_between_two_videos_may_train(embedder, make_video, tmp_path) -> None:
    path = str(make_video(tmp_path / "a.mp4", 5))
    results = embedder.embed([(path, 5), (path, 5)])
    next(results)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    results.close()


def test_decoding_threads_end_with_their_use(embedder, make_video, tmp_path, monkeypatch) -> None:
    """Also where a decoder is in the middle of a video, or hangs."""
    path = str(make_video(tmp_path / "a.mp4", 200))
    hangs = tmp_path / "hangs.mp4"
    os.mkfifo(hangs)  # whoever opens it to read waits for one who writes
    monkeypatch.setattr(inference, "_CHUNK_FRAMES", 2)
    before = set(threading.enumerate())
    short = str(make_video(tmp_path / "short.mp4", 2))
    results = embedder.embed([(short, 2), (path, 200), (str(hangs), 200)])
    next(results)
    assert set(threading.enumerate()) - before
    results.close()
    assert not set(threading.enumerate()) - before
    assert embedder.embed_file(short)[0].shape == (2, 8)


def test_memory_of_a_long_video_is_that_of_chunks(embedder, monkeypatch) -> None:
    """No more decoded chunks are alive at any time than the threads and the encoders hold."""
    alive, most = 0, 0

    class Chunk:
        def __init__(self):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

        def to(self, device):
            return self

    monkeypatch.setattr(embedder, "_views", lambda *video: (Chunk() for _ in range(100)))
    monkeypatch.setattr(inference, "normalize", lambda chunk, *_: torch.zeros(2, 3, 16, 16))
    (result,) = embedder.embed([("", 200)])
    assert len(result[0]) == 200
    assert most <= 6


def test_the_default_run_is_the_newest_trained_demo(tiny_run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"train one with `python -m carl_ray\.train`"):
        default_run("--checkpoint")
    (tmp_path / "runs").mkdir()
    for name in ("demo-20260101-000000", "demo-20260102-000000", "penn_action-20260103-000000"):
        (tmp_path / "runs" / name).symlink_to(tiny_run)
    (tmp_path / "runs" / "demo-20260104-000000").mkdir()
    assert default_run("--checkpoint") == str(tmp_path / "runs" / "demo-20260102-000000")


def test_a_checkpoint_or_its_run(tiny_run, tmp_path) -> None:
    whole = checkpoint_at(str(tiny_run))
    assert checkpoint_at(whole.uri) == whole
    with pytest.raises(UserError, match="expected a run folder with a checkpoint"):
        checkpoint_at(str(tmp_path))
