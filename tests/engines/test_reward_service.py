"""A reward behind HTTP, against real servers on the loopback: what counts as an answer, and what becomes of all else."""

from __future__ import annotations

import math
import shutil
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayalign.config.service import TOKEN as VARIABLE
from rayalign.config.service import RewardServiceConfig
from rayalign.engines import reward_service
from rayalign.engines.function_reward import FunctionReward
from rayalign.engines.reward_service import RewardService, service_reward
from rayalign.errors import RayalignError, UserError
from rayalign.planted.tokenizer import save_tokenizer
from rayalign.ports import ServiceSetup
from rayalign.types import Ragged, Sequences
from tests.services import TOKEN, Service, answer, certificate, lengths, scores, serving, status

QUICK = RewardServiceConfig(timeout_s=5, retries=1, batch_size=2)
AGAIN = {"Retry_After": "0"}


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, TOKEN)


def ask(service: Service, num: int = 2, **settings: Any) -> list[float]:
    config = QUICK.model_copy(update=settings)
    return RewardService(service.url, config)([f"p{i}" for i in range(num)], [f"a b{' c' * i}" for i in range(num)])


def failure(service: Service, kind: type[RayalignError] = RayalignError, **settings: Any) -> str:
    """The one line of an error, which names the service and never the token."""
    with pytest.raises(kind) as error:
        ask(service, **settings)
    assert type(error.value) is kind
    message = str(error.value)
    assert "\n" not in message and service.url in message and TOKEN not in message
    return message


def test_batches_of_bounded_size_with_the_token() -> None:
    with serving(lengths) as service:
        assert ask(service, 5) == [2, 3, 4, 5, 6]
    assert service.asked == [
        {"prompts": ["p0", "p1"], "responses": ["a b", "a b c"]},
        {"prompts": ["p2", "p3"], "responses": ["a b c c", "a b c c c"]},
        {"prompts": ["p4"], "responses": ["a b c c c c"]},
    ]
    assert {headers["Authorization"] for headers in service.headers} == {f"Bearer {TOKEN}"}


def test_without_a_token_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with serving(lengths) as service:
        ask(service)
    assert "Authorization" not in service.headers[0]


def test_the_texts_are_those_of_a_python_reward(tmp_path: Path) -> None:
    """Special tokens of the prompt and the end of the response are gone; each rank asks for its own share."""
    tokenizer = str(save_tokenizer(tmp_path))
    rows = [[1, 7, 8, 4, 9, 10, 2], [1, 7, 4, 11], [1, 8, 4, 12, 2]]
    sequences = Sequences(
        Ragged.from_list(rows), np.array([4, 3, 3]), np.arange(3), np.array([True, False, True])
    )
    seen: list[tuple[str, str]] = []

    def local(prompts: list[str], responses: list[str]) -> list[float]:
        seen.extend(zip(prompts, responses, strict=True))
        return [float(len(response.split())) for response in responses]

    with serving(lengths) as service:
        worker = service_reward(ServiceSetup(service.url, QUICK, tokenizer, None))
        found = worker.score_sequences(sequences)
    expected = FunctionReward(local, worker._decode_prompt, worker._decode_response).score_sequences(sequences)
    assert found.values.tolist() == expected.values.tolist() == [2, 1, 1]
    assert [p for asked in service.asked for p in asked["prompts"]] == [prompt for prompt, _ in seen]
    assert [r for asked in service.asked for r in asked["responses"]] == [response for _, response in seen]
    assert all("<" not in text for pair in seen for text in pair)


def test_each_rank_asks_for_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[1, 7, 4, 9 + i, 2] for i in range(3)]
    sequences = Sequences(Ragged.from_list(rows), np.full(3, 3), np.arange(3), np.full(3, True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with serving(lengths) as service:
        worker = service_reward(ServiceSetup(service.url, QUICK, str(save_tokenizer(tmp_path)), None))
        shares = []
        for rank in "01":
            monkeypatch.setenv("RANK", rank)
            shares.append(worker.score_sequences(sequences).rows.tolist())
    assert shares == [[0, 2], [1]]
    assert [len(asked["prompts"]) for asked in service.asked] == [2, 1]


def test_null_and_nan_are_nan() -> None:
    with serving(status(200, b'{"scores": [null, NaN]}')) as service:
        assert all(math.isnan(score) for score in ask(service))


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_passing_trouble_is_tried_again(code: int) -> None:
    with serving(status(code, b"busy", **AGAIN), lengths) as service:
        assert ask(service) == [2, 3]
    assert len(service.asked) == 2


def test_a_lasting_one_ends_with_one_line_and_a_bounded_number_of_tries() -> None:
    with serving(status(500, b"out of\nmemory", **AGAIN)) as service:
        message = failure(service, retries=3)
    assert len(service.asked) == 4
    assert "no scores after 4 tries (the last: status 500: out of memory)" in message


def test_pauses_grow_and_are_bounded() -> None:
    pauses = [reward_service._pause_s(attempt, None) for attempt in range(9)]
    assert pauses[:4] == [0.5, 1, 2, 4] and pauses[-1] == reward_service.LONGEST_PAUSE_S
    asked = reward_service.Answer(429, b"", "100000")
    assert reward_service._pause_s(0, asked) == reward_service.LONGEST_PAUSE_S


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (status(401, b"no"), "it answers status 401: no; set RAYALIGN_REWARD_TOKEN"),
        (status(404), "it answers status 404; see its log"),
        (status(400, b"prompts.0: too long"), "status 400: prompts.0: too long"),
        (status(302, b"", Location="http://127.0.0.1:9/"), "a redirect is not followed"),
        (status(204), "status 204"),
    ],
)
def test_a_refusal_is_told_at_once(reply: Any, words: str) -> None:
    with serving(reply) as service:
        assert words in failure(service, UserError)
    assert len(service.asked) == 1


def test_that_no_token_is_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with serving(status(401)) as service:
        assert "it is not set there" in failure(service, UserError)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (scores([1.0]), "for 2 responses came 1 scores"),
        (scores([1.0, 2.0, 3.0]), "for 2 responses came 3 scores"),
        (scores([1.0, "high"]), "scores[1] is 'high'"),
        (scores([True, 1.0]), "scores[0] is True"),
        (status(200, b'{"scores": [1' + b"0" * 400 + b", 1]}"), "scores[0] is a number of hundreds of digits"),
        (status(200, b"<html>\x1b[31mhello</html>"), "no JSON: <html> [31mhello</html>"),
        (status(200, b"[" * 100_000), "no JSON: [[["),
        (status(200, b"[1, 2]"), 'no list of "scores": [1, 2]'),
        (status(200, b'{"scores": {"0": 1}}'), 'no list of "scores"'),
        (status(200, b'{"scores": [1, 2], "more": "' + b"x" * 2**21 + b'"}'), "more than 1048704 bytes"),
    ],
)
def test_an_answer_that_is_none(reply: Any, words: str) -> None:
    with serving(reply) as service:
        message = failure(service)
    assert words in message and 'it must answer {"scores": [2 numbers or null]}' in message and len(message) < 300
    assert len(service.asked) == 1


def dripping(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
    """Alive, and never done: each byte comes well before a timeout of single reads."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def silent(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
    time.sleep(5.0)


def broken_off(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"scores": [1, 2]}')


@pytest.mark.parametrize("slow", [silent, dripping])
def test_a_request_has_a_deadline(slow: Any) -> None:
    with serving(slow) as service:
        started = time.monotonic()
        message = failure(service, timeout_s=0.3, retries=0)
        assert time.monotonic() - started < 4  # either takes longer to end by itself
    assert "within 0.3 s" in message


def test_a_slow_answer_is_tried_again() -> None:
    with serving(silent, lengths) as service:
        assert ask(service, timeout_s=1.5) == [2, 3]


def test_half_an_answer_is_tried_again() -> None:
    with serving(broken_off, lengths) as service:
        assert ask(service) == [2, 3]


def test_a_service_that_is_down() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = Service(f"http://127.0.0.1:{free.getsockname()[1]}/score")
    assert "no scores after 2 tries (the last: Connection refused)" in failure(down)


def test_a_service_that_comes_up_late() -> None:
    """Tried again until it is there."""
    with serving(lengths) as service:
        port = int(service.url.split(":")[2].split("/")[0])
    found: list[list[float]] = []
    asking = threading.Thread(target=lambda: found.append(ask(Service(service.url), retries=6)))
    asking.start()
    time.sleep(0.2)
    from http.server import HTTPServer

    class Late(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer(self, 200, b'{"scores": [7, 8]}')

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", port), Late) as server:
        server.timeout = 5
        server.handle_request()
    asking.join()
    assert found == [[7, 8]]


def test_the_token_is_shown_to_the_service_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """Not when the service sends it back, nor by what holds the service."""

    def echo(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        answer(handler, 400, handler.headers["Authorization"].encode())

    with serving(echo) as service:
        assert "status 400: Bearer ***;" in failure(service, UserError)
    with serving(scores([TOKEN, 1.0])) as service:
        assert "scores[0] is '***'" in failure(service)
    held = RewardService(service.url, QUICK)
    assert TOKEN not in repr(held) + repr(vars(held)) + repr(vars(FunctionReward(held, str, str)))
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.parametrize("bad", ["two words", "line\nbreak", "gehe\u00efm"])
def test_a_token_that_no_header_takes(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told without it: the standard library's own error would print it."""
    monkeypatch.setenv(VARIABLE, bad)
    with serving(lengths) as service, pytest.raises(UserError, match="printable ASCII without spaces") as error:
        ask(service)
    assert bad not in str(error.value) and not service.asked


@pytest.mark.parametrize("host", ["192.0.2.7", "rewards.example", "127.0.0.1.example", "[2001:db8::1]"])
def test_no_token_in_clear(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://{host}:8400/score"
    with pytest.raises(UserError, match="would travel in clear") as error:
        RewardService(url, QUICK)
    assert TOKEN not in str(error.value)
    RewardService(url.replace("http:", "https:"), QUICK)
    monkeypatch.delenv(VARIABLE)
    RewardService(url, QUICK)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that nobody vouches for is refused at once, before the token is sent; SSL_CERT_FILE vouches."""
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with serving(lengths, tls=context) as service:
        assert "its certificate is not trusted (self-signed certificate)" in failure(service, UserError)
        assert not service.asked
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        assert ask(service) == [2, 3]
    with serving(dripping, tls=context) as service:
        assert "within 0.3 s" in failure(service, timeout_s=0.3, retries=0)


def test_the_environments_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(lengths) as service:
        assert ask(service) == [2, 3]
