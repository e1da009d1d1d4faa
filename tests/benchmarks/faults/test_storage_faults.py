"""Storage that fails: `carl_ray.storage`, checkpoints and logs, over an S3 server behind a proxy."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import fs

from benchmarks.faults.proxy import Fault, FaultKind, FaultProxy
from carl_ray import storage
from carl_ray.data import listing, probing
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embeddings import EmbeddedVideo, Origin, read_embeddings, write_part
from carl_ray.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_model,
    open_checkpoint,
    restore,
    save_checkpoint,
)
from carl_ray.training.learner import initial_learner
from carl_ray.training.run_log import RunLog, read_log
from carl_ray.training.step import TrainingStep

BUCKET = "faulty"
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def shared(s3_endpoint: str) -> Iterator[FaultProxy]:
    """A proxy before the S3 server, with a bucket behind it."""
    fs.S3FileSystem(endpoint_override=s3_endpoint, scheme="http", allow_bucket_creation=True).create_dir(
        BUCKET
    )
    with FaultProxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(
    shared: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> FaultProxy:
    """The same without faults; storage is less patient, so that every fault meets an attempt of ours."""
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(storage, "DENIAL_SECONDS", 30.0)
    monkeypatch.setattr(storage, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(storage, "_LONGEST_WAIT_SECONDS", 0.05)
    # Of a busy machine the server may be silent for seconds: only a fault may count as one.
    monkeypatch.setattr(storage, "_SILENCE_SECONDS", 60.0)
    monkeypatch.setattr(storage, "_ATTEMPTS_OF_A_REQUEST", 1)
    storage._bucket.cache_clear()
    shared.clear()
    caplog.set_level(logging.WARNING)
    return shared


@pytest.fixture
def folder(proxy: FaultProxy, request: pytest.FixtureRequest) -> str:
    """URI of a folder of this test's own, seen through the proxy."""
    name = re.sub(r"\W+", "-", request.node.name)
    return f"s3://{BUCKET}/{name}?endpoint_override={proxy.endpoint}&scheme=http"


@pytest.fixture
def direct(proxy: FaultProxy, s3_endpoint: str) -> Callable[[str], str]:
    """A function that gives a URI of the proxy as one past it."""
    return lambda uri: uri.replace(proxy.endpoint, s3_endpoint)


@contextmanager
def give_up() -> Iterator[None]:
    """Within it, storage gives up soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "PATIENCE_SECONDS", 0.1)
        patch.setattr(storage, "DENIAL_SECONDS", 0.1)
        yield


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "carl_ray.storage"]


def counted(proxy: FaultProxy, before: dict[str, int]) -> dict[str, int]:
    after = proxy.counts
    return {kind: after[kind] - before.get(kind, 0) for kind in after if after[kind] != before.get(kind, 0)}


# One operation at a time

OPERATIONS = {
    "reach": lambda uri: storage.exists(uri),
    "read": lambda uri: storage.read_bytes(uri),
    "write": lambda uri: storage.write_bytes(uri, b"new"),
    "list": lambda uri: storage.list_folder(storage.parent(uri)),
    "delete": lambda uri: storage.delete(storage.parent(uri)),
}


@pytest.mark.parametrize("action", OPERATIONS)
@pytest.mark.parametrize("kind", ["error", "slow_down", "reset", "lose_answer", "deny"])
def test_what_passes_is_waited_for(
    proxy: FaultProxy, folder: str, caplog: pytest.LogCaptureFixture, kind: FaultKind, action: str
) -> None:
    uri = storage.join(folder, "file")
    storage.write_bytes(uri, b"content")
    state = random.getstate()
    before = proxy.counts
    proxy.inject(Fault(kind, times=2))
    found = OPERATIONS[action](uri)
    assert counted(proxy, before)[kind] == 2
    assert found == {"reach": True, "read": b"content", "list": ["file"]}.get(action)
    assert random.getstate() == state
    told = warnings(caplog)
    # A connection that has been used before is opened again by pyarrow, without a word.
    assert len(told) == 2 or (kind in ("reset", "lose_answer") and len(told) == 1)
    for line in told:
        assert re.match(
            r"s3://faulty/\S+: could not (look at|read|write|list|delete) it.* \(.*\); "
            r"trying again in 0\.\d s, for [123]?\d s more$",
            line,
        )
    proxy.clear()
    assert storage.exists(uri) is (action != "delete")
    if action == "write":
        assert storage.read_bytes(uri) == b"new"


def test_an_attempt_that_hangs_ends(proxy: FaultProxy, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = storage.join(folder, "file")
    storage.write_bytes(uri, b"content")
    monkeypatch.setattr(storage, "_SILENCE_SECONDS", 1.0)
    storage._bucket.cache_clear()
    before = proxy.counts
    proxy.inject(Fault("hang", method="GET"))
    assert storage.read_bytes(uri) == b"content"
    assert counted(proxy, before)["hang"] == 1


def test_a_body_that_ends_early_is_read_again(
    proxy: FaultProxy, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    uri = storage.join(folder, "file")
    content = os.urandom(3 * MEBIBYTE)
    storage.write_bytes(uri, content)
    proxy.inject(Fault("truncate", times=3))
    assert storage.read_bytes(uri) == content
    assert storage.list_folder(folder) == ["file"]
    assert len(warnings(caplog)) == 3
    proxy.inject(Fault("truncate", times=2))
    assert storage.list_folder(folder) == ["file"]


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        *((kind, action) for kind in ("error", "slow_down", "reset", "deny") for action in OPERATIONS),
        *(("truncate", action) for action in ("read", "list", "delete")),
    ],
)
def test_what_lasts_is_one_line(proxy: FaultProxy, folder: str, kind: FaultKind, action: str) -> None:
    uri = storage.join(folder, "file")
    storage.write_bytes(uri, b"content")
    before = proxy.counts
    proxy.inject(Fault(kind, times=None))
    with (
        give_up(),
        pytest.raises(
            RunError, match=r"^s3://faulty/.*: could not (look at|read|write|list|delete) it"
        ) as caught,
    ):
        OPERATIONS[action](uri)
    assert "\n" not in str(caught.value)
    assert ("no permission; check the credentials" in str(caught.value)) is (kind == "deny")
    assert counted(proxy, before)[kind] > 1
    proxy.clear()
    assert storage.read_bytes(uri) == b"content"


def test_a_store_that_is_not_there(folder: str, free_port: Callable[[], int]) -> None:
    with give_up():
        uri = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{free_port()}", folder)
        with pytest.raises(RunError, match=r"could not look at it \(.*Could not connect"):
            storage.exists(uri)


def test_what_is_absent_is_not_asked_for_twice(
    proxy: FaultProxy, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = folder.replace(BUCKET, "no-such-bucket")
    before = proxy.counts
    for uri in (folder, elsewhere):
        with pytest.raises(UserError, match="no such file"):
            storage.read_bytes(storage.join(uri, "file"))
    with pytest.raises(RunError, match="NO_SUCH_BUCKET"):
        storage.write_bytes(storage.join(elsewhere, "file"), b"")
    assert counted(proxy, before) == {"passed": 3}
    assert not storage.exists(elsewhere)
    assert storage.list_folder(elsewhere) == []
    with pytest.raises(UserError, match="Unexpected query parameter"):
        storage.read_bytes(f"{folder}&colour=red")
    assert warnings(caplog) == []


def test_credentials_are_in_no_line(proxy: FaultProxy, folder: str, caplog: pytest.LogCaptureFixture) -> None:
    with give_up():
        uri = storage.join(folder.replace("s3://", "s3://KEY:HUSH@"), "file")
        proxy.inject(Fault("deny", times=None))
        with pytest.raises(RunError) as caught:
            storage.read_bytes(uri)
        told = [str(caught.value), *warnings(caplog)]
        assert len(told) > 1
        assert not any("HUSH" in line or "KEY" in line for line in told)


# Whole or not at all


def test_half_an_upload_is_no_file(proxy: FaultProxy, folder: str) -> None:
    """Uploads beyond 10 MiB have parts."""
    uri = storage.join(folder, "file")
    content = os.urandom(11 * MEBIBYTE)
    for part, old in (("1", None), ("2", None), ("2", b"old")):
        if old is not None:
            storage.write_bytes(uri, old)
        proxy.inject(Fault("error", method="PUT", key=f"partNumber={part}&", times=None))
        with give_up(), pytest.raises(RunError, match="could not write it"):
            storage.write_bytes(uri, content)
        proxy.clear()
        assert storage.list_folder(folder) == ([] if old is None else ["file"])
    assert storage.read_bytes(uri) == b"old"


@pytest.mark.parametrize(
    ("kind", "method", "key"),
    [
        ("error", "POST", "uploads"),
        ("reset", "PUT", "partNumber=1&"),
        ("lose_answer", "PUT", "partNumber=2&"),
        ("slow_down", "POST", "uploadId="),
        ("lose_answer", "POST", "uploadId="),
    ],
)
def test_an_upload_whose_requests_fail_for_a_while(
    proxy: FaultProxy, folder: str, direct: Callable[[str], str], kind: FaultKind, method: str, key: str
) -> None:
    uri = storage.join(folder, "file")
    content = os.urandom(11 * MEBIBYTE)
    before = proxy.counts
    proxy.inject(Fault(kind, method=method, key=key))
    storage.write_bytes(uri, content)
    assert counted(proxy, before)[kind] == 1
    assert storage.read_bytes(direct(uri)) == content


@pytest.mark.parametrize("new", [b"shorter", b"another" * 1000, b""])
def test_a_file_written_while_it_is_read_is_one_or_the_other(
    proxy: FaultProxy, folder: str, monkeypatch: pytest.MonkeyPatch, new: bytes
) -> None:
    uri = storage.join(folder, "file")
    storage.write_bytes(uri, b"content " * 100)
    before = proxy.counts
    # The size is known, the content still to come: pyarrow's own second attempt asks for as much of what is there then.
    monkeypatch.setattr(storage, "_ATTEMPTS_OF_A_REQUEST", 3)
    storage._bucket.cache_clear()
    proxy.inject(Fault("hang", method="GET"))

    def write() -> None:
        while "hang" not in counted(proxy, before):
            time.sleep(0.005)
        storage.write_bytes(uri, new)
        proxy.clear()

    writer = threading.Thread(target=write)
    writer.start()
    content = storage.read_bytes(uri)
    writer.join()
    assert content == new


# Many at once


def test_a_store_that_often_fails(
    proxy: FaultProxy, folder: str, record_property: Callable[[str, object], None]
) -> None:
    before = proxy.counts
    kinds: tuple[FaultKind, ...] = ("error", "slow_down", "reset", "lose_answer", "truncate", "deny")
    for kind in kinds:
        proxy.inject(Fault(kind, probability=0.1, times=None))
    for number in range(12):
        uri = storage.join(folder, str(number % 3), "file")
        content = f"{number}".encode() * 1000
        storage.write_bytes(uri, content)
        assert storage.read_bytes(uri) == content
        assert storage.exists(uri)
        assert not storage.exists(storage.join(folder, "other"))
        assert storage.list_folder(folder) == [str(n) for n in range(min(3, number + 1))]
    storage.delete(folder)
    proxy.clear()
    assert not storage.exists(folder)
    found = counted(proxy, before)
    assert sum(found.get(kind, 0) for kind in kinds) > 20
    record_property("faults", found)


# What becomes of the filesystem's own options


def test_limits_are_added_to_what_the_uri_says(monkeypatch: pytest.MonkeyPatch, s3_endpoint: str) -> None:
    uri = "s3://bucket?region=eu-west-3&endpoint_override=host:1&scheme=http&allow_bucket_creation=true"
    for credentials in ("", "K:S@"):
        theirs, _ = fs.FileSystem.from_uri(uri.replace("//", f"//{credentials}"))
        ours, path = storage.resolve(uri.replace("//", f"//{credentials}").replace("bucket?", "bucket/a?"))
        assert path == "bucket/a"
        (before,), (after,) = theirs.__reduce__()[1], ours.__reduce__()[1]
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {"connect_timeout", "request_timeout", "allow_delayed_open"}
        assert after["secret_key"] == ("S" if credentials else None)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{s3_endpoint}")
    storage._bucket.cache_clear()
    storage.write_bytes(f"s3://{BUCKET}/by-environment", b"x")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    storage._bucket.cache_clear()
    assert storage.exists(f"s3://{BUCKET}/by-environment?endpoint_override={s3_endpoint}&scheme=http")


@pytest.mark.parametrize(
    ("uri", "seconds"),
    [("gs://anonymous@b/a", 5), ("gs://anonymous@b/a?scheme=http", 5), ("gs://b/a?retry_limit_seconds=7", 7)],
)
def test_googles_client_has_a_limit(uri: str, seconds: float) -> None:
    (options,) = storage.resolve(uri)[0].__reduce__()[1]
    assert options["retry_time_limit"].total_seconds() == seconds


# Indexing and embeddings


def test_indexing_waits_for_the_store(
    proxy: FaultProxy,
    folder: str,
    direct: Callable[[str], str],
    make_video: Callable[..., Path],
    tmp_path: Path,
) -> None:
    content = make_video(tmp_path / "v.mp4", 10).read_bytes()
    storage.write_bytes(direct(storage.join(folder, "v.mp4")), content)
    filesystem, root = storage.resolve(folder)
    before = proxy.counts
    proxy.inject(Fault("slow_down", times=3))
    (file,), _, _ = listing.list_videos(filesystem, root, folder)
    assert counted(proxy, before)["slow_down"] == 3

    def probe() -> dict[str, object]:
        found = probing._probe_file({**file, "number": 0}, filesystem=filesystem, verify=True)
        return dict(json.loads(found["outcome"]))

    for kind in ("slow_down", "reset", "truncate"):
        proxy.inject(Fault(kind, method="GET", key=r"/v\.mp4"))
        assert probe()["num_frames"] == 10
    assert counted(proxy, before)["truncate"] == 1
    with give_up():
        proxy.inject(Fault("slow_down", times=None))
        assert re.match(r"could not be read: .*status 503", str(probe()["reason"]))
        with pytest.raises(RunError, match=r"could not list it .*status 503"):
            listing.list_videos(filesystem, root, folder)


def test_embeddings_in_a_store_that_fails_are_not_damaged(proxy: FaultProxy, folder: str) -> None:
    origin = Origin("c", "0", "p", 1, 8, 4, "centre", False)
    vectors = np.ones((3, 4), np.float32)
    video = EmbeddedVideo(video_id="v", uri="u", timestamps=np.arange(3.0), embeddings=vectors)
    write_part(folder, [video], origin, "float32")
    for kind in ("slow_down", "truncate"):
        proxy.inject(Fault(kind, key=r"part-00000", times=2))
    assert [v.video_id for v in read_embeddings(folder)] == ["v"]
    with give_up():
        proxy.inject(Fault("slow_down", method="GET", key=r"part-00000", times=None))
        # A reader's few bytes may be too small for what the store says, and then only the status is known.
        with pytest.raises(RunError, match=r"could not read it .*(SLOW_DOWN|SERVICE_UNAVAILABLE)"):
            read_embeddings(folder)


# Checkpoints and logs


@pytest.fixture
def run(tiny_run: Path, folder: str, direct: Callable[[str], str]) -> tuple[str, TrainingStep, Checkpoint]:
    """A run folder in the store with a checkpoint after step 3, and the step as it is then."""
    for path in tiny_run.rglob("*"):
        if path.is_file():
            storage.write_bytes(
                storage.join(direct(folder), *path.relative_to(tiny_run).parts), path.read_bytes()
            )
    found = latest_checkpoint(folder)
    assert found is not None
    step = TrainingStep(found.config, torch.device("cpu"), 9)
    load_model(found, step.model)
    return folder, step, found


def latest_step(run_dir: str) -> int | None:
    found = latest_checkpoint(run_dir)
    return None if found is None else found.progress.step


def test_a_torn_checkpoint_in_the_store_gives_way_one_torn_on_its_way_does_not(
    proxy: FaultProxy, run: tuple[str, TrainingStep, Checkpoint], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir, step, before = run
    uri = save_checkpoint(run_dir, step, replace(before.progress, step=4), keep=2)
    for name in ("state.json", "model.pt", "optimizer.pt"):
        proxy.inject(Fault("truncate", key=f"/step-00000004/{name}"))
    assert latest_step(run_dir) == 4
    assert len(warnings(caplog)) == 3
    assert "passing over" not in caplog.text
    model = storage.read_bytes(storage.join(uri, "model.pt"))
    storage.write_bytes(storage.join(uri, "model.pt"), model[: len(model) // 2])
    assert latest_step(run_dir) == 3
    assert re.search(
        r"passing over the checkpoint \S+/step-00000004\S*: .*model\.pt\S*: damaged", caplog.text
    )


@pytest.mark.parametrize("name", ["model.pt", "optimizer.pt", "state.json"])
def test_a_store_that_fails_during_a_checkpoint(
    proxy: FaultProxy,
    run: tuple[str, TrainingStep, Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    run_dir, step, before = run
    progress = replace(before.progress, step=4)
    with monkeypatch.context():
        proxy.inject(Fault("slow_down", key=f"/step-00000004/{name}", times=3))
        save_checkpoint(run_dir, step, progress, keep=2)
        assert latest_step(run_dir) == 4
    with give_up():
        proxy.inject(Fault("slow_down", method="PUT", key=f"/step-00000005/{name}", times=None))
        with pytest.raises(
            RunError, match=rf"^s3://faulty/.*{name}\S*: could not write it \(.*SLOW_DOWN"
        ) as caught:
            save_checkpoint(run_dir, step, replace(before.progress, step=5), keep=2)
        assert "\n" not in str(caught.value)
    proxy.clear()
    assert latest_step(run_dir) == 4
    restored = initial_learner(before.config)
    load_model(open_checkpoint(storage.join(run_dir, "checkpoints", "step-00000004")), restored)
    for key, value in step.model.state_dict().items():
        assert torch.equal(restored.state_dict()[key], value)


def test_old_checkpoints_that_cannot_be_deleted_stay(
    proxy: FaultProxy,
    run: tuple[str, TrainingStep, Checkpoint],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_dir, step, before = run
    with give_up():
        proxy.inject(Fault("deny", method="POST", key=r"\?delete", times=None))
        save_checkpoint(run_dir, step, replace(before.progress, step=4), keep=1)
        assert "step-00000004 is written, but older ones are left" in caplog.text
    proxy.clear()
    assert latest_step(run_dir) == 4
    assert storage.list_folder(storage.join(run_dir, "checkpoints")) == ["step-00000003", "step-00000004"]
    save_checkpoint(run_dir, step, replace(before.progress, step=5), keep=1)
    assert storage.list_folder(storage.join(run_dir, "checkpoints")) == ["step-00000005"]


def test_the_optimiser_comes_back_from_a_store_that_often_fails(
    proxy: FaultProxy, run: tuple[str, TrainingStep, Checkpoint]
) -> None:
    run_dir, _, _ = run
    for kind in ("error", "reset", "truncate"):
        proxy.inject(Fault(kind, probability=0.2, times=None))
    found = latest_checkpoint(run_dir)
    assert found is not None
    restore(found, TrainingStep(found.config, torch.device("cpu"), 9))


def test_logs_over_a_store_that_fails(proxy: FaultProxy, folder: str, direct: Callable[[str], str]) -> None:
    log = RunLog(folder, 0)
    for number in range(1, 4):
        log.write(number, {"loss": float(number)})
    for kind in ("error", "reset", "lose_answer", "deny"):
        proxy.inject(Fault(kind, probability=0.3, times=None))
    log.sync()
    assert [line["step"] for line in read_log(folder)] == [1, 2, 3]
    proxy.clear()
    with give_up():
        log.write(4, {"loss": 4.0})
        proxy.inject(Fault("error", method="PUT", times=None))
        with pytest.raises(RunError, match=r"could not write it"):
            log.sync()
    whole = storage.read_bytes(direct(storage.join(folder, "metrics.jsonl"))).decode().splitlines()
    assert [json.loads(line)["step"] for line in whole] == [1, 2, 3]
    proxy.clear()
    log.close()
    assert [line["step"] for line in read_log(folder)] == [1, 2, 3, 4]
