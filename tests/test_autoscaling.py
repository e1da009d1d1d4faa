"""A cluster that grows from nothing for a training job and shrinks to nothing after it, on one machine.

The head is Ray's own, with its own autoscaler; only the provider is one that starts nodes as local processes. That
provider and its environment variables are private to Ray: look here first when a new version of Ray fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.util.state import list_actors, list_nodes, list_tasks

from carl_ray.training.run_log import read_log
from tests.samples import manifest_row, write_rows

RAY = str(Path(sys.executable).with_name("ray"))
HEAD_ID = "f" * 51 + "0" * 5
CLUSTER = {
    "cluster_name": "one-machine",
    "max_workers": 4,
    "idle_timeout_minutes": 0.1,
    "auth": {"ssh_user": "nobody"},
    # What `ray up` would have filled in.
    **dict.fromkeys(
        ("setup_commands", "head_setup_commands", "worker_setup_commands", "cluster_synced_files"), ()
    ),
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "data": {
            "resources": {"CPU": 1, "object_store_memory": 200_000_000},
            "labels": {"role": "data"},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
        "train": {
            "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 200_000_000},
            "labels": {"role": "train"},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
}


@dataclass(frozen=True)
class Head:
    """A head that runs no work."""

    dashboard: str

    def roles(self) -> dict[str, str]:
        """The role of each node that there is or was, by its id; the head's is empty."""
        return {node.node_id: node.labels.get("role", "") for node in list_nodes(address=self.dashboard)}

    def num_workers(self) -> int:
        """Nodes that are there, besides the head."""
        nodes = list_nodes(address=self.dashboard)
        return sum(node.state == "ALIVE" and not node.is_head_node for node in nodes)


@pytest.fixture
def head(
    start_head: Callable[..., AbstractContextManager[dict[str, str]]],
    free_port: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Head]:
    # Of the other tests' cluster; to Ray they count more than an address that is named.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    port = free_port()
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{port}",
        "launch_multiple": True,
        "disable_node_updaters": True,
        "head_node_id": HEAD_ID,
    }
    config = tmp_path / "cluster.yaml"  # JSON is YAML
    config.write_text(json.dumps(CLUSTER | {"provider": provider}))
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_AUTH_MODE": "disabled",
    }
    size = ("--num-cpus=0", "--num-gpus=0", "--object-store-memory=200000000")
    with start_head(*size, f"--autoscaling-config={config}", port=port, environment=environment) as found_by:
        yield Head(found_by["RAY_API_SERVER_ADDRESS"])


@pytest.mark.slow
def test_a_job_makes_the_cluster_grow_and_leaves_it_empty(
    head: Head, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    rows = []
    for index in range(6):
        path = make_video(tmp_path / f"{index}.mp4", num_frames=90)
        rows.append(manifest_row(path.name, uri=str(path), num_frames=90, content_hash=path.name))
    write_rows(rows, tmp_path / "manifest.parquet")
    assert head.num_workers() == 0
    submitted = subprocess.run(
        [
            *(RAY, "job", "submit", f"--address={head.dashboard}", "--"),
            *(sys.executable, "-m", "carl_ray.train", "demo", "--run-dir", str(tmp_path / "run")),
            *("--data.manifest", str(tmp_path / "manifest.parquet"), "--augment.image_size", "24"),
            *("--training.epochs", "2", "--training.global_batch_size", "3", "--cluster.num_workers", "2"),
            *(
                "--cluster.data_node_labels",
                '{"role": "data"}',
                "--cluster.train_node_labels",
                '{"role": "train"}',
            ),
        ],
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]
    steps = [line for line in read_log(str(tmp_path / "run")) if "loss" in line]
    assert steps[-1]["step"] == 4
    assert steps[-1]["num_workers"] == 2

    roles = head.roles()
    assert set(roles.values()) == {"", "data", "train"}
    loads = list_tasks(address=head.dashboard, filters=[("name", "=", "MapBatches(load)")], limit=1000)
    assert {roles[task.node_id] for task in loads} == {"data"}
    workers = list_actors(address=head.dashboard, filters=[("class_name", "=", "RayTrainWorker")])
    assert [roles[worker.node_id] for worker in workers] == ["train", "train"]
    assert len({worker.node_id for worker in workers}) == 2

    until = time.monotonic() + 600
    while head.num_workers() and time.monotonic() < until:
        time.sleep(1)
    assert head.num_workers() == 0
