"""Small models, rows of manifests, and the samples of a config's one view, for tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from carl_ray.config import Config, ModelConfig
from carl_ray.data.batch import collate
from carl_ray.data.features import create_cache, write_part
from carl_ray.data.make_views import make_views
from carl_ray.data.manifest import SCHEMA, StreamVideo, read_manifest, write_table
from carl_ray.data.sample import Sample, sample_spec
from carl_ray.evaluation.inference import untrained_encoder
from carl_ray.model.weights import weights_digest
from carl_ray.objectives.base import Batch, ViewTensors
from carl_ray.objectives.views import CROPS

_CPU = torch.device("cpu")
Crops = ViewTensors[np.ndarray]


def run_workers(worker: Callable[..., Any], num_workers: int, *arguments: Any) -> list[Any]:
    """What `worker(rank, num_workers, *arguments)` returns in each process of a group.

    Spawned: forked from one that has imported torch, they were seen to compute without end.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_work, (folder, num_workers, worker, arguments), num_workers)
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(num_workers)]


def _work(rank: int, folder: str, num_workers: int, worker: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    group = {"init_method": f"file://{folder}/rendezvous", "rank": rank, "world_size": num_workers}
    dist.init_process_group("gloo", **group)
    torch.save(worker(rank, num_workers, *arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def small_model(width: int = 16, **changes: Any) -> ModelConfig:
    """An encoder of frames that trains in milliseconds: T = 6, six convolutions, one layer of two heads."""
    widths = dict.fromkeys(("hidden_width", "width", "feedforward_width"), width)
    sizes = {"num_frames": 6, "num_layers": 1, "num_heads": 2, "embedding_width": 8}
    backbone = {"backbone": "small", "weights": "random", "learnable": "all"}
    return ModelConfig(**(widths | sizes | backbone | changes))


def manifest_row(video_id: str = "a.mp4", **values: Any) -> dict[str, Any]:
    """A row of a manifest: 3 frames of 64 x 48 pixels at 30 a second, without labels."""
    numbers = {"num_frames": 3, "fps": 30.0, "width": 64, "height": 48, "rotation": 0, "frame_step": 1.0}
    content = {"bytes": 1, "content_hash": "0", "verified": True}
    return {"video_id": video_id, "uri": f"/videos/{video_id}"} | numbers | content | values


def failure(
    capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], None], *words: str
) -> tuple[int, str]:
    """Exit status and the one line of a command that must fail."""
    with pytest.raises(SystemExit) as left:
        command(list(words))
    captured = capsys.readouterr().err
    lines = [line for line in captured.splitlines() if line.startswith("carl_ray:")]
    assert len(lines) == 1 and "Traceback" not in captured, captured
    return int(left.value.code or 0), lines[0]


def write_rows(rows: Sequence[Mapping[str, Any]], uri: Path | str) -> str:
    """Write a manifest of these rows; return its URI."""
    write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), str(uri))
    return str(uri)


def blank_features(config: Config, manifest: str, folder: str) -> None:
    """Write features of all videos of a manifest, zeros, as `carl_ray.cache` would for a run."""
    backbone = untrained_encoder(config).backbone
    create_cache(folder, config, weights_digest(backbone), backbone.pooled_channels)
    videos = read_manifest(manifest)
    copies = 1 + (config.augment.copies or 0)
    lengths = [-(-n // config.data.frame_stride) for n in videos.column("num_frames").to_pylist()]
    features = [[np.zeros((n, backbone.pooled_channels), np.float16)] * copies for n in lengths]
    write_part(folder, videos, features)


def crops(pixels: Any, timestamps: Any, mask: Any, frame_labels: Any = None) -> Crops:
    """Two crops of which nothing else matters."""
    return ViewTensors(
        pixels=pixels,
        timestamps=timestamps,
        mask=mask,
        parameters=np.zeros((2, 16)),
        boxes=np.zeros((2, 4)),
        flips=np.zeros(2, dtype=bool),
        spans=np.zeros((2, 2)),
        columns={} if frame_labels is None else {"frame_labels": frame_labels},
    )


def make_crops(
    source: Any, video_id: str, num_frames: int, step: float, epoch: int, config: Config, **more: Any
) -> Crops:
    """The crops of a video."""
    return make_views(source, video_id, num_frames, step, epoch, sample_spec(config), **more)[CROPS]


def batch_of(
    views: Sequence[Crops],
    rows: Sequence[int],
    video_ids: Sequence[str],
    config: Config,
    *,
    epoch: int = 0,
    device: torch.device = _CPU,
) -> Batch:
    """The batch of some crops."""
    samples = [
        Sample(row, 0, epoch, video_id, None, {CROPS: view})
        for view, row, video_id in zip(views, rows, video_ids, strict=True)
    ]
    return collate(samples, sample_spec(config), device)


def video_row(uri: str, video_id: str, num_frames: int, frame_step: float = 1.0, **more: Any) -> StreamVideo:
    """A row of the manifest."""
    row = {"video_id": video_id, "uri": uri, "num_frames": num_frames, "frame_step": frame_step}
    return row | {"verified": False} | more  # type: ignore[return-value]
