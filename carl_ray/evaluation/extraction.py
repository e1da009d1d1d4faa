"""Checkpoint and manifest become embeddings, on a Ray cluster: an actor pool over whole videos.

    where videos are (one task, lazy) ─ embed (actor pool, GPUs or CPUs) ─▶ driver ─ Parquet parts

URIs go out and embeddings come back: frames never leave the actor that decodes them. The driver
writes a part every few minutes, so whatever ends a run, the next one does only what is missing. Videos that could
not be embedded are listed beside the parts, in bad_videos.jsonl.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy

from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.child import BadVideoError
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embeddings import (
    CropMode,
    EmbeddedVideo,
    Origin,
    Precision,
    missing_videos,
    origin_of,
    write_part,
)
from carl_ray.evaluation.inference import VideoEmbedder, untrained_encoder
from carl_ray.lease import Lease, hold
from carl_ray.model.encoder import FrameLevelVideoEncoder
from carl_ray.training.checkpoint import checkpoint_at, load_encoder
from carl_ray.training.run_log import BAD_VIDEOS, read_log

_PART_BYTES = 64 * 2**20
_PART_SECONDS = 300.0
_SECONDS_BETWEEN_LINES = 10.0
_FIRST_RETRY_SECONDS = 0.5
_MAX_TASK_RETRIES = 3
"""How often videos are repeated whose actor or node died. Ray Data itself has no end, and no option for one."""
_ACTOR_BYTES = 3 * 2**30
"""Enough for torch, two ResNet-50 encoders, and a few chunks of frames (2.3 GiB were measured), one video decoded."""
_DECODER_BYTES = 2**28
"""For each video more that is decoded side by side (some 200 MiB were measured at 1280 x 720)."""


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings:
    """How embeddings are computed and written."""

    num_workers: int
    """Actors."""
    cpus_per_worker: int = 1
    """CPUs reserved for each, and videos that it decodes side by side."""
    use_gpu: bool = False
    """One GPU for each actor."""
    bf16: bool = False
    """Matrix products in bfloat16."""
    precision: Precision = "float16"
    """What the files hold."""
    view: CropMode = "resized"
    untrained: bool = True
    """Also embed with the encoder as it was before its training."""


@dataclass
class Extraction:
    """What came of a call of `extract_embeddings`."""

    num_present: int
    """Videos whose embeddings were there already."""
    num_embedded: int = 0
    num_frames: int = 0
    """Of the videos embedded now."""
    bad_videos: list[tuple[str, str]] = field(default_factory=list)
    """(video id, reason) of those that could not be embedded."""
    seconds: float = 0.0


def room_for_workers(cpus_per_worker: int, use_gpu: bool) -> int:
    """How many actors the cluster that Ray is connected to has room for now, at least 1."""
    resources = ray.cluster_resources()
    room = [
        resources.get("CPU", 0) // cpus_per_worker,
        resources.get("memory", 0) // _wanted_bytes(cpus_per_worker),
    ]
    if use_gpu:
        room.append(resources.get("GPU", 0))
    return max(1, int(min(room)))


def _wanted_bytes(cpus_per_worker: int) -> int:
    return _ACTOR_BYTES + (cpus_per_worker - 1) * _DECODER_BYTES


def _actor_bytes(cpus_per_worker: int) -> int:
    """Memory that an actor reserves: less on a small machine, where the demo fits all the same."""
    wanted = _wanted_bytes(cpus_per_worker)
    most = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
    return min(wanted, int(most)) if most else wanted


def _explain_resources(settings: ExtractionSettings) -> None:
    """Says on standard error what no node has yet for a single actor.

    Raises:
        UserError: it is a cluster of this machine alone, which cannot grow.
    """
    needed = {"CPU": settings.cpus_per_worker, "GPU": int(settings.use_gpu)}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= count for name, count in needed.items()) for node in nodes):
        return
    wanted = f"{settings.cpus_per_worker} CPUs{' and a GPU' if settings.use_gpu else ''}"
    if not os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"an actor needs {wanted}, and this machine has not got them: lower --cpus-per-worker, leave out "
            "--use-gpu, or name a cluster in RAY_ADDRESS"
        )
    print(
        f"waiting for the cluster to grow: an actor needs {wanted} on one node", file=sys.stderr, flush=True
    )


def extract_embeddings(
    checkpoint_uri: str,
    manifest_uri: str,
    out: str,
    settings: ExtractionSettings,
    *,
    splits: Sequence[str] | None = None,
) -> Extraction:
    """Embeds the videos of a manifest that a folder of embeddings does not hold yet. Ray must have been started.

    Only the encoder of the checkpoint is read. Progress goes to standard error.

    Args:
        checkpoint_uri: A checkpoint, or a run folder, whose latest is taken.
        manifest_uri: The videos.
        out: Folder of the embeddings, new or begun with the same checkpoint and view.
        settings: How.
        splits: Only videos of these splits; those without one count as "train".

    Raises:
        UserError: checkpoint or manifest are not there or not what they should be, `out` holds other embeddings, or
            another process writes there.
        RunError: storage refused, or more videos than the run's `data.max_bad_fraction` could not be embedded.
    """
    checkpoint = checkpoint_at(checkpoint_uri)
    origin = origin_of(checkpoint, settings.view, untrained=settings.untrained)
    missing, num_present = missing_videos(manifest_uri, splits, out, origin)
    if missing.num_rows == 0:
        return Extraction(
            num_present
        )  # Nothing is written: others may, and this process need not be able to.
    with hold(out) as (lease, _):
        config = checkpoint.config
        # Another writer may have ended in between.
        missing, num_present = missing_videos(manifest_uri, splits, out, origin)
        result = Extraction(num_present)
        told_before = _bad_videos(out)
        if missing.num_rows == 0:
            return result
        _explain_resources(settings)
        encoders = [load_encoder(checkpoint)]
        if settings.untrained:
            encoders.append(untrained_encoder(config))
        started = time.monotonic()
        writer = _PartWriter(out, origin, settings.precision, lease)
        lines = _ProgressLines(missing.num_rows)
        try:
            with closing(_embedded_rows(encoders, config, missing, settings)) as rows:
                for row in rows:
                    video = missing.slice(row["video_index"], 1).to_pylist()[0]
                    if row["error"] is not None:
                        result.bad_videos.append((video["video_id"], row["error"]))
                    else:
                        writer.add(_embedded_video(video, row))
                        result.num_embedded += 1
                        result.num_frames += video["num_frames"]
                    lines.add(0 if row["error"] else video["num_frames"])
        finally:
            # Also when it ends early: what was computed is not computed again.
            writer.flush()
            _write_bad_videos(
                out, told_before, set(missing.column("video_id").to_pylist()), result.bad_videos
            )
        result.seconds = time.monotonic() - started
        total = num_present + missing.num_rows
        if len(result.bad_videos) > config.data.max_bad_fraction * total:
            video_id, reason = result.bad_videos[0]
            raise RunError(
                f"{len(result.bad_videos)} of {total} videos could not be embedded, more than data.max_bad_fraction = "
                f"{config.data.max_bad_fraction:g} of the run allows; {video_id}: {reason}"
            )
        return result


def _embedded_rows(
    encoders: Sequence[FrameLevelVideoEncoder], config: Config, videos: pa.Table, settings: ExtractionSettings
) -> Generator[dict[str, Any], None, None]:
    """One row a video, as they are done: video_index, error, and the bytes of `embeddings` and `untrained`."""
    weights = ray.put([encoder.state_dict() for encoder in encoders])
    dataset = _videos(videos.select(["uri", "num_frames"])).map_batches(
        _EmbeddingActor,
        fn_constructor_args=(weights, config, settings, _Attempts.remote()),  # type: ignore[attr-defined]
        batch_size=settings.cpus_per_worker,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(settings.num_workers, videos.num_rows)),
        num_cpus=settings.cpus_per_worker,
        num_gpus=1 if settings.use_gpu else None,
        memory=_actor_bytes(settings.cpus_per_worker),
    )
    with _without_lines(b"has constructor arguments in the object store"):
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from batch.to_pylist()


@contextmanager
def _without_lines(text: bytes) -> Iterator[None]:
    """Keep lines with a text from this process's standard error.

    Ray's C++ code says so of each actor of Ray Data's, for the arguments that Ray Data itself gives it.
    """
    terminal = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)

    def copy() -> None:
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                if text not in line:
                    os.write(terminal, line)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        thread.join(1.0)  # It goes on where a process that was started meanwhile has the pipe.
        if not thread.is_alive():
            os.close(terminal)


@ray.remote(num_cpus=0, max_restarts=-1)
class _Attempts:
    """How often each video was begun, counted outside the processes that one of them may kill."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def begin(self, videos: list[int]) -> int:
        """Count an attempt; the number of it, of the video that was begun most often."""
        self._counts.update(videos)
        return max(self._counts[video] for video in videos)


def _videos(videos: pa.Table) -> Dataset:
    """Where each video is, one a block, so that actors take one after the other; made lazily, without a CPU.

    A read task, as of `ray.data.range`, would want a CPU, and the actors may hold all there are.
    """
    table = ray.put(videos)

    def rows(batch: pa.Table) -> Iterator[pa.Table]:
        listed: pa.Table = ray.get(table)
        for index in range(listed.num_rows):
            yield listed.slice(index, 1).append_column("video_index", pa.array([index], pa.int64()))

    context = DataContext.get_current().copy()
    context.target_max_block_size = 1
    with DataContext.current(context):
        return ray.data.from_arrow(pa.table({"start": [0]})).map_batches(
            rows, batch_size=None, batch_format="pyarrow", num_cpus=0, compute=TaskPoolStrategy(size=1)
        )


class _EmbeddingActor:
    _attempts: Any = None

    def __init__(
        self, weights: ray.ObjectRef, config: Config, settings: ExtractionSettings, attempts: Any
    ) -> None:
        self._attempts = attempts
        torch.set_num_threads(settings.cpus_per_worker)
        encoders = []
        for state in ray.get(weights):
            encoder = FrameLevelVideoEncoder(config.model).eval()
            encoder.load_state_dict(state)
            encoders.append(encoder)
        self._embedder = VideoEmbedder(
            encoders,
            config,
            torch.device("cuda" if settings.use_gpu else "cpu"),
            bf16=settings.bf16,
            view=settings.view,
        )
        self._retries = config.data.retries

    def __call__(self, videos: pa.Table) -> pa.Table:
        indices, uris, lengths = (
            videos.column(name).to_pylist() for name in ("video_index", "uri", "num_frames")
        )
        sources = list(zip(uris, lengths, strict=True))
        died = ray.get(self._attempts.begin.remote(indices)) - 1 if self._attempts else 0
        embedded: list[Any]
        if died > _MAX_TASK_RETRIES:
            reason = f"the process that embeds it died {died} times (too little memory?)"
            embedded = [BadVideoError(reason)] * len(sources)
        else:
            embedded = list(self._embedder.embed(sources))
        for attempt in range(self._retries):
            # What does not decode will not; what could not be fetched, or whose decoder was killed, may.
            failed = [place for place, result in enumerate(embedded) if isinstance(result, RunError)]
            if not failed:
                break
            time.sleep(_FIRST_RETRY_SECONDS * 2**attempt)
            for place, result in zip(
                failed, self._embedder.embed([sources[place] for place in failed]), strict=True
            ):
                embedded[place] = result
        rows = []
        for index, result in zip(indices, embedded, strict=True):
            row: dict[str, Any] = {"video_index": index, "error": None, "embeddings": None, "untrained": None}
            if isinstance(result, Exception):
                row["error"] = " ".join(str(result).split()) or type(result).__name__
            else:
                row |= zip(("embeddings", "untrained"), (array.tobytes() for array in result), strict=False)
            rows.append(row)
        return pa.Table.from_pylist(
            rows,
            schema=pa.schema(
                [
                    ("video_index", pa.int64()),
                    ("error", pa.string()),
                    ("embeddings", pa.large_binary()),  # float32 (frames, width)
                    ("untrained", pa.large_binary()),
                ]
            ),
        )


def _embedded_video(video: dict[str, Any], row: dict[str, Any]) -> EmbeddedVideo:
    num_frames = video["num_frames"]

    def vectors(name: str) -> np.ndarray | None:
        return None if row[name] is None else np.frombuffer(row[name], np.float32).reshape(num_frames, -1)

    def array(name: str, dtype: type) -> np.ndarray | None:
        return None if video[name] is None else np.asarray(video[name], dtype)

    embeddings = vectors("embeddings")
    assert embeddings is not None
    return EmbeddedVideo(
        video_id=video["video_id"],
        uri=video["uri"],
        content_hash=video["content_hash"],
        split=video["split"],
        label=video["label"],
        frame_labels=array("frame_labels", np.int32),
        progress=array("progress", np.float32),
        fps=video["fps"],
        timestamps=np.arange(num_frames) * video["frame_step"],
        embeddings=embeddings,
        untrained=vectors("untrained"),
    )


def _bad_videos(out: str) -> dict[str, str]:
    """What earlier calls could not embed: reasons by video id."""
    return {line["video_id"]: line["reason"] for line in read_log(out, BAD_VIDEOS)}


def _write_bad_videos(
    out: str, told_before: dict[str, str], tried: set[str], bad_videos: Sequence[tuple[str, str]]
) -> None:
    """The list of bad videos, with those of earlier calls that were not tried this time."""
    told = {video_id: reason for video_id, reason in told_before.items() if video_id not in tried}
    told |= dict(bad_videos)
    if told or told_before:
        lines = [json.dumps({"video_id": video_id, "reason": reason}) for video_id, reason in told.items()]
        storage.write_bytes(storage.join(out, BAD_VIDEOS), "".join(f"{line}\n" for line in lines).encode())


class _PartWriter:
    """Collects videos, and writes them when they are many or have waited long."""

    def __init__(self, folder: str, origin: Origin, precision: Precision, lease: Lease) -> None:
        self._folder, self._origin, self._precision, self._lease = folder, origin, precision, lease
        self._videos: list[EmbeddedVideo] = []
        self._bytes = 0
        self._written = time.monotonic()

    def add(self, video: EmbeddedVideo) -> None:
        self._videos.append(video)
        self._bytes += video.embeddings.nbytes
        if self._bytes >= _PART_BYTES or time.monotonic() - self._written >= _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._videos:
            self._lease.check()
            write_part(self._folder, self._videos, self._origin, self._precision)
        self._videos, self._bytes, self._written = [], 0, time.monotonic()


class _ProgressLines:
    """A line every few seconds: how far, how fast, how long still, measured from the first video on."""

    def __init__(self, num_videos: int) -> None:
        self._num_videos = num_videos
        self._videos = self._frames = 0
        self._started = self._printed = 0.0

    def add(self, num_frames: int) -> None:
        now = time.monotonic()
        if not self._videos:
            self._started = self._printed = now
        self._videos += 1
        if now - self._printed >= _SECONDS_BETWEEN_LINES:
            # The frames that came after the clock was started.
            self._frames += num_frames
            seconds = now - self._started
            left = seconds * (self._num_videos - self._videos) / (self._videos - 1)
            print(
                f"embedded {self._videos} of {self._num_videos} videos, {self._frames / seconds:.0f} frames/s, "
                f"{left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
            self._printed = now
        elif self._videos > 1:
            self._frames += num_frames
