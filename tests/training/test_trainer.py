"""Runs on Ray Train: the same on any number of workers, and the same after any interruption."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs
from ray.exceptions import ActorDiedError

from benchmarks.faults.kills import family, victims
from benchmarks.faults.proxy import Fault, FaultProxy
from carl_ray import storage
from carl_ray.config import (
    AugmentConfig,
    ClusterConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    objective_options,
)
from carl_ray.data.manifest import SCHEMA, attach_labels, read_manifest, write_table
from carl_ray.data.scan import index_folder
from carl_ray.datasets.choreography import ACTIONS, ChoreographyConfig, read_labels, render
from carl_ray.errors import RunError, UserError
from carl_ray.objectives.base import ObjectiveOptions
from carl_ray.training import trainer
from carl_ray.training.reporter import WorkerSettings
from carl_ray.training.run_log import BAD_VIDEOS, WARNINGS, read_log
from carl_ray.training.run_videos import read_videos
from carl_ray.training.trainer import train

NUM_STEPS = 40
CIRCUMSTANCES = {
    *("frames_per_second", "data_wait_seconds", "step_seconds", "checkpoint_seconds"),
    "num_workers",
}

pytestmark = pytest.mark.usefixtures("ray_session")


def manifest_row(path: Path, num_frames: int, split: str | None = None) -> dict[str, Any]:
    return {
        "video_id": path.name,
        "uri": str(path),
        "num_frames": num_frames,
        "width": 48,
        "height": 32,
        "rotation": 0,
        "bytes": 1,
        "content_hash": "0",
        "verified": False,
        "frame_step": 1.0,
        "split": split,
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("videos")
    render(folder / "rendered", ChoreographyConfig(num_train=6, num_validation=2, num_test=0, size=48))
    manifest, rejects = index_folder(str(folder / "rendered"), str(folder / "manifest.parquet"))
    assert (manifest.num_rows, rejects.num_rows) == (8, 0)
    return Config(
        preset="test",
        data=DataConfig(manifest=str(folder / "manifest.parquet"), short_side=32),
        augment=AugmentConfig(image_size=24),
        model=ModelConfig(
            num_frames=80, backbone="small", weights="random", learnable="all", hidden_width=32, width=32,
            num_heads=2, feedforward_width=32, embedding_width=16, num_layers=1,
        ),
        # 3 videos a step: uneven over 2 workers.
        training=TrainingConfig(
            seed=3, epochs=NUM_STEPS * 3 // 6, global_batch_size=3, precision="fp32",
            log_every_steps=1, checkpoint_every_steps=15, validate_every_steps=20,
        ),
        cluster=ClusterConfig(num_workers=1, worker_cpus=1, decode_cpus=1, max_decode_tasks=1),
    )  # fmt: skip


def lines(run_dir: Path | str) -> list[dict[str, Any]]:
    """What a run logged, without what clocks told it and how many workers there were."""
    return [{k: v for k, v in line.items() if k not in CIRCUMSTANCES} for line in read_log(str(run_dir))]


@pytest.fixture(scope="module")
def undisturbed(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "one worker"
    outcome = train(config, str(run_dir))
    assert (outcome.finished, outcome.step, outcome.num_steps) == (True, NUM_STEPS, NUM_STEPS)
    return run_dir


def test_a_run_leaves_what_it_promises(undisturbed: Path, config: Config) -> None:
    logged = lines(undisturbed)
    assert [line["step"] for line in logged if "loss" in line] == list(range(1, NUM_STEPS + 1))
    assert [line["step"] for line in logged if "validation_loss" in line] == [0, 20, 40]
    assert logged[1]["num_videos"] == 3
    assert sorted(path.name for path in (undisturbed / "checkpoints").iterdir()) == [
        "step-00000030",
        "step-00000040",
    ]
    assert list((undisturbed / "events").iterdir())
    assert '"preset": "test"' in (undisturbed / "config.json").read_text()


def labelled(config: Config, folder: Path, objective: ObjectiveOptions) -> Config:
    """The run on the same videos with their labels, in pairs of videos, on two workers."""
    rendered = Path(config.data.manifest or "").parent / "rendered"
    manifest = attach_labels(read_manifest(config.data.manifest or ""), read_labels(rendered))
    uri = str(folder / "labelled.parquet")
    write_table(manifest, uri)
    return replace(
        config,
        data=replace(config.data, manifest=uri),
        objective=objective,
        training=replace(config.training, epochs=4, global_batch_size=4),
        cluster=ClusterConfig(num_workers=2, max_decode_tasks=1),
    )


@pytest.mark.slow
def test_pairs_of_videos_train_on_two_workers(config: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # Six videos of four actions: two pairs, and two that are alone.
    outcome = train(labelled(config, tmp_path, objective_options("weak_scl")), str(run_dir))
    assert (outcome.finished, outcome.num_steps) == (True, 8)
    logged = [line for line in lines(run_dir) if "loss" in line]
    assert [line["num_videos"] for line in logged] == [4] * 8
    assert [line["epoch"] for line in logged] == [n / 2 for n in range(1, 9)]
    assert outcome.validation_loss is not None and math.isfinite(outcome.validation_loss)


def test_frame_labels_become_classes_of_the_whole_data_set(config: Config, tmp_path: Path) -> None:
    supervised = labelled(config, tmp_path, objective_options("supervised"))
    counted, videos = read_videos(replace(supervised, data=replace(supervised.data, train_fraction=0.5)))
    everything = read_manifest(supervised.data.manifest or "")
    phases = {name: len(action.phases) for name, action in ACTIONS.items()}
    seen = set(videos.training.column("label").to_pylist() + videos.validation.column("label").to_pylist())
    assert counted.objective.num_classes == sum(phases[name] for name in seen)
    # Half of each action's videos, at least one: of 2, 2, 1 and 1.
    assert (videos.training.num_rows, videos.validation.num_rows) == (4, 2)
    assert len(set(videos.training.column("label").to_pylist())) == 4
    offset, offsets = 0, {}
    for name in sorted(seen):
        offsets[name] = offset
        offset += phases[name]
    labels_of = dict(
        zip(*(everything.column(n).to_pylist() for n in ("video_id", "frame_labels")), strict=True)
    )
    for row in videos.training.to_pylist() + videos.validation.to_pylist():
        expected = [k if k < 0 else offsets[row["label"]] + k for k in labels_of[row["video_id"]]]
        assert row["frame_labels"] == expected
    # Labels that are classes of the whole data set already stay as they are.
    supervised = replace(
        supervised, data=replace(supervised.data, manifest=str(tmp_path / "classes.parquet"))
    )
    classes = [
        [k if k < 0 else offsets[label] + k for k in labels]
        for label, labels in zip(
            *(everything.column(n).to_pylist() for n in ("label", "frame_labels")), strict=True
        )
    ]
    everything = everything.drop_columns("phase_names")  # they name the phases of an action
    place = everything.schema.get_field_index("frame_labels")
    field = everything.schema.field(place)
    write_table(
        everything.set_column(place, field, pa.array(classes, field.type)), supervised.data.manifest or ""
    )
    again, unchanged = read_videos(supervised)
    assert again.objective.num_classes == counted.objective.num_classes
    kept = dict(zip(everything.column("video_id").to_pylist(), classes, strict=True))
    assert all(row["frame_labels"] == kept[row["video_id"]] for row in unchanged.training.to_pylist())
    # The smaller share lies inside the larger one.
    larger = read_videos(replace(supervised, data=replace(supervised.data, train_fraction=0.9)))[1]
    assert set(videos.training.column("video_id").to_pylist()) < set(
        larger.training.column("video_id").to_pylist()
    )


def test_objectives_that_need_labels_say_so(config: Config, tmp_path: Path) -> None:
    for name, message in (
        ("tcc", "objective tcc trains on pairs of videos of the same label, but no training video has one"),
        ("supervised", "objective supervised needs frame labels, but no video has any"),
    ):
        bare = replace(config, training=replace(config.training, global_batch_size=4))
        with pytest.raises(UserError, match=message):
            train(replace(bare, objective=objective_options(name)), str(tmp_path / name))
        assert not (tmp_path / name).exists()


def test_a_second_run_in_the_same_folder_is_refused(undisturbed: Path, config: Config) -> None:
    with pytest.raises(
        UserError,
        match=r"already holds a run; .* goes on with: python -m carl_ray.train --run-dir .* --resume",
    ):
        train(config, str(undisturbed))
    changed = Config(**(vars(config) | {"optimizer": OptimizerConfig(learning_rate=0.5)}))
    with pytest.raises(UserError, match=r"was begun with optimizer.learning_rate = 0.0001, now 0.5"):
        train(changed, str(undisturbed), resume=True)


def assert_same_training(one_worker: Path, other: Path) -> None:
    """The same lines, but for rounding: sums over another number of workers have another order."""
    for one, two in zip(lines(one_worker), lines(other), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            if name == "gradient_norm":
                continue
            # Rounding grows along a run.
            tolerance = 1e-3 if one["step"] <= 20 else 1e-2
            assert two[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (one["step"], name)


@pytest.mark.slow
def test_an_elastic_run_grows_and_shrinks_with_the_cluster(
    undisturbed: Path,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    join_cluster: Callable[..., AbstractContextManager[None]],
) -> None:
    monkeypatch.setattr(trainer, "RESIZE_SECONDS", 1.0)
    # After a loss Ray first tries the old size, for this long: it learns of nodes every 20 seconds.
    monkeypatch.setattr(trainer, "START_SECONDS", 10.0)
    # The clusters' own value; also puts back what the run sets.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1200")
    # A worker takes a whole node of five CPUs, so that none fits on the head, which has four.
    elastic = replace(
        config,
        cluster=ClusterConfig(
            num_workers=(1, 2), worker_cpus=5, max_decode_tasks=1, train_node_labels={"role": "train"}
        ),
    )
    with ExitStack() as second_node, join_cluster(num_cpus=5, labels="role=train"):

        def grow() -> None:
            # Held up until Ray knows of the node, or the run would end before.
            signal_workers(signal.SIGSTOP)
            try:
                second_node.enter_context(join_cluster(num_cpus=5, labels="role=train"))
                time.sleep(30)
            finally:
                signal_workers(signal.SIGCONT)

        for step, action in ((4, grow), (20, second_node.close)):
            threading.Thread(target=stop_at_step, args=(tmp_path, step, action), daemon=True).start()
        outcome = train(elastic, str(tmp_path))
    assert outcome.finished
    numbers = [line["num_workers"] for line in read_log(str(tmp_path)) if "loss" in line]
    assert [number for number, _ in groupby(numbers)] == [1, 2, 1], numbers
    # What one worker had done was kept: its checkpoint came with the end of its group, not at step 15.
    assert 4 <= numbers.index(2) < 15
    assert_same_training(undisturbed, tmp_path)


def test_too_many_bad_videos_end_the_run(
    config: Config, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    rows = [
        manifest_row(make_video(tmp_path / "good.mp4", 20, 48, 32), 20),
        manifest_row(tmp_path / "broken.mp4", 20),
        manifest_row(make_video(tmp_path / "another.mp4", 20, 48, 32), 20),
    ]
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), str(tmp_path / "manifest.parquet"))
    data = DataConfig(
        manifest=str(tmp_path / "manifest.parquet"), short_side=32, retries=0, max_bad_fraction=0.1
    )
    bad = Config(**(vars(config) | {"data": data}))
    with pytest.raises(
        RunError, match=r"1 of 3 videos drawn could not be read, more than data.max_bad_fraction"
    ):
        train(bad, str(tmp_path / "run"))
    listed = read_log(str(tmp_path / "run"), BAD_VIDEOS)
    assert [line["video_id"] for line in listed] == ["broken.mp4"]
    assert listed[0]["reason"]


def test_a_dead_controller_and_a_dead_monitor_leave_a_reason(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trainer:
        """Stands in for Ray Train: its controller dies, or its workers fail together and nobody tells the driver."""

        def __init__(self, *arguments: Any, train_loop_config: WorkerSettings, **options: Any) -> None:
            self._settings = train_loop_config

        def fit(self) -> None:
            if self._settings.run_dir.endswith("controller"):
                raise ActorDiedError
            storage.write_bytes(self._settings.failure_uri, b'{"failure": "too many bad videos"}')

    monkeypatch.setattr(trainer, "TorchTrainer", Trainer)
    with pytest.raises(
        RunError,
        match=r"^training failed: .*; there is no checkpoint yet: begin again with: python -m .* --resume$",
    ):
        train(config, str(tmp_path / "controller"))
    with pytest.raises(RunError, match=r"^too many bad videos$"):
        train(config, str(tmp_path / "monitor"))


@pytest.mark.slow
def test_an_outage_at_a_checkpoint_starts_the_workers_anew(
    undisturbed: Path,
    config: Config,
    s3_endpoint: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It lasts longer than storage is tried again, and shorter than `max_failures` allow."""
    fs.S3FileSystem(endpoint_override=s3_endpoint, scheme="http", allow_bucket_creation=True).create_dir(
        "outage"
    )
    with FaultProxy(s3_endpoint) as proxy:
        run_dir = f"s3://outage/run?endpoint_override={proxy.endpoint}&scheme=http"
        patient = replace(config, cluster=replace(config.cluster, storage_seconds=1.0))

        def fail() -> None:
            proxy.inject(Fault("error", method="PUT", key="optimizer.pt", times=None))
            seen = -1
            while seen < 1 or seen != proxy.counts.get("error", 0):  # Until nobody tries again.
                seen = proxy.counts.get("error", 0)
                time.sleep(3)
            proxy.clear()

        threading.Thread(target=fail, daemon=True).start()
        assert train(patient, run_dir).finished
        assert lines(run_dir) == lines(undisturbed)
        warned = [line["warning"] for line in read_log(run_dir, WARNINGS)]
        # A torn checkpoint is passed over by workers that start anew, and by no others.
        for expected in (
            r"optimizer.pt\?.*: could not write it .*; trying again",
            "passing over .*/step-00000015",
        ):
            assert any(re.search(expected, warning) for warning in warned), warned
        printed = capfd.readouterr()
        assert "warning: worker 0: s3://outage/run/checkpoints/step-00000015/optimizer.pt" in printed.err


def stop_at_step(run_dir: Path, step: int, act: Callable[[], None]) -> None:
    while True:
        if any(line["step"] >= step for line in read_log(str(run_dir))):
            act()
            return
        time.sleep(0.05)


def signal_workers(number: int) -> None:
    # Asked of the kernel: what the dashboard would answer may take as long as some steps.
    workers = victims("training worker", family())
    assert workers
    for worker in workers:
        os.kill(worker.pid, number)
