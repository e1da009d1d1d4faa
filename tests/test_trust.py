"""What comes from outside is data: it runs no code, opens no other file, and writes nowhere but in its folder."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import re
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

import carl_ray
from benchmarks import paper
from carl_ray import config as configuration
from carl_ray import jobs, session, storage, train
from carl_ray.compare import comparison
from carl_ray.config import Config, ModelConfig
from carl_ray.data import listing
from carl_ray.data.decode import DecodeError, probe_video, read_frames
from carl_ray.data.manifest import SCHEMA, read_manifest
from carl_ray.datasets.choreography import read_labels
from carl_ray.datasets.conversion import Conversion, LeftOut, VideoFolder, summarize
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.evaluation import embeddings, localization
from carl_ray.evaluation.embeddings import Origin, read_embeddings
from carl_ray.evaluation.localization import export_features
from carl_ray.model.backbone import build_backbone
from carl_ray.model.weights import load_backbone_weights
from carl_ray.pipelines import runner
from carl_ray.pipelines.plan import check_runtime_env
from carl_ray.pipelines.runner import read_plan
from carl_ray.training.checkpoint import Checkpoint, Progress, initial_weights, load_model, open_checkpoint
from carl_ray.training.learner import initial_learner
from tests import samples

ROOT = Path(carl_ray.__file__).parent
MODEL = ModelConfig(backbone="small", weights="random", num_frames=4, hidden_width=8, width=8, num_heads=2)
CONFIG = Config(preset="test", model=MODEL)
ORIGIN = Origin("/run", "ab", "demo", 2, 8, 16, "resized", False)


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a bomb makes: it must not be there at the end of a test."""
    return tmp_path / "exploded"


def torch_file(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": Bomb(mark)}, buffer)
    return buffer.getvalue()


# --- no code ------------------------------------------------------------------------------------------------------


def test_the_bomb_would_go_off(mark: Path) -> None:
    torch.load(io.BytesIO(torch_file(mark)), weights_only=False)
    assert mark.exists()


def checkpoint_with(folder: Path, content: bytes) -> None:
    place = folder / "checkpoints" / "step-00000001"
    place.mkdir(parents=True)
    progress = Progress(1, 1, 0, 0, 0.0, "digest")
    hashes = {
        "model.pt": hashlib.sha256(content).hexdigest(),
        "optimizer.pt": hashlib.sha256(b"").hexdigest(),
    }
    (place / "optimizer.pt").write_bytes(b"")
    (place / "model.pt").write_bytes(content)
    state = {"progress": vars(progress), "config": configuration.to_document(CONFIG), "hashes": hashes}
    (place / "state.json").write_text(json.dumps(state))


def read_checkpoint(folder: Path) -> None:
    uri = str(folder / "checkpoints" / "step-00000001")
    hashes = json.loads(Path(uri, "state.json").read_text())["hashes"]
    load_model(Checkpoint(uri, Progress(1, 1, 0, 0, 0.0, ""), CONFIG, hashes), initial_learner(CONFIG))


@pytest.mark.parametrize("read", [read_checkpoint, lambda folder: initial_weights(CONFIG, str(folder))])
def test_a_checkpoint_runs_no_code(read: Callable[[Path], Any], tmp_path: Path, mark: Path) -> None:
    checkpoint_with(tmp_path / "run", torch_file(mark))
    with pytest.raises(RunError, match=r"model\.pt: expected tensors alone"):
        read(tmp_path / "run")
    assert not mark.exists()


def test_weights_of_a_backbone_run_no_code(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(torch_file(mark))
    model = ModelConfig(backbone="resnet18", weights=str(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match=r"weights\.pth"):
        load_backbone_weights(build_backbone(model), model)
    assert not mark.exists()


def pickled_column(mark: Path) -> pa.Array:
    """Of the type that Ray Data registers with Arrow: its values are pickles, which are loaded when they are read."""
    content = pa.array([pickle.dumps(Bomb(mark))], pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), content)


def manifest_row() -> pa.Table:
    return pa.Table.from_pylist([samples.manifest_row()], schema=SCHEMA)


def embeddings_row() -> dict[str, pa.Array]:
    return {
        **{name: pa.array(["a"]) for name in ("video_id", "uri", "content_hash", "split", "label")},
        "frame_labels": pa.array([[0]], pa.list_(pa.int32())),
        "progress": pa.array([[0.0]], pa.list_(pa.float32())),
        "fps": pa.array([25.0]),
        "timestamps": pa.array([[0.0]]),
        "embeddings": pa.array([[[1.0, 2.0]]], pa.list_(pa.list_(pa.float32(), 2))),
    }


@pytest.mark.parametrize("name", ["label", "another"])
def test_a_manifest_runs_no_code(name: str, tmp_path: Path, mark: Path) -> None:
    table = manifest_row()
    if name in table.column_names:
        table = table.drop_columns([name])
    pq.write_table(table.append_column(name, pickled_column(mark)), tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match="not a manifest"):
        read_manifest(str(tmp_path / "manifest.parquet")).to_pylist()
    assert not mark.exists()


@pytest.mark.parametrize("name", ["video_id", "label", "embeddings"])
def test_embeddings_run_no_code(name: str, tmp_path: Path, mark: Path) -> None:
    metadata = {embeddings._ORIGIN: json.dumps(asdict(ORIGIN))}
    table = pa.table(embeddings_row()).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "part-00000.parquet")
    assert [video.video_id for video in read_embeddings(str(tmp_path))] == ["a"]
    bad = pa.table(embeddings_row() | {name: pickled_column(mark)}).replace_schema_metadata(metadata)
    pq.write_table(bad, tmp_path / "part-00000.parquet")
    with pytest.raises(UserError):
        read_embeddings(str(tmp_path))
    assert not mark.exists()


def test_rendered_labels_run_no_code(tmp_path: Path, mark: Path) -> None:
    column = pickled_column(mark)
    pq.write_table(pa.table({"video_id": column, "split": column}), tmp_path / "labels.parquet")
    with pytest.raises((pa.ArrowException, UserError)):
        read_labels(tmp_path).to_pylist()
    assert not mark.exists()


def test_nothing_in_the_package_reads_pickles_or_runs_text() -> None:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if (
                (called in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"))
                or (
                    called.startswith(
                        ("pickle.load", "cloudpickle.load", "joblib.load", "marshal.load", "shelve.")
                    )
                )
                or (called == "torch.load" and words.get("weights_only") != "True")
                or (called in ("np.load", "numpy.load") and words.get("allow_pickle") != "False")
                or ("shell" in words)
                or called.endswith((".extractall", ".extract"))
                # Pipes and queues of multiprocessing unpickle what the other end sends.
                or called.endswith(("Unpickler", "read_pickle", ".recv", "Pipe", "Listener", "Manager"))
                or called in ("multiprocessing.Pool", "multiprocessing.Queue", "dill.load", "dill.loads")
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {called}")
    assert not found


def test_no_pool_of_processes_decodes_what_comes_from_outside() -> None:
    """A pool unpickles the results of its processes: these render, plan, or are what a benchmark compares with."""
    pools = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if re.search(
            r"^\s*(import|from) multiprocessing|ProcessPoolExecutor|multiprocessing_context",
            path.read_text(),
            re.M,
        )
    }
    assert not pools


# --- a video is a file ----------------------------------------------------------------------------------------------


@pytest.fixture
def neighbour(make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A video in the folder that playlists of a file there are relative to, and those of bytes too."""
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "neighbour.ts", 8, codec="mpeg2video", b_frames=0)
    return make_video(tmp_path / "neighbour.mp4", 8)


@pytest.mark.parametrize("kind", ["concat", "hls", "sdp", "asx"])
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8"])
def test_a_playlist_is_no_video(kind: str, suffix: str, neighbour: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        text = {
            "concat": "ffconcat version 1.0\nfile neighbour.mp4\n",
            "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nneighbour.ts\n#EXT-X-ENDLIST\n",
            "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 47998 RTP/AVP 96\n"
            "a=rtpmap:96 H264/90000\n",
            "asx": f"[Reference]\nRef1=http://127.0.0.1:{port}/a.mp4\n",
        }[kind]
        path = tmp_path / f"video{suffix}"
        path.write_text(text)
        for source in (str(path), text.encode()):
            with pytest.raises(DecodeError, match=r"not a video that can be opened|no video stream"):
                probe_video(source)
            with pytest.raises(DecodeError, match=r"not a video that can be opened|no video stream"):
                read_frames(source, [0])
        with pytest.raises(BlockingIOError):
            server.accept()


def test_the_concat_playlist_would_be_followed(neighbour: Path, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_text("ffconcat version 1.0\nfile neighbour.mp4\n")
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8


# --- names ----------------------------------------------------------------------------------------------------------

HOSTILE = ["", ".", "..", "../up", "a/b", "/root", "a\0b", "a\nb", "a\x1b[2J", "\udcff", "n" * 300, ".hidden"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_videos_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out" / "below"
    folder = VideoFolder(str(out))
    with pytest.raises(LeftOut, match="its name cannot be that of a file"):
        folder.add(f"train/{name}{'.mp4' if name.strip('.') else ''}", [])
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path: Path, jpegs: list[bytes]) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    (out / "train").mkdir(parents=True)
    folder = VideoFolder(str(out))
    (out / "train" / "a.mp4").symlink_to(outside)
    folder.add("train/a.mp4", jpegs)
    assert not outside.exists()
    assert (out / "train" / "a.mp4").is_file() and not (out / "train" / "a.mp4").is_symlink()


@pytest.fixture
def jpegs() -> list[bytes]:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(buffer, "JPEG")
    return [buffer.getvalue()] * 3


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], list[str]]:
    """A function that exports a video of this id into a folder; the URIs that would be written."""
    written: list[str] = []
    pretended = SimpleNamespace(
        **{name: getattr(storage, name) for name in ("join", "is_remote", "public_uri")},
        list_folder=lambda uri: [],
        exists=lambda uri: False,
        write_bytes=lambda uri, content: written.append(uri),
    )
    monkeypatch.setattr(localization, "storage", pretended)
    monkeypatch.setattr(localization, "read_origin", lambda uri: ORIGIN)

    def export(video_id: str, out: str) -> list[str]:
        row = embeddings_row() | {"video_id": pa.array([video_id])}
        table = pa.table(row).replace_schema_metadata({embeddings._ORIGIN: json.dumps(asdict(ORIGIN))})
        pq.write_table(table, tmp_path / "part-00000.parquet")
        export_features(str(tmp_path), out, length=2)
        return written[1:]

    return export


@pytest.mark.parametrize(
    ("name", "expected"),
    [("../../up.mp4", "up.h5"), ("/etc/passwd", "passwd.h5"), ("a/..", "...h5"), ("a b.mp4", "a b.h5")],
)
def test_exported_features_stay_in_their_folder(name: str, expected: str, exported: Any) -> None:
    assert exported(name, "/out") == [f"/out/{expected}"]


def test_a_name_cannot_redirect_what_is_exported(exported: Any) -> None:
    (uri,) = exported("v?endpoint_override=evil.example&scheme=http&x=.mp4", "s3://bucket/out?region=eu")
    assert uri.count("?") == 1 and uri.endswith("?region=eu")


@pytest.mark.parametrize("name", ["a\0b.mp4", "a\x1b[2J.mp4", "n" * 300])
def test_names_that_no_file_can_have_are_one_line(name: str, exported: Any) -> None:
    with pytest.raises(UserError, match="its name cannot be that of a file"):
        exported(name, "/out")


def test_a_checkpoint_names_no_other_files(tmp_path: Path) -> None:
    checkpoint_with(tmp_path, b"")
    place = tmp_path / "checkpoints" / "step-00000001"
    state = json.loads((place / "state.json").read_text())
    state["hashes"] |= {"optimizer.pt": "0", "../../../../../../dev/zero": "0"}
    (place / "state.json").write_text(json.dumps(state))
    assert set(open_checkpoint(str(place)).hashes) == {"model.pt", "optimizer.pt"}


def test_a_file_whose_name_is_no_text_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "b.mp4").write_bytes(b"")
    (tmp_path / os.fsdecode(b"a\xff.mp4")).write_bytes(b"")
    files, (reject,), num_others = listing.list_videos(*storage.resolve(str(tmp_path)), str(tmp_path))
    assert ([file["video_id"] for file in files], num_others) == (["b.mp4"], 0)
    assert reject["uri"] == f"{tmp_path}/a\\xff.mp4" and "not UTF-8" in reject["reason"]


def test_an_error_cannot_command_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise UserError("a\x1b]0;owned\x07.mp4:\nno such file …")
    assert capsys.readouterr().err == "carl_ray: a?]0;owned?.mp4: no such file …\n"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (train, ["s3://K:hushhush@b/m.parquet"]),
        (train, ["demo", "s3://K:hushhush@b/m.parquet"]),
        (train, ["demo", "--run-dir", "s3://K:hushhush@b/run", "--config", "s3://K:hushhush@b/c.json", "x"]),
        (jobs, ["status", "demo", "--folder", "/x", "s3://K:hushhush@b/x"]),
        (jobs, ["status", "s3://K:hushhush@b/x", "--folder", "/x"]),
        (jobs, ["submit", "demo", "--folder", "/x", "--set", "s3://K:hushhush@b/x"]),
    ],
)
def test_a_mistake_shows_no_credentials(
    command: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    printed = capsys.readouterr()
    assert left.value.code == 2 and printed.err.startswith("carl_ray: ")
    assert "hushhush" not in printed.err + printed.out


def test_a_table_has_no_credentials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as left:
        paper.main(["13", "--manifest", "s3://K:hushhush@b/m.parquet", "--out", str(out)])
    printed = capsys.readouterr()
    assert left.value.code == 2 and "hushhush" not in printed.err + printed.out
    assert not out.exists()


def test_what_a_converter_says_cannot_command_a_terminal() -> None:
    conversion = Conversion({"train": 1})
    conversion.leave_out("a\x1b]0;owned\x07", "b\x1b[2J is not among the 13 actions\nmanifest: /other")
    text = summarize(conversion)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "\nmanifest:" not in text


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_what_ray_redacts_is_not_passed_on() -> None:
    check_runtime_env(
        {"env_vars": {"AWS_SECRET_ACCESS_KEY": "hushhush", "URI": "s3://K:hushhush@b"}, "pip": ["a"]}
    )
    with pytest.raises(
        UserError, match=r"env_vars\.AWS_SECRET_ACCESS_KEY is <redacted>, which Ray shows a browser"
    ):
        check_runtime_env({"env_vars": {"A": "1", "AWS_SECRET_ACCESS_KEY": "<redacted>"}})

    class Client:
        def get_job_info(self, name: str) -> Any:
            plan = json.dumps({"pipeline": "two", "folder": "/x", "commands": {"one": ["my.one"]}})
            return SimpleNamespace(
                metadata={runner._PLAN: plan}, runtime_env={"env_vars": {"A": "<redacted>"}}
            )

    with pytest.raises(UserError, match=r"env_vars\.A is <redacted>"):
        read_plan(Client(), "job")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "runtime_env",
    [{"working_dir": "s3://K:hushhush@b/x.zip"}, {"pip": ["a", "git+https://me:hushhush@host/x.git"]}],
)
def test_a_runtime_environment_shows_no_credentials(
    runtime_env: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["submit", "demo", "--folder", "/x", "--runtime-env-json", json.dumps(runtime_env)]
    with pytest.raises(SystemExit) as left:
        jobs.main(arguments)
    printed = capsys.readouterr().err
    assert left.value.code == 2
    assert "expected a URI without credentials" in printed and "hushhush" not in printed


def test_code_too_large_to_send_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "carl_ray").mkdir()
    (tmp_path / "carl_ray" / "jobs.py").write_text("")
    (tmp_path / "big" / "inner").mkdir(parents=True)
    (tmp_path / "big" / "inner" / "a").write_bytes(os.urandom(3 * 2**20))
    (tmp_path / "ignored").write_bytes(os.urandom(6 * 2**20))
    (tmp_path / ".rayignore").write_text("ignored\n")
    monkeypatch.setattr(jobs, "_client", lambda address: pytest.fail("asked a cluster"))
    monkeypatch.setattr(jobs, "_MAX_PACKAGE_BYTES", 2 * 2**20)
    arguments = ["submit", "demo", "--folder", str(tmp_path / "out"), "--working-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as left:
        jobs.main(arguments)
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("carl_ray:")]
    assert "3 MiB to send, more than the 2 MiB that Ray takes; largest: big/inner (3 MiB)" in line
    assert "/.rayignore" in line and "ignored (" not in line
    jobs._check_package({"working_dir": str(tmp_path), "excludes": ["big"]})


def test_a_dashboards_password_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    address = "http://me:hushhush@127.0.0.1:1"
    with pytest.raises(SystemExit) as left:
        jobs.main(["status", "demo", "--folder", "/x", "--address", address])
    printed = capsys.readouterr()
    assert left.value.code == 1
    assert "http://127.0.0.1:1" in printed.err
    assert "hushhush" not in printed.err + printed.out


# --- Ray ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "mode", "has_token"),
    [
        ({}, None, True),  # Ray's own default: it asks for the token that is there
        ({"RAY_AUTH_TOKEN": "mine"}, None, True),
        ({"RAY_AUTH_MODE": "disabled"}, "disabled", False),
        ({"RAY_ADDRESS": "127.0.0.1:1"}, "disabled", False),
        ({"RAY_ADDRESS": "127.0.0.1:1", "RAY_AUTH_MODE": "token"}, "token", False),
    ],
)
def test_a_cluster_of_our_own_wants_a_token(
    given: dict[str, str], mode: str | None, has_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            monkeypatch.delenv(name)
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.ray, "init", lambda **arguments: seen.append(dict(os.environ)))
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "reaching", lambda address: nullcontext())
    for _ in range(2):
        with session.connect():
            pass
    tokens = {environment.get("RAY_AUTH_TOKEN") for environment in seen}
    assert {environment.get("RAY_AUTH_MODE") for environment in seen} == {mode}
    # The same one for all clusters of the process, for Ray reads it once.
    (token,) = tokens
    assert token == given.get("RAY_AUTH_TOKEN", session._TOKEN if has_token else None)


# --- pages ----------------------------------------------------------------------------------------------------------


def test_a_table_in_markdown_is_not_broken_by_a_name() -> None:
    entry = {"value": 0.5, "low": 0.4, "high": 0.6, "left_out": {}}
    hostile = "<script>alert(1)</script> | a | b\n| c"
    document = {
        "origin": {"preset": hostile, "step": 1},
        "trained": {"kendalls_tau": entry},
        "bootstrap": {"level": 0.95},
        "test": {"videos": 1},
    }
    text = comparison([document])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert "<script>" not in text
