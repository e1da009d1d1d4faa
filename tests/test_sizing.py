"""`python -m carl_ray.sizing`: the arithmetic of its plan, and what it measures and prints."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml

from carl_ray import sizing
from carl_ray.config import Config
from carl_ray.data.manifest import write_table
from carl_ray.data.sample import load_task_bytes, sample_bytes, sample_spec
from carl_ray.options import overridden
from carl_ray.presets import PRESETS
from carl_ray.training import cluster_plan, step
from carl_ray.training.cluster_plan import ClusterPlan
from tests.samples import failure

ROOT = Path(__file__).parents[1]
# 4 videos of 160 frames every half second on 2 GPUs; a core makes one ready in 4 s.
PLAN = ClusterPlan(
    video_seconds=4.0, frames_per_video=160, step_seconds=0.5, batch_size=4, num_workers=2,
    node_cpus=16, decode_cpus=1.0,
)  # fmt: skip
TINY = {
    "data.short_side": "20",
    "augment.image_size": "16",
    "model.num_frames": "6",
    "model.hidden_width": "16",
    "model.width": "16",
    "model.num_layers": "1",
    "model.num_heads": "2",
    "model.feedforward_width": "16",
    "training.global_batch_size": "4",
    "training.precision": "fp32",
}


def tiny(**others: str) -> Config:
    return overridden(PRESETS["demo"](), TINY | others)


@pytest.fixture
def video(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    return make_video(tmp_path / "video.mp4", 40)


def options_of(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", value)]


# ------------------------------------------------------------------------------------------- the arithmetic


def test_rates_and_nodes_of_an_example() -> None:
    assert (PLAN.frames_per_core, PLAN.frames_per_worker) == (40, 640)
    # 8 videos a second, each for 4 s in a task: 32 tasks, 16 for each GPU, 16 on a node.
    assert (PLAN.cores_per_worker, PLAN.nodes_needed) == (16, 2)
    # The formula of the cluster's README.
    assert pytest.approx(2 * PLAN.frames_per_worker / (16 * PLAN.frames_per_core)) == PLAN.nodes_needed
    # Tasks that take two CPUs need twice the nodes; CPUs that do not fill a task are left over.
    wide = replace(PLAN, decode_cpus=2.0)
    assert (wide.tasks_per_node, wide.nodes_needed, wide.cores_per_worker) == (8, 4, 32)
    assert replace(PLAN, node_cpus=15, decode_cpus=2.0).tasks_per_node == 7
    # Nodes grow with GPUs and with faster steps.
    assert replace(PLAN, step_seconds=0.25).nodes_needed == 4
    doubled = replace(PLAN, batch_size=8, num_workers=4)
    assert (doubled.nodes_needed, doubled.cores_per_worker) == (4, 16)
    assert [replace(PLAN, num_workers=workers).share for workers in (1, 2, 3, 4)] == [4, 2, 2, 1]
    assert [replace(PLAN, video_seconds=2 * n).nodes_to_compare for n in (0.07, 2, 7.2)] == [
        [1],
        [1, 2, 3],
        [4, 8, 11],
    ]


def test_projections() -> None:
    enough = PLAN.projection(2, 7200, 0.25)
    assert (enough.busy, enough.hours) == (1, 1)
    # Two train nodes and two data nodes at a quarter of their price, for an hour.
    assert enough.cost == 2.5
    assert enough.decoding_share == pytest.approx(0.2)
    half = PLAN.projection(1, 7200, 0.25)
    assert (half.busy, half.hours, half.cost) == (0.5, 2, 4.5)
    more = PLAN.projection(3, 7200, 0.25)
    assert (more.busy, more.hours, more.cost) == (1, 1, 2.75)


def test_memory_and_network_are_those_of_the_blocks_and_of_the_tasks() -> None:
    config = PRESETS["finegym99"]()
    block, memory = sample_bytes(sample_spec(config)), PLAN.memory(config)
    assert memory.data_heap == 16 * load_task_bytes(sample_spec(config))
    assert memory.data_store == 16 * 7 * block
    # Two steps of two videos prefetched, one in the making, one in use, each in 2**n bytes; 2 + 2 + 1 blocks in
    # transfer.
    assert 4 * 2 * block < memory.train_heap < 2 * 4 * 2 * block
    assert memory.train_heap == 4 * 2**28
    assert memory.train_store == (5 + 2) * block
    assert PLAN.bytes_per_second(config) == 4 * block


def test_the_cluster_files_have_nodes_of_the_default_size_and_room_for_the_longest_views() -> None:
    for cloud in ("aws", "gcp", "azure"):
        types = yaml.safe_load((ROOT / f"cluster/{cloud}.yaml").read_text())["available_node_types"]
        data, train = types["data"]["resources"], types["train"]["resources"]
        assert data["CPU"] == sizing._NODE_CPUS
        needed = replace(PLAN, num_workers=1, node_cpus=data["CPU"]).memory(PRESETS["finegym99"]())
        assert needed.data_heap <= data["memory"]
        assert needed.data_store <= data["object_store_memory"]
        assert needed.train_store <= train["object_store_memory"]
        assert needed.train_heap <= train["memory"]


# --------------------------------------------------------------------------------------------- what is timed


def test_the_first_time_does_not_count() -> None:
    seen: list[float] = []
    calls: list[int] = []
    timing = cluster_plan._timed(calls.append, 3, seen.append)
    assert calls == [0, 1, 2, 3]
    assert list(timing) == seen[1:]


def test_what_takes_long_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_plan, "_MAX_SECONDS", 0.001)
    calls: list[int] = []

    def slow(number: int) -> None:
        calls.append(number)
        time.sleep(0.002)

    timing = cluster_plan._timed(slow, 3, lambda seconds: None)
    assert calls == [0]
    assert len(timing) == 1


def test_a_video_is_measured_with_the_views_of_a_run(video: Path) -> None:
    threads = torch.get_num_threads()
    timing, pairs = cluster_plan.measure_video(str(video), 40, tiny(), 2, lambda seconds: None)
    assert len(timing) == 2
    assert len(pairs) == 3
    assert pairs[0].views["crops"].pixels.shape == (2, 6, 16, 16, 3)
    assert pairs[0].views["crops"].mask.all()
    # Another epoch, other views.
    assert (pairs[0].views["crops"].timestamps != pairs[1].views["crops"].timestamps).any()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("objective", ["scl", "supervised", "tcc"])
def test_a_step_is_measured_with_a_workers_part(
    objective: str, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(**{"objective.name": objective})
    _, pairs = cluster_plan.measure_video(str(video), 40, config, 1, lambda seconds: None)
    trained: list[int] = []

    class Watched(step.TrainingStep):  # type: ignore[misc, valid-type]
        def train(self, batch, number):  # type: ignore[no-untyped-def]
            report = super().train(batch, number)
            trained.append(report.num_videos)
            assert report.applied
            return report

    monkeypatch.setattr(step, "TrainingStep", Watched)
    timing = cluster_plan.measure_step(pairs, config, 3, torch.device("cpu"), 2, lambda seconds: None)
    assert trained == [3, 3, 3]
    assert len(timing) == 2


# ----------------------------------------------------------------------------------------------- the command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    sizing.main([*arguments, *options_of(TINY)])
    return capsys.readouterr().out


def test_the_plan_of_a_small_run(
    capsys: pytest.CaptureFixture[str], video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = run(capsys, str(video), "demo", "--gpus", "2", "--videos", "10")
    assert "64 x 48, 40 frames, h264" in text
    assert "without a GPU" in text
    assert "a CPU worker takes" in text
    assert "a video of 12 frames" in text
    assert "a step of 2 videos" in text
    # 4 videos a step.
    assert "45 epochs of 10 videos, 113 steps" in text


def test_the_rate_of_a_gpu_that_is_elsewhere(
    capsys: pytest.CaptureFixture[str], video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "TrainingStep", None)  # nothing is trained
    monkeypatch.setattr(cluster_plan, "_timed", lambda action, times, on_done: (action(0), [4.0])[1])
    manifest = str(tmp_path / "manifest.parquet")
    write_table(pa.table({"split": ["train", None, "test", "train"]}), manifest)
    text = run(
        capsys, str(video), "demo", "--step-seconds", "0.5", "--training.epochs", "4", "--data.manifest", manifest,
        "--cluster.num_workers", "2", "--cluster.max_decode_tasks", "9",
    )  # fmt: skip
    assert "CPU worker" not in text
    assert re.search(r"a GPU takes +48\.0 frames/s: a step of 2 videos in 0\.50 s \(as given\)", text)
    assert re.search(r"cores per GPU +16\.0\n", text)
    assert re.search(r"data nodes +1\.0 of 16 CPUs per GPU; 2 for 2 GPUs; as max_workers 3", text)
    assert "cluster.max_decode_tasks is 9, not 32" in text
    assert "4 epochs of 3 videos, 3 steps" in text
    assert [line.split()[:2] for line in text.splitlines()[-5:-2]] == [
        ["1", "50%"],
        ["2", "100%"],
        ["3", "100%"],
    ]


def test_without_a_number_of_videos_it_is_a_thousand_steps(
    capsys: pytest.CaptureFixture[str], video: Path
) -> None:
    text = run(capsys, str(video), "demo", "--step-seconds", "3600")
    assert "1,000 steps (--videos N: all of the 45 epochs)" in text
    assert re.search(r"^ +1 +100% +1,000\.00 ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["text.mp4", "demo"], "text.mp4: expected a video: not a video"),
        (["video.mp4", "demo", "--gpus", "9"], "--gpus 9: a step has 8 videos"),
        (["video.mp4", "demo", "--gpus", "-1"], "--gpus: expected a whole number of at least 0, got '-1'"),
        (["video.mp4", "demo", "--node-cpus", "1", "--cluster.decode_cpus", "2"], "--node-cpus: expected at least 2"),
        (["video.mp4", "demo", "--gpu", "2"], "unknown option --gpu; did you mean gpus?"),
        (["video.mp4", "demo", "--data.manifest", "nowhere.parquet"], "nowhere.parquet: no manifest there"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "text.mp4").write_text("words")
    monkeypatch.chdir(tmp_path)
    status, line = failure(capsys, sizing.main, *arguments)
    assert status == 2 and expected in line


def test_a_gpu_that_is_too_small_is_one_line(
    capsys: pytest.CaptureFixture[str], video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "TrainingStep", full)
    status, line = failure(capsys, sizing.main, str(video), "demo", *options_of(TINY))
    assert status == 2 and "does not fit into the GPU's memory: raise --gpus" in line
