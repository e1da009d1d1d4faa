"""A trial does what is missing, and nothing that would be wrong; training and embedding are stand-ins here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from carl_ray import storage
from carl_ray.errors import RunError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Origin, write_part
from carl_ray.presets import demo
from carl_ray.sweeps import trials
from carl_ray.sweeps.definition import Sweep, trial_id
from carl_ray.sweeps.space import LogRange, Space
from carl_ray.sweeps.trials import measured, run_dir, run_trial
from carl_ray.training.monitor import Status
from tests.samples import manifest_row, write_rows

SPACE = Space("test", {"objective.temperature": LogRange(0.03, 1.0, (0.1,))})
STEPS_OF_EPOCH = 12


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Of four validation videos without labels, measured after 2 and 6 epochs."""
    rows = [manifest_row(f"v{number}", split="validation") for number in range(4)]
    uri = write_rows(rows, tmp_path / "manifest.parquet")
    base = replace(demo(), data=replace(demo().data, manifest=uri))
    return Sweep(SPACE, base, 1, (2, 6), "label_free", labelled=False)


class Stage:
    """What stands for training and embedding; `step` is where the run is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step, self.videos = 0, 4
        self.embedded: list[str] = []
        for name in ("train", "embed_corpus", "checkpoint_at", "room_for_workers"):
            monkeypatch.setattr(trials, name, getattr(self, name))

    def train(self, config: Any, run: str, *, resume: bool, until_epoch: int) -> Status:
        self.step = max(self.step, until_epoch * STEPS_OF_EPOCH)
        return Status(self.step, 6 * STEPS_OF_EPOCH, None, None, 0.0, ended=True)

    def embed_corpus(self, run: str, manifest: str, out: str, settings: Any, *, splits: Any) -> None:
        self.embedded.append(out)
        rng = np.random.default_rng(0)
        videos = [
            EmbeddedVideo(
                video_id=f"v{number}", uri="", content_hash="0", split="validation", label=None, frame_labels=None,
                progress=None, fps=1.0, timestamps=np.arange(4.0),
                embeddings=rng.standard_normal((4, 8)).astype(np.float32),
                untrained=rng.standard_normal((4, 8)).astype(np.float32),
            )
            for number in range(self.videos)
        ]  # fmt: skip
        origin = Origin("c", "0", "demo", self.step, 32, 8, "resized", has_untrained=True)
        write_part(out, videos, origin, "float32")

    def checkpoint_at(self, run: str) -> Any:
        return SimpleNamespace(progress=SimpleNamespace(seconds=1.0))

    def room_for_workers(self, cpus: int, *, use_gpu: bool) -> int:
        return 1


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def tried(sweep: Sweep, folder: Path) -> list[int]:
    """The rungs that the trial of the base reported."""
    reported: list[int] = []
    run_trial(sweep, str(folder), {}, lambda epoch, score: reported.append(epoch))
    return reported


def test_a_trial_is_measured_at_each_rung_and_keeps_the_last_embeddings(
    sweep: Sweep, tmp_path: Path, stage: Stage
) -> None:
    assert tried(sweep, tmp_path) == [2, 6] and len(stage.embedded) == 2
    run = run_dir(str(tmp_path), trial_id(sweep, {}), 0)
    assert [found["origin"]["step"] for epoch in (2, 6) if (found := measured(run, epoch))] == [24, 72]
    assert [storage.exists(folder) for folder in stage.embedded] == [False, True]
    assert tried(sweep, tmp_path) == [2, 6] and len(stage.embedded) == 2


def test_a_measurement_that_was_lost_is_not_made_of_a_later_checkpoint(
    sweep: Sweep, tmp_path: Path, stage: Stage
) -> None:
    tried(sweep, tmp_path)
    for lost, expected in ((2, [6]), (6, [6])):
        (
            tmp_path / "trials" / trial_id(sweep, {}) / "seed-0" / "measured" / f"epoch-{lost:08d}.json"
        ).write_text("{")
        assert tried(sweep, tmp_path) == expected
    run = run_dir(str(tmp_path), trial_id(sweep, {}), 0)
    assert measured(run, 2) is None and json.dumps(measured(run, 6))


def test_a_trial_without_some_validation_video_does_not_compare(
    sweep: Sweep, tmp_path: Path, stage: Stage
) -> None:
    stage.videos = 3
    with pytest.raises(
        RunError, match="1 of 4 videos of the split 'validation' could not be embedded, the first 'v3'"
    ):
        tried(sweep, tmp_path)
    assert measured(run_dir(str(tmp_path), trial_id(sweep, {}), 0), 2) is None
