"""`carl_ray.evaluation.extraction`: every video once, bad ones told, and nothing done twice."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from carl_ray.data.child import BadVideoError
from carl_ray.data.manifest import SCHEMA, write_table
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation import corpus, extraction, part_writer
from carl_ray.evaluation.corpus import EmbeddingSettings, embed_corpus
from carl_ray.evaluation.embeddings import read_embeddings, read_origin
from carl_ray.evaluation.inference import VideoEmbedder, untrained_encoder
from carl_ray.lease import hold
from carl_ray.training.checkpoint import checkpoint_at, load_encoder
from tests.samples import manifest_row

SETTINGS = EmbeddingSettings(num_workers=1, cpus_per_worker=2, precision="float32")


def row(path: Path, video_id: str, num_frames: int, **fields) -> dict:
    return manifest_row(video_id, uri=str(path), num_frames=num_frames, frame_step=2.0, **fields)


@pytest.fixture
def manifest(make_video, tmp_path) -> tuple[str, list[dict]]:
    rows = [
        row(make_video(tmp_path / f"{n}.mp4", 10 + n, 40, 24), f"v{n}", 10 + n, split="train", label="kick")
        for n in range(5)
    ]
    rows[1] |= {"split": "test", "frame_labels": list(range(11)), "progress": [0.5] * 11}
    rows[4] |= {"split": "validation"}
    uri = str(tmp_path / "manifest.parquet")
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), uri)
    return uri, rows


@pytest.fixture
def one_row_parts(monkeypatch) -> None:
    monkeypatch.setattr(part_writer, "_PART_BYTES", 1)


def test_every_video_once_and_only_what_is_missing(
    ray_session, tiny_run, manifest, tmp_path, one_row_parts, monkeypatch, capfd
) -> None:
    """One of five videos hangs its decoder for a while: more than the run allows, but the others are embedded."""
    uri, rows = manifest
    out = str(tmp_path / "out")
    first = embed_corpus(str(tiny_run), uri, out, SETTINGS, splits=["test", "validation"])
    assert (first.num_present, first.num_embedded, first.num_frames) == (0, 2, 25)
    parts = {path.name: path.read_bytes() for path in Path(out).iterdir()}
    assert sorted(parts) == ["part-00000.parquet", "part-00001.parquet"]

    checkpoint = checkpoint_at(str(tiny_run))
    config = checkpoint.config
    whole = Path(rows[2]["uri"]).read_bytes()
    Path(rows[2]["uri"]).unlink()
    os.mkfifo(rows[2]["uri"])  # whoever opens it to read waits for one who writes
    impatient = replace(checkpoint, config=replace(config, data=replace(config.data, time_limit=2.0)))
    with (
        monkeypatch.context() as patched,
        pytest.raises(
            RunError, match=r"1 of 5 videos could not be embedded, more than .*; v2: the decoder took"
        ),
    ):
        patched.setattr(corpus, "checkpoint_at", lambda uri: impatient)
        embed_corpus(str(tiny_run), uri, out, SETTINGS)
    (line,) = [json.loads(line) for line in (tmp_path / "out" / "bad_videos.jsonl").read_text().splitlines()]
    assert line == {"video_id": "v2", "reason": "the decoder took longer than 2 s"}
    # A call that does not try it leaves it in the list.
    assert embed_corpus(str(tiny_run), uri, out, SETTINGS, splits=["test"]).num_present == 1
    assert "v2" in (tmp_path / "out" / "bad_videos.jsonl").read_text()
    assert all((Path(out) / name).read_bytes() == content for name, content in parts.items())

    encoders = [load_encoder(checkpoint), untrained_encoder(config)]
    embedder = VideoEmbedder(encoders, config, torch.device("cpu"))
    videos = {video.video_id: video for video in read_embeddings(out)}
    assert sorted(videos) == ["v0", "v1", "v3", "v4"]
    for number, video in ((n, videos[f"v{n}"]) for n in (0, 1, 3, 4)):
        trained, untrained = embedder.embed_file(rows[number]["uri"])
        np.testing.assert_allclose(video.embeddings, trained, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(video.untrained, untrained, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(video.timestamps, 2.0 * np.arange(10 + number))
        assert (video.split, video.label, video.fps) == (rows[number]["split"], "kick", 30.0)
    assert videos["v1"].frame_labels.tolist() == list(range(11))
    assert videos["v1"].progress.tolist() == [0.5] * 11
    assert videos["v0"].frame_labels is None
    origin = read_origin(out)
    assert (origin.step, origin.num_frames, origin.position_width, origin.preset) == (3, 6, 16, "demo")

    # The file is whole again: only it is missing.
    Path(rows[2]["uri"]).unlink()
    Path(rows[2]["uri"]).write_bytes(whole)
    third = embed_corpus(str(tiny_run), uri, out, SETTINGS)
    assert (third.num_present, third.num_embedded, third.bad_videos) == (4, 1, [])
    assert (tmp_path / "out" / "bad_videos.jsonl").read_text() == ""
    # Ray's C++ code has something to say about Ray Data's own actors, which is nobody's here.
    assert "constructor arguments" not in capfd.readouterr().err


def test_lines_of_ray_are_kept_back_and_no_others(capfd) -> None:
    with extraction._without_lines(b"constructor arguments"):
        os.write(2, b"before\nActor 1 has constructor arguments in the object store\nafter\n")
    os.write(2, b"Actor 2 has constructor arguments\n")
    assert capfd.readouterr().err == "before\nafter\nActor 2 has constructor arguments\n"


def test_the_caller_has_its_standard_error_at_every_row(ray_session, capfd) -> None:
    """The progress line looks whether it is a terminal; what Ray says of the actors is kept back all the same."""

    class Extractor:
        def embed(self, videos):
            return [[np.ones((num_frames, 2), np.float32)] for _, num_frames in videos]

    videos = pa.table({"uri": [f"v{n}" for n in range(6)], "num_frames": [3] * 6})
    settings = replace(SETTINGS, num_workers=3, cpus_per_worker=1)
    rows = extraction.rows_of_actors(extraction.ExtractingActor, (Extractor, 0), videos, settings, np.float32)
    before = os.fstat(2).st_ino
    seen = [os.fstat(2).st_ino for _ in rows]
    assert seen == [before] * 6
    assert "constructor arguments" not in capfd.readouterr().err


def test_videos_whose_actor_always_dies_are_not_tried_forever(ray_session) -> None:
    class Embedder:
        def embed(self, videos):
            for _, num_frames in videos:
                yield [np.ones((num_frames, 8), np.float32)]

    attempts = extraction._Attempts.remote()
    videos = pa.table({"video_index": [4, 5], "uri": ["a", "b"], "num_frames": [3, 3]})
    errors = []
    for _ in range(5):
        # As after a restart: what the actor knew is gone.
        actor = object.__new__(extraction._EmbeddingActor)
        actor._embedder, actor._retries, actor._attempts = Embedder(), 0, attempts
        actor._columns, actor._predictor = ["uri", "num_frames"], None
        errors.append(actor(videos).column("error").to_pylist())
    assert errors == [[None] * 2] * 4 + [["the process that embeds it died 4 times (too little memory?)"] * 2]


def test_only_what_another_try_may_read_is_tried_again(monkeypatch) -> None:
    tried = []

    class Embedder:
        def embed(self, videos):
            tried.append([uri for uri, _ in videos])
            for uri, num_frames in videos:
                if uri == "bad":
                    yield BadVideoError("the decoder crashed (SIGSEGV)")
                elif uri == "down" or (uri == "killed" and len(tried) == 1):
                    yield RunError("another time")
                else:
                    yield [np.ones((num_frames, 8), np.float32)]

    monkeypatch.setattr(extraction, "_FIRST_RETRY_SECONDS", 0)
    names = ["good", "bad", "killed", "down"]
    results = extraction.embed_with_retries(Embedder(), [(name, 3) for name in names], 2)
    assert tried == [names, ["killed", "down"], ["down"]]
    assert [isinstance(result, list) or str(result) for result in results] == [
        True, "the decoder crashed (SIGSEGV)", True, "another time"
    ]  # fmt: skip


def test_what_was_computed_is_kept_when_the_driver_is_interrupted(
    ray_session, tiny_run, manifest, tmp_path, monkeypatch
) -> None:
    uri, _ = manifest
    out = str(tmp_path / "out")
    embedded = extraction.embedded_rows

    def interrupted(*arguments, **options):
        for number, result in enumerate(embedded(*arguments, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(extraction, "embedded_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(str(tiny_run), uri, out, SETTINGS)
    assert len(read_embeddings(out)) == 2
    monkeypatch.undo()
    assert embed_corpus(str(tiny_run), uri, out, SETTINGS).num_present == 2


def test_a_folder_that_another_process_writes_to_is_left_alone(tiny_run, manifest, tmp_path) -> None:
    uri, _ = manifest
    out = str(tmp_path / "out")
    with hold(out), pytest.raises(UserError, match=r"another process writes there: process \d+ on "):
        embed_corpus(str(tiny_run), uri, out, SETTINGS)
    assert not Path(out).exists()


def test_where_nothing_is_missing_nothing_is_held(tiny_run, manifest, tmp_path, monkeypatch) -> None:
    out = str(tmp_path / "out")
    monkeypatch.setattr(corpus, "finished_videos", lambda *given: {f"v{n}" for n in range(5)})
    with hold(out):
        assert embed_corpus(str(tiny_run), manifest[0], out, SETTINGS).num_present == 5


def test_mistakes_are_found_before_any_work(tiny_run, manifest, tmp_path) -> None:
    uri, _ = manifest
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="it has no videos of the split nowhere"):
        embed_corpus(str(tiny_run), uri, out, SETTINGS, splits=["nowhere"])
    with pytest.raises(UserError, match="no manifest there"):
        embed_corpus(str(tiny_run), str(tmp_path / "none"), out, SETTINGS)
    with pytest.raises(UserError, match="expected a run folder with a checkpoint"):
        embed_corpus(str(tmp_path), uri, out, SETTINGS)
    for fields, expected in (
        ({"form": "dynamic"}, "--form dynamic is the half of one stream"),
        ({"backwards": True}, "--backwards plays clips backwards: expected an encoder of clips"),
    ):
        with pytest.raises(UserError, match=expected):
            embed_corpus(str(tiny_run), uri, out, replace(SETTINGS, **fields))
    assert not Path(out).exists()


def test_what_a_cluster_of_this_machine_will_never_have_is_said(
    ray_session, tiny_run, manifest, tmp_path, monkeypatch, capsys
) -> None:
    uri, _ = manifest
    many = replace(SETTINGS, cpus_per_worker=4096)
    with monkeypatch.context() as patched:
        patched.delenv("RAY_ADDRESS")
        with pytest.raises(UserError, match="an actor needs 4096 CPUs, and this machine has not got them"):
            embed_corpus(str(tiny_run), uri, str(tmp_path / "out"), many)
    monkeypatch.setattr(extraction, "embedded_rows", lambda *arguments, **_: (row for row in ()))
    embed_corpus(str(tiny_run), uri, str(tmp_path / "out"), many)
    assert "waiting for the cluster to grow: an actor needs 4096 CPUs on one node" in capsys.readouterr().err
