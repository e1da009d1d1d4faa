"""A run's own classifier: its predictions of whole videos, and their accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import carl_ray
from carl_ray.config import Config
from carl_ray.data.decode import read_frames
from carl_ray.data.manifest import SCHEMA, write_table
from carl_ray.errors import UserError
from carl_ray.evaluation.predictions import Predictor, even_clips, trained_classifier, whole_clips
from carl_ray.evaluation.protocol import evaluate
from carl_ray.evaluation.tasks import TASKS
from carl_ray.model.features import normalize
from carl_ray.objectives.base import ObjectiveOptions
from carl_ray.objectives.choice import objective_options
from carl_ray.objectives.views import Stride, Whole
from carl_ray.training.checkpoint import Progress, load_encoder, open_checkpoint, save_checkpoint
from carl_ray.training.run_videos import VIDEOS, read_videos, record_videos
from carl_ray.training.step import TrainingStep
from tests.evaluation.test_extraction import row
from tests.evaluation.test_protocol import ORIGIN, make_video

LABELS = ("kick", "box", "dive")


def make_run(folder: Path, objective: ObjectiveOptions | None = None, **data) -> tuple[Config, str]:
    """A checkpoint of a classifier of three labels, untrained, beside the record of its videos."""
    rows = [row(folder / f"{n}.mp4", f"v{n}", 24, split="train", label=LABELS[n % 3]) for n in range(6)]
    rows.append(row(folder / "6.mp4", "v6", 24, split="test", label="box"))
    manifest = str(folder / "manifest.parquet")
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), manifest)
    config = carl_ray.preset("clips_demo")
    config = replace(
        config,
        data=replace(config.data, manifest=manifest, **data),
        objective=objective or objective_options("clip_classes"),
    )
    config, videos = read_videos(config)
    step = TrainingStep(config, torch.device("cpu"), 3)
    run = str(folder / "run")
    uri = save_checkpoint(run, step, Progress(3, 3, 0, 0, 1.0, "videos"), 1)
    record_videos(videos, run)
    return config, uri


@pytest.mark.parametrize(
    ("num_video_frames", "starts", "stride", "real"),
    [
        (43, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27], 2, 8),
        (18, [0, 1, 2], 2, 8),
        (15, [0, 1, 2, 3, 4, 5, 6, 7], 1, 8),
        (5, [0], 1, 5),
    ],
)
def test_clips_are_even_and_each_counts_once(
    num_video_frames: int, starts: list[int], stride: int, real: int
):
    clips = even_clips(num_video_frames, 8, 2)
    assert [clip.frame_indices[0] for clip in clips] == starts
    for clip in clips:
        assert set(np.diff(clip.frame_indices[:real])) == {stride}
        assert clip.frame_mask.tolist() == [True] * real + [False] * (8 - real)


@pytest.mark.parametrize(("span", "expected"), [("stride", Stride), ("video", Whole)])
def test_training_clips_have_the_span(span: str, expected: type):
    config = replace(carl_ray.preset("clips_demo"), objective=objective_options("clip_classes", span=span))
    (view,) = config.view_specs
    assert isinstance(view.span, expected)


def test_two_clips_over_the_whole_video_show_other_frames():
    first, second = whole_clips(43, 8)
    edges = np.arange(9) * 43 // 8
    for clip in (first, second):
        assert (edges[:-1] <= clip.frame_indices).all() and (clip.frame_indices < edges[1:]).all()
        assert clip.crop == (0, 43)
    assert (first.frame_indices < second.frame_indices).all()
    first, second = whole_clips(12, 8)  # every other part has two frames
    assert (first.frame_indices != second.frame_indices).tolist() == [False, True] * 4
    (all_frames,) = whole_clips(8, 8)
    assert all_frames.frame_indices.tolist() == list(range(8))
    (short,) = whole_clips(5, 8)
    assert short.frame_mask.sum() == 5


@pytest.mark.parametrize(
    ("width", "height", "num_frames", "span", "num_clips"),
    [(80, 48, 70, "stride", 10), (48, 80, 5, "stride", 1), (48, 80, 70, "video", 2), (80, 48, 5, "video", 1)],
)
def test_probabilities_are_the_mean_of_softmax_over_clips_and_crops(
    make_video, tmp_path: Path, width: int, height: int, num_frames: int, span: str, num_clips: int
):
    config, uri = make_run(tmp_path, objective_options("clip_classes", span=span))
    checkpoint = open_checkpoint(uri)
    classifier = trained_classifier(checkpoint)
    assert classifier is not None
    classifier = replace(classifier, weight=40 * classifier.weight)  # far from the mean of the logits
    encoder, size = load_encoder(checkpoint), config.augment.image_size
    video = str(make_video(tmp_path / "video.mp4", num_frames, width, height))
    found = Predictor(encoder, classifier, config, torch.device("cpu")).probabilities(video, num_frames)
    frames = read_frames(video, np.arange(num_frames), short_side=round(size * 8 / 7))
    total = []
    clips = even_clips(num_frames, encoder.num_frames, encoder.stride)
    if span == "video":
        clips = whole_clips(num_frames, encoder.num_frames)
    for clip in clips:
        seen = frames[clip.frame_indices]
        long = max(seen.shape[1:3])
        ends = [0, round((long - size) / 2), long - size]
        across = round((min(seen.shape[1:3]) - size) / 2)
        for end in ends:
            top, left = (end, across) if height > width else (across, end)
            crop = torch.from_numpy(seen[None, :, top : top + size, left : left + size].copy())
            pixels = normalize(crop, encoder.backbone.mean, encoder.backbone.std)
            with torch.no_grad():
                vector = encoder(pixels, torch.from_numpy(clip.frame_mask)[None]).clip[0]
            total.append((classifier.weight @ vector + classifier.bias).softmax(0).numpy())
    assert len(total) == 3 * num_clips
    np.testing.assert_allclose(found, np.mean(total, 0), atol=1e-5)
    assert not np.allclose(total[0], total[-1], atol=1e-3)
    (first,) = Predictor(encoder, classifier, config, torch.device("cpu")).embed([(video, num_frames)])
    assert not isinstance(first, Exception) and first[0].tolist() == np.argsort(-found).tolist()


def test_classes_are_in_the_order_of_training_and_training_videos_get_no_prediction(tmp_path: Path, capsys):
    config, uri = make_run(tmp_path)
    checkpoint = open_checkpoint(uri)
    classifier = trained_classifier(checkpoint)
    assert classifier is not None
    assert classifier.labels == ("box", "dive", "kick")
    _, videos = read_videos(config)
    codes = videos.training.column("label").to_pylist()
    assert [classifier.labels[k] for k in codes] == [LABELS[n % 3] for n in range(6)]
    assert classifier.seen == {(f"v{n}", "0") for n in range(6)}

    # Fewer videos: other classes than those of the classifier.
    record = tmp_path / "run" / VIDEOS
    whole = record.read_bytes()
    record_videos(replace(videos, record=videos.record.slice(0, 2)), str(tmp_path / "run"))
    with pytest.raises(UserError, match="with 3 labels, got 2"):
        trained_classifier(checkpoint)
    record.unlink()
    assert trained_classifier(checkpoint) is None and "names the classes" in capsys.readouterr().err
    record.write_bytes(whole)
    other = replace(config, objective=objective_options("clip_contrast"))
    assert trained_classifier(replace(checkpoint, config=other)) is None


def test_top_1_and_top_5_stand_for_the_encoder_alone():
    train = [make_video(n, action) for n in range(4) for action in ("kick", "lift")]
    guesses = [["kick", "lift"], ["lift", "kick"], ["a", "b", "c", "d", "kick"], list("abcde"), None]
    test = [replace(make_video(100 + n, "kick"), predicted=guess) for n, guess in enumerate(guesses)]
    unlabelled = replace(make_video(200, "kick"), label=None, predicted=["kick"])
    assert TASKS["classifier"].missing(train, [test[-1], unlabelled]) == "predictions of a classifier"
    document = evaluate(train, [*test, unlabelled], ORIGIN, tasks=["classifier", "recognition"])
    trained = document["trained"]
    assert trained["classifier_top_1"]["value"] == 1 / 4
    assert trained["classifier_top_5"]["value"] == 3 / 4
    assert trained["classifier_top_1"]["left_out"] == {"test_videos_without_prediction_or_label": 2}
    assert "classifier_top_1" not in document["chance"]
