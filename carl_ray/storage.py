"""Files on local disks and object stores by URI: atomic writes, retries, one-line errors.

Local paths, `s3://bucket/key?endpoint_override=host:port&scheme=http` and `gs://bucket/key` work alike. Credentials
come from the environment; those inside a URI are used, but `public_uri` removes them from all output. Functions that
look at files take the address of a part of one, too (`carl_ray.address`), of which `read_bytes` reads no more.

Transient failures of an object store (5xx, throttling, a connection that is reset, silent or closed early) are retried
for `PATIENCE_SECONDS`, with exponential backoff, full jitter and a warning at each wait; denied access for
`DENIAL_SECONDS`. Local disks are not retried.

Longer than 400 lines: all functions resolve URIs, retry and word their errors in one way.
"""

from __future__ import annotations

import csv
import errno
import io
import itertools
import logging
import os
import random
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import unquote

from pyarrow import ArrowException, NativeFile, fs

from carl_ray import address
from carl_ray.errors import NoBucketError, OutageError, RunError, UserError, one_line

PATIENCE_SECONDS = 120.0
"""Retries of an object store end this long after its first failure; `set_patience` changes it."""
DENIAL_SECONDS = 30.0
"""The same for denied access: new permissions and renewed tokens take a moment to propagate."""
HUB = "hf://"
"""Scheme of encoders on the Hugging Face hub (`is_on_hub`)."""

_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 10.0
# Timeouts of one attempt, for a connection and without a byte, and pyarrow's own attempts at a request.
_CONNECT_SECONDS = 5.0
_SILENCE_SECONDS = 5.0
_ATTEMPTS_OF_A_REQUEST = 3
_CREATE_ATTEMPTS = 20

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")
# Not the global generator: failures of a store must not change what a run draws.
_JITTER = random.SystemRandom()
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|Bucket '[^']*' not found")
_ABSENT = re.compile(rf"{_NO_BUCKET.pattern}|HTTP status 404|Not a regular file")
_DENIED = re.compile(
    r"(AWS Error |Status\()\w*(DENIED|UNAUTHENTICATED|SIGNATURE|TOKEN|ACCESS_KEY|UNRECOGNIZED|EXPIRED|SKEWED)"
    r"|\bstatus 40[0135]\b"
)
_SECRET = re.compile(r"key([_-]?id)?\d*$|token|secret|password|credential|signature|^sig$", re.IGNORECASE)
# Schemes whose user name is public; searched, as in "package @ git+ssh".
_USER_IS_PUBLIC = re.compile(r"\b(abfss?|ssh)$")


def is_remote(uri: str) -> bool:
    """Whether a URI names an object store, not a local path."""
    return "://" in uri and not uri.startswith("file://")


def is_on_hub(uri: str) -> bool:
    """Whether a URI names an encoder on the Hugging Face hub, whose files are no store's: `hf://OWNER/NAME`."""
    return uri.startswith(HUB)


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem that a URI names, and the path in it.

    Raises:
        UserError: the scheme is unknown or the URI malformed, or no file has such a path.
        RunError: the store cannot be reached, which opening a bucket requires: it looks up the region.
    """
    uri = address.file_of(uri)
    is_path = "://" not in uri
    # `Path.expanduser` raises for `~name` of a user who is not there.
    path = str(Path(os.path.expanduser(uri)).absolute()) if is_path else uri  # noqa: PTH111
    shown = path.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    if shown != path:
        raise UserError(f"{public_uri(shown)}: its name is not UTF-8, or has a NUL: rename it")
    if is_path:
        return fs.LocalFileSystem(), path
    try:
        if is_on_hub(uri):
            raise ValueError("an encoder on the hub, for --checkpoint and --model.init_from")
        if has_secret(uri) or not is_remote(uri):
            return persistently(uri, "reach", partial(_open_uri, uri))
        scheme, _, rest = uri.partition("://")
        place, _, query = rest.partition("?")
        bucket, _, path = place.partition("/")
        filesystem, root = persistently(uri, "reach", lambda: _bucket(scheme, bucket, query))
        # Azure's root is empty where the container is in the path.
        path = f"{root.rstrip('/')}/{unquote(path)}".strip("/")
        if "//" in path:
            raise ValueError("nothing between two slashes of its path")
        return filesystem, path
    except OSError as error:
        raise storage_error(error, uri, "reach") from None
    except (ArrowException, ValueError) as error:
        # pyarrow quotes the URI, secrets and all.
        reason = one_line(error).replace(uri, public_uri(uri))
        raise UserError(f"{public_uri(uri)}: expected a path or a file, s3 or gs URI ({reason})") from None


@lru_cache(maxsize=64)
def _bucket(scheme: str, bucket: str, query: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a bucket, cached: for S3, making it costs a request for the region."""
    return _open_uri(f"{scheme}://{bucket}" + (f"?{query}" if query else ""))


def _open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """Filesystem and path of a URI, with timeouts."""
    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in uri:
        # Google's client would retry silently for 15 minutes.
        uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={_SILENCE_SECONDS:.0f}"
    filesystem, path = fs.FileSystem.from_uri(uri)
    if isinstance(filesystem, fs.S3FileSystem):
        # A URI has no fields for these; pickling gives the options that it had.
        _, (options,) = filesystem.__reduce__()
        limits = {
            "connect_timeout": _CONNECT_SECONDS,
            "request_timeout": _SILENCE_SECONDS,
            "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS_OF_A_REQUEST),
            # A small file is one request: no parts of an upload can be left behind.
            "allow_delayed_open": True,
        }
        filesystem = fs.S3FileSystem(**(options | limits))
    return filesystem, path


def object_store_options(uri: str) -> tuple[str, dict[str, str]]:
    """A URI without query and credentials, and what they say, for libraries that use Rust's `object_store`.

    Local paths become absolute. Credentials that the URI does not hold are looked up by the library, as pyarrow does.
    """
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        return path, {}
    options = {
        "connect_timeout": f"{_CONNECT_SECONDS:.0f}s",
        "client_retry_timeout": f"{PATIENCE_SECONDS:.0f}",
    }
    if isinstance(filesystem, fs.S3FileSystem):
        _, (given,) = filesystem.__reduce__()
        endpoint = given["endpoint_override"]
        if endpoint and "://" not in endpoint:
            endpoint = f"{given['scheme']}://{endpoint}"
        options |= {
            "aws_region": given["region"],
            "aws_endpoint": endpoint,
            "allow_http": "true" if endpoint.startswith("http://") else "",
            "aws_access_key_id": given["access_key"],
            "aws_secret_access_key": given["secret_key"],
            "aws_session_token": given["session_token"],
            "aws_skip_signature": "true" if given["anonymous"] else "",
            "aws_virtual_hosted_style_request": "true" if given["force_virtual_addressing"] else "",
        }
    return f"{uri.partition('://')[0]}://{path}", {name: value for name, value in options.items() if value}


def has_secret(uri: str) -> bool:
    """Whether a URI holds credentials."""
    return "://" in uri and public_uri(address.file_of(uri)) != uri.partition("#")[0].rstrip("?&")


def public_uri(uri: str) -> str:
    """The URI without password, secret query fields or a user name that may be one: safe to print and store."""
    if "://" not in uri:
        return uri
    part = address.place_of(uri)
    scheme, _, rest = uri.partition("#")[0].partition("://")
    place, _, query = rest.partition("?")
    host, slash, path = place.partition("/")
    if "@" in host:
        user, _, host = host.rpartition("@")
        if _USER_IS_PUBLIC.search(scheme):
            # Azure writes container@account, Git git@host; only what follows a colon is secret.
            host = f"{user.partition(':')[0]}@{host}"
    elif "@" in path and ":" in host and not host.rpartition(":")[2].isdigit():
        # Not a port: a secret with a slash in it, as AWS's often are.
        host, slash, path = path.partition("@")[2].partition("/")
    fields = [field for field in query.split("&") if field and not _SECRET.search(field.partition("=")[0])]
    return f"{scheme}://{host}{slash}{path}" + ("?" + "&".join(fields) if fields else "") + part


def shell_command(*words: str) -> str:
    """A command for a POSIX shell: words quoted, credentials removed.

    `shell_command("python", "-m", "carl_ray.train", "--run-dir", run_dir, "--resume")`
    """
    return shlex.join(public_uri(word) for word in words)


def absolute(uri: str) -> str:
    """The URI with a local path made absolute."""
    return uri if is_remote(uri) else resolve(uri)[1] + address.place_of(uri)


def join(uri: str, *names: str) -> str:
    """The URI of a path in a folder; a query (`?endpoint_override=…`) stays at the end."""
    base, mark, query = uri.partition("?") if is_remote(uri) else (uri, "", "")
    return "/".join([base.rstrip("/"), *names]) + mark + query


def parent(uri: str) -> str:
    """The URI of the folder of a file or folder; a query stays at the end."""
    base, mark, query = uri.partition("?") if is_remote(uri) else (uri, "", "")
    return base.rstrip("/").rpartition("/")[0] + mark + query


def home() -> Path:
    """Default folder of runs and rendered data: `$CARL_RAY_HOME`, or `~/carl_ray`."""
    return Path(os.environ.get("CARL_RAY_HOME", "~/carl_ray")).expanduser().absolute()


def persistently(uri: str, action: str, attempt: Callable[[], _T]) -> _T:
    """What `attempt` returns, retried with exponential backoff where an object store fails.

    Args:
        uri: Of the file or folder; local ones are not retried.
        action: As in "could not read it".
        attempt: May be called any number of times.

    Raises:
        OSError: of the last attempt: at once where something is absent, after `DENIAL_SECONDS` where access is denied,
            after `PATIENCE_SECONDS` otherwise.
    """
    # By patience: a denial among other failures has its own deadline.
    first_failure: dict[float, float] = {}
    longest_wait = _FIRST_WAIT_SECONDS
    while True:
        try:
            return attempt()
        except OSError as error:
            patience = _patience(error) if is_remote(uri) else 0.0
            now = time.monotonic()
            left = first_failure.setdefault(patience, now) + patience - now
            if left <= 0:
                raise
            reason = storage_error(error, uri, action)
        wait = min(_JITTER.uniform(0, longest_wait), left)
        longest_wait = min(2 * longest_wait, _LONGEST_WAIT_SECONDS)
        _LOGGER.warning("%s; trying again in %.1f s, for %.0f s more", reason, wait, left)
        time.sleep(wait)


def set_patience(seconds: float) -> None:
    """Set for how long this process retries an object store."""
    global PATIENCE_SECONDS
    PATIENCE_SECONDS = seconds


def _patience(error: OSError) -> float:
    """Seconds for which a failure is retried."""
    text = str(error)
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)) or _ABSENT.search(text):
        return 0.0
    if isinstance(error, PermissionError) or _DENIED.search(text):
        return DENIAL_SECONDS
    return PATIENCE_SECONDS


def exists(uri: str) -> bool:
    """Whether a file or folder exists. Raises as `read_bytes` does where the store refuses."""
    return _type_of(uri) != fs.FileType.NotFound


def is_file(uri: str) -> bool:
    """Whether a file, not a folder, exists. Raises as `read_bytes` does where the store refuses."""
    return _type_of(uri) == fs.FileType.File


def _type_of(uri: str) -> fs.FileType:
    return _on_store(uri, "look at", lambda filesystem, path: filesystem.get_file_info(path).type)


def read_bytes(uri: str) -> bytes:
    """The whole content of a file, of one version of it, or of the part that an address names.

    Raises:
        UserError: there is no such file, or no such part of it.
        RunError: the store refuses or fails.
    """
    part = address.parse(uri)

    def read(filesystem: fs.FileSystem, path: str) -> bytes:
        try:
            return _read_whole(filesystem, path, part)
        except FileNotFoundError:
            raise UserError(f"{public_uri(uri)}: no such file") from None

    return _on_store(uri, "read", read)


def _read_whole(filesystem: fs.FileSystem, path: str, part: address.Address) -> bytes:
    with filesystem.open_input_file(path) as file:
        size = file.size()
        if part.byte_offset is None:
            content: bytes = file.read()
        elif size < part.byte_offset + (part.byte_length or 0):
            raise UserError(f"{public_uri(str(part))}: no such bytes, the file has {size}")
        else:
            size = part.byte_length or 0
            content = file.read_at(size, part.byte_offset)
        version = _version(filesystem, file)
    # More is valid: a local log may have grown since.
    if len(content) < size:
        raise OSError(f"expected {size} bytes, got {len(content)}")
    # S3's size and content are two requests. Where the content has become longer in between, the rest is missing;
    # where shorter, pyarrow fills up with whatever is in memory. A third request, for the version, detects both.
    if version is not None:
        with filesystem.open_input_file(path) as file:
            if _version(filesystem, file) != version:
                raise OSError("it was written while it was read")
    return content


def _version(filesystem: fs.FileSystem, file: NativeFile) -> bytes | None:
    """S3's tag of the content; None where opening a file already pins its version."""
    return file.metadata().get("ETag") if isinstance(filesystem, fs.S3FileSystem) else None


def write_bytes(uri: str, content: bytes) -> None:
    """Write a whole file atomically: a reader gets the old content or the new, never a part.

    Raises:
        RunError: the store refuses, fails or is full.
    """

    def write(filesystem: fs.FileSystem, path: str) -> None:
        if isinstance(filesystem, fs.LocalFileSystem):
            _replace(Path(path), content)
            return
        # Closing completes an upload, whatever was written: one write, and nothing in between that may fail. Parts
        # that fail in the background make closing fail.
        with filesystem.open_output_stream(path) as file:
            file.write(content)

    _on_store(uri, "write", write)


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table as the content of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def _replace(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with _create(temporary) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _create(path: Path) -> BinaryIO:
    # Another process may delete the empty folder before the file is in it, as the last writer of a lease does.
    for attempt in itertools.count(1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb")
        except (
            FileNotFoundError,
            FileExistsError,
        ):  # The second: mkdir's own look at the folder came too late.
            if attempt == _CREATE_ATTEMPTS:
                raise
    raise AssertionError("the loop returns or raises")


def list_folder(uri: str) -> list[str]:
    """Names in a folder, sorted; empty where the folder does not exist."""

    def names(filesystem: fs.FileSystem, path: str) -> list[str]:
        if isinstance(filesystem, fs.LocalFileSystem):
            # pyarrow stats twice, and raises where the folder appears in between.
            with suppress(FileNotFoundError):
                return [entry.name for entry in Path(path).iterdir()]
            return []
        selector = fs.FileSelector(path, allow_not_found=True)
        return [info.base_name for info in filesystem.get_file_info(selector)]

    return sorted(_on_store(uri, "list", names))


def delete(uri: str) -> None:
    """Delete a file, or a folder with its content; nothing happens where there is none."""

    def remove(filesystem: fs.FileSystem, path: str) -> None:
        while (found := filesystem.get_file_info(path).type) != fs.FileType.NotFound:
            with suppress(FileNotFoundError):  # Another process deletes it too.
                filesystem.delete_file(path) if found == fs.FileType.File else filesystem.delete_dir(path)
                return

    _on_store(uri, "delete", remove)


def _on_store(uri: str, action: str, attempt: Callable[[fs.FileSystem, str], _T]) -> _T:
    """What `attempt` returns for the filesystem and path of a URI, with retries and one-line errors."""
    filesystem, path = resolve(uri)
    try:
        return persistently(uri, action, partial(attempt, filesystem, path))
    except OSError as error:
        raise storage_error(error, uri, action) from None


@contextmanager
def reading(uri: str, complaint: str) -> Iterator[None]:
    """Raise the errors of a body that reads and parses a file in one line.

    Args:
        uri: Of the file.
        complaint: About its content, "not a manifest".

    Raises:
        UserError: the content is another one.
        RunError: the store refuses or fails.
    """
    try:
        yield
    except (ArrowException, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{public_uri(uri)}: {complaint} ({one_line(error)})") from None
    except OSError as error:
        raise storage_error(error, uri, "read") from None


def check_bucket(uri: str) -> None:
    """Raise `NoBucketError` where a file or folder is to be written into a bucket that does not exist."""
    if is_remote(uri):
        filesystem, path = resolve(uri)
        bucket = path.partition("/")[0]
        # Who may write into a bucket need not be allowed to look at it.
        with suppress(OSError):
            if filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
                raise NoBucketError(
                    f"{public_uri(uri)}: there is no bucket {bucket!r}: make it, or name another one"
                )


def storage_error(error: OSError, uri: str, action: str) -> RunError:
    """The one-line error for a store that refused or failed."""
    text = one_line(error).replace(uri, public_uri(uri))
    if _NO_BUCKET.search(text):
        return NoBucketError(f"{public_uri(uri)}: could not {action} it: there is no such bucket ({text})")
    hint = ""
    if "No space left" in text or error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = ": no room; free some or choose another place"
    elif isinstance(error, PermissionError) and not is_remote(uri):
        hint = ": no permission"
    elif isinstance(error, PermissionError) or _DENIED.search(text) or re.search(r"\b403\b", text):
        hint = ": no permission; check the credentials of this machine and the policy of the bucket"
    kind = OutageError if is_remote(uri) and not hint else RunError
    return kind(f"{public_uri(uri)}: could not {action} it{hint} ({text})")
