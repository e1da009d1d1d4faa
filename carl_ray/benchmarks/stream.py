"""What Ray Data adds: the stream to one consumer beside a plain torch `DataLoader` over the same function and rows.

Both make the pairs of views of the same rows of a plan, with as many processes as there are CPUs, in order; the
consumer receives and counts them. They take turns, because what else a machine does changes from minute to minute,
and each pair of turns gives a ratio. Rates are of wall time, from the first pair received on.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import pyarrow as pa
import ray
import torch
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from carl_ray.benchmarks.data import decode_limit, one_thread
from carl_ray.benchmarks.table import Table
from carl_ray.benchmarks.videos import Video, kinds, long_enough
from carl_ray.config import Config
from carl_ray.data.memory import pair_bytes
from carl_ray.data.plan import Plan
from carl_ray.data.sample import ViewPair, make_view_pair
from carl_ray.data.stream import read_rows, stream_views
from carl_ray.errors import RunError, UserError
from carl_ray.machine import available_cores
from carl_ray.session import connect

_TURNS = 2
_SECONDS = 20.0
_LIMIT_DRAWS = 4
_PREFETCHED = 2
_SAMPLE_SECONDS = 0.2


@dataclass(frozen=True)
class Turn:
    """What one consumer saw."""

    num_frames: int
    """Frames of views, after the first pair."""
    seconds: float
    """From the first pair to the last."""
    first_seconds: float
    """From asking for the first pair to having it, processes started in between."""

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
class PlanPairs(Dataset[ViewPair]):
    """The pairs of views of a plan's rows, as a map-style data set: row n is made by the process that is asked."""

    plan: Plan
    manifest: pa.Table
    config: Config
    """The run."""

    def __len__(self) -> int:
        return self.plan.num_rows

    def __getitem__(self, row: int) -> ViewPair:
        planned = self.plan.at(row)
        video = self.manifest.slice(planned.video_index, 1).to_pylist()[0]
        return make_view_pair(
            video["uri"],
            video["video_id"],
            video["num_frames"],
            video["frame_step"],
            planned.epoch,
            self.config,
            verified=video["verified"],
        )


def measure(
    videos: Sequence[Video],
    config: Config,
    on_progress: Callable[[str], None],
    *,
    seconds: float = _SECONDS,
    turns: int = _TURNS,
) -> Table:
    """Rates, times to the first pair, and the object store's use.

    Args:
        videos: Those that are shorter than T are left out.
        config: The run.
        on_progress: Called with a line now and then.
        seconds: About how long each turn lasts after its first pair.
        turns: How often both are measured.

    Raises:
        UserError: no video is long enough, one cannot be read, or `RAY_ADDRESS` names a cluster: it would be
            compared with this machine.
        RunError: a pair could not be made, or Ray fails.
    """
    if not ray.is_initialized() and os.environ.get("RAY_ADDRESS"):
        raise UserError("the part stream compares on this machine alone: unset RAY_ADDRESS")
    long, notes = long_enough(videos, config.model.num_frames)
    cores = available_cores()
    on_progress("stream: the decode-only limit, and how long a pair takes")
    limit = decode_limit(long, config, _LIMIT_DRAWS)
    data = plan_pairs(long, config)
    with one_thread():
        begin = time.perf_counter()
        data[0]
        pair_seconds = time.perf_counter() - begin
    num_pairs = 1 + max(cores, round(seconds * cores / pair_seconds))
    # More are in the making when the last one that counts arrives: the end, where processes fall idle, does not count.
    data = replace(data, plan=replace(data.plan, num_rows=num_pairs + 2 * cores))
    use = StoreUse()
    loader_turns, stream_turns = [], []
    for turn in range(turns):
        loader_turns.append(loader_turn(data, num_pairs, cores))
        on_progress(f"stream: turn {turn + 1}, DataLoader {loader_turns[-1].rate:,.0f} frames/s")
        with connect(num_cpus=cores), _watched(use):
            stream_turns.append(stream_turn(data, num_pairs))
        on_progress(f"stream: turn {turn + 1}, Ray Data {stream_turns[-1].rate:,.0f} frames/s")
    ratios = [ours.rate / plain.rate for ours, plain in zip(stream_turns, loader_turns, strict=True)]
    return Table(
        f"stream: {num_pairs} pairs of views of {kinds(long)}, {cores} processes, {turns} turns of each; wall time",
        ("to one consumer", "frames/s", "per core", "of the limit", "of DataLoader", "first pair, s"),
        [
            _row("torch DataLoader", loader_turns, cores, limit, "1.00"),
            _row("Ray Data", stream_turns, cores, limit, f"{statistics.mean(ratios):.2f}"),
        ],
        [
            f"Ray Data of DataLoader, turn by turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}",
            f"the limit: one core decodes and converts {limit:,.0f} frames/s, CPU time, and nothing else",
            "Ray Data's tasks decode in children that may be killed, which the DataLoader's workers do not",
            "first pair: processes started and this package imported, without the start of Ray itself",
            f"object store: {use.peak_bytes / 1e6:,.0f} MB in use at the most, of {use.capacity / 1e6:,.0f}; "
            f"{use.spilled_bytes / 1e6:,.0f} MB spilled",
            f"a pair is {pair_bytes(config) / 1e6:.1f} MB",
            *notes,
        ],
    )


def plan_pairs(videos: Sequence[Video], config: Config) -> PlanPairs:
    """The plan of one epoch and the manifest that both ways read."""
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
    plan = Plan(training.seed, len(videos), training.global_batch_size, len(videos), shuffled=True)
    return PlanPairs(plan, manifest, config)


def data_loader(data: PlanPairs, num_workers: int) -> DataLoader[ViewPair]:
    """The pairs in the plan's order, one by one, as torch hands them over: tensors in shared memory."""
    return DataLoader(
        data,
        batch_size=1,
        collate_fn=_tensors,
        num_workers=num_workers,
        prefetch_factor=_PREFETCHED if num_workers else None,
        # A copy of a process that has Ray's threads would not be safe.
        multiprocessing_context="spawn" if num_workers else None,
    )


def _tensors(pairs: list[ViewPair]) -> dict[str, Tensor]:
    """A batch of one; tensors, because torch copies arrays through a pipe."""
    (pair,) = pairs
    return {name: torch.from_numpy(array) for name, array in vars(pair).items()}


def loader_turn(data: PlanPairs, num_pairs: int, num_workers: int) -> Turn:
    """So many pairs through a `DataLoader` to this process."""

    def counts() -> Generator[int, None, None]:
        for tensors in data_loader(data, num_workers):
            yield int(tensors["frame_mask"].sum())

    return _consumed(counts, num_pairs)


def stream_turn(data: PlanPairs, num_pairs: int) -> Turn:
    """So many pairs through Ray Data to this process, which is connected to a cluster.

    Raises:
        RunError: one could not be made.
    """
    manifest = ray.put(data.manifest)

    def counts() -> Generator[int, None, None]:
        blocks = stream_views(data.plan, manifest, data.config, max_workers=1).iter_batches(
            batch_size=None,
            batch_format="pyarrow",
            prefetch_batches=data.config.cluster.prefetch_steps,
        )
        for block in blocks:
            for row in read_rows(block, data.config):
                if row.pair is None:
                    raise RunError(f"{row.video_id}: {row.error}")
                yield int(row.pair.frame_mask.sum())

    return _consumed(counts, num_pairs)


def _consumed(counts: Callable[[], Generator[int, None, None]], num_pairs: int) -> Turn:
    begin = time.perf_counter()
    with closing(counts()) as arriving:
        next(arriving)
        first = time.perf_counter()
        num_frames = sum(next(arriving) for _ in range(num_pairs - 1))
        turn = Turn(num_frames, time.perf_counter() - first, first - begin)
        # Processes that are stopped in the middle of a pair complain.
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
    """
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    spilled_before = get_memory_info_reply(state).store_stats.spilled_bytes_total
    spilled_earlier = use.spilled_bytes
    ended = threading.Event()

    def sample() -> None:
        while True:
            last = ended.is_set()
            stats = get_memory_info_reply(state).store_stats
            use.peak_bytes = max(use.peak_bytes, stats.object_store_bytes_used)
            use.spilled_bytes = spilled_earlier + stats.spilled_bytes_total - spilled_before
            use.capacity = stats.object_store_bytes_avail
            if last:
                return
            ended.wait(_SAMPLE_SECONDS)

    thread = threading.Thread(target=sample, name="object-store", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
