"""`carl-ray cache`, `embed --encoder frozen` and training from what they leave, through the commands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import carl_ray
from carl_ray import align, cache, embed, evaluate, presets, search, train
from carl_ray.config import to_json
from carl_ray.data.features import list_parts, read_features, require_cache
from carl_ray.errors import UserError
from carl_ray.evaluation import part_writer
from carl_ray.evaluation.embeddings import Embeddings
from carl_ray.evaluation.frames import unit_frames
from carl_ray.evaluation.frozen import load_frozen
from carl_ray.fitting import fitted
from carl_ray.options import overridden
from carl_ray.training import trainer
from carl_ray.training.monitor import Status
from carl_ray.training.run_checks import CheckedRun
from tests.samples import failure, manifest_row, write_rows

TINY = (
    *("--augment.image_size", "32", "--data.short_side", "32", "--model.backbone", "small"),
    *("--model.weights", "random"),
)
SMALLER = (*("--copies", "1", "--frame-stride", "2", "--num-workers", "1"), *TINY)


@pytest.fixture
def manifest(make_video: Callable[..., Path], tmp_path: Path) -> str:
    rows = []
    for number in range(6):
        frames = 50 + number
        path = make_video(tmp_path / "videos" / f"{number}.mp4", frames, 40, 24)
        file = {"uri": str(path), "num_frames": frames, "content_hash": str(number)}
        labels = {"label": "jump", "frame_labels": [int(n > 25) for n in range(frames)]}
        split = "test" if number > 3 else "train"
        rows.append(manifest_row(f"v{number}", width=40, height=24, split=split, **file, **labels))
    return write_rows(rows, tmp_path / "manifest.parquet")


@pytest.fixture
def small_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset with a backbone of no weight, at 32 pixels."""
    laptop = presets.laptop()
    model = replace(laptop.model, backbone="small", weights="random", dropout=0.0)
    augment = replace(laptop.augment, image_size=32, copies=1)
    small = replace(laptop, model=model, augment=augment, data=replace(laptop.data, short_side=32))
    monkeypatch.setitem(presets.PRESETS, "laptop", lambda: small)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--manifest", "none.parquet"], "no manifest there"),
        (["--manifest", "m", "--frame-stride", "x"], "data.frame_stride"),
        (["--manifest", "m", "--model.learnable", "all"], "frozen backbone"),
        (["--manifest", "m", "--augment.image_size", "96"], "augment.copies needs data.short_side equal to"),
    ],
)
def test_mistakes_of_cache(capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    status, line = failure(capsys, cache.main, *words)
    assert status == 2 and expected in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--encoder", "frozen", "--checkpoint", "r"], "expected one of them"),
        (["--encoder", "frozen", "--out", "e"], "needs --manifest and --out"),
        (["--encoder", "frozen", "--manifest", "m", "--out", "e", "--view", "central"], "neither --view nor"),
        (["--encoder", "frozen", "--manifest", "m", "--out", "e", "--form", "joined"], "nor --form"),
        (
            ["--checkpoint", "r", "--manifest", "m", "--out", "e", "--view", "central", "--features", "f"],
            "--features are of the view resized: leave them out, or --view central",
        ),
    ],
)
def test_mistakes_of_embed(capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    status, line = failure(capsys, embed.main, *words)
    assert status == 2 and expected in line


def test_only_missing_videos_are_cached_and_others_features_refused(
    ray_session: None,
    manifest: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = str(tmp_path / "F")
    words = ("--manifest", manifest, "--out", out)
    cache.main([*words, *SMALLER, "--split", "test"])
    before = {part: Path(part).read_bytes() for part in list_parts(out)}
    monkeypatch.setattr(part_writer, "_PART_BYTES", 1)
    cache.main([*words, *SMALLER])
    assert "videos cached: 4" in capsys.readouterr().out
    assert len(list_parts(out)) == len(before) + 4
    assert all(Path(part).read_bytes() == content for part, content in before.items())
    rows = pq.read_table(manifest)
    located = require_cache(out).locate_all(rows).to_pylist()
    for row in located:
        for copy in (0, 1):
            features = read_features(row["features_part"], row["features_group"], copy)
            assert features.shape == ((row["num_frames"] + 1) // 2, 9 * 64) and features.any()
    cache.main([*words, *SMALLER])
    assert "there before:  6" in capsys.readouterr().out
    for changed, named in (
        (("--training.seed", "1"), "training.seed"),
        (("--model.backbone", "resnet18"), "model.backbone"),
        (("--copies", "2"), "augment.copies"),
    ):
        status, line = failure(capsys, cache.main, *words, *SMALLER, *changed)
        assert status == 2 and named in line, line
    # The seed of the random weights; frame stride and number of copies as they are.
    status, line = failure(capsys, cache.main, *words, *SMALLER, "--copies", "0", "--training.seed", "1")
    assert status == 2 and "the backbone's weights" in line, line


def test_an_encoder_without_training(
    ray_session: None,
    small_laptop: None,
    manifest: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--encoder", "frozen", "--manifest", manifest, "--out", "frozen"]  # as the encoder's own name
    embed.main([*words, "--split", "train"])
    embed.main(words)  # adds the others, with the same axes
    assert "videos embedded: 2" in capsys.readouterr().out
    out = str(tmp_path / "frozen")
    embeddings = Embeddings.open(out)
    videos = list(embeddings)
    assert [len(video) for video in videos] == [50 + number for number in range(6)]
    assert {video.embeddings.shape[1] for video in videos} == {128}
    # The encoder that the folder holds embeds a file as the command did.
    single = carl_ray.load_encoder(out).embed(videos[0].uri)
    unit = videos[0].embeddings / np.linalg.norm(videos[0].embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(single, unit, atol=2e-3)
    monkeypatch.chdir(tmp_path.parent)
    assert carl_ray.load_encoder("frozen").embed(videos[0].uri).shape == (50, 2 * 9 * 64)
    found = load_frozen(out)
    assert found is not None
    whole = carl_ray.load_encoder(replace(found, components=None)).embed(videos[0].uri)
    np.testing.assert_allclose(whole @ whole.T, unit @ unit.T, atol=0.05)  # 128 components hold nearly all
    evaluate.main(["--train", out, "--test", out, "--out", str(tmp_path / "evaluation")])
    document = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert document["origin"]["preset"] == "frozen" and document["untrained"] is None
    search.main([videos[0].uri, "--frame", "20", "--embeddings", out])
    search.main(["v0", "--frame", "20", "--embeddings", out])
    monkeypatch.chdir(tmp_path)
    align.main([videos[0].uri, videos[1].uri, "--checkpoint", out, "--out", "pairs.csv"])
    assert "frozen" in capsys.readouterr().out and (tmp_path / "pairs.csv").read_text().count("\n") > 50


def test_fit_makes_the_features_as_the_command_does(
    ray_session: None, small_laptop: None, manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[CheckedRun] = []

    def train_checked(run: CheckedRun) -> Status:
        checked.append(run)
        return Status(8, 8, None, None, 0.0, ended=True)

    monkeypatch.setattr(trainer, "train_checked", train_checked)
    run, laptop = tmp_path / "run", presets.preset("laptop")
    training = replace(laptop.training, epochs=4, global_batch_size=2)
    config = replace(laptop, data=replace(laptop.data, manifest=manifest), training=training)
    carl_ray.fit(config, str(run))
    ours = checked[0].config
    assert (ours.data.frame_stride, ours.objective.variance, ours.training.epochs) == (1, 1.0, 4)
    features = require_cache(ours.data.features or "")
    assert Path(features.uri).parent == tmp_path / "features"
    assert features.locate(pq.read_table(manifest)).column("features_part").null_count == 0
    with fitted(
        overridden(laptop, words := {"data.manifest": manifest}), str(run), resume=False, given=words
    ):
        by_command = replace(checked[1].config, training=training)
    assert by_command == ours
    # A run goes on as it was begun, also with features that its videos alone would not get.
    begun = replace(ours, model=replace(ours.model, num_frames=9))
    run.mkdir()
    (run / "config.json").write_text(to_json(begun))
    carl_ray.fit(config, str(run), resume=True)
    assert checked[2].config == begun
    changed = replace(config, data=replace(config.data, frame_stride=2))
    with pytest.raises(UserError, match=r"features made with data.frame_stride = 1, but 2 is needed"):
        carl_ray.fit(changed, str(run), resume=True)


@pytest.mark.slow
def test_laptop_from_a_manifest_to_a_report(
    local_training: None,
    small_laptop: None,
    manifest: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    words = ["laptop", "--data.manifest", manifest, "--run-dir", str(run), "--training.epochs", "4"]
    train.main([*words, "--training.global_batch_size", "2"])
    printed = capsys.readouterr().out
    assert "videos: 4 train, 2 test; 8 steps of 2; about " in printed
    assert "stride 1, T 32: the median video has" in printed
    assert (run / "evaluation" / "report.html").exists()
    (folder,) = (tmp_path / "features").iterdir()
    laptop = carl_ray.preset("laptop")
    training = replace(laptop.training, epochs=4, global_batch_size=2)
    config = replace(laptop, data=replace(laptop.data, manifest=manifest), training=training)
    assert carl_ray.fit(config, str(run), resume=True) == str(run)  # it is that run
    # The run's embeddings are joined; a video without features, and a file, are embedded likewise.
    joined = Embeddings.open(str(run / "embeddings"))
    wanted = unit_frames([joined.video("v0").embeddings])[0]
    encoder = carl_ray.load_encoder(str(run), like=str(run / "embeddings"))
    np.testing.assert_allclose(encoder.embed(joined.video("v0").uri), wanted, atol=0.02)
    rows = pq.read_table(manifest).to_pylist()
    new = {**rows[0], "video_id": "new", "content_hash": "new"}
    more = write_rows([new], tmp_path / "more.parquet")
    embed.main(["--checkpoint", str(run), "--manifest", more, "--out", str(run / "embeddings")])
    video = Embeddings.open(str(run / "embeddings")).video("new")
    np.testing.assert_allclose(unit_frames([video.embeddings])[0], wanted, atol=0.02)
    words_of_other = ["--checkpoint", str(run), "--manifest", manifest, "--out", str(run / "embeddings")]
    status, line = failure(capsys, embed.main, *words_of_other, "--form", "plain")
    assert status == 2 and "another origin (different: form)" in line
    for path in (tmp_path / "videos").iterdir():
        path.unlink()  # nothing decodes any more
    again = ["--out", str(tmp_path / "again"), "--form", "joined"]
    embed.main(["--checkpoint", str(run), "--manifest", manifest, *again])
    first, second = (list(Embeddings.open(str(uri))) for uri in (run / "embeddings", tmp_path / "again"))
    first = [video for video in first if video.video_id != "new"]
    assert [a.video_id for a in first] == [b.video_id for b in second]
    assert all(np.array_equal(a.embeddings, b.embeddings) for a, b in zip(first, second, strict=True))
    other = str(tmp_path / "other")
    status, line = failure(capsys, train.main, *words[:3], "--run-dir", other, "--model.learnable", "all")
    assert status == 2 and "model.learnable must be none" in line
    seed = ("--data.features", str(folder), "--training.seed", "3")
    status, line = failure(capsys, train.main, *words[:3], "--run-dir", other, *seed)
    assert status == 2 and "is needed; name another folder" in line


@pytest.mark.slow
def test_a_kill_loses_at_most_one_block(
    ray_session: None,
    manifest: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed after its first part, the command leaves it, and computes only the rest when called again."""
    out = tmp_path / "F"
    # The second part waits, or a call that nobody looks at for a while would be at its end.
    code = """
import time
from carl_ray import cache
from carl_ray.evaluation import part_writer
from carl_ray.evaluation.part_writer import PartWriter
flush = PartWriter.flush
def flush_once(self):
    flush(self)
    PartWriter.flush = lambda self: time.sleep(3600)
part_writer._PART_BYTES, PartWriter.flush = 1, flush_once
cache.main()
"""
    words = ["--manifest", manifest, "--out", str(out), *SMALLER]
    process = subprocess.Popen([sys.executable, "-c", code, *words])
    deadline = time.monotonic() + 900
    while len(list_parts(str(out))) < 1:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    kept = {part: Path(part).read_bytes() for part in list_parts(str(out))}
    assert len(kept) == 1
    monkeypatch.setattr(part_writer, "_PART_BYTES", 1)
    cache.main(words)
    assert "videos cached: 5" in capsys.readouterr().out
    assert all(Path(part).read_bytes() == content for part, content in kept.items())
    assert require_cache(str(out)).locate(pq.read_table(manifest)).column("features_part").null_count == 0
