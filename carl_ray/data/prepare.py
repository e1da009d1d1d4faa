"""Small copies of the videos of a manifest, which a run reads several times as fast: `carl-ray index --prepare`.

    row of the manifest ─ decode every frame ▶ short side 256 ▶ H.264 for fast decoding ▶ FOLDER/….mp4
                        ─ the same row with the copy's URI ▶ FOLDER/manifest.parquet

A copy has the same number of frames at the same times. Ids, labels and `content_hash` stay those of the original, so
caches and embeddings still match. Ray Data distributes the videos; a child process decodes and encodes each.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain, groupby
from typing import Any

import av
import numpy as np
import pyarrow as pa
from jaxtyping import Float64
from pyarrow import fs

from carl_ray import storage
from carl_ray.data.child import (
    MEMORY,
    Array,
    BadVideoError,
    Child,
    KilledError,
    Values,
    keep_memory,
    open_channel,
)
from carl_ray.data.decode import DecodeError, iterate_frames, probe_video
from carl_ray.data.manifest import REJECTS_SCHEMA, SCHEMA, read_manifest, rejects_uri, write_table
from carl_ray.data.video_file import scaled_size
from carl_ray.errors import RunError, UserError
from carl_ray.progress import ProgressLine

SHORT_SIDE = 256
"""Pixels of the shorter side of a copy; a smaller video keeps its size."""

_CHUNK_FRAMES = 16
_MOST_TASKS = 10_000
_TICKS = 90_000  # a second
_SAME_SECONDS = 0.001
# One thread: a task has one CPU. No B-frames: packets come in the order of their times, from 0 on.
_OPTIONS = {"preset": "veryfast", "tune": "fastdecode", "crf": "18", "g": "60", "bf": "0", "threads": "1"}
_PATIENCE = 600  # seconds, and the slowest pace that is no hang
_PIXELS_PER_SECOND = 1_000_000
_MOST_BYTES = 1 << 18  # of a frame of a copy; three copies of the file are in memory for a moment
_USUAL_BYTES = 1 << 12  # real clips take 0.9 to 2.6 KB
_TASK_BYTES = 480 << 20  # two interpreters and a chunk of frames
_SHORT_BITS = 15  # videos below 32,768 frames have one reservation


def prepare_videos(manifest: pa.Table, folder: str) -> tuple[pa.Table, pa.Table, str]:
    """Copy the videos of a manifest; return the manifest of the copies, the rejects, and the URI of the first.

    Copies that are there already are kept, so an interrupted call goes on. Ray must have been started.

    Args:
        manifest: As `carl_ray.data.scan.index_folder` returns it.
        folder: Path or URI of the folder of the copies, which gets `manifest.parquet` and its rejects, too.

    Raises:
        UserError: the folder has a manifest of copies of other videos.
        RunError: the storage refuses or fails.
    """
    # Lazily: the child processes import this module too, and must start quickly.
    from carl_ray.data.coordinator import limit_retries

    folder = storage.absolute(folder)
    out = storage.join(folder, "manifest.parquet")
    if storage.exists(out):
        known = set(read_manifest(out, ["video_id"], check=False).column("video_id").to_pylist())
        if known.isdisjoint(manifest.column("video_id").to_pylist()):
            raise UserError(f"{storage.public_uri(out)}: copies of other videos; name another folder")
    columns = ["video_id", "uri", "content_hash", "num_frames", "fps", "frame_times", "width", "height"]

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        try:
            limit_retries("it, or another video of the same task,")
            found = _prepared(row, folder)
        except RunError as error:  # The next call tries again.
            found = {"reason": f"not copied: {error}"}
        return {"number": row["number"], "outcome": json.dumps(found)}

    table = manifest.select(columns).append_column("number", pa.array(range(len(manifest))))
    copies: dict[int, dict[str, Any]] = {}
    reasons: dict[int, str] = {}
    progress = ProgressLine("prepared")
    for done, outcome in enumerate(_mapped(table, prepare), 1):
        found = json.loads(outcome["outcome"])
        if "reason" in found:
            reasons[outcome["number"]] = found["reason"]
        else:
            copies[outcome["number"]] = found
        progress(done, len(table))
    kept = sorted(copies)
    prepared = manifest.take(pa.array(kept, pa.int64()))
    for name in copies[kept[0]] if kept else ():
        field = SCHEMA.field(name)
        values = pa.array([copies[number][name] for number in kept], field.type)
        prepared = prepared.set_column(prepared.schema.get_field_index(name), field, values)
    rejected = manifest.take(pa.array(sorted(reasons), pa.int64())).select(["uri", "bytes", "modified_ns"])
    rejected = rejected.append_column(
        "reason", pa.array([reasons[number] for number in sorted(reasons)], pa.string())
    )
    rejected = rejected.cast(REJECTS_SCHEMA)
    write_table(rejected, rejects_uri(out))
    write_table(prepared, out)
    return prepared, rejected, out


def _mapped(
    table: pa.Table, function: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield what Ray tasks make of the rows, the longest videos first.

    All tasks of a data set reserve the same memory, so videos of another order of length are another data set.
    """
    import ray

    from carl_ray.session import largest_memory

    frames = table.column("num_frames").to_pylist()
    room = largest_memory()
    by_length = sorted(range(len(table)), key=lambda row: -frames[row])
    for _, rows in groupby(by_length, lambda row: max(_SHORT_BITS, frames[row].bit_length())):
        alike = table.take(pa.array(rows))
        memory = min(_TASK_BYTES + 3 * _USUAL_BYTES * alike.column("num_frames")[0].as_py(), room)
        blocks = min(len(alike), _MOST_TASKS)
        yield from (
            ray.data.from_arrow(alike, override_num_blocks=blocks).map(function, memory=memory).iter_rows()
        )


_child = Child("from carl_ray.data.prepare import answer_copies; answer_copies()", quiet=True)


def _prepared(row: dict[str, Any], folder: str) -> dict[str, Any]:
    """Columns of the copy of a video, which is made unless it is there; or a `reason`, on a Ray worker."""
    of_video = [row["video_id"], row["uri"], row["content_hash"], row["num_frames"]]
    key = json.dumps([*of_video, SHORT_SIDE, _OPTIONS])
    uri = storage.join(folder, f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.mp4")
    size = _size(uri)
    if size is None:
        times = row["frame_times"]
        if times is None:
            times = (np.arange(row["num_frames"]) / (row["fps"] or 1)).tolist()
        seconds = _PATIENCE + row["num_frames"] * row["width"] * row["height"] // _PIXELS_PER_SECOND
        memory = MEMORY + 3 * _MOST_BYTES * row["num_frames"]
        expected = {"content": Array("|u1", (range(1, memory),))}
        arguments = {"times": times, "short_side": min(row["width"], row["height"], SHORT_SIDE)}
        try:
            (made,) = _child.ask(row["uri"], arguments, expected, seconds=seconds, memory=memory)
        except (BadVideoError, KilledError) as error:
            return {"reason": str(error)}
        storage.write_bytes(uri, made["content"].tobytes())
        size = len(made["content"])
    width, height = _copy_size(row["width"], row["height"])
    found = {
        "uri": storage.public_uri(uri),
        "bytes": size,
        "modified_ns": None,
        "codec": "h264",
        "rotation": 0,
        "verified": True,
    }
    return found | {"width": width, "height": height}


def _size(uri: str) -> int | None:
    """Bytes of a file; None where there is none."""
    filesystem, path = storage.resolve(uri)
    try:
        info = storage.persistently(uri, "look at", lambda: filesystem.get_file_info(path))
    except OSError as error:
        raise storage.storage_error(error, uri, "look at") from None
    return info.size if info.type == fs.FileType.File else None


def _copy_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a copy, which H.264 wants even."""
    scaled = scaled_size(width, height, min(width, height, SHORT_SIDE))
    return scaled[0] + scaled[0] % 2, scaled[1] + scaled[1] % 2


def answer_copies() -> None:
    """Main function of the child: the content of the copy of a video."""
    serve = open_channel("preparing")
    keep_memory()

    def copies(source: bytes | str, times: list[float], short_side: int) -> Values:
        yield {"content": np.frombuffer(encode_copy(source, np.array(times), short_side), np.uint8)}

    serve(copies)


def encode_copy(source: bytes | str, times: Float64[np.ndarray, " frames"], short_side: int) -> bytes:
    """The content of the copy of a video.

    Args:
        source: The content of a video file, or its path or URI.
        times: Seconds from the first frame to each, as in the manifest.
        short_side: Pixels of the shorter side.

    Raises:
        DecodeError: another number of frames decodes, or the copy has not the frames or times of the video.
    """
    counts = np.arange(len(times))
    ticks = np.maximum.accumulate(np.rint(times * _TICKS).astype(np.int64) - counts) + counts  # ascending
    chunks = iterate_frames(source, len(times), chunk_frames=_CHUNK_FRAMES, short_side=short_side)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=30, options=_OPTIONS
        )  # nominal: each frame has its time
        stream.codec_context.time_base = Fraction(1, _TICKS)
        stream.pix_fmt = "yuv420p"
        for pixels, tick in zip(chain.from_iterable(chunks), ticks.tolist(), strict=True):
            # The last row or column once more where H.264 wants an even number.
            height, width = pixels.shape[:2]
            even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            if not stream.codec_context.is_open:
                stream.width, stream.height = frame.width, frame.height
            frame.pts, frame.time_base = tick, Fraction(1, _TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    content = buffer.getvalue()
    probe = probe_video(content, verify=True)
    same = probe.num_frames == len(times)
    if not same or np.abs(probe.frame_times - (ticks - ticks[0]) / _TICKS).max() > _SAME_SECONDS:
        raise DecodeError(
            f"its copy has {probe.num_frames} frames or other times than its {len(times)} frames"
        )
    return content
