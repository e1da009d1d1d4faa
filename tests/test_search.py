"""`python -m carl_ray.search`: the nearest frames of other videos, with their times."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tests.embedded
from carl_ray import search
from carl_ray.evaluation import embeddings
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import write_part
from carl_ray.evaluation.inference import VideoEmbedder
from carl_ray.training.checkpoint import Progress, checkpoint_at, load_encoder, save_checkpoint
from carl_ray.training.step import TrainingStep
from tests.embedded import ORIGIN, failure


def embedded(name: str, uri: str, frames: np.ndarray, **known: Any) -> EmbeddedVideo:
    fields = {"uri": uri, "split": "test", "label": "jump", "fps": 30.0} | known
    return tests.embedded.embedded(name, frames.astype(np.float32), **fields)


def circle(degrees: list[float]) -> np.ndarray:
    return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Embeddings on a circle, in two parts: what is nearest is known."""
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    uri = str(tmp_path / "E")
    query = embedded("query", "q.mp4", circle([0, 90]), frame_labels=np.array([-1, 1], np.int32))
    near = embedded("near", "n.mp4", circle([170, 80, 85]), frame_labels=np.array([-1, 2, 1], np.int32))
    write_part(uri, [query, near], ORIGIN, "float32")
    far = embedded("far", "f.mp4", circle([0, 30]), label="kick", fps=None)
    write_part(uri, [far], ORIGIN, "float32")
    return uri


def rows(printed: str) -> list[list[str]]:
    *lines, last = printed.splitlines()
    assert last.startswith("next: python -m carl_ray.align ")
    return [line.split() for line in lines]


def test_the_nearest_frame_of_each_other_video(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    search.main(["query", "--frame", "1", "--embeddings", folder])
    assert rows(capsys.readouterr().out) == [
        ["video", "frame", "time", "cosine", "label", "phase"],
        ["query", "query", "1", "0.03", "s", "1.0000", "jump", "1"],
        ["1", "near", "2", "0.07", "s", "0.9962", "jump", "1"],
        ["2", "far", "1", "?", "0.5000", "kick"],
    ]
    search.main(["query", "--frame", "0", "--embeddings", folder, "--top", "1"])
    assert rows(capsys.readouterr().out)[2:] == [["1", "far", "0", "?", "1.0000", "kick"]]


def test_without_a_frame_the_middle_of_the_labelled_ones(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    search.main(["near", "--embeddings", folder])
    assert rows(capsys.readouterr().out)[1][1:3] == ["near", "2"]
    search.main(["far", "--embeddings", folder])
    assert rows(capsys.readouterr().out)[1][1:3] == ["far", "1"]


def test_a_picture(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ["--out", "sheet.png", "--out", "deep/moments.csv"]
    search.main(["query", "--frame", "1", "--embeddings", folder, *outputs])
    printed = capsys.readouterr().out
    assert "written: sheet.png\nwritten: deep/moments.csv\n" in printed
    with Path("deep/moments.csv").open(newline="") as file:
        head, *table = csv.reader(file)
    assert head == ["video", "frame", "time", "similarity", "label", "phase"]
    assert [row[:2] for row in table] == [["near", "2"], ["far", "1"]]
    # The files are not there: the sheet says so, and is there.
    with Image.open("sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_embeddings_stream(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = most = 0
    iterate = embeddings.iterate_embeddings

    class Counted(EmbeddedVideo):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def counted(uri: str, *, split: str | None = None) -> Iterator[EmbeddedVideo]:
        nonlocal alive, most
        for video in iterate(uri, split=split):
            for number in range(20):
                alive += 1
                most = max(most, alive)
                yield Counted(**{**vars(video), "video_id": f"{video.video_id}-{number}"})

    monkeypatch.setattr(embeddings, "iterate_embeddings", counted)
    search.main(["far-19", "--frame", "0", "--embeddings", folder])
    assert len(rows(capsys.readouterr().out)) == 12
    # The query, and what the loops hold while the next one is read.
    assert most <= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "--frame", "2"], "--frame: 'query' has 2 frames, expected 0 to 1, got 2"),
        (["query", "--frame", "-1"], "expected 0 to 1, got -1"),
        (["qery"], "expected the id of one of the 3 videos"),
        (["qery"], "did you mean query?"),
        (["query", "--top", "0"], "--top: expected a whole number of at least 1, got '0'"),
        (["query", "--out", "sheet.gif"], "--out: expected the name of a PNG or a CSV file"),
        (["query", "--frame", "two"], "--frame"),
        (["query", "--embeddings", "elsewhere"], "elsewhere: no embeddings there"),
        (["query", "--embeddings", "torn"], "torn/part-00000.parquet: not a whole Parquet file"),
        (
            ["q.mp4"],
            "step-00000002: expected a run folder with a checkpoint, or one of its checkpoints; it is needed to",
        ),
        ([], "it holds no video but 'alone'"),
    ],
)
def test_mistakes(
    folder: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("torn").mkdir()
    Path("torn/part-00000.parquet").write_bytes(Path(folder, "part-00000.parquet").read_bytes()[:-9])
    Path("q.mp4").write_text("no video")
    if not arguments:
        write_part("alone", [embedded("alone", "a.mp4", circle([1]))], ORIGIN, "float32")
        arguments = ["--embeddings", "alone"]
    if "--embeddings" not in arguments:
        arguments = [*arguments, "--embeddings", folder]
    assert message in failure(capsys, search, *arguments)


def test_a_checkpoint_on_the_hub_out_of_reach(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("q.mp4").write_text("no video")
    words = ["q.mp4", "--embeddings", folder, "--checkpoint", "hf://lab/x"]
    assert "hf://lab/x: could not reach the Hugging Face hub" in failure(capsys, search, *words, status=1)


def test_no_trained_demo(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no trained demo there" in failure(capsys, search)


@pytest.fixture
def run(
    tiny_run: Path, folder: str, make_video: Callable[..., Path], tmp_path: Path
) -> tuple[Path, list[str], Callable[[str], np.ndarray]]:
    """A demo run with the embeddings of three videos, the files of these, and how they were embedded."""
    run_dir = tmp_path / "home" / "runs" / "demo-20260101-000000"
    shutil.copytree(tiny_run, run_dir)
    checkpoint = checkpoint_at(str(run_dir))
    embedder = VideoEmbedder([load_encoder(checkpoint)], checkpoint.config, torch.device("cpu"))
    files = [str(make_video(tmp_path / f"{i}.mp4", 10 + i)) for i in range(3)]
    origin = replace(ORIGIN, checkpoint=checkpoint.uri, model_sha256=checkpoint.hashes["model.pt"])
    videos = [
        embedded(f"video-{i}", file, embedder.embed_file(file)[0], split="train" if i == 0 else "test")
        for i, file in enumerate(files)
    ]
    write_part(str(run_dir / "embeddings"), videos, origin, "float32")
    return run_dir, files, lambda file: embedder.embed_file(file)[0]


def test_without_arguments(run: tuple[Path, list[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    search.main([])
    found = rows(capsys.readouterr().out)
    assert found[1][1:3] == ["video-1", "5"]
    assert sorted(row[1] for row in found[2:]) == ["video-0", "video-2"]


def test_a_file_is_embedded_as_the_others_were(
    run: tuple[Path, list[str], Any], make_video: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, files, embed = run
    search.main(["0.mp4", "--frame", "4", "--out", "sheet.png"])
    found = rows(capsys.readouterr().out)
    # The same file is among the embedded ones, under its id: it is no other video.
    assert sorted(row[1] for row in found[2:4]) == ["video-1", "video-2"]
    query = embed(files[0])[4].astype(np.float64)
    for row in found[2:4]:
        frames = embed(files[int(row[1][-1])]).astype(np.float64)
        cosines = frames @ query / np.linalg.norm(frames, axis=1) / np.linalg.norm(query)
        best = int(cosines.argmax())
        assert row[2:6] == [str(best), f"{best / 30:.2f}", "s", f"{cosines.max():.4f}"]
    assert found[1][1:4] == ["0.mp4", "4", "0.13"]
    with Image.open("sheet.png") as sheet:
        assert len(sheet.getcolors(1 << 24) or []) > 100


def test_another_model_is_refused(
    run: tuple[Path, list[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(step=8, row=0, num_bad_rows=0, num_skipped_steps=0, seconds=0, videos="none")
    config = checkpoint_at(str(run[0])).config
    other = TrainingStep(replace(config, training=replace(config.training, seed=5)), torch.device("cpu"), 10)
    save_checkpoint(str(tmp_path / "other"), other, progress, keep=1)
    error = failure(capsys, search, "0.mp4", "--frame", "0", "--checkpoint", "other")
    assert "other: not the model that" in error and "which is step 2 of" in error


def test_embeddings_that_are_not_finite(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_part(folder, [embedded("broken", "b.mp4", np.full((2, 2), np.nan))], ORIGIN, "float32")
    error = failure(capsys, search, "query", "--frame", "1", "--embeddings", folder)
    assert "broken: " in error and "expected finite values" in error
