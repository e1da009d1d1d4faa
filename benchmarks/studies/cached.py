"""Rows of a study on cached features of a frozen backbone, in this process: a run takes less than a minute. No Ray.

    FOLDER/features/            clean frames and two augmented copies of every video of the manifest
    FOLDER/mixed-frames/        the same, every other video at half its frame rate; timestamps are its frames
    FOLDER/mixed-seconds/       the same, timestamps in one unit of time for all videos
    FOLDER/controls.json        controls, measured once
    FOLDER/runs/<hash>.json     metrics of a run that is done, by the config's hash

Plan, views, learner, step and metrics are the package's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.paper_tables import Row
from benchmarks.studies import runs
from carl_ray import presets
from carl_ray.config import Config, ViewsConfig
from carl_ray.data.features import (
    FEATURE_COLUMNS,
    create_cache,
    model_input,
    open_cache,
    read_features,
    write_part,
)
from carl_ray.evaluation.controls import embedded_by
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Origin
from carl_ray.evaluation.inference import untrained_encoder
from carl_ray.evaluation.protocol import by_action
from carl_ray.evaluation.task import Videos
from carl_ray.evaluation.tasks import TASKS
from carl_ray.machine import single_threaded
from carl_ray.model.encoder import FrameLevelVideoEncoder
from carl_ray.objectives.choice import objective_options
from carl_ray.paper import PROTOCOLS
from carl_ray.training.learner import VideoNetwork

_COPIES = 2
_SIZE = 96
_SLOWER = 2
MIXED = {"mixed-frames": 1.0, "mixed-seconds": float(_SLOWER)}
"""Corpora of two frame rates by the unit of the slower videos' timestamps."""
_BY_FRAME = ("frame_labels", "progress")
_Row = dict[str, Any]


def base_config(epochs: int, folder: Path) -> Config:
    """The preset `laptop` with three layers on every frame of small videos, with the demo's crops.

    Features are averages of whole frames, as `laptop` had them when the tables were made.
    """
    config = presets.preset("laptop")
    return replace(
        config,
        data=replace(
            config.data,
            short_side=_SIZE,
            frame_stride=1,
            manifest=str(folder / "features" / "manifest.parquet"),
            features=str(folder / "features"),
            max_validation_videos=0,
        ),
        views=ViewsConfig(max_crop_ratio=3.0),
        augment=replace(config.augment, image_size=_SIZE, copies=_COPIES),
        model=replace(config.model, num_layers=3, cut_stages=0, pooling="average"),
        objective=objective_options("scl"),
        training=replace(config.training, epochs=epochs),
    )


def row_config(base: Config, folder: Path, row: Row, seed: int) -> Config:
    """The config of a row with a seed; names of `MIXED` are folders of the study."""
    config = runs.row_config(base, dict(row.options), seed)
    if config.data.features in MIXED:
        target = folder / config.data.features
        data = replace(config.data, manifest=str(target / "manifest.parquet"), features=str(target))
        config = replace(config, data=data)
    return config


def prepare(manifest: str, folder: Path) -> None:
    """Write the corpora of a study, computing the features that are missing; about four minutes of one core for all."""
    config = base_config(1, folder)
    table = pq.read_table(manifest)
    table = table.filter(
        pa.array([split in ("train", "test") for split in table.column("split").to_pylist()])
    )
    _compute(table, str(folder / "features"), config)
    pq.write_table(table, folder / "features" / "manifest.parquet")
    for name, unit in MIXED.items():
        _write_mixed(table, folder, name, unit)


def measured(config: Config, folder: Path) -> dict[str, Any] | None:
    """The metrics of a run that was done before, or none."""
    path = _path(config, folder)
    return json.loads(path.read_text()) if path.exists() else None


def measure(config: Config, folder: Path) -> dict[str, Any]:
    """Train, embed and measure a run; the document of `carl_ray.evaluation.protocol.evaluate`, values only."""
    from benchmarks.real.training import train_rows
    from carl_ray.training.run_videos import make_plans, read_videos

    ready, videos = read_videos(config)
    plan, _ = make_plans(ready, videos)
    num_steps = plan.num_rows // plan.batch_size
    with single_threaded():
        encoder = train_rows(ready, videos.training.to_pylist(), plan, num_steps)
        embedded = _embedded(_corpus(config), partial(_embed, encoder, config))
        train, test = (_of_split(embedded, split) for split in ("train", "test"))
        if config.objective.name == "supervised":
            # The probe has the labels that the encoder had, and no others.
            seen = set(videos.training.column("video_id").to_pylist())
            train = [video for video in train if video.video_id in seen]
        document = {"trained": _scores(train, test), **_controls(folder), "code": runs.code_digest()}
    path = _path(config, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    return document


def _path(config: Config, folder: Path) -> Path:
    return folder / "runs" / f"{runs.digest(config)}.json"


def _compute(table: pa.Table, uri: str, config: Config) -> None:
    """Compute the features that a folder lacks, a part a video."""
    import torch

    from carl_ray.evaluation.feature_extractor import FeatureExtractor
    from carl_ray.model.weights import weights_digest

    backbone = untrained_encoder(config).backbone
    digest = weights_digest(backbone)
    cache = open_cache(uri) or create_cache(uri, config, digest, backbone.pooled_channels)
    cache.check(config, digest)
    extractor = FeatureExtractor(backbone, config, torch.device("cpu"))
    lacking = cache.locate(table).column(FEATURE_COLUMNS[0]).is_null().to_pylist()
    for number, row in enumerate(table.select(["video_id", "uri", "num_frames"]).to_pylist()):
        if lacking[number]:
            (arrays,) = extractor.embed([(row["uri"], row["num_frames"], row["video_id"])])
            if isinstance(arrays, Exception):
                raise arrays
            write_part(uri, table.slice(number, 1), [arrays])


def _write_mixed(table: pa.Table, folder: Path, name: str, unit: float) -> None:
    """Write a corpus whose every other video has half the frames, at once."""
    target = folder / name
    if (target / "manifest.parquet").exists():
        return
    source = open_cache(str(folder / "features"))
    assert source is not None
    rows, arrays = table.to_pylist(), []
    for number, (row, place) in enumerate(
        zip(rows, source.locate_all(table).select(FEATURE_COLUMNS).to_pylist(), strict=True)
    ):
        step = _SLOWER if number % 2 else 1
        read = partial(read_features, place["features_part"], place["features_group"])
        arrays.append([np.ascontiguousarray(read(copy=k)[::step]) for k in range(1 + _COPIES)])
        changed = {key: row[key][::step] for key in _BY_FRAME} | {"num_frames": len(arrays[-1][0])}
        changed |= {"key_frames": None}  # Indices of the file's frames; features need none.
        row |= changed | ({"frame_step": unit, "fps": row["fps"] / step} if step > 1 else {})
    mixed = pa.Table.from_pylist(rows, schema=table.schema)
    create_cache(str(target), source.config, source.weights_digest, source.channels)
    write_part(str(target), mixed, arrays)
    pq.write_table(mixed, target / "manifest.parquet")


def _corpus(config: Config) -> list[tuple[_Row, np.ndarray]]:
    """Rows of a corpus with the clean features of each."""
    assert config.data.manifest is not None and config.data.features is not None
    table, cache = pq.read_table(config.data.manifest), open_cache(config.data.features)
    assert cache is not None
    places = cache.locate_all(table).select(FEATURE_COLUMNS).to_pylist()
    return [
        (row, read_features(*place.values())) for row, place in zip(table.to_pylist(), places, strict=True)
    ]


def _embed(encoder: VideoNetwork, config: Config, features: np.ndarray) -> np.ndarray:
    import torch

    assert isinstance(encoder, FrameLevelVideoEncoder)
    return encoder.embed_features(torch.from_numpy(model_input(features, config.model))).numpy()


def _embedded(
    corpus: Sequence[tuple[_Row, np.ndarray]], embed: Callable[[np.ndarray], np.ndarray]
) -> list[EmbeddedVideo]:
    return [
        EmbeddedVideo(
            video_id=row["video_id"],
            uri=row["uri"],
            timestamps=np.arange(len(features)) * float(row["frame_step"]),
            embeddings=embed(features),
            split=row["split"],
            label=row["label"],
            frame_labels=np.array(row["frame_labels"], np.int32),
            progress=np.array(row["progress"], np.float32),
        )
        for row, features in corpus
    ]


def _of_split(videos: Sequence[EmbeddedVideo], split: str) -> list[EmbeddedVideo]:
    return [video for video in videos if video.split == split]


def _scores(
    train: Sequence[EmbeddedVideo], test: Sequence[EmbeddedVideo]
) -> dict[str, dict[str, float | None]]:
    """Value of each metric, its mean over the actions."""
    found: dict[str, list[float]] = {}
    for fitted, held in by_action(train, test).values():
        for task in PROTOCOLS["phases"]:
            for name, result in TASKS[task].run(Videos(fitted, held)).items():
                found.setdefault(name, []).append(result.value)
    means = {name: float(np.nanmean(values)) for name, values in found.items() if not np.isnan(values).all()}
    return {name: {"value": means.get(name)} for name in found}


def _controls(folder: Path) -> Mapping[str, Any]:
    """Scores of the controls on all videos at their own rate, of the encoder of seed 0."""
    path = folder / "controls.json"
    if not path.exists():
        config = base_config(1, folder)
        plain = _embedded(_corpus(config), partial(_embed, untrained_encoder(config), config))
        model = config.model
        origin = Origin("", "", config.preset, 0, model.num_frames, model.width, "resized", False)
        found = {"untrained": plain}
        for name in ("positions", "chance"):
            made = embedded_by(name, plain, origin, 0)
            assert made is not None
            found[name] = made
        scores = {
            name: _scores(_of_split(videos, "train"), _of_split(videos, "test"))
            for name, videos in found.items()
        }
        path.write_text(json.dumps(scores, indent=1) + "\n")
    return json.loads(path.read_text())
