"""`carl_ray.training.run_log`: lines that stay in step with the checkpoints."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs
from tensorboardX.proto.event_pb2 import Event, SessionLog

from carl_ray import storage
from carl_ray.datasets.tfrecord import read_records
from carl_ray.errors import RunError
from carl_ray.training.run_log import BAD_VIDEOS, METRICS, RunLog, read_log


@pytest.fixture(params=["local", "remote"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run folder on disk, and one that is taken for a bucket's."""
    if request.param == "local":
        yield str(tmp_path / "run")
        return
    bucket = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    resolve = storage.resolve

    def resolve_bucket(uri: str) -> tuple[fs.FileSystem, str]:
        if not uri.startswith("s3://bucket/"):
            return resolve(uri)
        path = uri.removeprefix("s3://bucket/")
        if "/" in path:  # a bucket has no folders to make
            bucket.create_dir(path.rpartition("/")[0])
        return bucket, path

    monkeypatch.setattr(storage, "resolve", resolve_bucket)
    yield "s3://bucket/run"


def events(run_dir: str) -> dict[str, bytes]:
    folder = storage.join(run_dir, "events")
    return {name: storage.read_bytes(storage.join(folder, name)) for name in storage.list_folder(folder)}


def test_writes_and_reads(run_dir: str) -> None:
    log = RunLog(run_dir, 0)
    log.write(1, {"loss": 2.5, "num_frames": 3})
    log.write(2, {"validation_loss": 1.5})
    log.write_bad_video(2, "vidéo\u2028", "torn\nfile")
    log.sync()
    first = events(run_dir)
    assert len(first) == 1
    assert read_log(run_dir) == [
        {"step": 1, "loss": 2.5, "num_frames": 3},
        {"step": 2, "validation_loss": 1.5},
    ]
    assert read_log(run_dir, BAD_VIDEOS) == [{"step": 2, "video_id": "vidéo\u2028", "reason": "torn\nfile"}]
    log.write(3, {"loss": 0.5})
    log.close()
    assert [line["step"] for line in read_log(run_dir)] == [1, 2, 3]
    last = events(run_dir)
    assert last.keys() == first.keys()
    for name, content in last.items():
        assert content.startswith(first[name])
        assert len(content) > len(first[name])
        assert b"loss" in content
        assert b"brain.Event" in content


def test_a_resumed_run_drops_what_came_after_its_checkpoint(run_dir: str) -> None:
    log = RunLog(run_dir, 0)
    for step in range(7):
        log.write(step, {"loss": float(step)})
        log.write_bad_video(step, f"video-{step}", "bad")
    log.close()
    resumed = RunLog(run_dir, 4)
    resumed.sync()
    assert [line["step"] for line in read_log(run_dir)] == [0, 1, 2, 3, 4]
    assert [line["video_id"] for line in read_log(run_dir, BAD_VIDEOS)][-1] == "video-4"
    resumed.write(5, {"loss": 50.0})
    resumed.close()
    assert read_log(run_dir)[-2:] == [{"step": 4, "loss": 4.0}, {"step": 5, "loss": 50.0}]
    assert [line["step"] for line in read_log(run_dir, BAD_VIDEOS)] == [0, 1, 2, 3, 4]
    assert len(events(run_dir)) == 2


def test_a_run_that_begins_anew_repeats_no_line(run_dir: str) -> None:
    for _ in range(2):
        log = RunLog(run_dir, 0)
        log.write(0, {"validation_loss": 3.0})
        log.write(1, {"loss": 2.0})
        log.close()
    assert read_log(run_dir) == [{"step": 0, "validation_loss": 3.0}, {"step": 1, "loss": 2.0}]


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    run_dir = str(tmp_path)
    path = tmp_path / METRICS
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_log(run_dir) == [{"step": 1, "loss": 2.0}]
    log = RunLog(run_dir, 1)
    log.write(2, {"loss": 1.0})
    log.close()
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
    path.write_text('{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(json.JSONDecodeError):
        read_log(run_dir)


def test_what_is_not_finite_is_null_since_json_has_no_word_for_it(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path), 0)
    log.write(1, {"loss": float("nan"), "gradient_norm": float("-inf"), "epoch": 0.5})
    log.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"not JSON: {word}")

    text = (tmp_path / METRICS).read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "step": 1,
        "loss": None,
        "gradient_norm": None,
        "epoch": 0.5,
    }


def test_a_failed_rewrite_keeps_the_lines_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(str(tmp_path), 0)
    for step in range(1, 4):
        log.write(step, {"loss": 1.0})
    log.close()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"metrics\.jsonl: could not write it: no room"):
        RunLog(str(tmp_path), 2)
    assert [line["step"] for line in read_log(str(tmp_path))] == [1, 2, 3]
    assert [name for name in storage.list_folder(str(tmp_path)) if name.startswith(".")] == []


def test_a_full_disk_is_an_error_of_sync_and_costs_no_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = RunLog(str(tmp_path), 0)
    log.write(1, {"loss": 1.0})
    size = (tmp_path / METRICS).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for a line and a half more; the kernel writes that much, and then fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * 5 // 2, before[1]))
    try:
        with caplog.at_level(logging.WARNING):
            for step in range(2, 6):
                log.write(step, {"loss": 1.0})
        assert [line["step"] for line in read_log(str(tmp_path))] == [1, 2]
        assert (tmp_path / METRICS).read_text().endswith("}\n")
        told = [record.getMessage() for record in caplog.records if METRICS in record.getMessage()]
        assert len(told) == 1
        assert "kept in memory until the next checkpoint" in told[0]
        with pytest.raises(RunError, match=r"could not write it \(.*File too large") as caught:
            log.sync()
        assert "\n" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.write(6, {"loss": 1.0})
    log.close()
    assert [line["step"] for line in read_log(str(tmp_path))] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in scalars(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_no_room_at_all(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path), 0)
    (tmp_path / METRICS).symlink_to("/dev/full")
    # More lines than the queue of a writer in a thread would hold.
    for step in range(100):
        log.write(step, {"loss": 1.0})
    for _ in range(2):
        with pytest.raises(
            RunError, match=r"metrics\.jsonl: could not write it: no room; .*No space left on device"
        ):
            log.close()


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/run: could not write it \(.*Not a directory"):
        RunLog(str(tmp_path / "file" / "run"), 0)


def scalars(run_dir: Path) -> list[tuple[int, float]]:
    """Step and loss of the events of a run, read by their format, checksums included."""
    (path,) = (run_dir / "events").iterdir()
    events = [Event.FromString(data) for _, data in read_records(path)]
    return [(event.step, event.summary.value[0].simple_value) for event in events if event.summary.value]


def test_events_are_whole_records(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path), 4)
    log.write(5, {"loss": 0.5, "name": "text", "flag": True})
    log.write(6, {"loss": 0.25})
    assert scalars(tmp_path) == [(5, 0.5), (6, 0.25)]
    log.close()
    (path,) = (tmp_path / "events").iterdir()
    head, start, *_ = [Event.FromString(data) for _, data in read_records(path)]
    assert head.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 5)


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert read_log(str(tmp_path)) == []
    assert read_log(str(tmp_path / "nowhere"), BAD_VIDEOS) == []


def test_the_logs_of_a_bucket_leave_nothing_on_this_machine(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    local = tmp_path_factory.mktemp("local")
    monkeypatch.setattr("tempfile.tempdir", str(local))
    written: dict[str, bytes] = {}
    monkeypatch.setattr(storage, "write_bytes", lambda uri, content: written.update({uri: content}))
    monkeypatch.setattr(storage, "exists", lambda uri: False)
    log = RunLog("s3://bucket/run?region=eu", 0)
    log.write(1, {"loss": 1.0})
    assert written == {}
    log.sync()
    assert written["s3://bucket/run/metrics.jsonl?region=eu"] == b'{"step": 1, "loss": 1.0}\n'
    assert any(uri.startswith("s3://bucket/run/events/") for uri in written)
    log.close()
    assert list(local.iterdir()) == []
