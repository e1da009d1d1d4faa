"""`carl_ray.evaluation.poses`: every video once, bad ones told, goes on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from carl_ray import poses
from carl_ray.data.keypoint_table import read_keypoint_table
from carl_ray.data.manifest import SCHEMA, write_table
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation import extraction
from carl_ray.evaluation.corpus import EmbeddingSettings
from carl_ray.evaluation.poses import PoseExtractor, estimate_poses
from tests.evaluation.test_extraction import row

SETTINGS = EmbeddingSettings(num_workers=1)


class Fake:
    """All joints are at (number in the frame / 64, height / width); there is nobody in frames with even numbers."""

    name, version = "fake", "1"

    def track(self, frames):
        from tests.conftest import _frame_numbers

        for frame in frames:
            (number,) = _frame_numbers(frame[None])
            if number == 21:
                raise ValueError("I see ghosts")
            yield np.full((17, 3), (number / 64, frame.shape[0] / frame.shape[1], 1), np.float32) * (
                number % 2
            )


class Absent(Fake):
    def track(self, frames):
        return (np.zeros((17, 3), np.float32) for _ in frames)


def expected(num_frames: int, every: int = 1, ratio: float = 24 / 40) -> np.ndarray:
    found = np.zeros((num_frames, 17, 3))
    for number in range(num_frames):
        if number % 2 and every == 1:
            found[number] = (number / 64, ratio, 1)
    return found


@pytest.fixture
def manifest(make_video, tmp_path: Path) -> tuple[str, list[dict]]:
    rows = [
        row(
            make_video(tmp_path / f"{n}.mp4", 8 + n, 40, 24),
            f"v{n}",
            8 + n,
            split="train",
            content_hash=str(n),
        )
        for n in range(4)
    ]
    rows[3] |= {"split": "test"}
    uri = str(tmp_path / "manifest.parquet")
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), uri)
    return uri, rows


def read(folder: Path) -> dict[str, np.ndarray]:
    rows = read_keypoint_table(str(folder)).to_pylist()
    return {r["video_id"]: np.array(r["keypoints"]).reshape(-1, 17, 3) for r in rows}


def test_every_video_once_and_only_what_is_missing(ray_session, manifest, tmp_path: Path) -> None:
    uri, rows = manifest
    out = tmp_path / "keypoints"
    first = estimate_poses(uri, str(out), SETTINGS, splits=["test"], make_estimator=Fake)
    assert (first.num_present, first.num_embedded, first.num_frames, first.num_with_person) == (0, 1, 11, 5)
    whole = Path(rows[1]["uri"]).read_bytes()
    Path(rows[1]["uri"]).write_bytes(whole[:40])
    second = estimate_poses(uri, str(out), SETTINGS, make_estimator=Fake)
    assert (second.num_present, second.num_embedded, second.without_person) == (1, 2, [])
    (line,) = [json.loads(text) for text in (out / "bad_videos.jsonl").read_text().splitlines()]
    assert line["video_id"] == "v1" and second.bad_videos == [("v1", line["reason"])]
    with pytest.raises(RunError, match=r"none of 1 videos could be read; v1: "):
        estimate_poses(uri, str(out), SETTINGS, make_estimator=Fake)
    Path(rows[1]["uri"]).write_bytes(whole)
    third = estimate_poses(uri, str(out), SETTINGS, make_estimator=Fake)
    assert (third.num_present, third.num_embedded, third.bad_videos) == (3, 1, [])
    assert (out / "bad_videos.jsonl").read_text() == ""
    found = read(out)
    assert sorted(found) == ["v0", "v1", "v2", "v3"]
    for number, (_, keypoints) in enumerate(sorted(found.items())):
        np.testing.assert_allclose(keypoints, expected(8 + number), atol=1e-3)
    table = read_keypoint_table(str(out)).sort_by("video_id")
    assert table.schema.field("keypoints").type == pa.list_(pa.float16())
    assert table.column("content_hash").to_pylist() == ["0", "1", "2", "3"]
    assert set(table.column("estimator_version").to_pylist()) == {"1"}

    # Another file under the same id replaces the row; nobody in it is told.
    rows[0] |= {"content_hash": "new"}
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), uri)
    last = estimate_poses(uri, str(out), SETTINGS, make_estimator=Absent)
    assert (last.num_present, last.num_embedded, last.without_person) == (3, 1, ["v0"])
    assert len(read(out)) == 4 and not read(out)["v0"].any()
    before = sorted(path.name for path in out.iterdir())
    assert estimate_poses(uri, str(out), SETTINGS, make_estimator=Fake).num_present == 4
    with pytest.raises(
        UserError, match=r"its keypoints are of fake 1, but fake 1, every 2 frames was asked for; name"
    ):
        estimate_poses(uri, str(out), SETTINGS, every=2, make_estimator=Fake)
    assert sorted(path.name for path in out.iterdir()) == before


def test_what_was_estimated_is_kept_when_the_driver_is_interrupted(
    ray_session, manifest, tmp_path: Path, monkeypatch
) -> None:
    uri, _ = manifest
    out = tmp_path / "keypoints"
    rows_of_actors = extraction.rows_of_actors

    def interrupted(*arguments, **options):
        for number, result in enumerate(rows_of_actors(*arguments, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(extraction, "rows_of_actors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        estimate_poses(uri, str(out), SETTINGS, make_estimator=Fake)
    assert len(read(out)) == 2
    monkeypatch.undo()
    result = estimate_poses(uri, str(out), SETTINGS, make_estimator=Fake)
    assert (result.num_present, result.num_embedded, len(read(out))) == (2, 2, 4)


def test_extractor_shows_whole_frames_and_interpolates(make_video, tmp_path: Path) -> None:
    """Portrait and landscape, larger and smaller than what is estimated on."""
    for name, width, height in (("a", 40, 24), ("b", 24, 64), ("c", 1280, 720)):
        video = make_video(tmp_path / f"{name}.mp4", 9, width, height)
        ((found,),) = PoseExtractor(Fake()).embed([(str(video), 9)])
        assert found.dtype == np.float16
        np.testing.assert_allclose(found.reshape(9, 17, 3), expected(9, ratio=height / width), rtol=3e-3)
    ((found,),) = PoseExtractor(Fake(), every=3).embed([(str(video), 9)])
    assert found.reshape(9, 17, 3)[:, 0, 2].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_an_estimator_that_fails_ends_its_video_only(make_video, tmp_path: Path) -> None:
    videos = [(str(make_video(tmp_path / f"{n}.mp4", n, 40, 24)), n) for n in (30, 5)]
    failed, (found,) = PoseExtractor(Fake()).embed(videos)
    assert str(failed) == "estimating failed (ValueError: I see ghosts)" and len(found) == 5


def test_the_command_says_what_it_did(ray_session, manifest, tmp_path: Path, monkeypatch, capsys) -> None:
    uri, rows = manifest
    Path(rows[2]["uri"]).write_bytes(b"")
    monkeypatch.setattr(
        estimate_poses, "__kwdefaults__", estimate_poses.__kwdefaults__ | {"make_estimator": Fake}
    )
    out = str(tmp_path / "keypoints")
    poses.main([uri, "--out", out, "--num-workers", "1"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("videos estimated: 3 (28 frames, ")
    assert said[1:] == [
        "there before:     0",
        "with a person:    46.4% of the frames; nobody in 0 videos",
        "not readable:     1, listed in bad_videos.jsonl in the folder",
        f"keypoints:        {out}",
    ]
