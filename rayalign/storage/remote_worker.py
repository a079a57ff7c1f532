"""The process that speaks to a store, for `remote`: it can be killed when a call hangs, and holds up nobody's end.

Run as a file; it needs pyarrow and nothing of this package. Requests come as JSON, one a line; each is answered by lines
{"beat": true} while something moves, and then {"result": ...} or {"error": text, "kind": KIND, "errno": number}.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
from datetime import timedelta
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

FLAT = ("s3", "gcs", "abfs")  # have keys and no folders: there is none to make
CONNECT_S = 10.0
ATTEMPTS = 3  # of a request, by the store's own library
CHUNK = 2**22  # bytes
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LocalFault(Exception):
    """A file here, not an object there, is the matter; `kind` says how."""

    def __init__(self, kind: str, error: OSError) -> None:
        super().__init__(str(error))
        self.kind, self.errno = kind, error.errno


class Store:
    """The objects below an address."""

    def __init__(self, uri: str, timeout_s: float) -> None:
        self._filesystem, root = _open(uri, timeout_s)
        self._root = root.rstrip("/")
        self._has_folders = self._filesystem.type_name not in FLAT

    def names(self, below: str) -> list[str]:
        """Of all objects below a name; sorted."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(f"{self._root}/{below}".rstrip("/"), recursive=True, allow_not_found=True)
        found = self._filesystem.get_file_info(selector)
        return sorted(info.path[len(self._root) + 1 :] for info in found if info.type == FileType.File)

    def upload(self, path: str, name: str, at_once: bool) -> tuple[int, str]:
        """Sends a file; its size and SHA-256. With `at_once` what stood there in a folder is replaced in one step."""
        target = f"{self._root}/{name}"
        aside = f"{target}.part" if at_once and self._has_folders else target
        try:
            source = open(path, "rb")
        except FileNotFoundError as error:
            raise LocalFault("gone", error) from None
        if self._has_folders:
            self._filesystem.create_dir(os.path.dirname(target), recursive=True)
        with source, self._filesystem.open_output_stream(aside) as stream:
            found = _copy(source, stream)
        if aside != target:
            self._filesystem.move(aside, target)
        return found

    def download(self, name: str, path: str) -> tuple[int, str]:
        """Brings an object to the disk; its size and SHA-256."""
        with self._filesystem.open_input_stream(f"{self._root}/{name}") as stream, open(path, "wb") as file:
            found = _copy(stream, _Here(file))
            os.fsync(file.fileno())
        return found

    def remove(self, name: str) -> None:
        """An object."""
        self._filesystem.delete_file(f"{self._root}/{name}")

    def remove_below(self, name: str) -> None:
        """All objects below a name."""
        self._filesystem.delete_dir(f"{self._root}/{name}")


class _Here:
    """A file on this machine; that its disk is full is no fault of the store."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, chunk: bytes) -> None:
        try:
            self._file.write(chunk)
            self._file.flush()
        except OSError as error:
            raise LocalFault("full" if error.errno in FULL else "failed", error) from None


def _copy(source: Any, target: Any) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while chunk := source.read(CHUNK):
        target.write(chunk)
        digest.update(chunk)
        size += len(chunk)
        _say({"beat": True})
    return size, digest.hexdigest()


def _open(uri: str, timeout_s: float) -> tuple[Any, str]:
    """A file system of pyarrow, and the path of `uri` in it."""
    from pyarrow import fs

    parts = urlsplit(uri)
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if parts.scheme == "s3":
        return _open_s3(parts.netloc, options, timeout_s), f"{parts.netloc}{parts.path}"
    if parts.scheme in ("gs", "gcs"):
        limit = timedelta(seconds=timeout_s)
        return fs.GcsFileSystem(retry_time_limit=limit, **options), f"{parts.netloc}{parts.path}"
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, str(path)


def _open_s3(bucket: str, options: dict[str, Any], timeout_s: float) -> Any:
    """As from_uri does, which takes no deadlines; its own are 3 s, in which a large object may not be completed."""
    from pyarrow import fs

    placed = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
    if not {"region", "endpoint_override"} & options.keys() and not any(name in os.environ for name in placed):
        options["region"] = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        region=options.get("region"),
        scheme=options.get("scheme"),
        endpoint_override=options.get("endpoint_override"),
        force_virtual_addressing=options.get("force_virtual_addressing") == "true",
        tls_ca_file_path=options.get("tls_ca_file_path"),
        connect_timeout=min(CONNECT_S, timeout_s),
        request_timeout=max(1.0, timeout_s),
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        background_writes=False,  # else a file is read into memory as fast as the disk gives it
        allow_delayed_open=True,  # a small object is one request
    )


def _answer(store: Store | None, request: dict[str, Any]) -> Store:
    """Does what was asked; the store, which the first request opens."""
    arguments = request["arguments"]
    if store is None:
        store = Store(*arguments)
        _say({"result": None})
    else:
        _say({"result": getattr(store, request["call"])(*arguments)})
    return store


def _say(answer: dict[str, Any]) -> None:
    """Ends at once where nobody listens any more: to close what is being written would make half an object of it."""
    try:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)


def main() -> None:
    """Answers until nobody asks; the run that asks decides when to stop."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
    import pyarrow.fs  # noqa: F401 - what its import takes is not the store's time

    _say({"result": "ready"})
    store = None
    for line in sys.stdin:
        try:
            store = _answer(store, json.loads(line))
        except LocalFault as fault:
            _say({"error": str(fault), "kind": fault.kind, "errno": fault.errno})
        except FileNotFoundError as error:
            _say({"error": str(error), "kind": "missing"})
        except Exception as error:  # noqa: BLE001 - whatever a store's library raises is told to the run
            _say({"error": str(error) or type(error).__name__, "kind": "failed"})


if __name__ == "__main__":
    main()
