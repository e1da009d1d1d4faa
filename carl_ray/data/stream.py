"""The Ray Data pipeline: plan ▶ fetch, decode, views, augment ▶ ordered rows.

    segments ─ plan rows (one task, endless, lazy) ─ load (CPU nodes, a task a video) ─ streaming_split

Only row numbers exist ahead of time, so a run of any length starts at once and needs no memory for its plan. Each
video is a task and a block of its own: tasks stay small, a retry repeats one video, backpressure acts on single videos.
Where samples are small (frames of some dozens of pixels, cached features), a task reads several into one block: with
more blocks, it would wait for room with its CPU, which validation waits for.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Dataset, ExecutionOptions, TaskPoolStrategy

from carl_ray.config import Config
from carl_ray.data.coordinator import install_endless_stream_scheduling, limit_retries
from carl_ray.data.features import cached_views
from carl_ray.data.guard import BadVideoError, ViewReader
from carl_ray.data.keypoint_table import read_keypoints
from carl_ray.data.keypoints import KEYPOINTS, video_keypoints
from carl_ray.data.manifest import StreamVideo
from carl_ray.data.plan import ABSENT, Plan
from carl_ray.data.sample import Sample, SampleSpec, load_task_bytes, rows_per_task, sample_spec
from carl_ray.errors import RunError, note, warnings_to
from carl_ray.objectives.base import ViewTensors

_LOGGER = logging.getLogger(__name__)
_SEGMENTS = 256
_MIN_SEGMENT_ROWS = 1024
_FIRST_RETRY_SECONDS = 0.5
_STALLED_SECONDS = 2 * 60 * 60

_reader = ViewReader()


def execution_options(config: Config) -> ExecutionOptions:
    """Options for `ray.train.DataConfig`: the plan's order, on nodes that decode."""
    return ExecutionOptions(preserve_order=True, label_selector=dict(config.cluster.data_node_labels) or None)


def stream_views(
    plan: Plan,
    manifest: ray.ObjectRef,
    config: Config,
    *,
    start_row: int = 0,
    max_workers: int | None = None,
    warn: Callable[[str], object] = note,
) -> Dataset:
    """Stream the rows of a plan in order: a lazy dataset, for `read_samples`.

    Args:
        plan: The order of the videos.
        manifest: A table with `STREAM_COLUMNS` in the object store, and `FEATURE_COLUMNS` where the run reads features;
            `plan.num_videos` rows.
        config: The run.
        start_row: First row of the plan to stream.
        max_workers: Number of consumers. An even split drops up to one block less than that at the end, so as many
            rows without a video are appended. None: `cluster.max_workers`.
        warn: Gets the warnings of the tasks that load videos, in their processes.
    """
    max_workers = max_workers or config.cluster.max_workers
    # Not the config: its objective may be code of the user, which tasks need not import.
    spec = sample_spec(config)
    size = rows_per_task(spec, plan.batch_size, max_workers)
    stop_row = plan.num_rows + (max_workers - 1) * size
    total = stop_row - start_row
    most_segments = max(1, min(_SEGMENTS, math.ceil(total / _MIN_SEGMENT_ROWS)))
    # Nothing is left of a run whose workers restart after its last checkpoint: one empty segment.
    segment_rows = size * max(1, math.ceil(total / most_segments / size))
    num_segments = max(1, math.ceil(total / segment_rows))

    # `coordinator.PLANNING` is the name of this function.
    def plan_segment(segments: pa.Table) -> Iterator[pa.Table]:
        for segment in segments.column("item").to_pylist():
            first = start_row + segment * segment_rows
            for row in range(first, min(first + segment_rows, stop_row), size):
                planned = plan.rows(row, min(row + size, stop_row))
                yield _as_one_row(pa.Table.from_pylist([vars(one) for one in planned]))

    def load(block: pa.Table) -> pa.Table:
        planned = _rows_in(block).to_pylist()
        first, last = planned[0]["row"], planned[-1]["row"]
        limit_retries(f"row {first} of the plan" if first == last else f"rows {first} to {last} of the plan")
        with warnings_to(warn):
            rows = (_load_sample(row, manifest, spec) for row in planned)
            return _as_one_row(pa.concat_tables([sample.to_arrow(spec) for sample in rows]))

    context = DataContext.get_current().copy()
    # A block for each row of Ray Data: the generator of the plan stays lazy, and no task waits for another's videos.
    context.target_max_block_size = 1
    context.execution_options = execution_options(config)
    install_endless_stream_scheduling(context)
    # A paused consumer (validation, a long checkpoint) is not a stalled pipeline; hours without a row are.
    context.execution_no_progress_timeout_s = _STALLED_SECONDS
    with DataContext.current(context):
        return (
            # Not `ray.data.range`: Ray Data would reserve a CPU for its read tasks to the end of the run.
            ray.data.from_items(list(range(num_segments)), override_num_blocks=num_segments)
            .map_batches(
                plan_segment,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=0,
                compute=TaskPoolStrategy(size=1),
            )
            .map_batches(
                load,
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                num_cpus=config.cluster.decode_cpus,
                memory=load_task_bytes(spec),
                compute=TaskPoolStrategy(size=config.cluster.max_decode_tasks),
            )
        )


def read_samples(table: pa.Table, spec: SampleSpec) -> list[Sample]:
    """The samples of a block; their arrays are views of the block's memory, not copies."""
    rows = _rows_in(table)
    return [Sample.from_arrow(rows, index, spec) for index in range(rows.num_rows)]


def _as_one_row(rows: pa.Table) -> pa.Table:
    """A table of one row, whose columns are the lists of other rows' values: Ray Data cannot split it into blocks."""
    return pa.table(
        {
            # `combine_chunks` copies a single chunk, too.
            name: pa.ListArray.from_arrays(
                [0, rows.num_rows], column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            )
            for name, column in zip(rows.column_names, rows.columns, strict=True)
        }
    )


def _rows_in(table: pa.Table) -> pa.Table:
    """The rows that `_as_one_row` took; without a copy."""
    names = table.column_names
    return pa.table(
        {name: pa.chunked_array([chunk.flatten() for chunk in table[name].chunks]) for name in names}
    )


def _load_sample(planned: dict[str, int], manifest: ray.ObjectRef, spec: SampleSpec) -> Sample:
    video_id = error = views = None
    if planned["video_index"] != ABSENT:
        # In shared memory: the table is mapped, not copied, however many videos it has.
        table: pa.Table = ray.get(manifest)
        found = table.slice(planned["video_index"], 1)
        names = [name for name in table.column_names if name != KEYPOINTS]
        video: StreamVideo = found.select(names).to_pylist()[0]
        if KEYPOINTS in table.column_names:
            video["keypoints"] = video_keypoints(found)
        video_id = video["video_id"]
        try:
            views = _read_with_retries(video, planned["epoch"], spec)
        except BadVideoError as failure:
            error = str(failure)
    return Sample(planned["row"], planned["step"], planned["epoch"], video_id, error, views)


def _read_with_retries(
    video: StreamVideo, epoch: int, spec: SampleSpec
) -> dict[str, ViewTensors[np.ndarray]]:
    """The views of a video; retry `data.retries` times what is not its fault.

    Raises:
        BadVideoError: it cannot be read.
        RunError: its storage or its process fails: an outage must not take videos out of the plan.
    """
    attempt = 0
    while True:
        try:
            if (part := video.get("keypoints_part")) is not None:
                video["keypoints"] = read_keypoints(part, video["keypoints_group"])
            if spec.data.features is not None:
                return cached_views(video, epoch, spec)
            return _reader.read(video, epoch, spec)
        except RunError as error:
            if attempt == spec.data.retries:
                raise RunError(f"{video['video_id']}: {error}") from None
            _LOGGER.warning("%s: %s; trying again", video["video_id"], error)
        time.sleep(random.SystemRandom().uniform(0.5, 1.5) * _FIRST_RETRY_SECONDS * 2**attempt)
        attempt += 1
