"""`benchmarks.real.training`: a run in this process on features of nobody."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.real.features import table
from benchmarks.real.recipes import RECIPES
from benchmarks.real.training import clean_features, embed, train
from benchmarks.real.videos import Video
from carl_ray.data.features import create_cache, write_part

CHANNELS, COPIES = 128, 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four videos of two actions whose features turn once around a circle."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    plane = rng.standard_normal((2, CHANNELS))
    videos, arrays = [], []
    for number in range(4):
        path = folder / f"{number}.mp4"
        path.write_bytes(bytes([number]))
        frames = 90 + 30 * number
        angles = np.linspace(0, 2 * np.pi, frames // 3)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane
        noise = 0.1 * rng.standard_normal((1 + COPIES, *circle.shape)) + rng.standard_normal(CHANNELS)
        arrays.append((circle + noise).astype(np.float16))
        videos.append(Video(str(number), path, f"action {number // 2}", frames, np.array([0, frames - 1])))
    config = configured("scl")
    cache = create_cache(str(folder / "features"), config, "digest", CHANNELS)
    write_part(cache.uri, table(videos), arrays)
    return cache, videos


def configured(name, seed=0):
    config = RECIPES[name].config()
    return replace(
        config,
        model=replace(
            config.model,
            **{"backbone": "small", "weights": "random", "cut_stages": 0, "pooling": "average"},
            **{"num_frames": 8, "hidden_width": 16, "width": 16},
        ),
        augment=replace(config.augment, copies=COPIES),
        training=replace(config.training, seed=seed, global_batch_size=2),
    )


@pytest.mark.parametrize("name", ["scl", "contrastive", "tcn", "tcc", "weak_scl", "scl-window", "scl-plain"])
def test_training_changes_the_encoder_and_depends_on_the_seed_alone(corpus, name):
    cache, videos = corpus
    features = clean_features(cache, videos)
    made = [
        embed(train(config, cache, videos, steps), config, features)
        for config, steps in (
            (configured(name), 0),
            (configured(name), 3),
            (configured(name), 3),
            (configured(name, 1), 3),
        )
    ]
    assert {key: array.shape for key, array in made[1].items()} == {
        video.video_id: (video.num_frames // 3, 128) for video in videos
    }
    assert np.abs(made[1]["0"] - made[0]["0"]).max() > 1e-4
    np.testing.assert_array_equal(made[1]["0"], made[2]["0"])
    assert np.abs(made[3]["0"] - made[1]["0"]).max() > 1e-4
