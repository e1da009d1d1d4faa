"""Cluster plan: CPU nodes that decode for a number of GPUs, from measured rates.

A decoding task holds its CPUs from the first byte fetched to the finished pair of views, so its wall time counts. The
exchange between GPUs is not measured, nor what tasks on one machine cost each other; a real run's metrics.jsonl has
both. No cluster is started. torch is imported lazily: the arithmetic does without.

Legend: B videos of a step over all workers, W workers of one GPU each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from carl_ray.config import Config
from carl_ray.data.sample import Sample, load_task_bytes, rows_per_task, sample_bytes, sample_spec
from carl_ray.errors import UserError

if TYPE_CHECKING:
    import torch


BLOCKS_PER_TASK = 7
"""Blocks of a data node's object store for each task: one in the making, six that wait to be fetched."""

HEADROOM = 1.5
"""Maximum of a group's nodes, for each node that it needs: spot nodes go, and new ones take minutes."""

_MAX_SECONDS = 60.0
_VIDEO_ID = "sizing"


@dataclass(frozen=True)
class Memory:
    """Memory to reserve for a run, in bytes."""

    data_heap: int
    """Of a data node: `memory` in the cluster's file."""
    data_store: int
    """Of a data node: `object_store_memory`; /dev/shm must be larger."""
    train_store: int
    """Of a train node, for each worker: blocks in transfer, and those of the step that is put together."""
    train_heap: int
    """Of a train node, for each worker, besides the process itself: the prefetched steps."""


@dataclass(frozen=True)
class Projection:
    """Time and cost of a run with a number of data nodes."""

    num_nodes: int
    busy: float
    """Share of the time in which the GPUs compute."""
    hours: float
    cost: float
    """In hours of a train node, all nodes but the head together."""
    decoding_share: float
    """Share of the data nodes in the cost."""


@dataclass(frozen=True)
class ClusterPlan:
    """Measured rates of a run, and the nodes and the time that follow from them."""

    video_seconds: float
    """Wall time of a decoding task, for one video."""
    frames_per_video: int
    """Real frames of both views."""
    step_seconds: float
    """Wall time of a step, with `share` videos on each worker at most."""
    batch_size: int
    """B."""
    num_workers: int
    """W."""
    node_cpus: int
    """CPUs of a data node."""
    decode_cpus: float
    """CPUs that a decoding task reserves."""

    @property
    def share(self) -> int:
        """Most videos of a step that fall on one worker."""
        return share(self.batch_size, self.num_workers)

    @property
    def tasks_per_node(self) -> int:
        """Decoding tasks that run on a data node at a time."""
        return math.floor(self.node_cpus / self.decode_cpus)

    @property
    def frames_per_core(self) -> float:
        """Frames per second that a core decodes and augments."""
        return self.frames_per_video / (self.video_seconds * self.decode_cpus)

    @property
    def frames_per_worker(self) -> float:
        """Frames per second that a worker consumes, on average over the workers."""
        return self.batch_size * self.frames_per_video / (self.step_seconds * self.num_workers)

    @property
    def cores_per_worker(self) -> float:
        """Cores that keep one worker busy."""
        return self.frames_per_worker / self.frames_per_core

    @property
    def nodes_needed(self) -> float:
        """Data nodes that keep all workers busy (Little's law), not rounded."""
        return self.batch_size / self.step_seconds * self.video_seconds / self.tasks_per_node

    @property
    def nodes_to_compare(self) -> list[int]:
        """Numbers of data nodes: half of what is needed, that, and with headroom."""
        return sorted({math.ceil(factor * self.nodes_needed) for factor in (0.5, 1, HEADROOM)})

    def bytes_per_second(self, config: Config) -> float:
        """Network traffic of decoded views to one worker, in bytes per second."""
        return self.batch_size * sample_bytes(sample_spec(config)) / (self.step_seconds * self.num_workers)

    def memory(self, config: Config) -> Memory:
        """Memory to reserve on each kind of node, including prefetched data."""
        spec, ahead = sample_spec(config), config.cluster.prefetch_steps
        block, rows = sample_bytes(spec), rows_per_task(spec, self.batch_size, self.num_workers)
        return Memory(
            data_heap=self.tasks_per_node * load_task_bytes(spec),
            data_store=self.tasks_per_node * BLOCKS_PER_TASK * rows * block,
            # Ray prefetches that many blocks, and about as many again while it hands them over.
            train_store=((2 * ahead + 1) * rows + self.share) * block,
            # One step being put together, one being trained on; pinned memory for a GPU comes in powers of two.
            train_heap=(ahead + 2) * 2 ** math.ceil(math.log2(self.share * block)),
        )

    def projection(self, num_nodes: int, num_steps: int, price: float) -> Projection:
        """Time and cost of a run.

        Args:
            num_nodes: Data nodes, at least one.
            num_steps: Steps of the run.
            price: Of a data node for an hour, in prices of a train node of one GPU.
        """
        busy = min(1.0, num_nodes / self.nodes_needed)
        hours = num_steps * self.step_seconds / busy / 3600
        decoding, total = num_nodes * price, self.num_workers + num_nodes * price
        return Projection(num_nodes, busy, hours, hours * total, decoding / total)


def share(batch_size: int, num_workers: int) -> int:
    """Most videos of a step that fall on one worker."""
    return math.ceil(batch_size / num_workers)


def measure_video(
    video: str, num_video_frames: int, config: Config, times: int, on_done: Callable[[float], None]
) -> tuple[list[float], list[Sample]]:
    """Time a decoding task: fetch and decode a video and make its views.

    Args:
        video: Path or URI.
        num_video_frames: Frames of the video.
        config: The run.
        times: Number of repetitions, besides a warm-up.
        on_done: Called with the seconds of each repetition.

    Returns:
        Wall seconds of each repetition, and the views.

    Raises:
        DecodeError: the video cannot be read.
    """
    from carl_ray.data.make_views import make_views

    spec = sample_spec(config)
    samples: list[Sample] = []

    def make(epoch: int) -> None:
        views = make_views(video, _VIDEO_ID, num_video_frames, 1.0, epoch, spec)
        samples.append(Sample(epoch, 0, 0, _VIDEO_ID, None, views))

    with torch_threads(config.cluster.decode_cpus):
        return _timed(make, times, on_done), samples


def measure_step(
    samples: Sequence[Sample],
    config: Config,
    num_videos: int,
    device: torch.device,
    times: int,
    on_done: Callable[[float], None],
) -> list[float]:
    """Time a training step on one worker, with random weights.

    Args:
        samples: Views to train on, used again and again.
        config: The run.
        num_videos: Videos of the step on this worker.
        device: Where it computes.
        times: Number of repetitions, besides a warm-up.
        on_done: Called with the seconds of each repetition.

    Returns:
        Wall seconds of each repetition.

    Raises:
        UserError: the GPU's memory is too small.
    """
    import torch

    from carl_ray.data.batch import collate
    from carl_ray.training.step import TrainingStep

    config = replace(config, objective=config.objective.with_num_classes(2))  # Counted only in a run.
    used = [samples[index % len(samples)] for index in range(num_videos)]
    videos = [replace(one, row=row, video_id=f"{_VIDEO_ID}/{row}") for row, one in enumerate(used)]
    batch = collate(videos, sample_spec(config), device)

    def train(number: int) -> None:
        step.train(batch, number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        with torch_threads(config.cluster.worker_cpus):
            step = TrainingStep(config, device, num_steps=times + 1)
            return _timed(train, times, on_done)
    except torch.OutOfMemoryError:
        raise UserError(
            f"a step of {num_videos} videos, {shown_views(config)} each, does not fit into the "
            "GPU's memory: raise --gpus, or lower training.global_batch_size or model.num_frames"
        ) from None


def shown_views(config: Config) -> str:
    """Number and length of the views of a video, as words."""
    views = config.view_specs
    return " and ".join(f"{v.count} view{'s' * (v.count > 1)} of {v.num_frames} frames" for v in views)


def _timed(action: Callable[[int], None], times: int, on_done: Callable[[float], None]) -> list[float]:
    """Wall seconds of calls with 0, 1, …, without a warm-up unless it took too long."""
    seconds: list[float] = []
    while len(seconds) <= times and sum(seconds) < _MAX_SECONDS:
        began = time.perf_counter()
        action(len(seconds))
        seconds.append(time.perf_counter() - began)
        on_done(seconds[-1])
    return seconds[1:] or seconds


@contextmanager
def torch_threads(cpus: float) -> Iterator[None]:
    """Use as many threads as a task or a worker with so many CPUs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
