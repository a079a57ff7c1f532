"""The judge as a client: what its deadline counts, and when it asks no more."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rayalign.suites.judge import Judge, JudgeOptions
from rayalign.suites.mt_bench.judgements import Item, Judgement, Store, judged
from tests.services import serving, status

SAID = b'{"choices": [{"message": {"content": "[[7]]"}}]}'


def test_the_deadline_starts_with_judging() -> None:
    """Answers are drawn between the judge's making and its first question, and may take hours."""
    with serving(status(200, SAID)) as service:
        judge = Judge(JudgeOptions(url=service.url, model="strict", deadline_s=2.0, retries=0))
        time.sleep(2.2)
        assert judge.ask(judge.body([{"role": "user", "content": "?"}])).text == "[[7]]"


class Full(Store):
    """A disk that takes nothing more."""

    def add(self, judgement: Judgement) -> None:
        raise OSError(28, "No space left on device")


def test_where_nothing_can_be_kept_nothing_more_is_asked(tmp_path: Path) -> None:
    items = [Item(str(n), 1, "alone", [{"role": "user", "content": f"{n}?"}]) for n in range(50)]
    with serving(status(200, SAID)) as service:
        judge = Judge(JudgeOptions(url=service.url, model="strict", concurrency=1, requests_per_minute=600))
        with pytest.raises(OSError, match="No space left"):
            judged(judge, items, Full(tmp_path / "judgements.jsonl"), lambda done, total: None)
        num_asked = len(service.asked)
        time.sleep(0.5)
        assert len(service.asked) <= num_asked + 1 < 10
