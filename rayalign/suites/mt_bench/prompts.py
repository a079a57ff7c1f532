"""What the judge is asked, by the published prompts (prompts.yaml), and how its grade is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import yaml

from rayalign.suites.mt_bench.questions import Question

RATING = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")
VERDICT = re.compile(r"\[\[([ABC])\]\]")
LOWEST, HIGHEST = 1.0, 10.0
Answers = tuple[str, str]  # to both turns
T = TypeVar("T")


class Unparsed(Exception):
    """No grade can be read; the words say why."""


def single_messages(question: Question, turn: int, answers: Answers) -> list[dict[str, str]]:
    """To grade the answer to a turn (1 or 2), the second in the light of the first."""
    values = _values(question, turn)
    if turn == 1:
        return _messages(_name("single", question, turn), values | {"answer": answers[0]})
    return _messages(_name("single", question, turn), values | {"answer_1": answers[0], "answer_2": answers[1]})


def pair_messages(question: Question, turn: int, first: Answers, second: Answers) -> list[dict[str, str]]:
    """To choose between two answers; `first` is shown as assistant A's."""
    values = _values(question, turn)
    if turn == 1:
        values |= {"answer_a": first[0], "answer_b": second[0]}
    else:
        values |= {"answer_a_1": first[0], "answer_a_2": first[1], "answer_b_1": second[0], "answer_b_2": second[1]}
    return _messages(_name("pair", question, turn), values)


def rating(text: str) -> float:
    """The one grade of 1 to 10 in a judge's words. Raises Unparsed for none, several that differ, or one out of range.

    Stricter than FastChat, which takes the first of several, and a number in single brackets where there is none.
    """
    value = _one([float(found) for found in RATING.findall(text)], "rating")
    if not LOWEST <= value <= HIGHEST:
        raise Unparsed(f"a rating out of {LOWEST:g} to {HIGHEST:g}")
    return value


def verdict(text: str) -> str:
    """"A", "B" or "C" (a tie). Raises Unparsed for none, or several that differ."""
    return _one(VERDICT.findall(text), "verdict")


def _one(found: Sequence[T], what: str) -> T:
    if not found:
        raise Unparsed(f"no {what}")
    if len(set(found)) > 1:
        raise Unparsed(f"more than one {what}")
    return found[0]


def _name(kind: str, question: Question, turn: int) -> str:
    plain = {"single": "single-v1", "pair": "pair-v2"}[kind]
    name = f"{kind}-math-v1" if question.reference(turn) else plain
    return name if turn == 1 else f"{name}-multi-turn"


def _values(question: Question, turn: int) -> dict[str, str]:
    values = {"question": question.turns[0], "question_1": question.turns[0], "question_2": question.turns[1]}
    for number, reference in enumerate(question.reference(turn) or (), start=1):
        values[f"ref_answer_{number}"] = reference
    return values


def _messages(name: str, values: dict[str, str]) -> list[dict[str, str]]:
    prompt = _prompts()[name]
    return [
        {"role": "system", "content": prompt["system"]},
        {"role": "user", "content": prompt["user"].format_map(values)},
    ]


@cache
def _prompts() -> Any:
    return yaml.safe_load((files("rayalign.suites.mt_bench") / "prompts.yaml").read_text(encoding="utf-8"))
