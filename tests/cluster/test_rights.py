"""What the account scripts grant is what a run's calls need, and no more.

The calls are those of `carl_ray.storage` and of Ray Train's own storage. Requests to AWS go to moto, which records
them; Google's to a small server of its own, which answers 403 where a permission is missing.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from pyarrow import fs
from ray.train import Checkpoint
from ray.train.v2._internal.execution.storage import StorageContext, delete_fs_path

from carl_ray import storage
from carl_ray.data.listing import list_videos
from carl_ray.errors import RunError

FOLDER = Path(__file__).parents[2] / "cluster"

LARGE = 6 << 20
"""Bytes that S3 takes in parts only from where they are more."""


def use_as_a_run_does(bucket: str, tmp_path: Path) -> None:
    """Every kind of call that indexing, training, embedding and cleaning up make.

    Args:
        bucket: URI of the bucket without query, and its query.
    """
    root, _, query = bucket.partition("?")

    def uri(name: str) -> str:
        return f"{root}{name}?{query}"

    storage.write_bytes(uri("/videos/train/a.mp4"), b"video")
    assert [file["video_id"] for file in list_videos(*storage.resolve(uri("")), uri(""))[0]] == [
        "videos/train/a.mp4"
    ]
    assert not storage.exists(uri("/manifest.parquet")) and storage.list_folder(uri("/runs")) == []
    for content in (b"old", bytes(LARGE)):
        storage.write_bytes(uri("/manifest.parquet"), content)
        assert storage.read_bytes(uri("/manifest.parquet")) == content
    assert storage.is_file(uri("/manifest.parquet"))

    filesystem, path = storage.resolve(uri("/runs"))
    context = StorageContext(path, "first", storage_filesystem=filesystem)
    (tmp_path / "model.pt").write_bytes(bytes(LARGE))
    kept = context.persist_current_checkpoint(Checkpoint.from_directory(tmp_path), "checkpoint-1")
    with filesystem.open_input_file(f"{kept.path}/model.pt") as file:
        assert file.size() == LARGE and file.read(9) == bytes(9)
    delete_fs_path(fs=filesystem, fs_path=kept.path)
    storage.delete(uri("/runs/first"))
    assert storage.list_folder(uri("/runs")) == []


# --- AWS ------------------------------------------------------------------------------------------------------------

AWS_ACTIONS = {
    ("HEAD", "bucket"): "s3:ListBucket",
    ("GET", "bucket"): "s3:ListBucket",
    ("HEAD", "object"): "s3:GetObject",
    ("GET", "object"): "s3:GetObject",
    ("PUT", "object"): "s3:PutObject",
    ("POST", "object"): "s3:PutObject",  # begins or completes an upload in parts
    ("DELETE", "object"): "s3:DeleteObject",
    ("POST", "bucket"): "s3:DeleteObject",  # several objects at once
}
AWS_WHEN_AN_UPLOAD_FAILS = {"s3:AbortMultipartUpload"}


def test_aws_grants_what_is_called_and_no_more(s3_endpoint: str, tmp_path: Path) -> None:
    control = f"http://{s3_endpoint}/moto-api/recorder"
    query = f"scheme=http&endpoint_override={s3_endpoint}&region=us-east-1"
    filesystem, _ = fs.FileSystem.from_uri(f"s3://rights?{query}&allow_bucket_creation=true")
    filesystem.create_dir("rights")

    def post(action: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{control}/{action}", method="POST")).close()

    post("reset-recording")
    post("start-recording")
    try:
        use_as_a_run_does(f"s3://rights?{query}", tmp_path)
    finally:
        post("stop-recording")
    with urllib.request.urlopen(f"{control}/download-recording") as answer:
        requests = [json.loads(line) for line in answer.read().decode().splitlines()]
    needed = set()
    for request in requests:
        url = urlsplit(request["url"])
        kind = "object" if url.path.strip("/").partition("/")[2] else "bucket"
        assert not {"acl", "policy", "location"} & parse_qs(url.query, keep_blank_values=True).keys()
        needed.add(AWS_ACTIONS[request["method"], kind])
    stack = yaml.safe_load((FOLDER / "aws_account.yaml").read_text())
    statements = stack["Resources"]["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    granted = {action for statement in statements for action in statement["Action"]}
    assert granted == needed | AWS_WHEN_AN_UPLOAD_FAILS
    # Those on objects are granted on objects, that on the bucket is on the bucket.
    for statement in statements:
        on_objects = statement["Resource"]["Fn::Sub"].endswith("/*")
        assert on_objects == ("s3:ListBucket" not in statement["Action"])


# --- Google Cloud ---------------------------------------------------------------------------------------------------

GOOGLE_ROLES = {
    # As Google's reference of roles has them, without what has to do with folders and other services.
    "roles/storage.objectUser": {
        "storage.objects.create",
        "storage.objects.delete",
        "storage.objects.get",
        "storage.objects.list",
        "storage.objects.update",
        "storage.multipartUploads.abort",
        "storage.multipartUploads.create",
        "storage.multipartUploads.list",
        "storage.multipartUploads.listParts",
    },
    "roles/storage.legacyBucketReader": {
        "storage.buckets.get",
        "storage.objects.list",
        "storage.multipartUploads.list",
    },
}


class Google(ThreadingHTTPServer):
    """A bucket `rights` that answers 403 to whoever lacks the permission for a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.grant(set())

    def grant(self, permissions: set[str]) -> None:
        """Begins anew with these permissions."""
        self.granted, self.used = permissions, set[str]()
        self.objects: dict[str, bytes] = {}
        self.described: dict[str, Any] = {}
        self.uploads: dict[str, bytearray] = {}


def serve(port: Connection) -> None:
    """In a process of its own: Arrow waits for some answers without letting others in its process run."""
    server = Google()
    port.send(server.server_port)
    server.serve_forever()


@dataclass(frozen=True)
class Bucket:
    """The bucket of a server."""

    endpoint: str

    def uri(self, path: str = "") -> str:
        return f"gs://anonymous@rights{path}?scheme=http&endpoint_override={self.endpoint}"

    def grant(self, roles: Iterable[str]) -> None:
        """Makes the bucket empty, and gives its user these roles."""
        permissions = set[str]().union(*(GOOGLE_ROLES[role] for role in roles))
        content = json.dumps(sorted(permissions)).encode()
        urllib.request.urlopen(f"http://{self.endpoint}/grant", content).close()

    def used(self) -> set[str]:
        """Permissions that requests have needed."""
        with urllib.request.urlopen(f"http://{self.endpoint}/used") as answer:
            return set(json.load(answer))


class Request(BaseHTTPRequestHandler):
    """One request of the JSON API, as far as Arrow uses it."""

    protocol_version = "HTTP/1.1"
    server: Google

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def may(self, permission: str) -> bool:
        self.server.used.add(permission)
        if permission in self.server.granted:
            return True
        self.answer(403, {"error": {"code": 403, "message": f"no {permission}"}})
        return False

    def metadata(self, name: str) -> dict[str, Any]:
        return {
            **{"kind": "storage#object", "bucket": "rights", "name": name, "generation": "1"},
            **{"metageneration": "1", "size": str(len(self.server.objects[name]))},
            **self.server.described.get(name, {}),
            **{"updated": "2026-01-01T00:00:00Z", "timeCreated": "2026-01-01T00:00:00Z"},
        }

    def store(self, name: str, content: bytes) -> None:
        if name not in self.server.objects or self.may("storage.objects.delete"):
            self.server.objects[name] = content
            self.answer(200, self.metadata(name))

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/used":
            return self.answer(200, sorted(self.server.used))
        if self.path == "/grant":
            self.server.grant(set(json.loads(body)))
            return self.answer(200)
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        _, _, place = url.path.partition("/b/rights")
        name = unquote(place.removeprefix("/o").removeprefix("/"))
        if "/b/" not in url.path:  # the older API, for contents
            name = unquote(url.path.removeprefix("/rights/"))
            query["alt"] = "media"
        objects = self.server.objects
        match self.command:
            case "GET" if not place and "/b/" in url.path:
                if self.may("storage.buckets.get"):
                    self.answer(200, {"kind": "storage#bucket", "name": "rights", "id": "rights"})
            case "GET" if not name:
                if self.may("storage.objects.list"):
                    found = sorted(key for key in objects if key.startswith(query.get("prefix", "")))
                    self.answer(200, {"kind": "storage#objects", "items": [*map(self.metadata, found)]})
            case "GET":
                if self.may("storage.objects.get"):
                    if name not in objects:
                        self.answer(404, {"error": {"code": 404, "message": "none"}})
                    elif query.get("alt") == "media":
                        self.content(objects[name])
                    else:
                        self.answer(200, self.metadata(name))
            case "DELETE":
                if self.may("storage.objects.delete"):
                    self.answer(200 if objects.pop(name, None) is not None else 404)
            case "POST":
                if not self.may("storage.objects.create"):
                    return
                if query["uploadType"] == "resumable":
                    self.server.uploads[query["name"]] = bytearray()
                    self.answer(
                        200, Location=f"http://{self.headers['Host']}{self.path}&upload_id={query['name']}"
                    )
                else:
                    boundary = re.findall(r'boundary="?([^";]+)', self.headers["Content-Type"])[0].encode()
                    described, part = (
                        each.partition(b"\r\n\r\n")[2] for each in body.split(b"--" + boundary)[1:3]
                    )
                    self.server.described[query["name"]] = json.loads(described)
                    self.store(query["name"], part[:-2])
            case "PUT":
                upload = self.server.uploads[query["upload_id"]]
                upload += body
                if self.headers["Content-Range"].endswith("/*"):
                    self.answer(308, Range=f"bytes=0-{len(upload) - 1}")
                else:
                    self.store(query["upload_id"], bytes(upload))

    def content(self, whole: bytes) -> None:
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), int(asked[2] or len(whole) - 1) + 1) if asked else (0, len(whole))
        part = whole[start:stop]
        at = f"bytes {start}-{start + len(part) - 1}/{len(whole)}"
        self.answer(206 if asked else 200, part, Content_Range=at, x_goog_generation="1")

    do_GET = do_PUT = do_POST = do_DELETE = do_any  # noqa: N815


def granted_by(script: str) -> set[str]:
    """The roles that a script gives the nodes on the bucket."""
    text = (FOLDER / script).read_text().replace("\\\n", " ")
    return set(re.findall(r"buckets add-iam-policy-binding .*?--role=[\"']?(roles/\S+)", text)) | {
        role
        for loop, body in re.findall(r"for role in (.*?); do(.*?)done", text, re.DOTALL)
        if "buckets add-iam-policy-binding" in body
        for role in loop.split()
    }


@pytest.fixture(scope="module")
def google() -> Iterator[Bucket]:
    context = multiprocessing.get_context("spawn")
    port, theirs = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    yield Bucket(f"127.0.0.1:{port.recv()}")
    server.kill()
    server.join()


@pytest.mark.parametrize("script", ["gcp_account.sh", "kuberay/gke_account.sh"])
def test_google_grants_what_is_called_and_no_more(script: str, google: Bucket, tmp_path: Path) -> None:
    roles = granted_by(script)
    google.grant(roles)
    use_as_a_run_does(google.uri(), tmp_path)
    for role in roles:  # none could be left out
        others = set[str]().union(*(GOOGLE_ROLES[other] for other in roles - {role}))
        assert google.used() - others, role


def test_without_the_bucket_itself_ray_train_cannot_begin(google: Bucket) -> None:
    google.grant({"roles/storage.objectUser"})
    filesystem, path = storage.resolve(google.uri("/runs"))
    with pytest.raises(OSError, match=r"storage\.buckets\.get"):
        StorageContext(path, "first", storage_filesystem=filesystem)


def test_without_its_objects_nothing_is_written(google: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "DENIAL_SECONDS", 0.0)
    google.grant({"roles/storage.legacyBucketReader"})
    with pytest.raises(RunError, match="could not write"):
        storage.write_bytes(google.uri("/a"), b"a")
    assert google.used() == {"storage.objects.create"}
