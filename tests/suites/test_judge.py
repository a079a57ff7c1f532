"""The judge as a client: what its deadline counts."""

from __future__ import annotations

import time

from rayalign.suites.judge import Judge, JudgeOptions
from tests.services import serving, status

SAID = b'{"choices": [{"message": {"content": "[[7]]"}}]}'


def test_the_deadline_starts_with_judging() -> None:
    """Answers are drawn between the judge's making and its first question, and may take hours."""
    with serving(status(200, SAID)) as service:
        judge = Judge(JudgeOptions(url=service.url, model="strict", deadline_s=2.0, retries=0))
        time.sleep(2.2)
        assert judge.ask(judge.body([{"role": "user", "content": "?"}])).text == "[[7]]"
