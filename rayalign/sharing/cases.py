"""The texts that an export is checked with: answers that the run's evaluation kept, or short fixed ones.

Rows of the training data are not among them (see `sharing.heldout`): an export is made to be given away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayalign.data.rendered import RenderedPrompts
from rayalign.data.template import Template
from rayalign.errors import DataError, RayalignError
from rayalign.types import Message, Ragged, Sequences

MAX_CASES = 4
MAX_TOKENS = 512  # of a case: a check, and no evaluation
FIXED = (("Say hello.", "Hello!"), ("What is two plus two?", "Four."), ("Name a colour.", "Blue, like the sky."))


@dataclass(frozen=True)
class Case:
    """A rendered prompt and a response, as texts and as tokens; the response's end token is its last."""

    prompt: str
    response: str
    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(frozen=True)
class Cases:
    """At most MAX_CASES, and where they are from."""

    source: str
    cases: list[Case]

    def sequences(self) -> Sequences:
        """Their tokens, one sequence a case."""
        num = len(self.cases)
        return Sequences(
            Ragged.from_list([[*case.prompt_ids, *case.response_ids] for case in self.cases]),
            np.array([len(case.prompt_ids) for case in self.cases], dtype=np.int64),
            np.arange(num),
            np.full(num, True),
        )


def choose_cases(template: Template, examples: Iterable[Mapping[str, Any]], *, max_length: int) -> Cases:
    """From `examples` of results.json ({"prompt", "answers": {MODEL: text}}), else the fixed texts.

    Raises RayalignError where not even those fit into `max_length` tokens.
    """
    longest = min(MAX_TOKENS, max_length)
    told = _fitting((case for example in examples for case in _of_example(template, example)), longest)
    if told:
        return Cases("examples of the run's evaluation", told)
    fixed = _fitting((_fixed(template, *texts) for texts in FIXED), longest)
    if not fixed:
        raise RayalignError(f"no text to check the export with fits into {max_length} tokens (model.max_length)")
    return Cases("fixed texts", fixed)


def _fitting(cases: Iterable[Case], longest: int) -> list[Case]:
    found = [case for case in cases if case.prompt_ids and len(case.prompt_ids) + len(case.response_ids) <= longest]
    return found[:MAX_CASES]


def _of_example(template: Template, example: Mapping[str, Any]) -> list[Case]:
    """One case for each distinct answer; none where the prompt does not read as one of this template."""
    prompt, answers = str(example.get("prompt") or ""), example.get("answers") or {}
    try:
        (prompt_ids,) = RenderedPrompts(template).encode([prompt])
    except DataError:
        return []
    texts = list(dict.fromkeys(str(text) for text in answers.values()))
    responses = template.encode_responses(texts)
    return [Case(prompt, text, prompt_ids, ids) for text, ids in zip(texts, responses, strict=True)]


def _fixed(template: Template, prompt: str, response: str) -> Case:
    rendered = template.prompt_text((Message("user", prompt),))
    (prompt_ids,), (response_ids,) = template.encode_prompts([rendered]), template.encode_responses([response])
    return Case(template.without_special(rendered), response, prompt_ids, response_ids)
