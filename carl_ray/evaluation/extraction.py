"""Distributed embedding with Ray Data: an actor pool over whole videos.

    URIs (one lazy task) ─ embed (actor pool, GPUs or CPUs) ─▶ driver

Only URIs and embeddings cross processes: frames stay in the actor that decodes them.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy

from carl_ray.config import Config
from carl_ray.data.child import BadVideoError
from carl_ray.data.coordinator import MAX_TASK_RETRIES
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.corpus import EmbeddingSettings
from carl_ray.evaluation.feature_extractor import FeatureExtractor
from carl_ray.evaluation.frozen import FrozenEncoder
from carl_ray.evaluation.inference import BackwardsEncoder, FrozenNetwork, VideoEmbedder, WholeVideoEncoder
from carl_ray.evaluation.predictions import Classifier, Predictor
from carl_ray.model.clips import ClipEncoder
from carl_ray.session import largest_memory
from carl_ray.training.learner import build_encoder

_FIRST_RETRY_SECONDS = 0.5
_ACTOR_BYTES = 3 * 2**30
"""Enough for torch, two ResNet-50 encoders and a few chunks of frames (2.3 GiB were measured), one video decoded."""
_DECODER_BYTES = 2**28
"""For each further video decoded side by side (some 200 MiB were measured at 1280 x 720)."""
_FRAMES_PER_ACTOR = 256
"""Fewer frames are not worth another actor, whose start costs about 5 s of CPU."""
_ROW = pa.schema(
    [
        ("video_index", pa.int64()),
        ("error", pa.string()),
        (
            "embedded",
            pa.list_(pa.large_binary()),
        ),  # by encoder: float32 (frames, width); by copy: float16 (taken, C)
        ("classes", pa.list_(pa.int64())),  # the most probable ones
    ]
)


def room_for_workers(cpus_per_worker: int, use_gpu: bool, actor_bytes: int = _ACTOR_BYTES) -> int:
    """How many actors the connected cluster has room for now, at least 1."""
    resources = ray.cluster_resources()
    room = [
        resources.get("CPU", 0) // cpus_per_worker,
        resources.get("memory", 0) // _wanted_bytes(cpus_per_worker, actor_bytes),
    ]
    if use_gpu:
        room.append(resources.get("GPU", 0))
    return max(1, int(min(room)))


def _wanted_bytes(cpus_per_worker: int, actor_bytes: int) -> int:
    return actor_bytes + (cpus_per_worker - 1) * _DECODER_BYTES


def _nodes() -> list[dict[str, float]]:
    """The resources of each node of the connected cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_resources(settings: EmbeddingSettings) -> None:
    """Print what no node has yet for a single actor.

    Raises:
        UserError: the cluster is this machine alone, which cannot grow.
    """
    needed = {"CPU": settings.cpus_per_worker, "GPU": int(settings.use_gpu)}
    if any(all(node.get(name, 0) >= count for name, count in needed.items()) for node in _nodes()):
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


def embedded_rows(
    encoders: Sequence[WholeVideoEncoder],
    config: Config,
    videos: pa.Table,
    settings: EmbeddingSettings,
    *,
    features: bool = False,
    frozen: FrozenEncoder | None = None,
    classifier: Classifier | None = None,
) -> Generator[tuple[int, list[np.ndarray] | str], None, None]:
    """Embed videos on the connected cluster.

    Args:
        encoders: In evaluation mode.
        config: Of the run that trained them.
        videos: Columns `video_id`, `uri` and `num_frames`; `content_hash` for a classifier.
        settings: How.
        features: Yield the features of a `FeatureExtractor` with the first encoder's backbone instead of embeddings.
        frozen: Of the first encoder's backbone; one array more.
        classifier: On the first encoder's clips; an int64 array of the most probable classes more, the last one, which
            is empty for videos that it was trained on.

    Yields:
        Index of a video, in the order of completion, with one float32 array (frames, width) for each encoder, as many
        more where clips are played backwards, or one float16 array (taken, C) for each copy, or with the reason why it
        could not be embedded.
    """
    weights = ray.put(([encoder.state_dict() for encoder in encoders], frozen, classifier))
    columns = ["video_id", "uri", "num_frames", *(["content_hash"] if classifier else [])]
    arguments = (weights, config, settings, features)
    of_array = (np.float16, config.data.frame_stride) if features else (np.float32, 1)
    yield from rows_of_actors(_EmbeddingActor, arguments, videos.select(columns), settings, *of_array)


def rows_of_actors(
    actor: type[_EmbeddingActor],
    arguments: tuple[object, ...],
    videos: pa.Table,
    settings: EmbeddingSettings,
    dtype: type,
    frame_stride: int = 1,
    actor_bytes: int = _ACTOR_BYTES,
) -> Generator[tuple[int, list[np.ndarray] | str], None, None]:
    """Arrays that a pool of actors makes of videos; yields as `embedded_rows`.

    The arrays have a row for every `frame_stride`-th frame. `actor_bytes` is the memory of an actor with one CPU.
    """
    # A small machine reserves less, since the demo fits all the same.
    wanted = _wanted_bytes(settings.cpus_per_worker, actor_bytes)
    memory = min(wanted, largest_memory(settings.cpus_per_worker))
    lengths = videos.column("num_frames").to_pylist()
    num_workers = settings.num_workers or min(
        room_for_workers(settings.cpus_per_worker, settings.use_gpu, actor_bytes),
        1 + sum(lengths) // _FRAMES_PER_ACTOR,
    )
    dataset = _videos(videos).map_batches(
        actor,
        fn_constructor_args=(*arguments, _Attempts.remote()),  # type: ignore[attr-defined]
        batch_size=settings.cpus_per_worker,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(num_workers, videos.num_rows)),
        num_cpus=settings.cpus_per_worker,
        num_gpus=1 if settings.use_gpu else None,
        memory=memory,
    )
    batches: Iterator[Any] = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    # Only until the first row, since all actors are started then: the caller may show progress on a terminal.
    with _without_lines(b"has constructor arguments in the object store"):
        first = [*islice(batches, 1)]
    for batch in chain(first, batches):
        for row in batch.to_pylist():
            index = row["video_index"]
            shape = (math.ceil(lengths[index] / frame_stride), -1)
            yield (
                index,
                row["error"]
                or [np.frombuffer(content, dtype).reshape(shape) for content in row["embedded"]]
                + ([] if row["classes"] is None else [np.array(row["classes"], np.int64)]),
            )


@contextmanager
def _without_lines(text: bytes) -> Iterator[None]:
    """Filter lines that contain a text out of this process's standard error.

    Ray's C++ code logs one as an error when Ray Data submits its actors, about arguments that Ray Data itself
    passes. It writes to the file descriptor, so neither `logging` nor `sys.stderr` can filter it.
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
        thread.join(1.0)  # It does not end while a process that was started meanwhile has the pipe open.
        if not thread.is_alive():
            os.close(terminal)


@ray.remote(num_cpus=0, max_restarts=-1)
class _Attempts:
    """Attempts by video, counted outside the processes that a video may crash."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def begin(self, videos: list[int]) -> int:
        """Count an attempt at each video; return the largest count among them."""
        self._counts.update(videos)
        return max(self._counts[video] for video in videos)


def _videos(videos: pa.Table) -> Dataset:
    """The rows with a column `video_index`, one row a block, made lazily.

    Their task reserves no CPU: a read task, as of `ray.data.range`, would need one, and the actors may hold them all.
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
    def __init__(
        self,
        weights: ray.ObjectRef,
        config: Config,
        settings: EmbeddingSettings,
        features: bool,
        attempts: Any,
    ) -> None:
        self._attempts = attempts
        torch.set_num_threads(settings.cpus_per_worker)
        encoders: list[WholeVideoEncoder] = []
        states, frozen, classifier = ray.get(weights)
        for state in states:
            encoder = build_encoder(config).eval()
            encoder.load_state_dict(state)
            encoders.append(encoder)
        if settings.backwards:
            encoders += [BackwardsEncoder(cast(ClipEncoder, encoder)) for encoder in encoders]
        if frozen is not None:
            encoders.append(FrozenNetwork(encoders[0], frozen))
        device = torch.device("cuda" if settings.use_gpu else "cpu")
        self._embedder: VideoEmbedder | FeatureExtractor = (
            FeatureExtractor(encoders[0].backbone, config, device)
            if features
            else VideoEmbedder(encoders, config, device, bf16=settings.bf16, view=settings.view)
        )
        self._predictor = None
        if classifier is not None:
            network = cast(ClipEncoder, encoders[0])
            self._predictor = Predictor(network, classifier, config, device, bf16=settings.bf16)
        self._columns = ["uri", "num_frames", *(["video_id"] if features else [])]
        self._retries = config.data.retries

    def __call__(self, videos: pa.Table) -> pa.Table:
        indices = videos.column("video_index").to_pylist()
        died = ray.get(self._attempts.begin.remote(indices)) - 1
        if died > MAX_TASK_RETRIES:
            reason = f"the process that embeds it died {died} times (too little memory?)"
            embedded: list[Any] = [BadVideoError(reason)] * len(indices)
        else:
            columns = (videos.column(name).to_pylist() for name in self._columns)
            sources = list(zip(*columns, strict=True))
            embedded = embed_with_retries(self._embedder, sources, self._retries)
            if self._predictor is not None:
                classes = self._classes(self._predictor, videos, sources)
                return _rows(indices, embedded, classes)
        return _rows(indices, embedded)

    def _classes(self, predictor: Predictor, videos: pa.Table, sources: Sequence[Any]) -> list[Any]:
        """Classes of each video, none of those that the classifier was trained on, or why there are none."""
        ids = zip(*(videos.column(name).to_pylist() for name in ("video_id", "content_hash")), strict=True)
        wanted = [place for place, key in enumerate(ids) if key not in predictor.classifier.seen]
        found = embed_with_retries(predictor, [sources[place] for place in wanted], self._retries)
        classes: list[Any] = [[np.array([], np.int64)]] * len(sources)
        for place, result in zip(wanted, found, strict=True):
            classes[place] = result
        return classes


class ExtractingActor(_EmbeddingActor):
    """Actor with an extractor of its own making, whose `embed` gets pairs of a URI and a number of frames."""

    def __init__(self, make: Callable[[], Any], retries: int, attempts: Any) -> None:
        self._embedder, self._retries, self._attempts = make(), retries, attempts
        self._predictor, self._columns = None, ["uri", "num_frames"]


def _rows(indices: Sequence[int], embedded: Sequence[Any], classes: Sequence[Any] | None = None) -> pa.Table:
    """Rows of what was made of each video, or of the first error."""
    rows: list[dict[str, Any]] = []
    for index, result, found in zip(indices, embedded, classes or [None] * len(indices), strict=True):
        error = next((part for part in (result, found) if isinstance(part, Exception)), None)
        if error is not None:
            rows.append({"video_index": index, "error": " ".join(str(error).split()) or type(error).__name__})
            continue
        own = None if found is None else found[0].tolist()
        rows.append({"video_index": index, "embedded": [array.tobytes() for array in result], "classes": own})
    return pa.Table.from_pylist(rows, schema=_ROW)


def embed_with_retries(
    embedder: VideoEmbedder | FeatureExtractor | Predictor, sources: Sequence[Any], retries: int
) -> list[list[np.ndarray] | BadVideoError | RunError]:
    """Results of the embedder's `embed` for these sources, with retries of transient failures."""
    embedded = list(embedder.embed(sources))
    for attempt in range(retries):
        # A video that does not decode never will; one that could not be fetched, or whose decoder was killed, may.
        failed = [place for place, result in enumerate(embedded) if isinstance(result, RunError)]
        if not failed:
            break
        time.sleep(_FIRST_RETRY_SECONDS * 2**attempt)
        again = embedder.embed([sources[place] for place in failed])
        for place, result in zip(failed, again, strict=True):
            embedded[place] = result
    return embedded
