"""What a run of `csvr` predicts and generates for held-out videos: poses after a clip, this clip and the one after it.

    test video ─ one clip, the central square in clean colours ▶ encoder ▶ poses, clips     beside the real ones
    training videos ─ likewise ▶ mean pose                                                  the control

Legend: F poses after a clip, S pixels of the encoder's input, T frames of a generated clip, s its pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Float16, Float32, UInt8
from torch import Tensor

from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.batch import collate
from carl_ray.data.guard import BadVideoError, ViewReader
from carl_ray.data.keypoint_table import GROUP, PART, locate_keypoints, read_keypoints
from carl_ray.data.keypoints import KEYPOINTS, check_keypoints, keypoints_in_view, video_keypoints
from carl_ray.data.manifest import STREAM_COLUMNS, read_manifest
from carl_ray.data.sample import Sample, SampleSpec, draw_clips, sample_spec
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.bootstrap import Result, ratio_of_sums
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Origin
from carl_ray.evaluation.task import Metric
from carl_ray.objectives.base import Batch
from carl_ray.objectives.csvr import CLIP, FUTURE, NUM_POSES, Csvr, Made, mean_pose, pose_error, show_a_person
from carl_ray.training.checkpoint import checkpoint_at, load_model
from carl_ray.training.learner import Learner, initial_learner

_MOST_VIDEOS = 1000  # evenly by name, of the test and of the training videos
_MOST_DRAWN = 4
_ERROR = (
    "after a clip of each test video, of the coordinates of valid joints as parts of the view (smooth L1)"
)

METRICS = (
    Metric(
        name="pose_error",
        title="error of predicted poses",
        meaning=f"mean error {_ERROR}, of the poses that the run's generator predicts; lower is better",
        higher_is_better=False,
    ),
    Metric(
        name="mean_pose_error",
        title="error of the mean pose",
        meaning=f"the same of a control that sees no clip: the mean pose of the training videos, {_ERROR}",
        higher_is_better=False,
    ),
    Metric(
        name="relative_pose_error",
        title="predicted poses against the mean pose (%)",
        meaning="error of the predicted poses as a share of the mean pose's on the same videos: 100 % predicts nothing",
        higher_is_better=False,
    ),
)


@dataclass(frozen=True, eq=False)
class Poses:
    """The poses after a clip."""

    predicted: Float32[np.ndarray, "F 17 2"]
    """x and y as parts of the view; as the real ones in COCO's order."""
    real: Float32[np.ndarray, "F 17 3"]
    """x, y, and 1 where the joint is valid."""
    frames: UInt8[np.ndarray, "F S S 3"]
    error: float
    mean_error: float
    """Of the mean pose."""


@dataclass(frozen=True, eq=False)
class GeneratedClip:
    """A generated clip beside the real one."""

    real: UInt8[np.ndarray, "T s s 3"]
    fake: UInt8[np.ndarray, "T s s 3"]
    error: float
    """Mean absolute difference, as a part of the range of brightness."""


@dataclass(frozen=True, eq=False)
class GeneratedVideo:
    """What is made from one clip of a test video."""

    video_id: str
    poses: Poses | None
    clips: dict[str, GeneratedClip]
    """`now`, the clip itself, and `next`, the one after it."""


@dataclass(frozen=True, eq=False)
class Generation:
    """What is made from clips of test videos."""

    drawn: list[GeneratedVideo]
    """The first video by name of each of some labels."""
    results: dict[str, Result]
    """Of each of `METRICS`; empty without poses."""
    clip_errors: dict[str, float]
    """Mean of the errors of generated clips, by their name."""
    num_videos: int
    """Test videos that were read."""
    missing: str
    """Why there are no poses; empty where there are."""


def generate(origin: Origin, test: Sequence[EmbeddedVideo], seed: int = 0) -> Generation:
    """Run the generators of a run of `csvr` on one clip of each test video.

    Args:
        origin: Of the embeddings; its checkpoint is loaded.
        test: Videos that are measured, found in the run's manifest by id and content.
        seed: Of the clips' places and the generators' noise.

    Raises:
        UserError: the checkpoint, the manifest or these videos in it are not there, or none of them can be read.
        RunError: the store refuses or fails.
    """
    checkpoint = checkpoint_at(origin.checkpoint)
    if checkpoint.model_sha256 != origin.model_sha256:
        raise UserError(f"{origin.checkpoint}: another model than that of the embeddings")
    learner = initial_learner(checkpoint.config)
    load_model(checkpoint, learner)
    spec = _clean_spec(checkpoint.config, seed)
    if len(spec.views) < 2:
        raise UserError("the run neither predicts poses nor generates clips")
    uri = checkpoint.config.data.manifest or ""
    shown = storage.public_uri(uri)
    columns = [*STREAM_COLUMNS, "content_hash", "split", "width", "height"]
    table = checkpoint.config.data.keypoints
    videos = read_manifest(uri, columns, further=(KEYPOINTS,) if table is None else (), check=False)
    known = {(video.video_id, video.content_hash) for video in test}
    pairs = zip(*(videos.column(name).to_pylist() for name in ("video_id", "content_hash")), strict=True)
    measured = videos.filter(pa.array([pair in known for pair in pairs]))
    if not len(measured):
        raise UserError(f"{shown}: the run's manifest has none of the test videos")
    mean, missing = None, "this run predicts none"
    if spec.views[1].keypoints:
        missing = f"{storage.public_uri(table or uri)} has no keypoints of training videos"
        splits = videos.column("split").fill_null("train")
        fitted = videos.filter(pc.equal(splits, checkpoint.config.data.train_split))
        if (table is not None or KEYPOINTS in videos.column_names) and len(fitted):
            mean = _mean_pose(_some(fitted, spec, shown, "sampled training"), spec)
    made = _generated(learner.eval(), _samples(_some(measured, spec, shown, "test"), spec), mean)
    found = _collected(made, {video.video_id: video.label for video in test})
    if not found.num_videos:
        raise UserError(f"{shown}: no file of the test videos can be read")
    if mean is not None:
        missing = "" if found.results else "no test video has keypoints of a person after its clip"
    return replace(found, missing=missing)


def _clean_spec(config: Config, seed: int) -> SampleSpec:
    """The run's views of a clip and of what follows it: the central square in its own colours."""
    clean = replace(
        config,
        augment=replace(config.augment, copies=0, color_on="workers", pixels="rgb"),
        data=replace(config.data, short_side=config.augment.image_size),
        training=replace(config.training, seed=seed),
    )
    spec = sample_spec(clean)
    return replace(spec, columns=(), views=tuple(v for v in spec.views if v.name in (CLIP, FUTURE)))


def _some(videos: pa.Table, spec: SampleSpec, manifest: str, kind: str) -> pa.Table:
    """The videos by name, of many some, evenly; with their keypoints, or where these are, if there are any."""
    videos = videos.sort_by("video_id")
    places = np.linspace(0, len(videos) - 1, min(len(videos), _MOST_VIDEOS))
    videos = videos.take(np.unique(places.astype(int)))
    if spec.views[1].keypoints and spec.data.keypoints is not None:
        return locate_keypoints(videos, spec.data.keypoints, kind)
    return check_keypoints(videos, manifest, kind) if KEYPOINTS in videos.column_names else videos


def _keypoints(videos: pa.Table, index: int) -> Float16[np.ndarray, "frames 17 3"] | None:
    if PART in videos.column_names:
        part = videos.column(PART)[index].as_py()
        return None if part is None else read_keypoints(part, videos.column(GROUP)[index].as_py())
    return video_keypoints(videos.slice(index, 1)) if KEYPOINTS in videos.column_names else None


def _samples(videos: pa.Table, spec: SampleSpec) -> Iterator[tuple[str, Batch]]:
    """Id and batch of each video that can be read."""
    with closing(ViewReader()) as reader:
        for index, row in enumerate(videos.select(STREAM_COLUMNS).to_pylist()):
            row["keypoints"] = _keypoints(videos, index)
            try:
                views = reader.read(row, 0, spec)
            except (BadVideoError, RunError):
                continue
            yield row["video_id"], collate([Sample(index, 0, 0, row["video_id"], None, views)], spec)


def _mean_pose(videos: pa.Table, spec: SampleSpec) -> Float[Tensor, "F 17 2"] | None:
    """Mean of the poses after a clip of each video, in the central square; None where there are none."""
    found = []
    for index, row in enumerate(videos.select(["video_id", "num_frames", "width", "height"]).to_pylist()):
        keypoints = _keypoints(videos, index)
        clips = draw_clips(spec.views[1], row["video_id"], row["num_frames"], 0, spec)
        size = np.array([row["width"], row["height"]])
        edge = (1 - size.min() / size) / 2
        box = np.concatenate([edge, 1 - edge])[None]
        found.append(keypoints_in_view(keypoints, clips, box, np.zeros(1, bool))[0, :NUM_POSES])
    poses = torch.from_numpy(np.stack(found))
    poses = poses[show_a_person(poses)]
    return mean_pose(poses[..., :2], poses[..., 2]) if len(poses) else None


@torch.inference_mode()
def _generated(
    learner: Learner, samples: Iterator[tuple[str, Batch]], mean: Float[Tensor, "F 17 2"] | None
) -> Iterator[GeneratedVideo]:
    objective = learner.objective
    assert isinstance(objective, Csvr)
    for video_id, batch in samples:
        made = objective.made(learner.encode(batch), batch)
        pose = made.pop("pose", None)
        poses = None if mean is None or pose is None or not len(pose.fake) else _poses(pose, batch, mean)
        clips = {name: _clip(of) for name, of in made.items() if len(of.fake)}
        yield GeneratedVideo(video_id, poses, clips)


def _poses(pose: Made, batch: Batch, mean: Float[Tensor, "F 17 2"]) -> Poses:
    valid = pose.given[0]
    pixels = batch.views[FUTURE].pixels
    assert pixels is not None
    return Poses(
        predicted=pose.fake[0].numpy(),
        real=torch.cat([pose.real, valid[..., None]], -1)[0].numpy(),
        frames=pixels[0, 0, : pose.fake.shape[1]].numpy(),
        error=float(pose.error / pose.number),
        mean_error=float(pose_error(mean[None], pose.real, valid) / pose.number),
    )


def _clip(made: Made) -> GeneratedClip:
    real, fake = (
        ((clip[0].movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        for clip in (made.real, made.fake)
    )
    # The numbers of a clip that is there as a whole.
    return GeneratedClip(real, fake, float(made.error / made.number) / 2)


def _collected(videos: Iterable[GeneratedVideo], labels: Mapping[str, str | None]) -> Generation:
    """What is made for all videos; only the pixels of those that are drawn are kept.

    Args:
        videos: By name.
        labels: Of all test videos, by their ids.
    """
    firsts: dict[str, GeneratedVideo] = {}
    sums: list[tuple[float, float, float]] = []
    errors: dict[str, list[float]] = {}
    for video in videos:
        if video.poses or video.clips:
            firsts.setdefault(labels[video.video_id] or video.video_id, video)
        for name, clip in video.clips.items():
            errors.setdefault(name, []).append(clip.error)
        joints = 0.0 if video.poses is None else float(video.poses.real[..., 2].sum())
        each = (0.0, 0.0) if video.poses is None else (video.poses.error, video.poses.mean_error)
        sums.append((joints, joints * each[0], joints * each[1]))
    number, predicted, control = np.array(sums).reshape(-1, 3).T
    left_out = {
        "test_videos_without_a_person_after_the_clip": int((number == 0).sum()),
        "test_videos_not_sampled_or_not_readable": len(labels) - len(sums),
    }
    pairs = ((predicted, number), (control, number), (predicted, control))
    results = {
        metric.name: ratio_of_sums(above, below, left_out)
        for metric, (above, below) in zip(METRICS, pairs, strict=True)
        if number.any()
    }
    drawn = [firsts[label] for label in sorted(firsts)[:_MOST_DRAWN]]
    return Generation(
        drawn, results, {name: float(np.mean(of)) for name, of in errors.items()}, len(sums), ""
    )
