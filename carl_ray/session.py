"""Joining the Ray cluster that a command runs on, or starting one for it on this machine."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from carl_ray.errors import RunError, own_sigterm

# One for all clusters of this process: Ray's client reads it once.
_TOKEN = secrets.token_hex(32)


@contextmanager
def connect(num_cpus: int | None = None) -> Iterator[None]:
    """Joins the cluster that `RAY_ADDRESS` names (Ray Jobs set it), or runs one on this machine for the while.

    Of a cluster of our own the dashboard listens on the loopback interface, but Ray's other servers (control store,
    nodes, workers) on all of them, where whoever reaches one could run code. So it wants a token, which is drawn anew
    for each process and is nowhere but in the environment of its processes; metrics alone are shown without one. An
    explicit `RAY_AUTH_MODE` is left as it is. For a cluster that is named, it is `disabled` unless set: Ray's default
    differs between its commands. `local` names none. Where this process is already connected (tests, notebooks), that
    connection is used and left open.

    Args:
        num_cpus: Logical CPUs of a cluster of our own; none counts those of the machine.

    Raises:
        RunError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS") == "local":
        del os.environ["RAY_ADDRESS"]  # Who asks later whether a cluster was named hears the same.
    address = os.environ.get("RAY_ADDRESS")
    if address:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    elif "RAY_AUTH_MODE" not in os.environ:
        # Told nothing, Ray asks for a token; without one it would write one into the home folder, which other commands
        # of Ray then use.
        os.environ.setdefault("RAY_AUTH_TOKEN", _TOKEN)
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    try:
        with own_sigterm():
            if address:
                ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
            else:
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    logging_level=logging.WARNING,
                    log_to_driver=False,
                    _node_ip_address="127.0.0.1",
                )
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
        reason = str(error)
        if isinstance(error, ray.exceptions.AuthenticationError):
            reason = (
                f"{error.message}: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the token of the cluster, or "
                "RAY_AUTH_MODE=disabled where it wants none"
            )
        raise RunError(f"could not start or reach {where}: {reason}") from None
    quiet_data()
    try:
        yield
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RunError(f"Ray failed: {lines[-1] if lines else type(error).__name__}") from None
    finally:
        ray.shutdown()


def quiet_data() -> None:
    """Leaves progress to the command: Ray Data's own bars and hints would write over its line. For this process."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
