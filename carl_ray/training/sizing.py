"""How many CPU nodes decode for how many GPUs: one video and one step are measured, the rest is arithmetic.

A decoding task holds its CPUs from the first byte fetched to the finished pair of views, so what counts is its wall
time. The exchange between GPUs is not measured, nor what tasks on one machine cost each other; a real run's
metrics.jsonl has both. No cluster is started. torch is imported lazily: the arithmetic does without.

Legend: B videos of a step over all workers, W workers of one GPU each.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from carl_ray.config import Config
from carl_ray.data.memory import load_task_bytes, pair_bytes
from carl_ray.errors import UserError

if TYPE_CHECKING:
    import torch

    from carl_ray.data.sample import ViewPair

BLOCKS_A_TASK = 7
"""Blocks of a data node's object store for each task: one in the making, six that wait to be fetched."""

HEADROOM = 1.5
"""Nodes that a group may have, for each that it needs: spot nodes go, and new ones take minutes."""

_ENOUGH_SECONDS = 60.0
_VIDEO_ID = "sizing"


@dataclass(frozen=True)
class Timing:
    """Wall seconds of something that was done several times."""

    seconds: tuple[float, ...]
    """Each time."""

    @property
    def median(self) -> float:
        """Seconds of the middle one."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Rates:
    """What a plan is computed from."""

    video_seconds: float
    """Of a decoding task, for one video."""
    frames_per_video: int
    """Real frames of both views."""
    step_seconds: float
    """Of a step on every worker at once, with `share` videos each at most."""
    batch_size: int
    """B."""
    num_workers: int
    """W."""


@dataclass(frozen=True)
class DataNode:
    """One of the nodes that decode."""

    cpus: int
    decode_cpus: float
    """CPUs that a task reserves."""

    @property
    def tasks(self) -> int:
        """Tasks at a time."""
        return math.floor(self.cpus / self.decode_cpus)


@dataclass(frozen=True)
class Memory:
    """Bytes that the blocks of a run need, and the tasks that make them."""

    data_heap: int
    """Of a data node: `memory` in the cluster's file."""
    data_store: int
    """Of a data node: `object_store_memory`; /dev/shm must be larger."""
    train_store: int
    """Of a train node, for each worker: blocks on their way, and those of the step that is put together."""
    train_heap: int
    """Of a train node, for each worker, besides what the process itself takes: the steps held ready."""


@dataclass(frozen=True)
class Projection:
    """What a run comes to with so many data nodes."""

    num_nodes: int
    busy: float
    """Share of the time in which the GPUs compute."""
    hours: float
    cost: float
    """In hours of a train node, all nodes but the head together."""
    decoding_share: float
    """Of the cost, for data nodes."""


def share(batch_size: int, num_workers: int) -> int:
    """Most videos of a step that fall on one worker."""
    return math.ceil(batch_size / num_workers)


def frames_per_core(rates: Rates, node: DataNode) -> float:
    """Frames a second that a core makes ready."""
    return rates.frames_per_video / (rates.video_seconds * node.decode_cpus)


def frames_per_worker(rates: Rates) -> float:
    """Frames a second that a worker takes, on the average over workers."""
    return rates.batch_size * rates.frames_per_video / (rates.step_seconds * rates.num_workers)


def cores_per_worker(rates: Rates, node: DataNode) -> float:
    """Cores that keep one worker busy."""
    return frames_per_worker(rates) / frames_per_core(rates, node)


def nodes_needed(rates: Rates, node: DataNode) -> float:
    """Data nodes that keep all workers busy, not rounded.

    By Little's law as many tasks run at a time as videos are taken in the time that one needs.
    """
    return rates.batch_size / rates.step_seconds * rates.video_seconds / node.tasks


def bytes_per_second(rates: Rates, config: Config) -> float:
    """Decoded views that reach a worker over the network, in bytes a second."""
    return rates.batch_size * pair_bytes(config) / (rates.step_seconds * rates.num_workers)


def memory_needed(config: Config, num_workers: int, node: DataNode) -> Memory:
    """What to reserve on each kind of node; the worker's part counts what Ray Data and `Prefetch` hold ahead."""
    block, ahead = pair_bytes(config), config.cluster.prefetch_steps
    videos = share(config.training.global_batch_size, num_workers)
    return Memory(
        data_heap=node.tasks * load_task_bytes(config),
        data_store=node.tasks * BLOCKS_A_TASK * block,
        # Ray prefetches that many blocks, and about as many again while it hands them over.
        train_store=(2 * ahead + 1 + videos) * block,
        # One being put together, one being trained on; pinned memory for a GPU comes in powers of two.
        train_heap=(ahead + 2) * 2 ** math.ceil(math.log2(videos * block)),
    )


def outcome(rates: Rates, node: DataNode, num_nodes: int, num_steps: int, price: float) -> Projection:
    """What a run of so many steps comes to.

    Args:
        rates: What was measured.
        node: A data node.
        num_nodes: Data nodes, at least one.
        num_steps: Steps of the run.
        price: Of a data node for an hour, in prices of a train node of one GPU.
    """
    busy = min(1.0, num_nodes / nodes_needed(rates, node))
    hours = num_steps * rates.step_seconds / busy / 3600
    decoding = num_nodes * price
    return Projection(
        num_nodes,
        busy,
        hours,
        hours * (rates.num_workers + decoding),
        decoding / (rates.num_workers + decoding),
    )


def numbers_of_nodes(needed: float) -> list[int]:
    """Numbers of data nodes to compare: half of what is needed, that, and with headroom."""
    return sorted({math.ceil(needed / 2), math.ceil(needed), math.ceil(HEADROOM * needed)})


def measure_video(
    video: str, num_video_frames: int, config: Config, times: int, on_done: Callable[[float], None]
) -> tuple[Timing, list[ViewPair]]:
    """The time to fetch and decode a video and make its two views, as one decoding task does; and the views.

    Each time they are those of another epoch.

    Args:
        video: Path or URI.
        num_video_frames: Frames of the video.
        config: The run.
        times: How often, besides a first time that does not count.
        on_done: Called with the seconds of each time.

    Raises:
        DecodeError: the video cannot be read.
    """
    from carl_ray.data.sample import make_view_pair

    pairs: list[ViewPair] = []

    def make(epoch: int) -> None:
        pairs.append(make_view_pair(video, _VIDEO_ID, num_video_frames, 1.0, epoch, config))

    with _torch_threads(config.cluster.decode_cpus):
        return _timed(make, times, on_done), pairs


def measure_step(
    pairs: Sequence[ViewPair],
    config: Config,
    num_videos: int,
    device: torch.device,
    times: int,
    on_done: Callable[[float], None],
) -> Timing:
    """The time of a training step on one worker, from the batch in its memory to the changed weights.

    Weights are random: they cost the same as others.

    Args:
        pairs: Views to train on, used again and again.
        config: The run.
        num_videos: Videos of the step on this worker.
        device: Where it computes.
        times: How often, besides a first time that does not count.
        on_done: Called with the seconds of each time.

    Raises:
        UserError: the GPU's memory is too small.
    """
    import torch

    from carl_ray.data.sample import collate, view_seeds
    from carl_ray.training.step import TrainingStep

    if config.objective.name == "supervised" and config.objective.num_classes is None:
        config = replace(config, objective=replace(config.objective, num_classes=2))
    batch = collate(
        [pairs[index % len(pairs)] for index in range(num_videos)],
        range(num_videos),
        [view_seeds(config.training.seed, 0, f"{_VIDEO_ID}/{index}") for index in range(num_videos)],
        config,
        device,
    )

    def train(number: int) -> None:
        step.train(batch, number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        with _torch_threads(config.cluster.worker_cpus):
            step = TrainingStep(config, device, num_steps=times + 1)
            return _timed(train, times, on_done)
    except torch.OutOfMemoryError:
        raise UserError(
            f"a step of {num_videos} videos, 2 views of {config.model.num_frames} frames each, does not fit into the "
            "GPU's memory: raise --gpus, or lower training.global_batch_size or model.num_frames"
        ) from None


def _timed(action: Callable[[int], None], times: int, on_done: Callable[[float], None]) -> Timing:
    """Times of calls with 0, 1, …; the first does not count, unless it took so long that there is no second."""
    seconds: list[float] = []
    while len(seconds) <= times and sum(seconds) < _ENOUGH_SECONDS:
        began = time.perf_counter()
        action(len(seconds))
        seconds.append(time.perf_counter() - began)
        on_done(seconds[-1])
    return Timing(tuple(seconds[1:] or seconds))


@contextmanager
def _torch_threads(cpus: float) -> Iterator[None]:
    """As many threads as a task or a worker with so many CPUs has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
