"""Whatever a child process sends, its parent runs none of it and goes on: it is the reject reason of one video."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.parts import decoders
from carl_ray.config import AugmentConfig, Config, ModelConfig
from carl_ray.data import probing
from carl_ray.data.child import BadVideoError, Child, KilledError
from carl_ray.data.guard import FrameReader, ViewReader
from carl_ray.data.sample import sample_spec
from carl_ray.errors import RunError
from tests.samples import video_row

CONFIG = Config(
    preset="test",
    augment=AugmentConfig(image_size=24),
    model=ModelConfig(num_frames=8, backbone="small", weights="random"),
)


def message(kind: str = "value", fields: object = None, arrays: object = (), content: bytes = b"") -> bytes:
    head = json.dumps({"kind": kind, "fields": fields or {}, "arrays": arrays}).encode()
    return struct.pack("<Q", len(head)) + head + content


def hostile(reply: bytes, after: str = "time.sleep(60)") -> str:
    """Code of a child that starts as it should, and has this answer to whatever it is asked."""
    return (
        "import os, sys, time, zlib\n"
        f"os.write(1, {message('ready', {'reason': ''})!r})\n"
        "sys.stdin.buffer.read(9)\n"
        f"sys.stdout.buffer.write(zlib.decompress({zlib.compress(reply)!r}))\n"
        f"sys.stdout.flush()\n{after}"
    )


class Exploit:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


SPEC = replace(sample_spec(CONFIG), columns=("frame_labels",))
PAIR: dict[str, tuple[str, list[int], bytes]] = {
    "crops.pixels": ("|u1", [2, 8, 24, 24, 3], bytes(2 * 8 * 24 * 24 * 3)),
    "crops.timestamps": ("<f8", [2, 8], bytes(128)),
    "crops.mask": ("|b1", [2, 8], b"\2" * 16),
    "crops.parameters": ("<f8", [2, 16], bytes(256)),
    "crops.boxes": ("<f8", [2, 4], bytes(64)),
    "crops.flips": ("|b1", [2], bytes(2)),
    "crops.spans": ("<f8", [2, 2], bytes(32)),
    "crops.columns.frame_labels": ("<i8", [2, 8], struct.pack("<q", -1) * 16),
}
END = message("end", {"reason": ""})


def pair_with(name: str = "crops.pixels", **changes: Any) -> bytes:
    """An answer with a pair of views, as it should be but for some changes to one array."""
    arrays = {
        key: dict(zip(("dtype", "shape", "content"), value, strict=True)) for key, value in PAIR.items()
    }
    arrays[name] |= changes
    entries = [(key, array["dtype"], array["shape"]) for key, array in arrays.items()]
    return message(arrays=entries, content=b"".join(array["content"] for array in arrays.values())) + END


def read_pair(code: str) -> Any:
    reader = ViewReader(code)
    try:
        return reader.read(video_row("a.mp4", "a", 20), 0, SPEC)["crops"]
    finally:
        reader.close()


def test_a_sound_answer_is_read() -> None:
    pair = read_pair(hostile(pair_with()))
    assert pair.pixels.shape == (2, 8, 24, 24, 3) and pair.pixels.flags.writeable
    assert pair.mask.view("u1").tolist() == [[1] * 8] * 2
    assert (pair.columns["frame_labels"] == -1).all() and (pair.parameters == 0).all()


def test_warnings_of_a_child_are_its_parents(caplog: pytest.LogCaptureFixture) -> None:
    warning = message("warning", {"reason": "the store is down\n"})
    assert read_pair(hostile(2 * warning + pair_with())).pixels.shape == (2, 8, 24, 24, 3)
    assert caplog.messages == ["the store is down?"] * 2
    with pytest.raises(BadVideoError, match=r"no valid answer \(1000 warnings"):
        read_pair(hostile(1001 * warning + pair_with()))


def test_a_child_starts_while_opencv_is_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv2").mkdir()
    (tmp_path / "cv2" / "typing.py").write_text("raise SystemExit(7)")
    monkeypatch.syspath_prepend(str(tmp_path / "cv2"))
    assert read_pair("import typing\n" + hostile(pair_with())).pixels.shape == (2, 8, 24, 24, 3)


def test_an_answer_in_advance_is_not_that_of_the_next_video() -> None:
    reader = ViewReader(hostile(pair_with() + pair_with()))
    pids = set()
    for _ in range(2):
        reader.read(video_row("a.mp4", "a", 20), 0, SPEC)
        assert reader._process is not None
        pids.add(reader._process.pid)
    assert len(pids) == 2
    reader.close()


INVALID = "^the decoder sent no valid answer .*"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (pickle.dumps({"frames": 1}), INVALID + "a head of"),
        (struct.pack("<Q", 2**63 + 5), INVALID + "a head of 9223372036854775813 bytes"),
        (struct.pack("<Q", 1 << 30), INVALID + "a head of"),
        (struct.pack("<Q", 4) + b"\x80\x05N.", INVALID),
        (struct.pack("<Q", 40_000) + b"[" * 40_000, INVALID),
        (struct.pack("<Q", 9) + b"[1, 2, 3]", INVALID),
        (message(fields=[1]), INVALID),
        (message(), INVALID + "expected crops.timestamps, crops.mask"),
        (message("again", {"reason": ["x"] * 3 + [4]}), INVALID),
        (message("refused", {"reason": "a\x1b[2J\nb"}), r"^a\?\[2J\?b$"),
        (message("what", {"reason": "ever"}), "^ever$"),
        (pair_with(shape=[2, 8, 24, 24, 2**40]), INVALID + "expected"),
        (pair_with(shape=[2**63, 2**63]), INVALID),
        (pair_with(shape=[-2, -8, 24, 24, 3]), INVALID),
        (pair_with(shape=[2, 8, 24, 24, True]), INVALID),
        (pair_with(shape=[2, 8, 24, 3, 24]), INVALID),
        (pair_with(shape="28"), INVALID),
        (pair_with(shape=None), INVALID),
        (pair_with(dtype="|O"), INVALID + "got .O"),
        (pair_with(dtype="<f8"), INVALID),
        (pair_with(dtype=[["a", "<f8"]]), INVALID),
        (pair_with("crops.timestamps", content=struct.pack("<d", float("nan")) * 16), INVALID),
        (pair_with("crops.columns.frame_labels", content=struct.pack("<q", 10**12) * 16), "labels that the video"),
        (pair_with("crops.mask", content=bytes(16)), "no frames"),
        (message(arrays=[["other", "|u1", [1]]], content=b"x"), INVALID),
        (message(arrays=[["color", "<f8", [2, 16]]] * 2, content=bytes(512)), INVALID),
        (END, INVALID + "1 values"),
        (pair_with()[: -len(END)] * 2 + END, INVALID + "1 values"),
    ],
)  # fmt: skip
def test_no_answer_of_a_child_harms_its_parent(reply: bytes, reason: str) -> None:
    with pytest.raises(BadVideoError, match=reason):
        read_pair(hostile(reply))


@pytest.mark.parametrize(
    ("after", "kind", "reason"),
    [
        ("os._exit(0)", BadVideoError, r"the decoder crashed .exit status 0."),
        ("os.kill(os.getpid(), 9)", KilledError, "the decoder was killed"),
        ("os.close(1); time.sleep(600)", BadVideoError, "the decoder stopped answering"),
        ("time.sleep(600)", RunError, "gave no answer for 1.1 s"),
        ("[(os.write(1, b'.'), time.sleep(.2)) for _ in range(200)]", RunError, "gave no answer for 1.1 s"),
    ],
)
def test_half_an_answer_is_no_answer(
    after: str, kind: type[Exception], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only those that are to be found out by the time have little of it.
    monkeypatch.setattr("carl_ray.data.child._FETCH_SECONDS", 0.1 if "1.1 s" in reason else 600.0)
    monkeypatch.setattr("carl_ray.data.child._END_SECONDS", 0.5 if "stopped" in reason else 60.0)
    reader = ViewReader(hostile(pair_with()[:5000], after))
    config = Config(**{**vars(CONFIG), "data": type(CONFIG.data)(time_limit=1.0)})
    with pytest.raises(kind, match=reason):
        reader.read(video_row("a.mp4", "a", 20, 1.0), 0, replace(SPEC, data=config.data))
    reader.close()


def test_what_a_child_sends_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it by the other two that have one."""
    exploit = pickle.dumps(Exploit(tmp_path / "done"))
    for code in (hostile(exploit), hostile(struct.pack("<Q", len(exploit)) + exploit)):
        with pytest.raises(BadVideoError, match=INVALID):
            read_pair(code)
        with pytest.raises(BadVideoError, match=INVALID):
            list(FrameReader(code).read(b"content", 5, CONFIG, chunk_frames=4))
        with pytest.raises(BadVideoError, match=INVALID):
            FrameReader(code).count(b"content", CONFIG)
        monkeypatch.setattr(probing, "_child", Child(code))
        assert re.match(INVALID, probing.probe_guarded(io.BytesIO(b"x"), 1, verify=False)["reason"])
        monkeypatch.setattr(decoders, "_CODE", code)
        table = decoders.measure([tmp_path / "a.mp4"], lambda line: None)
        assert all("no valid answer" in note for note in table.notes) and table.notes
    assert list(tmp_path.iterdir()) == []


PROBE = {
    "num_frames": 9,
    "fps": 30.0,
    "width": 48,
    "height": 32,
    "rotation": 0,
    "duration": 0.3,
    "codec": "h264",
    "verified": False,
    "doubtful": False,
}


@pytest.mark.parametrize(
    "change",
    [{"num_frames": 2**31}, {"width": -1}, {"height": 0}, {"num_frames": -9},
     {"num_frames": 9.0}, {"fps": float("inf")}, {"duration": "0.3"},
     {"codec": "\ud800"}, {"codec": "a\x1b[2J"}, {"codec": None}, {"rotation": [0]},
     {"verified": 1}, {"other": 1}, [9], [-1], [4, 2], [2, 2]],
)  # fmt: skip
def test_what_is_said_of_a_file_fits_the_manifest(
    change: dict[str, Any] | list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for sound in (True, False):
        is_field = isinstance(change, dict)
        fields = PROBE | (change if is_field and not sound else {"rotation": -90})
        keys = [0, 8] if is_field or sound else change
        arrays = {
            "arrays": [["frame_times", "<f8", [9]], ["key_frames", "<i8", [len(keys)]]],
            "content": (np.arange(9) / 30).tobytes() + np.array(keys, np.int64).tobytes(),
        }
        monkeypatch.setattr(probing, "_child", Child(hostile(message(fields=fields, **arrays) + END)))
        found = probing.probe_guarded(io.BytesIO(b"x"), 1, verify=False)
        assert ("reason" in found) != sound


@pytest.mark.parametrize(
    "chunks",
    [
        [[4, 24, 24, 3], [2, 24, 24, 3]],
        [[4, 24, 24, 3]],
        [[4, 24, 24, 3], [1, 24, 24, 3], [1, 24, 24, 3]],
        [[5, 24, 24, 3]],
        [[4, 24, 24, 4]],
        [[4, 2**17, 1, 3]],
    ],
)
def test_all_frames_are_as_many_as_were_asked_for(chunks: list[list[int]]) -> None:
    reply = b"".join(
        message(arrays=[["frames", "|u1", shape]], content=bytes(min(7000, math.prod(shape))))
        for shape in chunks
    )
    reader = FrameReader(hostile(reply + END))
    with pytest.raises(BadVideoError, match=r"the decoder sent (no valid answer|\d of 5 frames)"):
        list(reader.read(b"content", 5, CONFIG, chunk_frames=4))
    reader.close()


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a child that reads a video without end, and prints its memory limit first."""
    code = f"""
import signal
from carl_ray.data.child import Child

# A shell's background jobs, which tests may be, have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
child = Child('''
import os, resource, time
from carl_ray.data.child import open_channel
def hang(source):
    limited = resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY
    with open({str(tmp_path / "child")!r}, "w") as file:
        file.write(f"{{os.getpid()}} {{limited}}\\\\n")
    time.sleep(600)
    yield {{}}
open_channel()(hang)
''')
print(*child.ask("a", {{}}, {{}}, seconds=600))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


def ends(pid: int) -> bool:
    for _ in range(1200):
        try:
            if "Z" in Path("/proc", str(pid), "stat").read_text().split():
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_child_is_limited_and_ends_with_its_parent(
    number: signal.Signals, parent: subprocess.Popen[str], tmp_path: Path
) -> None:
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text().endswith("\n"):
        assert parent.poll() is None, parent.communicate()
        time.sleep(0.05)
    pid, is_limited = (tmp_path / "child").read_text().split()
    assert is_limited == str(sys.platform == "linux")
    if number == signal.SIGINT:  # Ctrl-C goes to the whole group; the parent alone acts on it
        os.kill(int(pid), number)
        assert parent.poll() is None and Path("/proc", pid).exists()
    parent.send_signal(number)
    assert ends(int(pid))
    assert parent.wait(60) != 0
