"""`carl_ray.datasets.scenes`: exact truth, independent factors, key frames every 12 frames, a constant tint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from carl_ray.data.manifest import SCHEMA, attach_labels, read_manifest
from carl_ray.data.scan import index_folder
from carl_ray.datasets import scenes
from carl_ray.datasets.figure import Body
from carl_ray.datasets.scenes import ACTIONS, COCO_JOINTS, NUM_FRAMES, SEQUENCES, ScenesConfig, perform

SMALL = ScenesConfig(num_train=6, num_validation=1, num_test=1, size=32)
SEEN = [place for place, name in enumerate(COCO_JOINTS) if "eye" not in name and "ear" not in name]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "videos"
    scenes.render(folder, SMALL)
    return folder


def _frames(config: ScenesConfig, video_id: str = "train/000.mp4", action: str = "guard and kick"):
    return np.stack([np.asarray(frame, float) for frame in perform(config, video_id, action).frames()])


def test_files_and_labels(rendered: Path) -> None:
    rows = scenes.read_labels(rendered).to_pylist()
    assert {row["video_id"]: row["label"] for row in rows} == scenes.video_ids(SMALL)
    assert {row["label"]: row["pair"] for row in rows} == {name: pair for name, (pair, _) in ACTIONS.items()}
    for row in rows:
        with av.open(str(rendered / row["video_id"])) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            keys = [frame.key_frame for frame in container.decode(video=0)]
        assert np.flatnonzero(keys).tolist() == list(range(0, NUM_FRAMES, 12)) and len(keys) == NUM_FRAMES
        assert row["tint"] == [1, 1, 1] and 0 <= row["scene"] < 6
        keypoints = np.reshape(row["keypoints"], (NUM_FRAMES, 17, 3))
        assert (keypoints[:, SEEN, 2] == 1).all() and keypoints[:, :, 2].sum() == NUM_FRAMES * len(SEEN)
        exact = perform(SMALL, row["video_id"], row["label"]).keypoints
        np.testing.assert_allclose(keypoints, exact, atol=1e-3)


def test_a_manifest_holds_what_is_known(rendered: Path, tmp_path: Path, ray_session: None) -> None:
    out = str(tmp_path / "videos.parquet")
    index_folder(str(rendered), out, scenes.read_labels(rendered))
    manifest = read_manifest(out)
    assert manifest.column_names == [*SCHEMA.names, "pair", "scene", "tint", "keypoints"]
    labels = {row["video_id"]: row for row in scenes.read_labels(rendered).to_pylist()}
    for row in manifest.to_pylist():
        assert row.items() >= labels[row["video_id"]].items()
        assert row["split"] == row["video_id"].partition("/")[0]
    # Indexed and labelled again, it is the same.
    index_folder(str(rendered), out, scenes.read_labels(rendered))
    assert read_manifest(out).equals(manifest)
    assert attach_labels(manifest, scenes.read_labels(rendered)).equals(manifest)


def test_keypoints_are_where_the_figure_is_drawn() -> None:
    config = ScenesConfig(size=128)
    for number, action in enumerate(ACTIONS):
        performance = perform(config, f"train/{number:03d}.mp4", action)
        body = replace(performance.body, skin=(255, 0, 255), shirt=(255, 0, 255), trousers=(255, 0, 255))
        drawn = replace(performance, body=body, background=np.zeros_like(performance.background))
        for frame, keypoints in zip(list(drawn.frames())[::9], drawn.keypoints[::9], strict=True):
            figure = np.asarray(frame)[:, :, 0] > 100
            x, y = np.floor(keypoints[SEEN, :2].T * config.size).astype(int)
            inside = (x >= 0) & (x < config.size) & (y >= 0) & (y < config.size)
            assert inside.sum() >= 10 and figure[y[inside], x[inside]].all()
            # A figure elsewhere would not pass by chance.
            assert figure.mean() < 0.25
    left, right = (
        performance.keypoints[:, COCO_JOINTS.index(f"{side}_shoulder"), 0] for side in ("left", "right")
    )
    assert (left < right).all()


def test_a_mirrored_pose_is_the_mirror_image() -> None:
    body, flip = Body.sample(np.random.default_rng(0)), np.array([-1, 1])
    for poses in SEQUENCES.values():
        rows = np.stack([pose.vector() for pose in poses])
        for pose, mirrored in zip(rows, scenes._mirrored(rows), strict=True):
            found, expected = body.joints(mirrored), body.joints(pose)
            for name, place in found.items():
                side = {"left": "right", "right": "left"}.get(name.partition("_")[0], "")
                other = f"{side}_{name.partition('_')[2]}" if side else name
                np.testing.assert_allclose(place, expected[other] * flip, atol=1e-12)


def test_a_tint_is_a_constant_gain_and_changes_nothing_else() -> None:
    plain, tinted = SMALL, replace(SMALL, tint=True)
    gains = perform(tinted, "train/000.mp4", "guard and kick").tint
    assert perform(plain, "train/000.mp4", "guard and kick").tint.tolist() == [1, 1, 1]
    assert (np.abs(gains - 1) <= 0.6).all() and np.ptp(gains) > 0.05
    expected = np.clip(_frames(plain) * gains, 0, 255)
    np.testing.assert_allclose(_frames(tinted), expected, atol=0.51)
    many = np.stack([perform(tinted, f"train/{i:03d}.mp4", "raise arms").tint for i in range(100)])
    assert many.min() < 0.45 and many.max() > 1.55 and many.mean() == pytest.approx(1, abs=0.08)


def test_a_panning_camera_moves_the_background_alone() -> None:
    static, pan = (
        perform(replace(SMALL, camera=camera), "train/001.mp4", "raise arms") for camera in ("static", "pan")
    )
    assert np.array_equal(static.keypoints, pan.keypoints)
    corners = [np.stack([np.asarray(f, float) for f in p.frames()])[:, :6, :6] for p in (static, pan)]
    moved = [np.abs(np.diff(corner, axis=0)).mean() for corner in corners]
    assert moved[0] == 0 and moved[1] > 1


def test_poses_tell_the_pair_and_only_motion_the_action() -> None:
    config = ScenesConfig(num_train=150, num_test=90, size=32)
    splits = {}
    for split in ("train", "test"):
        actions = {
            video_id: action
            for video_id, action in scenes.video_ids(config).items()
            if video_id.startswith(split)
        }
        shown = [perform(config, *video) for video in actions.items()]
        keypoints = np.stack([performance.keypoints[:, SEEN, :2] for performance in shown])
        pelvis = keypoints[:, :, [COCO_JOINTS[place].endswith("hip") for place in SEEN]].mean(
            2, keepdims=True
        )
        poses = (keypoints - pelvis).reshape(*keypoints.shape[:2], -1)
        turning = np.einsum("bti,btj->bij", poses, np.gradient(poses, axis=1)).reshape(len(poses), -1)
        truth = {
            "action": list(actions.values()),
            "pair": [p.pair for p in shown],
            "scene": [p.scene for p in shown],
        }
        splits[split] = poses.mean(1), np.hstack([poses.mean(1), turning]), truth

    def score(features: int, name: str) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000))
        model.fit(splits["train"][features], splits["train"][2][name])
        return model.score(splits["test"][features], splits["test"][2][name])

    assert score(0, "pair") >= 0.98 and score(0, "action") <= 0.62
    assert score(1, "pair") >= 0.97 and score(1, "action") >= 0.97
    assert score(0, "scene") <= 0.3 and score(1, "scene") <= 0.3
