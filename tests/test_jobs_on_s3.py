"""The main job as users run it: a bucket of videos, `index`, `ray job submit … train` on two workers, stop, resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import fs

from carl_ray import storage
from carl_ray.data.manifest import read_manifest
from carl_ray.datasets.choreography import ChoreographyConfig, render
from carl_ray.training.checkpoint import latest_checkpoint
from carl_ray.training.run_log import read_log

REPOSITORY = Path(__file__).parents[1]
NUM_VIDEOS = 12


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a bucket with real videos where there are some beside the repository, else with rendered ones."""
    given = os.environ.get("CARL_RAY_VIDEOS")
    corpus = (Path(given) if given else REPOSITORY.parent / "shared" / "videos") / "corpus"
    if corpus.is_dir():
        videos = sorted(corpus.iterdir())[:NUM_VIDEOS]
    else:
        folder = tmp_path_factory.mktemp("bucket") / "rendered"
        render(folder, ChoreographyConfig(num_train=NUM_VIDEOS, num_validation=0, num_test=0))
        videos = sorted(folder.rglob("*.mp4"))
    store = fs.S3FileSystem(endpoint_override=s3_endpoint, scheme="http", allow_bucket_creation=True)
    store.create_dir("footage")
    for video in videos:
        with store.open_output_stream(f"footage/videos/{video.name}") as file:
            file.write(video.read_bytes())
    return f"s3://footage?endpoint_override={s3_endpoint}&scheme=http"


def submit(*arguments: str, wait: bool = True, job: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(str(Path(sys.executable).with_name("ray")), "job", "submit", "--submission-id", job),
        *([] if wait else ["--no-wait"]),
        *("--working-dir", ".", "--", sys.executable, "-m", "carl_ray.train", "demo", *arguments),
    ]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False)


def test_bucket_to_encoder_in_two_jobs(bucket: str, ray_cluster: dict[str, str]) -> None:
    manifest, run = storage.join(bucket, "manifest.parquet"), storage.join(bucket, "runs", "first")
    indexed = subprocess.run(
        [sys.executable, "-m", "carl_ray.index", storage.join(bucket, "videos"), "--out", manifest],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert indexed.returncode == 0, indexed.stderr
    table = read_manifest(manifest)
    assert table.num_rows == NUM_VIDEOS
    assert all("endpoint_override" in uri and "test" not in uri for uri in table.column("uri").to_pylist())

    options = [
        *("--data.manifest", manifest, "--run-dir", run, "--cluster.num_workers", "2"),
        *("--cluster.max_decode_tasks", "1"),
        *("--training.epochs", "20", "--training.global_batch_size", "4", "--training.log_every_steps", "1"),
        *("--training.checkpoint_every_steps", "6"),
    ]
    started = submit(*options, wait=False, job="first")
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 240
    while (checkpoint := latest_checkpoint(run)) is None:
        assert time.monotonic() < deadline, job_logs("first")
        time.sleep(1)
    stopped = subprocess.run(
        [str(Path(sys.executable).with_name("ray")), "job", "stop", "first"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert stopped.returncode == 0
    interrupted = latest_checkpoint(run)
    assert interrupted is not None
    assert checkpoint.progress.step <= interrupted.progress.step < 60

    finished = submit(*options, "--resume", job="second")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"from step {interrupted.progress.step}" in finished.stdout
    steps = [line["step"] for line in read_log(run) if "loss" in line]
    assert steps == list(range(1, 61))
    last = latest_checkpoint(run)
    assert last is not None
    assert last.progress.step == 60
    saved = json.loads(storage.read_bytes(storage.join(run, "config.json")))
    assert saved["cluster"]["num_workers"] == 2
    assert "events" in storage.list_folder(run)


def job_logs(job: str) -> str:
    ray = str(Path(sys.executable).with_name("ray"))
    return subprocess.run([ray, "job", "logs", job], capture_output=True, text=True, check=False).stdout
