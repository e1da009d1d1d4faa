"""`carl_ray.datasets.penn_action`: an imitation of the published folders, with the traps of real ones."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from carl_ray.data.decode import read_frames
from carl_ray.data.manifest import read_manifest
from carl_ray.datasets import penn_action
from carl_ray.errors import UserError

AddVideo = Callable[..., None]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "Penn Action – größe" / "Penn_Action"
    for name in ("frames", "labels"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.fixture
def phase_labels(raw: Path) -> Path:
    return raw.parent / "penn_action_labels"


@pytest.fixture
def add_video(raw: Path, phase_labels: Path, jpeg: Callable[..., bytes]) -> AddVideo:
    """A function that adds a video to the imitation; None leaves a part of it out."""

    def add(
        name: str,
        action: str | None = "squat",
        train: int = 1,
        *,
        frames: int | Iterable[int] | None = 4,
        num_frames: int | None = None,
        phases: object = (0, 1, 2, 3),
        folder: str | None = None,
    ) -> None:
        numbers = range(1, frames + 1) if isinstance(frames, int) else list(frames or [])
        if frames is not None:
            (raw / "frames" / name).mkdir()
        # Unsorted, as folders are listed.
        for number in reversed(list(numbers)):
            (raw / "frames" / name / f"{number:06d}.jpg").write_bytes(jpeg(number))
        if action is not None:
            joints = np.zeros((len(list(numbers)), 13))
            fields = {"action": action, "train": train, "nframes": num_frames or len(list(numbers))}
            savemat(raw / "labels" / f"{name}.mat", {**fields, "pose": "front", "x": joints, "y": joints})
        if phases is not None:
            folder = folder or f"{'train' if train == 1 else 'val'}/{action}"
            (phase_labels / folder).mkdir(parents=True, exist_ok=True)
            np.save(phase_labels / folder / f"{name}.npy", np.asarray(phases))

    return add


@pytest.fixture
def good(raw: Path, phase_labels: Path, add_video: AddVideo) -> Path:
    """Four videos without any trap."""
    add_video("0002", "squat", -1, phases=[0, 1, 2, 3])
    add_video("0001", "squat", 1, phases=[0, 0, -1, 3])
    add_video("0010", "bowl", 1, frames=3, phases=[0, 1, 2], folder="train/bowling")
    add_video("0011", "tennis_serve", -1, frames=2, phases=[0, 3])
    return raw


GOOD = [
    {"video_id": "test/0002_squat.mp4", "split": "test", "label": "squat", "frame_labels": [0, 1, 2, 3]},
    {
        "video_id": "test/0011_tennis_serve.mp4",
        "split": "test",
        "label": "tennis_serve",
        "frame_labels": [0, 3],
    },
    {"video_id": "train/0001_squat.mp4", "split": "train", "label": "squat", "frame_labels": [0, 0, -1, 3]},
    {"video_id": "train/0010_bowl.mp4", "split": "train", "label": "bowl", "frame_labels": [0, 1, 2]},
]


def reds(video: Path, count: int) -> list[int]:
    """What `jpeg` made of the numbers of the first frames."""
    return read_frames(str(video), range(count))[:, 8, 12, 0].tolist()


def test_frame_folders_become_videos_with_labels(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    conversion = penn_action.convert(good, str(out))
    assert conversion.labels.to_pylist() == GOOD
    assert (conversion.left_out, conversion.mended) == ({}, {})
    expected = [number * 37 % 256 for number in (1, 2, 3, 4)]
    np.testing.assert_allclose(reds(out / "train" / "0001_squat.mp4", 4), expected, atol=3)


def test_videos_that_cannot_come_out_are_counted(
    good: Path, phase_labels: Path, add_video: AddVideo, tmp_path: Path
) -> None:
    add_video("0020", "jump_rope", phases=None)
    add_video("0021", "strum_guitar", phases=[0, 1, 2, 3])
    add_video("0022", frames=None, num_frames=4)
    add_video("0023", frames=0, num_frames=4)
    add_video("0024", None, folder="train/squat")
    add_video("0025", phases=None)
    add_video("0026", folder="val/squat")
    add_video("0026", frames=None, action=None, folder="train/squat")
    add_video("0027", folder="train/pushup")
    add_video("0028", phases=[0, 1, 2, 4])
    add_video("0029", phases=[0.5, 1, 2, 3])
    add_video("0030", phases=[[0, 1], [2, 3]])
    add_video("0031", phases=np.zeros(0, int))
    add_video("0032")
    (phase_labels / "train" / "squat" / "0032.npy").write_bytes(pickle.dumps([0, 1, 2, 3]))
    add_video("0033", phases=np.array([0, 1, None, 3], object))
    add_video("0034")
    mat = good / "labels" / "0034.mat"
    mat.write_bytes(mat.read_bytes()[:200])
    add_video("0035", train=7, folder="train/squat")
    add_video("0036")
    Image.new("RGB", (32, 16)).save(good / "frames" / "0036" / "000003.jpg")
    add_video("0037")
    frame = good / "frames" / "0037" / "000004.jpg"
    frame.write_bytes(frame.read_bytes()[:-2])
    add_video("0038", phases=[0, np.nan, 2, 3])
    out = tmp_path / "out"
    conversion = penn_action.convert(good, str(out))
    assert conversion.labels.to_pylist() == GOOD
    assert conversion.left_out == {
        "jump_rope is not among the 13 actions": ["0020"],
        "strum_guitar is not among the 13 actions": ["0021"],
        "no frames": ["0022", "0023"],
        "no .mat file": ["0024"],
        "no phase labels": ["0025"],
        "more than one file of phase labels": ["0026"],
        "its phase labels are in the folder of another action": ["0027"],
        "a phase label is outside 0 to 3": ["0028"],
        "its phase labels are no integers": ["0029", "0038"],
        "its phase labels are not one number a frame": ["0030", "0031"],
        "its phase labels are no plain NumPy array (pickled ones are not read)": ["0032", "0033"],
        "its .mat file cannot be read": ["0034", "0035"],
        "frame 2 has 32 x 16 pixels, the first one 24 x 16": ["0036"],
        "frame 3 is a damaged JPEG file: its end is missing": ["0037"],
    }
    assert conversion.mended == {}
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        row["video_id"] for row in GOOD
    ]


def test_what_does_not_fit_is_mended_and_counted(good: Path, add_video: AddVideo, tmp_path: Path) -> None:
    add_video("0040", phases=[0, 1, 2, 3, 3])
    add_video("0041", phases=[0, 1, 2])
    add_video("0042", phases=[0, 0, 1, 1, 2, 2, 3, 3])
    add_video("0043", frames=[1, 2, 4], num_frames=4, phases=[0, 1, 2, 3])
    add_video("0044", frames=[0, 1, 2], phases=[0, 1, 2])
    add_video("0045", train=-1, folder="train/squat")
    add_video("0046", phases=[[0], [1], [2], [3]])
    add_video("0047", frames=2, num_frames=6, phases=[0, 0, 1, 1, 2, 2])
    add_video("été", phases=[0.0, 1.0, 2.0, 3.0])
    out = tmp_path / "out"
    conversion = penn_action.convert(good, str(out))
    assert conversion.left_out == {}
    assert conversion.mended == {
        "one label too many, dropped": ["train/0040_squat.mp4"],
        "one label too few, the last frame has none": ["train/0041_squat.mp4"],
        "labels of another number of frames, stretched": ["train/0042_squat.mp4"],
        "`nframes` is not the number of frames": ["train/0043_squat.mp4", "train/0047_squat.mp4"],
        "the split of the phase labels is not that of the .mat file; the former counts": [
            "train/0045_squat.mp4"
        ],
    }
    labels = {row["video_id"]: row["frame_labels"] for row in conversion.labels.to_pylist()}
    assert {video_id[6:10]: labels[video_id] for video_id in labels if "/004" in video_id} == {
        "0040": [0, 1, 2, 3],
        "0041": [0, 1, 2, -1],
        "0042": [0, 1, 2, 3],
        "0043": [0, 1, 3],
        "0044": [0, 1, 2],
        "0045": [0, 1, 2, 3],
        "0046": [0, 1, 2, 3],
        "0047": [0, 0],
    }
    assert labels["train/été_squat.mp4"] == [0, 1, 2, 3]
    expected = [number * 37 % 256 for number in (1, 2, 4)]
    np.testing.assert_allclose(reds(out / "train" / "0043_squat.mp4", 3), expected, atol=3)


def test_files_that_do_not_belong_are_passed_over(good: Path, phase_labels: Path, tmp_path: Path) -> None:
    folders = [good, good / "frames", good / "frames" / "0001", good / "labels", phase_labels / "train"]
    for folder in (*folders, phase_labels / "train" / "squat"):
        (folder / ".DS_Store").write_bytes(b"\0")
        (folder / "Thumbs.db").write_bytes(b"\0")
    (good / "labels" / "._0001.mat").write_bytes(b"\0")
    (phase_labels / "train" / "squat" / "._0001.npy").write_bytes(b"\0")
    (good / "frames" / "0001" / "._000001.jpg").write_bytes(b"\0")
    (good / "frames" / "0001" / "000001 (1).jpg").write_bytes(b"\0")
    (good / "frames" / "0001" / "000002.jpg").rename(good / "frames" / "0001" / "000002.JPEG")
    conversion = penn_action.convert(good, str(tmp_path / "out"))
    assert conversion.labels.to_pylist() == GOOD
    assert (conversion.left_out, conversion.mended) == ({}, {})


def test_without_phase_labels_the_mat_files_split(raw: Path, add_video: AddVideo, tmp_path: Path) -> None:
    add_video("0001", "squat", 1, phases=None)
    add_video("0002", "Pullup ", -1, phases=None)
    add_video("0003", "jump_rope", -1, phases=None)
    conversion = penn_action.convert(raw, str(tmp_path / "out"))
    assert conversion.labels.to_pylist() == [
        {"video_id": "test/0002_pullup.mp4", "split": "test", "label": "pullup", "frame_labels": None},
        {"video_id": "train/0001_squat.mp4", "split": "train", "label": "squat", "frame_labels": None},
    ]
    assert conversion.left_out == {"jump_rope is not among the 13 actions": ["0003"]}


def test_the_command_for_pickles_makes_label_files(tmp_path: Path) -> None:
    documented = penn_action.__doc__ or ""
    command = documented[documented.index("python -c '") + len("python -c '") :].partition("'")[0]
    video = {"name": "0007_squat", "frame_label": np.array([0, 1, 1]), "seq_len": 3}
    for split in ("train", "val"):
        (tmp_path / f"{split}.pkl").write_bytes(pickle.dumps(([video], [[0]])))
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    for split in ("train", "val"):
        labels = np.load(tmp_path / "penn_action_labels" / split / "squat" / "0007.npy")
        assert labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("frames", r"expected what Penn_Action\.tar\.gz .*; nothing there is named frames/\*/"),
        ("labels", r"expected what Penn_Action\.tar\.gz .*; nothing there is named labels/\*\.mat"),
        ("frames/*", r"nothing there is named frames/\*/"),
        ("labels/*", r"nothing there is named labels/\*\.mat"),
        (
            "../penn_action_labels/val",
            r"expected penn_action_labels/train/ACTION/0001\.npy .* val/\*/\*\.npy",
        ),
        ("../penn_action_labels/*/*/*", r"nothing there is named train/\*/\*\.npy"),
    ],
)
def test_another_layout_is_refused(good: Path, missing: str, message: str, tmp_path: Path) -> None:
    for path in list(good.glob(missing)):
        path.rename(tmp_path / f"moved-{path.parent.name}-{path.name}")
    with pytest.raises(UserError, match=message):
        penn_action.convert(good, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command_makes_a_manifest(
    good: Path, add_video: AddVideo, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_video("0020", "jump_rope", phases=None)
    add_video("0041", phases=[0, 1, 2])
    out = tmp_path / "out"
    penn_action.main([str(good), "--out", str(out)])
    rows = read_manifest(str(out / "manifest.parquet")).to_pylist()
    expected = [*GOOD, {**GOOD[2], "video_id": "train/0041_squat.mp4", "frame_labels": [0, 1, 2, -1]}]
    names = ["video_id", "split", "label", "frame_labels"]
    assert sorted(([row[name] for name in names] for row in rows), key=str) == sorted(
        ([row[name] for name in names] for row in expected), key=str
    )
    assert {row["video_id"]: row["num_frames"] for row in rows} == {
        row["video_id"]: len(row["frame_labels"]) for row in expected
    }
    assert {(row["fps"], row["codec"], row["width"], row["height"]) for row in rows} == {
        (25, "mjpeg", 24, 16)
    }
    captured = capsys.readouterr()
    assert "converted 6/6 videos" in captured.err
    printed = captured.out.splitlines()
    assert [line.split() for line in printed if line.startswith(("train", "test"))] == [
        ["train", "3", "1,140", "9", "11"],
        ["test", "2", "966", "6", "6"],
    ]
    assert "       1 x jump_rope is not among the 13 actions (0020)" in printed
    assert "       1 x one label too few, the last frame has none (train/0041_squat.mp4)" in printed
