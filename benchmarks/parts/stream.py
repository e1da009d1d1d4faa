"""What Ray Data adds: the stream to one consumer beside a plain torch `DataLoader` over the same function and rows.

Both make the pairs of views of the same rows of a plan, with as many processes as there are CPUs, in order; the
consumer, which is one worker of a run, makes them the batches of the steps. They take turns, because what else a
machine does changes from minute to minute, and each pair of turns gives a ratio. Rates are of wall time, once as many
pairs have come as were in the making while processes still started.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import torch
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.parts.data import limit_seconds, make_draw, one_thread
from benchmarks.parts.table import Table
from benchmarks.parts.videos import Video, kinds, long_enough
from carl_ray.config import Config
from carl_ray.data.batch import collate
from carl_ray.data.child import keep_memory
from carl_ray.data.make_views import make_views
from carl_ray.data.plan import VALIDATION_EPOCH, Plan
from carl_ray.data.sample import Sample, arrays_of, rows_per_task, sample_bytes, sample_spec, views_of
from carl_ray.data.stream import read_samples, stream_views
from carl_ray.errors import RunError, UserError
from carl_ray.machine import available_cores
from carl_ray.objectives.base import Batch
from carl_ray.objectives.views import CROPS
from carl_ray.session import connect
from carl_ray.training.reader import rows_by_step

_TURNS = 4
_SECONDS = 12.0
_PREFETCHED = 2
_SAMPLE_SECONDS = 0.2


@dataclass(frozen=True)
class Turn:
    """What one consumer saw."""

    num_frames: int
    """Frames of views in the batches that count."""
    seconds: float
    """From the last batch before these to the last of them."""
    first_seconds: float
    """From asking for the first batch to having it, processes started in between."""

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.num_frames / self.seconds


@dataclass
class StoreUse:
    """Of Ray's object store, on all nodes, while it was watched."""

    peak_bytes: int = 0
    """Most bytes in use at a time."""
    spilled_bytes: int = 0
    """Written to disk for want of room."""
    capacity: int = 0
    """Bytes that it may hold."""


@dataclass(frozen=True)
class PlanPairs(Dataset[dict[str, np.ndarray]]):
    """The pairs of views of a plan's rows, as a map-style data set: row n is made by the process that is asked."""

    plan: Plan
    manifest: pa.Table
    config: Config
    """The run."""

    def __len__(self) -> int:
        return self.plan.num_rows

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        planned = self.plan.at(row)
        video = self.manifest.slice(planned.video_index, 1).to_pylist()[0]
        views = make_views(
            video["uri"],
            video["video_id"],
            video["num_frames"],
            video["frame_step"],
            planned.epoch,
            sample_spec(self.config),
            verified=video["verified"],
        )
        return arrays_of(views)


def measure(
    videos: Sequence[Video],
    config: Config,
    on_progress: Callable[[str], None],
    *,
    seconds: float = _SECONDS,
    turns: int = _TURNS,
) -> Table:
    """Rates, times to the first batch, and the object store's use.

    Args:
        videos: Those that are shorter than T are left out.
        config: The run.
        on_progress: Called with a line now and then.
        seconds: About how long the part of each turn lasts that counts.
        turns: How often both are measured.

    Raises:
        UserError: no video is long enough, one cannot be read, or `RAY_ADDRESS` names a cluster: it would be
            compared with this machine.
        RunError: a pair could not be made, Ray fails, or its object store could not be watched.
    """
    if not ray.is_initialized() and os.environ.get("RAY_ADDRESS", "") not in ("", "local"):
        raise UserError("the part stream compares on this machine alone: unset RAY_ADDRESS")
    long, notes = long_enough(videos, config.model.num_frames)
    cores = available_cores()
    on_progress("stream: the decode-only limit, and how long a pair takes")
    draws = [_draw(video, config) for video in long]
    pair_seconds = statistics.mean(draw.pair_seconds for draw in draws)
    batch_size = config.training.global_batch_size
    in_making = cores * rows_per_task(sample_spec(config), batch_size, 1)
    num_warm = math.ceil((1 + 3 * in_making) / batch_size)
    num_batches = math.ceil(max(cores, seconds * cores / pair_seconds) / batch_size)
    # More are in the making when the last one that counts arrives: the end, where processes fall idle, does not count.
    num_rows = (num_warm + num_batches + math.ceil(2 * in_making / batch_size)) * batch_size
    data = plan_pairs(long, config, num_rows)
    counted = [
        draws[row.video_index]
        for row in data.plan.rows(num_warm * batch_size, (num_warm + num_batches) * batch_size)
    ]
    limit = sum(draw.num_frames for draw in counted) / sum(draw.limit_seconds for draw in counted)
    use = StoreUse()
    loader_turns, stream_turns = [], []
    for turn in range(turns):
        loader_turns.append(_consumed(lambda: loader_rows(data, cores), data, num_warm, num_batches))
        on_progress(f"stream: turn {turn + 1}, DataLoader {loader_turns[-1].rate:,.0f} frames/s")
        with connect(num_cpus=cores), _watched(use):
            stream_turns.append(_consumed(lambda: stream_rows(data), data, num_warm, num_batches))
        on_progress(f"stream: turn {turn + 1}, Ray Data {stream_turns[-1].rate:,.0f} frames/s")
    ratios = [ours.rate / plain.rate for ours, plain in zip(stream_turns, loader_turns, strict=True)]
    return Table(
        f"stream: {num_batches} batches of {batch_size} pairs of views of {kinds(long)}, {cores} processes, {turns} "
        "turns of each; wall time",
        ("to one consumer", "frames/s", "per core", "of the limit", "of DataLoader", "first batch, s"),
        [
            _row("torch DataLoader", loader_turns, cores, limit, "1.00"),
            _row("Ray Data", stream_turns, cores, limit, f"{statistics.mean(ratios):.2f}"),
        ],
        [
            f"Ray Data of DataLoader, turn by turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}",
            f"the limit: one process decodes and converts {limit:,.0f} frames/s of the same pairs, in CPU time, and "
            "nothing else; the rates are of wall time and of all cores, which the consumer uses too",
            "Ray Data's tasks decode in children that may be killed, which the DataLoader's workers do not",
            f"not counted: the first {num_warm * batch_size} pairs, made while processes started",
            "first batch: processes started and this package imported, without the start of Ray itself",
            f"object store: {use.peak_bytes / 1e6:,.0f} MB in use at the most, of {use.capacity / 1e6:,.0f}; "
            f"{use.spilled_bytes / 1e6:,.0f} MB spilled",
            f"a pair is {sample_bytes(sample_spec(config)) / 1e6:.1f} MB",
            *notes,
        ],
    )


@dataclass(frozen=True)
class _Draw:
    """What a pair of views of a video takes on one core."""

    num_frames: int
    limit_seconds: float
    """Of CPU, for decoding and converting alone."""
    pair_seconds: float
    """Of wall time, for the whole pair."""


def _draw(video: Video, config: Config) -> _Draw:
    draw = make_draw(video, VALIDATION_EPOCH, config)
    with one_thread():
        begin = time.perf_counter()
        plan_pairs([video], config, 1)[0]
        pair_seconds = time.perf_counter() - begin
    return _Draw(draw.num_frames, limit_seconds(draw, config), pair_seconds)


def plan_pairs(videos: Sequence[Video], config: Config, num_rows: int) -> PlanPairs:
    """The plan and the manifest that both ways read: the videos over and over, each with the same draw every time."""
    manifest = pa.table(
        {
            "video_id": [str(video.path) for video in videos],
            "uri": [str(video.path) for video in videos],
            "num_frames": [video.num_frames for video in videos],
            "verified": [True] * len(videos),
            "frame_step": [1.0] * len(videos),
        }
    )
    training = config.training
    plan = Plan(training.seed, len(videos), training.global_batch_size, num_rows, shuffled=False)
    return PlanPairs(plan, manifest, config)


def data_loader(data: PlanPairs, num_workers: int) -> DataLoader[dict[str, np.ndarray]]:
    """The pairs in the plan's order, one by one, as torch hands them over: tensors in shared memory."""
    return DataLoader(
        data,
        batch_size=1,
        collate_fn=_tensors,
        num_workers=num_workers,
        prefetch_factor=_PREFETCHED if num_workers else None,
        # A copy of a process that has Ray's threads would not be safe.
        multiprocessing_context="spawn" if num_workers else None,
        # As the processes do that decode for the stream.
        worker_init_fn=_keep_memory,
    )


def _keep_memory(worker: int) -> None:
    keep_memory()


def _tensors(pairs: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """A batch of one; tensors, because torch copies arrays through a pipe."""
    (pair,) = pairs
    return {name: torch.from_numpy(array) for name, array in pair.items()}


def loader_rows(data: PlanPairs, num_workers: int) -> Iterator[Sample]:
    """The plan's rows through a `DataLoader` to this process."""
    video_ids = data.manifest.column("video_id")
    for row, tensors in enumerate(data_loader(data, num_workers)):
        planned = data.plan.at(row)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        video_id, views = video_ids[planned.video_index].as_py(), views_of(arrays, sample_spec(data.config))
        yield Sample(row, planned.step, planned.epoch, video_id, None, views)


def stream_rows(data: PlanPairs) -> Iterator[Sample]:
    """The plan's rows through Ray Data to this process, which is connected to a cluster, as a run's only worker."""
    dataset = stream_views(data.plan, ray.put(data.manifest), data.config, max_workers=1)
    # What Ray Train's `get_dataset_shard` returns.
    (shard,) = dataset.streaming_split(1, equal=True)
    for table in shard.iter_batches(
        batch_size=None,  # type: ignore[arg-type]  # Ray documents None: whole blocks
        batch_format="pyarrow",
        prefetch_batches=data.config.cluster.prefetch_steps,
    ):
        yield from read_samples(table, sample_spec(data.config))


def batches(rows: Iterator[Sample], data: PlanPairs) -> Generator[Batch, None, None]:
    """The batch of every step, as training makes it; then `rows` is at its end.

    Raises:
        RunError: a pair could not be made.
    """
    plan, spec = data.plan, sample_spec(data.config)
    for samples in rows_by_step(rows, lambda row: row.step, 0, plan.num_steps, plan.rows_of_step):
        for sample in samples:
            if sample.views is None:
                raise RunError(f"{sample.video_id}: {sample.error}")
        yield collate(samples, spec)
    # Processes that are stopped in the middle of a pair complain.
    for _ in rows:
        pass


def _consumed(
    start: Callable[[], Iterator[Sample]], data: PlanPairs, num_warm: int, num_batches: int
) -> Turn:
    """Times so many batches after the first `num_warm`, at least one, and takes the rest."""
    begin = time.perf_counter()
    with closing(batches(start(), data)) as arriving:
        next(arriving)
        first = time.perf_counter()
        for _ in range(num_warm - 1):
            next(arriving)
        warm = time.perf_counter()
        num_frames = sum(int(next(arriving).views[CROPS].mask.sum()) for _ in range(num_batches))
        turn = Turn(num_frames, time.perf_counter() - warm, first - begin)
        for _ in arriving:
            pass
    return turn


def _row(name: str, turns: Sequence[Turn], cores: int, limit: float, ratio: str) -> tuple[str, ...]:
    rate = statistics.mean(turn.rate for turn in turns)
    first = statistics.mean(turn.first_seconds for turn in turns)
    return (
        name,
        f"{rate:,.0f}",
        f"{rate / cores:,.0f}",
        f"{rate / cores / limit:.2f}",
        ratio,
        f"{first:.1f}",
    )


@contextmanager
def _watched(use: StoreUse) -> Iterator[None]:
    """Samples the object store from a thread.

    Ray has no public way to ask for this from a process; `ray memory --stats-only` and `Dataset.stats` ask the same
    function.

    Raises:
        RunError: a sample failed.
    """
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    spilled_before = get_memory_info_reply(state).store_stats.spilled_bytes_total
    spilled_earlier = use.spilled_bytes
    ended = threading.Event()
    failures: list[Exception] = []

    def sample() -> None:
        try:
            while True:
                last = ended.is_set()
                stats = get_memory_info_reply(state).store_stats
                use.peak_bytes = max(use.peak_bytes, stats.object_store_bytes_used)
                use.spilled_bytes = spilled_earlier + stats.spilled_bytes_total - spilled_before
                use.capacity = stats.object_store_bytes_avail
                if last:
                    return
                ended.wait(_SAMPLE_SECONDS)
        # Whatever it is: without the samples the table would say that nothing was spilled.
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=sample, name="object-store", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise RunError(f"the object store could not be watched: {failures[0]}") from failures[0]
