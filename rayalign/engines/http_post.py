"""One POST over HTTP or HTTPS: an answer whole and in time, or a reason why there is none.

The standard library's client has a timeout for each read only: a server that sends a byte now and then would hold it for
ever. Here a timer ends the whole exchange. Nothing is followed elsewhere, and the environment's proxies are not used: a
request carries a token.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit


class NoAnswer(Exception):
    """No connection, no answer in time, or one that broke off; another try may fare better."""


class NotTrusted(Exception):
    """The server's certificate does not hold; another try will not fare better."""


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    body: bytes  # of one byte more than allowed, where there was more
    retry_after: str | None


def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float, max_bytes: int) -> Answer:
    """Sends a body and reads the answer, at most `max_bytes` + 1 of it, within `timeout_s`.

    Raises NoAnswer and NotTrusted, each with a few words of why.
    """
    address = urlsplit(url)
    connection = _connection(address.scheme, address.hostname or "", address.port, timeout_s)
    due, late = time.monotonic() + timeout_s, threading.Event()
    try:
        connection.connect()
        with _ended_at(due, connection.sock, late):
            connection.request("POST", address.path or "/", body, dict(headers))
            answer = _read(connection.getresponse(), max_bytes)
    except ssl.SSLCertVerificationError as error:
        raise NotTrusted(error.verify_message) from None
    except (OSError, HTTPException) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise NoAnswer(f"nothing within {timeout_s:g} s") from None
        raise NoAnswer(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None
    finally:
        connection.close()
    if late.is_set():
        raise NoAnswer(f"nothing whole within {timeout_s:g} s")
    return answer


def _connection(scheme: str, host: str, port: int | None, timeout_s: float) -> HTTPConnection:
    if scheme.lower() == "https":
        return HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
    return HTTPConnection(host, port, timeout=timeout_s)


@contextlib.contextmanager
def _ended_at(due: float, connected: socket.socket, late: threading.Event) -> Iterator[None]:
    """Breaks a connection off when its time is up; whoever reads from it meets its end."""

    def end() -> None:
        late.set()
        with contextlib.suppress(OSError):  # it may have ended by itself
            # Not the method of a TLS socket, which would first forget its session under the reader's hands.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, due - time.monotonic()), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read(response: HTTPResponse, max_bytes: int) -> Answer:
    body = response.read(max_bytes + 1)
    if len(body) <= max_bytes and response.length:
        raise NoAnswer("the connection ended in the middle of an answer")
    return Answer(response.status, body, response.getheader("Retry-After"))
