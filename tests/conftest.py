"""Fixtures that every test may use: small real videos whose pixels encode the frame number, and Ray."""

from __future__ import annotations

import gc
import io
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

# Before whoever reads it is imported: several processes share the cores, and threads that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
import pytest
from xdist.scheduler import LoadScopeScheduling

_ROWS, _COLUMNS = 3, 4  # blocks of the barcode, one bit each
_WITHOUT_RAY = 2
_HEAD_ATTEMPTS = 3
_START_SECONDS = 150.0
_QUIET = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}
"""Variables of a head that nobody watches: a sixth less CPU at rest."""
_BEGIN = time.monotonic()
_LONGEST = (
    "test_trainer.py",
    "test_kills_end_to_end.py",
    "test_pipeline_on_cluster.py",
    "test_sweep.py",
    "test_whole_runs.py",
    "test_interruption.py",
    "test_autoscaling.py",
)
"""Files of slow tests, the longest first."""


class _OneOfTwoForRay(LoadScopeScheduling):
    """One test process has all files that use Ray, one cluster at a time; the others have the rest.

    Slow tests are dealt out by file, and each process has a cluster: they wait more than they compute.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if _only_slow(self.config):
            return file
        return "ray" if _ray_order(self.config.rootpath / file) < _WITHOUT_RAY else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """What deals the tests out to processes (`-n`)."""
    return _OneOfTwoForRay(config, log)


def pytest_configure() -> None:
    """Background jobs of a shell ignore SIGINT, which the commands that tests start would inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported now stays: the garbage collector, a second each time, need not look at it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ray's part takes longest: it begins first; of the slow tests the shortest, since they have a limit."""
    if _only_slow(config):
        items.sort(key=lambda item: -(*_LONGEST, item.path.name).index(item.path.name))
    else:
        items.sort(key=lambda item: _ray_order(item.path))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The rest makes way for Ray's part, whose processes are the longer way to the end; slow tests have a limit."""
    if _only_slow(item.config):
        minutes = float(os.environ.get("CARL_RAY_SLOW_MINUTES", "inf"))
        if time.monotonic() - _BEGIN > 60 * minutes:
            pytest.skip(f"{item.nodeid}: not begun within {minutes:.0f} minutes (CARL_RAY_SLOW_MINUTES)")
    elif _ray_order(item.path) == _WITHOUT_RAY:
        os.setpriority(os.PRIO_PROCESS, 0, 10)


def _only_slow(config: pytest.Config) -> bool:
    return bool(config.option.markexpr == "slow")


@cache
def _ray_order(path: Path) -> int:
    """First what has a cluster of its own, then what shares the one that stays until the end, then the rest."""
    text = path.read_text(encoding="utf-8")
    if "start_head" in text:
        return 0
    return 1 if "ray_session" in text or "ray_cluster" in text else _WITHOUT_RAY


def _barcode(number: int, height: int, width: int) -> np.ndarray:
    bits = np.array([number >> bit & 1 for bit in range(_ROWS * _COLUMNS)]).reshape(_ROWS, _COLUMNS)
    rows = np.minimum(np.arange(height) * _ROWS // height, _ROWS - 1)
    columns = np.minimum(np.arange(width) * _COLUMNS // width, _COLUMNS - 1)
    gray = (40 + 175 * bits[rows][:, columns]).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _frame_numbers(frames: np.ndarray) -> list[int]:
    numbers = []
    for frame in frames:
        height, width = frame.shape[:2]
        rows = ((np.arange(_ROWS) + 0.5) * height / _ROWS).astype(int)
        columns = ((np.arange(_COLUMNS) + 0.5) * width / _COLUMNS).astype(int)
        bits = frame[rows][:, columns, 1] > 127
        numbers.append(int((bits.reshape(-1) << np.arange(bits.size)).sum()))
    return numbers


def _make_video(
    path: Path,
    num_frames: int = 60,
    width: int = 64,
    height: int = 48,
    *,
    fps: int = 30,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    gop: int = 250,
    b_frames: int = 2,
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    matrix: tuple[int, int, int, int] | None = None,
) -> Path:
    """Writes a video; frame i shows i as 12 blocks, black or white.

    Args:
        path: The suffix names the container.
        num_frames: At most 4,096.
        width: Pixels.
        height: Pixels.
        fps: Frames a second; also the time base.
        codec: FFmpeg's name of the encoder.
        pixel_format: FFmpeg's name of it.
        gop: Frames between key frames.
        b_frames: At most so many B-frames in a row.
        options: Of the encoder.
        pts: Timestamps of the frames in units of 1 / fps; None means 0, 1, 2, …
        matrix: (a, b, c, d) of the display matrix, written into an MP4 or MOV file's track header.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(_barcode(index, height, width), format="rgb24")
            frame.pts = index if pts is None else pts[index]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if matrix is not None:
        content = bytearray(path.read_bytes())
        a, b, c, d = (value << 16 for value in matrix)
        at = content.index(b"tkhd") + 44
        content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(content)
    return path


def _make_field_pictures(path: Path, num_frames: int, *, fps: int = 25) -> Path:
    """Writes H.264 whose every field is a picture, and a packet, of its own; frame i shows i as `_make_video` does.

    No encoder at hand makes such: key frames of raw macroblocks (I_PCM), by hand, 64 x 64 pixels.
    """

    def ue(value: int) -> str:
        return f"{value + 1:b}".zfill(2 * (value + 1).bit_length() - 1)

    def unit(header: int, bits: str) -> bytes:
        bits += "1"
        bits += "0" * (-len(bits) % 8)
        content = int(bits, 2).to_bytes(len(bits) // 8, "big")
        assert b"\0\0" not in content  # would need an escape
        return bytes([0, 0, 0, 1, header]) + content

    # Profile and level; order of output as decoded; 4 x 2 map units; fields are allowed.
    parameters = unit(
        0x67, f"{77:08b}{0x40:08b}{30:08b}" + ue(0) + ue(0) + ue(2) + ue(1) + "0" + ue(3) + ue(1) + "00100"
    )
    parameters += unit(
        0x68, ue(0) + ue(0) + "00" + ue(0) + ue(0) + ue(0) + "000" + ue(0) + ue(0) + ue(0) + "100"
    )
    units = []
    for number in range(num_frames):
        picture = _barcode(number, 64, 64)[:, :, 0]
        for bottom in (0, 1):
            field = picture[bottom::2]
            bits = ue(0) + ue(7) + ue(0) + "0000" + f"1{bottom}"
            bits += "0" if bottom else ue(number % 2) + "00"
            bits += ue(0) + ue(1)
            for y in (0, 16):
                for x in (0, 16, 32, 48):
                    bits += ue(25)
                    bits += "0" * (-len(bits) % 8)
                    samples = field[y : y + 16, x : x + 16].tobytes() + b"\x80" * 128
                    bits += f"{int.from_bytes(samples, 'big'):0{8 * len(samples)}b}"
            units.append((b"" if bottom else parameters) + unit(0x61 if bottom else 0x65, bits))
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        av.open(io.BytesIO(b"".join(units)), format="h264") as raw,
        av.open(str(path), "w") as container,
    ):
        stream = container.add_stream_from_template(raw.streams.video[0])
        for index, content in enumerate(units):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, 2 * fps)
            packet.pts = packet.dts = index
            packet.duration = 1
            packet.is_keyframe = index % 2 == 0
            container.mux(packet)
    return path


def _remux(
    source: Path, path: Path, *parts: tuple[int, int | None, int], options: dict[str, str] | None = None
) -> Path:
    """Copies the packets of a video into another container: of each (start, stop, shift of the times) in turn."""
    with av.open(str(path), "w", container_options=options or {}) as container:
        stream = None
        for start, stop, shift in parts or ((0, None, 0),):
            with av.open(str(source)) as opened:
                if stream is None:
                    stream = container.add_stream_from_template(opened.streams.video[0])
                packets = [packet for packet in opened.demux(video=0) if packet.size]
                for packet in packets[start:stop]:
                    packet.stream = stream
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    container.mux(packet)
    return path


@pytest.fixture(scope="session")
def make_field_pictures() -> Callable[..., Path]:
    """A function that writes a small video of field pictures; see `_make_field_pictures`."""
    return _make_field_pictures


@pytest.fixture(scope="session")
def remux() -> Callable[..., Path]:
    """A function that copies packets of a video into another container; see `_remux`."""
    return _remux


@pytest.fixture(autouse=True)
def _own_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run sets for its whole process ends with the test."""
    from carl_ray import storage

    monkeypatch.setattr(storage, "PATIENCE_SECONDS", storage.PATIENCE_SECONDS)


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """A function that writes a small video whose frame i shows the number i; see `_make_video`."""
    return _make_video


@pytest.fixture(scope="session")
def frame_numbers() -> Callable[[np.ndarray], list[Any]]:
    """A function that reads the numbers back from frames (N, H, W, 3) of any size."""
    return _frame_numbers


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint of a tiny encoder (T = 6, 16 pixels, width 8), as after 3 steps; read only."""
    import torch

    from carl_ray.config import AugmentConfig, Config, DataConfig, TrainingConfig
    from carl_ray.training.checkpoint import Progress, save_checkpoint
    from carl_ray.training.run_log import RunLog
    from carl_ray.training.step import TrainingStep
    from tests.samples import small_model

    config = Config(
        preset="demo",
        data=DataConfig(short_side=20, retries=0),
        augment=AugmentConfig(image_size=16),
        model=small_model(),
        training=TrainingConfig(precision="fp32"),
    )
    run_dir = tmp_path_factory.mktemp("runs") / "demo-tiny"
    step = TrainingStep(config, torch.device("cpu"), 3)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for tensor in step.model.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand_like(tensor)
    log = RunLog(str(run_dir), 0)
    for number in (1, 2, 3):
        log.write(number, {"loss": 7.0 - number, "learning_rate": 1e-3 / number})
    log.write(3, {"validation_loss": 4.5})
    log.close()
    progress = Progress(step=3, row=12, num_bad_rows=0, num_skipped_steps=0, seconds=1.0, videos="0")
    save_checkpoint(str(run_dir), step, progress, 1)
    return run_dir


def _free_port() -> int:
    """A port that nobody listens on; nor do the kernel and Ray give it to others before it is taken.

    Those that the kernel gives away begin at 32,768 on Linux, and those of Ray's workers end at 19,999.
    """
    while True:
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", 20_000 + secrets.randbelow(12_000)))
            return int(listener.getsockname()[1])


@contextmanager
def _s3_server(folder: Path, **environment: str) -> Iterator[str]:
    """host:port of an S3 server (moto) until the context ends; its recorder writes into the folder."""
    port = _free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, server)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def s3_server() -> Callable[..., AbstractContextManager[str]]:
    """A function whose context is an S3 server of its own; see `_s3_server`."""
    return _s3_server


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of an S3 server of our own; its credentials are in the environment."""
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with _s3_server(tmp_path_factory.mktemp("moto")) as endpoint:
        yield endpoint


@contextmanager
def _head(*options: str, port: int, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A head as `ray start --head` starts it, until the context ends; the variables that find it.

    Args:
        options: More options of the command.
        port: That it listens on.
        environment: Variables beside this process's own.
    """
    with ExitStack() as stack:
        for attempt in range(1, _HEAD_ATTEMPTS + 1):
            try:
                found_by = stack.enter_context(_started_head(options, port, environment))
                break
            except RuntimeError as error:
                # Seen where two heads started at once on busy cores: the agent that starts jobs never came.
                if attempt == _HEAD_ATTEMPTS:
                    raise
                print(f"starting the head again: {error}", file=sys.stderr, flush=True)
        yield found_by


@contextmanager
def _started_head(
    options: Sequence[str], port: int, environment: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    dashboard_port = _free_port()
    # Not below pytest's own folder: Ray's socket names would be too long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
                *("--node-ip-address=127.0.0.1", f"--port={port}"),
                *(f"--dashboard-port={dashboard_port}", "--dashboard-host=127.0.0.1"),
                # The agent that starts jobs has a fixed port otherwise, which another cluster may hold.
                "--dashboard-agent-listen-port=0",
                *(f"--temp-dir={folder}", "--disable-usage-stats", *options),
            ],
            env=os.environ | _QUIET | dict(environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_for(port, head)
            _wait_for(dashboard_port, head)
            dashboard = f"http://127.0.0.1:{dashboard_port}"
            try:
                _wait_until(lambda: _takes_jobs(dashboard), head)
            except RuntimeError as error:
                logs = sorted(Path(folder).glob("session_latest/logs/dashboard*.log"))
                ends = [f"{log.name}: {log.read_text(errors='replace')[-800:]}" for log in logs]
                raise RuntimeError("\n".join([str(error), *ends])) from None
            yield {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_API_SERVER_ADDRESS": dashboard}
        finally:
            # Nothing of it is worth the half minute of an orderly end.
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.wait()


@pytest.fixture(scope="session")
def start_head() -> Callable[..., AbstractContextManager[dict[str, str]]]:
    """A function whose context is a head of its own; see `_head`."""
    return _head


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that finds a port that nobody listens on."""
    return _free_port


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint: str) -> Iterator[dict[str, str]]:
    """The Ray cluster of the whole run, started as `ray start --head` does; the variables that find it.

    Four logical CPUs, whatever the machine has: two training workers and decoding fit beside each other.
    """
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        # By default 15: below whatever else runs, the other test process first of all.
        "RAY_worker_niceness": "0",
    }
    size = ("--num-cpus=4", "--object-store-memory=1000000000")
    # Not of drivers: with variables of its own, Ray Train takes twice as long to start.
    settings = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    with _head(*size, port=_free_port(), environment=settings) as found_by:
        os.environ |= found_by
        yield found_by


@pytest.fixture(scope="session")
def join_cluster(ray_cluster: dict[str, str]) -> Callable[..., AbstractContextManager[None]]:
    """A function whose context is one node more in the cluster; at its end it gets SIGTERM, as spot nodes do."""

    @contextmanager
    def joined(*, num_cpus: int, labels: str) -> Iterator[None]:
        import ray

        def num_nodes() -> int:
            return sum(node["Alive"] for node in ray.nodes())

        before = num_nodes()
        node = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("ray")), "start", "--block"),
                *(f"--address={ray_cluster['RAY_ADDRESS']}", "--node-ip-address=127.0.0.1"),
                *(f"--num-cpus={num_cpus}", f"--labels={labels}", "--object-store-memory=200000000"),
                "--disable-usage-stats",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_until(lambda: num_nodes() > before, node)
            yield
        finally:
            os.killpg(node.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                node.wait(timeout=20)
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)

    return joined


@pytest.fixture(scope="session")
def ray_session(ray_cluster: dict[str, str]) -> Iterator[None]:
    """A connection of this process to the cluster."""
    from carl_ray.session import connect

    with connect():
        yield


@pytest.fixture
def local_training(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray Train's local mode: the workers' loop runs in this process, on the stream of the cluster.

    For tests of what a run computes and leaves, not of the processes it is made of: their start costs a run of few
    steps nearly all of its time.
    """
    import torch
    from ray.train import ScalingConfig

    from carl_ray.training import trainer

    monkeypatch.setattr(trainer, "ScalingConfig", lambda **options: ScalingConfig(num_workers=0))
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def _takes_jobs(dashboard: str) -> bool:
    """Whether jobs can be submitted: the agent that starts them is there later than the dashboard."""
    job = Request(
        f"{dashboard}/api/jobs/",
        b'{"entrypoint": "true"}',
        {"Content-Type": "application/json"},
        method="POST",
    )
    try:
        with urlopen(job, timeout=30):
            return True
    except OSError:
        return False


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    _wait_until(listens, process)


def _wait_until(is_there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while not is_there():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with status {process.returncode} before it was there")
        if time.monotonic() > until:
            raise RuntimeError(f"{process.args} was not there after {_START_SECONDS:.0f} s")
        time.sleep(0.1)
