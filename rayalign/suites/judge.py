"""A language model behind an OpenAI-compatible address, asked to judge: bounded tries, a rate, a deadline, and what it cost.

The key is read from the environment for each request; no object holds it, and what a judge says is kept without it.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rayalign.config.service import is_loopback
from rayalign.engines.http_post import Answer, NoAnswer, NotTrusted, post
from rayalign.errors import RayalignError, UserError

PATH = "/chat/completions"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
MAX_BYTES = 4 * 2**20  # of an answer
SHOWN = 200  # characters of what a judge said, in a message
REFUSED = "refused"
ITEM_REFUSED = (400, 413, 422)  # it may be this conversation alone that it does not take: one that is too long, say


class JudgeDown(RayalignError):
    """The judge did not answer, after all tries or within the deadline."""


class Unusable(Exception):
    """An answer that holds no words to read a grade from; another try may fare better, unless it is a refusal."""

    @property
    def refused(self) -> bool:
        """Whether the judge does not take this conversation."""
        return str(self).startswith(REFUSED)


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges, and how it is asked."""

    url: str  # with or without /v1/chat/completions
    model: str
    key_env: str | None = None  # the environment variable that holds the key; no key without it
    extra: Mapping[str, Any] = field(default_factory=dict)  # put into each request; null takes a key out
    max_tokens: int = 2048
    requests_per_minute: float | None = None
    concurrency: int = 4
    timeout_s: float = 180.0  # of one request, its answer included
    retries: int = 5  # after no answer, 429 or 5xx
    deadline_s: float = 6 * 3600.0  # of all judging
    asks: int = 3  # of one item, until its grade can be read
    price_in: float | None = None  # for a million tokens
    price_out: float | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """A judge's words, and the tokens it counted; None where it does not tell."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cut: bool  # at max_tokens


class Judge:
    """Asks; safe to use from several threads, which share one rate and one pause.

    Raises UserError at once for an address or a key that cannot be used.
    """

    def __init__(self, options: JudgeOptions) -> None:
        self.url = address_of(options.url)
        self.options = options
        key = self._key()
        if key and urlsplit(self.url).scheme == "http" and not is_loopback(urlsplit(self.url).hostname or ""):
            raise UserError(f"--judge {self.url}: over plain http the key would travel in clear; use https, or a tunnel")
        self._lock = threading.Lock()
        self._free_at = 0.0  # when the next request may go
        self._due: float | None = None  # the deadline's end; it runs from the first request, and not while answers are drawn
        self.stop = threading.Event()  # set: whoever waits gives up

    def body(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """The request for a conversation: all that the grade depends on."""
        base = {
            "model": self.options.model,
            "messages": [dict(message) for message in messages],
            "temperature": 0,
            "max_tokens": self.options.max_tokens,
        }
        return {name: value for name, value in (base | dict(self.options.extra)).items() if value is not None}

    def ask(self, body: Mapping[str, Any]) -> Said:
        """One answer, after as many tries as it takes within bounds.

        Raises Unusable for an answer without words, JudgeDown where there is none, UserError where it refuses.
        """
        sent, told = json.dumps(body).encode(), ""
        for attempt in range(self.options.retries + 1):
            self._take_turn(told)
            answer, told = self._try(sent)
            if answer is not None and answer.status == 200:
                return self._read(answer.body)
            if answer is not None and answer.status in ITEM_REFUSED:
                raise Unusable(f"{REFUSED} ({told})")
            if attempt < self.options.retries:
                self._pause(_pause_s(attempt, answer))
        raise JudgeDown(
            f"judge {self.url}: no answer after {self.options.retries + 1} tries (the last: {told}); see that it runs, and "
            "start again: what is judged is kept"
        )

    def _take_turn(self, told: str) -> None:
        """Waits until the rate, and a pause that the judge asked for, allow a request."""
        with self._lock:
            start = max(time.monotonic(), self._free_at)
            due = self._begun()
            if self.options.requests_per_minute:
                self._free_at = start + 60.0 / self.options.requests_per_minute
        if start >= due:
            last = f" (the last: {told})" if told else ""
            raise JudgeDown(
                f"judge {self.url}: not done within {self.options.deadline_s:g} s{last}; start again (what is judged is "
                "kept), or raise --judge-deadline"
            )
        if self.stop.wait(max(0.0, start - time.monotonic())):
            raise JudgeDown(f"judge {self.url}: given up")

    def _begun(self) -> float:
        """When all judging must be done: the clock starts with the first request."""
        if self._due is None:
            self._due = time.monotonic() + self.options.deadline_s
        return self._due

    def _pause(self, seconds: float) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() + seconds)

    def _try(self, sent: bytes) -> tuple[Answer | None, str]:
        """An answer if there is one, and in a few words what came. Raises UserError for what no other try would mend."""
        key = self._key()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        timeout_s = max(0.001, min(self.options.timeout_s, self._begun() - time.monotonic()))
        try:
            answer = post(self.url, sent, headers, timeout_s=timeout_s, max_bytes=MAX_BYTES)
        except NoAnswer as error:
            return None, self.shown(str(error))
        except NotTrusted as error:
            raise UserError(
                f"judge {self.url}: its certificate is not trusted ({error}); name the authority that signed it in "
                "SSL_CERT_FILE"
            ) from None
        said = f"status {answer.status}: {self.shown(answer.body)}" if answer.body else f"status {answer.status}"
        if answer.status in (200, 408, 409, 429, *ITEM_REFUSED) or answer.status >= 500:
            return answer, said
        raise UserError(f"judge {self.url}: it answers {said}; {self._remedy(answer.status)}")

    def _read(self, body: bytes) -> Said:
        if len(body) > MAX_BYTES:
            raise Unusable(f"more than {MAX_BYTES} bytes")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            raise Unusable(f"no JSON: {self.shown(body)}") from None
        try:
            choice = found["choices"][0]
            text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        except (KeyError, IndexError, TypeError, AttributeError):
            raise Unusable(f"no choices[0].message: {self.shown(body)}") from None
        if not isinstance(text, str) or not text.strip():
            raise Unusable("no words, cut at max_tokens" if cut else "no words")
        usage = found.get("usage")
        return Said(self._scrubbed(text), _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens"), cut)

    def shown(self, said: bytes | str) -> str:
        """Some words of it, on one line, without the key."""
        text = said[: 2**14].decode("utf-8", errors="replace") if isinstance(said, bytes) else said
        text = " ".join("".join(c if c.isprintable() else " " for c in self._scrubbed(text)).split())
        return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."

    def _scrubbed(self, text: str) -> str:
        key = self._key()
        return text.replace(key, "***") if key else text

    def _key(self) -> str | None:
        name = self.options.key_env
        if name is None:
            return None
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError("--judge-key-env: give the name of an environment variable that holds the key, not the key")
        key = os.environ.get(name, "").strip()
        if not key or not all("!" <= letter <= "~" for letter in key):
            raise UserError(f"--judge-key-env {name}: holds no key in this environment; set it (printable ASCII, no spaces)")
        return key

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            return "name the variable with its key in --judge-key-env"
        if status == 404:
            return f"see that it serves {self.options.model}, and that the address is right"
        if 300 <= status < 400:
            return "a redirect is not followed, because a key goes with the request: give the address that it leads to"
        return "see its log, and --judge-extra"


def address_of(url: str) -> str:
    """The whole address of chat completions. Raises UserError for one that cannot be asked, or holds a secret."""
    try:
        address = urlsplit(url)
        named = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        named = False
    if not named or any(not "!" <= letter <= "~" for letter in url):
        raise UserError(f"--judge {url.split('@')[-1]}: no address; write it as https://HOST:PORT/v1")
    if set("?#@") & set(url):
        raise UserError(
            "--judge: a user, a password, or anything behind the path would be written to evaluation.json; give "
            "https://HOST:PORT/v1, and the key by --judge-key-env"
        )
    path = address.path.rstrip("/")
    if not path.endswith(PATH):
        path = f"{path or '/v1'}{PATH}"
    return f"{address.scheme}://{address.netloc}{path}"


def _pause_s(attempt: int, answer: Answer | None) -> float:
    """Twice as long after each try; or as long as the server asks for, within bounds."""
    asked = answer.retry_after if answer is not None else None
    if asked and asked.isascii() and asked.strip().isdecimal():
        return min(float(asked), LONGEST_PAUSE_S)
    return min(FIRST_PAUSE_S * 2.0**attempt, LONGEST_PAUSE_S)


def _tokens(usage: Any, name: str) -> int | None:
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None
