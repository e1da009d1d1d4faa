"""Every file below a folder ends in the manifest or in the rejects, whatever it does to the decoder."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from carl_ray.data import probing, scan
from carl_ray.data.child import Child
from carl_ray.data.labels import LabelOptions, label_manifest
from carl_ray.data.listing import list_videos
from carl_ray.data.manifest import REJECTS_SCHEMA, SCHEMA, read_manifest, rejects_uri, write_table
from carl_ray.data.probing import probe_guarded
from carl_ray.data.scan import build_manifest, index_folder
from carl_ray.errors import RunError, UserError
from carl_ray.index import _summary
from tests.samples import manifest_row


@pytest.fixture(scope="module")
def videos(make_video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "train" / "a b%20#?.mp4", 20)
    make_video(folder / "val" / "deep" / "b.mkv", 30, 80, 64)
    make_video(folder / "c.MP4", 10, 48, 80, matrix=(0, 1, -1, 0))
    (folder / "test").mkdir()
    (folder / "test" / "broken.mp4").write_bytes(b"not a video" * 100)
    (folder / "empty.webm").write_bytes(b"")
    (folder / "notes.txt").write_text("passed over")
    return folder


@pytest.fixture
def folder(videos, tmp_path):
    return shutil.copytree(videos, tmp_path / "copy")


def test_everything_is_accounted_for(videos, ray_session, tmp_path, capsys):
    manifest, rejects = build_manifest(str(videos), str(tmp_path / "m.parquet"), verify=True)
    assert manifest.schema == SCHEMA and rejects.schema == REJECTS_SCHEMA
    rows = {row["video_id"]: row for row in manifest.to_pylist()}
    assert {name: row["num_frames"] for name, row in rows.items()} == {
        "train/a b%20#?.mp4": 20,
        "val/deep/b.mkv": 30,
        "c.MP4": 10,
    }
    assert [row["split"] for row in rows.values()] == [None, "train", "validation"]
    row = rows["c.MP4"]
    content = (videos / "c.MP4").read_bytes()
    assert row["content_hash"] == hashlib.blake2b(content, digest_size=16).hexdigest()
    assert (row["bytes"], row["width"], row["height"], row["rotation"]) == (len(content), 80, 48, -90)
    assert (row["uri"], row["verified"], row["frame_step"]) == (str(videos / "c.MP4"), True, 1.0)
    assert row["modified_ns"] == (videos / "c.MP4").stat().st_mtime_ns
    assert row["key_frames"] == [0] and rows["val/deep/b.mkv"]["key_frames"][0] == 0
    reasons = {row["uri"].rpartition("/")[2]: row["reason"] for row in rejects.to_pylist()}
    assert reasons["empty.webm"] == "the file is empty" and "not a video" in reasons["broken.mp4"]
    assert len(reasons) == 2
    assert "5 to read, 0 unchanged; 1 other files passed over" in capsys.readouterr().err


def test_indexing_again_reads_only_what_changed(folder, ray_session, tmp_path, monkeypatch, make_video):
    out = str(tmp_path / "manifest.parquet")
    first, _ = index_folder(str(folder), out)
    labels = [[1] * n for n in first.column("num_frames").to_pylist()]
    labelled = first.set_column(
        SCHEMA.get_field_index("label"), SCHEMA.field("label"), pa.array(["x", "y", "z"])
    )
    labelled = labelled.set_column(
        SCHEMA.get_field_index("frame_labels"),
        SCHEMA.field("frame_labels"),
        pa.array(labels, SCHEMA.field("frame_labels").type),
    )
    write_table(labelled, out)
    read = []
    probe_all = scan.probe_all
    monkeypatch.setattr(
        scan,
        "probe_all",
        lambda files, *rest: (read.extend(f["video_id"] for f in files), probe_all(files, *rest))[1],
    )

    assert index_folder(str(folder), out)[0].equals(labelled) and read == []

    os.utime(folder / "c.MP4", ns=(1, 1))  # read again, but the same content: labels stay
    make_video(folder / "train" / "a b%20#?.mp4", 25)  # another content: labels go
    (folder / "val" / "deep" / "b.mkv").unlink()
    make_video(folder / "new.mp4", 5)
    manifest, rejects = index_folder(str(folder), out)
    assert sorted(read) == ["c.MP4", "new.mp4", "train/a b%20#?.mp4"]
    assert {row["video_id"]: (row["num_frames"], row["label"]) for row in manifest.to_pylist()} == {
        "c.MP4": (10, "x"),
        "new.mp4": (5, None),
        "train/a b%20#?.mp4": (25, None),
    }
    assert manifest.to_pylist()[0]["frame_labels"] == [1] * 10
    assert rejects.num_rows == 2

    read.clear()
    manifest, _ = index_folder(str(folder), out, verify=True)  # rejects need no second look, the others do
    assert len(read) == 3 and all(manifest.column("verified").to_pylist())
    assert manifest.to_pylist()[0]["label"] == "x"
    assert manifest.equals(read_manifest(out))


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_an_interrupted_scan_is_continued(folder, ray_session, tmp_path, monkeypatch, capsys, seconds):
    out = str(tmp_path / "manifest.parquet")
    probe_all = scan.probe_all

    def interrupted(*arguments):
        for number, found in enumerate(probe_all(*arguments)):
            if number == 3:
                if not seconds:  # what a kill leaves
                    assert (
                        read_manifest(out).num_rows + read_manifest(rejects_uri(out), ["uri"]).num_rows == 3
                    )
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(scan, "_SAVE_SECONDS", seconds)
    monkeypatch.setattr(scan, "_SAVE_SHARE", 0)
    monkeypatch.setattr(scan, "probe_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index_folder(str(folder), out)
    monkeypatch.setattr(scan, "probe_all", probe_all)
    capsys.readouterr()
    manifest, rejects = index_folder(str(folder), out)
    # Saved when the fourth was awaited: three are kept, be it time to save or not.
    assert "5 videos" in (said := capsys.readouterr().err) and "2 to read, 3 unchanged" in said
    assert (manifest.num_rows, rejects.num_rows) == (3, 2)


def test_a_rate_or_a_duration_that_cannot_be_is_not_known(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"x")
    probed = manifest_row("a.mp4") | {"fps": 0.0, "duration": -3.5, "frame_times": None, "key_frames": [0]}
    probed = {
        name: probed[name] for name in probed if name not in ("video_id", "uri", "bytes", "split", "label")
    }
    monkeypatch.setattr(scan, "probe_all", lambda files, *_: ((file, probed) for file in files))
    index_folder(str(tmp_path), str(tmp_path / "m.parquet"))
    (row,) = read_manifest(str(tmp_path / "m.parquet")).to_pylist()
    assert (row["fps"], row["duration"], row["num_frames"]) == (None, None, probed["num_frames"])
    # Nor in a manifest of an earlier version, whose videos are not read again.
    old = pa.Table.from_pylist([row | {"fps": 0.0, "duration": -1.0}], schema=SCHEMA)
    write_table(old, str(tmp_path / "m.parquet"))
    monkeypatch.setattr(scan, "probe_all", lambda files, *_: iter(()))
    index_folder(str(tmp_path), str(tmp_path / "m.parquet"))
    assert read_manifest(str(tmp_path / "m.parquet")).to_pylist() == [row]


def test_links_and_names_are_accounted_for(make_video, ray_session, tmp_path):
    folder = tmp_path / "videos"
    make_video(folder / "Train" / "x.mp4", 5)
    for name in ("Test/a.mp4", "valid/b.mp4", "dev/c.mp4", "testing/d.mp4", "other/e.mp4"):
        make_video(folder / name, 5)
    elsewhere = make_video(tmp_path / "elsewhere" / "f.mp4", 5).parent
    (folder / "Train" / "loop").symlink_to("..")
    (folder / "a_link").symlink_to("other")
    (folder / "a.mp4").symlink_to("other/e.mp4")
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    (folder / "self.mp4").symlink_to("self.mp4")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    for name in ("outside", "outside again"):
        (folder / name).symlink_to(elsewhere)
    os.mkfifo(folder / "pipe.mp4")
    shutil.copy(elsewhere / "f.mp4", os.fsencode(folder) + b"/caf\xe9.mp4")
    manifest, rejects = index_folder(str(folder), str(tmp_path / "m.parquet"))
    assert {row["video_id"]: row["split"] for row in manifest.to_pylist()} == {
        "Train/x.mp4": "train",
        "Test/a.mp4": "test",
        "valid/b.mp4": "validation",
        "dev/c.mp4": "validation",
        "testing/d.mp4": "test",
        "other/e.mp4": None,
        "outside/f.mp4": None,
    }
    reasons = {row["uri"].removeprefix(f"{folder}/"): row["reason"] for row in rejects.to_pylist()}
    assert reasons == {
        "a.mp4": "a link to a video that is there under another name",
        "gone.mp4": "a link to nothing",
        "self.mp4": "could not be read: Too many levels of symbolic links",
        "pipe.mp4": "not a regular file",
        "caf\\xe9.mp4": "its name is not UTF-8: rename it",
    }
    said = _summary(manifest, rejects, "m.parquet")
    assert (
        "no split (trained on) 2, test 2, train 1, validation 2; Test/ was read as test; Train/ was" in said
    )
    assert "1 x its name is not UTF-8: rename it (" in said and "caf\\xe9.mp4)" in said


def test_labels_of_a_video_that_was_counted_wrong_are_kept(make_video, ray_session, tmp_path):
    out = str(tmp_path / "m.parquet")
    make_video(tmp_path / "videos" / "a.mp4", 5)
    manifest, _ = index_folder(str(tmp_path / "videos"), out)
    (row,) = manifest.to_pylist()
    write_table(pa.Table.from_pylist([row | {"num_frames": 9, "frame_labels": [1] * 5}], schema=SCHEMA), out)
    with pytest.raises(UserError, match=r"has 5 frame_labels for 9 frames: .*--verify"):
        read_manifest(out)
    (row,) = index_folder(str(tmp_path / "videos"), out, verify=True)[0].to_pylist()
    assert (row["num_frames"], row["frame_labels"]) == (5, [1] * 5)


def test_a_key_of_s3_that_pyarrow_refuses_is_a_reject(s3_endpoint, make_video, ray_session, tmp_path):
    import boto3

    store = boto3.client("s3", endpoint_url=f"http://{s3_endpoint}")
    store.create_bucket(Bucket="odd-keys")
    content = make_video(tmp_path / "a.mp4", 5).read_bytes()
    for key in ("mix/ok.mp4", "mix/a//double.mp4"):
        store.put_object(Bucket="odd-keys", Key=key, Body=content)
    uri = f"s3://odd-keys/mix?endpoint_override={s3_endpoint}&scheme=http"
    manifest, rejects = index_folder(uri, str(tmp_path / "m.parquet"))
    assert manifest.column("video_id").to_pylist() == ["ok.mp4"]
    (reject,) = rejects.to_pylist()
    assert "a//double.mp4" in reject["uri"] and reject["reason"].startswith("could not be read: Empty path")
    with pytest.raises(UserError, match="nothing between two slashes"):
        index_folder(uri.replace("/mix", "//mix"), str(tmp_path / "other.parquet"))


def test_unread_files_are_tried_again(folder, ray_session, tmp_path):
    out = str(tmp_path / "m.parquet")
    info = (folder / "empty.webm").stat()
    row = {"uri": str(folder / "empty.webm"), "bytes": 0, "modified_ns": info.st_mtime_ns}
    for reason, kept in (("could not be read: gone", False), ("no frame decodes", True)):
        write_table(
            pa.Table.from_pylist([{**row, "reason": reason}], schema=REJECTS_SCHEMA), rejects_uri(out)
        )
        _, rejects = index_folder(str(folder), out)
        reasons = {r["uri"]: r["reason"] for r in rejects.to_pylist()}
        assert (reasons[row["uri"]] == reason) == kept


def test_no_folder_no_video_other_manifest(tmp_path, videos):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.mp4").write_bytes(b"")
    out = str(tmp_path / "manifest.parquet")
    for path, message in (
        ("none", "no such folder"),
        ("empty", "no video in it"),
        ("file.mp4", "got a file"),
    ):
        with pytest.raises(UserError, match=message):
            index_folder(str(tmp_path / path), out)
    row = {"video_id": "a.mp4", "uri": "/elsewhere/a.mp4", "content_hash": "", "verified": False}
    row |= dict.fromkeys(("num_frames", "width", "height", "rotation", "bytes", "frame_step"), 1)
    write_table(pa.Table.from_pylist([row], schema=SCHEMA), out)
    with pytest.raises(UserError, match="the manifest of another folder"):
        index_folder(str(videos), out)
    assert read_manifest(out).num_rows == 1


def test_a_store_that_refuses_is_one_line(monkeypatch, tmp_path):
    class Store:
        def get_file_info(self, what):
            raise OSError("AWS Error ACCESS_DENIED during HeadObject operation")

    resolve = scan.storage.resolve
    store = (Store(), "bucket/videos")
    monkeypatch.setattr(scan.storage, "resolve", lambda uri: store if "bucket" in uri else resolve(uri))
    monkeypatch.setattr(scan.storage, "DENIAL_SECONDS", 0.0)
    with pytest.raises(RunError, match=r"^s3://bucket/videos: .*no permission"):
        index_folder("s3://name:secret@bucket/videos", str(tmp_path / "m.parquet"))


def test_uris_are_quoted_and_hold_no_credentials():
    store = fs._MockFileSystem()
    store.create_dir("bucket/videos/sub")
    for name in ("sub/a b%.mp4", "c.mp4", "d.csv"):
        with store.open_output_stream(f"bucket/videos/{name}") as file:
            file.write(b"content")
    uri = "s3://key:secret@bucket/videos/?scheme=http&endpoint_override=localhost:1"
    files, rejects, num_others = list_videos(store, "bucket/videos", uri)
    query = "?scheme=http&endpoint_override=localhost:1"
    assert {f["uri"] for f in files} == {
        f"s3://bucket/videos/sub/a%20b%25.mp4{query}",
        f"s3://bucket/videos/c.mp4{query}",
    }
    assert (rejects, num_others) == ([], 1)
    assert scan._without_query(uri) == "s3://bucket/videos/"


def test_rejects_lie_beside_the_manifest():
    assert rejects_uri("a/b.parquet") == "a/b.rejects.parquet"
    assert rejects_uri("s3://b/m.parquet?scheme=http") == "s3://b/m.rejects.parquet?scheme=http"


_CHILD = "import carl_ray.data.probing as s, os, ctypes; "


@pytest.mark.parametrize(
    "body,reason",
    [
        ("lambda content: os.kill(os.getpid(), 11)", "crashed .SIGSEGV"),
        ("lambda content: os._exit(7)", "crashed .exit status 7"),
        ("lambda content: os.kill(os.getpid(), 9)", "was killed"),
        ("lambda content: ctypes.PyDLL(None).sleep(60)", "took longer than 1 s"),  # holds the GIL
        ("lambda content: 1 // 0", "probing failed .ZeroDivisionError"),
    ],
)
def test_a_decoder_that_dies_or_hangs_costs_one_file(body, reason, make_video, tmp_path, monkeypatch):
    good = make_video(tmp_path / "v.mp4", 5).read_bytes()
    # Spares the good file, so that the same child can be asked again.
    code = f"p = s.probe_video; bad = {body}; "
    code += "s.probe_video = lambda c, **k: bad(c) if c == b'bad' else p(c, **k)"
    monkeypatch.setattr(probing, "_child", Child(f"{_CHILD}{code}; s.answer_probes()"))
    patience = probing._PATIENCE
    for content in (good, b"bad", good):
        hangs = "longer" in reason and content == b"bad"
        monkeypatch.setattr(probing, "_PATIENCE", 1 if hangs else patience)
        outcome = probe_guarded(io.BytesIO(content), len(content), verify=True)
        if content == b"bad":
            assert re.search(reason, outcome["reason"])
        else:
            assert outcome["num_frames"] == 5 and outcome["verified"]


def test_a_file_that_changes_size_meanwhile_is_an_error():
    for size in (5, 20):
        with pytest.raises(OSError, match="its size has changed"):
            probe_guarded(io.BytesIO(b"ten bytes."), size, verify=False)
    assert "not a video" in probe_guarded(io.BytesIO(b"ten bytes."), 10, verify=False)["reason"]


def test_command_line_errors_are_one_line(tmp_path):
    for arguments in (
        [str(tmp_path)],
        [str(tmp_path / "none"), "--out", str(tmp_path / "m.parquet")],
        ["--nope"],
    ):
        run = subprocess.run(
            [sys.executable, "-m", "carl_ray.index", *arguments], capture_output=True, text=True, check=False
        )
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1 and "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_files_of_labels_are_joined_to_real_times(make_video, ray_session, tmp_path, capsys):
    steps = np.random.default_rng(0).integers(1, 4, 29)
    times = {"cinema.mp4": np.arange(30) / 24, "ntsc.mp4": np.arange(30) * 1001 / 30000}
    times["variable.mp4"] = np.cumsum([0, *steps]) / 30
    folder = tmp_path / "videos" / "lift"
    make_video(folder / "cinema.mp4", 30, fps=24)
    make_video(folder / "ntsc.mp4", 30, fps=30000, pts=[1001 * k for k in range(30)])
    make_video(folder / "variable.mp4", 30, pts=np.cumsum([0, *steps]).tolist())
    spans = [(3, 11, "up"), (11, 29, "down")]
    by_second, by_frame = ["video,start,end,label"], ["video,frame,label"]
    for name, at in times.items():
        by_second += [f"{name},{at[start]:.3f},{at[end]:.3f},{phase}" for start, end, phase in spans]
        by_frame += [f"{name},{k},{phase}" for start, end, phase in spans for k in range(start, end)]
    for name, lines in (("seconds", by_second), ("frames", by_frame)):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
        manifest, _ = build_manifest(
            str(tmp_path / "videos"), str(tmp_path / f"{name}.parquet"), str(tmp_path / f"{name}.csv")
        )
        assert manifest.column("frame_labels").to_pylist() == [[-1] * 3 + [0] * 8 + [1] * 18 + [-1]] * 3
        assert manifest.equals(read_manifest(str(tmp_path / f"{name}.parquet")))
    assert (
        "seconds.csv: intervals (video, start, end, label), 6 rows for 3 of 3 videos"
        in capsys.readouterr().err
    )
    # Indexed again, labels and columns of one's own stay, also where a file is read again.
    (tmp_path / "who.csv").write_text("video,person\nntsc,ann\n")
    out = str(tmp_path / "frames.parquet")
    label_manifest(out, LabelOptions(files=(str(tmp_path / "who.csv"),)))
    os.utime(folder / "ntsc.mp4", ns=(1, 1))
    again, _ = index_folder(str(tmp_path / "videos"), out)
    assert again.column("person").to_pylist() == [None, "ann", None]
    assert again.column("phase_names").to_pylist() == [["up", "down"]] * 3
    # A mistake in the labels leaves the scan.
    (tmp_path / "bad.csv").write_text("video,person\nnone,ann\n")
    with pytest.raises(UserError, match="no video 'none'"):
        build_manifest(str(tmp_path / "videos"), str(tmp_path / "m.parquet"), str(tmp_path / "bad.csv"))
    assert read_manifest(str(tmp_path / "m.parquet")).num_rows == 3


def test_labels_are_joined(make_video, ray_session, tmp_path):
    make_video(tmp_path / "videos" / "a.mp4", 5)
    out = str(tmp_path / "m.parquet")
    labels = pa.table({"video_id": ["a.mp4"], "label": ["jump"]})
    manifest, _ = build_manifest(str(tmp_path / "videos"), out, labels)
    assert manifest.column("label").to_pylist() == ["jump"] and read_manifest(out).equals(manifest)
    with pytest.raises(ValueError, match="it has no labels"):
        build_manifest(str(tmp_path / "videos"), out, labels.slice(1))


def test_files_whose_worker_always_dies_are_rejects(make_video, ray_session, tmp_path):
    make_video(tmp_path / "videos" / "a.mp4", 5)

    def die(*arguments, **options):
        os.kill(os.getpid(), 9)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(probing, "_probe_file", die)
        manifest, rejects = index_folder(str(tmp_path / "videos"), str(tmp_path / "m.parquet"))
    assert manifest.num_rows == 0
    (reason,) = rejects.column("reason").to_pylist()
    assert "the process that decodes it, or another file of the same task, died 4 times" in reason
    manifest, rejects = index_folder(str(tmp_path / "videos"), str(tmp_path / "m.parquet"))
    assert (manifest.num_rows, rejects.num_rows) == (1, 0)


def test_times_of_frames_are_kept_where_the_rate_does_not_give_them(make_video, tmp_path):
    pts = [0, 1, 3, 4, 9, 10]
    for suffix, options, expected in (
        ("mp4", {"pts": pts}, [k / 30 for k in pts]),
        ("mkv", {"pts": pts}, [round(k / 30, 3) for k in pts]),
        ("mp4", {}, None),
        ("mkv", {}, None),  # rounded to milliseconds
        ("avi", {}, None),
    ):
        content = make_video(tmp_path / f"v.{suffix}", 6, **options).read_bytes()
        assert probe_guarded(io.BytesIO(content), len(content), verify=False)["frame_times"] == pytest.approx(
            expected, abs=1e-6
        )
