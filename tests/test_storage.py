"""`carl_ray.storage` on the local disk; retries and messages. (Object storage: the tests over S3.)"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import fs

from carl_ray import storage
from carl_ray.errors import RunError, UserError


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("/local/path?key=1@2", "/local/path?key=1@2"),
        ("relative", "relative"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("s3://bucket/a@b:c", "s3://bucket/a@b:c"),
        ("s3://bucket:9000/a@b", "s3://bucket:9000/a@b"),
        ("s3://USER:SECRET@bucket/a@b", "s3://bucket/a@b"),
        ("s3://SECRET@bucket", "s3://bucket"),
        ("s3://USER:SE/CR/ET@bucket/a", "s3://bucket/a"),
        ("s3://USER:SE@CRET@bucket/a", "s3://bucket/a"),
        ("s3://bucket/a?region=eu&scheme=http", "s3://bucket/a?region=eu&scheme=http"),
        ("s3://U:SECRET@b/a?region=eu&session_token=SECRET&x=1", "s3://b/a?region=eu&x=1"),
        ("s3://b/a?secret_key=SECRET&access_key=SECRET", "s3://b/a"),
        ("s3://b/a?X-Amz-Signature=SECRET&X-Amz-Credential=SECRET&x=1", "s3://b/a?x=1"),
        ("s3://b/a?Password=SECRET&AWSAccessKeyId=SECRET&sig=SECRET", "s3://b/a"),
        ("gs://b/a#SECRET", "gs://b/a"),
        (
            "s3://b/a?api_key=SECRET&apikey=SECRET&key=SECRET&secret_key_1=SECRET&AccountKey=SECRET",
            "s3://b/a",
        ),
        ("s3://b/a?keyframe=1&keyframes=2&x=1", "s3://b/a?keyframe=1&keyframes=2&x=1"),
        ("git+ssh://git@github.com/org/x.git@v1", "git+ssh://git@github.com/org/x.git@v1"),
        ("x @ git+ssh://git@github.com/org/x.git", "x @ git+ssh://git@github.com/org/x.git"),
        ("git+ssh://git:SECRET@github.com/org/x.git", "git+ssh://git@github.com/org/x.git"),
        ("git+https://SECRET@github.com/org/x.git@v1", "git+https://github.com/org/x.git@v1"),
    ],
)
def test_public_uri_removes_credentials(uri: str, public: str) -> None:
    assert storage.public_uri(uri) == public
    assert storage.public_uri(public) == public


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://USER:SECRET@host/x", "Unrecognized filesystem type"),
        ("s3://USER:SE/CRET@bucket/x", "Cannot parse"),
        ("s3://two words/x", "Cannot parse"),
        ("s3://USER:SECRET@bucket/x?secret_key=SECRET", "Unexpected query parameter"),
        ("gs://bucket/x?sort=1", "Unexpected query parameter"),
        ("file://relative", "cannot be relative"),
        ("hf://lab/x", "an encoder on the hub, for --checkpoint and --model.init_from"),
    ],
)
def test_a_uri_that_cannot_be_resolved_is_one_line_without_secrets(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=f"expected a path or a file, s3 or gs URI .*{message}") as caught:
        storage.resolve(uri)
    text = str(caught.value)
    assert text.startswith(storage.public_uri(uri))
    assert not any(part in text for part in ("\n", "SECRET", "SE/", "CRET"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "caf\udce9/x",
            r"caf\\udce9/x: its name is not UTF-8, or has a NUL: rename it$",
        ),
        ("a\0b", r"a\\0b: its name is not UTF-8, or has a NUL"),
        ("s3://K:S@bucket/caf\udce9", r"^s3://bucket/caf\\udce9: its name is not UTF-8"),
    ],
)
def test_a_path_that_no_file_has_is_one_line(name: str, message: str) -> None:
    for function in (storage.resolve, storage.exists, storage.read_bytes):
        with pytest.raises(UserError, match=message) as caught:
            function(name)
        str(caught.value).encode()


def test_a_working_folder_that_is_not_utf_8_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "caf\udce9").mkdir()
    monkeypatch.chdir(tmp_path / "caf\udce9")
    with pytest.raises(UserError, match=r"caf\\udce9/videos: its name is not UTF-8"):
        storage.absolute("videos")


def test_an_unreachable_store_is_a_run_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: str) -> None:
        raise OSError("When resolving region for bucket 'b': NETWORK_CONNECTION")

    monkeypatch.setattr(storage, "_bucket", unreachable)
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(
        RunError, match=r"^s3://b/a: could not reach it \(When resolving .* NETWORK_CONNECTION\)$"
    ):
        storage.resolve("s3://b/a")


@pytest.mark.parametrize(
    "uri",
    [
        "abfs://account.blob.core.windows.net/container/a%20b/c.mp4",
        "abfss://container@account.dfs.core.windows.net/a%20b/c.mp4",
    ],
)
def test_azure_uris_hold_no_credentials_and_resolve(uri: str) -> None:
    assert not storage.has_secret(uri)
    assert storage.public_uri(uri) == uri
    assert storage.resolve(uri)[1] == "container/a b/c.mp4"
    assert storage.public_uri(uri.replace("//container@", "//user:key@")).count("key") == 0


def test_resolves_paths_and_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri, path in [
        ("a b?c", tmp_path / "a b?c"),
        ("~/x", tmp_path / "x"),
        ("~nobody-of-this-name/x", tmp_path / "~nobody-of-this-name" / "x"),
        ("file:///a/b", Path("/a/b")),
        (str(tmp_path), tmp_path),
    ]:
        filesystem, found = storage.resolve(uri)
        assert isinstance(filesystem, fs.LocalFileSystem)
        assert found == str(path)
        assert not storage.is_remote(uri)
    filesystem, found = storage.resolve("s3://K:S@bucket/a/b?endpoint_override=127.0.0.1:1&scheme=http")
    assert isinstance(filesystem, fs.S3FileSystem)
    assert found == "bucket/a/b"
    assert storage.is_remote("s3://bucket")


@pytest.mark.parametrize(
    ("uri", "names", "joined"),
    [
        ("/a", ["b"], "/a/b"),
        ("/a/", ["b", "c"], "/a/b/c"),
        ("/", ["b"], "/b"),
        ("a?b", ["c"], "a?b/c"),
        ("file:///a", ["b"], "file:///a/b"),
        ("s3://b/a?x=1&y=2", ["c", "d"], "s3://b/a/c/d?x=1&y=2"),
        ("s3://b", ["c"], "s3://b/c"),
    ],
)
def test_join(uri: str, names: list[str], joined: str) -> None:
    assert storage.join(uri, *names) == joined


def test_writes_reads_lists_deletes(tmp_path: Path) -> None:
    folder = str(tmp_path / "new" / "folder")
    uri = storage.join(folder, "file")
    assert not storage.exists(uri)
    assert storage.list_folder(folder) == []
    storage.write_bytes(uri, b"first")
    storage.write_bytes(uri, b"second")
    storage.write_bytes(storage.join(folder, "another"), b"")
    assert storage.read_bytes(uri) == b"second"
    assert storage.read_bytes(f"file://{uri}") == b"second"
    assert storage.exists(uri)
    # No temporary file is left behind.
    assert storage.list_folder(folder) == ["another", "file"]
    storage.delete(folder)
    storage.delete(folder)
    assert not storage.exists(folder)
    assert (tmp_path / "new").is_dir()


def test_a_folder_may_come_and_go_while_it_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            folder.mkdir()
            (folder / "file").touch()
            shutil.rmtree(folder)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        found = {tuple(storage.list_folder(str(folder))) for _ in range(5000)}
    finally:
        done.set()
        thread.join()
    assert found <= {(), ("file",)}


def test_a_folder_that_is_deleted_while_files_are_written_to_it_is_made_again(tmp_path: Path) -> None:
    folder, is_done = tmp_path / "run" / "claims", threading.Event()

    def delete() -> None:
        while not is_done.is_set():
            for path in (folder, folder.parent):
                with suppress(OSError):
                    path.rmdir()
            time.sleep(random.random() * 1e-4)

    with ThreadPoolExecutor(1) as pool:
        deleted = pool.submit(delete)
        try:
            for _ in range(300):
                storage.write_bytes(str(folder / "file"), b"content")
                (folder / "file").unlink()
        finally:
            is_done.set()
        deleted.result()


def test_two_may_delete_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    for _ in range(20):
        folder.mkdir()
        for number in range(100):
            (folder / str(number)).touch()
        with ThreadPoolExecutor(2) as threads:
            for deleted in [threads.submit(storage.delete, str(folder)) for _ in range(2)]:
                deleted.result()
        assert not folder.exists()


def test_reading_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing: no such file$"):
        storage.read_bytes(str(tmp_path / "missing"))


def fail_with(code: int) -> Any:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            errno.ENOSPC,
            r"could not write it: no room; free some or choose another place \(.*No space left",
        ),
        (errno.EDQUOT, r"could not write it: no room; free some .*quota exceeded"),
        (errno.EACCES, r"could not write it: no permission \(.*Permission denied"),
        (errno.EIO, r"could not write it \(.*Input/output error"),
    ],
)
def test_a_failed_write_leaves_the_old_content_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, code: int, message: str
) -> None:
    uri = str(tmp_path / "step-00000403")  # a number that is also a status
    storage.write_bytes(uri, b"old")
    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", fail_with(code))
    else:
        monkeypatch.setattr(Path, "replace", fail_with(code))
    with pytest.raises(RunError, match=message) as caught:
        storage.write_bytes(uri, b"new")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_folder(str(tmp_path)) == ["step-00000403"]


def test_a_log_may_grow_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"one, two"
    file = SimpleNamespace(size=lambda: 3, read=lambda: content)
    system = SimpleNamespace(open_input_file=lambda path: nullcontext(file))
    monkeypatch.setattr(storage, "resolve", lambda uri: (system, uri))
    assert storage.read_bytes("/log") == content
    content = b"o"
    with pytest.raises(RunError, match=r"could not read it \(expected 3 bytes, got 1\)"):
        storage.read_bytes("/log")


@dataclass
class Clock:
    """Time that passes only in sleep."""

    now: float = 0.0
    waits: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(storage, "time", found)
    return found


def test_a_bucket_that_does_not_exist_is_a_mistake(s3_endpoint: str) -> None:
    query = f"endpoint_override={s3_endpoint}&scheme=http"
    for attempt in (
        lambda: storage.check_bucket(f"s3://nobody-made-it/out?{query}"),
        lambda: storage.write_bytes(f"s3://nobody-made-it/out/a?{query}", b"a"),
    ):
        with pytest.raises(RunError, match=r"^s3://nobody-made-it/out.*there is no (such )?bucket") as raised:
            attempt()
        assert raised.value.status == 2
    storage.check_bucket("relative/folder")


@pytest.mark.parametrize(
    ("text", "patience"),
    [
        ("AWS Error UNKNOWN (HTTP status 500) during HeadObject operation: No response body.", 120.0),
        ("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.", 120.0),
        (
            "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, Transferred a partial file",
            120.0,
        ),
        ("AWS Error UNKNOWN (HTTP status 429) during HeadObject operation: No response body.", 120.0),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)", 120.0),
        ("expected 30403 bytes, got 40001", 120.0),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", 30.0),
        ("AWS Error SIGNATURE_DOES_NOT_MATCH during GetObject operation: …", 30.0),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", 30.0),
        ("google::cloud::Status(PERMISSION_DENIED: Permanent error, with a last message of …)", 30.0),
        ("AWS Error NO_SUCH_BUCKET during PutObject operation: The specified bucket does not exist", 0.0),
        ("Bucket 'b' not found", 0.0),
        ("Not a regular file: 'b/folder'", 0.0),
    ],
)
def test_retry_time_by_failure(clock: Clock, text: str, patience: float) -> None:
    def fail() -> None:
        raise OSError(f"When getting information for key 'step-00000403' in bucket 'b': {text}")

    with pytest.raises(OSError, match="step-00000403"):
        storage.persistently("s3://b/step-00000403", "read", fail)
    assert sum(clock.waits) == pytest.approx(patience)
    assert all(wait <= min(10.0, 0.5 * 2**number) for number, wait in enumerate(clock.waits))
    # Full jitter: not twice the same.
    assert len(set(clock.waits)) == len(clock.waits)


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("s3://b/a", FileNotFoundError("x")),
        ("s3://b/a", IsADirectoryError("x")),
        ("s3://b/a", NotADirectoryError("x")),
        ("/a", OSError(errno.EIO, "x")),
        ("file:///a", OSError(errno.EIO, "x")),
    ],
)
def test_absent_files_and_local_disks_are_not_retried(clock: Clock, uri: str, error: OSError) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        storage.persistently(uri, "read", fail)
    assert clock.waits == []


def test_a_denial_among_other_failures_has_its_own_deadline(clock: Clock) -> None:
    def fail() -> None:
        raise OSError("HTTP status 500" if clock.now < 40 else "AWS Error ACCESS_DENIED during GetObject")

    with pytest.raises(OSError, match="ACCESS_DENIED"):
        storage.persistently("s3://b/a", "read", fail)
    assert 70 <= sum(clock.waits) < 80


def test_a_long_attempt_is_retried(clock: Clock) -> None:
    """A large upload may take longer than the retry time, which counts from the first failure."""
    attempts = []

    def slow() -> str:
        attempts.append(clock.now)
        clock.now += 500
        if len(attempts) == 1:
            raise OSError("timeout")
        return "done"

    assert storage.persistently("gs://b/a", "write", slow) == "done"
    assert attempts == [0.0, 500 + clock.waits[0]]


def test_other_failures_of_the_store_are_one_line(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "file"), b"x")
    inside_a_file = str(tmp_path / "file" / "x")
    for action in (
        lambda: storage.write_bytes(inside_a_file, b""),
        lambda: storage.read_bytes(inside_a_file),
        lambda: storage.read_bytes(str(tmp_path)),
        lambda: storage.write_bytes(str(tmp_path), b""),
        lambda: storage.list_folder(str(tmp_path / "file")),
    ):
        with pytest.raises(RunError, match=r"could not (write|read|list|delete) it \(") as caught:
            action()
        assert "\n" not in str(caught.value)
    assert storage.list_folder(str(tmp_path)) == ["file"]


@pytest.mark.parametrize(
    "error",
    [
        OSError("When reading 'x' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject operation"),
        OSError("Permanent error: status 403 Forbidden"),
        PermissionError("no"),
    ],
)
def test_denied_access_to_a_bucket_names_credentials_and_policy(error: OSError) -> None:
    found = storage.storage_error(error, "s3://K:SECRET@b/x", "read")
    assert str(found).startswith("s3://b/x: could not read it: no permission; check the credentials")
    assert "403" not in str(storage.storage_error(OSError("slow"), "s3://b/x", "read"))


def test_home_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path))
    assert storage.home() == tmp_path
    monkeypatch.delenv("CARL_RAY_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.home() == tmp_path / "carl_ray"


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/b") == str(tmp_path / "a" / "b")
    assert storage.absolute(f"file://{tmp_path}/a") == f"{tmp_path}/a"
    for uri in ("/a/b", "s3://bucket/a?endpoint_override=h:1"):
        assert storage.absolute(uri) == uri
