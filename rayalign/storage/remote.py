"""A folder in an object store, or on another file system with an address: every call has a deadline.

pyarrow reaches S3, Google Cloud Storage, Azure, HDFS and folders without a further package, and is here already for Parquet;
fsspec would need one more for each store. What only fsspec knows, pyarrow takes as fsspec+PROTOCOL://. It works in a process
of its own (`remote_worker`): a thread that hangs in it cannot be ended, and keeps Python from its exit.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

START_S = 120.0  # for a Python that imports pyarrow, on a busy machine
LONGEST = 300  # characters of another library's message
WORKER = Path(__file__).with_name("remote_worker.py")


class Unreachable(Exception):
    """The store refused, failed or did not answer; one line."""


class NotThere(Unreachable):
    """There is no such object."""


class Remote:
    """All objects below one address, by their names from there ("rft/policy/config.json").

    One call at a time. Each raises Unreachable when it fails, or when nothing has moved for `timeout_s` seconds; the process
    is killed then, so that nothing which was begun ends later.
    """

    def __init__(self, uri: str, *, timeout_s: float) -> None:
        self.shown = urlsplit(uri)._replace(query="").geturl().rstrip("/")  # for messages
        self._uri, self._timeout_s = uri, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def probe(self) -> None:
        """Writes, finds, reads and removes a small object: whether all that is needed later is allowed."""
        name = f".probe-{secrets.token_hex(8)}"
        self.write(name, b"rayalign")
        if name not in self.names() or self.read(name) != b"rayalign":
            raise Unreachable(f"{self.shown}: an object that was written is not found again")
        self.remove(name)

    def names(self, below: str = "") -> list[str]:
        """Of all objects, or of those below a name; sorted."""
        return list(self._call("names", below))

    def read(self, name: str) -> bytes:
        """A small object. Raises NotThere."""
        with tempfile.TemporaryDirectory() as folder:
            self.download(name, Path(folder) / "object")
            return (Path(folder) / "object").read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """A small object, which is replaced in one step."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "object").write_bytes(content)
            self._call("upload", str(Path(folder) / "object"), name, True)

    def upload(self, path: Path, name: str) -> tuple[int, str]:
        """Sends a file; the size and SHA-256 of what was sent. Raises FileNotFoundError where the file is gone."""
        size, digest = self._call("upload", str(path.absolute()), name, False)
        return size, digest

    def download(self, name: str, path: Path) -> tuple[int, str]:
        """Brings an object to the disk; the size and SHA-256 of what came. Raises NotThere, and OSError for a full disk."""
        path.parent.mkdir(parents=True, exist_ok=True)
        size, digest = self._call("download", name, str(path.absolute()))
        return size, digest

    def remove(self, name: str) -> None:
        """An object; nothing where there is none."""
        with contextlib.suppress(NotThere):
            self._call("remove", name)

    def remove_below(self, name: str) -> None:
        """All objects below a name."""
        with contextlib.suppress(NotThere):
            self._call("remove_below", name)

    def stop(self) -> None:
        """Ends the process from any thread; a call in progress fails."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process, also in the middle of a call; a next call starts another."""
        process, self._process, self._unread = self._process, None, b""
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def _call(self, call: str, *arguments: Any) -> Any:
        if self._process is None:
            self._start()
        return self._ask(call, *arguments)

    def _start(self) -> None:
        # A session of its own: what a terminal sends to the run is the run's to act on.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._answer("start", START_S)
        try:
            self._ask("open", self._uri, self._timeout_s)
        except Unreachable:
            self.close()
            raise

    def _ask(self, call: str, *arguments: Any) -> Any:
        what = call if call == "open" else f"{call} {' '.join(a for a in arguments if isinstance(a, str) and a[:1] != '/')}"
        assert self._process is not None and self._process.stdin is not None
        answered = False
        try:
            with contextlib.suppress(BrokenPipeError):  # then there is no answer either
                self._process.stdin.write((json.dumps({"call": call, "arguments": arguments}) + "\n").encode())
                self._process.stdin.flush()
            answer = self._answer(what.strip(), self._timeout_s)
            answered = True
        finally:
            if not answered:
                self.close()  # what comes later would be taken for the answer to another call
        if "error" not in answer:
            return answer["result"]
        if answer["kind"] == "gone":
            raise FileNotFoundError(answer["error"])
        if answer["kind"] == "full":
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        kind = NotThere if answer["kind"] == "missing" else Unreachable
        raise kind(f"{self.shown}: {what.strip()}: {_brief(answer['error'])}")

    def _answer(self, what: str, timeout_s: float) -> dict[str, Any]:
        """The answer, once what moves has come to an end."""
        assert self._process is not None and self._process.stdout is not None
        pipe, end = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while True:
            line, newline, rest = self._unread.partition(b"\n")
            if newline:
                self._unread = rest
                answer: dict[str, Any] = json.loads(line)
                if "beat" not in answer:
                    return answer
                end = time.monotonic() + timeout_s
                continue
            ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise Unreachable(f"{self.shown}: {what}: nothing moved for {timeout_s:g} s")
            received = os.read(pipe, 2**16)
            if not received:
                raise Unreachable(f"{self.shown}: {what}: the process that copies has ended")
            self._unread += received


def _brief(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."
