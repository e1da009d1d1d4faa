"""UCF101, HMDB51 and Something-Something v2 from miniatures of their published layouts, with their quirks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from pyarrow import fs

from carl_ray.data.manifest import SCHEMA, read_manifest
from carl_ray.datasets import hmdb51, something_v2, ucf101
from carl_ray.datasets.listed import Listed, label_listed, match_names
from carl_ray.errors import UserError
from tests.samples import failure

Texts = dict[str, str | bytes]

UCF101: Texts = {
    "ucfTrainTestlist/classInd.txt": "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n\r\n",
    "ucfTrainTestlist/trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g09_c02.avi 2\r\nApplyEyeMakeup/v_ApplyEyeMakeup_g10_c01.avi 1\r\n",
    "ucfTrainTestlist/testlist01.txt": "HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n"
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c04.avi\r\n",
    "ucfTrainTestlist/trainlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c04.avi 1\r\n",
    "ucfTrainTestlist/testlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi\r\n",
    "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g10_c01.avi": b"not a video" * 50,
}
UCF101_VIDEOS = [
    "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
    "UCF-101/HandstandPushups/v_HandstandPushups_g09_c02.avi",  # other case than the list
    "elsewhere/v_HandStandPushups_g01_c01.mp4",  # other folder and suffix
    "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g99_c01.avi",
]

ODD = "#1_[a]_50%_(b)&c!_clap_u_nm_np1_fr_goo_0"
HMDB51: Texts = {
    "test_train_splits/testTrainMulti_7030_splits/clap_test_split1.txt": f"{ODD}.avi 1 \n"
    "Same_name_0.avi 2 \nNot_used_1.avi 0 \nMissing_2.avi 1 \n",
    "test_train_splits/testTrainMulti_7030_splits/brush_hair_test_split1.txt": "Same_name_0.avi 1 \n",
    "test_train_splits/testTrainMulti_7030_splits/clap_test_split2.txt": f"{ODD}.avi 0 \n",
}
HMDB51_VIDEOS = [
    f"videos/clap/{ODD}.avi",
    "videos/clap/Same_name_0.avi",
    "videos/brush_hair/Same_name_0.avi",
    "videos/clap/Not_used_1.avi",
]

SOMETHING: Texts = {
    "something-something-v2-train.json": json.dumps(
        [
            {
                "id": "78687",
                "label": "holding potato next to box",
                "template": "Holding [something] next to [something]",
            },
            {"id": "42326", "template": "Putting [something] on a surface", "placeholders": ["a"]},
        ]
    ),
    "something-something-v2-validation.json": json.dumps(
        [{"id": 7, "template": "Putting [something] on a surface"}]
    ),
    "something-something-v2-test.json": '[{"id": "1420"}]',
    "something-something-v2-labels.json": '{"Holding something next to something": "0", '
    '"Putting something on a surface": "1"}',
}
SOMETHING_VIDEOS = [f"20bn-something-something-v2/{number}.webm" for number in (78687, 7, 1420, 5)]


@pytest.fixture
def lay_out(make_video: Callable[..., Path], tmp_path: Path) -> Callable[[Texts, list[str]], Path]:
    """A function that writes files, and one small video under several names."""

    def write(texts: Texts, videos: list[str]) -> Path:
        raw = tmp_path / "raw"
        for name, text in texts.items():
            (raw / name).parent.mkdir(parents=True, exist_ok=True)
            (raw / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        for name in videos:
            (raw / name).parent.mkdir(parents=True, exist_ok=True)
            codec = "libvpx-vp9" if name.endswith(".webm") else "libx264"
            shutil.copy(make_video(tmp_path / f"clip{Path(name).suffix}", 6, codec=codec), raw / name)
        return raw

    return write


def _rows(uri: str, *columns: str) -> dict[str, tuple[object, ...]]:
    table = read_manifest(uri)
    return {row["video_id"]: tuple(row[name] for name in columns) for row in table.to_pylist()}


def test_ucf101(lay_out, tmp_path, ray_session, capsys) -> None:
    raw, out = lay_out(UCF101, UCF101_VIDEOS), str(tmp_path / "ucf.parquet")
    ucf101.main([str(raw), "--out", out])
    printed = capsys.readouterr()
    assert read_manifest(out).column_names == [*SCHEMA.names, "group"]
    assert _rows(out, "split", "label", "group") == {
        UCF101_VIDEOS[0]: ("train", "ApplyEyeMakeup", "g08"),
        UCF101_VIDEOS[1]: ("train", "HandstandPushups", "g09"),
        UCF101_VIDEOS[2]: ("test", "HandstandPushups", "g01"),
    }
    assert "the lists have 3 train videos, the published ones 9,537" in printed.err
    for counted in ("1 x train: not a video", "1 x test: missing", "1 x files that the lists do not list"):
        assert counted in printed.out
    ucf101.main([str(raw), "--out", out, "--split", "2"])
    assert "split 2 only" in capsys.readouterr().out
    assert _rows(out, "split", "label") == {UCF101_VIDEOS[0]: ("test", "ApplyEyeMakeup")}
    assert {split: sum(sizes.values()) for split, sizes in ucf101.PUBLISHED.items()} == dict.fromkeys(
        (1, 2, 3), 13320
    )


def test_hmdb51(lay_out, tmp_path, ray_session, capsys) -> None:
    raw, out = lay_out(HMDB51, HMDB51_VIDEOS), str(tmp_path / "hmdb.parquet")
    hmdb51.main([str(raw), "--out", out])
    printed = capsys.readouterr().out
    assert read_manifest(out).schema.equals(SCHEMA)
    used = {
        HMDB51_VIDEOS[0]: ("train", "clap"),
        HMDB51_VIDEOS[1]: ("test", "clap"),
        HMDB51_VIDEOS[2]: ("train", "brush_hair"),
    }
    assert _rows(out, "split", "label") == used
    assert all(Path(uri).is_file() for (uri,) in _rows(out, "uri").values())
    assert "1 x videos that the split does not use" in printed and "1 x train: missing" in printed
    hmdb51.main([str(raw), "--out", out, "--unused"])
    assert _rows(out, "split", "label") == used | {HMDB51_VIDEOS[3]: ("unused", "clap")}
    assert read_manifest(out, ["video_id"], split="train").num_rows == 2


def test_names_of_hmdb51_are_quoted_in_uris(lay_out, tmp_path, s3_endpoint, ray_session) -> None:
    raw = lay_out(HMDB51, HMDB51_VIDEOS[:1])
    store = fs.S3FileSystem(endpoint_override=s3_endpoint, scheme="http", allow_bucket_creation=True)
    store.create_dir("hmdb")
    fs.copy_files(str(raw), "hmdb/raw", destination_filesystem=store)
    out = str(tmp_path / "hmdb.parquet")
    hmdb51.main([f"s3://hmdb/raw?endpoint_override={s3_endpoint}&scheme=http", "--out", out])
    assert _rows(out, "split", "label") == {HMDB51_VIDEOS[0]: ("train", "clap")}
    ((uri,),) = _rows(out, "uri").values()
    assert "%231_%5Ba%5D_50%25_%28b%29%26c%21_clap" in str(uri)


def test_something_v2(lay_out, tmp_path, ray_session, capsys) -> None:
    raw, out = lay_out(SOMETHING, SOMETHING_VIDEOS), str(tmp_path / "ssv2.parquet")
    something_v2.main([str(raw), "--out", out])
    assert _rows(out, "split", "label") == {
        SOMETHING_VIDEOS[0]: ("train", "Holding something next to something"),
        SOMETHING_VIDEOS[1]: ("validation", "Putting something on a surface"),
        SOMETHING_VIDEOS[2]: ("test", None),
    }
    printed = capsys.readouterr().out
    assert "1 x train: missing (42326)" in printed and "1 x files that the JSON files do not list" in printed


def test_archives_alone_are_named(lay_out, tmp_path, ray_session, capsys) -> None:
    raw = lay_out({**HMDB51, "clap.rar": "", "brush_hair.rar": ""}, [])
    status, line = failure(capsys, hmdb51.main, str(raw), "--out", str(tmp_path / "hmdb.parquet"))
    assert status == 2 and "unpack its 2 archives (brush_hair.rar, …) first" in line


def test_a_folder_without_listed_videos_fails(lay_out, tmp_path, ray_session, capsys) -> None:
    raw = lay_out(UCF101, ["holiday.mp4"])
    status, line = failure(capsys, ucf101.main, str(raw), "--out", str(tmp_path / "out.parquet"))
    assert status == 1 and "none of the clips in the lists" in line


@pytest.mark.parametrize(
    ("module", "texts", "changes", "message"),
    [
        (ucf101, UCF101, {"classInd.txt": None}, "there is no classInd.txt$"),
        (ucf101, UCF101, {"classInd.txt": "ApplyEyeMakeup\n"}, "line 1: expected a number and a class"),
        (ucf101, UCF101, {"trainlist01.txt": "ApplyEyeMakeup/v_a_g01_c01.avi 2\n"}, r"line 1: .*_c01.avi 2'$"),
        (ucf101, UCF101, {"trainlist01.txt": "ApplyEyeMakeup/v_a_g01_c01.avi 9\n"}, r"line 1: .*_c01.avi 9'$"),
        (ucf101, UCF101, {"testlist01.txt": "\nDancing/v_a_g01_c01.avi\n"}, "line 2: expected CLASS/VIDEO.avi"),
        (ucf101, UCF101, {"testlist01.txt": b"\xff\xfe"}, "expected a list in UTF-8"),
        (
            ucf101,
            UCF101,
            {"testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi\n"},
            "in the other list",
        ),
        (hmdb51, HMDB51, {"split1.txt": None}, "expected HMDB51, its lists CLASS_test_split1.txt"),
        (hmdb51, HMDB51, {"clap_test_split1.txt": "a.avi 3 \n"}, r"line 1: expected NAME.avi and 0, 1 or 2"),
        (something_v2, SOMETHING, {"test.json": None}, "there is no something-something-v2-test.json$"),
        (something_v2, SOMETHING, {"train.json": '[{"id": "1", "template": "Eating [it]"}]'}, "entry 0: expected"),
        (something_v2, SOMETHING, {"train.json": "{}"}, "expected a list, got a dict"),
        (something_v2, SOMETHING, {"labels.json": "{"}, "not a JSON file"),
    ],
)  # fmt: skip
def test_lists_that_are_not_as_published_are_refused(
    module: ModuleType, texts: Texts, changes: dict[str, str | bytes | None], message: str, lay_out
) -> None:
    changed = {
        name: next((new for end, new in changes.items() if name.endswith(end)), text)
        for name, text in texts.items()
    }
    raw = lay_out({name: text for name, text in changed.items() if text is not None}, [])
    with pytest.raises(UserError, match=message):
        module.read_lists(str(raw), *([] if module is something_v2 else [1]))


def test_a_name_of_two_classes_belongs_to_that_of_its_folder() -> None:
    match = match_names(["wave/a", "clap/a", "clap/B.c"])
    assert [match(name) for name in ("x/Clap/a.avi", "wave/A.mp4", "other/a.avi", "b.C.avi", "b.avi")] == [
        *("clap/a", "wave/a", None, "clap/B.c", None)
    ]


def test_of_several_files_of_a_name_one_that_decodes_is_used() -> None:
    conversion = label_listed(
        {"a": Listed("test", "x"), "b": Listed(None, "x")},
        match_names(["a", "b"]),
        ["2/a.avi", "3/a.avi", "b.avi"],
        {"1/a.avi": "the file is empty"},
        lists="the lists",
    )
    assert [row["video_id"] for row in conversion.rows] == ["2/a.avi"] and conversion.published == {"test": 1}
    assert conversion.left_out == {
        "further files of clips that are there several times": ["3/a.avi", "1/a.avi"],
        "videos that the split does not use": ["b.avi"],
    }
