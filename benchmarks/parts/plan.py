"""What the plan and the manifest of a large data set cost: seconds, bytes, memory. Free of Ray.

The manifest is synthetic, with the columns that a run reads, ids and URIs as long and as little compressible as
Kinetics' are. Two new processes work on it, so that the memory of one part is not taken for that of the other: one
makes and writes it, as `python -m carl_ray.index` ends, the other reads it and walks the plan, as a run begins.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.parts.table import Table
from carl_ray.data.manifest import SCHEMA, STREAM_COLUMNS, read_manifest, videos_digest, write_table
from carl_ray.data.plan import training_plan
from carl_ray.machine import machine_name

_ID_CHARACTERS = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8)
_NUM_CLASSES = 400
_CHUNK_ROWS = 1_000_000
_VALIDATION_SHARE = 0.05
_EPOCHS = 10
_BATCH_SIZE = 4
_WALKED_ROWS = 100_000

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Written:
    """Making and writing a manifest."""

    make_seconds: float
    table_bytes: int
    write_seconds: float
    file_bytes: int
    peak_growth: int
    """Bytes by which the process grew beyond what it had before."""


@dataclass(frozen=True)
class Read:
    """Reading it, and the plan of a run on its training videos."""

    num_videos: int
    read_seconds: float
    table_bytes: int
    peak_growth: int
    """Bytes, until the table was read."""
    digest_seconds: float
    first_row_seconds: float
    later_row_seconds: float
    plan_bytes: int
    """Of the order of an epoch; that of the epoch before is kept too."""
    row_seconds: float
    """One row of the plan after the other."""
    lookup_seconds: float
    """One video of the table, at a random place."""


def measure(num_videos: int, on_progress: Callable[[str], None]) -> Table:
    """Cost of a manifest of so many videos, and of the plan of a run of ten epochs on it.

    Args:
        num_videos: Rows of the manifest; ten million take a few minutes and less than 12 GiB.
        on_progress: Called with a line before each part.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "manifest.parquet")
        on_progress(f"a manifest of {num_videos:,} videos")
        written = _apart(write_synthetic, num_videos, path)
        on_progress("reading it, and the plan of a run on it")
        read = _apart(read_and_plan, path)
    rows = [
        ("make the table", _seconds(written.make_seconds), _mebibytes(written.table_bytes)),
        ("write it as Parquet", _seconds(written.write_seconds), _mebibytes(written.file_bytes)),
        ("memory for both, at most", "", _mebibytes(written.peak_growth)),
        ("read the columns of a run, split train", _seconds(read.read_seconds), _mebibytes(read.table_bytes)),
        ("memory for that, at most", "", _mebibytes(read.peak_growth)),
        ("digest of the videos", _seconds(read.digest_seconds), ""),
        ("plan, first row", _seconds(read.first_row_seconds), _mebibytes(read.plan_bytes)),
        ("a row of a later epoch", _seconds(read.later_row_seconds), _mebibytes(read.plan_bytes)),
        ("each row after it", _microseconds(read.row_seconds), ""),
        ("look a video up", _microseconds(read.lookup_seconds), ""),
    ]
    notes = [
        f"the table that was read holds {read.num_videos:,} videos, {read.table_bytes / read.num_videos:.0f} bytes "
        "each: that much object store on every node that decodes",
        "the plan keeps the order of one epoch, and of the one before",
    ]
    title = f"plan and manifest: {num_videos:,} videos, {machine_name(use_gpu=False)}"
    return Table(title, ("stage", "time", "MiB"), rows, notes)


def synthetic_manifest(num_videos: int) -> pa.Table:
    """A manifest with the columns that a run reads, and no more; one video of twenty is for validation."""
    rng = np.random.default_rng(0)
    chunks = []
    for start in range(0, num_videos, _CHUNK_ROWS):
        count = min(_CHUNK_ROWS, num_videos - start)
        names = rng.choice(_ID_CHARACTERS, (count, 11)).view("S11")[:, 0]
        start_seconds = pa.array(rng.integers(0, 1_000_000, count)).cast(pa.string())
        # Class and name within it, as Kinetics' folders.
        classes = pa.array(np.char.mod("class-%03d-of-the-actions", np.arange(_NUM_CLASSES)))
        ids = pc.binary_join_element_wise(
            classes.take(pa.array(rng.integers(0, _NUM_CLASSES, count))),
            pc.binary_join_element_wise(
                pa.array(names).cast(pa.string()), pc.utf8_lpad(start_seconds, 6, "0"), "_"
            ),
            "/",
        )
        ids = pc.binary_join_element_wise(ids, "mp4", ".")
        columns = {
            "video_id": ids,
            "uri": pc.binary_join_element_wise("s3://bucket-of-videos/kinetics400/train", ids, "/"),
            "num_frames": pa.array(rng.integers(60, 301, count)),
            "verified": pa.array(np.ones(count, bool)),
            "frame_step": pa.array(np.ones(count)),
            "split": pc.if_else(
                pa.array(rng.random(count) < _VALIDATION_SHARE),
                pa.scalar("validation"),
                pa.scalar("train"),
            ),
        }
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        chunks.append(pa.table(columns).cast(schema))
    return pa.concat_tables(chunks)


def write_synthetic(num_videos: int, path: str) -> Written:
    """Makes a manifest and writes it; in a process of its own the memory means something."""
    before = _peak_bytes()
    begin = time.perf_counter()
    table = synthetic_manifest(num_videos)
    made = time.perf_counter()
    write_table(table, path)
    done = time.perf_counter()
    size = Path(path).stat().st_size
    return Written(made - begin, table.nbytes, done - made, size, _peak_bytes() - before)


def read_and_plan(path: str) -> Read:
    """What a run does with its manifest before it trains; in a process of its own the memory means something."""
    before = _peak_bytes()
    begin = time.perf_counter()
    table = read_manifest(path, STREAM_COLUMNS, split="train")
    read_seconds = time.perf_counter() - begin
    peak_growth = _peak_bytes() - before
    begin = time.perf_counter()
    videos_digest(table)
    digest_seconds = time.perf_counter() - begin

    begin = time.perf_counter()
    plan = training_plan(0, table.num_rows, _BATCH_SIZE, _EPOCHS)
    plan.at(0)
    first_row_seconds = time.perf_counter() - begin
    rng = np.random.default_rng(1)
    place = int(rng.integers(plan.num_videos, plan.num_rows))
    begin = time.perf_counter()
    plan.at(place)
    later_row_seconds = time.perf_counter() - begin
    # From the start of that epoch, whose order is there.
    start = place // plan.num_videos * plan.num_videos
    walked = min(_WALKED_ROWS, plan.num_videos)
    begin = time.perf_counter()
    for _ in plan.rows(start, start + walked):
        pass
    row_seconds = (time.perf_counter() - begin) / walked
    places = rng.integers(0, table.num_rows, 1000).tolist()
    begin = time.perf_counter()
    for at in places:
        table.slice(at, 1).to_pylist()
    lookup_seconds = (time.perf_counter() - begin) / len(places)
    return Read(
        num_videos=table.num_rows,
        read_seconds=read_seconds,
        table_bytes=table.nbytes,
        peak_growth=peak_growth,
        digest_seconds=digest_seconds,
        first_row_seconds=first_row_seconds,
        later_row_seconds=later_row_seconds,
        plan_bytes=np.dtype(np.int64).itemsize * plan.num_videos,
        row_seconds=row_seconds,
        lookup_seconds=lookup_seconds,
    )


def _apart(function: Callable[..., _Result], *arguments: object) -> _Result:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _peak_bytes() -> int:
    """The most memory that this process had, in a new process its own.

    Linux's `ru_maxrss` of a new process begins with the peak of the one that started it; its high water mark does not.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    # KiB but for macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _seconds(seconds: float) -> str:
    return f"{seconds:,.2f} s"


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f} us"


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f}"
