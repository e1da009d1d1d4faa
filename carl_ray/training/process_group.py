"""Ray Train's torch backend: private process group, checkpoint before shutdown."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import ray
import ray.train.torch
import torch.distributed as dist
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig

_MAX_SECONDS_TO_CHECKPOINT = 300.0
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)
_STORES: list[dist.TCPStore] = []
"""Rendezvous stores that this process serves, for as long as it lives."""
TERMINATED = threading.Event()
"""Set once this worker has to write a checkpoint and end."""
TRAINING = threading.Event()
"""Set while the training loop runs in this process."""


def install_termination_handler() -> None:
    """Write a checkpoint and end at SIGTERM; to be called from the main thread."""
    TERMINATED.clear()
    signal.signal(signal.SIGTERM, lambda number, frame: TERMINATED.set())


def is_training() -> bool:
    """Whether the training loop runs in this process."""
    return TRAINING.is_set()


def end_with_checkpoint() -> None:
    """Have this process's loop write a checkpoint, and wait until it has ended."""
    TERMINATED.set()
    until = time.monotonic() + _MAX_SECONDS_TO_CHECKPOINT
    while TRAINING.is_set() and time.monotonic() < until:
        time.sleep(0.05)


def open_store() -> tuple[str, int]:
    """Serve torch's rendezvous store on the first worker; return its address and port.

    It listens on this node's address alone: torch's default is all interfaces, and the store has no authentication.
    """
    address = ray.util.get_node_ip_address()
    listener = socket.create_server(
        (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    )
    port = listener.getsockname()[1]
    # Torch takes ownership of the socket.
    listener_fd = listener.detach()
    _STORES.append(
        dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener_fd)
    )
    return address, port


def join_process_group(backend: str, rank: int, world_size: int, address: str, port: int) -> None:
    """Initialise torch.distributed in this worker, with the store at an address."""
    if ipaddress.ip_address(address).is_loopback:
        # The workers' own connections have no authentication either. Interface 1 is the loopback one.
        os.environ |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), socket.if_indextoname(1))
    dist.init_process_group(
        backend,
        store=dist.TCPStore(address, port, wait_for_workers=False),
        rank=rank,
        world_size=world_size,
        timeout=_COLLECTIVE_TIMEOUT,
    )


class TerminationTorchConfig(TorchConfig):
    """Torch backend whose workers write a checkpoint at SIGTERM and at a resize.

    The training loop runs in a thread, where no signal handler can be installed; a backend's hooks run in the main
    thread of every worker. Torch's store listens on the address of the first worker's node, in a cluster on this
    machine on the loopback interface.
    """

    @property
    def backend_cls(self) -> type:
        """Torch backend with a private process group and a checkpoint before shutdown."""

        class _Backend(super().backend_cls):  # type: ignore[misc]
            def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
                backend = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
                size = len(worker_group)
                store = worker_group.execute_single(0, open_store)
                join = worker_group.execute_single_async
                ray.get([join(rank, join_process_group, backend, rank, size, *store) for rank in range(size)])
                worker_group.execute(install_termination_handler)

            def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
                # After the failure of one worker the others hang in collective calls: no checkpoint is possible.
                if all(worker_group.execute(is_training)):
                    worker_group.execute(end_with_checkpoint)
                super().on_shutdown(worker_group, backend_config)

        return _Backend
