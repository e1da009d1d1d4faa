"""`carl_ray.session`: which cluster a command joins, and what is said where it cannot; without Ray."""

from __future__ import annotations

import os
from typing import Any

import pytest
from ray.exceptions import AuthenticationError

from carl_ray import session
from carl_ray.errors import RunError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `ray.init` was called with; nothing of Ray is in the environment."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # also puts back what the command sets
        monkeypatch.delenv(name)
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.ray, "init", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    return calls


def test_local_is_a_cluster_of_our_own(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with session.connect():
        assert "RAY_ADDRESS" not in os.environ
        assert os.environ["RAY_AUTH_TOKEN"] == session._TOKEN
    (arguments,) = asked
    assert (arguments["address"], arguments["_node_ip_address"]) == ("local", "127.0.0.1")


def test_a_cluster_that_wants_a_token_is_one_line(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**arguments: Any) -> None:
        raise AuthenticationError("Token authentication is enabled but no authentication token was found")

    monkeypatch.setattr(session.ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(RunError) as failure, session.connect():
        pass
    assert str(failure.value) == (
        "could not start or reach the Ray cluster at 127.0.0.1:1: Token authentication is enabled but no "
        "authentication token was found: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the token of the cluster, or "
        "RAY_AUTH_MODE=disabled where it wants none"
    )
