"""`carl-ray propagate`: labels of a few videos go to all others, and come back as a file of labels."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from carl_ray import propagate
from carl_ray.evaluation.embeddings import write_part
from carl_ray.evaluation.intervals import with_labels
from tests.embedded import embedded, failure
from tests.evaluation.test_embeddings import ORIGIN
from tests.evaluation.test_propagation import AGAIN, ONCE, sequence

TRUTH: dict[str, np.ndarray] = {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    videos = []
    actions = {"a": "lift", "b": "lift", "c": "swing", "d": "swing", "e": "run"}
    for k, (name, label) in enumerate(actions.items()):
        embeddings, TRUTH[f"{name}.mp4"] = sequence(*(AGAIN if label == "swing" else ONCE), seed=k)
        times = np.cumsum(np.random.default_rng(k).uniform(0.02, 0.08, len(embeddings)))
        known = {"label": label, "fps": 20.0, "frame_times": times - times[0], "untrained": embeddings}
        videos.append(embedded(f"{name}.mp4", embeddings, **known))
    write_part(str(tmp_path / "e"), videos, ORIGIN, "float32")
    phases = {name: np.array(["up", "down", "hold", ""])[truth] for name, truth in TRUTH.items()}
    rows = [
        f"{name},{frame},{phase}\n" for name in ("a.mp4", "c.mp4") for frame, phase in enumerate(phases[name])
    ]
    (tmp_path / "few.csv").write_text("".join(["video,frame,label\n", *rows]))
    return tmp_path


def run(folder: Path, *arguments: str) -> None:
    propagate.main(["--embeddings", str(folder / "e"), "--out", str(folder / "p.csv"), *arguments])


def test_labels_are_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = (folder / "few.csv").read_text()
    for arguments in (
        ["--labels", str(folder / "few.csv"), "--out", str(folder / "few.csv")],
        ["--labels", str(folder / "few.csv"), "--out", "a.csv", "--frames", str(folder / "few.csv")],
        ["--labels", str(folder / "few.csv"), "--frames", str(folder / "p.csv")],
    ):
        with pytest.raises(SystemExit) as left:
            run(folder, *arguments)
        assert left.value.code == 2 and "expected files of their own" in capsys.readouterr().err
    assert (folder / "few.csv").read_text() == few and not (folder / "p.csv").exists()


def test_intervals_come_back_as_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "--labels", str(folder / "few.csv"), "--frames", str(folder / "f.csv"))
    said = capsys.readouterr()
    assert "labels of 2 videos propagated to 2" in said.out
    assert "left without labels: 1 videos of actions that no labelled video has" in said.out
    assert "few.csv: frames (video, frame, label)" in said.err
    frames = list(csv.DictReader((folder / "f.csv").open()))
    assert {row["video"] for row in frames} == {"b.mp4", "d.mp4"}
    for name in ("b.mp4", "d.mp4"):
        labels = np.array([row["label"] for row in frames if row["video"] == name])
        assert (labels == np.array(["up", "down", "hold", ""])[TRUTH[name]]).mean() > 0.9
    assert all(0 <= float(row["confidence"]) <= 1 for row in frames)
    # Both files are labels again, of the same frames; now all but one are labelled.
    written = [row["label"] for row in sorted(frames, key=lambda row: (row["video"], int(row["frame"])))]
    for name in ("p.csv", "f.csv"):
        videos, _ = with_labels(propagate.read_embeddings(str(folder / "e")), [str(folder / name)])
        labelled = [video for video in videos if video.frame_labels is not None]
        back = [v.phase_name(phase) or "" for v in labelled for phase in v.phases.tolist()]
        assert back == written
    (folder / "p.csv").rename(folder / "q.csv")
    run(folder, "--labels", str(folder / "few.csv"), "--labels", str(folder / "q.csv"))
    said = capsys.readouterr().out
    assert "labels of 4 videos propagated to 0" in said
    shares = re.search(r"from each other, .* get (\d+)% of their labelled frames right \((\d+)% at", said)
    assert shares is not None and int(shares[1]) > 90 and 0 < int(shares[2]) <= 100


def test_frames_without_a_label_may_be_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each labelled video not all phases: the rest is in no phase, or not known."""
    rows = (folder / "few.csv").read_text().splitlines()

    def label(*phases: str) -> None:
        few = [row for row in rows[1:] if row.endswith(phases)]
        (folder / "few.csv").write_text("\n".join([rows[0], *few]) + "\n")

    def predicted(*arguments: str) -> tuple[set[str], str]:
        run(folder, "--labels", str(folder / "few.csv"), "--frames", str(folder / "f.csv"), *arguments)
        said = capsys.readouterr()
        frames = list(csv.DictReader((folder / "f.csv").open()))
        return {row["label"] for row in frames}, said.out + said.err

    label(",up", ",down")
    labels, said = predicted()
    (line,) = (line.split() for line in said.splitlines() if line.endswith("b.mp4"))
    assert labels == {"", "up", "down"} and 0 < int(line[1].rstrip("%")) < 100
    labels, _ = predicted("--unlabelled", "ignore")
    assert labels == {"up", "down"}
    frames = list(csv.DictReader((folder / "f.csv").open()))
    for name in ("b.mp4", "d.mp4"):
        found = np.array([row["label"] for row in frames if row["video"] == name])
        truth = TRUTH[name]
        known = (truth == 0) | (truth == 1)
        assert (found == np.array(["up", "down", "", ""])[truth])[known].mean() > 0.8
    # One phase would be that of every frame.
    label(",up")
    _, said = predicted()
    assert "mostly in none" in said and "--unlabelled ignore" not in said
    arguments = ["--embeddings", str(folder / "e"), "--out", str(folder / "p.csv"), "--unlabelled", "ignore"]
    said = failure(capsys, propagate, *arguments, "--labels", folder / "few.csv")
    assert "have one phase alone" in said


def test_splits_do_not_matter(folder: Path) -> None:
    videos = propagate.read_embeddings(str(folder / "e"))
    videos = [replace(video, split="test" if video.video_id == "a.mp4" else "train") for video in videos]
    (folder / "one.csv").write_text("video,frame,label\na.mp4,0,up\nb.mp4,0,down\na.mp4,1,only here\n")
    labelled, _ = with_labels(videos, [str(folder / "one.csv")])
    assert {video.split for video in labelled} == {None}
    assert "only here" in {labelled[0].phase_name(phase) for phase in labelled[0].phases.tolist()}


def test_names_do_not_command_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "few.csv").write_text("video,frame,label\na.mp4,0,up\x1b]0;x\x07\n")
    run(folder, "--labels", str(folder / "few.csv"))
    said = "".join(capsys.readouterr())
    assert "up?]0;x?" in said and said.replace("\n", "").isprintable()


def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.csv").write_text("video,frame,label\nx.mp4,0,up\na.mp4,99,up\n")
    past = ("--labels", folder / "bad.csv")
    for arguments, said in (
        ((), "no video has labels; name some with --labels"),
        (past, "bad.csv, row 3: frame 99 is past the end: the frames are 0 to 33"),
    ):
        known = ("--embeddings", folder / "e", "--out", folder / "p.csv")
        assert said in failure(capsys, propagate, *known, *arguments, several=True)
