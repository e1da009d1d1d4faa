"""`carl_ray.session` without a cluster: which one it connects to, and its errors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private import node, ray_constants, services, utils
from ray.exceptions import AuthenticationError
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE, get_env_vars_to_propagate
from ray.train.v2.api import data_parallel_trainer

from carl_ray import jobs, session
from carl_ray.errors import RunError

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


@pytest.fixture
def listening() -> Iterator[str]:
    """host:port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of the calls of `ray.init`; the environment has no variables of Ray."""
    for name in (
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_worker_niceness",
        WATCHER,
    ):
        monkeypatch.setenv(name, "")  # also puts back what the command sets
        monkeypatch.delenv(name)
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.ray, "init", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    return calls


def test_local_starts_a_cluster(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    watchers: list[str | None] = []
    monkeypatch.setattr(
        session.ray,
        "init",
        lambda **arguments: (asked.append(arguments), watchers.append(os.environ.get(WATCHER))),
    )
    with session.connect():
        # Of Ray's processes alone: the next cluster may have nodes that are taken away.
        assert watchers == ["0"] and WATCHER not in os.environ
        assert "RAY_ADDRESS" not in os.environ
        assert os.environ["RAY_AUTH_TOKEN"] == session._TOKEN
        # Ray's default is below whatever else runs on the machine.
        assert dict(os.environ)["RAY_worker_niceness"] == "0"
    (arguments,) = asked
    assert (arguments["address"], arguments["_node_ip_address"]) == ("local", "127.0.0.1")


def test_its_modules_are_imported_meanwhile(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needed_later.py").touch()
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('raised again where it is imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    started = threading.enumerate()
    with session.connect(meanwhile=["needed_later", "broken_module"]):
        for thread in set(threading.enumerate()) - set(started):
            thread.join()
        assert "needed_later" in sys.modules and "broken_module" not in sys.modules
    del sys.modules["needed_later"]


def test_a_small_node(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**arguments: Any) -> None:
        assert services.start_api_server(False, raise_on_failure=False) == ("", None)
        assert node.Node.start_log_monitor(None) is node.Node.start_monitor(None) is None
        assert utils.get_dashboard_dependency_error() is not None

    monkeypatch.setattr(session.ray, "init", init)
    with session.connect():
        pass


def test_actors_without_a_runtime_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENV_VARS_TO_PROPAGATE:
        monkeypatch.delenv(name, raising=False)
    with session.quick_actor_start():
        variables = data_parallel_trainer.get_env_vars_to_propagate()
        variables.setdefault("RAY_WARN_BLOCKING_GET_INSIDE_ASYNC", "0")
        assert variables == {}
        monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
        variables = data_parallel_trainer.get_env_vars_to_propagate()
        assert variables == {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"}
    assert data_parallel_trainer.get_env_vars_to_propagate is get_env_vars_to_propagate


def test_a_required_token_is_one_line(
    asked: list[dict[str, Any]], listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**arguments: Any) -> None:
        raise AuthenticationError("Token authentication is enabled but no authentication token was found")

    monkeypatch.setattr(session.ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", listening)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(RunError) as failure, session.connect():
        pass
    assert str(failure.value) == (
        f"could not start or reach the Ray cluster at {listening}: Token authentication is enabled but no "
        "authentication token was found: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the token of the cluster, or "
        "RAY_AUTH_MODE=disabled where it requires none"
    )


@pytest.mark.parametrize(("mode", "is_told"), [(None, True), ("disabled", False)])
def test_a_token_that_may_be_required_is_told(
    asked: list[dict[str, Any]],
    listening: str,
    monkeypatch: pytest.MonkeyPatch,
    mode: str | None,
    is_told: bool,
) -> None:
    def refuse(**arguments: Any) -> None:
        raise ConnectionError("Failed to connect to GCS")

    monkeypatch.setattr(session.ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", listening)
    monkeypatch.setenv("RAY_AUTH_MODE", mode or "")
    if mode is None:
        monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(RunError, match="Failed to connect") as failure, session.connect():
        pass
    assert ("; if it requires a token, set RAY_AUTH_MODE=token" in str(failure.value)) == is_told


@pytest.mark.parametrize("address", ["{free}", "ray://{free}", "http://{free}", "auto"])
def test_an_absent_cluster_is_reported_at_once(
    address: str, asked: list[dict[str, Any]], free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = f"127.0.0.1:{free_port()}"
    # As after a head was killed: its address is still recorded.
    monkeypatch.setattr(services, "get_ray_address_from_environment", lambda *arguments: free)
    monkeypatch.setenv("RAY_ADDRESS", address.format(free=free))
    with pytest.raises(RunError, match=rf"nothing answers at [\d.]+:{free[10:]} \(Connection refused\)"):
        jobs._client(None)
    if "http" not in address:
        with pytest.raises(RunError, match=rf"nothing answers at [\d.]+:{free[10:]} \(Connection refused\)$"):
            session.connect().__enter__()
        assert not asked


def test_an_unanswered_connection_times_out(listening: str) -> None:
    code = (
        "import time; from carl_ray import session; session._ANSWER_SECONDS = .1\n"
        f"with session.reaching({listening!r}): time.sleep(600)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"carl_ray: {listening} did not answer as a Ray cluster does")


def test_a_start_timeout_is_one_line(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 10_000, 40))
    monkeypatch.setattr(session.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(session.time, "sleep", lambda seconds: None)
    tries: list[str] = []

    def get_node(*arguments: str) -> None:
        tries.append(arguments[1])
        raise RuntimeError("not registered")

    def init(**arguments: Any) -> None:
        # As Ray's node does, for which 30 s are too short.
        with pytest.raises(RuntimeError):
            services.get_node("address", "node")
        raise Exception("The current node timed out during startup. This could happen")

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(session.ray, "init", init)
    with pytest.raises(RunError) as failure:
        session.connect().__enter__()
    reason, _, folder = str(failure.value).partition(" (Ray's logs: ")
    assert reason == (
        "could not start or reach a Ray cluster on this machine: The current node timed out during startup. This "
        "could happen"
    )
    assert Path(folder[:-1]).stat().st_mode & 0o777 == 0o700
    Path(folder[:-1]).rmdir()
    assert len(tries) > session._START_SECONDS / 40
    assert services.get_node is get_node and ray_constants.ENABLE_RAY_CLUSTER
