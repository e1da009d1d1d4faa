"""Kinetics-400 from small imitations of the copies that go around, with their traps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pyarrow import fs

from carl_ray.data.manifest import SCHEMA, read_manifest
from carl_ray.datasets import kinetics400
from carl_ray.datasets.kinetics400 import Listed, label_clips, read_lists
from carl_ray.errors import UserError

TRAIN = """\
label,youtube_id,time_start,time_end,split,is_cc
"playing the drums, loudly",-dash_dash-,0,10,train,0
abseiling,_underscore,59,69,train,0
abseiling,missing-tr1,5,15,train,1
air drumming,broken-tr01,7,17,train,0
air drumming,broken-tr02,8,18,train,0
zumba,replaced-01,1,11,train,0
zumba,replaced-02,1,11,train,0
zumba,other-times,20,30,train,0
"""
# DeepMind's own file: other names for the split, no is_cc; the same clip as one of train.csv.
VALIDATE = """\
\ufefflabel,youtube_id,time_start,time_end,split\r
abseiling,validation1,10.0,20.0,validate\r
zumba,replaced-02,1,11,validate\r
"""
TEST = "youtube_id,time_start,time_end\nunlabelled1,3,13\nmissing-te1,3,13\n"


@pytest.fixture(scope="module")
def published(make_video, tmp_path_factory) -> Path:
    raw = tmp_path_factory.mktemp("k400")
    (raw / "annotations").mkdir()
    (raw / "annotations" / "train.csv").write_text(TRAIN)
    (raw / "annotations" / "notes.csv").write_text("a,b\n1,2\n")
    (raw / "validate.csv").write_text(VALIDATE, "utf-8")
    (raw / "annotations" / "kinetics-400_test.csv").write_text(TEST)
    clip = make_video(raw / "train" / "playing the drums, loudly" / "-dash_dash-_000000_000010.mp4", 12)
    for name in (
        "train/abseiling/_underscore_000059_000069.mkv",
        "train/zumba/replaced-01_000001_000011.mp4",
        "replacement/replacement_for_corrupted_k400/replaced-02_000001_000011.mp4",
        "train/other-times_000021_000031.mp4",
        "train/not-in-the-lists_000000_000010.mp4",
        "val/ünïcode klasse/validation1_000010_000020.mp4",
        "test/unlabelled1_000003_000013.mp4",
    ):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, raw / name)
    shutil.copy(
        clip, raw / "replacement" / "replacement_for_corrupted_k400" / "replaced-01_000001_000011.mp4"
    )
    for name in ("broken-tr01_000007_000017", "replaced-02_000001_000011", "._-dash_dash-_000000_000010"):
        (raw / "train" / f"{name}.mp4").write_bytes(b"not a video" * 50)
    (raw / "train" / "broken-tr02_000008_000018.mp4").write_bytes(b"")
    return raw


EXPECTED = {
    "replacement/replacement_for_corrupted_k400/replaced-01_000001_000011.mp4": ("train", "zumba"),
    "replacement/replacement_for_corrupted_k400/replaced-02_000001_000011.mp4": ("validation", "zumba"),
    "test/unlabelled1_000003_000013.mp4": ("test", None),
    "train/abseiling/_underscore_000059_000069.mkv": ("train", "abseiling"),
    "train/other-times_000021_000031.mp4": ("train", "zumba"),
    "train/playing the drums, loudly/-dash_dash-_000000_000010.mp4": ("train", "playing the drums, loudly"),
    "val/ünïcode klasse/validation1_000010_000020.mp4": ("validation", "abseiling"),
}


def _rows(table):
    return {
        row["video_id"]: (row["split"], row["label"])
        for row in table.select(["video_id", "split", "label"]).to_pylist()
    }


def test_the_command_line_indexes_what_is_listed_and_decodes(published, tmp_path, ray_session, capsys):
    out = str(tmp_path / "k400.parquet")
    kinetics400.main([str(published), "--out", out])
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()[1:5]] == [
        ["split", "videos", "published", "labelled", "frames", "of"],
        ["train", "4", "7", "0", "0"],
        ["validation", "2", "2", "0", "0"],
        ["test", "1", "2", "0", "0"],
    ]
    assert "1 x train: the file is empty" in printed and "1 x train: not a video" in printed
    assert "1 x train: missing (missing-tr1_000005_000015)" in printed and "1 x test: missing" in printed
    assert "2 x files that the CSV files do not list" in printed and "2 x further files of clips" in printed
    manifest = read_manifest(out)
    assert manifest.schema.equals(SCHEMA) and _rows(manifest) == EXPECTED
    assert set(manifest.column("num_frames").to_pylist()) == {12}
    assert manifest.column("frame_labels").null_count == manifest.num_rows
    assert Path(manifest.to_pylist()[0]["uri"]).is_file()
    assert len(read_manifest(str(tmp_path / "k400.scan.rejects.parquet"), ["uri", "reason"])) == 4

    kinetics400.main([str(published), "--out", out])
    assert capsys.readouterr().out == printed and read_manifest(out).equals(manifest)


def test_lists_of_all_editions_are_read(published):
    clips = read_lists(str(published))
    assert len(clips) == 11
    assert clips["-dash_dash-", 0, 10] == Listed("train", "playing the drums, loudly")
    assert clips["validation1", 10, 20] == Listed("validation", "abseiling")
    assert clips["unlabelled1", 3, 13] == Listed("test", None)
    assert clips["replaced-02", 1, 11].split == "validation"  # listed twice: never trained on


def test_files_belong_to_clips_by_id_only_where_that_is_unambiguous():
    clips = {("once", 1, 11): Listed("train", "a"), ("twice", 1, 11): Listed("train", "b")}
    clips |= {("twice", 5, 15): Listed("test", "c"), ("gone", 0, 10): Listed("test", None)}
    names = ["x/once.mp4", "x/twice_000002_000012.mp4", "x/twice_000005_000015.webm", "readme.mp4"]
    conversion = label_clips(clips, names, {"y/gone_000000_000010.mp4": "the file is empty"})
    assert _rows(conversion.labels) == {
        "x/once.mp4": ("train", "a"),
        "x/twice_000005_000015.webm": ("test", "c"),
    }
    assert conversion.published == {"train": 2, "test": 2}
    assert conversion.left_out == {
        "files that the CSV files do not list": ["x/twice_000002_000012.mp4", "readme.mp4"],
        "train: missing": ["twice_000001_000011"],
        "test: the file is empty": ["y/gone_000000_000010.mp4"],
    }


def test_a_copy_in_an_object_store(make_video, tmp_path, s3_endpoint, ray_session, capsys):
    store = fs.S3FileSystem(endpoint_override=s3_endpoint, scheme="http", allow_bucket_creation=True)
    clip = make_video(tmp_path / "clip.mp4", 8).read_bytes()
    for name, content in {
        "train list.csv": TRAIN.encode(),
        "train/playing the drums, loudly/-dash_dash-_000000_000010.mp4": clip,
        "train/air drumming/broken-tr01_000007_000017.mp4": b"not a video" * 50,
    }.items():
        store.create_dir("kinetics")
        with store.open_output_stream(f"kinetics/k400/{name}") as file:
            file.write(content)
    query = f"?endpoint_override={s3_endpoint}&scheme=http"
    kinetics400.main([f"s3://kinetics/k400{query}", "--out", str(tmp_path / "k400.parquet")])
    assert capsys.readouterr().out.splitlines()[2].split() == ["train", "1", "8", "0", "0"]
    assert _rows(read_manifest(str(tmp_path / "k400.parquet"))) == {
        "train/playing the drums, loudly/-dash_dash-_000000_000010.mp4": (
            "train",
            "playing the drums, loudly",
        )
    }


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: shutil.rmtree(raw), "no such folder"),
        (
            lambda raw: shutil.rmtree(raw / "annotations"),
            "expected Kinetics-400, its CSV files with the header",
        ),
        (
            lambda raw: (raw / "annotations" / "train.csv").write_text("train/a.mp4 3\n"),
            r"train.csv have another header",
        ),
        (
            lambda raw: (raw / "annotations" / "train.csv").write_text(TRAIN.replace("59,69", "x,69")),
            r"train.csv, line 3: expected label,youtube_id",
        ),
        (
            lambda raw: (raw / "annotations" / "train.csv").write_text(
                TRAIN.replace("69,train", "69,holdout")
            ),
            r"train.csv, line 3: .*holdout",
        ),
    ],
)
def test_a_folder_that_is_not_as_published_is_refused_in_one_line(tmp_path, capsys, spoil, message):
    raw = tmp_path / "raw"
    (raw / "annotations").mkdir(parents=True)
    (raw / "annotations" / "train.csv").write_text(TRAIN)
    spoil(raw)
    with pytest.raises(SystemExit) as exit_:
        kinetics400.main([str(raw), "--out", str(tmp_path / "out.parquet")])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not (tmp_path / "out.parquet").exists()
    with pytest.raises(UserError, match=message):
        read_lists(str(raw))


def test_no_listed_clip_fails(tmp_path, make_video, ray_session, capsys):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "val.csv").write_text(TRAIN)
    make_video(tmp_path / "raw" / "holiday.mp4", 5)
    with pytest.raises(SystemExit) as exit_:
        kinetics400.main([str(tmp_path / "raw"), "--out", str(tmp_path / "out.parquet")])
    assert exit_.value.code == 1 and "none of the clips" in capsys.readouterr().err
