"""MT-Bench's questions and reference answers, in FastChat's layout: question.jsonl and reference_answer/gpt-4.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayalign.data.files import Place, Row, data_suffix, read_file
from rayalign.errors import DataError

NUM_TURNS = 2
# Judged with a reference, and the temperature that a category is answered at: as the paper's code has them.
WITH_REFERENCE = ("math", "reasoning", "coding")
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7  # of a category that MT-Bench does not have
SHAPE = '{"question_id": 81, "category": "writing", "turns": ["...", "..."]}'


@dataclass(frozen=True, slots=True)
class Question:
    """Two turns, and reference answers to none, the first, or both."""

    id: str
    category: str
    turns: tuple[str, str]
    references: tuple[str, ...] = ()

    @property
    def temperature(self) -> float:
        """What its answers are drawn at."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)

    def reference(self, turn: int) -> tuple[str, ...] | None:
        """The reference answers up to a turn (1 or 2), where its category is judged with them and all are there."""
        if self.category not in WITH_REFERENCE or len(self.references) < turn or not all(self.references[:turn]):
            return None
        return self.references


def read_questions(path: Path, references: Path | None = None, limit: int | None = None) -> list[Question]:
    """The questions of a file, the first `limit` of them; `references`, where given, take the place of their own.

    Raises DataError, which names the line, for what is no question.
    """
    given = {} if references is None else _references(references)
    found: dict[str, Question] = {}
    for place, row in _rows(path):
        if limit is not None and len(found) == limit:
            break
        question = _question(place, row, given)
        if question.id in found:
            raise DataError(f"{place}: question_id {question.id} is there twice; give each question its own")
        found[question.id] = question
    if not found:
        raise DataError(f"{path}: holds no questions; a line is {SHAPE}")
    return list(found.values())


def _rows(path: Path) -> list[tuple[Place, Row]]:
    path = path.expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file; MT-Bench's question.jsonl is in FastChat, fastchat/llm_judge/data/mt_bench")
    if data_suffix(path) is None:
        raise DataError(f"{path}: give MT-Bench's question.jsonl, or a file of its layout that ends in .jsonl")
    return list(read_file(path))


def _question(place: Place, row: Row, given: dict[str, tuple[str, ...]]) -> Question:
    turns, key = _texts(row.get("turns")), row.get("question_id")
    if len(turns) != NUM_TURNS or not all(turn.strip() for turn in turns):
        raise DataError(f"{place}: turns must be two texts; a line is {SHAPE}")
    if isinstance(key, bool) or not isinstance(key, (int, str)) or not str(key):
        raise DataError(f"{place}: question_id must be a number or a text; a line is {SHAPE}")
    category = row.get("category")
    if not isinstance(category, str) or not category:
        raise DataError(f"{place}: category must be a text; a line is {SHAPE}")
    own = given.get(str(key), tuple(_texts(row.get("reference"))))
    return Question(str(key), category, (turns[0], turns[1]), own)


def _references(path: Path) -> dict[str, tuple[str, ...]]:
    found = {}
    for place, row in _rows(path):
        try:
            turns = _texts(row["choices"][0]["turns"])
        except (KeyError, IndexError, TypeError):
            turns = []
        if not turns or row.get("question_id") is None:
            raise DataError(
                f'{place}: no reference answer; a line is {{"question_id": 101, "choices": [{{"turns": ["...", "..."]}}]}}'
            )
        found[str(row["question_id"])] = tuple(turns)
    return found


def _texts(value: Any) -> Sequence[str]:
    """A list of texts; nothing for what is none."""
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else []
