"""The Ray Data graph: plan ▶ fetch, decode, two views, augment ▶ one row a video, in the plan's order.

    segments ─ plan rows (one task, endless, lazy) ─ load (CPU nodes, one task a video) ─ streaming_split

Only row numbers exist ahead of time, so a run of any length starts at once and needs no memory for its plan. Each
video is a block of its own: tasks stay small, a retry repeats one video, backpressure acts on single videos.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Dataset, ExecutionOptions, TaskPoolStrategy

from carl_ray.config import Config
from carl_ray.data.coordinator import install_endless_stream_scheduling, limit_retries
from carl_ray.data.guard import BadVideoError, ViewPairReader
from carl_ray.data.memory import frame_shape, load_task_bytes
from carl_ray.data.plan import ABSENT, Plan
from carl_ray.errors import RunError

if TYPE_CHECKING:
    # At run time only where videos are: Ray's coordinators import this module too, and need no torch.
    from carl_ray.data.sample import ViewPair

_SEGMENTS = 256
_MIN_SEGMENT_ROWS = 1024
_FIRST_RETRY_SECONDS = 0.5
_STALLED_SECONDS = 2 * 60 * 60

_reader = ViewPairReader()

_ROW_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("step", pa.int64()),
        ("epoch", pa.int64()),
        ("video_id", pa.string()),  # null: a row without a video
        ("error", pa.string()),  # null: the video was read
        ("frames", pa.large_binary()),  # uint8 (2, T, S, S, 3), or YUV 4:2:0
        ("timestamps", pa.list_(pa.float64())),  # (2, T)
        ("frame_mask", pa.list_(pa.bool_())),  # (2, T)
        ("frame_labels", pa.list_(pa.int64())),  # (2, T)
        ("color", pa.list_(pa.float64())),  # (2, K)
    ]
)


@dataclass(frozen=True)
class StreamRow:
    """One row of the stream, as a trainer receives it."""

    row: int
    step: int
    epoch: int
    video_id: str | None
    error: str | None
    pair: ViewPair | None
    """None where there is no video, or where it could not be read (then `error` says why)."""


def execution_options(config: Config) -> ExecutionOptions:
    """Order as planned, and the nodes that decode. For `ray.train.DataConfig`, which ignores the DataContext's."""
    return ExecutionOptions(preserve_order=True, label_selector=dict(config.cluster.data_node_labels) or None)


def stream_views(
    plan: Plan,
    manifest: ray.ObjectRef,
    config: Config,
    *,
    start_row: int = 0,
    max_workers: int | None = None,
) -> Dataset:
    """The videos of a plan from one row on, as two views each, in order; a lazy dataset of one-row blocks.

    Args:
        plan: Which video when.
        manifest: A table with `STREAM_COLUMNS` in the object store; `plan.num_videos` rows.
        config: The run.
        start_row: First row of the plan to stream.
        max_workers: Consumers of an even split, which may drop one row less than that at the end: as many rows
            without a video are appended. None: those of the run.
    """
    stop_row = plan.num_rows + (max_workers or config.cluster.max_workers) - 1
    total = stop_row - start_row
    num_segments = max(1, min(_SEGMENTS, math.ceil(total / _MIN_SEGMENT_ROWS)))
    segment_rows = math.ceil(total / num_segments)

    # `coordinator.PLANNING` is its name.
    def plan_segment(segments: pa.Table) -> Iterator[pa.Table]:
        for segment in segments.column("item").to_pylist():
            first = start_row + segment * segment_rows
            for planned in plan.rows(first, min(first + segment_rows, stop_row)):
                yield pa.table(
                    {
                        "row": [planned.row],
                        "step": [planned.step],
                        "epoch": [planned.epoch],
                        "video_index": [planned.video_index],
                    }
                )

    def load(planned: pa.Table) -> pa.Table:
        limit_retries(f"row {planned.column('row')[0]} of the plan")
        return pa.concat_tables([_load_row(row, manifest, config) for row in planned.to_pylist()])

    context = DataContext.get_current().copy()
    # One row a block: the generator of the plan stays lazy, and no two videos wait for each other.
    context.target_max_block_size = 1
    context.execution_options = execution_options(config)
    install_endless_stream_scheduling(context)
    # A paused consumer (validation, a long checkpoint) is not a stalled pipeline; hours without a row are.
    context.execution_no_progress_timeout_s = _STALLED_SECONDS
    with DataContext.current(context):
        return (
            # Not `ray.data.range`, whose read tasks want a CPU: Ray Data would keep it for them to the end of the run.
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
                memory=load_task_bytes(config),
                compute=TaskPoolStrategy(size=config.cluster.max_decode_tasks),
            )
        )


def read_rows(table: pa.Table, config: Config) -> list[StreamRow]:
    """The rows of a block; frames are views of the block's memory, not copies."""
    from carl_ray.data.sample import NUM_COLOR_VALUES, ViewPair

    shape = (2, config.model.num_frames, *frame_shape(config))
    rows = []
    for index in range(table.num_rows):
        value = {name: table.column(name)[index] for name in table.column_names if name != "frames"}
        pair = None
        if (frames := _bytes_in_place(table.column("frames"), index)) is not None:
            pair = ViewPair(
                frames=frames.reshape(shape),
                timestamps=np.array(value["timestamps"].as_py()).reshape(shape[:2]),
                frame_mask=np.array(value["frame_mask"].as_py()).reshape(shape[:2]),
                frame_labels=np.array(value["frame_labels"].as_py()).reshape(shape[:2]),
                color=np.array(value["color"].as_py()).reshape(2, NUM_COLOR_VALUES),
            )
        rows.append(
            StreamRow(
                row=value["row"].as_py(),
                step=value["step"].as_py(),
                epoch=value["epoch"].as_py(),
                video_id=value["video_id"].as_py(),
                error=value["error"].as_py(),
                pair=pair,
            )
        )
    return rows


def _bytes_in_place(column: pa.ChunkedArray, index: int) -> np.ndarray | None:
    """The uint8 of one large binary value, in the column's memory; None for null. Arrow's scalars are copies."""
    (value,) = column.slice(index, 1).chunks
    if value.null_count:
        return None
    _, offsets, data = value.buffers()
    first, stop = np.frombuffer(offsets, np.int64)[value.offset : value.offset + 2]
    return np.frombuffer(data, np.uint8)[first:stop]


def _load_row(planned: dict[str, int], manifest: ray.ObjectRef, config: Config) -> pa.Table:
    position = {name: planned[name] for name in ("row", "step", "epoch")}
    if planned["video_index"] == ABSENT:
        return _row_table(position, None, None, None)
    # In shared memory: the table is mapped, not copied, however many videos it has.
    table: pa.Table = ray.get(manifest)
    video = table.slice(planned["video_index"], 1).to_pylist()[0]
    attempt = 0
    while True:
        try:
            pair = _reader.read(
                video["uri"],
                video["video_id"],
                video["num_frames"],
                video["frame_step"],
                planned["epoch"],
                config,
                verified=video["verified"],
                frame_labels=video.get("frame_labels"),
            )
        except BadVideoError as failure:
            return _row_table(position, video["video_id"], str(failure), None)
        except RunError as failure:
            if attempt == config.data.retries:
                # Not the video's fault: an outage must not take videos out of the plan.
                raise RunError(f"{video['video_id']}: {failure}") from None
        else:
            return _row_table(position, video["video_id"], None, pair)
        time.sleep(random.SystemRandom().uniform(0.5, 1.5) * _FIRST_RETRY_SECONDS * 2**attempt)
        attempt += 1


def _row_table(
    position: dict[str, int], video_id: str | None, error: str | None, pair: ViewPair | None
) -> pa.Table:
    values: dict[str, pa.Array] = {name: pa.array([value], pa.int64()) for name, value in position.items()}
    values["video_id"] = pa.array([video_id], pa.string())
    values["error"] = pa.array([error], pa.string())
    if pair is None:
        for name in ("frames", "timestamps", "frame_mask", "frame_labels", "color"):
            values[name] = pa.nulls(1, _ROW_SCHEMA.field(name).type)
    else:
        offsets = pa.py_buffer(np.array([0, pair.frames.nbytes], dtype=np.int64))
        frames = pa.py_buffer(np.ascontiguousarray(pair.frames).reshape(-1))
        values["frames"] = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, frames])
        values["timestamps"] = pa.array([pair.timestamps.ravel()], pa.list_(pa.float64()))
        values["frame_mask"] = pa.array([pair.frame_mask.ravel()], pa.list_(pa.bool_()))
        values["frame_labels"] = pa.array([pair.frame_labels.ravel()], pa.list_(pa.int64()))
        values["color"] = pa.array([pair.color.ravel()], pa.list_(pa.float64()))
    return pa.table(values, schema=_ROW_SCHEMA)
