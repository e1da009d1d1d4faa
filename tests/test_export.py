"""The command line around `carl_ray.evaluation.localization`."""

from __future__ import annotations

import h5py
import numpy as np
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
    (tmp_path / "out" / "v_a.csv").write_text(written[:100])
    export.main(arguments)
    assert (tmp_path / "out" / "v_a.csv").read_text() == written
