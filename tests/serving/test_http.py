"""The server that scores, over a real socket: who is let in, what is taken, and what it says to all else."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayalign.config.service import RewardServiceConfig
from rayalign.engines.reward_service import RewardService
from rayalign.errors import DataError, UserError
from rayalign.serving import http as serving_http
from rayalign.serving.http import RewardServer
from tests.services import TOKEN, certificate

BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Words:
    """A reward that counts words, and how many threads are in it at one time."""

    def __init__(self) -> None:
        self.inside, self.most, self.threads = 0, 0, set[int]()

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.threads.add(threading.get_ident())
        time.sleep(0.02)
        self.inside -= 1
        if "bad" in prompts:
            raise DataError(f"prompts[{prompts.index('bad')}] does not read as a prompt")
        if "full" in prompts:
            raise RuntimeError("out of memory")
        return [float(len(r.split())) if r else float("nan") for r in responses]


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
def port(words: Words) -> Iterator[int]:
    with RewardServer(("127.0.0.1", 0), words, TOKEN) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def request(
    port: int, body: Any, *, path: str = "/score", method: str = "POST", headers: dict[str, str] = BEARER
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, content, headers)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_scores_and_null(port: int) -> None:
    assert request(port, {"prompts": ["a", "b"], "responses": ["x y", ""]}) == (200, {"scores": [2.0, None]})
    assert request(port, {"prompts": [], "responses": []}) == (200, {"scores": []})


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"},
     {"Authorization": "Bearer "}, {"Authorization": f"Basic {TOKEN}"}],
)  # fmt: skip
def test_nobody_is_let_in_without_the_token(port: int, words: Words, headers: dict[str, str]) -> None:
    large = {"prompts": ["a" * 1_000_000], "responses": ["x"]}
    for body in ({"prompts": ["a"], "responses": ["x"]}, b"no JSON", large):
        status, said = request(port, body, headers=headers)
        assert status == 401 and said == {"error": "show the service's token: Authorization: Bearer TOKEN"}
    assert not words.threads


def test_health_tells_nothing_else(port: int) -> None:
    assert request(port, None, path="/health", method="GET", headers={}) == (200, {"status": "ok"})
    for path, method in (("/", "GET"), ("/score", "GET"), ("/health/", "GET"), ("/", "POST")):
        assert request(port, None, path=path, method=method)[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/health")
    assert connection.getresponse().headers["Server"].strip() == "rayalign"  # and no versions


@pytest.mark.parametrize(
    ("body", "words_of"),
    [
        (b"{", "the body is no JSON"),
        (b"[" * 100_000, "the body is no JSON"),
        (b"\xff\xfe", "the body is no JSON"),
        ([1], 'the body is {"prompts"'),
        ({"prompts": ["a"]}, 'the body is {"prompts"'),
        ({"prompts": ["a"], "responses": ["b"], "model": "x"}, "and no more"),
        ({"prompts": "a", "responses": ["b"]}, "prompts is not a list of texts"),
        ({"prompts": ["a"], "responses": [None]}, "responses is not a list of texts"),
        ({"prompts": ["a", "b"], "responses": ["b"]}, "2 prompts and 1 responses"),
        ({"prompts": ["\ud800"], "responses": ["b"]}, "half of a surrogate pair"),
        ({"prompts": [""] * 5000, "responses": [""] * 5000}, "5000 responses, over 4096"),
        ({"prompts": ["a", "bad"], "responses": ["b", "c"]}, "prompts[1] does not read as a prompt"),
    ],
)
def test_a_bad_request_is_one_line(port: int, body: Any, words_of: str) -> None:
    status, said = request(port, body)
    assert status == 400 and words_of in said["error"] and "\n" not in said["error"]
    assert request(port, {"prompts": ["a"], "responses": ["x y"]})[0] == 200  # and the service lives


def test_the_size_of_a_request_is_bounded(port: int) -> None:
    """Refused by what it says of itself, before it is read."""
    for length in (serving_http.MAX_BODY_BYTES + 1, 10**30, f"{'0' * 20}{10**12}"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            head = f"POST /score HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n"
            raw.sendall(head.encode())
            assert b"400" in raw.recv(100)
    status, said = request(port, None, headers=BEARER | {"Transfer-Encoding": "chunked"})
    assert status == 400 and "Content-Length" in said["error"]


def test_a_failure_of_its_own_is_no_fault_of_the_client(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    status, said = request(port, {"prompts": ["full"], "responses": ["x"]})
    assert (status, said) == (500, {"error": "scoring failed; the service's log says why"})
    assert capfd.readouterr().err == "rayalign: scoring failed: out of memory\n"


def test_one_thread_scores_one_request_after_the_other(port: int, words: Words) -> None:
    body = {"prompts": ["a"], "responses": ["x"]}
    clients = [threading.Thread(target=request, args=(port, body)) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert words.most == 1 and len(words.threads) == 1


def test_silent_clients_do_not_stop_others(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_http._Handler, "timeout", 0.5)
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
    assert request(port, None, path="/health", method="GET")[0] == 200
    silent[0].settimeout(5)
    assert silent[0].recv(1) == b""  # and are sent away
    for connection in silent:
        connection.close()


def test_connections_are_bounded(port: int) -> None:
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(serving_http.MAX_CONNECTIONS)]
    assert until(lambda: not lives(port))
    for connection in held:
        connection.close()
    assert until(lambda: lives(port))


def lives(port: int) -> bool:
    try:
        return request(port, None, path="/health", method="GET")[0] == 200
    except ConnectionError:
        return False


def until(holds: Callable[[], bool]) -> bool:
    """Whether it holds within some seconds."""
    due = time.monotonic() + 10
    while not (held := holds()) and time.monotonic() < due:
        time.sleep(0.05)
    return held


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_over_tls(words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--cert` and `--key` make it; who connects and says nothing holds up nobody."""
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    monkeypatch.setenv("RAYALIGN_REWARD_TOKEN", TOKEN)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with RewardServer(("127.0.0.1", 0), words, TOKEN, tls=context) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        port = server.server_address[1]
        with socket.create_connection(("127.0.0.1", port)):
            service = RewardService(f"https://127.0.0.1:{port}/score", RewardServiceConfig(timeout_s=10, retries=0))
            assert service(["a"], ["x y"]) == [2]
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            request(port, {"prompts": ["a"], "responses": ["x"]})  # in clear
        assert service(["a"], ["x y"]) == [2]
        server.shutdown()


def test_our_own_client_speaks_with_it(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    url, config = f"http://127.0.0.1:{port}/score", RewardServiceConfig(timeout_s=5, retries=0, batch_size=2)
    monkeypatch.setenv("RAYALIGN_REWARD_TOKEN", TOKEN)
    assert RewardService(url, config)(["a", "b", "c"], ["x", "x y", "\u00e4 \U0001f600 z"]) == [1, 2, 3]
    with pytest.raises(UserError, match=r"status 400: .*prompts\[0\] does not read as a prompt"):
        RewardService(url, config)(["bad"], ["x"])
    monkeypatch.setenv("RAYALIGN_REWARD_TOKEN", "another")
    with pytest.raises(UserError, match="status 401"):
        RewardService(url, config)(["a"], ["x"])
