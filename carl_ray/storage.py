"""A URI becomes a (pyarrow filesystem, path); reading and atomic writing over it.

Local paths, `s3://bucket/key?endpoint_override=host:port&scheme=http` and `gs://bucket/key` are the same to
every caller. Credentials come from the environment; those inside a URI are used, but `public_uri` drops them
from whatever is written or printed.
"""

from __future__ import annotations

import os
import re
import uuid
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from pyarrow import ArrowException, fs

from carl_ray.errors import RunError, UserError

_SECRET = re.compile(r"key|token|secret|password|credential|signature|^sig$", re.IGNORECASE)


def is_remote(uri: str) -> bool:
    """Whether a URI names an object store, not a path of this machine."""
    return "://" in uri and not uri.startswith("file://")


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem that a URI names, and the path in it.

    Raises:
        UserError: the scheme is unknown or the URI malformed.
        RunError: the store cannot be reached; the region of a bucket is asked for when it is opened.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        if has_secret(uri) or not is_remote(uri):
            return fs.FileSystem.from_uri(uri)
        scheme, _, rest = uri.partition("://")
        place, _, query = rest.partition("?")
        bucket, _, path = place.partition("/")
        filesystem, root = _bucket(scheme, bucket, query)
        # Azure's root is empty where the container is in the path.
        return filesystem, f"{root.rstrip('/')}/{unquote(path)}".strip("/")
    except OSError as error:
        raise storage_error(OSError(str(error).replace(uri, public_uri(uri))), uri, "reach") from None
    except (ArrowException, ValueError) as error:
        # pyarrow quotes the URI, secrets and all.
        reason = _one_line(error).replace(uri, public_uri(uri))
        raise UserError(f"{public_uri(uri)}: expected a path or a file, s3 or gs URI ({reason})") from None


@lru_cache(maxsize=64)
def _bucket(scheme: str, bucket: str, query: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a bucket, made once a process: for S3 that is a round trip, to ask for its region."""
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}" + (f"?{query}" if query else ""))


def has_secret(uri: str) -> bool:
    """Whether a URI holds credentials, which must not be written down."""
    return "://" in uri and public_uri(uri) != uri.partition("#")[0].rstrip("?&")


def public_uri(uri: str) -> str:
    """The URI without user name, password or secret query fields: safe to print and to store."""
    if "://" not in uri:
        return uri
    scheme, _, rest = uri.partition("#")[0].partition("://")
    place, _, query = rest.partition("?")
    host, slash, path = place.partition("/")
    if "@" in host:
        user, _, host = host.rpartition("@")
        if scheme in ("abfs", "abfss"):
            # Azure writes container@account there; only what follows a colon is a secret.
            host = f"{user.partition(':')[0]}@{host}"
    elif "@" in path and ":" in host and not host.rpartition(":")[2].isdigit():
        # Not a port: a secret with a slash in it, as AWS's often have.
        host, slash, path = path.partition("@")[2].partition("/")
    fields = [field for field in query.split("&") if field and not _SECRET.search(field.partition("=")[0])]
    return f"{scheme}://{host}{slash}{path}" + ("?" + "&".join(fields) if fields else "")


def absolute(uri: str) -> str:
    """The URI as a process in any folder understands it: a path of this machine from its root."""
    return uri if is_remote(uri) else resolve(uri)[1]


def join(uri: str, *names: str) -> str:
    """The URI of something inside a folder; a query (`?endpoint_override=…`) stays at the end."""
    base, mark, query = uri.partition("?") if is_remote(uri) else (uri, "", "")
    return "/".join([base.rstrip("/"), *names]) + mark + query


def parent(uri: str) -> str:
    """The URI of the folder that something lies in; a query stays at the end."""
    base, mark, query = uri.partition("?") if is_remote(uri) else (uri, "", "")
    return base.rstrip("/").rpartition("/")[0] + mark + query


def home() -> Path:
    """Folder for runs and rendered data when none is named: `$CARL_RAY_HOME`, or `~/carl_ray`."""
    return Path(os.environ.get("CARL_RAY_HOME", "~/carl_ray")).expanduser().absolute()


def exists(uri: str) -> bool:
    """Whether a file or folder is there. Raises as `read_bytes` does where the store refuses."""
    filesystem, path = resolve(uri)
    try:
        return filesystem.get_file_info(path).type != fs.FileType.NotFound
    except OSError as error:
        raise storage_error(error, uri, "look at") from None


def is_file(uri: str) -> bool:
    """Whether a file, not a folder, is there. Raises as `read_bytes` does where the store refuses."""
    filesystem, path = resolve(uri)
    try:
        return filesystem.get_file_info(path).type == fs.FileType.File
    except OSError as error:
        raise storage_error(error, uri, "look at") from None


def read_bytes(uri: str) -> bytes:
    """The whole content of a file.

    Raises:
        UserError: it is not there.
        RunError: the store refuses or fails.
    """
    filesystem, path = resolve(uri)
    try:
        with filesystem.open_input_file(path) as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{public_uri(uri)}: no such file") from None
    except OSError as error:
        raise storage_error(error, uri, "read") from None


def write_bytes(uri: str, content: bytes) -> None:
    """Writes a whole file at once: a reader sees the old content or the new, never a part.

    Raises:
        RunError: the store refuses, fails or is full.
    """
    filesystem, path = resolve(uri)
    try:
        if isinstance(filesystem, fs.LocalFileSystem):
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            with filesystem.open_output_stream(path) as file:
                file.write(content)
    except OSError as error:
        raise storage_error(error, uri, "write") from None


def list_folder(uri: str) -> list[str]:
    """Names in a folder, sorted; empty where the folder does not exist."""
    filesystem, path = resolve(uri)
    try:
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except OSError as error:
        raise storage_error(error, uri, "list") from None
    return sorted(info.base_name for info in found)


def delete_folder(uri: str) -> None:
    """Deletes a folder and all in it; nothing happens where it does not exist."""
    filesystem, path = resolve(uri)
    try:
        if filesystem.get_file_info(path).type != fs.FileType.NotFound:
            filesystem.delete_dir(path)
    except OSError as error:
        raise storage_error(error, uri, "delete") from None


def storage_error(error: OSError, uri: str, action: str) -> RunError:
    """The one-line error for a store that refused or failed."""
    text = _one_line(error)
    hint = ""
    if "No space left" in text:
        hint = ": no room; free some or choose another place"
    elif isinstance(error, PermissionError) and not is_remote(uri):
        hint = ": no permission"
    elif isinstance(error, PermissionError) or "ACCESS_DENIED" in text or re.search(r"\b403\b", text):
        hint = ": no permission; check the credentials of this machine and the policy of the bucket"
    return RunError(f"{public_uri(uri)}: could not {action} it{hint} ({text})")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
