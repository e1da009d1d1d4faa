"""Cached features: files, keys, and views that equal those of frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from carl_ray.config import MOTIONS, Config, DataConfig, TrainingConfig
from carl_ray.data import features as feature_files
from carl_ray.data.batch import collate
from carl_ray.data.features import (
    cached_views,
    central_difference,
    create_cache,
    model_input,
    open_cache,
    read_features,
    require_cache,
    upsample,
    write_part,
)
from carl_ray.data.make_views import make_views
from carl_ray.data.sample import Sample, draw_copies, sample_spec
from carl_ray.errors import UserError
from carl_ray.evaluation.feature_extractor import FeatureExtractor
from carl_ray.evaluation.inference import untrained_encoder
from carl_ray.model.weights import weights_digest
from carl_ray.objectives.choice import objective_options
from carl_ray.objectives.views import CROPS, AugmentConfig
from carl_ray.training.step import TrainingStep
from tests.samples import small_model

CPU = torch.device("cpu")
CONFIG = Config(
    preset="test",
    data=DataConfig(short_side=32, frame_stride=2),
    augment=AugmentConfig(image_size=32, copies=2),
    model=small_model(num_frames=8, learnable="none", dropout=0.0),
    training=TrainingConfig(precision="fp32", seed=5),
)
CACHED = {"feature_channels": 128}
LENGTHS = {"long.mp4": 41, "short.mp4": 9}  # the second is padded


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> pa.Table:
    folder = tmp_path_factory.mktemp("videos")
    uris = [str(make_video(folder / name, length)) for name, length in LENGTHS.items()]
    return pa.table(
        {
            "video_id": list(LENGTHS),
            "uri": uris,
            "content_hash": ["a", "b"],
            "num_frames": list(LENGTHS.values()),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, videos: pa.Table) -> str:
    encoder = untrained_encoder(CONFIG)
    extractor = FeatureExtractor(encoder.backbone, CONFIG, CPU)
    sources = zip(
        *(videos.column(name).to_pylist() for name in ("uri", "num_frames", "video_id")), strict=True
    )
    found = list(extractor.embed(list(sources)))
    uri = str(tmp_path_factory.mktemp("features"))
    create_cache(uri, CONFIG, weights_digest(encoder.backbone), encoder.backbone.channels)
    for row, features in enumerate(found):
        assert isinstance(features, list)
        write_part(uri, videos.slice(row, 1), [features])
    return uri


def test_what_is_written_is_read(folder: str, videos: pa.Table) -> None:
    located = require_cache(folder).locate_all(videos)
    for row, length in zip(located.to_pylist(), LENGTHS.values(), strict=True):
        copies = [read_features(row["features_part"], row["features_group"], copy) for copy in range(3)]
        assert {array.shape for array in copies} == {((length + 1) // 2, 128)}
        assert not np.array_equal(copies[0], copies[1]) and not np.array_equal(copies[1], copies[2])


@pytest.mark.parametrize("epoch", [0, 3])
def test_training_from_features_is_training_from_frames(folder: str, videos: pa.Table, epoch: int) -> None:
    located = require_cache(folder).locate_all(videos).to_pylist()
    losses, masks = [], []
    for config in (CONFIG, CACHED | {"features": folder}):
        if isinstance(config, dict):
            config = replace(CONFIG, data=replace(CONFIG.data, **config))
        spec = sample_spec(config)
        views = [
            cached_views(row | {"frame_step": 1.0}, epoch, spec)
            if config.data.features
            else make_views(row["uri"], row["video_id"], row["num_frames"], 1.0, epoch, spec)
            for row in located
        ]
        samples = [Sample(n, 0, epoch, name, None, views[n]) for n, name in enumerate(LENGTHS)]
        step, batch = TrainingStep(config, CPU, 4), collate(samples, spec)
        losses.append([step.train(batch, number).loss for number in range(4)])
        masks.append((batch.views[CROPS].mask, batch.views[CROPS].timestamps))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert all(torch.equal(one, other) for one, other in zip(*masks, strict=True))
    assert not masks[0][0].all() and (masks[0][1] % 2 == 0).all()


def test_a_worker_without_videos_takes_part(folder: str) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, features=folder, **CACHED))
    report = TrainingStep(config, CPU, 1).train(collate([], sample_spec(config)), 0)
    assert (report.loss, report.num_videos, report.applied) == (0.0, 0, True)


def test_views_show_two_different_copies_and_all_in_time() -> None:
    def drawn(copies: int | None, epoch: int) -> tuple[int, ...] | None:
        (view,) = replace(CONFIG, augment=replace(CONFIG.augment, copies=copies)).view_specs
        return draw_copies(view, "v", epoch, 5)

    assert {drawn(2, epoch) for epoch in range(60)} == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert (drawn(0, 0), drawn(None, 0)) == ((0, 0), None)


@pytest.mark.parametrize(
    ("section", "field", "value", "clean_too"),
    [
        ("model", "backbone", "resnet18", True),
        ("model", "pooling", "average", True),
        ("model", "cut_stages", 1, True),
        ("data", "frame_stride", 3, True),
        ("data", "decoder", "decord", True),
        ("augment", "hue", 0.1, False),
        ("augment", "copies", 3, False),
        ("training", "seed", 6, False),
    ],
)
def test_other_features_are_refused(
    folder: str, section: str, field: str, value: object, clean_too: bool
) -> None:
    cache = require_cache(folder)
    other = replace(CONFIG, **{section: replace(getattr(CONFIG, section), **{field: value})})
    with pytest.raises(UserError, match=f"{section}.{field} = .*{value!r} is needed"):
        cache.check(other, cache.weights_digest)
    if clean_too:
        with pytest.raises(UserError, match=f"{section}.{field}"):
            cache.check(other, cache.weights_digest, clean_only=True)
    else:
        cache.check(other, cache.weights_digest, clean_only=True)


def test_copies_in_colours_of_a_linear_map_are_not_for_training(folder: str, tmp_path: Path) -> None:
    """Their clean frames are as good as any."""
    document = json.loads((Path(folder) / feature_files.DESCRIPTION).read_text())
    document["config"]["augment"]["color"] = "matrix"
    (tmp_path / feature_files.DESCRIPTION).write_text(json.dumps(document))
    cache = require_cache(str(tmp_path))
    cache.check(CONFIG, cache.weights_digest, clean_only=True)
    with pytest.raises(UserError, match=r"made with augment\.copies = 0, but"):
        cache.check(CONFIG, cache.weights_digest)


def test_other_weights_are_refused_and_what_changes_no_feature_is_not(folder: str) -> None:
    cache = require_cache(folder)
    with pytest.raises(UserError, match="the backbone's weights = "):
        cache.check(CONFIG, "0" * 64)
    other = replace(
        CONFIG,
        objective=objective_options("contrastive"),
        model=replace(CONFIG.model, num_frames=16, width=32, motion="difference"),
        augment=replace(CONFIG.augment, copies=1),
    )
    cache.check(other, cache.weights_digest)


def test_missing_features_are_named(folder: str, videos: pa.Table, tmp_path: Path) -> None:
    changed = videos.set_column(2, "content_hash", pa.array(["a", "other"]))
    assert require_cache(folder).locate(changed).column("features_part").is_valid().to_pylist() == [
        True,
        False,
    ]
    with pytest.raises(UserError, match="lacks the features of 1 of 2 videos"):
        require_cache(folder).locate_all(changed)
    with pytest.raises(UserError, match="no features there"):
        require_cache(str(tmp_path))
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(UserError, match=r"found no features\.json"):
        open_cache(str(tmp_path))


def test_parts_are_named_for_tasks_with_another_working_directory(
    folder: str, videos: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(folder).parent)
    located = require_cache(Path(folder).name).locate_all(videos)
    assert located.column("features_part")[0].as_py() == f"{folder}/part-00000.parquet"


def test_a_damaged_part_is_an_error(folder: str, tmp_path: Path) -> None:
    part = tmp_path / "part-00000.parquet"
    part.write_bytes(Path(folder, "part-00000.parquet").read_bytes()[:-40])
    with pytest.raises(UserError, match="not a part of features"):
        read_features(str(part), 0)


def test_the_input_of_the_model() -> None:
    features = np.arange(12, dtype=np.float16).reshape(6, 2) ** 2
    assert np.array_equal(
        central_difference(features)[:, 0], features[[2, 3, 4, 5, 5, 5], 0] - features[[0, 0, 0, 1, 2, 3], 0]
    )
    made = model_input(features, replace(CONFIG.model, centered=True, motion="difference"))
    assert made.shape == (6, 4) and np.allclose(made[:, :2].mean(0), 0, atol=1e-5)
    assert np.array_equal(model_input(features, CONFIG.model), features.astype(np.float32))
    made = model_input(features, replace(CONFIG.model, motion="window"))
    assert made.shape == (6, 2 * MOTIONS["window"])
    assert np.array_equal(made[1, ::2], features[[0, 0, 0, 0, 1, 2, 3, 4, 5], 0])


@pytest.mark.parametrize("num_frames", [1, 2, 7, 8, 9])
def test_embeddings_between_taken_frames_are_interpolated(num_frames: int) -> None:
    taken = np.arange(0, num_frames, 3, dtype=np.float32)[:, None]
    expected = np.minimum(np.arange(num_frames), taken[-1])
    assert np.allclose(upsample(taken, num_frames, 3)[:, 0], expected)
