"""The command line around `carl_ray.evaluation.localization`."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest

from carl_ray import export
from carl_ray.evaluation.embeddings import EmbeddedVideo, Origin, write_part


@pytest.fixture
def embeddings(tmp_path) -> str:
    video = EmbeddedVideo(
        video_id="v_a.mp4",
        uri="/v_a.mp4",
        timestamps=np.arange(12.0),
        embeddings=np.eye(12, 3, dtype=np.float32) + 1,
        frame_labels=np.repeat([-1, 0, 1], 4).astype(np.int32),
        fps=4.0,
    )
    origin = Origin("checkpoint", "0" * 64, "demo", 10, 32, 64, "resized", False)
    write_part(str(tmp_path / "embeddings"), [video], origin, "float16")
    return str(tmp_path / "embeddings")


def test_files_are_written_and_counted(embeddings, tmp_path, capsys):
    arguments = ["--embeddings", embeddings, "--out", str(tmp_path / "out")]
    export.main([*arguments, "--length", "20"])
    printed = capsys.readouterr().out
    assert (
        "videos written: 1" in printed and "there before:   0" in printed and str(tmp_path / "out") in printed
    )
    with h5py.File(tmp_path / "out" / "v_a.h5") as file:
        assert file["v_a"].shape == (20, 3)
    export.main([*arguments, "--length", "20"])
    assert "there before:   1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "{folder}/out"], "--embeddings missing"),
        (["--embeddings", "{embeddings}"], "--out missing"),
        (["--embeddings", "{folder}/nothing", "--out", "{folder}/out"], "no embeddings there"),
        (["--embeddings", "{embeddings}", "--out", "{folder}/out", "--length", "0"], "--length"),
        (["--embeddings", "{embeddings}", "--out", "{folder}/out.csv", "--format", "npz"], "to end in .npz"),
        (
            ["--embeddings", "{embeddings}", "--out", "{folder}/out", "--format", "parquet"],
            "to end in .parquet",
        ),
        ([], "no trained demo there"),
    ],
)
def test_mistakes_are_one_line(embeddings, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path / "home"))
    with pytest.raises(SystemExit) as exit_:
        export.main([text.format(folder=tmp_path, embeddings=embeddings) for text in arguments])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_csv_files(embeddings, tmp_path):
    arguments = ["--embeddings", embeddings, "--out", str(tmp_path / "out"), "--format", "csv"]
    export.main(arguments)
    written = (tmp_path / "out" / "v_a.csv").read_text()
    assert written.splitlines()[0] == "f0,f1,f2" and len(written.splitlines()) == 101


@pytest.mark.parametrize("suffix", ["parquet", "csv", "npz"])
def test_a_table_of_frames(embeddings, tmp_path, capsys, suffix):
    out = tmp_path / f"frames.{suffix}"
    export.main(["--embeddings", embeddings, "--out", str(out)])
    assert "frames:   12" in capsys.readouterr().out
    values = np.eye(12, 3, dtype=np.float32) + 1
    if suffix == "npz":
        with np.load(out, allow_pickle=False) as found:
            assert found["video"].tolist() == ["v_a.mp4"] * 12
            assert found["label"].tolist() == [""] * 4 + ["phase 0"] * 4 + ["phase 1"] * 4
            np.testing.assert_array_equal(found["embeddings"], values)
            np.testing.assert_array_equal(found["time_s"], np.arange(12) / 4)
        return
    found = pd.read_parquet(out) if suffix == "parquet" else pd.read_csv(out)
    assert list(found.columns) == ["video", "frame", "time_s", "label", "e0", "e1", "e2"]
    assert found["label"].fillna("").tolist() == [""] * 4 + ["phase 0"] * 4 + ["phase 1"] * 4
    np.testing.assert_array_equal(found[["e0", "e1", "e2"]].to_numpy(np.float32), values)
    assert found["frame"].tolist() == list(range(12)) and found["time_s"].tolist() == [
        i / 4 for i in range(12)
    ]
