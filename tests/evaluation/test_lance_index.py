"""Index of frames in LanceDB, compared with exact search; on local disk and on an S3 server."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from carl_ray import export, search, storage
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation import lance_index
from carl_ray.evaluation.embeddings import EmbeddedVideo, Embeddings, Origin, write_part
from carl_ray.evaluation.lance_index import LanceIndex, update_index
from tests.embedded import ORIGIN, embedded, failure

HOSTILE = 'it\'s "one"\n; DROP TABLE -- <b>🎬\\'


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("lancedb")  # Not while tests are collected, which every test process does.


def video(name: str, seed: int, **known: object) -> EmbeddedVideo:
    """A smooth path on a sphere."""
    rng = np.random.default_rng(seed)
    steps = np.interp(np.arange(20), np.linspace(0, 19, 5), np.arange(5))
    corners = rng.normal(size=(5, 16))
    path = np.stack([np.interp(steps, np.arange(5), corner) for corner in corners.T], 1)
    made = embedded(
        name,
        path.astype(np.float32),
        uri=f"/videos/{name}.mp4",
        split="test",
        label="jump" if seed % 3 else "kick",
        fps=None if seed % 5 == 0 else 25.0,
        frame_labels=np.repeat([-1, 0, 2, 1], 5).astype(np.int32),
        phase_names=["up", "it's", "down"],
    )
    return replace(made, **known)


def corpus(folder: Path | str, videos: list[EmbeddedVideo], origin: Origin = ORIGIN) -> Embeddings:
    write_part(str(folder), videos, origin, "float32")
    return Embeddings.open(str(folder))


@pytest.fixture
def videos() -> list[EmbeddedVideo]:
    return [video(HOSTILE if seed == 7 else f"v{seed:02d}", seed) for seed in range(40)]


@pytest.fixture(params=["local", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a new table."""
    if request.param == "local":
        return str(tmp_path / "index" / "moments.lance")
    endpoint = request.getfixturevalue("s3_endpoint")
    bucket = re.sub(r"[^a-z0-9]", "", tmp_path.name.lower())[-40:]
    fs.S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True).create_dir(bucket)
    return f"s3://{bucket}/moments.lance?endpoint_override={endpoint}&scheme=http"


@pytest.fixture(params=[False, True], ids=["scanned", "indexed"])
def many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits of few videos, and an index of vectors or none."""
    monkeypatch.setattr(lance_index, "ROWS_A_COMMIT", 300)
    if request.param:
        monkeypatch.setattr(lance_index, "MOST_SCANNED", 400)


@pytest.mark.usefixtures("many")
def test_what_exact_search_finds_also_after_additions(
    tmp_path: Path, videos: list[EmbeddedVideo], uri: str
) -> None:
    embeddings = corpus(tmp_path / "E", videos[:30])
    assert update_index(embeddings, uri) == {"added": 30}
    assert update_index(embeddings, uri) == {"kept": 30}
    embeddings = corpus(tmp_path / "E", videos[30:])
    before = LanceIndex.open(uri)
    assert update_index(embeddings, uri) == {"added": 10, "kept": 30}
    index = LanceIndex.open(uri)
    assert index._table.count_rows() == 800 and before._table.count_rows() == 600
    assert index.origin == ORIGIN and index.source == str(tmp_path / "E")
    for name, frame, label in (("v03", 4, None), (HOSTILE, 19, None), ("v35", 0, "kick"), ("v00", 7, "jump")):
        exact = embeddings.search((name, frame), 10, label=label)
        found = index.search((index.video(name), frame), 10, label=label)
        assert [f.similarity for f in found] == pytest.approx([f.similarity for f in exact], abs=1e-6)
        assert [replace(f, similarity=0) for f in found] == [replace(f, similarity=0) for f in exact]


def test_changed_videos_are_replaced_and_others_stay(
    tmp_path: Path, videos: list[EmbeddedVideo], uri: str
) -> None:
    update_index(corpus(tmp_path / "E", videos[:5]), uri)
    changed = replace(
        videos[1], label="throw", embeddings=videos[9].embeddings[:12], timestamps=np.arange(12.0)
    )
    changed = replace(changed, frame_labels=None)
    assert update_index(corpus(tmp_path / "F", [videos[0], changed]), uri) == {"replaced": 1, "kept": 1}
    index = LanceIndex.open(uri)
    assert index._table.count_rows() == 4 * 20 + 12
    found = index.video("v01")
    assert found.label == "throw" and found.frame_labels is not None and set(found.frame_labels) == {-1}
    np.testing.assert_array_equal(found.embeddings, changed.embeddings)
    assert [f.video_id for f in index.search((found, 3), 9, label="throw")] == []


def test_an_interrupted_update_goes_on(
    tmp_path: Path, videos: list[EmbeddedVideo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_index, "ROWS_A_COMMIT", 100)
    uri = str(tmp_path / "moments.lance")
    embeddings = corpus(tmp_path / "E", videos)

    def interrupt(done: int) -> None:
        if done == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update_index(embeddings, uri, interrupt)
    assert update_index(embeddings, uri) == {"added": 25, "kept": 15}
    assert LanceIndex.open(uri)._table.count_rows() == 800


def test_few_long_videos_do_not_hide_the_others(
    tmp_path: Path, videos: list[EmbeddedVideo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_index, "_FETCHED", 25)
    still = [replace(v, embeddings=np.repeat(v.embeddings[:1], 20, 0)) for v in videos]
    embeddings = corpus(tmp_path / "E", still)
    update_index(embeddings, uri := str(tmp_path / "moments.lance"))
    index = LanceIndex.open(uri)
    exact = [f.video_id for f in embeddings.search(("v03", 4), 10)]
    assert [f.video_id for f in index.search((index.video("v03"), 4), 10)] == exact


def test_mistakes(tmp_path: Path) -> None:
    uri = str(tmp_path / "moments.lance")
    update_index(corpus(tmp_path / "E", [video("a", 1)]), uri)
    other = corpus(tmp_path / "O", [video("o", 1)], replace(ORIGIN, model_sha256="1" * 64))
    broken = corpus(tmp_path / "N", [video("n", 1, embeddings=np.full((20, 16), np.nan))])
    narrow = video("q", 1, embeddings=np.ones((20, 3)))
    for change, kind, message in (
        (lambda: LanceIndex.open(uri + "x.lance"), UserError, "no index there; make it with"),
        (lambda: LanceIndex.open(uri).video("nobody"), UserError, "nobody: expected the id of a video"),
        (lambda: LanceIndex.open(uri).search((narrow, 1)), ValueError, "a query of 16 numbers, got 3"),
        (lambda: update_index(other, uri), UserError, "of another encoder than"),
        (lambda: update_index(broken, uri), UserError, "n: expected finite values"),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            change()


def test_credentials_reach_neither_files_nor_messages(
    tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    query = f"endpoint_override={s3_endpoint}&scheme=http&region=us-east-1"
    uri = f"s3://AKIASECRET:wordSECRET@secretive/deep/moments.lance?{query}"
    keys = {"access_key": "test", "secret_key": "test", "endpoint_override": s3_endpoint, "scheme": "http"}
    store = fs.S3FileSystem(**keys, allow_bucket_creation=True)
    store.create_dir("secretive")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    update_index(corpus(tmp_path / "E", [video("a", 1)]), uri)
    index = LanceIndex.open(uri)
    assert index.video("a").label == "jump"
    selector = fs.FileSelector("secretive", recursive=True)
    files = [
        store.open_input_file(info.path).read() for info in store.get_file_info(selector) if info.is_file
    ]
    assert len(files) > 2 and not any(b"SECRET" in content for content in files)
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 1.0)
    lost = uri.replace(s3_endpoint, "127.0.0.1:9")
    with pytest.raises(RunError) as caught:
        LanceIndex.open(lost)
    assert "SECRET" not in str(caught.value) + caplog.text and "\n" not in str(caught.value)


def test_the_commands(
    tmp_path: Path,
    videos: list[EmbeddedVideo],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus("E", videos)
    export.main(["--embeddings", "E", "--out", "moments.lance"])
    printed = capsys.readouterr()
    assert (
        "videos added:    40\nvideos replaced: 0\nvideos kept:     0\nindex:           moments" in printed.out
    )
    assert "search v00 --embeddings moments.lance" in printed.out and "Traceback" not in printed.err
    outputs = []
    for given in ("E", "moments.lance"):
        out = ["--out", f"{given}.csv", "--out", f"{given}.png"]
        search.main(["v04", "--frame", "9", "--label", "kick", "--embeddings", given, *out])
        table = capsys.readouterr().out.partition("written:")[0]
        outputs.append((table, Path(f"{given}.csv").read_text(), Path(f"{given}.png").read_bytes()))
    assert outputs[0] == outputs[1]
    assert "QUERY missing" in failure(capsys, search, "--embeddings", "moments.lance")


def test_without_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    corpus(tmp_path / "E", [video("a", 1)])
    out = tmp_path / "moments.lance"
    error = failure(capsys, export, "--embeddings", tmp_path / "E", "--out", out)
    assert "pip install 'carl_ray[search]'" in error
