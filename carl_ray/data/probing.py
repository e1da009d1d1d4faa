"""Probe listed videos on the cluster.

Ray Data distributes the files. Each worker streams a file to a child process, which probes it: a decoder that crashes
or hangs ends the child and not the scan, and its file is rejected with the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO, get_type_hints

import numpy as np
import pyarrow as pa
from pyarrow import fs

from carl_ray import storage
from carl_ray.address import parse
from carl_ray.data.child import MEMORY, Array, BadVideoError, Child, KilledError, Values, open_channel
from carl_ray.data.decode import VideoProbe, probe_video
from carl_ray.data.listing import UNREAD, ListedVideo
from carl_ray.data.parts import EXACT_SECONDS
from carl_ray.errors import RunError
from carl_ray.progress import ProgressLine

PROBING_FAILED = "probing failed"
"""Prefix of the reject reason of a file whose probing raised an unexpected exception."""

# Time limit of a probe: a constant, and a part that grows with the file at paces that no hang has. A working
# decoder is more than ten times as fast, also on a busy machine.
_PATIENCE = 120  # seconds
_BYTES_PER_SECOND = 1_000_000
_PIXELS_PER_SECOND = 5_000_000
_MAX_SECONDS = 7 * 86_400  # the number of pixels comes from the decoder and is not trusted

_MOST_FRAMES = (
    2**26
)  # 600 hours at 30 a second; their times are 512 MiB, which a hostile decoder may make us read
_SAME = ""  # source of a request: the content of the previous one
_CHUNK = 8 << 20  # bytes


def probe_all(
    files: list[ListedVideo], filesystem: fs.FileSystem | None, verify: bool
) -> Iterator[tuple[ListedVideo, dict[str, Any]]]:
    """Yield each file with its outcome: columns of the manifest, or a `reason`."""
    if not files:
        return
    # Lazily: the child processes import this module too, and must start quickly.
    import ray

    from carl_ray.data.coordinator import limit_retries

    def probe(row: dict[str, Any]) -> dict[str, Any]:
        try:
            limit_retries("it, or another file of the same task,")
        except RunError as error:  # Rejected for now: the next scan has smaller tasks for what is left.
            return {"number": row["number"], "outcome": json.dumps({"reason": f"{UNREAD}: {error}"})}
        return _probe_file(row, filesystem=filesystem, verify=verify)

    named = [{"uri": file["uri"], "path": file["path"], "bytes": file["bytes"]} for file in files]
    table = pa.Table.from_pylist([{**row, "number": number} for number, row in enumerate(named)])
    # Few files a task, so that the last tasks do not keep one CPU busy alone; more than one, for its overhead.
    per_task = max(1, min(16, len(files) // (8 * int(ray.cluster_resources().get("CPU", 1)))))
    outcomes = ray.data.from_arrow(table, override_num_blocks=-(-len(files) // per_task)).map(probe)
    progress = ProgressLine("indexed")
    for done, outcome in enumerate(outcomes.iter_rows(), 1):
        progress(done, len(files))
        yield files[outcome["number"]], json.loads(outcome["outcome"])


def _probe_file(row: dict[str, Any], *, filesystem: fs.FileSystem | None, verify: bool) -> dict[str, Any]:
    """Probe a file on a Ray worker; JSON text, since fields differ from row to row."""
    place = parse(row["uri"])

    def attempt() -> dict[str, Any]:
        store = filesystem or storage.resolve(row["uri"])[0]
        # A failed read ends the child, too: each attempt is a new request to a new child.
        if place.byte_offset is None:
            with store.open_input_stream(row["path"]) as file:
                return probe_guarded(file, row["bytes"], verify=verify)
        with store.open_input_file(row["path"]) as shard:
            return probe_guarded(
                shard.get_stream(place.byte_offset, row["bytes"]), row["bytes"], verify=verify
            )

    try:
        outcome = storage.persistently(row["uri"], "read", attempt)
    except Exception as error:  # pyarrow refuses some names of S3 with errors of its own
        outcome = {"reason": f"{UNREAD}: {' '.join(str(error).split())}"}
    return {"number": row["number"], "outcome": json.dumps(outcome)}


_child = Child("from carl_ray.data.probing import answer_probes; answer_probes()", quiet=True)


def probe_guarded(file: BinaryIO, size: int, *, verify: bool) -> dict[str, Any]:
    """Probe an open file in the child: columns of the manifest, or a `reason`.

    Raises:
        OSError: the file cannot be read to its end, or has another size.
    """
    digest = hashlib.blake2b(digest_size=16)

    def chunks() -> Iterator[bytes]:
        left = size
        while chunk := file.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            yield chunk
        if left:
            raise OSError("its size has changed since the folder was listed")

    def probe(source: str | tuple[int, Iterator[bytes]], seconds: float, verify: bool) -> dict[str, Any]:
        fields = get_type_hints(VideoProbe) | {
            "frame_times": Array("<f8", (range(1, _MOST_FRAMES),)),
            "key_frames": Array("<i8", (range(_MOST_FRAMES),)),
        }
        (probed,) = _child.ask(source, {"verify": verify}, fields, seconds=seconds, memory=2 * size + MEMORY)
        if min(probed["num_frames"], probed["width"], probed["height"]) < 1:
            raise BadVideoError(f"the decoder sent no valid answer ({probed})")
        return probed

    try:
        probed = probe((size, chunks()), _PATIENCE + size // _BYTES_PER_SECOND, verify=False)
        if verify or probed["doubtful"]:
            pixels = probed["num_frames"] * probed["width"] * probed["height"]
            seconds = min(_PATIENCE + pixels // _PIXELS_PER_SECOND, _MAX_SECONDS)
            probed = probe(_SAME, seconds, verify=True)
    except (BadVideoError, KilledError) as error:
        return {"reason": str(error)}
    except RunError as error:  # the child stopped or did not start: retry
        raise OSError(str(error)) from None
    if probed["num_frames"] != len(times := probed["frame_times"]):
        return {"reason": f"the decoder sent no valid answer ({len(times)} times)"}
    keys = probed["key_frames"]
    if not (np.diff(keys, prepend=-1, append=len(times)) > 0).all():
        return {"reason": "the decoder sent no valid answer (key frames that the video does not have)"}
    is_even = not probed["fps"] or np.abs(times - np.arange(len(times)) / probed["fps"]).max() < EXACT_SECONDS
    frame_times = None if is_even else times.round(6).tolist()
    probed |= {"frame_times": frame_times, "key_frames": keys.tolist()}
    return {**probed, "content_hash": digest.hexdigest()}


def answer_probes() -> None:
    """Main function of the child: probe the content that is sent, or the previous."""
    content: bytes | None = None

    def probe(source: bytes | str, verify: bool) -> Values:
        nonlocal content
        if isinstance(source, bytes):
            content = source
        if content is None:
            raise RunError("the process that held the file was replaced")
        yield asdict(probe_video(content, verify=verify))

    open_channel("probing")(probe)
