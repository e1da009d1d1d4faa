"""Whatever a video does to the process that decodes it, others are read as ever, and it has one reason."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from carl_ray.config import AugmentConfig, Config, DataConfig, ModelConfig
from carl_ray.data import guard
from carl_ray.data.guard import BadVideoError, ViewPairReader
from carl_ray.data.sample import make_view_pair
from carl_ray.errors import RunError

CONFIG = Config(
    preset="test",
    data=DataConfig(short_side=32),
    augment=AugmentConfig(image_size=24),
    model=ModelConfig(num_frames=8, backbone="small", weights="random"),
)
IMPATIENT = replace(CONFIG, data=replace(CONFIG.data, time_limit=1.0))


def decoder(body: str) -> ViewPairReader:
    """A reader whose process does `body` on the video "bad" and has an array for each other one; no torch."""
    return ViewPairReader(
        f"""
import ctypes, os, sys, time, types
import numpy as np
from carl_ray import storage
from carl_ray.data import guard
from carl_ray.errors import RunError

def bad():
    {body}

def make_view_pair(source, *arguments, **options):
    if source == "bad":
        bad()
    return types.SimpleNamespace(frames=np.full((2, 3), len(source), np.uint8))

sys.modules["carl_ray.data.sample"] = types.SimpleNamespace(make_view_pair=make_view_pair)
guard.answer_view_pairs()
"""
    )


def read(reader: ViewPairReader, uri: str, config: Config = CONFIG) -> np.ndarray:
    return reader.read(uri, uri, 10, 1.0, 0, config).frames


def test_gives_what_it_would_give_here(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = str(make_video(tmp_path / "v.mp4", 30, 48, 32))
    labels = [number % 3 for number in range(30)]
    reader = ViewPairReader()
    for epoch in (0, 1):
        pair = reader.read(path, "v", 30, 0.5, epoch, CONFIG, verified=True, frame_labels=labels)
        here = make_view_pair(path, "v", 30, 0.5, epoch, CONFIG, verified=True, frame_labels=labels)
        assert vars(pair).keys() == vars(here).keys()
        for name, expected in vars(here).items():
            got = getattr(pair, name)
            np.testing.assert_array_equal(got, expected, strict=True)
            assert got.flags.writeable
        # What a video brings about by itself costs neither the process nor another try.
        with pytest.raises(BadVideoError, match=r"^frame 59 was asked for, but only 30 frames decode$"):
            reader.read(
                path, "v", 60, 1.0, epoch, replace(CONFIG, model=replace(CONFIG.model, num_frames=60))
            )
        with pytest.raises(BadVideoError, match=r"^no such file$"):
            reader.read(str(tmp_path / "none.mp4"), "v", 30, 1.0, epoch, CONFIG)
    reader.close()


@pytest.mark.parametrize(
    "body,reason",
    [
        ("ctypes.PyDLL(None).sleep(60)", "the decoder took longer than 1 s"),  # holds the GIL
        ("os.kill(os.getpid(), 11)", "the decoder crashed (SIGSEGV)"),
        ("os.write(1, b'stray'); os._exit(7)", "the decoder crashed (exit status 7)"),
        ("[np.empty(1 << 28, np.uint8) for _ in range(99)]", "reading it takes more than 2.5 GiB of memory"),
        ("ctypes.memset(ctypes.c_void_p(ctypes.CDLL(None).calloc(1, 1 << 40)), 1, 1)", "the decoder crashed"),
        ("1 // 0", "reading failed (ZeroDivisionError: integer division or modulo by zero)"),
    ],
)
def test_a_decoder_that_hangs_or_dies_costs_one_video(body: str, reason: str) -> None:
    reader = decoder(body)
    assert read(reader, "good").tolist() == [[4] * 3] * 2
    with pytest.raises(BadVideoError, match=f"^{re.escape(reason)}"):
        read(reader, "bad", IMPATIENT if "longer" in reason else CONFIG)
    assert read(reader, "better").tolist() == [[6] * 3] * 2
    reader.close()


def test_what_was_killed_from_outside_may_be_read_another_time() -> None:
    reader = decoder("os.kill(os.getpid(), 9)")
    with pytest.raises(RunError, match=r"^the decoder was killed .SIGKILL., perhaps for want of memory$"):
        read(reader, "bad")
    assert read(reader, "good").shape == (2, 3)
    # Nor is a video blamed for a process that died before it.
    process = reader._process
    assert process is not None
    process.terminate()
    process.wait()
    assert read(reader, "good").shape == (2, 3)
    reader.close()


def test_what_gives_no_answer_may_be_read_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_FETCH_SECONDS", 0.1)
    reader = decoder("os.kill(os.getpid(), 19)")  # stopped: its own time limit does not end it
    assert read(reader, "good").shape == (2, 3)
    with pytest.raises(RunError, match=r"^the process that decodes videos gave no answer for 1.1 s$"):
        read(reader, "bad", IMPATIENT)
    assert read(reader, "better").tolist() == [[6] * 3] * 2
    reader.close()


@pytest.fixture
def sigint() -> Iterator[None]:
    """Ctrl-C as in a terminal: where the tests run in the background, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_video_does_not_answer_for_the_next(tmp_path: Path, sigint: None) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = decoder(f"open({str(pipe)!r}, 'rb').read()")

    def interrupt() -> None:
        with pipe.open("wb"):  # returns when the decoder has opened the other end; then lets it go on
            signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        read(reader, "bad")
    thread.join()
    assert read(reader, "good").tolist() == [[4] * 3] * 2
    reader.close()


def test_storage_has_its_own_patience() -> None:
    reader = decoder("pass")
    reader._code = reader._code.replace(
        "guard.answer_view_pairs()",
        """
def read_bytes(uri):
    time.sleep(1.5)
    if "down" in uri:
        raise RunError("the store is down")
    return b"content"

storage.read_bytes = read_bytes
guard.answer_view_pairs()
""",
    )
    with pytest.raises(RunError, match=r"^the store is down$"):
        read(reader, "s3://bucket/down.mp4", IMPATIENT)
    assert read(reader, "s3://bucket/slow.mp4", IMPATIENT)[0, 0] == len(b"content")
    reader.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory")
def test_the_size_of_a_remote_file_is_not_the_decoders() -> None:
    # Of calloc's memory no page is touched: it takes no room. The file is larger than all that a video may take.
    reader = decoder("np.empty(1 << 30, np.uint8)")
    reader._code = (
        reader._code.replace('source == "bad"', "len(source) == 3 << 30")
        .replace("len(source), np", "len(source) >> 30, np")
        .replace(
            "guard.answer_view_pairs()",
            """
storage.read_bytes = lambda uri: np.zeros((3 if "large" in uri else 1) << 30, np.uint8)
guard.answer_view_pairs()
""",
        )
    )
    for name in ("small", "large", "large"):
        assert read(reader, f"s3://bucket/{name}.mp4").shape == (2, 3)
    reader.close()


def test_a_process_that_does_not_start_says_so() -> None:
    reader = ViewPairReader("raise SystemExit(3)")
    for _ in range(2):
        with pytest.raises(RunError, match=r"did not start, the decoder crashed .exit status 3."):
            read(reader, "good")


def test_the_process_ends_with_its_parent_and_the_parent_has_no_torch(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs.mp4")  # whoever opens it to read waits for one who writes
    code = f"""
import sys
from carl_ray.config import Config
from carl_ray.data.guard import BadVideoError, ViewPairReader

def read(name):
    reader.read({str(tmp_path)!r} + name, "v", 5, 1.0, 0, Config(preset="test"))

reader = ViewPairReader()
try:
    read("/none.mp4")
except BadVideoError:
    print(reader._process.pid, "torch" in sys.modules, flush=True)
read("/hangs.mp4")
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, has_torch = parent.stdout.readline().split()
        assert has_torch == "False"
        with (tmp_path / "hangs.mp4").open("wb"):  # now it is in the middle of the video
            parent.send_signal(signal.SIGKILL)
            for _ in range(600):
                try:
                    if "Z" in Path("/proc", pid, "stat").read_text().split():
                        return
                except OSError:
                    return
                time.sleep(0.05)
    pytest.fail("the process that decodes outlives its parent")
