"""A folder in an object store, or on another file system with an address: every call has a deadline.

pyarrow reaches S3, Google Cloud Storage, Azure, HDFS and folders without a further package, and is here already for Parquet;
fsspec would need one more for each store. What only fsspec knows, pyarrow takes as fsspec+PROTOCOL://.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from rayalign.errors import is_disk_full
from rayalign.storage.aside import flush
from rayalign.storage.checkpoints import CHUNK

T = TypeVar("T")
Beat = Callable[[], None]  # called whenever something has moved

FLAT = ("s3", "gcs", "abfs")  # have keys and no folders: there is none to make
CONNECT_S = 10.0
ATTEMPTS = 3  # of a request, by the store's own library
WATCH_S = 0.2
LONGEST = 300  # characters of another library's message


class Unreachable(Exception):
    """The store refused, failed or did not answer; one line."""


class NotThere(Unreachable):
    """There is no such object."""


class Remote:
    """All objects below one address, by their names from there ("rft/policy/config.json").

    One call at a time. Each raises Unreachable when it fails, or when nothing has moved for `timeout_s` seconds.
    """

    def __init__(self, uri: str, *, timeout_s: float) -> None:
        self.shown = urlsplit(uri)._replace(query="").geturl().rstrip("/")  # for messages
        self._timeout_s = timeout_s
        self._last: Future[Any] | None = None  # a call that was given up, and may still hang
        importlib.import_module("pyarrow.fs")  # what its import takes is not the store's time
        self._filesystem, root = self._call("open", lambda _: _open(uri, timeout_s))
        self._root = root.rstrip("/")
        self._has_folders = self._filesystem.type_name not in FLAT

    def probe(self) -> None:
        """Writes, finds, reads and removes a small object: whether all that is needed later is allowed."""
        name = f".probe-{secrets.token_hex(8)}"
        self.write(name, b"rayalign")
        try:
            if name not in self.names() or self.read(name) != b"rayalign":
                raise Unreachable("an object that was written is not found again")
        finally:
            self.remove(name)

    def names(self, below: str = "") -> list[str]:
        """Of all objects, or of those below a name; sorted."""
        from pyarrow.fs import FileSelector, FileType

        folder = f"{self._root}/{below}".rstrip("/")
        selector = FileSelector(folder, recursive=True, allow_not_found=True)
        found = self._call("list", lambda _: self._filesystem.get_file_info(selector))
        start = len(self._root) + 1
        return sorted(info.path[start:] for info in found if info.type == FileType.File)

    def read(self, name: str) -> bytes:
        """A small object. Raises NotThere."""

        def receive(_: Beat) -> bytes:
            with self._filesystem.open_input_stream(self._path(name)) as stream:
                return bytes(stream.read())

        return self._call(f"read {name}", receive)

    def write(self, name: str, content: bytes) -> None:
        """A small object; in a folder too it is replaced in one step."""

        def send(_: Beat) -> None:
            path = self._path(name)
            aside = f"{path}.part" if self._has_folders else path
            with self._written(aside) as stream:
                stream.write(content)
            if aside != path:
                self._filesystem.move(aside, path)

        self._call(f"write {name}", send)

    def upload(self, path: Path, name: str) -> tuple[int, str]:
        """Sends a file; the size and SHA-256 of what was sent. Raises FileNotFoundError where the file is gone."""
        source = path.open("rb")

        def send(beat: Beat) -> tuple[int, str]:
            size, digest = 0, hashlib.sha256()
            with source, self._written(self._path(name)) as stream:
                while chunk := source.read(CHUNK):
                    stream.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    beat()
            return size, digest.hexdigest()

        return self._call(f"write {name}", send)

    def download(self, name: str, path: Path) -> tuple[int, str]:
        """Brings an object to the disk; the size and SHA-256 of what came. Raises NotThere, and OSError for a full disk."""

        def receive(beat: Beat) -> tuple[int, str]:
            size, digest = 0, hashlib.sha256()
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._filesystem.open_input_stream(self._path(name)) as stream, path.open("wb") as file:
                while chunk := stream.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    beat()
            flush(path)
            return size, digest.hexdigest()

        try:
            return self._call(f"read {name}", receive)
        except Unreachable as fault:
            if isinstance(fault.__cause__, OSError) and is_disk_full(fault.__cause__):
                raise fault.__cause__ from None
            raise

    def remove(self, name: str) -> None:
        """An object; nothing where there is none."""

        with contextlib.suppress(NotThere):
            self._call(f"remove {name}", lambda _: self._filesystem.delete_file(self._path(name)))

    def remove_below(self, name: str) -> None:
        """All objects below a name."""
        with contextlib.suppress(NotThere):
            self._call(f"remove {name}", lambda _: self._filesystem.delete_dir(self._path(name)))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _written(self, path: str) -> Any:
        if self._has_folders:
            self._filesystem.create_dir(os.path.dirname(path), recursive=True)
        return self._filesystem.open_output_stream(path)

    def _call(self, what: str, work: Callable[[Beat], T]) -> T:
        """Works in a thread of its own, which is left behind when nothing moves: no library's deadlines are relied on.

        The next call fails while one that was left behind still hangs, else it could end later and undo newer work.
        """
        if self._last is not None and not self._last.done():
            raise Unreachable(f"{self.shown}: an earlier call still has no answer")
        done: Future[T] = Future()
        moved = [time.monotonic()]

        def beat() -> None:
            moved[0] = time.monotonic()

        def target() -> None:
            try:
                done.set_result(work(beat))
            except Exception as error:  # noqa: BLE001 - handed to the caller's thread
                done.set_exception(error)

        self._last = done
        threading.Thread(target=target, name="mirror call", daemon=True).start()
        while True:
            try:
                return done.result(timeout=WATCH_S)
            except TimeoutError:
                if done.done():
                    raise Unreachable(f"{self.shown}: {what}: no answer in time") from None
                if time.monotonic() - moved[0] > self._timeout_s:
                    raise Unreachable(f"{self.shown}: {what}: nothing moved for {self._timeout_s:g} s") from None
            except FileNotFoundError as error:
                raise NotThere(f"{self.shown}: {what}: {_brief(error)}") from error
            except Exception as error:  # noqa: BLE001 - whatever a store's library raises
                raise Unreachable(f"{self.shown}: {what}: {_brief(error)}") from error


def _open(uri: str, timeout_s: float) -> tuple[Any, str]:
    """A file system of pyarrow, and the path of `uri` in it."""
    from pyarrow import fs

    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    if parts.scheme == "s3":
        return _open_s3(parts.netloc, options, timeout_s), f"{parts.netloc}{parts.path}"
    if parts.scheme in ("gs", "gcs"):
        limit = timedelta(seconds=timeout_s)
        return fs.GcsFileSystem(retry_time_limit=limit, **options), f"{parts.netloc}{parts.path}"
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, str(path)


def _open_s3(bucket: str, options: dict[str, str], timeout_s: float) -> Any:
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
        request_timeout=max(1.0, timeout_s / ATTEMPTS),
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        background_writes=False,  # else a file is read into memory as fast as the disk gives it
        allow_delayed_open=True,  # a small object is one request
    )


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."
