"""A run goes on only with the videos that it was begun with, and says what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from carl_ray.config import ClusterConfig, Config, objective_options
from carl_ray.data.keypoint_table import add_keypoints
from carl_ray.data.manifest import SCHEMA, videos_digest, write_table
from carl_ray.errors import UserError
from carl_ray.presets import preset
from carl_ray.training.checkpoint import Progress, checkpoint_at, save_checkpoint
from carl_ray.training.run_checks import check_same_run, find_checkpoint
from carl_ray.training.run_videos import VIDEOS, read_videos, record_videos
from carl_ray.training.step import TrainingStep
from tests.samples import manifest_row, write_rows


def row(number: int, split: str, **values: Any) -> dict[str, Any]:
    file = {"uri": f"s3://bucket/{split}/{number}.mp4", "bytes": 1000, "content_hash": f"{number:032x}"}
    labels = {"label": "jump" if number % 2 else "run", "frame_labels": [0, 1, 2]}
    return manifest_row(f"{split}/{number}.mp4", verified=False, split=split, **(file | labels | values))


@pytest.fixture(scope="module")
def tiny(tiny_run: Path) -> Config:
    return checkpoint_at(str(tiny_run)).config


def begun(config: Config, rows: list[dict[str, Any]], folder: Path) -> Config:
    """The config with a manifest of these rows, from which a run in the folder has a checkpoint."""
    config = replace(config, data=replace(config.data, manifest=write(rows, folder)))
    counted, videos = read_videos(config)
    record_videos(videos, str(folder))
    step = TrainingStep(counted, torch.device("cpu"), 3)
    save_checkpoint(str(folder), step, Progress(1, 4, 0, 0, 1.0, videos_digest(videos.training)), 1)
    return config


def write(rows: list[dict[str, Any]], folder: Path) -> str:
    return write_rows(rows, folder / "manifest.parquet")


ROWS = [*(row(number, "train") for number in range(4)), row(9, "validation")]
EVERY = "scl", "weak_scl", "supervised"


@pytest.mark.parametrize(
    ("change", "objectives", "said"),
    [
        ({"num_frames": 4, "frame_labels": [0, 1, 2, 2]}, EVERY, "num_frames was 3, is now 4"),
        ({"frame_step": 2.0}, EVERY, "frame_step was 1.0, is now 2.0"),
        ({"uri": "/else/2.mp4"}, EVERY, "uri was 's3://bucket/train/2.mp4', is now '/else/2.mp4'"),
        ({"content_hash": "ff"}, EVERY, r"content_hash was '0{31}2', is now 'ff'"),
        ({"bytes": 9}, EVERY, "bytes was 1000, is now 9"),
        ({"label": "walk"}, ("weak_scl", "supervised"), "label was 'run', is now 'walk'"),
        ({"frame_labels": [0, 2, 2]}, ("supervised",), "frame 1: frame_labels was 1, is now 2"),
        ({"video_id": "train/8.mp4"}, EVERY, "video_id was 'train/2.mp4', is now 'train/8.mp4'"),
        ({"modified_ns": 2, "verified": True}, (), ""),
    ],
)
@pytest.mark.parametrize("objective", EVERY)
def test_a_manifest_that_changed_is_refused(
    tiny: Config,
    tmp_path: Path,
    objective: str,
    change: dict[str, Any],
    objectives: tuple[str, ...],
    said: str,
) -> None:
    config = begun(replace(tiny, objective=objective_options(objective)), ROWS, tmp_path)
    write([r | change if r["video_id"] == "train/2.mp4" else r for r in ROWS], tmp_path)
    counted, videos = read_videos(config)
    if objective not in objectives:
        assert find_checkpoint(counted, videos, str(tmp_path)) is not None
        return
    with pytest.raises(
        UserError, match=rf"training: video 'train/2\.mp4': (frame 1: )?{said}\): .*--model\.init_from"
    ):
        find_checkpoint(counted, videos, str(tmp_path))


def test_a_config_that_was_edited_after_the_checkpoint_is_refused(tiny: Config, tmp_path: Path) -> None:
    config = begun(tiny, ROWS, tmp_path)
    counted, videos = read_videos(config)
    edited = replace(counted, objective=objective_options("scl", temperature=0.9))
    with pytest.raises(
        UserError, match=r"was begun with objective\.temperature = 0\.1, now 0\.9: --resume continues"
    ):
        find_checkpoint(edited, videos, str(tmp_path))


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tiny: Config, tmp_path: Path) -> None:
    config = begun(tiny, ROWS, tmp_path)
    (model,) = tmp_path.glob("checkpoints/step-*/model.pt")
    model.write_bytes(model.read_bytes()[:-9])
    with pytest.raises(
        UserError, match=r"none of 1 checkpoints can be read, .*: restore that folder, or delete"
    ):
        find_checkpoint(*read_videos(config), str(tmp_path))
    (model.parent / "state.json").unlink()  # As of a first checkpoint that was not written to its end.
    assert find_checkpoint(*read_videos(config), str(tmp_path)) is None


def test_other_rows_and_runs_without_a_record(tiny: Config, tmp_path: Path) -> None:
    config = begun(replace(tiny, versions={"torch": "2.14.1"}), ROWS, tmp_path)
    for rows, said in (
        (ROWS[1:], "video 'train/0.mp4': video_id was 'train/0.mp4', is now 'train/1.mp4'"),
        ([*ROWS, row(7, "train")], "training: 4 videos before, now 5"),
        ([ROWS[1], ROWS[0], *ROWS[2:]], "video_id was 'train/0.mp4', is now 'train/1.mp4'"),
        (
            [*ROWS[:4], row(9, "validation", content_hash="ff")],
            "validation: video 'validation/9.mp4': content_hash",
        ),
    ):
        write(rows, tmp_path)
        with pytest.raises(UserError, match=said):
            find_checkpoint(*read_videos(config), str(tmp_path))
    (tmp_path / VIDEOS).unlink()
    write(ROWS, tmp_path)
    with pytest.raises(UserError, match=r"videos\.parquet: expected the record .* --model\.init_from"):
        find_checkpoint(*read_videos(config), str(tmp_path))
    # A run of before there were records: ids, order and frames alone are known of it.
    config = begun(tiny, ROWS, tmp_path)
    (tmp_path / VIDEOS).unlink()
    with pytest.raises(UserError, match="their ids, their order or their numbers of frames"):
        write(ROWS[1:], tmp_path)
        find_checkpoint(*read_videos(config), str(tmp_path))
    write([r | {"uri": "/elsewhere.mp4"} for r in ROWS], tmp_path)
    assert find_checkpoint(*read_videos(config), str(tmp_path)) is not None
    pq.write_table(pa.table({"part": ["training"]}), tmp_path / VIDEOS)
    with pytest.raises(UserError, match="not the record of a run's videos"):
        find_checkpoint(*read_videos(config), str(tmp_path))


def test_classes_that_do_not_occur_are_said(
    tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(tiny, objective=objective_options("supervised"))
    rows = [r | {"frame_labels": [0, 1, 40]} for r in ROWS]
    config = replace(config, data=replace(config.data, manifest=write(rows, tmp_path)))
    read_videos(config)
    # Both actions have the labels 0, 1 and 40, and numbers of their own.
    assert "82 classes, of which 6 occur" in capsys.readouterr().out


def test_how_a_run_is_done_may_change_when_it_goes_on() -> None:
    begun = Config(preset="test")
    going_on = replace(
        begun,
        data=replace(begun.data, retries=5, time_limit=9.0, max_bad_fraction=0.5),
        training=replace(begun.training, checkpoint_every_steps=7, keep_checkpoints=9),
        cluster=ClusterConfig(num_workers=3),
    )
    check_same_run(begun, going_on, "/run")
    other = replace(begun, training=replace(begun.training, log_every_steps=3))
    with pytest.raises(
        UserError, match=r"^/run was begun with training\.log_every_steps = 10, now 3: --resume"
    ):
        check_same_run(begun, other, "/run")
    with pytest.raises(UserError, match="holds a run of preset test, not demo"):
        check_same_run(begun, replace(begun, preset="demo"), "/run")


def test_videos_without_a_clip_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [row(k, "train", num_frames=count, frame_labels=None) for k, count in enumerate([3, 4, 9])]
    config = preset("clips_demo")
    config = replace(config, data=replace(config.data, manifest=write(rows, tmp_path)))
    _, videos = read_videos(config)
    assert videos.training.column("video_id").to_pylist() == ["train/1.mp4", "train/2.mp4"]
    assert capsys.readouterr().err == (
        "warning: 1 training videos with fewer than 4 frames are left out, such as s3://bucket/train/0.mp4\n"
    )
    config = replace(config, data=replace(config.data, manifest=write(rows[:1], tmp_path)))
    with pytest.raises(UserError, match="no training video has 4 frames, which a clip needs"):
        read_videos(config)


def test_labels_of_videos_are_classes(tmp_path: Path):
    rows = [row(k, "train", num_frames=9, frame_labels=None, label=label) for k, label in enumerate("bac")]
    rows += [row(3, "train", num_frames=9, frame_labels=None, label=None)]
    rows += [row(4, "validation", num_frames=9, frame_labels=None, label=label) for label in "z"]
    config = replace(preset("clips_demo"), objective=objective_options("clip_classes"))
    config = replace(config, data=replace(config.data, manifest=write(rows, tmp_path)))
    counted, videos = read_videos(config)
    assert counted.objective == objective_options("clip_classes", num_classes=3)
    assert videos.training.column("label").to_pylist() == [1, 0, 2, None]
    assert videos.validation is not None and videos.validation.column("label").to_pylist() == [None]


STILLS = replace(preset("clips_demo"), objective=objective_options("tests.training.test_learner:Stills"))


def with_stills(rows: list[dict[str, Any]], folder: Path, keypoints: list[Any] | None = None) -> Config:
    """A run with clips, key frames and keypoints."""
    table = pa.Table.from_pylist([{"frame_labels": None} | r for r in rows], schema=SCHEMA)
    if keypoints is not None:
        table = table.append_column("keypoints", pa.array(keypoints, pa.list_(pa.float16())))
    write_table(table, str(folder / "manifest.parquet"))
    return replace(STILLS, data=replace(STILLS.data, manifest=str(folder / "manifest.parquet")))


def clip_row(
    number: int, keys: list[int] | None = None, split: str = "train", num_frames: int = 8
) -> dict[str, Any]:
    return row(number, split, num_frames=num_frames, frame_labels=None, key_frames=keys)


PERSON = [0.5, 0.25, 1.0] * 17 * 8
NOBODY = [0.0] * len(PERSON)


def test_even_frames_instead_of_key_frames_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    keys = [[0, 4], [0, 5], [0], [], None, [0], list(range(8))]
    rows = [clip_row(number, each) for number, each in enumerate(keys)] + [clip_row(9, [], "validation")]
    _, videos = read_videos(with_stills(rows, tmp_path, [PERSON] * 8))
    assert capsys.readouterr().err == (
        "evenly spaced frames instead of key frames in 5 of 7 training videos: 2 with one key frame; 1 with none in "
        "the file; 1 with none in a manifest of an earlier version; 1 with more than a quarter of the frames\n"
    )
    assert videos.training.column("key_frames").to_pylist() == keys
    read_videos(with_stills(rows[:2], tmp_path, [PERSON] * 2))
    assert not capsys.readouterr().err


def test_videos_without_keypoints_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [clip_row(number, [0, 4]) for number in range(4)] + [clip_row(9, [0, 4], "validation")]
    broken = [float("nan"), *PERSON[1:]]
    _, videos = read_videos(with_stills(rows, tmp_path, [PERSON, None, NOBODY, broken, None]))
    assert capsys.readouterr().err == (
        "2 of 4 training videos have no keypoints of a person\n1 of 1 validation videos have no keypoints of a person\n"
    )
    read = videos.training.column("keypoints").to_pylist()
    assert [each is None for each in read] == [False, True, True, False] and read[0] == PERSON
    assert videos.record.column("keypoints_digest").null_count == 3
    for keypoints, said in (
        ([PERSON, None, NOBODY, None, PERSON], "3 of 4 training videos have no keypoints of a person"),
        (None, r"4 of 4 training videos .* `carl-ray poses MANIFEST --out FOLDER` estimates them"),
        (
            [PERSON, PERSON[:-3], PERSON, PERSON, None],
            r"'train/1.mp4' has 405 values of keypoints: expected 8 frames",
        ),
    ):
        with pytest.raises(UserError, match=said):
            read_videos(with_stills(rows, tmp_path, keypoints))


def test_keypoints_of_a_table_replace_those_of_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [clip_row(number, [0, 4]) for number in range(3)] + [clip_row(9, [0, 4], "validation")]
    config = with_stills(rows, tmp_path, [None] * 4)
    uri = str(tmp_path / "keypoints")
    config = replace(config, data=replace(config.data, keypoints=uri))
    with pytest.raises(UserError, match=r"no keypoints there; `carl-ray poses MANIFEST --out"):
        read_videos(config)

    def estimate(number: int, values: list[float]) -> None:
        row = pa.Table.from_pylist(rows[number : number + 1], schema=SCHEMA)
        add_keypoints(uri, row, [np.array(values, np.float16).reshape(-1, 51)], "fake", "1")

    estimate(0, PERSON)
    estimate(1, NOBODY)
    with pytest.raises(
        UserError, match=r"2 of 3 training videos .* `carl-ray poses .* --data.keypoints FOLDER"
    ):
        read_videos(config)
    estimate(2, PERSON)
    _, videos = read_videos(config)
    assert capsys.readouterr().err == (
        "1 of 3 training videos have no keypoints of a person\n1 of 1 validation videos have no keypoints of a person\n"
    )
    assert videos.training.column("keypoints_part").to_pylist() == [
        f"{uri}/part-0000{number}.parquet" if number != 1 else None for number in range(3)
    ]
    assert not {"keypoints", "keypoints_digest"} & set(videos.training.column_names)
    of_manifest = with_stills(rows, tmp_path, [PERSON, None, PERSON, None])
    assert read_videos(of_manifest)[1].record.equals(videos.record)


def test_a_run_goes_on_with_the_same_keypoints_and_key_frames_only(tmp_path: Path):
    rows = [clip_row(number, [0, 4]) for number in range(3)]
    points = [PERSON, [float("nan"), *PERSON[1:]], None]
    config = with_stills(rows, tmp_path, points)
    _, videos = read_videos(config)
    record_videos(videos, str(tmp_path))
    step = TrainingStep(config, torch.device("cpu"), 3)
    save_checkpoint(str(tmp_path), step, Progress(1, 4, 0, 0, 1.0, videos_digest(videos.training)), 1)
    assert find_checkpoint(config, read_videos(config)[1], str(tmp_path)) is not None
    for other_rows, other_points, said in (
        (rows, [PERSON, PERSON, None], "video 'train/1.mp4': keypoints_digest was "),
        (
            [*rows[:2], clip_row(2, [0, 5])],
            points,
            "video 'train/2.mp4': frame 1: key_frames was 4, is now 5",
        ),
    ):
        _, videos = read_videos(with_stills(other_rows, tmp_path, other_points))
        with pytest.raises(UserError, match=said):
            find_checkpoint(config, videos, str(tmp_path))


def test_copies_share_the_number_of_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{**clip_row(k, [0, 4]), "content_hash": text} for k, text in enumerate("aba")]
    config = with_stills(rows, tmp_path, [PERSON] * 3)
    monkeypatch.setattr(type(config.objective), "columns", ("content_hash",))
    first, second, third = read_videos(config)[1].training.column("content_hash").to_pylist()
    assert first == third != second and min(first, second) >= 0
