"""An S3 server on the loopback (moto's), whose machine may die or hang in the middle of anything."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

Fault = Literal["dead", "hangs", "forbids"]
BUCKET = "bucket"
FORBIDDEN = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass
class ObjectStore:
    """Where it listens, what was asked of it, and what is wrong with it now."""

    port: int = 0
    fault: Callable[[str, str], Fault | None] = lambda method, name: None  # of each request
    asked: list[tuple[str, str]] = field(default_factory=list)  # (method, name)

    def uri(self, prefix: str = "runs", bucket: str = BUCKET) -> str:
        """An address there."""
        return f"s3://{bucket}/{prefix}?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{self.port}"

    def names(self, prefix: str = "") -> list[str]:
        """Of all objects below a prefix, from there on; folders' markers are none."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(f"{BUCKET}/{prefix}".rstrip("/"), recursive=True, allow_not_found=True)
        found = self._filesystem().get_file_info(selector)
        start = len(f"{BUCKET}/{prefix}/".replace("//", "/"))
        return sorted(info.path[start:] for info in found if info.type == FileType.File)

    def read(self, name: str) -> bytes:
        """An object."""
        with self._filesystem().open_input_stream(f"{BUCKET}/{name}") as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes) -> None:
        """Puts other bytes there."""
        with self._filesystem().open_output_stream(f"{BUCKET}/{name}") as stream:
            stream.write(content)

    def remove(self, name: str) -> None:
        """An object."""
        self._filesystem().delete_file(f"{BUCKET}/{name}")

    def _filesystem(self) -> Any:
        from pyarrow.fs import S3FileSystem

        return S3FileSystem(
            endpoint_override=f"127.0.0.1:{self.port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        )


@contextlib.contextmanager
def object_store(environment: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A server with one empty bucket; its credentials are in the environment."""
    app = pytest.importorskip("moto.moto_server.werkzeug_app", reason="moto's server: pip install '.[dev]'")
    serving = pytest.importorskip("werkzeug.serving")
    environment.setenv("AWS_ACCESS_KEY_ID", "me")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store, answered = ObjectStore(), threading.Event()
    moto = app.DomainDispatcherApplication(app.create_backend_app)

    def serve(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        method, name = environ["REQUEST_METHOD"], environ["PATH_INFO"].removeprefix(f"/{BUCKET}/")
        store.asked.append((method, name))
        fault = store.fault(method, name)
        if fault == "hangs":
            answered.wait()
        if fault in ("dead", "hangs"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        if fault == "forbids":
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [FORBIDDEN]
        return moto(environ, start)

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = serving.make_server("127.0.0.1", 0, serve, threaded=True)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.05), daemon=True)
    thread.start()
    store.port = server.server_port
    store._filesystem().create_dir(BUCKET)
    try:
        yield store
    finally:
        answered.set()
        store.fault = lambda method, name: None
        urllib.request.urlopen(f"http://127.0.0.1:{store.port}/moto-api/reset", data=b"", timeout=30).close()
        server.shutdown()
        thread.join(timeout=10)
