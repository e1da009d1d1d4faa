"""How many trials share a cluster, and what each takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from carl_ray.config import ClusterConfig
from carl_ray.presets import demo
from carl_ray.sweeps import cluster_share
from carl_ray.sweeps.cluster_share import (
    driver_resources,
    local_cpus,
    local_trials,
    room_for_trials,
    share_cluster,
    wait_for_room,
)


def node(cpus: float, gpus: float = 0, alive: bool = True, **labels: str) -> dict[str, Any]:
    """As Ray lists it."""
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}, "Labels": {"ray.io/x": "y", **labels}}


def test_every_trial_of_this_machine_has_room_to_train_and_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_share, "available_cores", lambda: 3)
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
    monkeypatch.setattr(cluster_share, "placement_group", group)
    monkeypatch.setattr(cluster_share, "remove_placement_group", removed.append)
    cluster = ClusterConfig(use_gpu=True, num_workers=2, max_decode_tasks=3, decode_cpus=0.5, **LABELS)  # type: ignore[arg-type]
    wait_for_room(cluster, 4, 10)
    assert len(removed) == 1 and asked[20:] == [10]
    assert asked[:8] == 8 * [({"CPU": 1.0, "GPU": 1.0}, {"role": "train"})]
    assert asked[8:20] == 12 * [({"CPU": 0.5}, {"role": "data"})]


@pytest.mark.parametrize(
    ("gibibytes", "trials", "expected"),
    [(64, 8, {"memory": 2**30}), (5, 4, {"memory": 2**29}), (2.5, 2, {"node:__internal_head__": 0.001})],
)
def test_trials_leave_the_memory_that_embedding_needs(
    gibibytes: float, trials: int, expected: dict[str, float]
) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "memory": gibibytes * 2**30}},
        {"Alive": False, "Resources": {"memory": 2.0**50}},
    ]
    assert driver_resources(nodes, trials) == expected
