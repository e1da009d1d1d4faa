"""Training on decoded frames of rendered scenes, and what the vectors of videos tell.

Legend: V videos of 64 frames, C width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from unittest.mock import patch

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.preprocessing import StandardScaler

from carl_ray.config import Config
from carl_ray.data import make_views
from carl_ray.data.batch import collate
from carl_ray.data.decode import read_frames
from carl_ray.data.plan import VALIDATION_EPOCH, training_plan
from carl_ray.data.sample import Sample, sample_spec
from carl_ray.datasets import scenes
from carl_ray.evaluation.predictions import even_clips
from carl_ray.model.clips import ClipEncoder
from carl_ray.model.features import normalize
from carl_ray.objectives.base import Batch
from carl_ray.objectives.csvr import FUTURE
from carl_ray.options import overridden
from carl_ray.presets import preset
from carl_ray.progress import ProgressLine
from carl_ray.training.step import TrainingStep

_GRID = 4
_KEY_FRAME_INTERVAL = 12
"""Of the files."""


@dataclass(frozen=True)
class World:
    """The rendered videos, decoded."""

    frames: UInt8[np.ndarray, "V 64 height width 3"]
    classes: Mapping[str, Int64[np.ndarray, " V"]]
    """action, pair and scene."""
    tint: Float[np.ndarray, "V 3"]
    keypoints: Float[np.ndarray, "V 64 17 3"]
    train: Int64[np.ndarray, " fitted"]
    test: Int64[np.ndarray, " held"]


def load_world(kind: Literal["static", "tint", "pan"]) -> World:
    """Render the videos, unless they are there, and decode them for the demos of clips."""
    config = scenes.ScenesConfig(tint=kind == "tint", camera="pan" if kind == "pan" else "static")
    folder = scenes.ensure_rendered(config=config, on_video=ProgressLine("rendered"))
    labels = scenes.read_labels(folder).to_pandas()
    short_side = preset("clips_demo").data.short_side
    every = np.arange(scenes.NUM_FRAMES)
    frames = np.stack(
        [read_frames(str(folder / name), every, short_side=short_side) for name in labels["video_id"]]
    )
    split = labels["video_id"].str.partition("/")[0]
    return World(
        frames,
        {
            "action": labels["label"].astype("category").cat.codes.to_numpy(np.int64),
            "pair": labels["pair"].to_numpy(np.int64),
            "scene": labels["scene"].to_numpy(np.int64),
        },
        np.stack(labels["tint"].to_list()),
        np.stack(labels["keypoints"].to_list()).reshape(len(labels), scenes.NUM_FRAMES, -1, 3),
        np.flatnonzero(split == "train"),
        np.flatnonzero(split == "test"),
    )


def measure(
    world: World, name: str, changes: Mapping[str, str], seed: int, num_steps: int
) -> dict[str, dict[str, float]]:
    """Accuracies by the name of the table's column, and the last figures of the objective, of each kind of vector.

    Args:
        world: The videos.
        name: Of the preset.
        changes: Of the preset, and `steps`, `adapt`, `low_level`, `poses`.
        seed: Of weights, order and views.
        num_steps: Of the training.
    """
    torch.set_num_threads(1)
    own = {key: changes[key] for key in ("steps", "adapt", "low_level", "poses") if key in changes}
    fields = {key: value for key, value in changes.items() if key not in own}
    seen = {"model.clip_input": "rgb"} if name == "clips_demo" else {}
    config = overridden(preset(name), seen | {"training.seed": str(seed)} | fields)
    if "low_level" in own:
        return {"": _accuracies(world, _color_grid(world.frames)[:, None])}
    encoder, figures = train(world, config, int(own.get("steps", num_steps)), other_poses="poses" in own)
    if "adapt" in own:
        _adapt(encoder, world)
    vectors = clip_vectors(encoder, world.frames)
    if not encoder.has_streams:
        return {"": _accuracies(world, vectors) | figures}
    dynamic, static = np.split(vectors, 2, axis=2)
    found = {"dynamic": dynamic, "static": static, "both": vectors}
    return {stream: _accuracies(world, part) | figures for stream, part in found.items()}


def train(
    world: World, config: Config, num_steps: int, *, other_poses: bool = False
) -> tuple[ClipEncoder, dict[str, float]]:
    """The encoder after some steps, and the mean of the loss and the objective's figures over the last twenty.

    Of predicted poses and context matching also `pose error` and `context loss` of the test videos, as parts of those
    of the mean pose and of guessing.

    Args:
        world: The videos.
        config: Of the run.
        num_steps: Of the training.
        other_poses: Train on the poses of another video of the batch, at each step of another one: those of a fixed one
            could be learnt by heart, which tells the videos' motions apart.
    """
    actions = world.classes["action"]
    config = replace(config, objective=config.objective.with_num_classes(int(actions.max()) + 1))
    step = TrainingStep(config, torch.device("cpu"), max(1, num_steps))
    spec, size = sample_spec(config), config.training.global_batch_size
    plan = training_plan(
        config.training.seed, len(world.train), size, 1 + num_steps * size // len(world.train)
    )
    reports: list[dict[str, float]] = []

    def batch_of(rows: Iterable[tuple[int, int, int]], number: int) -> Batch:
        """Views of videos, by their row, epoch and place in the world."""
        samples = []
        for row, epoch, video in rows:
            views = make_views.make_views(
                str(video),
                str(video),
                scenes.NUM_FRAMES,
                1.0,
                epoch,
                spec,
                columns={"label": [int(actions[video])], "content_hash": [video]},
                key_frames=range(0, scenes.NUM_FRAMES, _KEY_FRAME_INTERVAL),
                keypoints=world.keypoints[video],
            )
            samples.append(Sample(row, number, epoch, str(video), None, views))
        return collate(samples, spec)

    decoded = patch.object(
        make_views, "read_frames", lambda video, needed, **how: world.frames[int(video)][needed]
    )
    with decoded:  # As if they were read.
        for number in range(num_steps):
            rows = plan.rows(number * size, (number + 1) * size)
            batch = batch_of(((r.row, r.epoch, int(world.train[r.video_index])) for r in rows), number)
            if other_poses:
                future = batch.views[FUTURE]
                assert future.keypoints is not None
                turned = replace(future, keypoints=future.keypoints.roll(1, 0))
                batch = replace(batch, views={**batch.views, FUTURE: turned})
            report = step.train(batch, number)
            reports.append({"loss": report.loss, **report.figures})
        held_out: list[dict[str, float]] = []
        for start in range(0, len(world.test) if config.objective.reads_streams else 0, size):
            videos = world.test[start : start + size].tolist()
            step.evaluate(batch_of(((n, VALIDATION_EPOCH, video) for n, video in enumerate(videos)), 0))
            held_out.append(step.figures())
    encoder = step.model.encoder.eval()
    assert isinstance(encoder, ClipEncoder)
    found, unseen = _means(reports[-20:]), _means(held_out)
    if "pose_error" in unseen:
        found["pose error"] = unseen["pose_error"] / unseen["mean_pose_error"]
    if "context_loss" in unseen:
        found["context loss"] = unseen["context_loss"] / float(np.log(size))
    return encoder, found


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in figures])) for name in (figures[-1] if figures else {})}


@torch.no_grad()
def clip_vectors(
    encoder: ClipEncoder, frames: UInt8[np.ndarray, "V 64 height width 3"]
) -> Float[np.ndarray, "V clips C"]:
    """Vectors of clips at even places, of the central square."""
    return np.stack([encoder(*_clips(encoder, video)).clip.numpy() for video in frames])


def _clips(encoder: ClipEncoder, video: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    clips = even_clips(len(video), encoder.num_frames, encoder.stride)
    places = np.stack([clip.frame_indices for clip in clips])
    size = preset("clips_demo").augment.image_size
    top, left = ((side - size) // 2 for side in video.shape[1:3])
    seen = torch.from_numpy(video[places][:, :, top : top + size, left : left + size])
    pixels = normalize(seen, encoder.backbone.mean, encoder.backbone.std)
    return pixels, torch.ones(pixels.shape[:2], dtype=torch.bool)


@torch.no_grad()
def _adapt(encoder: ClipEncoder, world: World) -> None:
    """Move the statistics of batch norm to the data: one pass in training mode."""
    encoder.train()
    for video in world.frames[world.train]:
        encoder(*_clips(encoder, video))
    encoder.eval()


def _color_grid(frames: UInt8[np.ndarray, "V T height width 3"]) -> Float[np.ndarray, "V C"]:
    """Mean and deviation of the colours in each cell of a grid, averaged over the frames."""
    height, width = (side // _GRID * _GRID for side in frames.shape[2:4])
    cells = frames[:, :, :height, :width].reshape(
        *frames.shape[:2], _GRID, height // _GRID, _GRID, width // _GRID, 3
    )
    wide = cells.astype(np.float32)
    both = np.concatenate([wide.mean((3, 5)), wide.std((3, 5))], -1).mean(1)
    return both.reshape(len(frames), -1)


def _accuracies(world: World, vectors: Float[np.ndarray, "V clips C"]) -> dict[str, float]:
    fitted, held, count = world.train, world.test, vectors.shape[1]
    scaler = StandardScaler().fit(vectors[fitted].reshape(-1, vectors.shape[2]))
    scaled = scaler.transform(vectors.reshape(-1, vectors.shape[2])).reshape(vectors.shape)
    means = vectors.mean(1) - vectors[fitted].mean((0, 1))
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    nearest = fitted[(means[held] @ means[fitted].T).argmax(1)]
    found = {}
    for name, classes in world.classes.items():
        probe = LogisticRegression(C=0.1, max_iter=1000)
        probe.fit(scaled[fitted].reshape(-1, scaled.shape[2]), np.repeat(classes[fitted], count))
        chances = probe.predict_proba(scaled[held].reshape(-1, scaled.shape[2])).reshape(len(held), count, -1)
        right = probe.classes_[chances.mean(1).argmax(1)] == classes[held]
        found[f"linear {name}"] = float(right.mean())
        found[f"R@1 {name}"] = float((classes[nearest] == classes[held]).mean())
    if world.tint.std() > 0:
        ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(scaled[fitted].mean(1), world.tint[fitted])
        found["cast R²"] = float(ridge.score(scaled[held].mean(1), world.tint[held]))
    return found
