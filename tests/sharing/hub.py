"""A model hub on the loopback, as far as `upload_folder` asks one: repositories, large files by LFS, commits."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"


@dataclass
class Hub:
    """Where it listens, the files of each repository, which are private, and what it refuses: (part of a path, status)."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    refuses: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)  # large files, by their hash


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """A hub that takes TOKEN."""
    found = Hub()

    class Handler(_Handler):
        state = found

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._refused():
            return
        name, tree, _ = self.path.removeprefix("/api/models/").partition("/tree/main")
        if tree:
            files = self.state.repositories[name]
            entries = [{"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40} for path in files]
            self._answer(200, entries)  # type: ignore[arg-type]
        else:
            name = self.path.removeprefix("/api/models/").partition("/revision")[0]
            found = {"id": name, "private": name in self.state.private, "sha": "0" * 40, "siblings": []}
            self._answer(200 if name in self.state.repositories else 404, found)

    def do_PUT(self) -> None:
        content = self._content()
        if not self._refused():
            self.state.stored[hashlib.sha256(content).hexdigest()] = content
            self._answer(200, {})

    def do_POST(self) -> None:
        content = self._content()
        if self._refused():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(content))
        elif self.path.endswith("/preupload/main"):
            self._answer(200, {"files": [self._mode(file) for file in json.loads(content)["files"]]})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self._answer(200, {"transfer": "basic", "objects": [self._place(o) for o in json.loads(content)["objects"]]})
        elif self.path.endswith("/commit/main"):
            self._commit([json.loads(line) for line in content.splitlines()])
        else:  # validate-yaml
            self._answer(200, {"errors": [], "warnings": []})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.state.repositories
        if not there:
            self.state.repositories[name] = {}
            if asked.get("visibility") == "private" or asked.get("private"):
                self.state.private.add(name)
        self._answer(409 if there else 200, {"url": f"{self.state.url}/{name}", "error": "You already created this model"})

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {**wanted, "actions": {"upload": {"href": f"{self.state.url}/lfs/{wanted['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        name = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
        files = self.state.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self._answer(200, {"commitUrl": f"{self.state.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def _refused(self) -> bool:
        """Answers by itself where the token is another, or where the test wants a refusal."""
        self.state.asked.append(f"{self.command} {self.path}")
        status = next((code for part, code in self.state.refuses.items() if part in self.path), None)
        # Large files go to addresses that carry their own right, without the token.
        if status is None and "/lfs/" not in self.path and self.headers["Authorization"] != f"Bearer {TOKEN}":
            status = 401
        if status is not None:
            self._answer(status, {"error": "not for you"})
        return status is not None

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""
