"""The command line around `carl_ray.evaluation.localization`."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest

from carl_ray import export
from carl_ray.evaluation.embeddings import write_part
from tests.embedded import ORIGIN, embedded, failure


@pytest.fixture
def embeddings(tmp_path) -> str:
    labels = np.repeat([-1, 0, 1], 4).astype(np.int32)
    video = embedded("v_a.mp4", np.eye(12, 3, dtype=np.float32) + 1, frame_labels=labels, fps=4.0)
    write_part(str(tmp_path / "embeddings"), [video], ORIGIN, "float16")
    return str(tmp_path / "embeddings")


def test_files_are_written_and_counted(embeddings, tmp_path, capsys):
    arguments = ["--embeddings", embeddings, "--out", str(tmp_path / "out")]
    export.main([*arguments, "--length", "20"])
    printed = capsys.readouterr().out
    for said in ("videos written: 1", "there before:   0", str(tmp_path / "out")):
        assert said in printed
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
        (["--embeddings", "{embeddings}", "--out", "{folder}/out", "--format", "parquet"], "in .parquet"),
        ([], "no trained demo there"),
    ],
)
def test_mistakes_are_one_line(embeddings, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path / "home"))
    given = [text.format(folder=tmp_path, embeddings=embeddings) for text in arguments]
    assert message in failure(capsys, export, *given)


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
    assert found["frame"].tolist() == list(range(12))
    assert found["time_s"].tolist() == [i / 4 for i in range(12)]
