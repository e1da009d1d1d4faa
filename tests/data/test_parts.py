"""Members of shards and tables of ranges: the frames of each, and a reject with a reason for what does not fit."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from carl_ray import storage
from carl_ray.data import scan
from carl_ray.data.decode import probe_video, read_frames
from carl_ray.data.listing import list_files, list_videos
from carl_ray.data.manifest import REJECTS_SCHEMA, SCHEMA, read_manifest, write_table
from carl_ray.data.parts import Range, cut, label_columns, members, read_ranges
from carl_ray.data.scan import build_manifest
from carl_ray.errors import UserError

FILE = {
    "video_id": "a.mp4", "uri": "/v/a.mp4", "num_frames": 100, "fps": 25.0, "width": 8, "height": 8, "rotation": 0,
    "duration": 4.0, "codec": "h264", "bytes": 9, "modified_ns": 1, "content_hash": "aa", "verified": True,
    "frame_step": 1.0, "frame_times": None, "key_frames": [0, 30, 60],
}  # fmt: skip


def table(*files: Mapping[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([FILE | file for file in files], schema=SCHEMA)


def rejects_of(*ranges: Range, **file: object) -> list[str]:
    manifest, rejects = cut(table(file), REJECTS_SCHEMA.empty_table(), ranges)
    assert manifest.num_rows + rejects.num_rows == len(ranges)
    return rejects.column("reason").to_pylist()


def test_a_range_has_its_own_times_key_frames_and_content() -> None:
    times = [i / 25 + (i >= 50) for i in range(100)]
    ranges = [Range("/v/a.mp4", "x", 20, 65, True, {"label": "jump"}), Range("/v/a.mp4", "all", None, None)]
    manifest, rejects = cut(table({"frame_times": times}), REJECTS_SCHEMA.empty_table(), ranges)
    whole, row = manifest.to_pylist()
    assert rejects.num_rows == 0 and whole == table({"frame_times": times, "video_id": "all"}).to_pylist()[0]
    assert (row["uri"], row["num_frames"]) == ("/v/a.mp4#frames=20-65/100", 45)
    assert (row["label"], row["key_frames"], row["duration"]) == ("jump", [10, 40], pytest.approx(2.8))
    assert row["frame_times"][:2] == [0, 0.04] and row["frame_times"][30] == pytest.approx(2.2)
    others = (Range("/v/a.mp4", "x", a, b, True) for a, b in ((20, 65), (20, 66), (19, 65)))
    hashes = [cut(table({}), rejects, [other])[0]["content_hash"][0].as_py() for other in others]
    assert hashes[0] == row["content_hash"] and len({*hashes, "aa"}) == 4


@pytest.mark.parametrize(
    ("start", "end", "frames"),
    [
        (0, 4, (0, 100)),
        (1, 2, (25, 50)),
        (1.02, 2.02, (25, 51)),
        (3.9, 4.05, (97, 100)),
        (None, 0.01, (0, 1)),
    ],
)
def test_seconds_are_the_frames_on_the_screen(start: float, end: float, frames: tuple[int, int]) -> None:
    assert Range("a", "a", start, end).frames(FILE) == frames


def test_what_does_not_fit_is_a_reject() -> None:
    one, no_range = Range("/v/a.mp4", "a", 0, 1), "no such range: "
    for start, end, in_frames, reason in (
        (4, 5, False, "the video has no frame at its start"),
        (-3, 1, True, "the video has no frame at its start"),
        (3, 5, False, "it ends behind the last frame of the video"),
        (3, 101, True, "it ends behind the last frame of the video"),
        (2, 1, False, "it ends before it starts"),
        (7, 7, True, "it ends before it starts"),
    ):
        assert rejects_of(Range("/v/a.mp4", "a", start, end, in_frames)) == [no_range + reason]
    assert "than the episode has" in rejects_of(Range("/v/a.mp4", "a", 0, 1, num_frames=24))[0]
    assert rejects_of(Range("/v/b.mp4", "b", 0, 1)) == ["no such video"]
    assert rejects_of(one, one) == ["another range has its video_id"]
    assert "the frame rate of the video is unknown" in rejects_of(one, fps=None)[0]
    broken = pa.Table.from_pylist(
        [{"uri": "/v/a.mp4", "bytes": 3, "reason": "encrypted"}], schema=REJECTS_SCHEMA
    )
    assert cut(SCHEMA.empty_table(), broken, [one])[1].to_pylist() == [
        {"uri": "/v/a.mp4 (0 to 1 s)", "bytes": 3, "modified_ns": None, "reason": "encrypted"}
    ]


def test_a_csv_file_of_ranges(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "uri,start,end,label\nx/a.mp4,1.5,,run\n/b.mp4,,2,\ns3://c/d%20e.mp4?region=r,0,1,walk\n", "utf-8-sig"
    )
    folder, ranges = read_ranges(str(path)) or (None, [])
    assert folder is None and [(r.uri, r.video_id, r.start, r.end) for r in ranges] == [
        (f"{tmp_path}/x/a.mp4", "x/a.mp4_1.5-", 1.5, None),
        ("/b.mp4", "/b.mp4_-2", None, 2.0),
        ("s3://c/d%20e.mp4?region=r", "s3://c/d%20e.mp4_0-1", 0.0, 1.0),
    ]
    assert [part.columns["label"] for part in ranges] == ["run", None, "walk"]
    path.write_text("video_id,uri,start_frame,end_frame,split\nme,a.mp4,3,9,test\n")
    ((part,),) = [found[1] for found in [read_ranges(str(path))] if found]
    assert (part.video_id, part.start, part.end, part.in_frames, part.columns["split"]) == (
        "me",
        3,
        9,
        True,
        "test",
    )


@pytest.mark.parametrize(
    "line", ["a.mp4,one,2", ",1,2", "a.mp4,1,nan", "a.mp4,1,2,x", "a.mp4#frames=3-9,1,2", "a.mp4"]
)
def test_a_csv_file_that_is_none_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.csv").write_text(f"uri,start,end\nb.mp4,1,2\n{line}\n")
    if line == "a.mp4":
        assert [part.start for part in (read_ranges(str(tmp_path / "a.csv")) or ("", []))[1]] == [1.0, None]
        return
    with pytest.raises(UserError, match=r"a.csv, line 3: expected uri,start,end in seconds, got"):
        read_ranges(str(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text("uri,start,end\ns3://k:s@c/d.mp4,1,2\n")
    with pytest.raises(UserError, match=r"a.csv, line 2: expected a URI without credentials") as refused:
        read_ranges(str(tmp_path / "a.csv"))
    assert "k:s" not in str(refused.value)
    (tmp_path / "a.csv").write_text("video,from,to\n")
    with pytest.raises(UserError, match=r"columns uri,start,end .*got video,from,to"):
        read_ranges(str(tmp_path / "a.csv"))


def test_a_uri_that_no_store_has_is_the_reject_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bucket(scheme: str, *place: str) -> tuple[fs.FileSystem, str]:
        return storage._open_uri(f"{scheme}://x") if scheme == "foo" else (fs.LocalFileSystem(), "bkt")

    monkeypatch.setattr(storage, "_bucket", bucket)
    (tmp_path / "good.mp4").write_bytes(b"x")
    named = {
        "s3://bkt/a//double.mp4": "nothing between two slashes of its path",
        "foo://x/y.mp4": "Unrecognized filesystem type",
        "file://host/x.mp4": "Unsupported hostname",
        "a\0b.mp4": "its name is not UTF-8, or has a NUL",
        "~nobody-of-this-name/x.mp4": "no such file",
        f"{'long' * 80}.mp4": "no path: File name too long",
    }
    lines = [f"{uri},0,1\n" for uri in [*named, "good.mp4"]]
    (tmp_path / "a.csv").write_text("".join(["uri,start,end\n", *lines]))
    _, ranges = read_ranges(str(tmp_path / "a.csv")) or (None, [])
    files, rejects = list_files([part.uri for part in ranges])
    assert [file["uri"] for file in files] == [str(tmp_path / "good.mp4")]
    for reject, (uri, reason) in zip(rejects, named.items(), strict=True):
        assert reject["uri"].endswith(uri) and reason in reject["reason"]
        assert reject["uri"] not in reject["reason"].partition("(")[0], "reasons are counted"
    # Indexed again: the earlier manifest is that of these files.
    write_table(table({"uri": str(tmp_path / "good.mp4")}), str(tmp_path / "m.parquet"))
    known, _ = scan._read_earlier([part.uri for part in ranges], str(tmp_path / "m.parquet"))
    assert known.num_rows == 1


def test_names_that_differ_by_blanks_alone_are_one_id(tmp_path: Path) -> None:
    for name in (" a.mp4", "a.mp4", " b.mp4", "c/ d.mp4", "c/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    files, rejects, _ = list_videos(fs.LocalFileSystem(), str(tmp_path), str(tmp_path))
    ids = {file["video_id"]: Path(file["uri"]).name for file in files}
    assert ids == {"a.mp4": "a.mp4", "b.mp4": " b.mp4", "c/ d.mp4": " d.mp4", "c/d.mp4": "d.mp4"}
    assert [(reject["uri"], reject["reason"]) for reject in rejects] == [
        (f"{tmp_path}/ a.mp4", "it has another's name but for blanks at an end: rename it")
    ]


def robot(folder: Path, version: str = "v3.0", **columns: list[object]) -> str:
    info = {"codebase_version": version, "features": {c: {"dtype": "video"} for c in ("top", "side")}}
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True, exist_ok=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info | {"splits": {"train": "0:1", "val": "1:2"}}))
    episodes: dict[str, Any] = {"episode_index": [0, 1], "length": [30, 20], "tasks": [["a"], ["a", "b"]]}
    for camera in ("top", "side"):
        values = {"chunk_index": [0, 0], "file_index": [0, 1 if camera == "top" else None]}
        values |= {"from_timestamp": [0.0, 3.0], "to_timestamp": [1.0, 4.0]}
        episodes |= {f"videos/{camera}/{name}": value for name, value in values.items()}
    pq.write_table(
        pa.table(episodes | columns), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    )
    return str(folder)


def test_episodes_of_a_lerobot_dataset(tmp_path: Path) -> None:
    folder, ranges = read_ranges(robot(tmp_path)) or (None, [])
    assert folder == f"{tmp_path}/videos"
    assert [
        (r.uri.removeprefix(f"{folder}/"), r.video_id, r.start, r.end, r.num_frames, *r.columns.values())
        for r in ranges
    ] == [
        ("top/chunk-000/file-000.mp4", "episode_000000_top", 0, 1, 30, "train", "a"),
        ("side/chunk-000/file-000.mp4", "episode_000000_side", 0, 1, 30, "train", "a"),
        ("top/chunk-000/file-001.mp4", "episode_000001_top", 3, 4, 20, "validation", "a; b"),
    ]
    for wrong in ({"episode_index": [0, None]}, {"tasks": ["a", "b"]}):
        with pytest.raises(UserError, match="not episodes of LeRobot v3"):
            read_ranges(robot(tmp_path, **wrong))
    # As pandas writes a column with a missing number.
    assert len((read_ranges(robot(tmp_path, **{"videos/side/file_index": [0.0, None]})) or ("", []))[1]) == 3
    (tmp_path / "meta" / "episodes" / "chunk-000" / "file-000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not episodes of LeRobot v3"):
        read_ranges(str(tmp_path))
    (tmp_path / "meta" / "info.json").write_text('{"codebase_version": "v3.0", "features": []}')
    with pytest.raises(UserError, match="not the description of a LeRobotDataset v3"):
        read_ranges(str(tmp_path))
    # Earlier versions have a file for each episode, and another dataset may have a file of this name.
    assert read_ranges(robot(tmp_path, "v2.1")) is None
    (tmp_path / "meta" / "info.json").write_text("[]")
    assert read_ranges(str(tmp_path)) is None and read_ranges(f"{tmp_path}/meta/info.json") is None


def test_members_of_a_shard_and_what_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, size = tmp_path / "s.tar", 3 << 20
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (
            ("./ä" * 90 + ".mp4", b"1" * size),
            ("b.txt", b"2"),
            ("c.mp4", b""),
            ("d.mkv", b"4" * size),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        archive.addfile(tarfile.TarInfo("folder.mp4/"))
    local = fs.LocalFileSystem()
    found = list(members(local, str(shard)))
    content = shard.read_bytes()
    assert [content[offset : offset + size][:1] for _, offset, size, _ in found if size] == [b"1", b"2", b"4"]
    shard.write_bytes(content[: found[3][1] + 99])
    (tmp_path / "no.tar").write_bytes(b"no archive" * 99)
    files, rejects, others = list_videos(local, str(tmp_path), str(tmp_path))
    assert [file["uri"] for file in files] == [f"{shard}#bytes={found[0][1]}+{size}"] and others == 1
    reasons = {reject["video_id"]: reject["reason"] for reject in rejects}
    assert all(reasons.pop(name).startswith("not a whole tar archive") for name in ("no.tar", "s.tar"))
    assert reasons == {
        "s.tar/c.mp4": "the file is empty",
        "s.tar/d.mkv": "truncated: the shard ends before it does",
    }
    (only,), _, _ = list_videos(local, str(shard), str(shard))
    assert only == files[0]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.cls", b"7\n", {"label": "7"}),
        ("a.cls", "Tür auf".encode(), {"label": "Tür auf"}),
        ("a.json", b'{"label": 7, "split": "train", "caption": "x"}', {"label": "7", "split": "train"}),
        ("a.json", b'{"frame_labels": [0, -1, 2], "phase_names": null}', {"frame_labels": [0, -1, 2]}),
        ("a.json", b"{}", {}),
        *(("a.cls", wrong, None) for wrong in (b"", b" \n", b"\xff", b"two\nlines", None)),
        *(
            ("a.json", of_others, {})
            for of_others in (b"", b"[1]", b"{", b"[" * 9999, b'{"label": [1]}', b'{"label": true}')
        ),
        ("a.json", b'{"split": "train[:80%]", "label": 1.5, "progress": [0, 0.5]}', {"progress": [0, 0.5]}),
        *(
            ("a.json", b"{%s}" % wrong, None)
            for wrong in (
                b'"label": ""',
                b'"frame_labels": "ab"',
                b'"frame_labels": [-7, 0]',
                b'"frame_labels": [0.5]',
                b'"frame_labels": [1180591620717411303424]',
                b'"frame_labels": [1], "phase_names": ["a"]',
                b'"progress": [NaN, 1]',
                b'"phase_names": [1]',
            )
        ),
    ],
)
def test_labels_of_a_member(name: str, content: bytes | None, expected: dict[str, object] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match=r"^not "):
            label_columns(name, content)
    else:
        assert label_columns(name, content) == expected


def write_shard(path: Path, video: bytes, labels: Mapping[str, tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, (suffix, content) in labels.items():
            for name, held in ((f"{key}.mp4", video), (f"{key.partition('.')[0]}.{suffix}", content)):
                member = tarfile.TarInfo(name)
                member.size = len(held)
                archive.addfile(member, io.BytesIO(held))


def test_labels_in_a_shard(ray_session: None, make_video: Callable[..., Path], tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", 4).read_bytes()
    labels = {
        "a": ("cls", b"jump"),
        "b.c": ("json", b'{"frame_labels": [0, 0, 1, 1], "split": "val"}'),
        "d": ("json", b'{"frame_labels": [0]}'),
        "e": ("cls", b"\xff"),
    }
    write_shard(tmp_path / "shards" / "s.tar", video, labels)
    out = str(tmp_path / "m.parquet")
    manifest, rejects = build_manifest(str(tmp_path / "shards"), out)
    found = manifest.select(["video_id", "label", "split", "frame_labels"]).to_pylist()
    assert sorted(map(tuple, map(dict.values, found))) == [
        ("s.tar/a.mp4", "jump", None, None),
        ("s.tar/b.c.mp4", None, "validation", [0, 0, 1, 1]),
        ("s.tar/e.mp4", None, None, None),
    ]
    assert sorted(rejects.column("reason").to_pylist()) == [
        "not the labels of a video, as .cls or .json has them",
        "the labels in its shard are not as many as its frames",
    ]
    # Labels that no command would accept are said at once; mended, the same command goes on.
    absurd = {"f": ("json", b'{"frame_labels": [1000000, 0, 0, 0]}')}
    write_shard(tmp_path / "shards" / "t.tar", video, absurd)
    with pytest.raises(
        UserError, match=r"which makes 1000001 classes .*'t\.tar/f\.mp4'\): number the classes"
    ):
        build_manifest(str(tmp_path / "shards"), out)
    write_shard(tmp_path / "shards" / "t.tar", video, {"f": ("json", b'{"frame_labels": [2, 0, 0, 0]}')})
    mended, _ = build_manifest(str(tmp_path / "shards"), out)
    assert mended.num_rows == 4 and mended.equals(read_manifest(out))


def header(name: str | bytes, size: int) -> bytes:
    """A tar header, also one that `tarfile` does not write."""
    member = tarfile.TarInfo("x")
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    encoded = name.encode() if isinstance(name, str) else name
    block[:100] = encoded.ljust(100, b"\0")
    block[124:136] = b"%011o\0" % size if size >= 0 else (size % 2**96).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_hostile_and_old_shards(tmp_path: Path) -> None:
    def listed(*blocks: bytes) -> tuple[list[str], dict[str, str]]:
        (tmp_path / "s.tar").write_bytes(b"".join(blocks) + bytes(1024))
        files, rejects, _ = list_videos(fs.LocalFileSystem(), str(tmp_path), str(tmp_path))
        return [file["video_id"] for file in files], {r["video_id"]: r["reason"] for r in rejects}

    content = b"v".ljust(512, b"\0")
    good = header("a.mp4", 9) + content
    files, reasons = listed(good, header("b.mp4", -512))
    assert files == ["s.tar/a.mp4"] and reasons["s.tar"].startswith("not a whole tar archive")
    files, reasons = listed(good, header(b"\xdc.mp4", 9) + content)
    assert files == ["s.tar/a.mp4"] and reasons == {"s.tar/\\udcdc.mp4": "its name is not UTF-8: rename it"}
    (tmp_path / "s.tar").unlink()
    files, reasons = listed(good, header("./a.mp4", 9) + content)
    assert files == ["s.tar/a.mp4"]
    assert reasons == {"s.tar/a.mp4": "replaced by a later member of the same name"}


def test_shards_of_webdatasets_own_writer(make_video: Callable[..., Path], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    sources = [make_video(tmp_path / "files" / f"{number}.mp4", 20 + number) for number in range(3)]
    (tmp_path / "shards").mkdir()
    with webdataset.ShardWriter(f"{tmp_path}/shards/clips-%06d.tar", maxcount=2, verbose=0) as writer:
        for number, source in enumerate(sources):
            more = {"json": {"split": "Testing", "width": 3}} if number == 2 else {"txt": "a caption"}
            writer.write({"__key__": f"run/{number}", "mp4": source.read_bytes(), "cls": number} | more)
    files, rejects, others = list_videos(fs.LocalFileSystem(), *[str(tmp_path / "shards")] * 2)
    assert rejects == [] and others == 6
    assert [file["columns"] for file in files] == [
        {"label": "0"},
        {"label": "1"},
        {"label": "2", "split": "test"},
    ]
    assert [file["video_id"] for file in files] == [
        f"clips-00000{number // 2}.tar/run/{number}.mp4" for number in range(3)
    ]
    for file, source in zip(files, sources, strict=True):
        count = probe_video(file["uri"]).num_frames
        assert count == probe_video(str(source)).num_frames
        frames = [read_frames(uri, [0, count - 1]) for uri in (file["uri"], str(source))]
        np.testing.assert_array_equal(*frames)
