"""`carl_ray.training.learner`: views that only the objective sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from carl_ray.config import AugmentConfig, Config, DataConfig, ModelConfig
from carl_ray.data.batch import collate
from carl_ray.data.make_views import make_views
from carl_ray.data.sample import Sample, sample_spec
from carl_ray.objectives.base import Objective, ObjectiveOptions, Terms, options
from carl_ray.objectives.choice import objective_options
from carl_ray.objectives.views import Follows, KeyFrame, Stride, ViewSpec
from carl_ray.training.run_checks import starting_weights
from carl_ray.training.step import TrainingStep

_NAME = "tests.training.test_learner:Stills"


class Stills(Objective):
    """Brings clips to the brightness of a key frame; needs the pixels of the frames that no encoder sees."""

    @options
    class Options(ObjectiveOptions):
        reads_clips = True
        name: Literal["tests.training.test_learner:Stills"] = "tests.training.test_learner:Stills"

        def views(self, default: ViewSpec) -> tuple[ViewSpec, ...]:
            clip = replace(default, name="clip", count=1, span=Stride(1, 2, reserve=4), keypoints=True)
            future = replace(clip, name="future", num_frames=2, span=Follows("clip", 2), encoder="none")
            still = replace(default, name="still", count=1, num_frames=1, span=KeyFrame(), encoder="none")
            return clip, future, still

    def forward(self, encodings: Any, batch: Any, progress: float) -> Terms:
        assert encodings.keys() == {"clip"}
        wanted = batch.views["still"].pixels.float().mean((1, 2, 3, 4, 5)) / 255
        real = batch.views["clip"].mask.any((1, 2))
        errors = (encodings["clip"].clip.mean((1, 2)) - wanted).square()
        valid = batch.views["future"].mask.any((1, 2)) & real
        return Terms(errors.where(valid, 0).sum()[None], valid.sum()[None])


def test_the_encoder_leaves_out_what_only_the_objective_sees(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    config = Config(
        preset="test",
        data=DataConfig(short_side=32),
        augment=AugmentConfig(image_size=32, color_on="trainer"),
        model=ModelConfig(
            num_frames=8, backbone="small3d", weights="random", learnable="all", temporal_encoder="clip"
        ),
        objective=objective_options(_NAME),
    )
    assert starting_weights(config) is None  # It runs on a black video.
    spec = sample_spec(config)
    path = make_video(tmp_path / "v.mp4", 20, 48, 32)
    samples = [
        Sample(row, 0, 0, name, None, make_views(str(path), name, 20, 1.0, 0, spec, key_frames=[0, 4]))
        for row, name in enumerate("ab")
    ]
    batch = collate([Sample.from_arrow(sample.to_arrow(spec), 0, spec) for sample in samples], spec)
    assert batch.views["clip"].keypoints is not None
    assert batch.views["clip"].keypoints.shape == (2, 1, 8, 17, 3)
    assert batch.views["future"].keypoints is not None and batch.views["still"].keypoints is None
    step = TrainingStep(config, torch.device("cpu"), 4)
    losses = [step.train(batch, number).loss for number in range(4)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert step.rows_not_finite(batch, range(2)) == []
    assert step.train(collate([], spec), 3).applied
