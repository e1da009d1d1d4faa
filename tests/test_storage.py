"""`carl_ray.storage` on the local disk, and what its messages let out. (Object storage: the tests over S3.)"""

from __future__ import annotations

import errno
import os
from pathlib import Path
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
    ],
)
def test_public_uri_keeps_secrets(uri: str, public: str) -> None:
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
    ],
)
def test_a_uri_that_cannot_be_resolved_is_one_line_without_secrets(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=f"expected a path or a file, s3 or gs URI .*{message}") as caught:
        storage.resolve(uri)
    text = str(caught.value)
    assert text.startswith(storage.public_uri(uri))
    assert not any(part in text for part in ("\n", "SECRET", "SE/", "CRET"))


def test_a_store_that_cannot_be_reached_is_no_mistake_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: str) -> None:
        raise OSError("When resolving region for bucket 'b': NETWORK_CONNECTION")

    monkeypatch.setattr(storage, "_bucket", unreachable)
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
def test_azures_uris_name_no_secret_and_resolve(uri: str) -> None:
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
    storage.delete_folder(folder)
    storage.delete_folder(folder)
    assert not storage.exists(folder)
    assert (tmp_path / "new").is_dir()


def test_reading_what_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
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


def test_other_failures_of_the_store_are_one_line(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "file"), b"x")
    inside_a_file = str(tmp_path / "file" / "x")
    for action in (
        lambda: storage.write_bytes(inside_a_file, b""),
        lambda: storage.read_bytes(inside_a_file),
        lambda: storage.read_bytes(str(tmp_path)),
        lambda: storage.write_bytes(str(tmp_path), b""),
        lambda: storage.list_folder(str(tmp_path / "file")),
        lambda: storage.delete_folder(str(tmp_path / "file")),
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
def test_no_permission_on_a_bucket_says_where_to_look(error: OSError) -> None:
    found = storage.storage_error(error, "s3://K:SECRET@b/x", "read")
    assert str(found).startswith("s3://b/x: could not read it: no permission; check the credentials")
    assert "403" not in str(storage.storage_error(OSError("slow"), "s3://b/x", "read"))


def test_home_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path))
    assert storage.home() == tmp_path
    monkeypatch.delenv("CARL_RAY_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.home() == tmp_path / "carl_ray"


def test_absolute_names_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/b") == str(tmp_path / "a" / "b")
    assert storage.absolute(f"file://{tmp_path}/a") == f"{tmp_path}/a"
    for uri in ("/a/b", "s3://bucket/a?endpoint_override=h:1"):
        assert storage.absolute(uri) == uri
