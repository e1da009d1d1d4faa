"""What is found out before a sweep starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from carl_ray.config import Config
from carl_ray.data.manifest import SCHEMA, write_table
from carl_ray.errors import UserError
from carl_ray.presets import demo
from carl_ray.sweeps.preparation import checked_sweep, local_cpus, remember
from carl_ray.sweeps.space import Choices, Space

SPACE = Space("test", {"views.sampling": Choices(("random", "even"))})


def base(folder: Path, splits: str, *, labels: list[int] | None = None) -> Config:
    """The demo's config with a manifest that has a video for each letter: t(rain), v(alidation), s (test)."""
    names = {"t": "train", "v": "validation", "s": "test"}
    anything = {"int32": 1, "int64": 4, "double": 1.0, "bool": True, "string": "0"}
    rows = [
        {field.name: anything.get(str(field.type)) for field in SCHEMA}
        | {"video_id": f"{number}", "split": names[letter], "frame_labels": labels}
        for number, letter in enumerate(splits)
    ]
    uri = str(folder / f"{splits}-{len(labels or [])}.parquet")
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), uri)
    return replace(demo(), data=replace(demo().data, manifest=uri))


def test_labels_decide_the_metric(tmp_path: Path) -> None:
    labelled = checked_sweep(
        SPACE, base(tmp_path, "ttvvs", labels=[-1, 0, 1, 1]), seeds=1, num_rungs=3, metric=None
    )
    assert (labelled.metric, labelled.labelled, labelled.rungs) == ("phase_classification", True, (8, 23, 70))
    plain = checked_sweep(SPACE, base(tmp_path, "ttvvs"), seeds=1, num_rungs=1, metric=None)
    assert (plain.metric, plain.labelled, plain.rungs) == ("label_free", False, (70,))
    nothing = checked_sweep(SPACE, base(tmp_path, "ttvv", labels=[-1, -1]), seeds=1, num_rungs=1, metric=None)
    assert nothing.metric == "label_free"
    assert not checked_sweep(
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
        checked_sweep(SPACE, base(tmp_path, splits, labels=labels), seeds=1, num_rungs=1, metric=metric)


def test_a_folder_is_one_sweeps_own(tmp_path: Path) -> None:
    folder = str(tmp_path / "sweep")
    sweep = checked_sweep(SPACE, base(tmp_path, "ttvv", labels=[0, 1]), seeds=1, num_rungs=1, metric=None)
    remember(sweep, folder, "random")
    remember(sweep, folder, "random")
    another_cluster = replace(sweep.base, cluster=replace(sweep.base.cluster, num_workers=2))
    remember(replace(sweep, base=another_cluster), folder, "random")
    with pytest.raises(UserError, match=r"was begun with seeds = 1, now 2: only --num-trials may change"):
        remember(replace(sweep, seeds=2), folder, "random")
    with pytest.raises(UserError, match=r"config.objective.temperature = 0.1, now 0.3"):
        other = replace(sweep.base, objective=replace(sweep.base.objective, temperature=0.3))
        remember(replace(sweep, base=other), folder, "random")


def test_every_trial_of_this_machine_has_room_to_train_and_to_decode() -> None:
    config = demo()
    assert local_cpus(config, 2) == 4
    wide = replace(config, cluster=replace(config.cluster, num_workers=2, max_decode_tasks=3))
    assert local_cpus(wide, 2) == 10
