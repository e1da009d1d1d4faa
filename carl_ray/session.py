"""Connect to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import importlib
import ipaddress
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import ray
from pyarrow import fs

from carl_ray import storage
from carl_ray.errors import RunError, last_line, note, own_sigterm
from carl_ray.machine import available_cores

# One per process: Ray's client reads it once.
_TOKEN = secrets.token_hex(32)
_START_SECONDS = 180.0
"""For the start of a local cluster; Ray's default of 30 is too short on a busy machine."""
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 120.0
_MAX_TEMP_LENGTH = 24
"""Characters of the path of the temporary folder: Ray's sockets are inside, with paths of at most 107."""
_PORTS = {"ray": 10001, "http": 80, "https": 443}
_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


@contextmanager
def connect(num_cpus: int | None = None, *, meanwhile: Sequence[str] = ()) -> Iterator[None]:
    """Connect to the cluster that `RAY_ADDRESS` names (Ray Jobs set it), or start one on this machine.

    All servers of a local cluster (control store, node, workers, agents) listen on the loopback interface alone. Since
    access allows running code, they also require a token, which is drawn for each process and is only in the
    environment of its processes. It has no dashboard and takes no jobs. Session files are in a temporary folder with
    access for this user alone; it is deleted at the end, and kept for its logs where Ray failed. Workers have the
    priority of this process, not Ray's lower one.

    An explicit `RAY_AUTH_MODE` is kept. For a named cluster it is `disabled` by default: Ray's own default differs
    between its commands. `RAY_ADDRESS=local` names none. An existing connection of this process (tests, notebooks) is
    used and left open.

    Args:
        num_cpus: Logical CPUs of a local cluster; None: those that this process may use.
        meanwhile: Modules that the body will import: imported in a thread while Ray's processes start.

    Raises:
        RunError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS") == "local":
        del os.environ["RAY_ADDRESS"]  # Later code tests for its presence.
    address = os.environ.get("RAY_ADDRESS")
    temporary = tempfile.gettempdir()
    parent = temporary if len(temporary) <= _MAX_TEMP_LENGTH else "/tmp"
    folder = None if address else tempfile.mkdtemp(prefix="ray-", dir=parent)
    is_started = is_kept = False
    try:
        _start(address, folder, num_cpus, meanwhile)
        is_started = True
        quiet_data()
        try:
            yield
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray failed: {last_line(error)}") from None
    except RunError as error:
        # Where Ray is the cause, only its logs may hold the reason.
        is_kept = not is_started or type(error.__context__).__module__.startswith("ray")
        if folder and is_kept:
            raise RunError(f"{error} (Ray's logs: {folder})") from None
        raise
    finally:
        ray.shutdown()
        if folder and not is_kept:
            shutil.rmtree(folder, ignore_errors=True)


def _import(modules: Sequence[str]) -> None:
    """Import modules ahead of their use, where what one raises is raised again."""
    with suppress(Exception):
        for module in modules:
            importlib.import_module(module)


def _start(address: str | None, folder: str | None, num_cpus: int | None, meanwhile: Sequence[str]) -> None:
    """Connect to a cluster, or start one with its files in a folder; `RunError` for all that Ray raises."""
    options: dict[str, Any] = {"address": address or "local"}
    has_mode = "RAY_AUTH_MODE" in os.environ
    if address:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    else:
        if "RAY_AUTH_MODE" not in os.environ:
            # By default Ray requires a token; where there is none it writes one into the home folder, which other
            # commands of Ray would then use.
            os.environ.setdefault("RAY_AUTH_TOKEN", _TOKEN)
            logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("RAY_raylet_start_wait_time_s", f"{_START_SECONDS:.0f}")
        # A folder below: Ray makes the one that it is given writable for all users.
        options |= {
            "num_cpus": num_cpus or available_cores(),
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": f"{folder}/r",
        }
    # No process that asks every 5 s whether this machine will be taken away. Ray's processes inherit the variable; left
    # in this one it would go to the next cluster, too.
    if is_set_here := not address and _WATCHER not in os.environ:
        os.environ[_WATCHER] = "0"
    try:
        with own_sigterm(), reaching(address) if address else _node_settings():
            # Here, with SIGTERM blocked as in this thread.
            threading.Thread(target=_import, args=[meanwhile], name="imports").start()
            ray.init(**options, logging_level=logging.WARNING, log_to_driver=False)
    except Exception as error:  # Ray raises a plain Exception for a node that does not start in time.
        if address and not has_mode:
            os.environ.pop("RAY_AUTH_MODE", None)
        where = "a Ray cluster on this machine"
        if address:
            where = f"the Ray cluster at {storage.public_uri(address)}"
        reason = str(error)
        if address and not has_mode:
            reason += "; if it requires a token, set RAY_AUTH_MODE=token"
        if isinstance(error, ray.exceptions.AuthenticationError):
            reason = (
                f"{error.message}: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the token of the cluster, or "
                "RAY_AUTH_MODE=disabled where it requires none"
            )
        raise RunError(f"could not start or reach {where}: {reason}") from None
    finally:
        if is_set_here:
            del os.environ[_WATCHER]


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Set a timeout for connecting to a cluster: Ray waits silently for over ten minutes.

    Where something listens but does not answer within two minutes, the process exits with one line.

    Args:
        address: host:port of the head, that of Ray Client (`ray://`) or of the dashboard (`http://`), or `auto`.

    Raises:
        ConnectionError: nothing listens there.
    """
    if address == "auto":
        from ray._private import services

        address = getattr(services, "canonicalize_bootstrap_address", str)("auto") or ""
    parts = urlsplit(address if "://" in address else f"//{address}")
    port = parts.port or _PORTS.get(parts.scheme)
    is_proxied = parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")
    if parts.hostname and port and not is_proxied:
        try:
            socket.create_connection((parts.hostname, port), _CONNECT_SECONDS).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConnectionError(f"nothing answers at {parts.hostname}:{port} ({reason})") from None

    def give_up() -> None:
        note(
            f"carl_ray: {storage.public_uri(address)} did not answer as a Ray cluster does within "
            f"{_ANSWER_SECONDS:.0f} s: is it the head's address, and Ray's version there {ray.__version__}?"
        )
        os._exit(1)  # Ray waits in C++, where no exception reaches it.

    timer = threading.Timer(_ANSWER_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _node_settings() -> Iterator[None]:
    """Patch Ray to start a small node on the loopback interface, with a longer timeout.

    Ray 2.60 has no options for these. It replaces a loopback address given to `ray.init` by another one of the machine,
    and all servers listen on all interfaces, unless clusters are disabled, as on macOS. A warning is printed where a
    changed Ray ignores that. What serves `ray job`, `ray list`, `ray status`, autoscaling and output of workers on the
    terminal is left out: two thirds of the processes and half of the CPU time.
    """
    from ray._private import node, ray_constants, services, utils

    get_node: Any = getattr(services, "get_node", None)

    def get_node_patiently(*arguments: Any) -> Any:
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # It has not registered yet.
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    replacements: list[tuple[Any, str, Any]] = [
        (ray_constants, "ENABLE_RAY_CLUSTER", False),
        (services, "get_node", get_node_patiently),
        (services, "start_api_server", lambda *arguments, **options: ("", None)),
        (node.Node, "start_log_monitor", lambda self: None),
        (node.Node, "start_monitor", lambda self: None),
        # As in an installation of `ray` without `[default]`: the agent serves neither metrics nor jobs.
        (utils, "get_dashboard_dependency_error", lambda: ImportError("not needed")),
    ]
    with ExitStack() as stack:
        for owner, name, replacement in replacements:
            if hasattr(owner, name):
                stack.enter_context(patch.object(owner, name, replacement))
            else:
                note(f"warning: Ray {ray.__version__} has no {name}: its start is not changed as intended")
        yield
    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        note(f"warning: Ray {ray.__version__} listens on all interfaces of this machine")


@contextmanager
def quick_actor_start() -> Iterator[None]:
    """Patch Ray Train to start its actors without a runtime environment, unless `RAY_TRAIN_…` variables are set.

    By default it has one variable, which only silences a warning in a log. But Ray starts a process with variables of
    its own in two steps, imports itself in both, and leaves the processes that it keeps ready unused.
    """
    from ray.train.v2.api import data_parallel_trainer

    class NoVariables(dict[str, str]):
        def setdefault(self, name: str, default: str = "") -> str:
            """Leave out that default."""
            return (
                default if name == "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC" else super().setdefault(name, default)
            )

    name = "get_env_vars_to_propagate"
    own: Any = getattr(data_parallel_trainer, name, dict)

    with patch.object(data_parallel_trainer, name, lambda: own() or NoVariables(), create=True):
        yield


def largest_memory(num_cpus: float = 1) -> int:
    """Bytes that a task of so many CPUs may reserve: those of the largest node; `sys.maxsize` where none has joined."""
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    fitting = (node.get("memory", 0) for node in nodes if node.get("CPU", 0) >= num_cpus)
    return int(max(fitting, default=0)) or sys.maxsize


def records_storage(uri: str) -> dict[str, Any]:
    """Arguments of Ray Train's and Ray Tune's `RunConfig` that keep their records in a folder."""
    filesystem, path = storage.resolve(uri)
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    return {"storage_path": path, "storage_filesystem": None if is_local else filesystem}


def quiet_data() -> None:
    """Disable Ray Data's progress bars and hints in this process, which would overwrite the command's progress."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
