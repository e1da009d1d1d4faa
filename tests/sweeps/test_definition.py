"""The definition of a sweep: checks of its videos, and one definition a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carl_ray.config import Config
from carl_ray.data.manifest import write_table
from carl_ray.errors import UserError
from carl_ray.paper import PROTOCOLS
from carl_ray.presets import demo, preset
from carl_ray.sweeps.definition import define_sweep, save_definition
from carl_ray.sweeps.space import Choices, Space, loss
from tests.samples import manifest_row, write_rows

SPACE = Space("test", {"views.sampling": Choices(("random", "even"))})


def base(
    folder: Path, splits: str, *, labels: list[int] | None = None, same: tuple[int, int] | None = None
) -> Config:
    """The demo's config with a manifest that has a video for each letter: t(rain), v(alidation), s (test).

    The two videos `same` are copies of one file.
    """
    names = {"t": "train", "v": "validation", "s": "test"}
    frames = {"num_frames": len(labels or [0]), "frame_labels": labels, "label": "0"}
    rows = [
        manifest_row(f"{number}", content_hash=f"{number}", split=names[letter], **frames)
        for number, letter in enumerate(splits)
    ]
    if same is not None:
        rows[same[1]]["content_hash"] = rows[same[0]]["content_hash"]
    uri = write_rows(rows, folder / f"{splits}-{len(labels or [])}.parquet")
    return replace(demo(), data=replace(demo().data, manifest=uri))


def test_labels_decide_the_metric(tmp_path: Path) -> None:
    labelled = define_sweep(
        SPACE, base(tmp_path, "ttvvs", labels=[-1, 0, 1, 1]), seeds=1, num_rungs=3, metric=None
    )
    assert (labelled.metric, labelled.labelled, labelled.rungs) == ("phase_classification", True, (5, 15, 45))
    assert labelled.tasks == list(PROTOCOLS["phases"])
    assert replace(labelled, metric="label_free").tasks == [*PROTOCOLS["phases"], "label_free"]
    plain = define_sweep(SPACE, base(tmp_path, "ttvvs"), seeds=1, num_rungs=1, metric=None)
    assert (plain.metric, plain.labelled, plain.rungs) == ("label_free", False, (45,))
    assert plain.tasks == ["label_free"]
    nothing = define_sweep(SPACE, base(tmp_path, "ttvv", labels=[-1, -1]), seeds=1, num_rungs=1, metric=None)
    assert nothing.metric == "label_free"
    assert not define_sweep(
        SPACE, base(tmp_path, "ttvvs"), seeds=1, num_rungs=1, metric="label_free"
    ).labelled


@pytest.mark.parametrize(
    ("splits", "labels", "metric", "expected"),
    [
        ("ttvs", [0], None, "at least two videos of the split 'validation', and there are 1"),
        ("tts", [0], None, "not the test videos"),
        ("ttvv", None, "phase_classification", "needs frame labels"),
        ("ttvv", [0], "phase_clasification", "did you mean phase_classification?"),
    ],
)
def test_mistakes(
    tmp_path: Path, splits: str, labels: list[int] | None, metric: str | None, expected: str
) -> None:
    with pytest.raises(UserError, match=expected.replace("?", r"\?")):
        define_sweep(SPACE, base(tmp_path, splits, labels=labels), seeds=1, num_rungs=1, metric=metric)


@pytest.mark.parametrize("split", ["test", "train"])
def test_validation_videos_are_neither_trained_on_nor_tested_on(tmp_path: Path, split: str) -> None:
    config = base(tmp_path, "ttvvss", labels=[0])
    config = replace(config, data=replace(config.data, validation_split=split))
    with pytest.raises(
        UserError, match=f"--data.validation_split {split}: .* neither trained on nor tested on"
    ):
        define_sweep(SPACE, config, seeds=1, num_rungs=1, metric=None)


@pytest.mark.parametrize(("same", "split"), [((0, 2), "train"), ((4, 3), "test")])
def test_copies_of_videos_are_found_out(tmp_path: Path, same: tuple[int, int], split: str) -> None:
    config = base(tmp_path, "ttvvs", labels=[0], same=same)
    with pytest.raises(
        UserError, match=f"1 videos of the split 'validation' are the same files .* {split!r}"
    ):
        define_sweep(SPACE, config, seeds=1, num_rungs=1, metric=None)


def test_checkpoints_come_about_every_epoch(tmp_path: Path) -> None:
    config = base(tmp_path, 60 * "t" + "vv", labels=[0])

    def steps(batch: int, given: int) -> int:
        training = replace(config.training, global_batch_size=batch, checkpoint_every_steps=given)
        sweep = define_sweep(SPACE, replace(config, training=training), seeds=1, num_rungs=1, metric=None)
        return sweep.base.training.checkpoint_every_steps

    assert [steps(4, 200), steps(8, 200), steps(1, 200), steps(4, 7)] == [15, 10, 60, 7]


def test_a_folder_is_one_sweeps_own(tmp_path: Path) -> None:
    folder = str(tmp_path / "sweep")
    sweep = define_sweep(SPACE, base(tmp_path, "ttvv", labels=[0, 1]), seeds=1, num_rungs=1, metric=None)
    save_definition(sweep, folder, "random", 0)
    save_definition(sweep, folder, "random", 0)
    another_cluster = replace(sweep.base, cluster=replace(sweep.base.cluster, num_workers=2))
    save_definition(replace(sweep, base=another_cluster), folder, "random", 0)
    with pytest.raises(UserError, match=r"was begun with seeds = 1, now 2: only --num-trials may change"):
        save_definition(replace(sweep, seeds=2), folder, "random", 0)
    with pytest.raises(UserError, match=r"search_seed = 0, now 1"):
        save_definition(sweep, folder, "random", 1)
    with pytest.raises(UserError, match=r"config.objective.temperature = 0.1, now 0.3"):
        other = replace(sweep.base, objective=replace(sweep.base.objective, temperature=0.3))
        save_definition(replace(sweep, base=other), folder, "random", 0)


def test_a_folder_of_before_a_field_came_into_the_config(tmp_path: Path) -> None:
    sweep = define_sweep(SPACE, base(tmp_path, "ttvv", labels=[0, 1]), seeds=1, num_rungs=1, metric=None)
    save_definition(sweep, str(tmp_path), "random", 0)
    document = json.loads((tmp_path / "sweep.json").read_text())
    del document["config"]["views"]["sampling"]
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    save_definition(sweep, str(tmp_path), "random", 0)
    even = replace(sweep.base, views=replace(sweep.base.views, sampling="even"))
    with pytest.raises(UserError, match=r"config.views.sampling = 'random', now 'even'"):
        save_definition(replace(sweep, base=even), str(tmp_path), "random", 0)


@pytest.mark.parametrize(
    ("column", "value", "split"),
    [
        ("content_hash", "other", "validation"),
        ("frame_labels", [1, 1], "validation"),
        ("label", "jump", "train"),
    ],
)
def test_a_folder_keeps_its_videos_and_labels(tmp_path: Path, column: str, value: Any, split: str) -> None:
    config = base(tmp_path, "ttvv", labels=[0, 1])
    sweep = define_sweep(SPACE, config, seeds=1, num_rungs=1, metric=None)
    save_definition(sweep, str(tmp_path / "sweep"), "random", 0)
    rows = pq.read_table(config.data.manifest).to_pylist()
    write_rows(rows[::-1], config.data.manifest or "")
    save_definition(sweep, str(tmp_path / "sweep"), "random", 0)  # the order is nothing to it
    rows[0 if split == "train" else 2][column] = value
    write_rows(rows, config.data.manifest or "")
    with pytest.raises(UserError, match=f"was begun with digest of videos and labels.{split} = "):
        save_definition(sweep, str(tmp_path / "sweep"), "random", 0)


def test_labels_of_videos_decide_the_metric_of_clips(tmp_path: Path) -> None:
    manifest = str(base(tmp_path, "ttvvs").data.manifest)
    clips = preset("clips_demo")
    clips = replace(clips, data=replace(clips.data, manifest=manifest))
    space = loss(clips)
    assert list(space.parameters) == ["objective.temperature"]
    found = define_sweep(space, clips, seeds=1, num_rungs=1, metric=None)
    assert (found.metric, found.labelled) == ("video_linear_probe", True)
    table = pq.read_table(manifest)
    place = table.schema.get_field_index("label")
    write_table(table.set_column(place, "label", pa.nulls(5, pa.string())), manifest)
    assert define_sweep(space, clips, seeds=1, num_rungs=1, metric=None).metric == "label_free"
    with pytest.raises(UserError, match="--metric video_recall_at_1 needs labels of the training"):
        define_sweep(space, clips, seeds=1, num_rungs=1, metric="video_recall_at_1")
