"""`carl_ray.evaluation.embeddings`: what is written is read; nothing else is taken for embeddings."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carl_ray.data.manifest import LABEL_COLUMNS, SCHEMA
from carl_ray.errors import UserError
from carl_ray.evaluation import corpus
from carl_ray.evaluation.corpus import EmbeddingSettings, finished_videos
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import (
    Embeddings,
    iterate_embeddings,
    read_embeddings,
    read_origin,
    write_part,
)
from carl_ray.training.checkpoint import checkpoint_at
from tests import embedded

ORIGIN = replace(embedded.ORIGIN, has_untrained=True)


def video(video_id: str, num_frames: int = 5, width: int = 4, *, seed: int = 0, **fields) -> EmbeddedVideo:
    rng = np.random.default_rng(seed)
    defaults = {
        "content_hash": "0",
        "split": "train",
        "label": "kick",
        "frame_labels": rng.integers(-1, 3, num_frames).astype(np.int32),
        "progress": rng.random(num_frames).astype(np.float32),
        "fps": 29.97,
        "timestamps": np.arange(num_frames) * 0.5,
        "untrained": rng.standard_normal((num_frames, width)).astype(np.float32),
    }
    embeddings = fields.pop("embeddings", rng.standard_normal((num_frames, width)).astype(np.float32))
    return embedded.embedded(video_id, embeddings, **(defaults | fields))


def listed(*videos: EmbeddedVideo, **changed) -> pa.Table:
    """The rows of the manifest that these videos come from, some columns of all of them changed."""
    rows = [
        {name: changed.get(name, getattr(v, name)) for name in ("video_id", "content_hash", *LABEL_COLUMNS)}
        for v in videos
    ]
    fields = [SCHEMA.field(name) for name in ("video_id", "content_hash", *LABEL_COLUMNS)]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def same(a: EmbeddedVideo, b: EmbeddedVideo, *, rtol: float = 0.0) -> None:
    for name, value in vars(a).items():
        if isinstance(value, np.ndarray):
            assert value.dtype == getattr(b, name).dtype
            np.testing.assert_allclose(getattr(b, name), value, rtol=rtol, atol=rtol)
        else:
            assert getattr(b, name) == value


def test_seconds_are_written_and_parts_without_them_are_read(tmp_path: Path) -> None:
    folder = str(tmp_path / "embeddings")
    write_part(folder, [video("a"), video("b", fps=None)], ORIGIN, "float32")
    part = tmp_path / "embeddings" / "part-00000.parquet"
    table = pq.read_table(part)
    first, second = table.column("seconds").to_pylist()
    assert first == pytest.approx(np.arange(5) / 29.97) and second is None
    assert table.column("timestamps").to_pylist()[0] == [0, 0.5, 1, 1.5, 2]
    pq.write_table(table.drop_columns(["seconds"]), part)
    write_part(folder, [video("c")], ORIGIN, "float32")
    read = read_embeddings(folder)
    assert [v.video_id for v in read] == ["a", "b", "c"]
    np.testing.assert_allclose(read[0].seconds, first)
    assert read[1].seconds is None


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_what_is_written_is_read(tmp_path: Path, precision) -> None:
    written = [video("b", 5, seed=1), video("ä/c", 1, seed=2), video("a", 9, seed=3, fps=None, label=None)]
    written.append(video("d", split=None, frame_labels=None, progress=None))
    write_part(str(tmp_path), written[:1], ORIGIN, precision)
    write_part(str(tmp_path), written[1:], ORIGIN, precision)
    read = read_embeddings(str(tmp_path))
    assert [v.video_id for v in read] == ["a", "b", "d", "ä/c"]
    for before, after in zip(sorted(written, key=lambda v: v.video_id), read, strict=True):
        same(before, after, rtol=0 if precision == "float32" else 2e-3)
    assert read_origin(str(tmp_path)) == ORIGIN
    assert finished_videos(str(tmp_path), ORIGIN, listed(*written)) == {"a", "b", "d", "ä/c"}
    stored = pq.read_schema(tmp_path / "part-00000.parquet").field("embeddings").type
    assert stored == pa.list_(pa.list_(pa.type_for_alias(precision), 4))


def test_splits_and_single_parts(tmp_path: Path) -> None:
    write_part(str(tmp_path), [video("a"), video("b", split=None)], ORIGIN, "float16")
    write_part(str(tmp_path), [video("c", split="test")], ORIGIN, "float16")
    assert [v.video_id for v in read_embeddings(str(tmp_path), split="train")] == ["a", "b"]
    assert [v.video_id for v in read_embeddings(str(tmp_path), split="test")] == ["c"]
    assert [v.video_id for v in read_embeddings(str(tmp_path / "part-00001.parquet"))] == ["c"]
    with pytest.raises(UserError, match="no embedded video of the split 'validation'"):
        read_embeddings(str(tmp_path), split="validation")


def test_a_video_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    first = video("a", seed=1)
    write_part(str(tmp_path), [first], ORIGIN, "float32")
    write_part(str(tmp_path), [video("a", seed=2)], ORIGIN, "float32")
    (read,) = iterate_embeddings(str(tmp_path))
    same(first, read)


def test_without_the_control(tmp_path: Path) -> None:
    origin = replace(ORIGIN, has_untrained=False)
    write_part(str(tmp_path), [video("a", untrained=None)], origin, "float16")
    assert next(iterate_embeddings(str(tmp_path))).untrained is None


def test_embeddings_of_another_origin_are_refused(tmp_path: Path) -> None:
    write_part(str(tmp_path), [video("a")], ORIGIN, "float16")
    other = replace(ORIGIN, step=4, model_sha256="cd")
    with pytest.raises(UserError, match=r"different: model_sha256, step\); name another --out"):
        finished_videos(str(tmp_path), other, listed(video("a")))
    write_part(str(tmp_path), [video("b")], other, "float16")
    with pytest.raises(UserError, match=r"part-00001.parquet: embeddings of another origin than"):
        read_origin(str(tmp_path))
    assert finished_videos(str(tmp_path / "new"), ORIGIN, listed(video("a"))) == set()


def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    write_part(str(tmp_path), [video("a"), video("b")], ORIGIN, "float16")
    with pytest.raises(UserError, match="its 'a' is another file than the manifest's of that name"):
        finished_videos(str(tmp_path), ORIGIN, listed(video("a"), content_hash="other"))
    assert finished_videos(str(tmp_path), ORIGIN, listed(video("c"))) == {"a", "b"}


def test_labels_follow_the_manifest(tmp_path: Path) -> None:
    first = [video("a"), video("b", split="test"), video("c")]
    write_part(str(tmp_path), first, ORIGIN, "float32")
    content = (tmp_path / "part-00000.parquet").read_bytes()
    finished_videos(str(tmp_path), ORIGIN, listed(*first))
    assert (tmp_path / "part-00000.parquet").read_bytes() == content
    changed = listed(first[2], first[0], split="validation", label=None, frame_labels=[4] * 5)
    assert finished_videos(str(tmp_path), ORIGIN, changed) == {"a", "b", "c"}
    a, b, c = read_embeddings(str(tmp_path))
    same(first[1], b)
    for before, after in ((first[0], a), (first[2], c)):
        assert after.frame_labels is not None and after.frame_labels.tolist() == [4] * 5
        same(replace(before, split="validation", label=None, frame_labels=after.frame_labels), after)
    assert read_origin(str(tmp_path)) == ORIGIN
    named = listed(first[0], first[2], frame_labels=[0, 1, 1, 0, -1], phase_names=["up", "down"])
    finished_videos(str(tmp_path), ORIGIN, named)
    a, b, c = read_embeddings(str(tmp_path))
    assert (a.phase_name(1), c.phase_names, b.phase_name(1), a.phase_name(-1)) == (
        "down",
        ["up", "down"],
        "phase 1",
        None,
    )
    assert Embeddings.open(str(tmp_path)).search(("b", 0))[0].phase_name in ("up", "down", None)


def test_groups_are_those_of_the_manifest(tmp_path: Path) -> None:
    write_part(str(tmp_path / "old"), [video("a"), video("b"), video("c")], ORIGIN, "float32")
    write_part(str(tmp_path / "new"), [video("a", group="g1"), video("b"), video("c")], ORIGIN, "float32")
    for folder, kept in (("old", None), ("new", "g1")):
        assert [v.group for v in read_embeddings(str(tmp_path / folder))] == [kept, None, None]
        rows = listed(video("b"), video("c")).append_column("group", pa.array(["g2", None]))
        for _ in range(2):
            finished_videos(str(tmp_path / folder), ORIGIN, rows)
            assert [v.group for v in read_embeddings(str(tmp_path / folder))] == [kept, "g2", None]
            content = (tmp_path / folder / "part-00000.parquet").read_bytes()
        finished_videos(str(tmp_path / folder), ORIGIN, rows)
        assert (tmp_path / folder / "part-00000.parquet").read_bytes() == content


def test_parts_of_earlier_versions(tmp_path: Path) -> None:
    uri = str(tmp_path / "part-00000.parquet")
    write_part(str(tmp_path), [video("a")], ORIGIN, "float32")
    pq.write_table(pq.read_table(uri).drop_columns(["phase_names", "seconds"]), uri)
    (read,) = read_embeddings(str(tmp_path))
    same(video("a"), read)
    finished_videos(str(tmp_path), ORIGIN, listed(video("a"), phase_names=["x", "y", "z"]))
    assert read_embeddings(str(tmp_path))[0].phase_names == ["x", "y", "z"]


def test_times_at_a_variable_rate(tmp_path: Path) -> None:
    times = np.array([0, 0.1, 0.15, 0.3, 0.5])
    write_part(str(tmp_path), [video("a", frame_times=times)], ORIGIN, "float32")
    (read,) = read_embeddings(str(tmp_path))
    assert read.seconds is not None and read.seconds.tolist() == times.tolist()


def test_what_is_no_file_of_embeddings(tmp_path: Path) -> None:
    write_part(str(tmp_path / "whole"), [video("a", 4000, 32)], ORIGIN, "float16")
    content = (tmp_path / "whole/part-00000.parquet").read_bytes()
    (tmp_path / "torn.parquet").write_bytes(content[: len(content) // 2])
    damaged = bytearray(content)
    damaged[2000:60000] = bytes(58000)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    (tmp_path / "words.parquet").write_text("no Parquet")
    pq.write_table(pa.table({"video_id": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "torn.parquet": "not a whole Parquet file of embeddings",
        "damaged.parquet": "not a whole Parquet file of embeddings",
        "words.parquet": "not a whole Parquet file of embeddings",
        "other.parquet": r"not one that `python -m carl_ray\.embed` wrote",
        "empty": "found no part-00000.parquet in it",
        "missing": "no embeddings there; make them with",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            read_embeddings(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_rows_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    write_part(str(tmp_path), [video("a", frame_labels=np.zeros(3, np.int32))], ORIGIN, "float16")
    with pytest.raises(UserError, match="a has 5 embeddings, but 3 frame_labels"):
        read_embeddings(str(tmp_path))


def test_the_origin_is_plain_json(tmp_path: Path) -> None:
    write_part(str(tmp_path), [video("a")], ORIGIN, "float16")
    metadata = pq.read_schema(tmp_path / "part-00000.parquet").metadata
    assert set(asdict(ORIGIN)) == set(json.loads(metadata[b"carl_ray.origin"]))


def test_embeddings_in_python(tmp_path: Path) -> None:
    written = [video("b", 5, seed=1), video("a", 3, seed=2, fps=None, frame_labels=None, progress=None)]
    write_part(str(tmp_path), written[:1], ORIGIN, "float32")
    write_part(str(tmp_path), [*written[1:], written[0]], ORIGIN, "float32")
    embeddings = Embeddings.open(str(tmp_path))
    assert (len(embeddings), embeddings.origin) == (2, ORIGIN)
    assert [v.video_id for v in embeddings] == [v.video_id for v in embeddings] == ["b", "a"]
    same(embeddings.video("a"), written[1])
    table = embeddings.to_pandas()
    assert table["video_id"].tolist() == ["b"] * 5 + ["a"] * 3
    assert table["frame"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert table["frame_label"].tolist() == [*written[0].frame_labels, -1, -1, -1]
    assert table["seconds"].isna().tolist() == table["progress"].isna().tolist() == [False] * 5 + [True] * 3
    np.testing.assert_array_equal(np.stack(table["embedding"])[:5], written[0].embeddings)
    with pytest.raises(UserError, match="missing: no embeddings there"):
        Embeddings.open(str(tmp_path / "missing"))


def test_search_in_python(tmp_path: Path) -> None:
    near, far, twin = np.eye(3, 4)[[1, 0]], np.eye(3, 4)[[2, 1]], np.eye(3, 4)
    videos = [video("near", 2, embeddings=near), video("far", 2, embeddings=far * 2)]
    videos += [video("query", 3, embeddings=twin), video("copy", 3, embeddings=twin, uri="/videos/query")]
    write_part(str(tmp_path), videos, ORIGIN, "float32")
    embeddings = Embeddings.open(str(tmp_path))
    by_frame = embeddings.search(("query", 0))
    assert [(hit.video_id, hit.frame, hit.similarity) for hit in by_frame] == [
        ("near", 1, 1.0),
        ("far", 0, 0.0),
    ]
    assert by_frame[0].seconds == pytest.approx(1 / 29.97)
    by_vector = embeddings.search(np.array([0.0, 0.0, 5.0, 0.0]), k=2)
    assert [(hit.video_id, hit.frame) for hit in by_vector] == [("copy", 2), ("far", 0)]
    with pytest.raises(UserError, match=r"qery: expected the id of .* did you mean query\?"):
        embeddings.search(("qery", 0))
    with pytest.raises(UserError, match="'query' has 3 frames, expected 0 to 2, got 3"):
        embeddings.search(("query", 3))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        embeddings.search(("query", 0), 0)


def test_they_open_as_a_data_set_of_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    written = [video("a", 3), video("b", 5, phase_names=["up", "down", "rest"], label=None)]
    for one in written:
        write_part(str(tmp_path / "embeddings"), [one], ORIGIN, "float16")
    parts = str(tmp_path / "embeddings" / "part-*.parquet")
    options = {"data_files": parts, "split": "train", "cache_dir": str(tmp_path / "cache")}
    for streaming in (False, True):
        read = list(datasets.load_dataset("parquet", streaming=streaming, **options).with_format("numpy"))
        assert [(row["video_id"], row["label"]) for row in read] == [("a", "kick"), ("b", None)]
        for row, one in zip(read, written, strict=True):
            np.testing.assert_allclose(np.stack(row["embeddings"]), one.embeddings, rtol=2e-3, atol=2e-3)
            assert row["frame_labels"].tolist() == one.phases.tolist()


def test_a_folder_keeps_the_name_of_its_checkpoint(tmp_path: Path, tiny_run: Path) -> None:
    """The same model may be named by another path, or its run may have moved."""
    checkpoint, out = checkpoint_at(str(tiny_run)), str(tmp_path)
    origin = corpus._origin(checkpoint, EmbeddingSettings(), out)
    assert origin.checkpoint == checkpoint.uri
    begun = replace(origin, checkpoint="run/checkpoints/step-00000003")
    write_part(out, [embedded.embedded("a.mp4", np.ones((4, 8)), label=None)], begun, "float32")
    assert corpus._origin(checkpoint, EmbeddingSettings(), out) == begun
    part = next(tmp_path.glob("*.parquet"))
    part.unlink()
    write_part(
        out,
        [embedded.embedded("a.mp4", np.ones((4, 8)), label=None)],
        replace(begun, model_sha256="0"),
        "float32",
    )
    assert corpus._origin(checkpoint, EmbeddingSettings(), out) == origin
