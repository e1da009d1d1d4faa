"""What is found out before a sweep starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from carl_ray.config import ClusterConfig, Config
from carl_ray.data.manifest import SCHEMA, write_table
from carl_ray.errors import UserError
from carl_ray.presets import demo
from carl_ray.sweeps import preparation
from carl_ray.sweeps.preparation import (
    checked_sweep,
    local_cpus,
    local_trials,
    only_caller,
    remember,
    room_for_trials,
    share_cluster,
    wait_for_room,
)
from carl_ray.sweeps.space import Choices, Space

SPACE = Space("test", {"views.sampling": Choices(("random", "even"))})


def base(
    folder: Path, splits: str, *, labels: list[int] | None = None, same: tuple[int, int] | None = None
) -> Config:
    """The demo's config with a manifest that has a video for each letter: t(rain), v(alidation), s (test).

    The two videos `same` are copies of one file.
    """
    names = {"t": "train", "v": "validation", "s": "test"}
    anything = {"int32": 1, "int64": 4, "double": 1.0, "bool": True, "string": "0"}
    rows = [
        {field.name: anything.get(str(field.type)) for field in SCHEMA}
        | {
            "video_id": f"{number}",
            "content_hash": f"{number}",
            "split": names[letter],
            "num_frames": len(labels or [0]),
            "frame_labels": labels,
        }
        for number, letter in enumerate(splits)
    ]
    if same is not None:
        rows[same[1]]["content_hash"] = rows[same[0]]["content_hash"]
    uri = str(folder / f"{splits}-{len(labels or [])}.parquet")
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), uri)
    return replace(demo(), data=replace(demo().data, manifest=uri))


def test_labels_decide_the_metric(tmp_path: Path) -> None:
    labelled = checked_sweep(
        SPACE, base(tmp_path, "ttvvs", labels=[-1, 0, 1, 1]), seeds=1, num_rungs=3, metric=None
    )
    assert (labelled.metric, labelled.labelled, labelled.rungs) == ("phase_classification", True, (8, 23, 70))
    plain = checked_sweep(SPACE, base(tmp_path, "ttvvs"), seeds=1, num_rungs=1, metric=None)
    assert (plain.metric, plain.labelled, plain.rungs) == ("label_free", False, (70,))
    nothing = checked_sweep(SPACE, base(tmp_path, "ttvv", labels=[-1, -1]), seeds=1, num_rungs=1, metric=None)
    assert nothing.metric == "label_free"
    assert not checked_sweep(
        SPACE, base(tmp_path, "ttvvs"), seeds=1, num_rungs=1, metric="label_free"
    ).labelled


@pytest.mark.parametrize(
    ("splits", "labels", "metric", "expected"),
    [
        ("ttvs", [0], None, "at least two videos of the split 'validation', and there are 1"),
        ("tts", [0], None, "not the test videos"),
        ("ttvv", None, "phase_classification", "needs frame labels"),
        ("ttvv", [0], "phase_clasification", "did you mean phase_classification?"),
    ],
)
def test_mistakes(
    tmp_path: Path, splits: str, labels: list[int] | None, metric: str | None, expected: str
) -> None:
    with pytest.raises(UserError, match=expected.replace("?", r"\?")):
        checked_sweep(SPACE, base(tmp_path, splits, labels=labels), seeds=1, num_rungs=1, metric=metric)


@pytest.mark.parametrize("split", ["test", "train"])
def test_validation_videos_are_neither_trained_on_nor_tested_on(tmp_path: Path, split: str) -> None:
    config = base(tmp_path, "ttvvss", labels=[0])
    config = replace(config, data=replace(config.data, validation_split=split))
    with pytest.raises(
        UserError, match=f"--data.validation_split {split}: .* neither trained on nor tested on"
    ):
        checked_sweep(SPACE, config, seeds=1, num_rungs=1, metric=None)


@pytest.mark.parametrize(("same", "split"), [((0, 2), "train"), ((4, 3), "test")])
def test_copies_of_videos_are_found_out(tmp_path: Path, same: tuple[int, int], split: str) -> None:
    config = base(tmp_path, "ttvvs", labels=[0], same=same)
    with pytest.raises(
        UserError, match=f"1 videos of the split 'validation' are the same files .* {split!r}"
    ):
        checked_sweep(SPACE, config, seeds=1, num_rungs=1, metric=None)


def test_checkpoints_come_about_every_epoch(tmp_path: Path) -> None:
    config = base(tmp_path, 60 * "t" + "vv", labels=[0])

    def steps(batch: int, given: int) -> int:
        training = replace(config.training, global_batch_size=batch, checkpoint_every_steps=given)
        sweep = checked_sweep(SPACE, replace(config, training=training), seeds=1, num_rungs=1, metric=None)
        return sweep.base.training.checkpoint_every_steps

    assert [steps(4, 200), steps(8, 200), steps(1, 200), steps(4, 7)] == [15, 10, 60, 7]


def test_a_folder_is_one_sweeps_own(tmp_path: Path) -> None:
    folder = str(tmp_path / "sweep")
    sweep = checked_sweep(SPACE, base(tmp_path, "ttvv", labels=[0, 1]), seeds=1, num_rungs=1, metric=None)
    remember(sweep, folder, "random", 0)
    remember(sweep, folder, "random", 0)
    another_cluster = replace(sweep.base, cluster=replace(sweep.base.cluster, num_workers=2))
    remember(replace(sweep, base=another_cluster), folder, "random", 0)
    with pytest.raises(UserError, match=r"was begun with seeds = 1, now 2: only --num-trials may change"):
        remember(replace(sweep, seeds=2), folder, "random", 0)
    with pytest.raises(UserError, match=r"search_seed = 0, now 1"):
        remember(sweep, folder, "random", 1)
    with pytest.raises(UserError, match=r"config.objective.temperature = 0.1, now 0.3"):
        other = replace(sweep.base, objective=replace(sweep.base.objective, temperature=0.3))
        remember(replace(sweep, base=other), folder, "random", 0)


def test_a_folder_of_before_a_field_came_into_the_config(tmp_path: Path) -> None:
    sweep = checked_sweep(SPACE, base(tmp_path, "ttvv", labels=[0, 1]), seeds=1, num_rungs=1, metric=None)
    remember(sweep, str(tmp_path), "random", 0)
    document = json.loads((tmp_path / "sweep.json").read_text())
    del document["config"]["views"]["sampling"]
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    remember(sweep, str(tmp_path), "random", 0)
    even = replace(sweep.base, views=replace(sweep.base.views, sampling="even"))
    with pytest.raises(UserError, match=r"config.views.sampling = 'random', now 'even'"):
        remember(replace(sweep, base=even), str(tmp_path), "random", 0)


@pytest.mark.parametrize(
    ("column", "value", "split"),
    [
        ("content_hash", "other", "validation"),
        ("frame_labels", [1, 1], "validation"),
        ("label", "jump", "train"),
    ],
)
def test_a_folder_keeps_its_videos_and_labels(tmp_path: Path, column: str, value: Any, split: str) -> None:
    config = base(tmp_path, "ttvv", labels=[0, 1])
    sweep = checked_sweep(SPACE, config, seeds=1, num_rungs=1, metric=None)
    remember(sweep, str(tmp_path / "sweep"), "random", 0)
    rows = pq.read_table(config.data.manifest).to_pylist()
    write_table(pa.Table.from_pylist(rows[::-1], schema=SCHEMA), config.data.manifest or "")
    remember(sweep, str(tmp_path / "sweep"), "random", 0)  # the order is nothing to it
    rows[0 if split == "train" else 2][column] = value
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), config.data.manifest or "")
    with pytest.raises(UserError, match=f"was begun with digest of videos and labels.{split} = "):
        remember(sweep, str(tmp_path / "sweep"), "random", 0)


def test_a_folder_has_one_caller_at_a_time(tmp_path: Path) -> None:
    folder, another = str(tmp_path / "sweep"), str(tmp_path / "another")
    with (
        only_caller(folder),
        only_caller(another),
        pytest.raises(UserError, match="another call of the sweep"),
    ):
        only_caller(folder).__enter__()
    with only_caller(folder):
        pass


def node(cpus: float, gpus: float = 0, alive: bool = True, **labels: str) -> dict[str, Any]:
    """As Ray lists it."""
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}, "Labels": {"ray.io/x": "y", **labels}}


def test_every_trial_of_this_machine_has_room_to_train_and_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "available_cores", lambda: 3)
    assert local_cpus(ClusterConfig(), 2) == 4
    assert local_cpus(ClusterConfig(num_workers=2, max_decode_tasks=3), 2) == 10
    assert local_cpus(ClusterConfig(), 1) == 3  # it has enough
    assert local_trials(ClusterConfig()) == 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert [local_trials(ClusterConfig(use_gpu=True, num_workers=n)) for n in (1, 2, 8)] == [5, 2, 1]


LABELS = {"train_node_labels": {"role": "train"}, "data_node_labels": {"role": "data"}}


@pytest.mark.parametrize(
    ("cluster", "nodes", "trials"),
    [
        ({}, [node(8)], 4),
        ({}, [node(8), node(8, alive=False)], 4),
        ({}, [node(1)], 1),
        ({}, [], 1),
        ({"max_decode_tasks": 3}, [node(8)], 2),
        ({"num_workers": 2}, [node(3), node(3)], 2),
        ({"worker_cpus": 0.3, "decode_cpus": 0.3}, [node(0.9), node(0.9)], 3),
        # A worker is on one node: two halves of a CPU are none.
        ({}, [node(1.5), node(1.5)], 1),
        ({"use_gpu": True}, [node(16, 4)], 4),
        ({"use_gpu": True, "num_workers": 4}, [node(16, 4), node(16, 4), node(64)], 2),
        # CPUs of GPU nodes are no room for decoders that have nodes of their own.
        (LABELS, [node(64, 8, role="train"), node(3, role="data")], 3),
        (LABELS, [node(2, 8, role="train"), node(64, role="data")], 2),
        ({"data_node_labels": {"role": "!train"}}, [node(9, role="train"), node(2)], 2),
        ({"worker_cpus": 0}, [node(4)], 4),
    ],
)
def test_room_for_trials(cluster: dict[str, Any], nodes: list[dict[str, Any]], trials: int) -> None:
    assert room_for_trials(ClusterConfig(**cluster), nodes) == trials


@pytest.mark.parametrize(
    ("cluster", "nodes", "trials", "tasks"),
    [
        ({}, [node(8)], 2, 3),
        ({}, [node(8)], 4, 1),
        ({}, [node(2)], 1, 1),
        ({"max_decode_tasks": 5}, [node(8)], 2, 5),
        # Decoding is bounded on nodes of its own, too: trials share them.
        (LABELS, [node(64, 8, role="train"), node(12, role="data")], 4, 3),
        ({"use_gpu": True}, [node(4, 2), node(20)], 2, 11),
    ],
)
def test_trials_share_the_cluster(
    cluster: dict[str, Any], nodes: list[dict[str, Any]], trials: int, tasks: int
) -> None:
    shared = share_cluster(replace(demo(), cluster=ClusterConfig(**cluster)), trials, nodes)
    assert shared.cluster.max_decode_tasks == tasks


def test_a_cluster_is_asked_for_the_nodes_of_all_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Group:
        def wait(self, seconds: float) -> bool:
            asked.append(seconds)
            return False

    def group(bundles: list[Any], bundle_label_selector: list[Any]) -> Group:
        asked.extend(zip(bundles, bundle_label_selector, strict=True))
        return Group()

    removed: list[Any] = []
    monkeypatch.setattr(preparation, "placement_group", group)
    monkeypatch.setattr(preparation, "remove_placement_group", removed.append)
    cluster = ClusterConfig(use_gpu=True, num_workers=2, max_decode_tasks=3, decode_cpus=0.5, **LABELS)  # type: ignore[arg-type]
    wait_for_room(cluster, 4, 10)
    assert len(removed) == 1 and asked[20:] == [10]
    assert asked[:8] == 8 * [({"CPU": 1.0, "GPU": 1.0}, {"role": "train"})]
    assert asked[8:20] == 12 * [({"CPU": 0.5}, {"role": "data"})]
