"""The command `python -m benchmarks.paper`: every run once, one table, mistakes one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import paper
from benchmarks.studies import runs
from carl_ray.config import Config
from carl_ray.datasets import embedded
from carl_ray.evaluation.corpus import EmbeddingSettings
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Origin, write_part
from carl_ray.training.monitor import Status
from tests.samples import manifest_row, write_rows


def trained(config: Config, run_dir: str, *, resume: bool) -> Status:
    return Status(1, 1, None, None, 0.0, ended=True)


def extracted(
    run_dir: str, manifest: str, out: str, settings: EmbeddingSettings, *, splits: list[str]
) -> None:
    """Embeddings of twelve made-up videos, others for each run."""
    rng = np.random.default_rng(len(run_dir) + sum(map(ord, run_dir)))
    origin = Origin(f"{run_dir}/checkpoints/step-00000001", "ab", "demo", 1, 8, 16, "resized", True)
    labels = np.repeat([-1, 0, 1, 2, -1], 5).astype(np.int32)
    videos = [
        EmbeddedVideo(
            video_id=f"{split}/{number}",
            uri=f"/{number}.mp4",
            content_hash="0",
            split=split,
            label="kick",
            frame_labels=labels,
            progress=np.linspace(0, 1, 25, dtype=np.float32),
            fps=25.0,
            timestamps=np.arange(25.0),
            embeddings=rng.standard_normal((25, 4)).astype(np.float32),
            untrained=rng.standard_normal((25, 4)).astype(np.float32),
        )
        for split in splits
        for number in range(6)
    ]
    write_part(out, videos, origin, "float16")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["12"], "unknown table '12'"),
        (["13", "--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["13", "--preset", "pen_action"], "did you mean penn_action?"),
        (
            ["13", "--preset", "penn_action"],
            "--preset penn_action: expected --manifest with the URI of its videos",
        ),
        (["13", "--preset", "clips_demo"], "--preset clips_demo: expected one of encoders of frames"),
        (
            ["13", "--preset", "pouring", "--frozen"],
            "--preset pouring: expected one of encoders of frames, and with",
        ),
    ],
)
def test_mistakes_on_the_command_line(arguments, expected, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        paper.main(arguments)
    captured = capsys.readouterr().err
    assert left.value.code == 2 and expected in captured and len(captured.splitlines()) == 1


def test_a_table_of_another_preset(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[Config] = []

    def train(config: Config, run_dir: str, *, resume: bool) -> Status:
        configs.append(config)
        return trained(config, run_dir, resume=resume)

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "embed_corpus", extracted)
    manifest = write_rows([manifest_row()], tmp_path / "m.parquet")
    words = ["11", "--preset", "finegym99", "--manifest", manifest, "--out", str(tmp_path), "--seeds", "1"]
    paper.main([*words, "--row", "T = 240", "--row", "T = 80"])
    assert [config.model.num_frames for config in configs] == [240, 80]
    assert {(config.preset, config.data.manifest) for config in configs} == {("finegym99", manifest)}
    result = json.loads((tmp_path / "table-11-finegym99-rows.json").read_text())
    first = result["rows"][0]
    assert first["paper"]["linear_probe"] == "41.75" and first["metrics"]["linear_probe"]["mean"] is not None


def test_a_table_is_run_once(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Training and embedding are tested elsewhere, and take long to start.
    monkeypatch.setattr(runs, "train", trained)
    monkeypatch.setattr(runs, "embed_corpus", extracted)
    monkeypatch.setattr(embedded, "index_embedded", lambda: ("/nowhere/manifest.parquet", None, None))
    arguments = ["13", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "study")]
    paper.main(arguments)
    printed = capsys.readouterr().out
    assert "2 runs, 2 of them still to be done" in printed
    result = json.loads((tmp_path / "study" / "table-13.json").read_text())
    assert (result["table"], result["seeds"], result["epochs"]) == ("13", 1, 1)
    assert result["command"].endswith("benchmarks.paper " + " ".join(arguments))
    first, second = result["rows"]
    for metric in ("phase_classification", "alignment_error"):
        values = [row["metrics"][metric]["values"] for row in (first, second)]
        assert all(len(value) == 1 and value[0] is not None for value in values)
    text = (tmp_path / "study" / "table-13.md").read_text()
    assert text in printed and "contrastive baseline" in text and "*positions* (of SCL)" in text

    def trained_again(*arguments, **options):
        raise AssertionError("a run that was done is done again")

    monkeypatch.setattr(runs, "train", trained_again)
    paper.main(arguments)
    assert "2 runs, 0 of them still to be done" in capsys.readouterr().out
