"""A fixed reward behind an HTTP service: prompts and responses go there as texts, one number for each comes back.

docs/reward_service.md describes the wire format, which `rayalign serve-reward` speaks too.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

from rayalign.config.service import TOKEN, RewardServiceConfig, clear_text_problem, reward_token
from rayalign.data.template import Template, load_tokenizer
from rayalign.engines.function_reward import FunctionReward
from rayalign.engines.http_post import Answer, NoAnswer, NotTrusted, post
from rayalign.errors import RayalignError, UserError
from rayalign.ports import ServiceSetup

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
MAX_BYTES, MAX_BYTES_EACH = 2**20, 64  # of an answer: for whatever else it says, and for each score
SHOWN = 80  # characters of what a service said


def service_reward(setup: ServiceSetup) -> FunctionReward:
    """The worker that asks a service for its share of the samples. Raises UserError where the service may not be asked."""
    tokenizer = load_tokenizer(setup.tokenizer, trust_remote_code=setup.trust_remote_code)
    template = Template(tokenizer, setup.chat_template)
    service = RewardService(setup.url, setup.service)
    return FunctionReward(service, template.decode_prompt, template.decode_response)


class RewardService:
    """A reward function that asks a service, batch by batch, each within its deadline and with a bounded number of tries."""

    def __init__(self, url: str, config: RewardServiceConfig) -> None:
        if problem := clear_text_problem(url):
            raise UserError(problem)
        self._url, self._config = url, config

    def __repr__(self) -> str:
        return f"RewardService({self._url})"

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """One number for each of B prompts and responses; NaN where the service gives null.

        Raises UserError where the service refuses, RayalignError where it does not answer or answers with anything else.
        """
        scores: list[float] = []
        for start in range(0, len(prompts), self._config.batch_size):
            part = slice(start, start + self._config.batch_size)
            scores += self._ask(prompts[part], responses[part])
        return scores

    def _ask(self, prompts: list[str], responses: list[str]) -> list[float]:
        body = json.dumps({"prompts": prompts, "responses": responses}).encode()
        max_bytes = MAX_BYTES + MAX_BYTES_EACH * len(prompts)
        told = ""
        for attempt in range(self._config.retries + 1):
            answer, told = self._try(body, max_bytes)
            if answer is not None and answer.status == 200:
                return self._scores(answer.body, len(prompts), max_bytes)
            if attempt < self._config.retries:
                time.sleep(_pause_s(attempt, answer))
        tries = f"{self._config.retries + 1} tries"
        raise RayalignError(
            f"reward service {self._url}: no scores after {tries} (the last: {told}); see that it runs, or raise "
            "placement.reward_service.retries or timeout_s"
        )

    def _try(self, body: bytes, max_bytes: int) -> tuple[Answer | None, str]:
        """An answer if there is one, and in a few words why there are no scores. Raises UserError for a refusal."""
        token = reward_token()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        try:
            answer = post(self._url, body, headers, timeout_s=self._config.timeout_s, max_bytes=max_bytes)
        except NoAnswer as error:
            return None, _shown(str(error))
        except NotTrusted as error:
            raise UserError(
                f"reward service {self._url}: its certificate is not trusted ({error}); mend it, or name the authority that "
                "signed it in SSL_CERT_FILE"
            ) from None
        said = f"status {answer.status}: {_shown(answer.body)}" if answer.body else f"status {answer.status}"
        if answer.status != 200 and answer.status != 429 and answer.status < 500:
            raise UserError(f"reward service {self._url}: it answers {said}; {_remedy(answer.status, token)}")
        return answer, said

    def _scores(self, body: bytes, num: int, max_bytes: int) -> list[float]:
        """The B numbers of an answer. Raises RayalignError for anything else."""
        if len(body) > max_bytes:
            raise self._unreadable(f"more than {max_bytes} bytes", num)
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            raise self._unreadable(f"no JSON: {_shown(body)}", num) from None
        scores = found.get("scores") if isinstance(found, dict) else None
        if not isinstance(scores, list):
            raise self._unreadable(f'no list of "scores": {_shown(body)}', num)
        if len(scores) != num:
            raise self._unreadable(f"{len(scores)} scores", num)
        return [self._number(score, place, num) for place, score in enumerate(scores)]

    def _number(self, score: Any, place: int, num: int) -> float:
        if score is None:
            return math.nan
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise self._unreadable(f"scores[{place}] is {_shown(repr(score))}", num)
        try:
            return float(score)
        except OverflowError:
            raise self._unreadable(f"scores[{place}] is a number of hundreds of digits", num) from None

    def _unreadable(self, what: str, num: int) -> RayalignError:
        return RayalignError(
            f"reward service {self._url}: for {num} responses came {what}; it must answer "
            f'{{"scores": [{num} numbers or null]}}'
        )


def _pause_s(attempt: int, answer: Answer | None) -> float:
    """Twice as long after each try; or as long as the server asks for, within bounds."""
    asked = answer.retry_after if answer is not None else None
    if asked and asked.isascii() and asked.isdecimal():
        return min(float(asked), LONGEST_PAUSE_S)
    return min(FIRST_PAUSE_S * 2.0**attempt, LONGEST_PAUSE_S)


def _remedy(status: int, token: str | None) -> str:
    if status in (401, 403):
        return f"set {TOKEN} to its token where the reward workers run" + ("" if token else "; it is not set there")
    if 300 <= status < 400:
        return "a redirect is not followed, because a token goes with the request: give the address that it leads to"
    return "see its log, and that the address is right"


def _shown(said: bytes | str) -> str:
    """What a service said, short, on one line, and without the token if it sends that back."""
    text = said[: 4 * 2**10].decode("utf-8", errors="replace") if isinstance(said, bytes) else said
    if token := reward_token():
        text = text.replace(token, "***")
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
