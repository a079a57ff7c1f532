"""Scores over HTTP: POST /score with a bearer token, GET /health without one. docs/reward_service.md has the wire format.

The standard library's server behind limits of its own: on connections, on the size of a request, on how long a client may
take. One thread scores, one request after the other.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import math
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rayalign.errors import RayalignError

Score = Callable[[list[str], list[str]], list[float]]

MAX_BODY_BYTES = 16 * 2**20
MAX_RESPONSES = 4096  # of one request
MAX_CONNECTIONS = 64
CLIENT_S = 30.0  # that a client may be silent


class BadRequest(Exception):
    """What a client can mend, in one line."""


class RewardServer(ThreadingHTTPServer):
    """Serves `score` to whoever shows the token.

    Args:
        score: B prompts and B responses to B numbers; raises RayalignError for texts it cannot score.
        tls: of the certificate; None for plain HTTP, which is for the loopback.
    """

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(
        self, address: tuple[str, int], score: Score, token: str, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self._score, self._token = score, f"Bearer {token}".encode()
        self._scoring = ThreadPoolExecutor(max_workers=1, thread_name_prefix="score")
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        if tls is not None:  # the handshake is the handler's, within its time, and not that of the thread that accepts
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def is_known(self, authorization: str) -> bool:
        """Whether a header shows the token; takes as long whatever it shows."""
        return hmac.compare_digest(authorization.encode("utf-8", errors="replace"), self._token)

    def scores(self, prompts: list[str], responses: list[str]) -> list[float | None]:
        """B numbers, and null for what is none."""
        found = self._scoring.submit(self._score, prompts, responses).result()
        return [value if math.isfinite(value) else None for value in found]

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, up to a number; one more is closed at once."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke off is no news; anything else is one line here, and nothing for the client."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"rayalign: serving failed: {type(error).__name__}: {error}", file=sys.stderr)

    def server_close(self) -> None:
        super().server_close()
        self._scoring.shutdown(wait=False, cancel_futures=True)


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    server_version, sys_version = "rayalign", ""
    timeout = CLIENT_S

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200, {"status": "ok"})
        else:
            self._answer(404, {"error": "there are POST /score and GET /health"})

    def do_POST(self) -> None:
        if self.path != "/score":
            self._refuse(404, "there are POST /score and GET /health")
        elif not self.server.is_known(self.headers.get("Authorization") or ""):
            self._refuse(401, "show the service's token: Authorization: Bearer TOKEN")
        else:
            self._score()

    def _refuse(self, status: int, why: str) -> None:
        """Without a look at the body, which is taken in: left unread it would cut the answer off."""
        with contextlib.suppress(BadRequest):
            self._body()
        self._answer(status, {"error": why})

    def _score(self) -> None:
        try:
            prompts, responses = _parsed(self._body())
            self._answer(200, {"scores": self.server.scores(prompts, responses)})
        except (BadRequest, RayalignError) as error:
            self._answer(400, {"error": str(error)})
        except RuntimeError as error:  # torch's, of memory above all
            print(f"rayalign: scoring failed: {' '.join(str(error).split())[:300]}", file=sys.stderr)
            self._answer(500, {"error": "scoring failed; the service's log says why"})

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length") or ""
        if not (length.isascii() and length.isdecimal()):
            raise BadRequest("a request says its size: Content-Length")
        digits = length.lstrip("0")
        if len(digits) > len(str(MAX_BODY_BYTES)) or int(digits or "0") > MAX_BODY_BYTES:
            raise BadRequest(f"a request has at most {MAX_BODY_BYTES} bytes; send fewer responses at a time")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise BadRequest("the request broke off")
        return body

    def _answer(self, status: int, said: dict[str, Any]) -> None:
        body = json.dumps(said, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what a client sends is not for the log."""


def _parsed(body: bytes) -> tuple[list[str], list[str]]:
    """Prompts and responses, as many of each. Raises BadRequest."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is no JSON") from None
    if not isinstance(asked, dict) or asked.keys() != {"prompts", "responses"}:
        raise BadRequest('the body is {"prompts": [texts], "responses": [texts]}, and no more')
    prompts, responses = asked["prompts"], asked["responses"]
    for name, texts in (("prompts", prompts), ("responses", responses)):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise BadRequest(f"{name} is not a list of texts")
        if not all(_is_text(text) for text in texts):
            raise BadRequest(f"{name} has half of a surrogate pair, which is no text")
    if len(prompts) != len(responses):
        raise BadRequest(f"{len(prompts)} prompts and {len(responses)} responses; send one of each for every score")
    if len(prompts) > MAX_RESPONSES:
        raise BadRequest(f"{len(prompts)} responses, over {MAX_RESPONSES}; send fewer at a time")
    return prompts, responses


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
