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
from carl_ray.data import child, compiled, guard
from carl_ray.data.augment_tensors import center_view
from carl_ray.data.child import BadVideoError
from carl_ray.data.decode import iterate_frames
from carl_ray.data.guard import FrameReader, ViewReader
from carl_ray.data.make_views import make_views
from carl_ray.data.sample import arrays_of, sample_spec
from carl_ray.errors import RunError
from tests.samples import video_row

CONFIG = Config(
    preset="test",
    data=DataConfig(short_side=32),
    augment=AugmentConfig(image_size=24),
    model=ModelConfig(num_frames=8, backbone="small", weights="random"),
)
IMPATIENT = replace(CONFIG, data=replace(CONFIG.data, time_limit=1.0))
# Of videos that are read in time, though starved cores may stop a process for seconds.
HURRIED = replace(CONFIG, data=replace(CONFIG.data, time_limit=5.0))


def decoder(body: str) -> ViewReader:
    """A reader whose process does `body` on the video "bad" and has an array for each other one; no torch."""
    return ViewReader(
        f"""
import ctypes, os, sys, time, types
import numpy as np
from carl_ray import storage
from carl_ray.data import guard, sample
from carl_ray.errors import RunError

def bad():
    {body}

def make_views(source, *arguments, spec, **options):
    if source == "bad":
        bad()
    types_of = spec.array_types.items()
    arrays = {{name: np.full(shape, name == "crops.mask", dtype) for name, (dtype, shape) in types_of}}
    arrays["crops.pixels"][:] = len(source)
    return sample.views_of(arrays, spec)

sys.modules["carl_ray.data.make_views"] = types.SimpleNamespace(make_views=make_views)
guard.answer_views()
"""
    )


def read(reader: ViewReader, uri: str, config: Config = CONFIG) -> int:
    """The value that all elements of the frames have."""
    frames = reader.read(video_row(uri, uri, 10), 0, sample_spec(config))["crops"].pixels
    assert frames.shape == (2, 8, 24, 24, 3) and (frames == frames.flat[0]).all()
    return int(frames.flat[0])


def test_gives_what_it_would_give_here(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = str(make_video(tmp_path / "v.mp4", 30, 48, 32))
    labels = [number % 3 for number in range(30)]
    reader, spec = ViewReader(), replace(sample_spec(CONFIG), columns=("frame_labels",))
    for epoch in (0, 1):
        row = video_row(path, "v", 30, 0.5, verified=True, frame_labels=labels)
        views = arrays_of(reader.read(row, epoch, spec))
        labelled = {"frame_labels": labels}
        here = arrays_of(make_views(path, "v", 30, 0.5, epoch, spec, verified=True, columns=labelled))
        assert views.keys() == here.keys()
        for name, expected in here.items():
            np.testing.assert_array_equal(views[name], expected, strict=True)
            assert views[name].flags.writeable
        # What a video brings about by itself costs neither the process nor another try.
        with pytest.raises(BadVideoError, match=r"^frame 59 was asked for, but only 30 frames decode; "):
            longer = replace(CONFIG, model=replace(CONFIG.model, num_frames=60))
            reader.read(video_row(path, "v", 60), epoch, sample_spec(longer))
        with pytest.raises(BadVideoError, match=r"^no such file$"):
            reader.read(video_row(str(tmp_path / "none.mp4"), "v", 30, 1.0), epoch, sample_spec(CONFIG))
    reader.close()


@pytest.mark.skipif(compiled.library() is None, reason="the compiled part was not built")
def test_children_start_and_read_without_torch(make_video: Callable[..., Path], tmp_path: Path) -> None:
    """It would take four fifths of the time and of the memory that they start with."""
    path = str(make_video(tmp_path / "v.mp4", 30, 48, 32))
    child = "import sys; sys.modules['torch'] = None; from carl_ray.data import guard; "
    spec = sample_spec(CONFIG)
    views = ViewReader(child + "guard.answer_views()").read(video_row(path, "v", 30), 0, spec)
    assert np.array_equal(views["crops"].pixels, make_views(path, "v", 30, 1.0, 0, spec)["crops"].pixels)
    size = CONFIG.augment.image_size
    data = replace(CONFIG.data, short_side=size)
    cached = replace(CONFIG, data=data, augment=replace(CONFIG.augment, copies=2))
    frames = FrameReader(child + "guard.answer_frames()").read(
        path, 30, cached, chunk_frames=30, short_side=size, copies_of="v"
    )
    assert next(frames).shape == (3, 30, 24, 24, 3)


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
    assert read(reader, "good") == 4
    with pytest.raises(BadVideoError, match=f"^{re.escape(reason)}"):
        read(reader, "bad", IMPATIENT if "longer" in reason else CONFIG)
    assert read(reader, "better") == 6
    reader.close()


def test_what_was_killed_from_outside_may_be_read_another_time() -> None:
    reader = decoder("os.kill(os.getpid(), 9)")
    with pytest.raises(RunError, match=r"^the decoder was killed .SIGKILL., perhaps for want of memory$"):
        read(reader, "bad")
    assert read(reader, "good") == 4
    # Nor is a video blamed for a process that died before it.
    process = reader._process
    assert process is not None
    process.terminate()
    process.wait()
    assert read(reader, "good") == 4
    reader.close()


def test_what_gives_no_answer_may_be_read_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_FETCH_SECONDS", 0.1)
    reader = decoder("os.kill(os.getpid(), 19)")  # stopped: its own time limit does not end it
    assert read(reader, "good") == 4
    with pytest.raises(RunError, match=r"^the process that decodes videos gave no answer for 1.1 s$"):
        read(reader, "bad", IMPATIENT)
    assert read(reader, "better") == 6
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
    assert read(reader, "good") == 4
    reader.close()


def test_storage_has_its_own_patience(caplog: pytest.LogCaptureFixture) -> None:
    reader = decoder("pass")
    reader._code = reader._code.replace(
        "guard.answer_views()",
        """
def read_bytes(uri):
    time.sleep(1.5 if "down" in uri else 5.5)
    storage._LOGGER.warning("%s is slow", uri)
    if "down" in uri:
        raise RunError("the store is down")
    return b"content"

storage.read_bytes = read_bytes
guard.answer_views()
""",
    )
    with pytest.raises(RunError, match=r"^the store is down$"):
        read(reader, "s3://bucket/down.mp4", IMPATIENT)
    assert read(reader, "s3://bucket/slow.mp4", HURRIED) == len(b"content")
    assert caplog.messages == ["s3://bucket/down.mp4 is slow", "s3://bucket/slow.mp4 is slow"]
    reader.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory")
def test_the_size_of_a_remote_file_is_not_the_decoders() -> None:
    # Of calloc's memory no page is touched: it takes no room. The file is larger than all that a video may take.
    reader = decoder("np.empty(1 << 30, np.uint8)")
    reader._code = (
        reader._code.replace('source == "bad"', "len(source) == 3 << 30")
        .replace("= len(source)", "= len(source) >> 30")
        .replace(
            "guard.answer_views()",
            """
storage.read_bytes = lambda uri: np.zeros((3 if "large" in uri else 1) << 30, np.uint8)
guard.answer_views()
""",
        )
    )
    for name in ("small", "large", "large"):
        assert read(reader, f"s3://bucket/{name}.mp4") == (1 if name == "small" else 3)
    reader.close()


def test_a_process_that_does_not_start_says_so() -> None:
    reader = ViewReader("raise SystemExit(3)")
    for _ in range(2):
        with pytest.raises(RunError, match=r"did not start, the decoder crashed .exit status 3."):
            read(reader, "good")


def test_the_process_ends_with_its_parent_and_the_parent_has_no_torch(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs.mp4")  # whoever opens it to read waits for one who writes
    code = f"""
import sys
from carl_ray.config import Config
from carl_ray.data.child import BadVideoError
from carl_ray.data.guard import ViewReader
from carl_ray.data.sample import sample_spec

def read(name):
    row = {{"video_id": "v", "uri": {str(tmp_path)!r} + name, "num_frames": 5, "frame_step": 1.0, "verified": False}}
    reader.read(row, 0, sample_spec(Config(preset="test")))

reader = ViewReader()
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
            for _ in range(2400):
                try:
                    if "Z" in Path("/proc", pid, "stat").read_text().split():
                        return
                except OSError:
                    return
                time.sleep(0.05)
    pytest.fail("the process that decodes outlives its parent")


# All frames of a video

WITHOUT_TORCH = """
import sys
from carl_ray.data import decode, guard
iterate_frames = decode.iterate_frames

def checked(*arguments, **options):
    assert "torch" not in sys.modules
    return iterate_frames(*arguments, **options)

decode.iterate_frames = checked
guard.answer_frames()
"""


def frame_decoder() -> FrameReader:
    """A reader whose process decodes nothing: the name of a video says what befalls it at the second chunk.

    Chunks have the length of the video's name in all elements. A name that is a path gets a dot for each one made.
    """
    return FrameReader(
        """
import ctypes, os, sys, time, types
import numpy as np
from carl_ray.data import guard

FAULTS = {
    "hangs": lambda: ctypes.PyDLL(None).sleep(60),  # holds the GIL
    "waits": lambda: time.sleep(60),
    "crashes": lambda: os.kill(os.getpid(), 11),
    "is killed": lambda: os.kill(os.getpid(), 9),
    "is too large": lambda: [np.empty(1 << 28, np.uint8) for _ in range(99)],
    "is unforeseen": lambda: 1 // 0,
}

def iterate_frames(source, num_frames, **options):
    for number in range(num_frames // 4):
        if number == 1 and source in FAULTS:
            FAULTS[source]()
        if source.startswith("/"):
            with open(source, "a") as made:
                made.write(".")
        yield np.full((4, 512, 512, 3), len(source), np.uint8)

class DecodeError(Exception):
    pass

sys.modules["carl_ray.data.decode"] = types.SimpleNamespace(iterate_frames=iterate_frames, DecodeError=DecodeError)
guard.answer_frames()
"""
    )


def frames_of(
    reader: FrameReader, source: bytes | str, num_frames: int = 12, **options: object
) -> list[np.ndarray]:
    return list(reader.read(source, num_frames, CONFIG, **{"chunk_frames": 7, "short_side": 24} | options))


def assert_served(reader: FrameReader, name: str) -> None:
    chunks = frames_of(reader, name)
    assert [chunk.shape for chunk in chunks] == [(4, 24, 24, 3)] * 3
    assert all((chunk == len(name)).all() for chunk in chunks)


def test_gives_all_frames_as_they_would_be_here(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = str(make_video(tmp_path / "v.mp4", 30, 64, 48))
    reader = FrameReader(WITHOUT_TORCH)
    pids = set()
    for source, short_side in ((path, 24), (Path(path).read_bytes(), 24), (path, None), (path, 20)):
        chunks = frames_of(reader, source, 30, short_side=short_side)
        here = list(iterate_frames(source, 30, chunk_frames=7, short_side=short_side))
        assert [len(chunk) for chunk in chunks] == [len(chunk) for chunk in here] == [7, 7, 7, 7, 2]
        for got, whole in zip(chunks, here, strict=True):
            top, left = ((side - 24) // 2 if side > 24 else 0 for side in whole.shape[1:3])
            cut = whole if short_side == 20 else whole[:, top : top + 24, left : left + 24]
            np.testing.assert_array_equal(got, cut, strict=True)
            assert got.flags.writeable
        assert reader.count(source, CONFIG) == 30
        # A video that is not what it was said to be costs neither the process nor another try.
        for num_frames, reason in (
            (31, "31 frames were expected, but only 30 decode"),
            (8, "8 .* but more decode"),
        ):
            with pytest.raises(BadVideoError, match=f"^{reason}; `carl_ray.index … --verify` counts"):
                frames_of(reader, source, num_frames, short_side=short_side)
        with pytest.raises(BadVideoError, match=r"^no such file$"):
            reader.count(str(tmp_path / "none.mp4"), CONFIG)
        assert reader._process is not None
        pids.add(reader._process.pid)
    assert len(pids) == 1
    reader.close()


@pytest.mark.parametrize("height", [20, 24, 25, 31])
@pytest.mark.parametrize("width", [20, 24, 37, 39, 40])
def test_the_square_is_what_the_encoder_sees(height: int, width: int) -> None:
    """Bit by bit what the view `central` and `center_view` make of the whole frames."""
    frames = np.random.default_rng(height * width).integers(0, 256, (2, height, width, 3), np.uint8)
    seen = frames
    if min(height, width) > 24:
        top, left = (height - 24) // 2, (width - 24) // 2
        seen = frames[:, top : top + 24, left : left + 24]
    square = guard._central_square(frames, 24)
    assert (square.shape == (2, 24, 24, 3)) == (min(height, width) >= 24)
    assert np.array_equal(center_view(square, 24), center_view(seen, 24))


def test_faults_between_chunks_cost_one_video() -> None:
    reader = frame_decoder()
    for name, kind, reason in (
        ("hangs", BadVideoError, "the decoder took longer than 1 s"),
        ("crashes", BadVideoError, "the decoder crashed (SIGSEGV)"),
        ("is killed", RunError, "the decoder was killed (SIGKILL), perhaps for want of memory"),
        ("is too large", BadVideoError, "reading it takes more than 2.0 GiB of memory"),
        (
            "is unforeseen",
            BadVideoError,
            "reading failed (ZeroDivisionError: integer division or modulo by zero)",
        ),
    ):
        with pytest.raises(kind, match=f"^{re.escape(reason)}$"):
            list(reader.read(name, 12, IMPATIENT if name == "hangs" else CONFIG, chunk_frames=4))
        assert_served(reader, "good")
    # Who stops early gets no rest of it with the next video, not even where that has begun already.
    chunks = reader.read("stopped early", 12, CONFIG, chunk_frames=4)
    next(chunks)
    assert_served(reader, "good")
    process = reader._process
    chunks.close()
    assert_served(reader, "better")
    assert reader._process is process
    reader.close()


def test_no_time_passes_while_a_chunk_waits_and_few_do(tmp_path: Path) -> None:
    reader = frame_decoder()
    # Too large for the pipe: the process waits with them.
    config = replace(HURRIED, augment=AugmentConfig(image_size=512))
    made = tmp_path / "made"
    chunks = reader.read(str(made), 40, config, chunk_frames=4)
    next(chunks)
    time.sleep(5.2)
    assert len(made.read_text()) <= 3
    assert len(list(chunks)) == 9
    reader.close()


def test_another_thread_may_end_a_decoder_at_work() -> None:
    reader = frame_decoder()
    reader.start()
    reader.interrupt()
    assert_served(reader, "good")
    chunks = reader.read("waits", 12, CONFIG, chunk_frames=4)
    next(chunks)
    thread = threading.Thread(target=reader.interrupt)
    thread.start()
    with pytest.raises(RunError, match=r"^the decoder was killed .SIGKILL."):
        next(chunks)
    thread.join()
    assert_served(reader, "better")
    reader.close()
