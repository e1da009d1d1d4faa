"""The main job as users run it: a bucket of videos, `index`, `ray job submit … train`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from carl_ray import index, storage
from carl_ray.data.manifest import read_manifest
from carl_ray.datasets.choreography import ChoreographyConfig, render
from carl_ray.training.checkpoint import latest_checkpoint
from carl_ray.training.run_log import read_log

REPOSITORY = Path(__file__).parents[1]
NUM_VIDEOS = 8
SMALL = (
    "--augment.image_size 32 --data.short_side 40 --model.num_frames 6 --model.backbone small "
    "--model.weights random --model.learnable all --model.num_layers 1 --model.width 32 --model.num_heads 2 "
    "--model.hidden_width 32 --model.feedforward_width 32 --cluster.max_decode_tasks 1"
)


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


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_bucket_to_encoder_in_a_job(bucket: str) -> None:
    manifest, run = storage.join(bucket, "manifest.parquet"), storage.join(bucket, "runs", "first")
    index.main([storage.join(bucket, "videos"), "--out", manifest])
    table = read_manifest(manifest)
    assert table.num_rows == NUM_VIDEOS
    assert all("endpoint_override" in uri and "test" not in uri for uri in table.column("uri").to_pylist())

    job = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("ray")), "job", "submit", "--working-dir", "."),
            *("--", sys.executable, "-m", "carl_ray.train", "penn_action", "--data.manifest", manifest),
            *("--run-dir", run, "--training.epochs", "3", "--training.global_batch_size", "4"),
            *("--training.log_every_steps", "1", "--training.checkpoint_every_steps", "4"),
            *SMALL.split(),
        ],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout + job.stderr
    num_steps = 3 * NUM_VIDEOS // 4
    steps = [line["step"] for line in read_log(run) if "loss" in line]
    assert steps == list(range(1, num_steps + 1))
    last = latest_checkpoint(run)
    assert last is not None
    assert last.progress.step == num_steps
    assert '"preset": "penn_action"' in storage.read_bytes(storage.join(run, "config.json")).decode()
    assert "events" in storage.list_folder(run)
