"""The order term answers from content alone: a time that is painted into the pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from carl_ray.config import Config
from carl_ray.data.batch import collate
from carl_ray.data.sample import Sample, draw_clips, sample_spec
from carl_ray.objectives.base import Batch, Encoding, ViewTensors
from carl_ray.objectives.clip_order import LOCAL, WHOLE, order_terms
from carl_ray.options import overridden
from carl_ray.presets import preset
from carl_ray.training.step import TrainingStep

FRAMES, SIZE, VIDEOS, STEPS = 64, 16, 8, 120
SETTINGS = {
    "augment.image_size": str(SIZE),
    "model.clip_input": "rgb",
    "objective.information_weight": "0",
    "objective.order_weight": "10",
    "views.stride": "[1, 1]",
    "training.precision": "fp32",
}


def batch_of(config: Config, step: int, shuffled: bool = False) -> Batch:
    """Clips of videos whose brightness is the time, in a pattern of the video's own; or their frames shuffled."""
    spec = sample_spec(config)
    samples = []
    for number in range(VIDEOS):
        video_id = f"{step}/{number}"
        rng = np.random.default_rng([step, number])
        pattern = rng.uniform(0.6, 1.0, (SIZE, SIZE, 3))
        painted = rng.permutation(FRAMES) if shuffled else np.arange(FRAMES)
        views = {}
        for view in spec.views:
            clips = draw_clips(view, video_id, FRAMES, 0, spec)
            times = np.stack([clip.frame_indices for clip in clips])
            shape = (view.count, view.num_frames)
            views[view.name] = ViewTensors(
                timestamps=times.astype(np.float64),
                mask=np.ones(shape, bool),
                parameters=np.zeros((view.count, 16)),
                boxes=np.tile([0.0, 0, 1, 1], (view.count, 1)),
                flips=np.zeros(view.count, bool),
                spans=np.array([clip.crop for clip in clips], np.float64),
                pixels=(255 * (painted[times] / FRAMES)[..., None, None, None] * pattern).astype(np.uint8),
            )
        samples.append(Sample(number, step, 0, video_id, None, views))
    return collate(samples, spec)


@pytest.mark.parametrize("frame_step", [1 / 24, 1 / 30])
def test_the_unit_of_the_timestamps_changes_no_class(frame_step: float):
    """Also of clips whose middle is the end of a cell."""
    frames, ones = torch.ones(100, 1, 6, 1), torch.ones(100, 1, 1)

    def guesses(step: float) -> torch.Tensor:
        starts = torch.arange(100, dtype=torch.float64)[:, None]
        mask = torch.ones(100, 1, 6, dtype=torch.bool)
        views = {
            name: ViewTensors(starts, mask, starts, starts, starts, torch.stack([low, high], -1) * step)
            for name, low, high in ((LOCAL, starts, starts + 16), (WHOLE, 0 * starts, 0 * starts + 120))
        }
        encodings = (Encoding(frames, mask, clip=ones), Encoding(frames, mask))
        batch = Batch(views, torch.arange(100), {})
        return order_terms(torch.nn.Linear(3, 3), *encodings, batch)[1]["order_best_guess"]

    assert torch.equal(guesses(frame_step), guesses(1.0))


def accuracy(step: TrainingStep, swapped: bool = False, shuffled: bool = False) -> tuple[float, float]:
    """Of the order, and of the best guess for each cell; with the local clips of other videos."""
    totals = torch.zeros(2, 2, dtype=torch.float64)
    for number in range(1000, 1010):
        batch = batch_of(step.config, number, shuffled)
        if swapped:
            local = batch.views[LOCAL]
            moved = replace(local, pixels=None if local.pixels is None else local.pixels.roll(1, 0))
            batch = replace(batch, views={**batch.views, LOCAL: moved})
        step.evaluate(batch)
        figures = step.model.objective.figures
        totals += torch.stack([figures["order_accuracy"], figures["order_best_guess"]])
    found, guess = (totals[:, 0] / totals[:, 1]).tolist()
    return found, guess


def trained(shuffled: bool) -> TrainingStep:
    torch.set_num_threads(1)
    config = overridden(preset("clips_demo"), SETTINGS)
    step = TrainingStep(config, torch.device("cpu"), STEPS)
    for number in range(STEPS):
        step.train(batch_of(config, number, shuffled), number)
    return step


@pytest.mark.slow
def test_shuffled_frames_have_no_order():
    """Of the whole video: within a clip, the painted times would still tell where it lies."""
    found, guess = accuracy(trained(shuffled=True), shuffled=True)
    assert found < guess + 0.03


def test_order_is_learnt_from_content_and_from_nothing_else():
    step = trained(shuffled=False)
    found, guess = accuracy(step)
    assert found > 0.95 > guess + 0.1
    found, guess = accuracy(step, swapped=True)
    assert found < guess + 0.03
