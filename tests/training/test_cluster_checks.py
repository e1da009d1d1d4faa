"""`carl_ray.training.cluster_checks`: whether a local run folder is the same folder on every node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from carl_ray.errors import UserError
from carl_ray.training import cluster_checks

HEAD, DATA, TRAIN, GONE = (digit * 56 for digit in "abcd")  # Ray's names of nodes are hexadecimal


class Cluster:
    """Stands in for Ray: nodes by name, and whether each sees the files of this machine."""

    def __init__(self, sees: dict[str, bool], dead: tuple[str, ...] = ()) -> None:
        self._sees, self._dead = sees, dead
        self.asked: list[str] = []
        self.markers: list[Path] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "Alive": name not in self._dead, "Resources": {"CPU": 16.0}}
            for name in (*self._sees, *self._dead)
        ]

    def options(self, *, scheduling_strategy: Any) -> Cluster:
        assert not scheduling_strategy.soft
        self.asked.append(scheduling_strategy.node_id)
        return self

    def remote(self, uri: str) -> bool:
        self.markers.append(Path(uri))
        return Path(uri).exists() and self._sees[self.asked[-1]]


def connected(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> Cluster:
    monkeypatch.setattr(ray, "nodes", cluster.nodes)
    monkeypatch.setattr(ray, "get", lambda answers: answers)
    monkeypatch.setattr(ray, "remote", lambda **resources: lambda function: cluster)
    return cluster


def test_a_local_run_folder_is_refused_where_a_node_does_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = connected(monkeypatch, Cluster({HEAD: True, DATA: False, TRAIN: True}))
    with pytest.raises(UserError) as refused:
        cluster_checks.check_shared(str(tmp_path / "run"))
    message = str(refused.value)
    assert message.startswith(f"{tmp_path}/run is a folder of this machine, but the cluster has 3 nodes")
    assert "--run-dir must be in object storage" in message
    assert "\n" not in message
    assert not any(marker.exists() for marker in cluster.markers)


def test_a_folder_that_all_nodes_see_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = connected(monkeypatch, Cluster({HEAD: True, TRAIN: True}, dead=(GONE,)))
    cluster_checks.check_shared(str(tmp_path / "run"))
    assert cluster.asked == [HEAD, TRAIN]
    assert not any(marker.exists() for marker in cluster.markers)


def test_object_storage_and_a_cluster_of_one_machine_need_no_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = connected(monkeypatch, Cluster({HEAD: True, TRAIN: False}))
    cluster_checks.check_shared("s3://bucket/run")
    alone = connected(monkeypatch, Cluster({HEAD: True}, dead=(GONE,)))
    cluster_checks.check_shared(str(tmp_path / "run"))
    assert not several.asked and not alone.asked and not list(tmp_path.iterdir())


def test_videos_of_one_machine_are_refused_on_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").touch()
    videos = pa.table({"uri": [str(tmp_path / "a.mp4")]})
    connected(monkeypatch, Cluster({HEAD: True, DATA: True}))
    cluster_checks.check_videos_shared(videos)
    connected(monkeypatch, Cluster({HEAD: True, DATA: False}))
    cluster_checks.check_videos_shared(pa.table({"uri": ["s3://bucket/a.mp4"]}))
    with pytest.raises(UserError, match=r"a\.mp4 is a video of this machine, but the cluster has 2 nodes"):
        cluster_checks.check_videos_shared(videos)
