"""The command `python -m carl_ray.train`: mistakes and failures are one clear line, and leave nothing behind."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import carl_ray
from carl_ray import embed, evaluate, lease, storage, train
from carl_ray.config import Config, ModelConfig
from carl_ray.data.manifest import SCHEMA, read_manifest, videos_digest, write_table
from carl_ray.data.scan import index_folder
from carl_ray.datasets import choreography, embedded
from carl_ray.errors import UserError
from carl_ray.evaluation.corpus import EmbeddingSettings
from carl_ray.evaluation.embeddings import EmbeddedVideo, Origin, write_part
from carl_ray.fitting import FittedRun
from carl_ray.lease import hold
from carl_ray.objectives.base import Batch, Objective, ObjectiveOptions, Terms, options
from carl_ray.presets import PRESETS
from carl_ray.training.checkpoint import Progress, save_checkpoint
from carl_ray.training.step import TrainingStep
from tests.samples import blank_features, failure, manifest_row, write_rows


class Failing(Objective):
    """An objective that fails on any batch."""

    @options
    class Options(ObjectiveOptions):
        name: Literal["tests.test_train:Failing"] = "tests.test_train:Failing"

    def forward(self, encodings: Any, batch: Batch, progress: float) -> Terms:
        raise ValueError("no")


@pytest.fixture(scope="module")
def manifest(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]
) -> str:
    folder = tmp_path_factory.mktemp("few")
    for number in range(4):
        make_video(folder / "videos" / f"{number}.mp4", 40, 64, 48)
    uri = str(folder / "manifest.parquet")
    index_folder(str(folder / "videos"), uri)
    return uri


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_folder_that_another_process_writes_to(
    more: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    # A heartbeat writes the claim anew.
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 600.0)

    def files() -> dict[Path, tuple[int, ...]]:
        found = {path: path.stat() for path in run.rglob("*")}
        return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}

    with hold(str(run)):
        before = files()
        status, line = failure(capsys, train.main, "demo", "--run-dir", str(run), *more)
        assert files() == before
    assert status == 2
    assert f"{run}: another process writes there: process {os.getpid()} on " in line
    assert not run.exists()


def test_manifest_without_training_videos(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_table(SCHEMA.empty_table(), str(tmp_path / "m.parquet"))
    status, line = failure(capsys, train.main, "demo", "--data.manifest", str(tmp_path / "m.parquet"))
    assert (status, "no rows at all" in line) == (2, True)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--training.loggers", "mlflow", "training.loggers mlflow: its package is missing"),
        ("--model.weights", "gone.pth", "gone.pth"),
        (
            "--objective.name",
            "tests.test_train:Failing",
            "objective tests.test_train:Failing fails on a batch",
        ),
    ],
)
def test_mistakes_are_told_before_features_are_cached(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    manifest: str,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: str,
    expected: str,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mlflow" else found(name))
    monkeypatch.setattr("carl_ray.session.connect", None)
    arguments = ["laptop", "--data.manifest", manifest, "--run-dir", str(tmp_path / "run"), option, value]
    status, line = failure(capsys, train.main, *arguments)
    assert (status, expected in line) == (2, True), line
    assert not (tmp_path / "run").exists()


def test_classes_of_frame_labels_are_told_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: object) -> None:
        raise UserError("training would begin now")

    monkeypatch.setattr("carl_ray.session.connect", lambda *_, **__: nullcontext())
    monkeypatch.setattr("carl_ray.training.trainer.train_checked", refuse)
    rows = [manifest_row(f"{n}.mp4", num_frames=60, frame_labels=[0] * 30 + [4] * 30) for n in range(8)]
    manifest, features = write_rows(rows, tmp_path / "m.parquet"), str(tmp_path / "f")
    blank_features(PRESETS["laptop"](), manifest, features)
    words = ["laptop", "--data.manifest", manifest, "--data.features", features, "--data.frame_stride", "3"]
    words += ["--run-dir", str(tmp_path / "run"), "--objective.name", "supervised"]
    with pytest.raises(SystemExit):
        train.main(words)
    told = capsys.readouterr()
    assert told.err == "carl_ray: training would begin now\n"
    assert told.out.count("frame labels make 5 classes, of which 2 occur") == 1


def test_weights_of_a_run_fit_an_objective_whose_classes_are_not_counted_yet(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise UserError("Ray would start now")

    monkeypatch.setattr("carl_ray.session.connect", connect)
    step = TrainingStep(PRESETS["clips_demo"](), torch.device("cpu"), 10)
    save_checkpoint(str(tmp_path / "run"), step, Progress(5, 40, 0, 0, 0.0, "0"), keep=1)
    arguments = ["clips_demo", "--objective.name", "clip_classes", "--model.init_from", str(tmp_path / "run")]
    status, line = failure(capsys, train.main, *arguments, "--run-dir", str(tmp_path / "tuned"))
    assert (status, line) == (2, "carl_ray: Ray would start now")


def test_checkpoint_that_does_not_fit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, manifest: str
) -> None:
    preset = PRESETS["demo"]()
    other = Config(
        **(vars(preset) | {"model": ModelConfig(**(vars(preset.model) | {"embedding_width": 64}))})
    )
    other = replace(other, data=replace(other.data, manifest=manifest))
    step = TrainingStep(other, torch.device("cpu"), 10)
    videos = videos_digest(read_manifest(manifest))
    save_checkpoint(str(tmp_path), step, Progress(5, 40, 0, 0, 0.0, videos), keep=1)
    arguments = ["demo", "--data.manifest", manifest, "--run-dir", str(tmp_path), "--resume"]
    status, line = failure(capsys, train.main, *arguments)
    assert status == 2
    assert "was begun with model.embedding_width = 64, now 128" in line
    assert not (tmp_path / "config.json").exists()


def test_no_room_on_disk(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    run = tmp_path / "run"
    status, line = failure(capsys, train.main, "demo", "--data.manifest", manifest, "--run-dir", str(run))
    assert status == 1
    assert "no room" in line
    assert not run.exists()


@pytest.fixture
def forbidden_bucket(
    s3_server: Callable[..., AbstractContextManager[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URI of a bucket on a server that denies everything."""
    with s3_server(tmp_path_factory.mktemp("moto"), INITIAL_NO_AUTH_ACTION_COUNT="0") as endpoint:
        yield f"s3://private?endpoint_override={endpoint}&scheme=http"


@pytest.mark.usefixtures("s3_endpoint")
def test_no_permission_on_the_bucket(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    forbidden_bucket: str,
    manifest: str,
) -> None:
    monkeypatch.setattr(storage, "DENIAL_SECONDS", 0.0)
    status, line = failure(
        capsys, train.main, "demo", "--data.manifest", storage.join(forbidden_bucket, "m.parquet")
    )
    assert (status, "no permission" in line) == (1, True)
    status, line = failure(
        capsys,
        train.main,
        "demo",
        "--data.manifest",
        manifest,
        "--run-dir",
        storage.join(forbidden_bucket, "run"),
    )
    assert (status, "no permission" in line) == (1, True), line


@pytest.mark.parametrize(
    ("count", "said"), [(3, "There are no videos of the split test, so all 3 videos"), (1, "no report:")]
)
def test_a_run_without_test_videos_ends_with_what_is_possible(
    count: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = [
        EmbeddedVideo(
            video_id=f"{number}.mp4",
            uri=f"/nowhere/{number}.mp4",
            timestamps=np.arange(20.0),
            embeddings=np.random.default_rng(number).standard_normal((20, 4)).astype(np.float32),
        )
        for number in range(count)
    ]
    origin = Origin(
        str(tmp_path / "checkpoints" / "step-00000002"), "ab", "laptop", 2, 8, 4, "resized", False
    )

    def embed_corpus(
        run: str, manifest: str, out: str, settings: EmbeddingSettings, *, splits: list[str] | None
    ) -> None:
        assert splits is None and settings.form == "joined"
        write_part(out, videos, origin, "float32")

    monkeypatch.setattr("carl_ray.evaluation.corpus.embed_corpus", embed_corpus)
    rows = [manifest_row(video.video_id, uri=video.uri, num_frames=20) for video in videos]
    manifest = write_rows(rows, tmp_path / "videos.parquet")
    train._evaluate(FittedRun(str(tmp_path), manifest, 2, 1.0), "My videos", "joined")
    printed = capsys.readouterr().out
    assert said in printed
    assert (tmp_path / "evaluation" / "report.html").exists() is (count > 1)
    assert printed.splitlines()[-1].startswith("next: ")


@pytest.mark.slow
def test_the_demo_ends_with_metrics_and_a_report(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path))
    few = choreography.ChoreographyConfig(num_train=8, num_validation=4, num_test=12, size=32)
    monkeypatch.setitem(embedded.RENDERERS, "demo", replace(choreography.RENDERER, default=few))
    run = tmp_path / "runs" / "demo-1"
    train.main(["--run-dir", str(run), "--training.epochs", "1"])
    printed = capsys.readouterr().out
    document = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert (document["train"]["videos"], document["test"]["videos"]) == (8, 12)
    assert set(document["actions"]) == set(choreography.ACTIONS)
    for variant in ("trained", "untrained", "positions", "chance"):
        for metric in ("phase_classification", "alignment_error"):
            entry = document[variant][metric]
            assert entry["low"] <= entry["value"] <= entry["high"]
    assert f"{document['trained']['alignment_error']['value']:.3f}" in printed
    assert printed.splitlines()[-1].startswith("next: python -m carl_ray.search --embeddings ")
    report = (run / "evaluation" / "report.html").read_text()
    assert "<video" in report and "demo" in report

    # Whatever was interrupted, --resume ends with all of it.
    shutil.rmtree(run / "evaluation")
    train.main(["--resume", "--run-dir", str(run)])
    assert json.loads((run / "evaluation" / "metrics.json").read_text()) == document
    demo = carl_ray.preset("demo")
    again = replace(demo, training=replace(demo.training, epochs=1))
    assert carl_ray.fit(again, str(run), resume=True) == str(run)

    # The command without arguments goes on with that run.
    embed.main([])
    printed = capsys.readouterr().out
    assert "videos embedded: 4 " in printed
    # The command that it ends with is one: it evaluates what was embedded.
    advised = shlex.split(printed.splitlines()[-1])
    assert advised[:4] == ["next:", "python", "-m", "carl_ray.evaluate"]
    evaluate.main(advised[4:])
    assert json.loads((run / "evaluation" / "metrics.json").read_text())["test"]["videos"] == 12


@pytest.mark.demo
def test_the_demo_beats_its_controls(tmp_path: Path) -> None:
    """The whole demo, as the README's first command runs it: 8 minutes on two cores; `pytest -m demo`."""
    run = tmp_path / "run"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    subprocess.run(
        [sys.executable, "-m", "carl_ray.train", "--run-dir", str(run)],
        env=environment | {"CARL_RAY_HOME": str(tmp_path)},
        check=True,
    )
    document = json.loads((run / "evaluation" / "metrics.json").read_text())
    for control in ("untrained", "positions", "chance"):
        trained, other = document["trained"], document[control]
        assert trained["phase_classification"]["low"] > other["phase_classification"]["high"]
        assert trained["alignment_error"]["high"] < other["alignment_error"]["low"]
